"""The best, the worst and the median reply of each step and task, with their verdicts: what a reward curve does not show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safework_cli.journal import open_journal, read_journal, write_line
from safework_cli.rows import Row
from safework_rl.rewards import Scored


class SampleLog:
    """Appends samples to a file of JSON lines; a resumed run's repeated steps replace the earlier ones when read."""

    def __init__(self, path: Path):
        self._path = path

    def add(self, step: int, rows: Sequence[Row], replies: Sequence[str], scored: Scored, lengths: Sequence[int]) -> None:
        """Keeps three replies of each task that the step held."""
        with open_journal(self._path) as handle:
            for task in sorted({row.task for row in rows}):
                ranked = sorted(
                    (i for i, row in enumerate(rows) if row.task == task and scored.reward[i] == scored.reward[i]),
                    key=lambda i: scored.reward[i],
                )
                if not ranked:
                    continue
                for word, i in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
                    verdicts = {name: v.error or f"{v.score:.2f} {v.label or ''}".strip() for name, v in scored.verdicts[i].items()}
                    record = {
                        "step": step, "task": task, "rank": word, "row": rows[i].id, "prompt": rows[i].question, "reply": replies[i],
                        "reward": scored.reward[i], "tokens": lengths[i], "verdicts": json.dumps(verdicts, ensure_ascii=False),
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
