"""The best, the worst and the median reply of a step and task, with their verdicts: what a reward curve does not show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.data.row import Row
from safework_rl.step import Trajectory


class SampleLog:
    """Appends samples to a file of JSON lines; a resumed run's repeated steps replace the earlier ones when read."""

    def __init__(self, path: Path):
        self._path = path

    def add(self, step: int, rows: Sequence[Row], samples: Sequence[Trajectory]) -> None:
        """Keeps three replies of each task that the step held.

        Args:
            rows: of the run, by their positions.
        """
        with open_journal(self._path) as handle:
            for task in sorted({rows[sample.row].task for sample in samples}):
                of_task = [sample for sample in samples if rows[sample.row].task == task and not math.isnan(sample.reward)]
                if not of_task:
                    continue
                ranked = sorted(of_task, key=lambda sample: sample.reward)
                for word, sample in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
                    verdicts = {name: v.error or f"{v.score:.2f} {v.label or ''}".strip() for name, v in sample.verdicts.items()}
                    row = rows[sample.row]
                    record = {
                        "step": step, "task": task, "rank": word, "row": row.id, "prompt": row.question, "reply": sample.reply,
                        "reward": sample.reward, "tokens": sample.length, "verdicts": json.dumps(verdicts, ensure_ascii=False),
                    }  # fmt: skip
                    write_line(handle, record)

    def write_parquet(self, path: Path) -> int:
        """Writes every kept sample, the last of each (step, task, rank), and returns how many they are."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        kept = {(record["step"], record["task"], record["rank"]): record for record in read_journal(self._path)}
        if kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(list(kept.values())), path)
        return len(kept)
