"""For people who come from other tools: what they typed, as the command that does it here. Errors, never aliases."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from typer import _click as click
from typer.core import TyperCommand, TyperGroup

from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.other_names import COMMANDS, setting_named
from safework_cli.core.registry import load_stage, stage_entries

if TYPE_CHECKING:
    from safework_cli.core.stage import Stage

NAME_OPTIONS = ("output_dir", "run_name")
"""Where other tools write: an artifact has a name instead, and the store has the folder."""
_WORD_OPTION = re.compile(r"-[A-Za-z]\w+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class HintGroup(TyperGroup):
    """A group of commands that knows what its commands are called elsewhere. ``word`` is what stands before them."""

    word = ""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        completing = ctx.resilient_parsing  # an error would be printed into the line that is typed
        if not completing and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise unknown_command(self.word, args, self.list_commands(ctx))
        return super().resolve_command(ctx, args)


class StageCommand(TyperCommand):
    """The command of a stage: an option that it does not have is shown as the setting that is meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoSuchOption as error:
            stage = load_stage(self.name or "")
            words, unknown = as_settings(stage, given, self.get_params(ctx))
            if not unknown and words == given:
                raise
            if unknown:
                options = [option for param in self.get_params(ctx) for option in param.opts]
                near = nearest(unknown[0], options) or nearest(unknown[0].removeprefix("--").replace("-", "_"), _keys(stage))
                raise ConfigError(
                    f"no option or setting '{unknown[0]}'{near}", "", f"safework {stage.name} --help lists the settings"
                ) from None
            why = "settings and inputs are written key=value, without dashes"
            if "--dataset" in error.option_name:
                why += "; rows from the hub or a file become a dataset by `safework data build`"
            raise ConfigError(f"no option '{error.option_name}'", why, shlex.join(["safework", *stage.name.split(), *words])) from None


def unknown_command(word: str, args: Sequence[str], valid: Sequence[str]) -> ConfigError:
    """The error for a command that does not exist: the command of the same meaning, or of the nearest name.

    Args:
        word: the words before it ("rl"), or nothing.
        args: the command, and what follows it.
        valid: the commands that there are.
    """
    full = f"{word} {args[0]}".strip()
    if full not in COMMANDS:
        do = " ".join(["safework", *word.split(), "--help"])
        return ConfigError(f"no command '{full}'{nearest(args[0], valid)}", f"the commands are {', '.join(valid)}", do)
    ours, why = COMMANDS[full]
    stage = next((name for name in stage_entries() if ours == name or ours.startswith(f"{name} ")), None)
    rest = list(args[1:])
    if stage is not None:
        rest = as_settings(load_stage(stage), rest, ())[0]
    return ConfigError(f"no command '{full}'", why, shlex.join(["safework", *ours.split(), *rest]))


def as_settings(stage: Stage, args: Sequence[str], params: Sequence[Any]) -> tuple[list[str], list[str]]:
    """A command line of another tool (``--learning_rate 1e-5``) as ours (``learning_rate=1e-5``).

    Args:
        params: the options that the command has, which stay as they are.

    Returns:
        The words, and the options that are neither an option nor a setting here.
    """
    options = {name: param for param in params for name in (*param.opts, *param.secondary_opts)}
    words, unknown, rest = [], [], list(args)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if _WORD_OPTION.fullmatch(flag) and setting_named(flag[1:], _keys(stage)):
            flag = f"-{flag}"  # -lr
        if (dashed := flag.replace("_", "-")) in options:
            flag, word = dashed, dashed + equals + value  # --dry_run
        if not flag.startswith("--") or flag in options:
            words.append(word)
            if flag in options and not equals and not options[flag].is_flag and rest:
                words.append(rest.pop(0))
            continue
        if taken := not equals and bool(rest) and not rest[0].startswith("--"):
            value = rest.pop(0)
        elif not equals:
            value = "true" if _is_switch(stage, flag) else "VALUE"
        name = flag.removeprefix("--").replace("-", "_")
        if name in NAME_OPTIONS:
            words += ["--name", Path(value).name]
        elif key := setting_named(name, _keys(stage)):
            words.append(f"{key}={_reference(key, value) if key in stage.inputs else value}")
        else:
            words.append(word)
            unknown.append(flag)
            rest[:0] = [value] if taken else []
    return words, unknown


def _is_switch(stage: Stage, flag: str) -> bool:
    """Whether an option without a value turns something on."""
    field = stage.Config.model_fields.get(setting_named(flag.removeprefix("--"), _keys(stage)) or "")
    return field is not None and (field.annotation is bool or bool in get_args(field.annotation))


def _reference(slot: str, value: str) -> str:
    """A model or dataset as other tools name it, as a reference."""
    if value.startswith(("./", "../", "/", "~", "hf:")):
        return value
    if Path(value).exists():
        return f"./{value}"
    return f"hf:{value}" if slot == "model" and _HUB_ID.fullmatch(value) else value


def _keys(stage: Stage) -> list[str]:
    from safework_cli.core.config_errors import known_keys

    return [*known_keys(stage.Config), *stage.inputs, "name"]
