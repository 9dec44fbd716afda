"""The life of a run: done once, resumed, refused, interrupted."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from filelock import FileLock

from safework_cli.core import record, run_states, runs, runtime
from safework_cli.core.artifacts import store as store_module
from safework_cli.core.artifacts.gc import garbage
from safework_cli.core.checkpoints import seal
from safework_cli.core.config import resolve, result_settings
from safework_cli.core.errors import ConfigError, InputError, Interrupted, RunAgain, SafeworkError
from safework_cli.core.prepare import prepare
from safework_cli.core.registry import load_stage
from safework_cli.core.run_states import seconds_before
from safework_cli.core.runtime import execute
from safework_cli.core.settings import StageConfig, verdict
from safework_cli.core.signals import ENDING, StopRequest, of_a_command
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.engines.settings import WithEngine
from safework_cli.verifiers.contract import judged


class NoteConfig(StageConfig):
    text: str = "a"
    """What is written."""
    refuse: bool = False
    """Refuse in the plan."""
    gate: bool = False
    """Fail a gate."""


class NoteStage(Stage):
    """Writes one file; counts how often it ran in a file next to the store."""

    name = "note"
    summary = "A note."
    Config = NoteConfig
    inputs = {}
    output = "generations"
    during = staticmethod(lambda work: None)

    def plan(self, config: NoteConfig, inputs: Inputs) -> Plan:
        plan = Plan(name="note")
        if config.refuse:
            plan.refuse("no", "because", "do this", kind=ConfigError)
        return plan

    def run(self, config: NoteConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        journal = work.path / "journal"
        journal.write_text((journal.read_text() if journal.exists() else "") + "x")
        print("a library prints")
        type(self).during(work)
        (work.output / "note.txt").write_text(config.text)
        (work.output / "journal").write_text(journal.read_text())
        return Outcome(metrics={"n": 1}, failed_gates=["too low"] if config.gate else [])


class FolderStage(NoteStage):
    """The same, of a model folder."""

    inputs = {"model": Slot(("model",), "a model")}


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.setattr(NoteStage, "during", staticmethod(lambda work: None))
    return NoteStage()


def run(stage, store, *words: str, **options):
    return execute(prepare(stage, resolve(stage, [], words, {}), store), store, quiet=True, **options)


def test_a_second_run_prints_what_the_first_made(stage, store):
    first = run(stage, store)
    second = run(stage, store)
    assert (first.already, second.already) == (False, True)
    assert second.artifact.ref == first.artifact.ref == "generations/note@v1"
    assert not list(store.runs.iterdir())
    assert run(stage, store, "text=b").artifact.ref == "generations/note@v2"
    assert run(stage, store, fresh=True).artifact.ref == "generations/note@v3"


class AskingConfig(NoteConfig, WithEngine):
    pass


class AskingStage(NoteStage):
    """A note that a model on a server may write."""

    name = "asking"
    Config = AskingConfig
    engine_protocol = "generate"


class LooseConfig(NoteConfig):
    def without_effect(self) -> list[str]:
        return ["text is not read"] if "text" in self.model_fields_set else []


class LooseStage(NoteStage):
    name = "loose"
    Config = LooseConfig


def test_settings_without_effect_are_in_the_plan_and_are_warned_of(store, capsys):
    planned = prepare(LooseStage(), resolve(LooseStage(), [], ["text=b"], {}), store)
    assert "warning: text is not read" in planned.plan.lines
    execute(planned, store, quiet=True)
    assert "warning: text is not read" in capsys.readouterr().err
    assert "warning: text is not read" not in prepare(LooseStage(), resolve(LooseStage(), [], [], {}), store).plan.lines


SERVED = {"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "m"}


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("search", {"method": "best_of_n", "step_tokens": 9, "boundaries": ["."]}, ["step_tokens is not read", "boundaries is not read"]),
        ("search", {"step_tokens": 9, "boundaries": ["."]}, []),
        ("verifier wrap", {"engine": SERVED, "attack_rows": 9, "code_reading": "whole"}, ["attack_rows is not", "code_reading is not"]),
        ("verifier wrap", {"attack_rows": 9, "code_reading": "whole"}, []),
        ("eval", {"engine": SERVED, "dtype": "float32"}, ["dtype does not act"]),
        ("eval", {"dtype": "float32"}, []),
        ("verifier train", {"probe_l2": 0.1}, ["probe_l2 is read with head=probe only"]),
        ("verifier train", {"probe_l2": 0.1, "head": "probe"}, []),
        ("sft", {"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, ["warmup_ratio is not read"]),
        ("sft", {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, []),
        ("sft", {"lr_scheduler_type": "constant"}, []),
    ],
)
def test_which_settings_of_the_stages_have_no_effect(name, settings, said):
    found = load_stage(name).Config.model_validate(settings).without_effect()
    assert len(found) == len(said) and all(text.startswith(start) for text, start in zip(found, said, strict=True)), found


def test_already_done_says_what_may_have_changed_since(stage, store):
    assert [run(stage, store).note for _ in range(2)] == ["", ""]
    served = ["engine.kind=openai", "engine.url=http://127.0.0.1:9/v1", "engine.model=m"]
    first, second = (run(AskingStage(), store, *served) for _ in range(2))
    day = first.artifact.manifest.created[:10]
    assert first.note == "" and second.note == (
        f"made on {day}; what http://127.0.0.1:9/v1 serves as m may have changed since: --fresh asks again"
    )


def test_the_manifest_says_where_everything_came_from(stage, store):
    manifest = run(stage, store, "text=b").artifact.manifest
    assert (
        manifest.config["text"] == "b"
        and manifest.config_sources["text"] == "command line"
        and manifest.config_sources["seed"] == "default"
    )
    assert manifest.metrics == {"n": 1} and manifest.peak_memory_bytes > 0 and "safework" in manifest.packages


def test_another_name_for_the_same_run_is_honoured(stage, store):
    first = run(stage, store)
    other = run(stage, store, "name=other")
    assert other.already and other.artifact.ref == "generations/other@v1" and other.artifact.digest == first.artifact.digest
    assert run(stage, store, "name=other").artifact.ref == "generations/other@v1"


def test_a_plan_that_refuses_is_not_run(stage, store):
    with pytest.raises(ConfigError, match="because"):
        run(stage, store, "refuse=true")
    assert not store.runs.exists()


def test_a_failed_gate_fails_again_without_running(stage, store):
    assert run(stage, store, "gate=true").exit_code == 4
    again = run(stage, store, "gate=true")
    assert again.already and again.exit_code == 4


class GatedConfig(NoteConfig):
    least: int = verdict(0)
    """What must be reached."""


class GatedStage(NoteStage):
    Config = GatedConfig

    def judge_again(self, config, artifact):
        reached = artifact.manifest.metrics["n"]
        return Outcome(failed_gates=["too few"] if reached < config.least else [])


def test_another_verdict_setting_is_applied_to_what_was_made(store):
    stage = GatedStage()
    first = run(stage, store)
    strict = run(stage, store, "least=2")
    assert strict.already and strict.exit_code == 4 and first.artifact.ref in strict.note
    assert (strict.artifact.path / "journal").read_text() == "x" and strict.artifact.digest == first.artifact.digest
    assert (strict.artifact.manifest.config["least"], strict.artifact.manifest.config_sources["least"]) == (2, "command line")
    assert run(stage, store).artifact.ref == first.artifact.ref and run(stage, store).exit_code == 0
    again = run(stage, store, "least=2")
    assert (again.artifact.ref, again.note, again.exit_code) == (strict.artifact.ref, "", 4)
    other = run(stage, store, "name=other")
    assert other.already and other.artifact.ref == "generations/other@v1"
    assert run(stage, store).artifact.ref == first.artifact.ref, "the version of the asked name that these gates judged"
    assert run(stage, store, "least=2", "text=b").artifact.manifest.failed_gates == [], "another note is written, and gated by its own run"


def test_files_outside_the_store_are_part_of_what_is_asked_for(store, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("one")

    class Reading(NoteStage):
        def external_digests(self, config):
            return {"outside": outside.read_text()}

    first = run(Reading(), store)
    assert run(Reading(), store).already
    outside.write_text("two")
    second = run(Reading(), store)
    assert not second.already and second.artifact.ref != first.artifact.ref
    outside.write_text("one")
    assert run(Reading(), store).artifact.ref == first.artifact.ref


def test_what_another_process_finished_meanwhile_is_not_run_again(stage, store, monkeypatch):
    """Between the first look and the lock another process may finish the very run: under the lock it is looked for once more."""
    prepared = prepare(stage, resolve(stage, [], [], {}), store)
    others = prepare(NoteStage(), resolve(stage, [], [], {}), store)
    made = []

    class Lock(FileLock):
        def acquire(self, *args, **kwargs):
            if not made:
                made.append(None)
                made[0] = execute(others, store, quiet=True)
            return super().acquire(*args, **kwargs)

    monkeypatch.setattr(runs, "FileLock", Lock)
    late = execute(prepared, store, quiet=True)
    assert late.already and late.artifact.ref == made[0].artifact.ref == "generations/note@v1"
    assert len(store.list()) == 1 and (late.artifact.path / "journal").read_text() == "x"


def test_a_crash_keeps_the_run_folder_and_the_next_run_gets_it_back(stage, store):
    def crash(work):
        raise ValueError("boom")

    type(stage).during = staticmethod(crash)
    with pytest.raises(ValueError, match="boom"):
        run(stage, store)
    assert store.list() == []
    type(stage).during = staticmethod(lambda work: None)
    assert (run(stage, store).artifact.path / "journal").read_text() == "xx"


def test_fresh_begins_from_nothing(stage, store):
    def crash(work):
        raise ValueError("boom")

    type(stage).during = staticmethod(crash)
    with pytest.raises(ValueError, match="boom"):
        run(stage, store)
    type(stage).during = staticmethod(lambda work: None)
    assert (run(stage, store, fresh=True).artifact.path / "journal").read_text() == "x"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, RunAgain), (signal.SIGINT, Interrupted)])
def test_a_fresh_run_that_was_stopped_is_resumed_without_fresh(stage, store, number, error):
    first = run(stage, store).artifact
    type(stage).during = staticmethod(lambda work: os.kill(os.getpid(), number))
    with pytest.raises(error, match="without --fresh: it resumes"):
        run(stage, store, fresh=True)
    (folder,) = store.runs.iterdir()
    assert [one.folder for one in run_states.runs_of(store, finished=False)] == [folder]  # the older artifact does not end it
    assert not garbage(store, keep=9, runs_days=30, with_ancestors=False)
    with pytest.raises(error, match="it resumes"):  # nor for another stop, without --fresh
        run(stage, store)
    type(stage).during = staticmethod(lambda work: None)
    again = run(stage, store)
    assert (again.artifact.path / "journal").read_text() == "xxx" and again.artifact.ref != first.ref and not again.already
    assert not list(store.runs.iterdir()) and run(stage, store).artifact.ref == again.artifact.ref


def test_a_fresh_run_that_was_killed_after_its_commit_is_done(stage, store, monkeypatch):
    run(stage, store)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "empty", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(stage, store, fresh=True)
    assert list(store.runs.iterdir()) and run_states.runs_of(store, finished=False) == []
    assert [one.label.split("-")[0] for one in garbage(store, keep=9, runs_days=30, with_ancestors=False)] == ["run note"]
    done = run(stage, store)
    assert done.already and done.artifact.ref == "generations/note@v2" and not list(store.runs.iterdir())


def test_a_fresh_run_that_runs_does_not_hide_what_is_there(stage, store):
    first = run(stage, store).artifact

    def meanwhile(work):
        (work.path / "journal").write_text("kept")
        asked = [sys.executable, "-c", ASKS, str(store.root), work.fingerprint]
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == first.ref

    type(stage).during = staticmethod(meanwhile)
    run(stage, store, fresh=True)


ASKS = """
import sys
from pathlib import Path
from types import SimpleNamespace as Space
from safework_cli.core.artifacts import Store
from safework_cli.core.config import resolve
from safework_cli.core.runs import run_folder_name
from safework_cli.core.runtime import existing
from safework_cli.core.settings import StageConfig
store = Store(Path(sys.argv[1]))
folder = store.runs / run_folder_name("note", sys.argv[2])
settings, stage = Space(config=StageConfig()), Space(unpinned=lambda _: [])
asked = Space(
    fingerprint=sys.argv[2], kind="generations", name="note", run_folder=lambda _: folder, resolved=settings, stage=stage
)
print(existing(asked, store).artifact.ref)
assert (folder / "journal").read_text() == "kept"
"""


def test_a_job_that_is_started_again_goes_on_with_what_it_began_afresh(stage, store, monkeypatch):
    first = run(stage, store)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    type(stage).during = staticmethod(lambda work: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(RunAgain):
        run(stage, store, fresh=True)
    type(stage).during = staticmethod(lambda work: None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = run(stage, store, fresh=True)
    assert (again.artifact.path / "journal").read_text() == "xx" and again.artifact.ref != first.artifact.ref
    type(stage).during = staticmethod(lambda work: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(SafeworkError):
        run(stage, store, fresh=True)
    type(stage).during = staticmethod(lambda work: None)
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # whose first start ended before it had emptied anything
    assert (run(stage, store, fresh=True).artifact.path / "journal").read_text() == "x"


def test_a_job_that_gains_nothing_is_not_started_for_ever(stage, store, monkeypatch):
    def stopped(kept: str):
        def during(work):
            with (work.path / "parts.jsonl").open("a") as handle:
                handle.write(kept)
            os.kill(os.getpid(), signal.SIGUSR1)

        type(stage).during = staticmethod(during)
        return run(stage, store)

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(RunAgain):
        stopped("")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RunAgain):
        stopped("{}\n")
    with pytest.raises(SafeworkError, match="Slurm job 7 was started again and stopped without having gained anything") as caught:
        stopped("")
    assert caught.value.exit_code == 1
    monkeypatch.setattr(NoteStage, "starts_over", True)
    with pytest.raises(SafeworkError, match="note keeps nothing of a run that is stopped: each start begins from nothing"):
        stopped("")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(RunAgain, match="note keeps nothing of a run that is stopped(.|\n)*it starts over"):
        stopped("")


@pytest.mark.parametrize("where", ["changed_inputs", "refuse_if_changed", "keep_record"])
def test_a_job_that_is_stopped_around_its_run_is_not_started_for_ever_either(stage, store, monkeypatch, where):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(runtime, where, lambda *_, **__: os.kill(os.getpid(), signal.SIGUSR1))
    with (
        pytest.raises(SafeworkError, match="was started again and stopped without having gained anything"),
        of_a_command().installed(ENDING),
    ):
        run(stage, store)


def test_a_full_disk_does_not_start_a_job_for_ever(stage, store, monkeypatch):
    def full(work):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    type(stage).during = staticmethod(full)
    with pytest.raises(SafeworkError, match="was started again") as caught:
        run(stage, store)
    assert caught.value.exit_code == 1 and isinstance(caught.value.__cause__, RunAgain)


@pytest.mark.parametrize("place", ["hash_payload", "fsync_folder"])
def test_a_stop_during_the_commit_leaves_a_run_that_the_same_command_ends(stage, store, monkeypatch, place):
    """Before the artifact is there and after: in both cases one artifact is made."""
    original = getattr(store_module, place)

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(store_module, place, interrupted)
        with pytest.raises(RunAgain, match="stopped by SIGUSR1"), of_a_command().installed(ENDING):
            run(stage, store)
    again = run(stage, store)
    assert again.artifact.ref == "generations/note@v1" and again.already == (place == "fsync_folder")
    assert not list(store.runs.iterdir()) and len(store.list()) == 1


def test_a_stop_before_anything_was_done_says_so(stage, store, monkeypatch):
    monkeypatch.setattr(NoteStage, "plan", lambda self, config, inputs: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(RunAgain, match="stopped by SIGTERM before anything was done"), of_a_command().installed(ENDING):
        run(stage, store)
    assert not store.runs.exists()


def test_a_signal_that_a_library_swallows_stops_the_run_all_the_same(stage, store, monkeypatch):
    def plan(self, config, inputs):
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        return Plan(name="note")

    monkeypatch.setattr(NoteStage, "plan", plan)
    with of_a_command().installed(ENDING), pytest.raises(RunAgain):
        run(stage, store)
    assert store.list() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_the_interpreter_makes_another_error_of_is_still_a_stop(stage, store, monkeypatch, number):
    """Python 3.11 makes a RuntimeError of what is raised while the fields of a class are named, as in each import of a dataclass."""

    class Named:
        def __set_name__(self, owner, name):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(NoteStage, "plan", lambda self, config, inputs: type("Holder", (), {"field": Named()}))
    with pytest.raises(RunAgain, match=f"stopped by {number.name} before anything was done"), of_a_command().installed(ENDING):
        run(stage, store)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_signal_while_the_handlers_are_set_or_reset_is_still_a_stop(monkeypatch, call):
    setting, calls = signal.signal, []

    def interrupted(number, handler):
        before = setting(number, handler)
        calls.append(number)
        if len(calls) == call:
            of_command._on_signal(signal.SIGTERM, None)
        return before

    of_command, kept = of_a_command(), {number: signal.getsignal(number) for number in ENDING}
    monkeypatch.setattr(signal, "signal", interrupted)
    try:
        with pytest.raises(RunAgain), of_command.installed(ENDING):
            pass
    finally:
        for number, handler in kept.items():
            setting(number, handler)


TERMINAL = """
import os, signal, sys, time
from safework_cli.core.errors import RunAgain
from safework_cli.core.signals import StopRequest
from safework_cli.core.terminal import guard
guard()  # as every command
stop = StopRequest()
try:
    with stop.installed(), stop.deferred():
        os.write(1, b"ready")
        while stop.requested is None:
            time.sleep(0.05)
        print("what a display shows of a checkpoint", file=sys.stderr, flush=True)
except RunAgain as error:
    with open(sys.argv[1], "w") as file:
        file.write(str(error))
"""


def test_a_connection_that_is_gone_ends_a_run_as_a_scheduler_does(tmp_path):
    """SIGHUP, and a terminal to which nothing can be written any more."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", TERMINAL, str(tmp_path / "said")])  # noqa: S606 - no shell
    try:
        assert b"ready" in os.read(terminal, 100)
    finally:
        os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert "stopped by SIGHUP" in (tmp_path / "said").read_text()


def test_a_command_under_nohup_goes_on(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().installed():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_a_group_of_tasks_is_still_a_stop():
    async def stopped():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(5))
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(5)

    with pytest.raises(RunAgain, match="stopped by SIGTERM"), of_a_command().installed(ENDING):
        asyncio.run(stopped())


def test_a_signal_is_no_refusal_of_a_plan_and_no_failure_of_a_verifier(stage, store, monkeypatch):
    """Plans collect what is refused, and a verifier's own error is one unscorable reply: a stop is neither."""

    def plan(self, config, inputs):
        refused = []
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SafeworkError as refusal:
            refused.append(refusal)
        return Plan(name="note", refusals=refused)

    with monkeypatch.context() as patched:
        patched.setattr(NoteStage, "plan", plan)
        with pytest.raises(RunAgain, match="stopped by SIGTERM before anything was done"), of_a_command().installed(ENDING):
            run(stage, store)

    class Stopped:
        name = "stopped"

        def judge(self, exchanges):
            os.kill(os.getpid(), signal.SIGINT)

    type(stage).during = staticmethod(lambda work: judged(Stopped(), [None, None]))
    with pytest.raises(Interrupted):
        run(stage, store)


def test_a_damaged_result_is_not_passed_on(stage, store):
    made = run(stage, store).artifact
    (made.path / "note.txt").write_text("z")
    with pytest.raises(Exception, match="changed"):
        run(stage, store)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, RunAgain)])
def test_signals_become_errors_with_their_exit_codes(stage, store, number, error):
    type(stage).during = staticmethod(lambda work: os.kill(os.getpid(), number))
    with pytest.raises(error) as caught:
        run(stage, store)
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 75}[number]


def test_a_deferred_signal_waits_for_the_step_to_end(stage, store):
    reached = []

    def train(work):
        with work.stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert work.stop.requested == signal.SIGTERM
            reached.append("end of step")

    type(stage).during = staticmethod(train)
    with pytest.raises(RunAgain):
        run(stage, store)
    assert reached == ["end of step"]


def test_two_processes_on_the_same_run(stage, store):
    prepared = prepare(stage, resolve(stage, [], [], {}), store)
    folder = store.runs / f"note-{prepared.fingerprint[:16]}"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"), pytest.raises(RunAgain, match="another process is running this stage"):
        execute(prepared, store, quiet=True)
    assert execute(prepared, store, quiet=True).artifact.ref == "generations/note@v1"


def test_a_full_disk_in_the_middle_is_told_apart_from_a_fault(stage, store):
    def full(work):
        raise OSError(errno.ENOSPC, "No space left on device")

    type(stage).during = staticmethod(full)
    with pytest.raises(RunAgain, match="no space left"):
        run(stage, store)


def test_what_libraries_print_never_reaches_stdout(stage, store, capfd):
    type(stage).during = staticmethod(lambda work: os.system("echo from a child process"))  # noqa: S605
    run(stage, store)
    out, err = capfd.readouterr()
    assert out == "" and "from a child process" in err and "a library prints" in err


def test_the_name_asked_for_is_printed_whatever_else_was_made_of_it(stage, store):
    assert run(stage, store, "name=other").artifact.ref == "generations/other@v1"
    again = run(stage, store)
    assert again.already and again.artifact.ref == "generations/note@v1"
    assert run(stage, store).artifact.ref == "generations/note@v1"


def test_versions_order_what_clocks_do_not(stage, store, monkeypatch):
    run(stage, store)
    monkeypatch.setattr(record, "now", lambda: "2001-01-01T00:00:00.000Z")
    assert run(stage, store, fresh=True).artifact.ref == "generations/note@v2"
    assert run(stage, store).artifact.ref == "generations/note@v2"
    assert [a.ref for a in store.list()] == ["generations/note@v1", "generations/note@v2"]


def test_a_kill_between_commit_and_clean_up_leaves_nothing_that_is_called_unfinished(stage, store, monkeypatch):
    def killed(run):
        raise KeyboardInterrupt

    type(stage).during = staticmethod(lambda work: (work.checkpoints / "checkpoint-1").mkdir())
    monkeypatch.setattr(runs, "empty", killed)
    with pytest.raises(KeyboardInterrupt):
        run(stage, store)
    (left,) = store.runs.iterdir()
    seal(left / "checkpoints" / "checkpoint-1", "f" * 64)
    monkeypatch.undo()
    type(stage).during = staticmethod(lambda work: None)
    other = run(stage, store, "text=b").artifact
    assert "unfinished" not in "".join(p.read_text() for p in other.path.rglob("events.jsonl"))
    assert left.exists() and run(stage, store).already
    assert not left.exists()


def test_a_folder_that_cannot_be_emptied_does_not_hide_the_result(stage, store, monkeypatch):
    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    type(stage).during = staticmethod(lambda work: (work.path / "samples").mkdir())
    with monkeypatch.context() as patched:
        patched.setattr(runs.shutil, "rmtree", busy)
        made = run(stage, store)
    assert made.artifact.ref == "generations/note@v1" and not made.already
    assert run_states.runs_of(store, finished=False) == []  # what is left does not count as unfinished
    assert run(stage, store).already


def test_an_input_that_a_gc_took_before_the_run_began_is_named(stage, store, commit):
    class Reading(NoteStage):
        inputs = {"source": Slot(("generations",), "read")}

    made = run(stage, store).artifact
    reading = Reading()
    prepared = prepare(reading, resolve(reading, [], ["source=note"], {}), store)
    store.remove(made)
    with pytest.raises(InputError, match=r"generations/note@v1 was deleted in the meantime"):
        execute(prepared, store, quiet=True)


def test_the_class_of_strategy_is_part_of_the_identity():
    assert "launch" in result_settings(NoteConfig())


HEAVY = {"torch", "transformers", "trl", "datasets", "peft", "accelerate", "inspect_ai", "matplotlib", "pyarrow", "bm25s"}


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["rl", "m3", "--help"], ["eval", "--help"], ["data", "build", "--help"]])
def test_help_imports_nothing_heavy(words):
    code = f"""
import sys
sys.argv = ["safework", *{words!r}]
from safework_cli.cli.main import main
try:
    main()
finally:
    print(sorted({{name.split(".")[0] for name in sys.modules}} & {HEAVY!r}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and "Usage: safework" in done.stdout


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_that_is_refused_leaves_its_folder_only_where_there_is_something_to_resume(stage, store, monkeypatch, kept):
    def refuses(work):
        (work.path / "journal").write_text("x" if kept else "")
        (work.output / "begun.txt").write_text("half")
        (work.checkpoints / "checkpoint-1").mkdir() if kept else work.checkpoints
        raise InputError("no rows")

    monkeypatch.setattr(NoteStage, "during", staticmethod(refuses))
    with pytest.raises(InputError, match="no rows"):
        run(stage, store)
    assert len(list(store.runs.iterdir())) == kept


def test_the_duration_of_a_run_is_that_of_all_its_attempts(stage, store, monkeypatch):
    def stops(work):
        (work.checkpoints / "checkpoint-1").mkdir(exist_ok=True)
        time.sleep(0.5)
        raise RunAgain("stopped")

    for during in (stops, stops, lambda work: None):
        monkeypatch.setattr(NoteStage, "during", staticmethod(during))
        with suppress(RunAgain):
            made = run(stage, store)
    assert 1 <= made.artifact.manifest.wall_seconds < 5
    monkeypatch.setattr(NoteStage, "during", staticmethod(stops))
    with pytest.raises(RunAgain):
        run(stage, store, "text=b")
    monkeypatch.setattr(NoteStage, "during", staticmethod(lambda work: None))
    assert run(stage, store, "text=b", fresh=True).artifact.manifest.wall_seconds < 0.5


def test_an_attempt_that_was_killed_ends_with_what_it_wrote_last():
    """Its events end long before: at the beginning of a phase."""
    first = [{"event": "started", "time": 100.0}, {"event": "phase", "time": 102.0}]
    second = [{"event": "started", "time": 900.0, "written": 160.0}, {"event": "failed", "time": 930.0}]
    assert seconds_before([*first, *second, {"event": "started", "time": 2000.0, "written": 925.0}]) == 60 + 30
    assert seconds_before(first) == seconds_before([]) == 0


def test_a_damaged_event_counts_for_nothing_and_a_file_of_the_future_ends_at_the_next_attempt():
    start = {"event": "started", "time": 100.0}
    for damaged in ({"event": "started"}, {"event": "started", "time": None}, {"event": "started", "time": "x"}):
        assert seconds_before([start, {"x": 1}, damaged]) == seconds_before([damaged, {"x": 1}, start]) == 0
    assert seconds_before([start, {"x": 1}, {"event": "started", "time": 160.0, "written": "late"}]) == 0
    assert seconds_before([start, {"event": "started", "time": 160.0, "written": 1e12}]) == 60


def test_a_note_of_an_attempt_is_not_the_end_of_the_one_before(stage, store, monkeypatch):
    """A run begun from another one's checkpoint has one each time."""
    monkeypatch.setattr(runtime, "_others", lambda *_: ["another run could be resumed"])

    def stops(work):
        raise RunAgain("stopped")

    monkeypatch.setattr(NoteStage, "during", staticmethod(stops))
    with suppress(RunAgain):
        run(stage, store)
    time.sleep(1.5)
    monkeypatch.setattr(NoteStage, "during", staticmethod(lambda work: None))
    assert run(stage, store).artifact.manifest.wall_seconds < 1


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A model folder that is not in the store."""
    return shutil.copytree(tiny_model, tmp_path / "mine")


def of_folder(folder, store):
    return prepare(FolderStage(), resolve(FolderStage(), (), [f"model={folder}"], {}), store)


def test_a_folder_that_changes_between_plan_and_run_is_refused(folder, stage, store):
    prepared = of_folder(folder, store)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"an input changed after the plan was made: model=\S+ \(config.json\)"):
        execute(prepared, store, quiet=True)
    assert not store.list()
    prepared = of_folder(folder, store)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model=\S+ \(model.safetensors\)"):
        execute(prepared, store, quiet=True)


def test_a_folder_that_changes_during_the_run_leaves_no_artifact(folder, stage, store, monkeypatch):
    def change(work):
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(NoteStage, "during", staticmethod(change))
    with pytest.raises(InputError, match=r"what was read changed during the run: model=\S+ \(config.json\)"):
        execute(of_folder(folder, store), store, quiet=True)
    assert not store.list()


def test_a_folder_whose_files_were_only_touched_is_not_a_changed_one(folder, stage, store):
    prepared = of_folder(folder, store)
    os.utime(folder / "config.json", (1, 1))
    assert execute(prepared, store, quiet=True).exit_code == 0
