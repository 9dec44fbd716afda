"""The run of ``safework search``, from top to bottom."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safework_cli.core.journal import open_journal, read_journal, write_line
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.dataset import prompts_of
from safework_cli.data.row import Row
from safework_cli.engines.load import load_token_engine
from safework_cli.engines.protocol import Sampling, TokenEngine
from safework_cli.verifiers.load import load_verifier
from safework_search.config import GuidedConfig
from safework_search.methods import Answered, Guides, best_of_n, guided_steps

SCHEMA = pa.schema(
    [
        ("row", pa.string()),
        ("task", pa.string()),
        ("harmful", pa.bool_()),
        ("prompt", pa.string()),
        ("reply", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("stopped", pa.bool_()),
        ("failed_steps", pa.int32()),
        ("error", pa.string()),
        ("chosen", pa.list_(pa.int32())),
        ("candidates", pa.string()),
    ]
)


def run(config: GuidedConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Answers prompts batch by batch; batches that an earlier, killed run finished are not repeated."""
    prompts, model_artifact = inputs.one("prompts"), inputs.one("model")
    rows = prompts_of(prompts, tasks=config.tasks, limit=config.limit, held_out=True)
    engine = load_token_engine(
        config.engine,
        model_artifact.path,
        batch_size=config.generation_batch_size,
        trust_remote_code=config.trust_remote_code,
        images=any(row.images for row in rows),
    )
    guides = Guides(
        {name: load_verifier(a, trust_remote_code=config.trust_remote_code) for name, a in inputs.many("guide").items()},
        config.guide_weights,
        config.likelihood_weight,
    )

    journal = work.path / "generations.jsonl"
    done = {record["row"]: record for record in read_journal(journal)}
    with work.progress.phase(config.method, len(rows)) as phase:
        for start in range(0, len(rows), config.batch_prompts):
            batch = rows[start : start + config.batch_prompts]
            if not all(row.id in done for row in batch):
                answers = _answer(config, engine, guides, batch)
                with open_journal(journal) as handle:
                    for row, answer in zip(batch, answers, strict=True):
                        done[row.id] = _record(row, answer)
                        write_line(handle, done[row.id])
            phase.advance(len(batch))
    records = [done[row.id] for row in rows]
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), work.output / "generations.parquet")
    failed = sum(record["failed_steps"] > 0 or record["error"] is not None for record in records)
    for error, count in Counter(record["error"] for record in records if record["error"]).most_common(3):
        work.progress.warn(f"{count} prompts could not be used: {error}")
    return Outcome(
        metrics=_metrics(records),
        seeds={"candidates": f"seed={config.seed}, by row, step and candidate"},
        chat_template_hash=engine.template_hash,
        failed_items=failed,
        tolerated_items=int(config.max_failed * len(records)),
    )


def _answer(config: GuidedConfig, engine: TokenEngine, guides: Guides, batch: list[Row]) -> list[Answered]:
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=config.seed)
    if config.method == "best_of_n":
        return best_of_n(engine, guides, batch, config.candidates, sampling)
    return guided_steps(engine, guides, batch, config.candidates, sampling, step_tokens=config.step_tokens, boundaries=config.boundaries)


def _record(row: Row, answer: Answered) -> dict[str, Any]:
    return {
        "row": row.id,
        "task": row.task,
        "harmful": row.harmful,
        "prompt": json.dumps(list(row.prompt), ensure_ascii=False),
        "reply": answer.reply,
        "token_ids": answer.token_ids,
        "tokens": len(answer.token_ids),
        "stopped": answer.stopped,
        "failed_steps": answer.failed_steps,
        "error": answer.error,
        "chosen": answer.chosen,
        "candidates": json.dumps([[asdict(c) for c in step] for step in answer.candidates], ensure_ascii=False),
    }


def _metrics(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The guides' mean score of what was chosen at the last step, and the mean over all candidates of that step."""
    chosen, offered = [], []
    answered = [record for record in records if record["error"] is None]
    for record in answered:
        last = json.loads(record["candidates"])[-1]
        scores = [c["score"] for c in last if c["score"] is not None]
        if scores and last[record["chosen"][-1]]["score"] is not None:
            chosen.append(last[record["chosen"][-1]]["score"])
            offered.append(fmean(scores))
    return {
        "prompts": len(records),
        "scored": len(chosen),
        "score_chosen": round(fmean(chosen), 4) if chosen else None,
        "score_offered": round(fmean(offered), 4) if offered else None,
        "mean_tokens": round(fmean(record["tokens"] for record in answered), 1) if answered else None,
        "stop_rate": round(fmean(record["stopped"] for record in answered), 4) if answered else None,
    }
