"""``safework ladder``: the commands of a file, one after the other, each with the references that the earlier ones printed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import typer
from typer import _click as click  # typer carries its own click; the range of typer is pinned for it
from typer.core import TyperGroup

from safework_cli.cli.json_output import print_json
from safework_cli.cli.options import STORE
from safework_cli.core.errors import EXIT_AGAIN, EXIT_DONE, EXIT_GATE, EXIT_INTERRUPTED, EXIT_TOO_MANY_FAILED, ConfigError, SafeworkError
from safework_cli.core.ladder import LadderFile, Step, in_order, read_ladder
from safework_cli.core.launch.jobs import job_of
from safework_cli.core.launch.slurm import RESTARTED, program
from safework_cli.core.launch.start import end_with_parent
from safework_cli.core.paths import user_path
from safework_cli.core.plan.estimate import estimate_lines
from safework_cli.core.plan.work import Estimate
from safework_cli.core.signals import ENDING, not_ignored
from safework_cli.core.stage import Plan
from safework_cli.core.terminal import say, visible

POLL_SECONDS = 0.1
PASSED_ON = (signal.SIGINT, *ENDING)
WITH_JSON = ("models pull", "models average", "models merge")
"""Commands that are no stages and make an artifact: they have --json and --dry-run, as stages do."""
REASONS = {
    EXIT_GATE: "a gate failed, or a limit of the run was passed",
    EXIT_TOO_MANY_FAILED: "too many items failed",
    EXIT_AGAIN: "it stopped and can be resumed",
    EXIT_INTERRUPTED: "it was interrupted",
}


def command() -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command(
        name="ladder",
        help="Run the commands of a ladder's file, each with the references that the earlier ones printed. What is done already is not "
        "done again; a command that fails ends the ladder with its exit code, and the same ladder resumes there. On stdout: a line for "
        "each step, its name and reference.",
    )
    def ladder(
        variables: Optional[list[str]] = typer.Argument(None, metavar="[NAME=VALUE]...", help="Variables of the file.", show_default=False),
        file: list[Path] = typer.Option(
            ..., "-c", "--config", metavar="FILE", help="A ladder's file; may be given several times, later ones win name by name."
        ),
        only: list[str] = typer.Option([], "--only", metavar="STEP", help="This step and those that it needs; may be given several times."),
        store: Optional[Path] = STORE,
        dry_run: bool = typer.Option(False, "--dry-run", help="Check every step, and say what each would do; do nothing."),
        wait: bool = typer.Option(False, "--wait", help="With slurm: wait for each job before the next step."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
        quiet: bool = typer.Option(False, "--quiet", "-q", help="Only warnings and errors on stderr."),
    ) -> int:
        asked = read_ladder(file, variables or [])
        steps = in_order({name: Step(name, text) for name, text in asked.steps.items()}, only or asked.steps, asked.variables)
        runner = Runner(asked, steps, store, wait=wait, quiet=quiet)
        runner.check()
        code = runner.plan() if dry_run else runner.run()
        if as_json:
            print_json({"steps": [asdict(one) for one in runner.done], "exit_code": code})
        elif not dry_run:
            for one in runner.done:
                if one.ref:
                    print(f"{one.name}\t{one.ref}")
        return code

    return typer.main.get_command(app)


@dataclass
class Done:
    """A step that was run, or planned.

    Attributes:
        command: the words, ``safework`` first.
        ref: what it printed; None where it printed nothing, or would.
        seconds: that it took here.
        already: it was done by an earlier run; None where the command does not say.
        code: its exit code.
        plan: what a dry run says of it.
    """

    name: str
    command: list[str]
    ref: str | None = None
    seconds: float = 0.0
    already: bool | None = None
    code: int = EXIT_DONE
    plan: dict[str, Any] = field(default_factory=dict)


class Runner:
    """Runs the steps of a ladder as processes of safework.

    Args:
        steps: in their order.
        store: the store's folder; None for the default one.
    """

    def __init__(self, ladder: LadderFile, steps: Sequence[Step], store: Path | None, *, wait: bool = False, quiet: bool = False):
        self.done: list[Done] = []
        self._ladder, self._steps, self._wait, self._quiet = ladder, steps, wait, quiet
        self._environment = dict(os.environ) if store is None else {**os.environ, "SAFEWORK_STORE": str(user_path(store).absolute())}
        self._jobs: set[str] = set()
        self._received: list[int] = []
        self._passed = 0
        """How many of the signals that were received a step has been sent."""

    # ------------------------------------------------------------ before anything runs

    def check(self) -> None:
        """Reads every command and its settings as the command itself will.

        Raises:
            ConfigError: a command or a setting is wrong, or a step that runs here comes after one that is submitted.
        """
        for step in self._steps:
            names = {name: f"step-{name}" for name in step.named} | self._ladder.values()
            try:
                words = self._words(step, names)
                config = settings_of(words)
            except click.ClickException as error:
                raise ConfigError(f"step {step.name}: {error.format_message()}", step.text, "safework COMMAND --help") from None
            except SafeworkError as error:
                raise type(error)(f"step {step.name}: {error.what}", error.why, error.do) from None
            if "--dry-run" in words and _prints_json(words):
                what = f"step {step.name} has --dry-run"
                raise ConfigError(what, "it would make nothing for later steps", "give --dry-run to safework ladder: every step is planned")
            if getattr(config, "slurm", None) is not None:
                self._jobs.add(step.name)
            elif self._jobs and not self._wait:
                raise ConfigError(
                    f"step {step.name} runs here, and comes after {next(s.name for s in self._steps if s.name in self._jobs)}, "
                    "which is submitted as a job",
                    "what it reads is not there before the job has ended",
                    "--wait waits for each job; or leave the step out with --only",
                )
        if self._wait and not self._jobs:
            raise ConfigError("--wait is given without slurm", "every step runs here", "leave --wait out")

    def _words(self, step: Step, known: Mapping[str, str]) -> list[str]:
        """The words of a step, with the ladder's own settings before those of a stage."""
        words = step.words(known)
        name = command_of(words)[0]
        if (stage := _stage(name)) is None:
            return words
        length = len(name.split())
        return [*words[:length], *self._ladder.overlay(several=stage.many_processes), *words[length:]]

    # ------------------------------------------------------------ a dry run

    def plan(self) -> int:
        """Says what each step would do. In the place of a model that is still to be made, the plan has the one that it starts from, which
        is of the same size, or the ladder's own shape of it. Returns the exit code of the first step that is refused."""
        references: dict[str, str] = {}
        alike: dict[str, str] = {}
        code = EXIT_DONE
        with tempfile.TemporaryDirectory(prefix="safework-") as folder:
            for step in self._steps:
                known = self._ladder.values() | alike | references
                missing = sorted(step.named - known.keys())
                shown = {name: f"{{{name}}}" for name in [*missing, *alike]}
                one = Done(step.name, ["safework", *self._words(step, known | shown)])
                self.done.append(one)
                words = self._words(step, known | {name: shown[name] for name in missing})
                if missing:
                    self._tell(f"{step.name}: after {', '.join(missing)}; its settings are valid", one.command)
                elif not _prints_json(words):
                    self._tell(f"{step.name}: would run", one.command)
                else:
                    code = self._plan_step(step, one, words, alike) or code
                if one.ref:
                    references[step.name] = one.ref
                else:
                    alike |= self._alike(step, words, {*references.values(), *alike.values()}, Path(folder))
        return code

    def _plan_step(self, step: Step, one: Done, words: Sequence[str], alike: Mapping[str, str]) -> int:
        """Asks the command itself. Returns its exit code."""
        one.code, printed = self._call([*words, "--dry-run", "--json"], {})
        one.plan = _json(printed)
        one.ref = one.plan.get("already")
        refusals = [refusal["what"] for refusal in one.plan.get("refusals", [])]
        state = f"done already: {one.ref}" if one.ref else "refused" if one.code else "would run"
        lines = one.plan.get("plan", [])
        for name in sorted(step.named & alike.keys()):
            lines = [line.replace(alike[name], f"{{{name}}}") for line in lines]
        one.plan["plan"] = lines
        lines = [*lines, *_estimate_lines(one.plan), *(f"refused: {text}" for text in refusals)]
        self._tell(f"{step.name}: {state}", one.command, lines)
        return one.code

    def _alike(self, step: Step, words: Sequence[str], known: Collection[str], folder: Path) -> dict[str, str]:
        """What later steps plan with in the place of a model that this step is to make: by name, a reference or a folder."""
        if step.name in self._ladder.shapes:
            self._ladder.write_shape(step.name, folder / step.name)
            return {step.name: str(folder / step.name)}
        stage = _stage(command_of(words)[0])
        start = next((word.removeprefix("model=") for word in words if word.startswith("model=")), "")
        return {step.name: start} if stage is not None and stage.output == "model" and start in known else {}

    def _tell(self, state: str, command: Sequence[str], lines: Sequence[str] = ()) -> None:
        if not self._quiet:
            say(state)
            for line in [shlex.join(command), *lines]:
                say(f"  {visible(line)}")

    # ------------------------------------------------------------ a run

    def run(self) -> int:
        """Runs the steps until one fails or a signal comes. Returns the exit code."""
        with self._listening():
            return self._run()

    def _run(self) -> int:
        references = self._ladder.values()
        restarted: dict[str, str | None] = {}
        for step in self._steps:
            if code := self._stopped():
                return code
            words = self._words(step, references)
            one = Done(step.name, ["safework", *words])
            self.done.append(one)
            self._tell(f"── {step.name}", one.command)
            asks_json = _prints_json(words)
            options = [*(["--wait"] if self._wait and step.name in self._jobs else []), *(["--json"] if asks_json else [])]
            options += ["--quiet"] if self._quiet and asks_json else []
            started = time.monotonic()
            one.code, printed = self._call([*words, *options], restarted)
            one.seconds = round(time.monotonic() - started, 1)
            result: dict[str, Any] = _json(printed) if asks_json else {"ref": printed.strip() or None}
            one.ref, one.already = result.get("ref"), result.get("already")
            if one.code:
                self._summary()
                why = REASONS.get(one.code, "its error is above")
                left = len(self._steps) - len(self.done)
                say(f"step {step.name} ended with exit code {one.code}: {why}")
                say(f"{left} later {'step' if left == 1 else 'steps'} did not run; the same command resumes here")
                return one.code
            if asks_json and not one.ref:
                raise SafeworkError(f"step {step.name} ended well and named no artifact", printed[:200], "report this")
            if one.ref and "\n" not in one.ref:
                references[step.name] = one.ref
            if missing := sorted(other.name for other in self._steps if step.name in other.named - references.keys()):
                raise ConfigError(f"step {missing[0]} needs what {step.name} made, which is not one line", printed[:200], step.text)
            if one.already is False:
                restarted = {RESTARTED: None}  # Slurm's count of restarts is about the step that was under way then
        if code := self._stopped():
            return code
        self._summary()
        return EXIT_DONE

    def _stopped(self) -> int:
        """The exit code where a signal came that no step has ended by: it came between two steps, or when one was done. 0 without one."""
        if not self._received:
            return EXIT_DONE
        self._summary()
        say(f"stopped {f'after step {self.done[-1].name}' if self.done else 'before anything was done'}; the same command continues")
        return EXIT_INTERRUPTED if signal.SIGINT in self._received else EXIT_AGAIN

    def _summary(self) -> None:
        if self._quiet:
            return
        for one in self.done:
            state = f"exit code {one.code}" if one.code else "already done" if one.already else "submitted" if job_of(one.ref or "") else ""
            say(f"{one.seconds:>8.0f} s  {one.name:<16} {one.ref or '–'}  {state}".rstrip())

    def _call(self, words: Sequence[str], changes: Mapping[str, str | None]) -> tuple[int, str]:
        """Runs safework, passes signals on to it, and returns its exit code and what it printed."""
        environment = {key: value for key, value in {**self._environment, **changes}.items() if value is not None}
        with self._listening(), tempfile.TemporaryFile() as out:
            # in a session of its own: Ctrl-C in a terminal reaches this command only, which passes it on once
            process = subprocess.Popen(
                [*program(), *words], stdin=subprocess.DEVNULL, stdout=out, env=environment, start_new_session=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip
            while process.poll() is None:
                for number in self._received[self._passed :]:
                    process.send_signal(number)
                    self._passed += 1
                time.sleep(POLL_SECONDS)
            out.seek(0)
            printed = out.read().decode(errors="replace")
        code = process.returncode
        if -code in self._received:  # it had not begun to listen: nothing of it was done
            code = EXIT_INTERRUPTED if -code == signal.SIGINT else EXIT_AGAIN
        return code if code >= 0 else 128 - code, printed

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While the body runs, signals are noted, to be passed on to the step that runs."""
        before = {number: signal.signal(number, lambda number, _: self._received.append(number)) for number in not_ignored(PASSED_ON)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def command_of(words: Sequence[str]) -> tuple[str, Any, list[str], Any]:
    """A command by its words: its full name, click's object, the words that follow, and the context that it is called in.

    Raises:
        ConfigError: the command does not exist.
    """
    from safework_cli.cli.main import build_app

    found: Any = typer.main.get_command(build_app())
    context, rest = click.Context(found, info_name="safework"), list(words)
    names: list[str] = []
    while isinstance(found, TyperGroup):
        if not rest:
            raise ConfigError(f"'{' '.join(words)}' is a group of commands", "", " ".join(["safework", *words, "--help"]))
        name, found, rest = found.resolve_command(context, rest)
        names.append(str(name))
        if isinstance(found, TyperGroup):
            context = click.Context(found, info_name=name, parent=context)
    return " ".join(names), found, rest, context


def _estimate_lines(printed: Mapping[str, Any]) -> list[str]:
    """What a command's plan needs, for people, from what it printed as JSON."""
    found = dict(printed.get("estimates") or {})
    plan = Plan(**{name: found.pop(name, None) for name in ("optimizer_steps", "tokens", "disk_bytes")})
    plan.estimate = Estimate.from_json(found) if found else None
    return list(estimate_lines(plan))


def _stage(name: str) -> Any:
    from safework_cli.core.registry import load_stage, stage_entries

    return load_stage(name) if name in stage_entries() else None


def _prints_json(words: Sequence[str]) -> bool:
    name = command_of(words)[0]
    return name in WITH_JSON or _stage(name) is not None


def settings_of(words: Sequence[str]) -> Any:
    """Reads a command line as safework does, and returns the settings of a stage; None for another command.

    Raises:
        click.ClickException, SafeworkError: as the command would.
    """
    from safework_cli.core.config import resolve
    from safework_cli.core.registry import stage_entries

    name, found, rest, context = command_of(words)
    given = found.make_context(name, rest, parent=context).params
    stage = _stage(name)
    return None if stage is None else resolve(stage, given["recipe"], given["settings"] or [], known_stages=list(stage_entries())).config


def _json(printed: str) -> dict[str, Any]:
    """The object that a command printed; empty where an error came before it."""
    try:
        value = json.loads(printed)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
