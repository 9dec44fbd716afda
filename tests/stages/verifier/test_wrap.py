"""``safework verifier wrap``: released judges and served ones become verifiers, measured where there is data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from safework_cli.core.artifacts.external import path_artifact
from safework_cli.core.artifacts.payload import check_payload
from safework_cli.core.config import fingerprint
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs
from safework_cli.core.yaml_text import parse_yaml
from safework_cli.data.row import Message, Row, write_rows
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.load import load_verifier
from safework_verifier.wrap.config import WrapConfig
from safework_verifier.wrap.stage import stage
from served import Status, served

RECIPES = Path(__file__).resolve().parents[3] / "recipes" / "verifiers"
SERVED = {"kind": "openai", "url": "http://127.0.0.1/v1", "model": "m"}


REPLIES = {"Safe with refusal": "no no no", "Safe without risk": "yes yes", "Unsafe": "zzzz zzzz"}


def toy_rows() -> list[Row]:
    rows = []
    for i in range(150):
        label = list(REPLIES)[i % 3]
        messages = [Message(role="user", content=f"q{i}"), Message(role="assistant", content=REPLIES[label] + "." * (i % 5))]
        rows.append(Row(str(i), "safety", messages, harmful=label != "Safe without risk", meta={"label": label}))
    return rows


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "rows.parquet", toy_rows())
    return path_artifact(tmp_path / "data", "data", ("dataset",))


def run(work, inputs: Inputs, **settings):
    config = WrapConfig(**settings)
    plan = stage.plan(config, inputs)
    if plan.refusals:
        raise plan.refusals[0]
    return stage.run(config, inputs, work)


def test_a_released_judge_runs_by_a_recipe_and_is_measured(work, tiny_model, data):
    recipe = parse_yaml((RECIPES / "safework-rm-safety.yaml").read_text(), "recipe")
    inputs = Inputs({"model": path_artifact(tiny_model, str(tiny_model), ("model",)), "data": data})
    outcome = run(work, inputs, **recipe, max_length=1500, attack_rows=3)
    check_payload(work.output, "verifier")
    assert outcome.metrics["rows"]["train"] == 0 and outcome.metrics["accuracy"]["n"] > 20
    assert "Not trained here" in (work.output / "verifier_card.md").read_text()
    verifier = load_verifier(work.output)
    assert verifier.spec.code_reading == "whole" and verifier.spec.temperature != 1.0
    (verdict,) = verifier.judge([Exchange([Message(role="user", content="q")], "zzzz")])
    assert verdict.label in verifier.spec.labels and 0 < verdict.probability < 1


@pytest.mark.parametrize("engine", [{"kind": "vllm"}, {"attn_implementation": "eager"}])
def test_an_engine_that_would_not_act_is_refused(tiny_model, engine):
    inputs = Inputs({"model": path_artifact(tiny_model, str(tiny_model), ("model",))})
    (refusal,) = stage.plan(WrapConfig(engine=engine), inputs).refusals
    assert "does not act on a verifier" in refusal.what and next(iter(engine)) in refusal.what


def test_without_data_it_says_that_nothing_was_measured(work, tiny_model):
    outcome = run(
        work,
        Inputs({"model": path_artifact(tiny_model, str(tiny_model), ("model",))}),
        task="value",
        max_length=1500,
    )
    assert outcome.metrics == {} and "nothing was measured" in outcome.notes[0]


@pytest.mark.enable_socket
def test_a_served_judge_is_an_artifact_without_weights(work, data):
    def answer(request):
        content = request["messages"][-1]["content"]
        return "B" if "<response>no" in content else ("D" if "<response>zzzz" in content else "hm")

    with served(answer) as (url, seen):
        outcome = run(
            work, Inputs({"data": data}), engine={"kind": "openai", "url": url, "model": "judge", "max_retries": 0}, strict_template=""
        )
        check_payload(work.output, "verifier")
        rows = outcome.metrics["rows"]
        assert rows["unscored"] > 0 and rows["report"] + rows["unscored"] <= len(seen)
        confusion = json.loads((work.output / "confusion.json").read_text())
        unsafe = confusion["labels"].index("Unsafe")
        assert confusion["gold_by_predicted"][unsafe][unsafe] == sum(confusion["gold_by_predicted"][unsafe]) > 0
        (verdict,) = load_verifier(work.output).judge([Exchange([Message(role="user", content="q")], "zzzz")])
        assert (verdict.label, verdict.score) == ("Unsafe", 0.0)
    assert "judge at http://127.0.0.1" in (work.output / "verifier_card.md").read_text()
    assert outcome.failed_items == rows["unscored"] > outcome.tolerated_items and outcome.failed_gates == [], "a third got no label"


@pytest.mark.enable_socket
def test_a_judge_that_labels_a_few_rows_only_passes_no_gate(work, data):
    """Its accuracy is 1.0, over the rows that it happened to answer."""

    def answer(request):
        if "<response>zzzz" in request["messages"][-1]["content"]:
            return "D"
        raise Status(400, "busy")

    settings = {"strict_template": "", "min_accuracy": 0.9}
    with served(answer) as (url, _):
        engine = {"kind": "openai", "url": url, "model": "judge", "max_retries": 0}
        outcome = run(work, Inputs({"data": data}), engine=engine, **settings)
    assert outcome.metrics["accuracy"]["value"] == 1.0 and outcome.failed_items > outcome.tolerated_items
    assert "rows got no label, max_failed=0.05 allows" in outcome.failed_gates[0]
    made = SimpleNamespace(manifest=SimpleNamespace(metrics=outcome.metrics))
    again = stage.judge_again(WrapConfig(engine=engine, max_failed=1.0, **settings), made)
    assert again.failed_gates == [] and again.tolerated_items >= outcome.failed_items, "as tolerated by another max_failed"


@pytest.mark.enable_socket
def test_a_judge_that_never_gives_a_label_is_refused(work, data):
    with served(lambda request: "I would rather not") as (url, _), pytest.raises(InputError, match="judged none of"):
        run(work, Inputs({"data": data}), engine={"kind": "openai", "url": url, "model": "m", "max_retries": 0})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "either model=REF or engine.kind=openai"),
        ({"engine": SERVED, "min_accuracy": 0.95}, "min_accuracy=0.95 cannot be checked"),
        ({"engine": SERVED, "template": "no places"}, "template must hold"),
        (
            {"engine": SERVED, "labels": {"good": {"code": "g", "score": 1.0}}},
            "without a template",
        ),
        (
            {
                "engine": SERVED,
                "labels": {"good": {"code": "g", "score": 1.0}},
                "template": "{query} {response}",
            },
            "two or more",
        ),
    ],
)
def test_impossible_judges_are_refused_by_the_plan(settings, why):
    plan = stage.plan(WrapConfig.model_validate(settings), Inputs({}))
    assert why in str(plan.refusals[0])


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.yaml")))
def test_the_recipes_are_whole(name):
    from safework_data.build.stage import BuildStage
    from safework_verifier.rollouts.config import RolloutsConfig
    from safework_verifier.train.config import VerifierTrainConfig
    from safework_verifier.values.config import ValuesConfig

    recipe = parse_yaml((RECIPES / name).read_text(), name)
    recipe.pop("name", None)
    if "head_learning_rate" in recipe:
        ValuesConfig.model_validate(recipe)
    elif "continuations" in recipe:
        RolloutsConfig.model_validate(recipe)
    elif "sources" in recipe:
        BuildStage.Config.model_validate(recipe)
    elif "num_train_epochs" in recipe:
        VerifierTrainConfig.model_validate(recipe).spec()
    else:
        WrapConfig.model_validate(recipe).spec()


def test_a_served_judge_is_another_artifact_with_another_setting_of_the_server():
    def identity(**engine) -> str:
        config = WrapConfig.model_validate({"engine": {"kind": "openai", "url": "http://127.0.0.1:9/v1", "model": "m", **engine}})
        return fingerprint(stage, config, stage.external_digests(config))

    assert identity(concurrency=2) != identity()  # verifier.json holds it
    assert identity(concurrency=8) == identity()
