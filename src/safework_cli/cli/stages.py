"""Turns a ``Stage`` into a command: the same options for every stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer import _click as click  # typer carries its own click; the range of typer is pinned for it

from safework_cli.cli.hints import StageCommand
from safework_cli.cli.options import STORE
from safework_cli.cli.results import say_result, show_plan, show_result
from safework_cli.core.plan.work import Activations, Work
from safework_cli.core.registry import load_stage, stage_entries
from safework_cli.core.stage import Stage


def stage_command(name: str) -> click.Command:
    """The click command of a stage."""
    stage: Stage = load_stage(name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(name=name, cls=StageCommand, help=stage.summary, context_settings={"help_option_names": ["-h", "--help"]})
    def run(
        settings: Optional[list[str]] = typer.Argument(
            None,
            metavar="[KEY=VALUE]...",
            help="Inputs and settings; they win over recipes.",
            show_default=False,
            autocompletion=lambda incomplete: [key for key in completed_keys(stage) if key[0].startswith(incomplete)],
        ),
        recipe: list[Path] = typer.Option(
            [], "-c", "--config", metavar="RECIPE", help="A recipe file; may be given several times, later ones win.", show_default=False
        ),
        artifact_name: Optional[str] = typer.Option(None, "--name", help="The artifact's name.", show_default=False),
        store: Optional[Path] = STORE,
        dry_run: bool = typer.Option(False, "--dry-run", help="Print every setting with its source and what would be done; do nothing."),
        measure: bool = typer.Option(
            False, "--measure", help="With --dry-run: measure the activations on two shallow copies of the model, without its weights."
        ),
        fresh: bool = typer.Option(False, "--fresh", help="Run again although it is done already, from the beginning."),
        fork: Optional[str] = typer.Option(
            None,
            "--fork",
            metavar="RUN",
            help="Resume from the last checkpoint of a run with other settings.",
            show_default=False,
        ),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout in place of the reference."),
        wait: bool = typer.Option(False, "--wait", help="With slurm: wait for the job, and print what it made."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
        submitted: Optional[str] = typer.Option(None, "--submitted", hidden=True),
    ) -> int:
        from safework_cli.core.artifacts import default_store
        from safework_cli.core.config import resolve
        from safework_cli.core.errors import ConfigError, InputError
        from safework_cli.core.prepare import prepare
        from safework_cli.core.runtime import execute

        if measure and not dry_run:
            raise ConfigError("--measure is given without --dry-run", "it is a part of the plan", "add --dry-run, or leave --measure out")
        if fork and fresh:
            raise ConfigError(
                "--fork and --fresh are both given", "one resumes from a checkpoint, the other starts from scratch", "choose one"
            )
        resolved = resolve(stage, recipe, settings or [], known_stages=list(stage_entries()))
        if artifact_name is not None:
            resolved.name, resolved.sources["name"] = artifact_name, "command line"
        where = default_store(store)
        if resolved.config.slurm is not None:
            from safework_cli.cli.slurm import run_as_job

            options = {"--name": artifact_name, "--fork": fork, "--fresh": fresh or None, "--quiet": quiet or None}
            return run_as_job(
                stage,
                resolved,
                where,
                settings or [],
                options,
                dry_run=dry_run,
                wait=wait,
                as_json=as_json,
                quiet=quiet,
                measure=_measure if measure else None,
            )
        if wait:
            raise ConfigError("--wait is given without slurm", "this command runs here, and ends when it is done", "leave --wait out")
        prepared = prepare(stage, resolved, where, build=not dry_run, quiet=quiet, measure=_measure if measure else None, fork=fork)
        if dry_run:
            return show_plan(prepared, where, as_json=as_json)
        if submitted and prepared.fingerprint != submitted:
            raise InputError(
                "what this job reads is not what it was submitted with",
                "a file that a setting or an input names was changed while the job waited, or safework is another version now",
                "submit the command again; the versions in the store are those of the submission",
            )
        result = execute(prepared, where, fresh=fresh, quiet=quiet)
        say_result(result, as_json=as_json, quiet=quiet)
        if not quiet:
            show_result(stage, result.artifact)
        return result.exit_code

    command = typer.main.get_command(app)
    command.format_epilog = lambda ctx, formatter: _write_settings(stage, formatter)  # type: ignore[method-assign]
    return command


def _measure(work: Work, config: Any) -> Activations:
    """Activations by torch's memory tracker, which takes seconds and imports torch."""
    from safework_cli.models.activations import measured

    return measured(work, trust_remote_code=getattr(config, "trust_remote_code", False))


# ------------------------------------------------------------------ help


def _write_settings(stage: Stage, formatter: click.HelpFormatter) -> None:
    """The inputs and every setting with type, default and meaning: the same text as the reference page."""
    rows = []
    for name, slot in stage.inputs.items():
        key = f"{name}.KEY=REF" if slot.many else f"{name}=REF"
        rows.append((key, f"{slot.doc} ({' or '.join(slot.kinds)}{', optional' if slot.optional else ''})"))
    with formatter.section("Inputs"):
        formatter.write_dl(rows or [("none", "")])
    with formatter.section("Settings"):
        formatter.write_dl(list(describe_settings(stage.Config)))
    formatter.write_paragraph()
    formatter.write_text(
        f"Writes one artifact of kind {stage.output} and prints its reference. "
        "Exit codes: 0 done, 2 configuration, 3 input, 4 gate failed, 5 too many items failed, 75 run me again, 130 interrupted."
    )


def completed_keys(stage: Stage) -> Iterator[tuple[str, str]]:
    """(``key=``, meaning) of every input and setting, for a shell; keys inside lists are written in a recipe."""
    for name, slot in stage.inputs.items():
        yield f"{name}." if slot.many else f"{name}=", slot.doc
    for key, meaning in describe_settings(stage.Config):
        if not key.startswith(" "):
            yield f"{key.partition('=')[0]}=", meaning


def describe_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(``key TYPE``, meaning and default) of every setting."""
    for name, field in model.model_fields.items():
        block = _block(field.annotation)
        if block is not None and block.model_fields:
            yield from describe_settings(block, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}={_type_name(field.annotation)}", f"{' '.join((field.description or '').split())}{_default(field)}"
        for member in _list_blocks(field.annotation):
            yield from describe_settings(member, "  ")


def _block(annotation: Any) -> type[BaseModel] | None:
    options = [a for a in (get_args(annotation) if get_origin(annotation) is not None else (annotation,)) if a is not type(None)]
    if len(options) == 1 and isinstance(options[0], type) and issubclass(options[0], BaseModel) and get_origin(annotation) is not list:
        return options[0]
    return None


def _list_blocks(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is list:
        return [a for a in _flat(get_args(annotation)[0]) if isinstance(a, type) and issubclass(a, BaseModel)]
    return []


def _flat(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _flat(argument)


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is list:
        return "LIST"
    if get_origin(annotation) is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "MAPPING"
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if arguments and all(isinstance(a, (str, int)) for a in arguments):
        return "|".join(map(str, arguments))
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return "|".join(_type_name(a) for a in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(member.value) for member in annotation)
    return {"int": "INT", "float": "FLOAT", "str": "TEXT", "bool": "true|false"}.get(getattr(annotation, "__name__", ""), "VALUE")


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return " [required]" if field.default_factory is None else ""
    return f" [{json.dumps(field.default, default=str)}]"
