"""Commands as jobs of a real Slurm: chains by reference, requeues that resume, gates that cancel, two nodes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from processes import ALIKE
from processes_runs import difference, weights

from safework_cli.core.artifacts import Store
from safework_cli.core.launch.jobs import has_made, made_by_job

pytestmark = pytest.mark.usefixtures("slurm")

SFT = (
    "sft", "model=model/tiny", "data=dataset/toy:cot", "learning_rate=3e-3", "bf16=false", "sample_prompts=0", "max_steps=4",
    "per_device_train_batch_size=4",
)  # fmt: skip
JOB = ("slurm.cpus_per_task=1", "slurm.time=10", "slurm.signal_seconds=60")


def log_of(store: Store, job: str) -> str:
    return (store.root / ".slurm" / f"{job.removeprefix('job:')}.log").read_text()


def wait_for(condition, seconds: float = 240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_a_chain_by_references_that_do_not_exist_yet(cli, store, tiny_artifact, toy_data):
    first = cli(*SFT, *JOB)
    assert first.returncode == 0 and re.fullmatch(r"job:\d+\n", first.stdout), first.stderr
    job = first.stdout.strip()
    second = cli(*SFT[:1], f"model={job}", *SFT[2:], "seed=1", *JOB, "--wait", "--json")
    ended = json.loads(second.stdout)
    assert second.returncode == 0 and ended["state"] == "COMPLETED", (second.stderr, log_of(store, ended["job"]))
    made = store.resolve(ended["ref"], ("model",), slot="model")
    assert made.manifest.inputs["model"].ref == made_by_job(store, job)
    assert f"dependency=afterok:{job[4:]}" in "".join(f.read_text() for f in (store.root / ".slurm").glob("*/job.sh"))
    again = cli(*SFT, *JOB)
    assert again.stdout.strip() == made.manifest.inputs["model"].ref  # already there: nothing is submitted


def test_usr1_makes_a_checkpoint_and_a_requeue_that_resumes(cli, store, tiny_artifact, toy_data):
    job = cli(*SFT, "max_steps=400", "save_steps=1000", *JOB).stdout.strip().removeprefix("job:")
    wait_for(lambda: [f for f in store.runs.glob("*/metrics.jsonl") if f.stat().st_size])
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_for(lambda: "resumed at step" in log_of(store, f"job:{job}"))
    wait_for(lambda: has_made(store, job))
    assert "stopped by SIGUSR1" in log_of(store, f"job:{job}")


def test_a_gate_that_fails_cancels_what_comes_after(cli, store, tiny_artifact, toy_data):
    job = cli(*SFT, "sample_prompts=2", "min_stop_rate=1", *JOB).stdout.strip()
    after = cli(*SFT[:1], f"model={job}", *SFT[2:], *JOB, "--wait", "--json")
    ended = json.loads(after.stdout)
    assert ended["state"] == "CANCELLED" and ended["ref"] is None and after.returncode != 0
    assert "gate failed" in log_of(store, job)


def test_a_machine_without_munge_is_named(cli, store, tiny_artifact, toy_data, tmp_path, monkeypatch):
    without = tmp_path / "slurm.conf"
    configuration = Path(os.environ["SLURM_CONF"]).read_text()
    without.write_text(re.sub(r"AuthInfo=socket=[^,]+", f"AuthInfo=socket={tmp_path / 'none'}", configuration))
    monkeypatch.setenv("SLURM_CONF", str(without))
    refused = cli(*SFT, *JOB)
    assert refused.returncode == 1 and "munge" in refused.stderr and "/etc/munge/munge.key" in refused.stderr, refused.stderr


def test_two_nodes_train_the_weights_of_one_process(cli, store, tiny_artifact, toy_data):
    one = cli(*SFT)
    two = cli(*SFT, "per_device_train_batch_size=2", "launch.strategy=ddp", "launch.nodes=2", *JOB, "--wait")
    assert two.returncode == 0, two.stderr
    moved = difference(weights(store, "model/tiny"), weights(store, one.stdout))
    assert difference(weights(store, one.stdout), weights(store, two.stdout)) <= ALIKE * moved


def test_an_evaluation_as_an_array_is_the_one_in_one_piece(cli, store, tiny_artifact, toy_data):
    words = (
        "eval", "model=model/tiny", "data=dataset/toy:rl", "suites=[{name: sums, rows: {task: general}}]", "max_tokens=6", "batch_size=2",
        "dtype=float32", "max_failed=1",
    )  # fmt: skip
    array = cli(*words, *JOB, "slurm.shards=3", "--wait", "--json")
    assert array.returncode == 0, array.stderr
    ended = json.loads(array.stdout)
    assert ended["state"] == "COMPLETED", log_of(store, ended["job"])
    merged, whole = (store.resolve(ref.strip(), ("evaluation",)) for ref in (ended["ref"], cli(*words).stdout))
    assert len(merged.manifest.inputs) == 5 and len(whole.manifest.inputs) == 2  # with the three shares
    assert (merged.path / "summary.json").read_text() == (whole.path / "summary.json").read_text()


def test_a_ladder_is_a_chain_of_jobs(cli, store, tmp_path):
    rows = [{"prompt": f"What is {n}+1?", "reply": "<think>I add.</think>It is so."} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "ladder.yaml").write_text(
        'slurm: {cpus_per_task: 1, time: 10}\nsteps:\n  first: "verifier score file=rows.jsonl rules=[format] --name first"\n'
        '  second: "verifier score data={first} rules=[format] --name second slurm.time=8"\n'
    )
    submitted = cli("ladder", "-c", "ladder.yaml", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    jobs = dict(line.split("\t") for line in submitted.stdout.splitlines())
    assert set(jobs) == {"first", "second"} and all(re.fullmatch(r"job:\d+", job) for job in jobs.values())
    scripts = {file.parent.name.split("-")[0]: file.read_text() for file in (store.root / ".slurm").glob("*/job.sh")}
    assert f"--dependency=afterok:{jobs['first'][4:]}" in scripts["second"] and "--time=8\n" in scripts["second"]
    assert "--dependency" not in scripts["first"] and "--time=10\n" in scripts["first"]
    wait_for(lambda: has_made(store, jobs["second"][4:]))
    (second,) = store.list("generations", "second")
    assert second.manifest.inputs["data"].ref == "generations/first@v1"
    (tmp_path / "more.yaml").write_text(
        'steps: {out: "artifacts export {second} exported", third: "verifier score data={second} rules=[format]"}\n'
    )
    waited = cli("ladder", "-c", "ladder.yaml", "-c", "more.yaml", "--wait", cwd=tmp_path)
    assert waited.returncode == 0, waited.stderr
    lines = dict(line.split("\t") for line in waited.stdout.splitlines())
    assert lines["second"] == "generations/second@v1" and lines["third"].startswith("generations/") and (tmp_path / "exported").is_dir()
