"""Which suites an evaluation runs and who judges them, before anything heavy is imported."""

from __future__ import annotations

import os
import re

from safework_cli.core.errors import ConfigError, InputError, SafeworkError
from safework_cli.core.stage import Inputs
from safework_cli.data.image_rows import refuse_unread_images
from safework_cli.environments.search.index import lost_answers
from safework_eval.config import EvalConfig
from safework_eval.metrics import metric_named
from safework_eval.scoring import Panel, panel_for, wanted_keys
from safework_eval.selection import PlannedSuite, select_suites


def folder_of(config: EvalConfig) -> str | None:
    """The folder of public sets: as given, or $SAFEWORK_DATA."""
    return config.suites_folder or os.environ.get("SAFEWORK_DATA") or None


def served_name(model: str) -> str:
    """The name of the evaluation of a served model: "org/Model:8b" → "Model-8b"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip("-._") or "served"


def chosen_suites(config: EvalConfig, inputs: Inputs) -> tuple[list[PlannedSuite], dict[str, Panel], list[SafeworkError]]:
    """The suites with their rows, suite → judges, and why some of them cannot be run."""
    refusals: list[SafeworkError] = []
    if not config.suites:
        refusals.append(
            ConfigError(
                "no suites",
                "an evaluation of nothing would end green",
                "name rows of the data: suites='[{name: mine, rows: {task: general}}]', or take -c recipes/quickstart/eval.yaml",
            )
        )
    suites, problems = select_suites(config.limited_suites(), config.judge, inputs.maybe("data"), folder_of(config))
    refusals += problems
    refusals += unread_images(config, inputs, suites)
    verifiers = inputs.many("verifiers")
    wanted = {key for suite in suites for key in wanted_keys(metric_named(suite.metric))}
    panels: dict[str, Panel] = {}
    for suite in suites:
        try:
            panels[suite.name] = panel_for(suite, verifiers, config.batch_size, trust_remote_code=config.trust_remote_code)
        except SafeworkError as error:
            refusals.append(error)
    refusals += index_problems(config, inputs, suites)
    idle = sorted(set(verifiers) - wanted)
    if idle and not refusals:
        why = f"the suites measure {', '.join(sorted(wanted))}"
        refusals.append(ConfigError(f"verifiers.{idle[0]} is not used by any suite", why, "leave it out, or add a suite"))
    return suites, panels, refusals


def unread_images(config: EvalConfig, inputs: Inputs, suites: list[PlannedSuite]) -> list[SafeworkError]:
    """Suites with images, for a model that reads text only."""
    problems: list[SafeworkError] = []
    for model in filter(None, (inputs.maybe("model"), inputs.maybe("against"))):
        for suite in suites:
            try:
                refuse_unread_images(suite.rows, f"suite '{suite.name}'", model)
            except SafeworkError as error:
                some = not all(row.images for row in suite.rows)
                do = "add `images: false` to the suite's `rows`" if some else "take a vision-language model, or leave the suite out"
                problems.append(InputError(error.what, error.why, do))
    return problems


def index_problems(config: EvalConfig, inputs: Inputs, suites: list[PlannedSuite]) -> list[SafeworkError]:
    """Search suites without an index or with one that lacks their passages, an index without search suites, and episodes without room for
    a turn."""
    episodes = [suite for suite in suites if metric_named(suite.metric).episodes]
    searching = [suite.name for suite in episodes]
    index = inputs.maybe("index")
    if searching and index is None:
        why = "its questions are answered by searching passages, as in rl search; asked without them they would measure memory"
        return [
            ConfigError(
                f"suite '{searching[0]}' needs an index",
                why,
                "add index=NAME (safework data index makes one of its passages), or say metric: knowledge",
            )
        ]
    if index is not None and not searching and suites:
        return [ConfigError("the index is not used by any suite", "no suite has rows of the task search", "leave index= out, or add one")]
    if searching and config.engine.protocol != "tokens":
        return [
            ConfigError(
                f"suite '{searching[0]}' is answered in search episodes, and engine.kind={config.engine.kind} gives no token ids",
                "an episode continues inside the model's own turn",
                "engine.kind=hf model=NAME, or leave the suite out",
            )
        ]
    if searching and config.episode.turn_tokens > config.episode.total_tokens:
        what = f"episode.turn_tokens={config.episode.turn_tokens} exceeds episode.total_tokens={config.episode.total_tokens}"
        return [ConfigError(what, "no episode could take a single turn", "raise episode.total_tokens")]
    if index is None:
        return []
    lost = (lost_answers(index.path, suite.rows, f"suite '{suite.name}'", index.ref) for suite in episodes)
    return [error for error in lost if error is not None]
