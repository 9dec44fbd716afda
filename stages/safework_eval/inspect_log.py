"""Inspect's logs and messages from our records, by its public classes. ``inspect view`` and ``read_eval_log`` open the logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inspect_ai.dataset import Sample as InspectSample
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalPlan,
    EvalPlanStep,
    EvalSample,
    EvalSpec,
    EvalStats,
    recompute_metrics,
    write_eval_log,
)
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprobs,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.scorer import Score, mean, stderr
from inspect_ai.util import registry_info

from safework_cli.core.errors import ConfigError
from safework_cli.data.reply import THINK_CLOSE, THINK_OPEN
from safework_cli.data.row import Message, Row
from safework_cli.engines.protocol import Sampling
from safework_cli.environments.search.measures import OF_EPISODES, SEARCHES
from safework_eval.samples import RecordedReply, ScoredSample
from safework_eval.scoring import Panel
from safework_eval.search_measures import judged_episode
from safework_eval.selection import PlannedSuite

STOP_REASONS: dict[str, StopReason] = {"stop": "stop", "length": "max_tokens", "model_length": "model_length"}
"""A reply's finish reason → Inspect's."""


def to_chat(messages: Sequence[Message]) -> list[ChatMessage]:
    """Our messages as Inspect's."""
    kinds: dict[str, Callable[..., ChatMessage]] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return [kinds[message["role"]](content=message["content"]) for message in messages]


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Inspect's messages as ours; a thought that Inspect took out of an earlier reply is put back in its place."""
    return [Message(role=message.role, content=_text_of(message.content)) for message in messages]


def _text_of(content: str | list[Any]) -> str:
    if isinstance(content, str):
        return content
    parts = []
    for part in content:
        if isinstance(part, ContentReasoning):
            parts.append(f"{THINK_OPEN}{part.reasoning}{THINK_CLOSE}")
        elif isinstance(part, ContentText):
            parts.append(part.text)
        else:
            raise ConfigError(f"the safework provider is text only and cannot read {part.type}", "", "choose a task without attachments")
    return "".join(parts)


def output_of(model: str, reply: RecordedReply, logprobs: Logprobs | None = None) -> ModelOutput:
    """A reply as Inspect's output. Inspect takes the thought out of the message; ``metadata["reply"]`` keeps the text as generated."""
    message = ChatMessageAssistant(content=reply.text, model=model, source="generate")
    usage = None
    if reply.tokens is not None and reply.prompt_tokens is not None:
        total = reply.prompt_tokens + reply.tokens
        usage = ModelUsage(input_tokens=reply.prompt_tokens, output_tokens=reply.tokens, total_tokens=total)
    return ModelOutput(
        model=model,
        choices=[ChatCompletionChoice(message=message, stop_reason=STOP_REASONS.get(reply.finish_reason, "unknown"), logprobs=logprobs)],
        usage=usage,
        metadata={"reply": reply.text, "finish_reason": reply.finish_reason},
        error=reply.error,
    )


def reply_of(output: ModelOutput) -> RecordedReply:
    """The reply of an output, as generated; of another provider than ours, the completion."""
    details, usage = output.metadata or {}, output.usage
    return RecordedReply(
        text=details.get("reply", output.completion),
        tokens=usage.output_tokens if usage else None,
        prompt_tokens=usage.input_tokens if usage else None,
        finish_reason=details.get("finish_reason", str(output.stop_reason)),
        error=output.error,
    )


def inspect_sample(row: Row) -> InspectSample:
    """A row as a sample of one of Inspect's datasets."""
    metadata: dict[str, Any] = {"task": row.task, "category": row.category, "harmful": row.harmful, "source": row.source}
    return InspectSample(id=row.id, input=to_chat(row.prompt), target=row.answer or "", metadata=metadata)


def score_of(sample: ScoredSample, judge: str) -> Score:
    """A judge's outcome as Inspect's score, with label, probability and error; an unscorable sample stays unscored."""
    verdict, value, answer = sample.verdicts[judge], sample.outcomes[judge], sample.to_record()["answer"]
    details = {"label": verdict.label, "score": verdict.score, "probability": verdict.probability}
    if value is None:
        return Score.unscored(reason="unscorable", answer=answer, explanation=sample.errors[judge], metadata=details)
    return Score(value=value, answer=answer, explanation=verdict.label, metadata=details)


def write_log(
    path: Path,
    suite: PlannedSuite,
    panel: Panel,
    samples: Sequence[ScoredSample],
    model: str,
    sampling: Sampling,
    times: tuple[str, str],
    certain: int = 0,
) -> None:
    """Writes a judged suite as one of Inspect's logs (`.eval`).

    Args:
        model: what answered, such as "safework/model/sft@v2".
        certain: of search episodes, the confidence from which an answer counts as certain.
        times: start and end of the evaluation, ISO 8601.
    """
    config = GenerateConfig(max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed)
    # asked for, since Inspect gives them the prefix inspect_ai/ only if it is installed below a folder called site-packages
    metrics = [{"name": registry_info(metric).name} for metric in (mean(), stderr())]
    scorers = [{"name": j.id, "metrics": metrics, "metadata": {"digest": j.digest, "metric": suite.metric}} for j in panel.judges]
    if any(sample.episode is not None for sample in samples):
        scorers += [{"name": f"episode/{name}", "metrics": metrics, "metadata": {"certain": certain}} for name in (*OF_EPISODES, SEARCHES)]
    spec: Mapping[str, Any] = {
        "created": times[0],
        "task": suite.name,
        "dataset": EvalDataset(name=suite.source, samples=len(samples), sample_ids=[sample.row.id for sample in samples]),
        "model": model,
        "model_generate_config": config,
        "config": EvalConfig(epochs=1),
        "packages": {name: version(name) for name in ("inspect-ai", "safework")},
        "metadata": {"metric": suite.metric, "digest": suite.digest, "source": suite.source},
        "scorers": scorers,
    }
    entries = [_entry(sample, panel, model, certain) for sample in samples]
    usages = [entry.output.usage for entry in entries if entry.output.usage]
    used = sum(usages, ModelUsage())
    log = EvalLog(
        status="success",
        eval=EvalSpec.model_validate(spec),
        plan=EvalPlan(steps=[EvalPlanStep(solver="generate")], config=config),
        stats=EvalStats(started_at=times[0], completed_at=times[1], model_usage={model: used}),
        samples=entries,
        location=str(path),
    )
    recompute_metrics(log)
    write_eval_log(log, str(path), format="eval")


def _entry(sample: ScoredSample, panel: Panel, model: str, certain: int) -> EvalSample:
    row, output, episode = inspect_sample(sample.row), output_of(model, sample.reply), sample.episode
    asked = to_chat(sample.row.prompt)
    exchange = [*asked, output.message]
    scores = {judge.id: score_of(sample, judge.id) for judge in panel.judges}
    if episode is not None:
        exchange = to_chat([Message(role=m["role"], content=m["content"]) for m in episode.messages])
        scores |= _episode_scores(sample, certain)
    return EvalSample(
        id=sample.row.id,
        epoch=1,
        input=asked,
        target=row.target,
        messages=exchange,
        output=output,
        metadata=row.metadata or {},
        scores=scores,
        model_usage={model: output.usage} if output.usage else {},
    )


def _episode_scores(sample: ScoredSample, certain: int) -> dict[str, Score]:
    """The measures of a search episode, one score each; unscored if the answer could not be scored."""
    judged, record = judged_episode(sample.to_record(), sample.row.group), sample.to_record()
    details = {name: record[name] for name in ("confidence", "well_formed", "searches", "reads", "finish_reason")}
    if judged is None:
        unscored = Score.unscored(reason="unscorable", answer=sample.answer, metadata=details)
        return {f"episode/{name}": unscored for name in (*OF_EPISODES, SEARCHES)}
    return {f"episode/{name}": Score(value=value, answer=sample.answer, metadata=details) for name, value in judged.values(certain).items()}
