"""What a submitted job runs, and what its reference means: with commands of a Slurm that keep the scripts and start nothing."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

from safework_cli.core.artifacts.gc import collect, garbage
from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.core.launch.jobs import folder_of, made_by_job
from safework_cli.core.runs import run_folder_name

SBATCH = """#!/bin/sh
n=$(($(cat "FOLDER/number") + 1)); echo $n > "FOLDER/number"
for file; do :; done
echo "$file" > "FOLDER/script-$n"; echo $n
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "FOLDER/asked"
[ "$1" = requeue ] && exit 1   # so that the script does not wait for its end
echo "JobId=$4 JobState=COMPLETED ExitCode=0:0 x"
"""
SQUEUE = """#!/bin/sh
cat "FOLDER/queue"
"""
JOB = ("slurm.cpus_per_task=1", "slurm.time=10", "slurm.signal_seconds=60")
ROWS = [{"prompt": f"What is {n}+1?", "reply": "<think>I add.</think>It is so."} for n in range(4)]
SCORE = ("verifier", "score", "rules=[format]")
SFT = ("sft", "data=dataset/toy:cot", "bf16=false", "sample_prompts=0", "max_steps=2", "per_device_train_batch_size=4")


class FakeSlurm:
    """The commands' folder, and what they were given."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.number(100)

    def number(self, last: int) -> None:
        """The next job gets the number after this one."""
        (self.folder / "number").write_text(str(last))

    def script(self, job: str) -> Path:
        return Path((self.folder / f"script-{job.removeprefix('job:')}").read_text().strip())

    def words(self, job: str) -> list[str]:
        """The words of the command in a job's script."""
        (line,) = [line for line in self.script(job).read_text().splitlines() if "slurm=null" in line]
        return shlex.split(line)

    def option(self, job: str, name: str) -> str:
        """A line of a job's script with an option of sbatch's, after the option's name."""
        lines = self.script(job).read_text().splitlines()
        return next(line for line in lines if line.startswith(f"#SBATCH --{name}")).removeprefix(f"#SBATCH --{name}")

    def start(self, job: str, restarts: int = 0) -> subprocess.Popen[str]:
        number = job.removeprefix("job:")
        environment = os.environ | {"SLURM_JOB_ID": number, "SLURM_RESTART_COUNT": str(restarts)}
        command = ["bash", str(self.script(job))]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, job: str, restarts: int = 0) -> tuple[int, str]:
        """Runs a job's script to its end: exit code, and what it said."""
        process = self.start(job, restarts)
        said = process.communicate(timeout=200)[1]
        return process.returncode, said


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (folder / name).write_text(text.replace("FOLDER", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return FakeSlurm(folder)


@pytest.fixture
def rows(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def submitted(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0 and done.stdout.startswith("job:"), done.stderr
    return done.stdout.strip()


def wait_for(condition, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


# ---------------------------------------------------------------- what a job runs


def test_a_job_reads_the_versions_that_were_there_when_it_was_submitted(cli, slurm, store, tiny_model, tiny_artifact, toy_data):
    job = submitted(cli(*SFT, "model=tiny", *JOB))
    words = slurm.words(job)
    assert {"model=model/tiny@v1", "data=dataset/toy@v1:cot"} <= set(words)
    assert "model=tiny" not in words and "data=dataset/toy:cot" not in words


def test_what_exists_is_named_by_version_also_where_another_job_makes_the_rest(cli, slurm, store, tiny_model, tiny_artifact, toy_data):
    first = submitted(cli(*SFT, "model=tiny", *JOB))
    second = submitted(cli(*SFT, f"model={first}", *JOB))
    words = slurm.words(second)
    assert f"model={first}" in words and "data=dataset/toy@v1:cot" in words
    assert slurm.option(second, "dependency") == f"=afterok:{first[4:]}"
    missing = cli(*SFT[:1], f"model={first}", "data=dataset/none:cot", *JOB)
    assert missing.returncode == 3 and "no artifact 'dataset/none:cot'" in missing.stderr


def test_gc_keeps_what_a_queued_job_needs(cli, slurm, store, tiny_model, tiny_artifact, toy_data):
    job = submitted(cli(*SFT, "model=tiny", *JOB))
    found = garbage(store, keep=1, runs_days=7, with_ancestors=False)
    (store.root / "again").mkdir()
    import_folder(store, tiny_model, "tiny")

    def listed() -> list[str]:
        return [item.label for item in garbage(store, keep=1, runs_days=7, with_ancestors=False)]

    assert not found and listed() == [], "Slurm cannot be asked"
    (slurm.folder / "queue").write_text(f"{job[4:]}\n")
    assert listed() == []
    (slurm.folder / "queue").write_text("7\n")
    old = garbage(store, keep=1, runs_days=7, with_ancestors=False)
    assert [item.label for item in old] == ["model/tiny@v1"], "it ended otherwise"
    (slurm.folder / "queue").write_text(f"{job[4:]}\n")
    assert collect(store, old) == [], "it was submitted after the look"
    (folder_of(store, job[4:]) / "printed").write_text("model/sft@v1\n")
    assert listed() == ["model/tiny@v1"]


def test_what_was_read_of_a_recipe_is_what_the_job_reads(cli, slurm, store, rows, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "score.yaml").write_text("rules: [format]\n")
    monkeypatch.setenv("HOME", str(home))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"echo 'file: {rows}' > {pipe}"])
    typed = ["safework", "verifier", "score", "-c", "~/score.yaml", "-c", str(pipe), *JOB]
    job = submitted(cli(*typed[1:]))
    writer.wait(10)
    words = slurm.words(job)
    copies = [Path(words[n + 1]) for n, word in enumerate(words) if word == "-c"]
    assert [copy.read_text() for copy in copies] == ["rules: [format]\n", f"file: {rows}\n"]
    (home / "score.yaml").write_text("rules: [language]\n")
    code, said = slurm.run(job)
    assert code == 0, said
    assert store.resolve(made_by_job(store, job)).manifest.config["rules"] == ["format"]


def test_a_file_that_changed_while_the_job_waited_is_refused(cli, slurm, store, rows):
    job = submitted(cli(*SCORE, f"file={rows}", *JOB))
    rows.write_text(rows.read_text() + json.dumps(ROWS[0]) + "\n")
    code, said = slurm.run(job)
    assert code == 3 and "what this job reads is not what it was submitted with" in said


def test_an_option_that_cannot_be_is_refused_before_anything_is_submitted(cli, slurm, store, tiny_artifact, toy_data):
    both = cli(*SFT, "model=tiny", "--fork", "sft-1", "--fresh", *JOB)
    assert both.returncode == 2 and "--fork and --fresh are both given" in both.stderr
    unknown = cli(*SFT, "model=tiny", "--fork", "sft-1", *JOB)
    assert unknown.returncode == 3 and "no unfinished run 'sft-1' of sft" in unknown.stderr
    first = submitted(cli(*SFT, "model=tiny", *JOB))
    later = cli(*SFT, f"model={first}", "--fork", "sft-1", *JOB)
    assert later.returncode == 3 and "no unfinished run 'sft-1' of sft" in later.stderr


def test_a_fork_is_not_the_run_without_it(cli, slurm, store, kill_after, tiny_artifact, toy_data):
    words = (*SFT, "model=tiny", "learning_rate=1e-3")
    kill_after(1, *words, "save_steps=1", "max_steps=200", "seed=5")
    (run,) = store.runs.iterdir()
    made = cli(*words)
    assert made.returncode == 0 and "unfinished run" in made.stderr, made.stderr
    assert cli(*words, *JOB).stdout == made.stdout
    forked = submitted(cli(*words, "--fork", run.name, *JOB))
    assert run.name in slurm.words(forked)
    os.utime(run, (1, 1))
    assert "fork" in json.loads((folder_of(store, forked[4:]) / "request.json").read_text())
    assert garbage(store, keep=9, runs_days=0, with_ancestors=False) == []


# ---------------------------------------------------------------- what a job's reference means


def test_a_number_that_comes_back_means_the_new_job(cli, slurm, store, rows):
    first = submitted(cli(*SCORE, f"file={rows}", *JOB))
    assert slurm.run(first)[0] == 0
    assert made_by_job(store, first).startswith("generations/")
    slurm.number(100)
    second = submitted(cli(*SCORE, f"file={rows}", "--name", "other", "seed=1", *JOB))
    assert second == first
    later = submitted(cli("verifier", "score", f"data={second}", "rules=[format]", *JOB))
    assert slurm.option(later, "dependency") == f"=afterok:{second[4:]}"
    assert slurm.run(second)[0] == 0 and made_by_job(store, second) == "generations/other@v1"


def test_the_same_command_again_names_the_job_that_has_not_ended(cli, slurm, store, rows):
    words = (*SCORE, f"file={rows}", *JOB)
    first = submitted(cli(*words))
    (slurm.folder / "queue").write_text(f"{first[4:]}\n")
    again = cli(*words)
    assert submitted(again) == first and f"Slurm job {first[4:]} was submitted for this" in again.stderr
    other = submitted(cli(*words, "--name", "other"))  # another request
    later = (*SCORE[:2], f"data={first}", "rules=[format]", *JOB)  # its input is still to be made, and with it the fingerprint
    second = submitted(cli(*later))
    (slurm.folder / "queue").write_text(f"{first[4:]}\n{second[4:]}\n")
    assert len({first, other, second}) == 3 and submitted(cli(*later)) == second
    (slurm.folder / "queue").write_text("")  # it ended without a result
    assert submitted(cli(*words)) not in (first, other, second)
    (slurm.folder / "queue").unlink()  # Slurm does not answer
    assert submitted(cli(*words)) != first


def test_a_job_whose_run_another_one_has_is_not_started_again(cli, slurm, store, rows):
    job = submitted(cli(*SCORE, f"file={rows}", *JOB))
    folder = store.runs / run_folder_name("verifier score", slurm.words(job)[slurm.words(job).index("--submitted") + 1])
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        (folder / "request.json").write_text(json.dumps({"inputs": {}, "pid": 7, "host": "there", "job": "99"}))
        code, said = slurm.run(job)
        assert code == 1 and "process 7 of Slurm job 99 on there" in said and not (slurm.folder / "asked").exists()
        (folder / "request.json").write_text(json.dumps({"inputs": {}, "pid": 7, "host": "there", "job": job[4:]}))
        code, said = slurm.run(job, restarts=1)  # what is left of its own earlier start
        assert code == 75 and "requeue" in (slurm.folder / "asked").read_text(), said


def test_a_number_that_was_never_submitted_is_named(cli, slurm, store):
    done = cli("verifier", "score", "data=job:7", "rules=[format]", *JOB)
    assert done.returncode == 3 and "no Slurm job 7 was submitted with the store" in done.stderr


def test_a_job_whose_gate_failed_stops_what_is_submitted_later(cli, slurm, store, rows):
    job = submitted(cli("verifier", "score", f"file={rows}", "rules=[correctness]", *JOB))  # no row has a gold answer
    code, said = slurm.run(job)
    assert code == 5, said
    for words in (JOB, ()):
        later = cli("verifier", "score", f"data={job}", "rules=[format]", *words)
        assert later.returncode == 5 and f"data={job}: the job made generations/rows-scored@v1 and ended with exit code 5" in later.stderr
        assert "data=generations/rows-scored@v1 uses it all the same" in later.stderr
    assert cli("verifier", "score", "data=generations/rows-scored@v1", "rules=[format]").returncode == 0


# ---------------------------------------------------------------- text in a script


def test_a_name_is_checked_although_the_inputs_are_not_there(cli, slurm, store, rows):
    job = submitted(cli(*SCORE, f"file={rows}", *JOB))
    for name in ("../../../escaped/x y", "a\n#SBATCH --hold"):
        done = cli("verifier", "score", f"data={job}", "rules=[format]", "--name", name, *JOB)
        assert done.returncode == 3 and "cannot name an artifact" in done.stderr
    assert len(list((store.root / ".slurm").glob("*/job.sh"))) == 1


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.0])
def test_a_signal_at_any_time_has_the_job_requeued(cli, slurm, store, rows, number, seconds):
    """Before the command is there, while Python starts, while the inputs are read, or when all is done already."""
    job = submitted(cli(*SCORE, f"file={rows}", f"slurm.setup=[touch {slurm.folder}/begun, sleep 0.3]", *JOB))
    process = slurm.start(job)
    wait_for((slurm.folder / "begun").exists)
    time.sleep(seconds)
    process.send_signal(number)
    said = process.communicate(timeout=200)[1]
    if process.returncode == 0:  # on a fast machine
        assert seconds == 1.0 and made_by_job(store, job) == "generations/rows-scored@v1"
        return
    assert process.returncode == 75, said
    assert (slurm.folder / "asked").read_text() == f"requeue {job[4:]}\n"
    assert slurm.run(job, restarts=1)[0] == 0 and made_by_job(store, job) == "generations/rows-scored@v1"
