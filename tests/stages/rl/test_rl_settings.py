"""What the settings of the RL stages refuse, and which of them they say that nothing reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from safework_cli.core.config import fingerprint, resolve
from safework_cli.core.errors import InputError
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs
from safework_cli.data.row import Row, write_rows
from safework_cli.training import callbacks, loop
from safework_rl.efficient.config import EfficientConfig
from safework_rl.efficient.stage import stage as efficient
from safework_rl.losses.cpgd import CpgdSettings
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage as m3
from safework_rl.plan import prompt_lines
from safework_rl.run import grpo_arguments
from safework_rl.search.config import SearchConfig
from safework_rl.search.stage import stage as search

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"task_weights": {"knowledge": 0, "general": 0}}, r"task_weights is 0 for every task of phase 1 \(knowledge, general\)"),
        ({"learning_rate": 1e30}, "learning_rate"),
        ({"rewards": {"general": {"correctness": -1}}}, "rewards.general.correctness"),
        ({"rewards": {"general": {"correctness": 0, "language": 0}}}, "every verifier of the task 'general' has the weight 0"),
        ({"rewards": {"genral": {"correctness": 1}}}, "'genral' is not a task"),
        ({"algorithm": "cispo", "loss": {"epsilon_high": 0.28}}, "loss.epsilon_high"),
        ({"algorithm": "dappo"}, r"'dappo' is not a registered loss; did you mean 'dapo'\?"),
        ({"loss": {"epsilonn": 0.1}}, r"algorithm=cpgd has no setting loss.epsilonn; did you mean 'epsilon'\? \(it has epsilon, tight"),
        ({"algorithm": "grpo", "loss": {"drift_coef": 0.1}}, "algorithm=grpo has no setting loss.drift_coef"),
        ({"algorithm": "sapo", "loss": {"epsilon": 0.1}}, r"algorithm=sapo has no setting loss.epsilon \(it has none\)"),
        ({"objective": "m4"}, "'m4' is not a registered objective"),
        ({"objective": "search"}, "'search' is not a registered objective"),
        ({"lora": {"r": 4, "dropout": 0.1}}, "with dropout the policy that is trained"),
        ({"steps_per_generation": 3}, "not a multiple of gradient_accumulation_steps"),
        ({"overlong": {"buffer": 600}}, "overlong.buffer=600 exceeds max_completion_length=512"),
        ({"phases": [{"tasks": [], "share": 1.0}]}, "phases.0.tasks"),
        ({"temperature": float("inf")}, "temperature"),
        ({"loss": {"drift_coef": float("nan")}}, "drift_coef"),
    ],
)
def test_settings_that_could_not_run_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        M3Config(**settings)


def test_a_multiplier_outside_its_bounds_is_refused():
    with pytest.raises(ValidationError, match=r"multiplier=9 is not between low=0\.001 and high=5"):
        SearchConfig(reliability={"multiplier": 9.0})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (M3Config(algorithm="grpo", loss={"epsilon": 0.1}), []),
        (M3Config(loss={"drift_coef": 0.0, "drift_cap": 1.0}), ["loss.drift_cap has no effect"]),
        (M3Config(format={"weight": 2.0}), ["format.weight is read with format.mode=term"]),
        (M3Config(language={"mode": "off", "weight": 2.0}), ["language.weight is read"]),
        (M3Config(overlong={"factor": 2.0}), ["overlong.factor has no effect"]),
        (M3Config(filter_groups=False, refill_attempts=1), ["refill_attempts is read with filter_groups=true"]),
        (M3Config(task_weights={"search": 1.0}), ["task_weights.search weighs a task that is not drawn"]),
        (M3Config(rewards={"search": {"correctness": 1.0}}), ["rewards.search routes a task that is not drawn"]),
        (M3Config(lr_scheduler_type="constant", warmup_ratio=0.1), ["warmup_ratio is not read"]),
        (M3Config(max_steps=2, num_generations=32, phases=[{"tasks": ["general"], "share": s} for s in (1.0, 1e3)]), ["phase 1 gets none"]),
        (EfficientConfig(mu=0.5, ddca_beta=0.1), ["ddca_beta is not read with length_advantage=canon"]),
        (EfficientConfig(length_advantage="ddca", mu=0.5), ["mu is not read with length_advantage=ddca"]),
        (EfficientConfig(loss={"weighting": "equal"}), ["loss.weighting is not read"]),
        (SearchConfig(format={"mode": "term", "weight": 0.5}), ["format.mode is not read", "format.weight is not read"]),
        (M3Config(), []),
        (EfficientConfig(), []),
        (SearchConfig(), []),
    ],
)
def test_a_setting_that_nothing_reads_is_named(config, said):
    found = config.warnings()
    assert len(found) == len(said) and all(text.startswith(start) for text, start in zip(found, said, strict=True)), found


def test_which_verifier_of_a_route_comes_first_is_part_of_the_runs_identity():
    routes = [{"knowledge": {"correctness": 1.0, "refusal": 0.5}}, {"knowledge": {"refusal": 0.5, "correctness": 1.0}}]
    first, second = (fingerprint(m3, M3Config(rewards=route), {}) for route in routes)
    assert first != second
    assert first == fingerprint(m3, M3Config(), {})  # the usual route


def test_cispo_caps_ratios_and_does_not_shrink_them(work):
    assert grpo_arguments(M3Config(algorithm="cispo"), work).epsilon_high == 5.0
    assert grpo_arguments(M3Config(algorithm="cispo", loss={"epsilon_high": 2.0}), work).epsilon_high == 2.0
    assert grpo_arguments(M3Config(algorithm="dapo"), work).epsilon_high is None
    gspo = grpo_arguments(M3Config(algorithm="gspo", loss={"epsilon": 3e-4, "epsilon_high": 4e-4}), work)
    assert (gspo.loss_type, gspo.importance_sampling_level, gspo.epsilon, gspo.epsilon_high) == ("grpo", "sequence", 3e-4, 4e-4)
    assert grpo_arguments(M3Config(algorithm="grpo", beta=0.1), work).use_bias_correction_kl is False


def test_only_one_of_several_gpus_is_used(work, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    args = grpo_arguments(M3Config(), work)
    assert args.n_gpu == 1 and args.train_batch_size == 8
    assert "3 GPUs are visible, one is used: cuda:0" in (work.path / "events.jsonl").read_text()


def test_a_warm_up_over_all_steps_is_not_one_step():
    assert loop.warmup_share(0.03) == 0.03 and 0.99 < loop.warmup_share(1.0) < 1
    rising = [callbacks.warm_up(step, steps=3, after=lambda _: 1.0) for step in range(5)]
    assert rising == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.fixture
def long_prompts(store, commit):
    """Eight prompts, of which two leave no room for a reply in the tiny model's 4,096 positions."""
    folder = store.staging()
    (folder / "rl").mkdir()
    words = [1, 1, 3900, 1, 1, 3900, 1, 1]
    rows = [Row(f"g{i}", "general", [{"role": "user", "content": "a" * count}]) for i, count in enumerate(words)]
    write_rows(folder / "rl" / "rows.parquet", rows)
    return commit(folder, "dataset", "long")


def test_a_prompt_that_leaves_no_room_for_its_reply_is_dropped_before_the_run(tiny_artifact, long_prompts, work, rewards):
    inputs = Inputs({"model": tiny_artifact, "data": long_prompts.with_subset("rl"), "verifiers": {"judge": tiny_artifact}})
    settings = {
        "max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "preflight": 0,
        "max_completion_length": 200, "max_prompt_length": 5000, "filter_groups": False, "phases": [{"tasks": ["general"], "share": 1.0}],
    } | rewards  # fmt: skip
    outcome = m3.run(M3Config(**settings | {"max_completion_length": 180}), inputs, work)
    ((reason, count),) = outcome.metrics["dropped"].items()
    assert count == 2 and "max_completion_length=180 leaves of the model's 4096 positions" in reason
    assert "2 rows dropped" in (work.path / "events.jsonl").read_text() and len(read_metrics(work.progress.metrics_path)) == 2
    with pytest.raises(InputError, match=r"2 of 8 rows cannot be trained on; 2 of them: prompt longer .* \(such as g2\)"):
        m3.run(M3Config(**settings, max_dropped=0.2), inputs, work)


def test_the_plan_counts_prompts_and_what_they_are_about():
    def rows(task, number, groups):
        return [Row(f"{task}{i}", task, [{"role": "user", "content": "?"}], meta={"group": f"{task}-{i % groups}"}) for i in range(number)]

    few = [*rows("value", 12, 6), *rows("safety", 40, 20), *rows("general", 5, 5)]
    counts, note = prompt_lines(few)
    assert counts == "prompts: general 5, safety 40 in 20 groups, value 12 in 6 groups"
    assert note.startswith("note: few groups (value 6): ")
    assert prompt_lines(rows("general", 5, 5)) == ["prompts: general 5"] and prompt_lines([]) == []


def test_a_reply_longer_than_the_model_is_refused_while_planning(tiny_artifact, toy_data):
    routes = {"safety": {"refusal": 1.0}}
    given = Inputs({"model": tiny_artifact, "data": toy_data})
    (refusal,) = m3.plan(M3Config(max_completion_length=4096, rewards=routes), given).refusals
    assert "max_completion_length=4096 leaves no room for a prompt in the 4096 positions of model/tiny@v1" in str(refusal)
    assert not m3.plan(M3Config(max_completion_length=4000, rewards=routes), given).refusals


def test_the_usual_constants_are_the_public_implementations():
    usual = CpgdSettings()
    assert (usual.epsilon, usual.drift_coef, usual.drift_cap, usual.weighting) == (0.2, 1e-3, 2.0, "std")


@pytest.mark.parametrize(
    ("name", "updates", "clip", "reference"),
    [("kg", 16, "grpo", 1e-3), ("svkng", 8, "cpgd", 1e-3), ("svki", 16, "grpo", 0)],
)
def test_the_official_objectives_can_be_said(name, updates, clip, reference, work):
    """Prompts a rollout × 8 replies / replies an update, as the official code counts its batch sizes."""
    path = RECIPES / "safework-r1" / "objectives" / f"{name}.yaml"
    config = resolve(m3, [path], ["model=m", "data=d"]).config
    assert isinstance(config, M3Config)
    assert (config.updates_per_rollout, config.algorithm, config.beta, config.num_generations) == (updates, clip, reference, 8)
    assert config.weighting == "std" and not config.filter_groups and not config.warnings()
    assert config.learning_rate == 1e-6 and config.warmup_ratio == 0.03 and config.max_steps == M3Config().max_steps
    args = grpo_arguments(config, work)
    assert args.steps_per_generation == config.steps_per_generation and args.beta == reference
    said = path.read_text()
    assert "LightRFT, commit 602998f" in said and "What acts:" in said and f"{updates} updates a rollout" in said


TINY = RECIPES / "safework-r1" / "tiny"
"""Its runs of one step have one update a rollout."""
RL_RECIPES = [path for stem in ("m3", "efficient", "search-rl") for path in sorted(RECIPES.rglob(f"{stem}.yaml")) if path.parent != TINY]


@pytest.mark.parametrize("path", RL_RECIPES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_the_recipes_ask_for_nothing_that_cannot_act(path):
    stages = {"m3": m3, "efficient": efficient, "search-rl": search}
    words = ["model=m", "data=d", *(["index=i"] if path.stem == "search-rl" else [])]
    sized = path.parent.parent.name == "safework-r1"
    config = resolve(stages[path.stem], [path.parent.parent / path.name, path] if sized else [path], words).config
    assert config.acts_off_policy and not config.warnings()
