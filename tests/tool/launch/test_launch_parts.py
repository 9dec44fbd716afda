"""Starting processes, without starting any: shares, records, the first cause, what is shown, commands and batch scripts."""

from __future__ import annotations

import os
import platform
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from safework_cli.core import resume
from safework_cli.core import stage as stage_module
from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.config import Layer, fingerprint
from safework_cli.core.errors import ConfigError, InputError, Interrupted, SafeworkError
from safework_cli.core.launch import jobs, start
from safework_cli.core.launch.jobs import job_of, keep_number, made_by_job, new_submission
from safework_cli.core.launch.ranks import RankRecord, failed, first_cause, write_record
from safework_cli.core.launch.relay import Relay, RelayDisplay
from safework_cli.core.launch.slurm import Batch, script, standstill, submit
from safework_cli.core.launch.start import launch_command, rendezvous_port
from safework_cli.core.launch.world import World
from safework_cli.core.registry import load_stage
from safework_cli.core.settings import LaunchSettings, SlurmSettings, StageConfig, seconds_of
from safework_cli.core.stage import Plan, refuse_processes
from safework_cli.training.sampler import step_sampler
from safework_cli.training.worker import _refuse_other_version


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_every_item_is_in_exactly_one_share(count):
    shares = [World(rank, 3).share(count) for rank in range(3)]
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [len(range(count)[share]) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"processes": 2}, "choose ddp, zero2, zero3 or fsdp"),
        ({"strategy": "ddp"}, "needs several processes"),
        ({"strategy": "ddp", "processes": 0}, "greater than or equal to 1"),
    ],
)
def test_strategies_and_numbers_that_do_not_go_together_are_refused(given, why):
    with pytest.raises(ValidationError, match=why):
        LaunchSettings(**given)


def test_the_number_of_processes_is_part_of_an_identity_and_their_spread_over_nodes_is_not():
    stage = load_stage("sft")

    def identity(**launch) -> str:
        return fingerprint(stage, stage.Config(launch=launch), {})

    two = identity(strategy="ddp", processes=2)
    assert identity(strategy="ddp", processes=1, nodes=2) == two
    assert len({two, identity(strategy="ddp", processes=4), identity(strategy="fsdp", processes=2), identity()}) == 4
    assert identity(strategy="ddp", processes=2, timeout_minutes=5) == two


def record(rank: int, seconds: float, error: Exception | None = None, **more) -> RankRecord:
    made = RankRecord(rank, 100 + rank, "host", "1.0", **more)
    made = made if error is None else failed(made, error, "Traceback …")
    made.time = seconds
    return made


def test_the_first_cause_is_the_error_and_not_its_consequences(tmp_path, monkeypatch):
    clock = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    closed = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:12345")
    for one in (record(0, 0, closed), record(1, 0, InputError("row 7 is damaged", "why", "do")), record(2, 0, ValueError("later"))):
        write_record(tmp_path, one)
    cause = first_cause(tmp_path, 3)
    assert isinstance(cause, InputError) and (cause.what, cause.why, cause.do) == ("row 7 is damaged", "why", "do")


def test_an_error_that_is_not_for_users_keeps_its_process_and_trace(tmp_path):
    write_record(tmp_path, record(1, 0, KeyError("lost")))
    cause = first_cause(tmp_path, 2)
    assert not isinstance(cause, SafeworkError) and "process 1 failed: KeyError: 'lost'" in str(cause) and "Traceback …" in str(cause)


def test_a_process_that_was_killed_is_named_by_torchruns_log(tmp_path):
    for one in (record(0, 0, RuntimeError("Connection reset by peer")), record(1, 0)):
        write_record(tmp_path, one)
    (tmp_path / "launcher.log").write_text(
        "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
        "  rank      : 0 (local_rank: 0)\n  exitcode  : -15 (pid: 6)\n"
    )
    cause = first_cause(tmp_path, 2)
    assert isinstance(cause, SafeworkError) and cause.what == "process 1 of 2 was ended by signal 9" and "out of memory" in cause.why
    assert str(tmp_path / "1.log") in cause.do


def test_processes_that_never_came_and_lost_connections_are_told_apart(tmp_path):
    (tmp_path / "launcher.log").write_text("…\nImportError: torch\n")
    cause = first_cause(tmp_path, 2)
    assert "2 of 2 processes did not start" in str(cause) and "ImportError: torch" in str(cause)
    for rank in (0, 1):
        write_record(tmp_path, record(rank, 0, RuntimeError("Timed out waiting 1800000ms for recv operation")))
    assert "lost the connection to another one" in str(first_cause(tmp_path, 2))


def test_a_signal_keeps_its_exit_code(tmp_path):
    write_record(tmp_path, record(0, 0, Interrupted("interrupted by Ctrl-C")))
    assert isinstance(first_cause(tmp_path, 2), Interrupted)


class Kept:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_what_the_first_process_shows_arrives_whole_and_in_order(tmp_path):
    shown = Kept()
    relay = Relay(tmp_path / "display.jsonl", shown)
    relay.pump()  # before there is a file
    display = RelayDisplay(tmp_path / "display.jsonl")
    display.phase_started("train", 3)
    display.line("a note\nof two lines \x1b", "note")
    relay.pump()
    display.metrics(1, {"loss": 2.0})
    with (tmp_path / "display.jsonl").open("a") as out:
        out.write('{"call": "line", "arguments": ["half')
    relay.pump()
    assert shown.calls == [("phase_started", "train", 3), ("line", "a note\nof two lines \x1b", "note"), ("metrics", 1, {"loss": 2.0})]
    with (tmp_path / "display.jsonl").open("a") as out:
        out.write('", "note"]}\n{"call": "__init__", "arguments": []}\n')
    relay.pump()
    assert shown.calls[3:] == [("line", "half", "note")]  # and nothing but a display's own calls


def test_a_line_that_cannot_be_read_does_not_end_the_run(tmp_path):
    seen: list[str] = []
    relay = Relay(tmp_path / "display.jsonl", SimpleNamespace(line=lambda text, level: seen.append(text)))  # type: ignore[arg-type]
    first, last = (f'{{"call": "line", "arguments": ["{text}", "info"]}}\n'.encode() for text in ("one", "two"))
    (tmp_path / "display.jsonl").write_bytes(first + b"\0\0\0\0\n[]\n{}\n" + last)
    relay.pump()
    assert seen == ["one", "two"]


@pytest.mark.parametrize("first_host", ["another-node", this_host()])
def test_a_signal_reaches_a_process_of_this_node_wherever_the_first_one_is(first_host, tmp_path):
    """torchrun numbers nodes in the order of their names: rank 0 need not be where the command is."""
    here, gone = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        gone.kill()
        gone.wait()
        assert not start._send(tmp_path, signal.SIGTERM)  # none has begun
        write_record(tmp_path, RankRecord(0, os.getpid(), "another-node", "1"))  # this very process, were the host not looked at
        assert not start._send(tmp_path, signal.SIGTERM)
        write_record(tmp_path, RankRecord(0, gone.pid, first_host, "1"))
        write_record(tmp_path, RankRecord(1, here.pid, this_host(), "1"))
        assert start._send(tmp_path, signal.SIGTERM)
        assert here.wait(10) == -signal.SIGUSR1  # SIGTERM is torchrun's
    finally:
        here.kill()
        here.wait()


def test_the_command_that_starts_processes(tmp_path):
    one = launch_command(LaunchSettings(strategy="ddp", processes=4), tmp_path, "f" * 64, {})
    assert one[1:] == [
        "-m", "torch.distributed.run", "--max-restarts", "0", "--nproc-per-node", "4", "--standalone", "-m",
        "safework_cli.training.worker", str(tmp_path),
    ]  # fmt: skip
    two = LaunchSettings(strategy="fsdp", processes=8, nodes=2)
    with pytest.raises(ConfigError, match="outside a Slurm allocation"):
        launch_command(two, tmp_path, "f" * 64, {})
    with pytest.raises(ConfigError, match="the Slurm allocation 12 has 1"):
        launch_command(two, tmp_path, "f" * 64, {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "1"})
    words = launch_command(two, tmp_path, "f" * 64, {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "node1"})
    assert words[:2] == ["srun", "--nodes=2"] and f"{platform.node()}:{rendezvous_port('12')}" in words
    assert words[words.index("--rdzv-conf") + 1] == "join_timeout=1800"  # launch.timeout_minutes
    assert not [word for word in words if word.startswith("--cpus-per-task")]
    given = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "node1", "SLURM_CPUS_PER_TASK": "64"}
    words = launch_command(two, tmp_path, "f" * 64, given)
    assert "--cpus-per-task=64" in words[: words.index("-m")], "srun takes it from no variable of sbatch's"
    with pytest.raises(ConfigError, match="is not a node of the Slurm allocation 12"):
        launch_command(two, tmp_path, "f" * 64, {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2"})


def test_nodes_meet_on_a_port_that_is_free(monkeypatch):
    first = rendezvous_port("12")
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        assert first < rendezvous_port("12") < first + start.PORT_ATTEMPTS
        monkeypatch.setattr(start, "PORT_ATTEMPTS", 1)
        with pytest.raises(SafeworkError, match=f"ports {first} to {first} of .* are all in use"):
            rendezvous_port("12")


def test_a_process_of_another_version_says_both(tmp_path):
    stage = load_stage("sft")
    request = {"version": "1.1", "stage_version": stage.version}
    with pytest.raises(SafeworkError, match=rf"process 3 on host has safework 1.0 .*version {stage.version}.*, and the command has 1.1"):
        _refuse_other_version(request, record(3, 0), stage)
    _refuse_other_version(request | {"version": "1.0"}, record(3, 0), stage)


def test_processes_that_take_more_rows_than_there_are_are_refused():
    args = SimpleNamespace(world_size=2, train_batch_size=4, gradient_accumulation_steps=1, seed=0)
    trainer = SimpleNamespace(args=args)
    assert len(step_sampler(trainer, [5] * 8)) == 8
    with pytest.raises(InputError, match="2 processes take 8 rows in a step .* and there are 7 to train on"):
        step_sampler(trainer, [5] * 7)
    args.world_size = 1
    assert len(step_sampler(trainer, [5] * 3)) == 3  # a smaller step


@pytest.mark.parametrize(("world", "rank", "own"), [(1, 0, [0, 1, 2, 3, 4, 5, 6, 7]), (2, 0, [0, 1, 4, 5]), (2, 1, [2, 3, 6, 7])])
def test_each_process_prepares_its_own_rows_of_this_step_and_the_next(world, rank, own):
    """Forward passes of two rows are dealt in turns; lengths fall, so a step's rows come in the order of their numbers."""
    coming: list[list[int]] = []
    accumulation = 2 // world
    args = SimpleNamespace(world_size=world, process_index=rank, train_batch_size=2, gradient_accumulation_steps=accumulation, seed=0)
    trainer = SimpleNamespace(args=args, state=SimpleNamespace(global_step=0))
    order = list(step_sampler(trainer, list(range(8, 0, -1)), coming.append))
    assert [[order.index(row) for row in told] for told in coming] == [own, [place for place in own if place >= 4]]


def test_a_group_of_completions_is_not_cut_between_processes():
    def settings(**launch):
        return load_stage("rl m3").Config(num_generations=4, per_device_train_batch_size=2, gradient_accumulation_steps=1, launch=launch)

    with pytest.raises(ValidationError, match="does not divide the 2 completions of a process's step, and a"):
        settings(strategy="ddp", processes=2)


@pytest.mark.parametrize(
    ("then", "now", "why"),
    [
        ({"strategy": "ddp", "processes": 2}, {"strategy": "ddp", "processes": 4}, None),
        ({"strategy": "ddp", "processes": 2}, {}, None),
        ({}, {"strategy": "ddp", "processes": 2}, None),
        ({"strategy": "zero3", "processes": 2, "nodes": 2}, {"strategy": "zero3", "processes": 4}, None),
        ({"strategy": "zero3", "processes": 2}, {"strategy": "zero3", "processes": 4}, "zero3 divides the optimiser's state"),
        ({"strategy": "ddp", "processes": 2}, {"strategy": "fsdp", "processes": 2}, "fsdp divides the optimiser's state"),
    ],
)
def test_a_checkpoint_of_divided_state_is_not_given_to_another_number_of_processes(then, now, why):
    requests = [
        {"inputs": {}, "digests": {}, "config": load_stage("sft").Config(launch=launch).model_dump(mode="json")} for launch in (then, now)
    ]
    refused = resume._misfit("sft-1", *requests)
    assert refused is None if why is None else why in str(refused) and "--fork" in str(refused)


def batch(**more) -> Batch:
    slurm = SlurmSettings(partition="gpu", gpus_per_node="8", time="2:00:00", setup=["module load cuda"], extra={"exclude": "node7"})
    usual = {"stage": "sft", "recipes": [Layer("my recipe.yaml", {}, "{}")], "words": ["model=a b"], "name": "sft"}
    return Batch(**(usual | {"launch": LaunchSettings(strategy="ddp", processes=8, nodes=2), "slurm": slurm} | more))


def submission(store: Store, job: str) -> Path:
    folder = new_submission(store, "name", {"inputs": {}})
    keep_number(store, job, folder)
    return folder


def test_a_batch_script_is_bash_and_says_all_that_was_asked(store, tmp_path):
    text = script(batch(after=["11", "12"]), store, tmp_path / "it's here", {"SAFEWORK_SFT__SEED": "a'b", "HOME": "/root"})
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH"))
    assert options["nodes"] == "2" and options["gpus-per-node"] == "8" and options["dependency"] == "afterok:11:12"
    assert options["kill-on-invalid-dep"] == "yes" and options["signal"] == "B:USR1@300" and options["exclude"] == "node7"
    assert "export SAFEWORK_SFT__SEED='a'\"'\"'b'" in text and "HOME" not in text
    (command,) = [line for line in text.splitlines() if "slurm=null" in line]
    words = shlex.split(command)
    assert words[words.index("sft") :][:5] == ["sft", "-c", str(tmp_path / "it's here" / "0-my recipe.yaml"), "model=a b", "slurm=null"]


def test_the_jobs_of_an_array_have_a_share_each(store, tmp_path):
    text = script(batch(stage="eval", words=["model=a"], recipes=[], shards=8), store, tmp_path, {})
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    assert "#SBATCH --array=1-8" in text and "/%A_%a.log" in text
    (command,) = [line for line in text.splitlines() if "slurm=null" in line]
    assert "slurm=null shard=$SLURM_ARRAY_TASK_ID/8 > " in command
    assert command.endswith("/printed-$SLURM_ARRAY_TASK_ID &")
    assert job_of("job:12_3") == "12_3"
    (submission(store, "12") / "printed-3").write_text("generations/a-3-of-8@v1\n")
    assert made_by_job(store, "job:12_3") == "generations/a-3-of-8@v1"


def read_by_sbatch(line: str) -> str:
    """What sbatch takes from a line of a script: src/sbatch/opt.c, get_argument."""
    found, quoted, rest = "", "", iter(line.removeprefix("#SBATCH "))
    for sign in rest:
        if sign == "\\":
            found += next(rest)
        elif quoted or sign in "\"'":
            closes = sign == quoted
            found += "" if closes or not quoted else sign
            quoted = "" if closes else quoted or sign
        elif sign == "#" or sign.isspace():
            break
        else:
            found += sign
    assert not quoted, "sbatch ends with `Unmatched`"
    return found


@pytest.mark.parametrize("name", ["my store #1", "50% of it", 'it\'s "here"', "ünï"])
def test_a_store_of_any_name_has_its_log_there(name, tmp_path):
    store = Store(tmp_path / name)
    text = script(batch(), store, store.root / ".slurm" / "sft", {})
    (line,) = [line for line in text.splitlines() if line.startswith("#SBATCH --output")]
    pattern = read_by_sbatch(line).removeprefix("--output=")
    assert pattern.replace("%j", "12").replace("%%", "%") == str(store.root / ".slurm" / "12.log")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    assert "|| exit 1" in next(line for line in text.splitlines() if line.startswith("cd "))


@pytest.mark.parametrize(("name", "why"), [("a\nb", "a batch script has an option on one line"), ("a\\b", "backslash")])
def test_a_store_whose_log_cannot_be_named_is_refused_before_anything_is_written(name, why, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(ConfigError, match=why):
        submit(batch(), Store(tmp_path / name), {})
    assert list(tmp_path.iterdir()) == []


def test_a_variable_whose_name_is_code_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match=r"SAFEWORK_EVAL__A;touch x' cannot be given to the job"):
        script(batch(), store, tmp_path, {"SAFEWORK_EVAL__A;touch x": "1"})


def test_options_with_signs_and_without_values_reach_sbatch(store, tmp_path):
    slurm = SlurmSettings(constraint="a100|h100", extra={"exclusive": None, "comment": 'for "me" #1', "hold": True, "nice": 100})
    options = [read_by_sbatch(line) for line in script(batch(slurm=slurm), store, tmp_path, {}).splitlines() if "#SBATCH" in line]
    assert {"--constraint=a100|h100", "--exclusive", '--comment=for "me" #1', "--hold", "--nice=100"} <= set(options)


def test_recipes_and_versions_are_in_the_command_once(store, tmp_path):
    """What was typed for an input is replaced by its version; a setting that looks like the recipe's name is not."""
    given = batch(words=["model=a", "note=my recipe.yaml", "--name", "x"], inputs={"model": "model/a@v3"})
    (command,) = [line for line in script(given, store, tmp_path, {}).splitlines() if "slurm=null" in line]
    words = shlex.split(command)
    copy = str(tmp_path / "0-my recipe.yaml")
    assert words[words.index("sft") : words.index("slurm=null")] == [
        "sft", "-c", copy, "note=my recipe.yaml", "--name", "x", "model=model/a@v3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        {"time": "2 hours"},
        {"partition": "gpu;rm"},
        {"extra": {"output": "x"}},
        {"extra": {"outp": "x"}},
        {"extra": {"a b": "x"}},
        {"extra": {"comment": "a\n#SBATCH --hold"}},
        {"constraint": "a\nb"},
        {"constraint": ""},
    ],
)
def test_slurm_settings_that_sbatch_would_misread_are_refused(given):
    with pytest.raises(ValidationError):
        SlurmSettings(**given)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-00", 172_800), ("1-02:03", 93_780), ("1-02:03:04", 93_784), ("0", 0)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert seconds_of(limit) == seconds


def test_a_time_limit_that_leaves_no_time_is_refused():
    with pytest.raises(ValidationError, match="time=5 is 300 seconds, and signal_seconds=300 stops the run that long before its end"):
        SlurmSettings(time="5")
    assert SlurmSettings(time="6").time == "6" and SlurmSettings(time="0").time == "0"


def test_a_job_is_a_reference_once_it_has_made_something(store):
    assert job_of("job:12") == "12" and job_of("job:12:cot") == "12" and job_of("jobs") is None and job_of("model/job") is None
    with pytest.raises(InputError, match="no Slurm job 12 was submitted with the store"):
        made_by_job(store, "job:12")
    folder = submission(store, "12")
    with pytest.raises(InputError, match="Slurm job 12 has made nothing yet"):
        made_by_job(store, "job:12")
    (folder / "printed").write_text("dataset/starter@v1\n")
    assert made_by_job(store, "job:12:cot") == "dataset/starter@v1:cot"


def test_who_waits_for_a_job_outlasts_a_restart_of_slurm(store, monkeypatch):
    refused = SafeworkError("scontrol refused", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    states = ["PENDING", refused, "CONFIGURING", refused, refused, "STOPPED", "SIGNALING", "REQUEUE_HOLD", "TIMEOUT"]
    answers = [state if isinstance(state, Exception) else f"JobId=7 JobState={state} Reason=None ExitCode=0:0 x" for state in states]

    def asked(command):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(jobs, "slurm", asked)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    keep_number(store, "7", new_submission(store, "x", {"inputs": {}}))
    ended = jobs.outcome_of(store, "7")
    assert (ended["state"], ended["code"], ended["ref"], answers) == ("TIMEOUT", 1, None, [])
    for patience, answer in ((600.0, "Invalid job id specified"), (0.0, "Unable to contact slurm controller")):
        monkeypatch.setattr(jobs, "PATIENCE_SECONDS", patience)
        answers[:] = [SafeworkError("scontrol refused", answer)] * 2
        with pytest.raises(SafeworkError, match=answer):
            jobs.outcome_of(store, "7")


def test_a_job_that_gains_no_step_is_not_started_again():
    again = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}

    def ended(before: int, after: int, environment: dict[str, str]) -> SafeworkError | None:
        return standstill("sft", before, after, environment, trains=True, starts_over=False)

    assert ended(4, 4, {"SLURM_JOB_ID": "12"}) is None and ended(4, 5, again) is None and ended(4, 4, {}) is None
    error = ended(4, 4, again)
    assert error is not None and "started again at step 4" in error.what and error.exit_code == 1


def test_a_stage_that_is_one_process_refuses_more(monkeypatch):
    plan, two = Plan(), LaunchSettings(strategy="zero2", processes=2)
    refuse_processes(load_stage("data index"), StageConfig(launch=two), plan)
    assert [refusal.what for refusal in plan.refusals] == ["safework data index runs as one process, and launch asks for 2"]
    monkeypatch.setattr(stage_module, "find_spec", lambda name: None)
    plan = Plan()
    refuse_processes(load_stage("sft"), StageConfig(launch=two), plan)
    assert [refusal.what for refusal in plan.refusals] == ["launch.strategy=zero2 needs deepspeed, which is not installed"]
