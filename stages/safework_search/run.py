"""The run of ``safework search``, from top to bottom."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safework_cli.journal import open_journal, read_journal, write_line
from safework_cli.lm.engine import Sampling
from safework_cli.lm.hf import HFEngine
from safework_cli.lm.models import load_model, load_tokenizer, template_hash
from safework_cli.rows import Row
from safework_cli.stage import Inputs, Outcome, WorkDir, require_rows
from safework_cli.verifiers.load import load_verifier
from safework_search.methods import Answered, Guides, best_of_n, guided_steps
from safework_search.stage import GuidedConfig


def run(config: GuidedConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Answers prompts batch by batch; batches that an earlier, killed run finished are not done again."""
    prompts, model_artifact = inputs.one("prompts"), inputs.one("model")
    rows = [row for row in prompts.rows() if not config.tasks or row.task in config.tasks][: config.limit]
    require_rows(len(rows), prompts, f"prompts of the tasks {', '.join(config.tasks)}" if config.tasks else "prompts")
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    engine = HFEngine(load_model(model_artifact.path, trust_remote_code=config.trust_remote_code), tokenizer, config.generation_batch_size)
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
                sampling = Sampling(config.max_tokens, config.temperature, config.top_p, seed=config.seed * 100_003 + start)
                answers = _answer(config, engine, guides, batch, sampling)
                with open_journal(journal) as handle:
                    for row, answer in zip(batch, answers, strict=True):
                        done[row.id] = _record(row, answer)
                        write_line(handle, done[row.id])
            phase.advance(len(batch))
    records = [done[row.id] for row in rows]
    pq.write_table(pa.Table.from_pylist(records), work.output / "generations.parquet")
    failed = sum(record["failed_steps"] > 0 for record in records)
    return Outcome(
        metrics=_metrics(records),
        seeds={"candidates": f"seed={config.seed}, by batch of {config.batch_prompts} prompts"},
        chat_template_hash=template_hash(tokenizer),
        failed_items=failed,
        tolerated_items=int(config.max_failed * len(records)),
    )


def _answer(config: GuidedConfig, engine: HFEngine, guides: Guides, batch: list[Row], sampling: Sampling) -> list[Answered]:
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
        "tokens": len(answer.token_ids),
        "stopped": answer.stopped,
        "failed_steps": answer.failed_steps,
        "chosen": answer.chosen,
        "candidates": json.dumps([[asdict(c) for c in step] for step in answer.candidates], ensure_ascii=False),
    }


def _metrics(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The guides' mean score of what was chosen at the last step, beside the mean over all candidates of that step."""
    chosen, offered = [], []
    for record in records:
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
        "mean_tokens": round(fmean(record["tokens"] for record in records), 1),
        "stop_rate": round(fmean(record["stopped"] for record in records), 4),
    }
