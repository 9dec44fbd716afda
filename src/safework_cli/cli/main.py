"""The command line: ``safework``. Commands are imported when they are called, so that ``--help`` is instant."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version

import typer
from typer import _click as click  # typer carries its own click; the range of typer is pinned for it
from typer import _completion_shared as shells
from typer._click.shell_completion import CompletionItem

from safework_cli.cli.hints import HintGroup
from safework_cli.core.errors import EXIT_ERROR, EXIT_INTERRUPTED, SafeworkError
from safework_cli.core.registry import stage_entries, stage_summary
from safework_cli.core.signals import ENDING, of_a_command
from safework_cli.core.terminal import guard, say

GROUPS = {
    "data": "Build datasets, reasoned replies and search indexes, and look at them.",
    "verifier": "Train, wrap, measure and use verifiers and value models.",
    "rl": "Reinforcement learning: M3, safe-and-efficient, deliberative search.",
}
TOOLS = {
    "models": ("safework_cli.cli.models:command", "Bring models into the store; average their weights; merge adapters."),
    "artifacts": ("safework_cli.cli.artifacts:command", "List, show, verify, compare and clean the store."),
    "runs": ("safework_cli.cli.runs:command", "List the runs of a store, show one, follow its log."),
    "recipes": ("safework_cli.cli.recipes:command", "List, show and copy the recipes that come with safework."),
    "schema": ("safework_cli.cli.schema:command", "Print the JSON Schema of a stage's recipe, for editors."),
    "ladder": ("safework_cli.cli.ladder:command", "Run a file of commands, each with the references that the earlier ones printed."),
    "report": ("safework_cli.cli.report:command", "Write one HTML file: models, evaluations, training curves, replies."),
    "serve": ("safework_cli.cli.serve:command", "Serve a model with vLLM for the rollouts of reinforcement learning."),
    "doctor": ("safework_cli.cli.doctor:command", "Check what is installed and what works."),
    "data preview": ("safework_cli.cli.data:preview_command", "Show rows in colour, with the tokens that a model would be trained on."),
    "data sets": ("safework_cli.cli.data:sets_command", "List the public sets that can be trained on, and the suites that are kept out."),
    "data schema": ("safework_cli.cli.data:schema_command", "Print the JSON schema of a row."),
}
"""Commands that are not stages: where they are made, and their line in the help. Stages share a word with some."""

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "GOMP_SPINCOUNT": "20000",
}
"""Set before anything imports torch, and never over the user's own choice. No run reports itself: TRL's trainers send their settings to the
hub unless this is set. Libraries draw no bars of their own into our display.
Threads that wait spin for a fraction of a millisecond and then sleep: spinning for long, one busy neighbour made a training step five times
slower; not spinning at all cost a tenth of it on an idle machine."""


class StageGroup(HintGroup):
    """A group whose commands are the stages under one word ("rl" → "m3", "efficient", "search"), or all of them at the top."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        beginning = f"{self.word} " if self.word else ""
        names = [name.removeprefix(beginning).split(" ")[0] for name in (*stage_entries(), *TOOLS) if name.startswith(beginning)]
        return list(dict.fromkeys(names))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        full = f"{self.word} {cmd_name}".strip()
        if full in stage_entries():
            from safework_cli.cli.stages import stage_command

            return stage_command(full)
        if any(name.startswith(f"{full} ") for name in stage_entries()):
            return _word_group(full)
        if full in TOOLS:
            module, _, make = TOOLS[full][0].partition(":")
            return getattr(import_module(module), make)()
        return None

    def summaries(self, ctx: click.Context) -> Iterator[tuple[str, str]]:
        """(command, its line in the help), without importing any of them."""
        for name in self.list_commands(ctx):
            full = f"{self.word} {name}".strip()
            summary = TOOLS[full][1] if full in TOOLS else GROUPS.get(full, "")
            yield name, summary or (stage_summary(full) if full in stage_entries() else f"safework {full} --help")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries(ctx)))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Options where a dash was typed, else commands: click's own way imports every one of them."""
        if incomplete.startswith("-"):
            return click.core.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=summary) for name, summary in self.summaries(ctx) if name.startswith(incomplete)]


def _word_group(word: str) -> click.Command:
    group = type("WordGroup", (StageGroup,), {"word": word})
    app = typer.Typer(cls=group, no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=GROUPS.get(word, ""))
    app.callback()(lambda: None)
    command = typer.main.get_command(app)
    command.name = word
    return command


def _show_version(value: bool) -> None:
    if value:
        print(f"safework {version('safework')}")
        raise typer.Exit()


def build_app() -> typer.Typer:
    app = typer.Typer(
        cls=StageGroup,
        name="safework",
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(
        help="Train language models to be safer and more capable, stage by stage: data, supervised fine-tuning, RL with verifiers, "
        "evaluation, search. Each stage reads artifacts and writes one; stdout carries only its reference."
    )
    def root(
        show_version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    ) -> None: ...

    return app


def _no_space_after_keys() -> None:
    """Bash puts a space after a completed word: ``key= value`` would be two words. fish knows the ``=``."""
    script = shells._completion_scripts["bash"]
    shells._completion_scripts["bash"] = script.replace(
        "    return 0", "    [[ ${#COMPREPLY[@]} == 1 && $COMPREPLY == *[=.] ]] && compopt -o nospace\n    return 0"
    )


def main() -> None:
    """Entry point: turns errors into their message and exit code."""
    guard()
    _no_space_after_keys()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        with of_a_command().installed(ENDING):
            command = typer.main.get_command(build_app())
            code = command.main(prog_name="safework", standalone_mode=False)
            sys.stdout.flush()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it is done: a notice of the time limit must not change the exit code
    except SafeworkError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes every EOFError, a truncated file's too, for the end of a person's input
            raise error.__cause__ from None
        say("error: interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_ERROR)
    except Exception as error:
        from safework_cli.core.system_errors import explain

        known = explain(error)
        if known is None:
            say("internal error (a bug in safework or in a library): please report it with these lines")
            raise
        say(f"error: {known}")
        sys.exit(known.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
