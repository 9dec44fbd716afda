"""Whether two evaluations were made under the same conditions: records that differ are refused, not compared. Pure, without NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.stage import Inputs
from safework_cli.environments.search.grammar import ENVIRONMENT
from safework_eval.config import SUMMARY, EvalConfig
from safework_eval.metrics import metric_named
from safework_eval.scoring import Panel
from safework_eval.selection import PlannedSuite

if TYPE_CHECKING:
    from safework_cli.core.artifacts import Artifact

SUITE_CONDITIONS = ("metric", "digest", "judge")


def differences(this: Mapping[str, Any], that: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every condition in which two summaries differ: field → (this, that).

    Conditions that a summary does not know yet (None, while planning) are not compared. A suite may have fewer rows here than there: the
    comparison is by row, and rests on those of this side.
    """
    found: dict[str, tuple[Any, Any]] = {}
    if this["suites"].keys() != that["suites"].keys():
        found["suites"] = (sorted(this["suites"]), sorted(that["suites"]))
    for name, value in this["conditions"].items():
        other = that["conditions"].get(name)
        if value != other and not (name in ("template_hash", "engine") and value is None):
            found[name] = (value, other)
    for suite in sorted(this["suites"].keys() & that["suites"].keys()):
        mine, yours = this["suites"][suite], that["suites"][suite]
        for name in SUITE_CONDITIONS:
            first, second = (_judge_identity(side[name]) if name == "judge" else side[name] for side in (mine, yours))
            if first != second and not (name == "digest" and part_of(mine, yours)):
                found[f"{suite}.{name}"] = (first, second)
    return found


def part_of(this: Mapping[str, Any], that: Mapping[str, Any]) -> bool:
    """Whether a suite's rows are all among those of another record of it; False where a record does not say."""
    mine, yours = this.get("row_digests"), that.get("row_digests")
    return bool(mine and yours) and set(mine or ()) <= set(yours or ())


def _judge_identity(judge: Mapping[str, Any]) -> str:
    return f"{judge['id']} {judge['digest'][:12]}"


def refuse_differences(this: Mapping[str, Any], that: Mapping[str, Any], that_ref: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError where two summaries differ in a condition that is not in ``allowed`` (by name, or by the part after the dot)."""
    found = {name: pair for name, pair in differences(this, that).items() if name not in allowed and name.rpartition(".")[2] not in allowed}
    if not found:
        return
    lines = "; ".join(f"{name}: {_short(mine)} here, {_short(yours)} there" for name, (mine, yours) in _apart(found).items())
    names = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in found))
    raise ConfigError(
        f"{that_ref} was made under other conditions: {lines}",
        "a difference between the two would mix the models with the conditions",
        f"give the model itself (against={that['model']['ref']}: it is evaluated in the same run), or allow_differences='[{names}]'",
    )


def _apart(found: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """The same with a block of settings on both sides (``episode``) taken apart: only what differs in it."""
    apart: dict[str, tuple[Any, Any]] = {}
    for name, (mine, yours) in found.items():
        if isinstance(mine, Mapping) and isinstance(yours, Mapping):
            keys = [key for key in {**mine, **yours} if mine.get(key) != yours.get(key)]
            apart |= {f"{name}.{key}": (mine.get(key), yours.get(key)) for key in keys}
        else:
            apart[name] = (mine, yours)
    return apart


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else text[:12] + "…"


def search_conditions(config: EvalConfig, inputs: Inputs, suites: list[PlannedSuite]) -> dict[str, Any]:
    """The conditions that search suites add; none where there are no such suites."""
    index = inputs.maybe("index")
    if index is None or not any(metric_named(suite.metric).episodes for suite in suites):
        return {"index": None, "episode": None}
    return {"index": index.digest, "episode": config.episode.model_dump() | {"environment": ENVIRONMENT}}


def planned_summary(config: EvalConfig, inputs: Inputs, suites: list[PlannedSuite], panels: dict[str, Panel]) -> dict[str, Any]:
    """What is known of this evaluation's conditions before a model is loaded."""
    return {
        "conditions": {
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed if config.temperature > 0 else None,
            "template_hash": model.manifest.chat_template_hash if (model := inputs.maybe("model")) else None,
            "engine": None,
            **search_conditions(config, inputs, suites),
        },
        "suites": {
            suite.name: {
                "metric": suite.metric,
                "digest": suite.digest,
                "row_digests": suite.row_digests,
                "judge": {"id": panels[suite.name].first.id, "digest": panels[suite.name].first.digest},
            }
            for suite in suites
        },
    }


def read_summary(artifact: Artifact) -> dict[str, Any]:
    """An evaluation's ``summary.json``. Raises InputError where it is missing or damaged."""
    try:
        return json.loads((artifact.path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{artifact.ref} has no readable {SUMMARY}", str(error), f"safework artifacts verify {artifact.ref}") from None
