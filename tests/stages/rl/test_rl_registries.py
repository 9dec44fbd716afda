"""Losses, rewards and objectives of other packages: selected by name, checked while planning, and part of a run's identity."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from safework_cli.core import registry
from safework_cli.core.progress import read_metrics
from safework_cli.core.stage import Inputs, Plan
from safework_cli.data.row import Row
from safework_cli.verifiers.rules import rule_verifier
from safework_rl.config import FormatSettings, LanguageSettings, RlConfig
from safework_rl.losses.trl import TrlLoss
from safework_rl.m3.config import M3Config
from safework_rl.m3.stage import stage
from safework_rl.objectives import RegisteredReward, TaskRewards
from safework_rl.routing import ROUTES, check_routes

PACKAGE = {
    "other_losses.py": """
from pydantic import Field
from safework_cli.core.settings import Settings
from safework_rl.losses.contract import Loss, LossValue

class ReinforceSettings(Settings):
    scale: float = Field(1.0, ge=0, le=100)

class Reinforce(Loss):
    Settings = ReinforceSettings

    def __call__(self, batch):
        gain_BT = batch.logp_BT * self.settings.scale * batch.advantage_B[:, None]
        loss = -(gain_BT * batch.mask_BT / batch.denominator_B[:, None]).sum()
        return LossValue(loss, {"reinforce/gain": gain_BT.detach().mean()})
""",
    "other_rewards.py": """
def letters(rows, replies):
    assert all(row.task == "general" for row in rows)
    return [None if reply == "?" else min(1.0, reply.count("e") / 4 + len(reply) / 64) for reply in replies]
""",
    "other_objectives.py": """
from pydantic import Field
from safework_cli.core.settings import Settings
from safework_rl.objectives import M3Objective

class PlainSettings(Settings):
    scale: float = Field(10.0, ge=0, le=100)

class Plain(M3Objective):
    def advantages(self, reward_NG, length_NG, correct_NG):
        return self.scale * (reward_NG - reward_NG.mean(1, keepdim=True))

def plain(config, rewards):
    objective = Plain(rewards, "equal", filter_groups=False)
    objective.scale = config.objective_settings.scale
    return objective

plain.Settings = PlainSettings
""",
}
ENTRIES = """[safework.losses]
reinforce = other_losses:Reinforce
[safework.rewards]
letters = other_rewards:letters
[safework.objectives]
plain = other_objectives:plain
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with one loss, one reward and one objective; its version can be set."""

    def install(version="1"):
        info = tmp_path / "other.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: other\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(ENTRIES)
        for name, text in PACKAGE.items():
            (tmp_path / name).write_text(text)
        importlib.invalidate_caches()
        registry.entries.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    install()
    yield install
    monkeypatch.undo()
    importlib.invalidate_caches()
    registry.entries.cache_clear()
    for name in PACKAGE:
        sys.modules.pop(name.removesuffix(".py"), None)


SETTINGS = {
    "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "steps_per_generation": 2,
    "max_completion_length": 12, "learning_rate": 1e-3, "phases": [{"tasks": ["general"], "share": 1.0}],
    "rewards": {"general": {"letters": 1.0}}, "format": {"mode": "term", "weight": 0.01}, "language": {"mode": "off"},
}  # fmt: skip


def test_a_run_uses_another_packages_loss_reward_and_objective(package, tiny_artifact, toy_data, work):
    inputs = Inputs({"model": tiny_artifact, "data": toy_data.with_subset("rl"), "verifiers": {}})
    config = M3Config(**SETTINGS, algorithm="reinforce", loss={"scale": 2}, objective="plain")
    assert config.model_dump(mode="json")["loss"] == {"scale": 2.0} and not stage.plan(config, inputs).refusals
    outcome = stage.run(config, inputs, work)
    steps = read_metrics(work.progress.metrics_path)
    assert outcome.metrics["updates"] == 2 and all("reinforce/gain" in step and "cpgd/drift" not in step for step in steps)
    assert 0 < steps[0]["verifier/general/letters"] <= 1 and steps[0]["verifier/general/letters/std"] > 0


def test_its_names_and_settings_are_checked_while_planning(package):
    with pytest.raises(ValidationError, match=r"'reinforc' is not a registered loss; did you mean 'reinforce'\?"):
        M3Config(algorithm="reinforc")
    with pytest.raises(ValidationError, match=r"algorithm=reinforce has no setting loss.scal; did you mean 'scale'\? \(it has scale\)"):
        M3Config(algorithm="reinforce", loss={"scal": 1})
    with pytest.raises(ValidationError, match=r"loss.scale\n.*less than or equal to 100"):
        M3Config(algorithm="reinforce", loss={"scale": 101})
    assert M3Config(algorithm="grpo", loss=None).loss == M3Config(algorithm="grpo").loss, (
        "null: an earlier recipe's settings of another loss"
    )
    with pytest.raises(ValidationError, match=r"'plane' is not a registered objective; did you mean 'plain'\?"):
        M3Config(objective="plane")
    with pytest.raises(ValidationError, match=r"objective=plain has no setting objective_settings.scal; did you mean 'scale'\?"):
        M3Config(objective="plain", objective_settings={"scal": 1})
    with pytest.raises(ValidationError, match=r"objective_settings.scale\n.*less than or equal to 100"):
        M3Config(objective="plain", objective_settings={"scale": 101})
    with pytest.raises(ValidationError, match=r"objective=m3 has no setting objective_settings.scale \(it has none\)"):
        M3Config(objective_settings={"scale": 1})
    plan = Plan()
    check_routes(plan, {"general": {"letter": 1.0, "letters": 1.0}}, {"general"}, Inputs({}))
    assert [refusal.what for refusal in plan.refusals] == ["rewards.general names the verifier 'letter'; did you mean 'letters'?"]


def test_another_version_of_the_package_is_another_run(package):
    config = M3Config(**SETTINGS, algorithm="reinforce", objective="plain")
    before = stage.external_digests(config)
    assert {"losses:reinforce", "rewards:letters", "objectives:plain"} <= before.keys()
    assert not any(name.startswith("losses:") for name in stage.external_digests(M3Config())), "ours are the stage's"
    package("2")
    after = stage.external_digests(config)
    assert {name for name in before if before[name] != after[name]} == {"losses:reinforce", "rewards:letters", "objectives:plain"}


def test_a_reward_gets_the_rows_of_its_replies_and_may_leave_one_unscored():
    calls = []

    def noted(rows, replies):
        calls.append([row.id for row in rows])
        if len(rows) > 1:
            raise ZeroDivisionError
        return [None if rows[0].id == "b" else 1.0]

    verifiers = {"noted": RegisteredReward("noted", noted)} | {name: rule_verifier(name) for name in ("format", "language")}
    rewards = TaskRewards({"general": {"noted": 1.0}}, verifiers, FormatSettings(), LanguageSettings(mode="off"), 0.5)
    scored = rewards.score([Row(i, "general", [{"role": "user", "content": "q"}]) for i in "ab"], ["<think>t</think>same"] * 2)
    assert calls == [["a", "b"], ["a"], ["b"]], "a batch that fails is scored one by one"
    assert scored.correct == [True, None] and "the reward 'noted' returned None" in scored.verdicts[1]["noted"].error


def test_losses_are_listed_in_the_package_and_read_without_torch():
    names = {"bnpo", "cispo", "cpgd", "dapo", "dr_grpo", "grpo", "gspo", "luspo", "sapo", "vespo"}
    assert names <= set(registry.entries("safework.losses"))
    assert {"m3", "efficient", "search"} <= set(registry.entries("safework.objectives"))
    for name in names - {"cpgd"}:
        loss = RlConfig(algorithm=name).policy_loss
        assert isinstance(loss, TrlLoss) and loss.arguments()["loss_type"] == ("grpo" if name == "gspo" else name)
    code = f"import sys; from safework_rl.m3.config import M3Config; [M3Config(algorithm=n) for n in {sorted(names)}]; "
    done = subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_settings_of_an_objective_are_part_of_a_run_and_reach_it(package):
    config = M3Config(**SETTINGS, objective="plain", objective_settings={"scale": 2})
    assert config.model_dump(mode="json")["objective_settings"] == {"scale": 2.0}
    assert M3Config(**SETTINGS, objective="plain").objective_settings.model_dump() == {"scale": 10.0}, "its own default"
    made = registry.load_registered("safework.objectives", "plain", "objective")(config, None)
    assert made.advantages(torch.tensor([[0.0, 1.0]]), None, None).tolist() == [[-1.0, 1.0]]


def test_a_given_verifier_that_judges_no_drawn_task_is_refused(tiny_artifact):
    given = Inputs({"verifiers": {"safety": tiny_artifact, "value": tiny_artifact, "language": tiny_artifact}})
    plan = Plan()
    check_routes(plan, ROUTES, {"safety", "value"}, given)
    assert [str(refusal) for refusal in plan.refusals] == [
        "verifiers.value judges no task that is drawn\n  why: the rewards are safety: safety; value: correctness\n"
        "  do:  leave it out, or set rewards.TASK={value: 1} for its task"
    ]
    plan = Plan()
    check_routes(plan, ROUTES | {"value": {"value": 1.0}}, {"safety", "value"}, given)
    assert not plan.refusals
