"""``safework models``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from safework_cli.cli.hints import HintGroup
from safework_cli.cli.options import STORE


class ModelsGroup(HintGroup):
    word = "models"


def command() -> Any:
    app = typer.Typer(
        cls=ModelsGroup,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        help="Pull, average and merge models.",
    )
    app.callback()(lambda: None)

    @app.command(
        help="Bring a model into the store and print its reference. SOURCE is smollm2 (the embedded default), smollm2-vision (with a "
        "vision tower; what connects the two is random and has to be trained), tiny (random weights, for trying things), or "
        "hf:org/name[@revision]. Sizes of the tiny model are settings, such as tiny.hidden_size=192."
    )
    def pull(
        source: str = typer.Argument(..., help="smollm2, smollm2-vision, tiny or hf:org/name[@revision]."),
        settings: Optional[list[str]] = typer.Argument(
            None,
            metavar="[SETTING=VALUE]...",
            help="Such as seed=1 or tiny.layers=4.",
            show_default=False,
        ),
        name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        architecture: Optional[str] = typer.Option(
            None, help="Of the tiny model: llama, qwen2 or qwen2.5-vl.  [default: llama]", show_default=False
        ),
        store: Optional[Path] = STORE,
        fresh: bool = typer.Option(False, "--fresh", help="Pull again although it is here already."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be done; do nothing."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run Python code that the repository brings along."),
    ) -> int:
        from safework_cli.models.pull import PullModel

        words = [f"source={source}", *([f"architecture={architecture}"] if architecture else []), *_trusting(trust_remote_code)]
        words += settings or []
        return _run(PullModel(), words, name, store, fresh=fresh, dry_run=dry_run, quiet=quiet, as_json=as_json)

    @app.command(
        help="Average the weights of models of one architecture and tokenizer, and print the reference of the mean. "
        "Between a model and the one that it was trained from, the mean keeps part of what training added, and of what it lost. "
        "Without weights, every model counts the same."
    )
    def average(
        models: list[str] = typer.Argument(..., metavar="MODEL[:WEIGHT]...", help="References, with weights that sum to 1."),
        name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        store: Optional[Path] = STORE,
        fresh: bool = typer.Option(False, "--fresh", help="Average again although it is done already."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be done; do nothing."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run Python code that the models' folders bring along."),
    ) -> int:
        from safework_cli.models.average import AverageModels, weighted_references

        references, weights = weighted_references(models)
        words = [f"models.{number}={reference}" for number, reference in enumerate(references, 1)]
        words += [f"weights={weights}", *_trusting(trust_remote_code)]
        return _run(AverageModels(), words, name, store, fresh=fresh, dry_run=dry_run, quiet=quiet, as_json=as_json)

    @app.command(
        help="Add a kept adapter (lora.keep=adapter) to the weights of its base, and print the reference of the whole model. Every stage "
        "loads an adapter as it is; other programs need the whole model."
    )
    def merge(
        adapter: str = typer.Argument(..., metavar="ADAPTER", help="Its reference."),
        name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        store: Optional[Path] = STORE,
        fresh: bool = typer.Option(False, "--fresh", help="Merge again although it is done already."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be done; do nothing."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
        trust_remote_code: bool = typer.Option(False, "--trust-remote-code", help="Run Python code that the base's folder brings along."),
    ) -> int:
        from safework_cli.models.merge import MergeAdapter

        words = [f"model={adapter}", *_trusting(trust_remote_code)]
        return _run(MergeAdapter(), words, name, store, fresh=fresh, dry_run=dry_run, quiet=quiet, as_json=as_json)

    return typer.main.get_command(app)


def _trusting(given: bool) -> list[str]:
    """An option that was not given leaves the choice to the environment."""
    return ["trust_remote_code=true"] if given else []


def _run(
    stage: Any, words: list[str], name: str | None, store: Path | None, *, fresh: bool, dry_run: bool, quiet: bool, as_json: bool
) -> int:
    """Runs a stage that is not registered as a command of its own.

    Raises:
        ConfigError: it is to be a Slurm job.
    """
    from safework_cli.cli.results import say_result, show_plan
    from safework_cli.core.artifacts import default_store
    from safework_cli.core.config import resolve
    from safework_cli.core.errors import ConfigError
    from safework_cli.core.prepare import prepare
    from safework_cli.core.registry import stage_entries
    from safework_cli.core.runtime import execute

    resolved = resolve(stage, (), words, known_stages=["models pull", "models average", "models merge", *stage_entries()])
    if resolved.config.slurm is not None:
        raise ConfigError(
            f"safework {stage.name} is not submitted as a Slurm job, and slurm is given ({_source_of_slurm(resolved)})",
            "what it needs is the network or the store, and no GPU: it runs where it is typed",
            "leave slurm out; inside a job of your own (sbatch, srun) it runs as anywhere",
        )
    if name is not None:
        resolved.name, resolved.sources["name"] = name, "command line"
    where = default_store(store)
    prepared = prepare(stage, resolved, where, build=not dry_run, quiet=quiet)
    if dry_run:
        return show_plan(prepared, where, as_json=as_json)
    result = execute(prepared, where, fresh=fresh, quiet=quiet)
    say_result(result, as_json=as_json, quiet=quiet)
    return result.exit_code


def _source_of_slurm(resolved: Any) -> str:
    return ", ".join(sorted({source for key, source in resolved.sources.items() if key.split(".")[0] == "slurm"}))
