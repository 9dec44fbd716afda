"""Resuming with other settings: only when asked, and noted in the manifest."""

from __future__ import annotations

import shutil

import pytest
from filelock import FileLock

from safework_cli.core.artifacts import Store
from safework_cli.core.progress import read_metrics

WORDS = [
    "rl", "m3", "model=tiny", "data=toy:rl", "rewards.safety={constraints: 1}", "format.mode=term", "format.weight=0.1",
    "filter_groups=false", "preflight=0", "save_steps=1", "num_generations=4", "per_device_train_batch_size=4",
    "gradient_accumulation_steps=1", "max_completion_length=16", "phases=[{tasks: [safety], share: 1}]",
]  # fmt: skip


@pytest.fixture
def left_behind(tiny_artifact, toy_data, kill_after, store: Store) -> str:
    """The folder of a run that was killed after its second checkpoint."""
    kill_after(2, *WORDS, "max_steps=50", "learning_rate=1e-3", "lr_scheduler_type=constant", "-q")
    (folder,) = store.runs.iterdir()
    return folder.name


def test_a_fork_goes_on_with_the_new_settings_and_says_so(left_behind, cli, store: Store):
    words = [*WORDS, "max_steps=6", "learning_rate=5e-4", "lr_scheduler_type=constant"]
    other = cli(*words, "--name", "other")
    assert other.returncode == 0, other.stderr
    assert "an unfinished run of rl m3 stopped at step" in other.stderr and f"--fork {left_behind} resumes" in other.stderr
    assert "learning_rate 0.001 → 0.0005" in other.stderr and "max_steps 50 → 6" in other.stderr
    wrong = cli(*words, "seed=1", "--fork", "rl-m3-nothing")
    assert wrong.returncode == 3 and "no unfinished run 'rl-m3-nothing'" in wrong.stderr and left_behind in wrong.stderr
    both = cli(*words, "seed=1", "--fork", left_behind, "--fresh")
    assert both.returncode == 2 and "--fork and --fresh" in both.stderr

    cannot = cli(*words, "max_steps=1", "train_layers=1", "--name", "top")
    assert cannot.returncode == 0 and "an unfinished run" not in cannot.stderr  # its checkpoint would be of no use
    with FileLock(store.runs / left_behind / "lock"):
        running = cli(*words, "max_steps=1", "--name", "meanwhile")
    assert running.returncode == 0 and "an unfinished run" not in running.stderr
    other_weights = cli(*words, "train_layers=1", "--fork", left_behind)
    assert other_weights.returncode == 3 and "train_layers=None, and this one 1" in other_weights.stderr
    other_model = cli(*[w.replace("model=tiny", "model=other") for w in words], "--fork", left_behind)
    assert other_model.returncode == 3 and "started from model/tiny@v1, and this one names model/other@v1" in other_model.stderr
    short = cli(*[w.replace("max_steps=6", "max_steps=1") for w in words], "--fork", left_behind)
    assert short.returncode == 3 and "this run ends at step 1" in short.stderr

    forked = cli(*words, "seed=1", "--fork", left_behind, "--name", "forked")
    assert forked.returncode == 0, forked.stderr
    artifact = store.resolve("forked")
    (note,) = artifact.manifest.notes
    assert note.startswith(f"forked from {left_behind} at step ") and "seed 0 → 1" in note
    began = int(note.split("at step ")[1].split(",")[0])
    steps = read_metrics(artifact.path / "safework" / "metrics.jsonl")
    assert [step["step"] for step in steps] == list(range(1, 7)), "the curve is whole"
    rates = [step["learning_rate"] for step in steps]
    assert "already done" in cli(*words, "seed=1", "--fork", left_behind).stderr
    beginning = cli(*words, "seed=1", "--name", "beginning")
    assert "already done" not in beginning.stderr and store.resolve("beginning").digest != artifact.digest
    assert rates[began - 1] == 1e-3 and rates[began:] == [5e-4] * (6 - began), "the new rate acts from the fork on"


def test_a_fork_within_a_rollout_compares_with_the_policy_that_sampled_it_again(tiny_artifact, toy_data, cli, kill_after, store: Store):
    twice = [*WORDS, "num_iterations=2", "learning_rate=1e-3", "lr_scheduler_type=constant"]
    kill_after(3, *twice, "max_steps=50", "-q")
    (folder,) = store.runs.iterdir()
    steps = sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/*/COMPLETE.json"))
    if steps[-1] % 2 == 0:
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{steps.pop()}")
    forked = cli(*twice, "seed=1", f"max_steps={steps[-1] + 2}", "--fork", folder.name, "--name", "forked")
    assert forked.returncode == 0, forked.stderr
    curve = read_metrics(store.resolve("forked").path / "safework" / "metrics.jsonl")
    first = curve[steps[-1]]
    assert first["engine/logprob_gap"] < 1e-3 and first["cpgd/log_ratio"] < 1e-6
