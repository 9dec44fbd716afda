"""Recipes, precedence, sources, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from safework_cli.config import fingerprint, flatten, resolve
from safework_cli.errors import ConfigError, InputError
from safework_cli.stage import Inputs, Outcome, Plan, Settings, Slot, Stage, StageConfig, WorkDir, cosmetic


class Lora(Settings):
    r: int = 8
    """Rank."""


class ToyConfig(StageConfig):
    learning_rate: float = Field(1e-5, gt=0)
    """Rate."""
    epochs: int = 1
    """Passes."""
    tasks: list[str] = Field(default_factory=lambda: ["safety"])
    """Tasks."""
    lora: Lora | None = None
    """Adapters."""
    logging_steps: int = cosmetic(1)
    """Steps between lines."""


class Toy(Stage):
    name = "toy run"
    summary = "A toy."
    Config = ToyConfig
    inputs = {"model": Slot(("model",), "a model"), "verifiers": Slot(("verifier",), "judges", optional=True, many=True)}
    output = "model"

    def plan(self, config, inputs: Inputs) -> Plan:
        return Plan()

    def run(self, config, inputs: Inputs, work: WorkDir) -> Outcome:
        return Outcome()


TOY = Toy()


def recipe(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def given(*words: str, recipes=(), environ=None):
    return resolve(TOY, recipes, ["model=m", *words], environ or {})


def test_precedence_is_defaults_recipes_environment_command_line(tmp_path):
    first = recipe(tmp_path, "a.yaml", "learning_rate: 0.1\nepochs: 2\nlora: {r: 4}\n")
    second = recipe(tmp_path, "b.yaml", "epochs: 3\n")
    found = given("epochs=5", recipes=[first, second], environ={"SAFEWORK_TOY_RUN__EPOCHS": "4", "SAFEWORK_TOY_RUN__LOGGING_STEPS": "7"})
    assert (found.config.learning_rate, found.config.epochs, found.config.lora.r, found.config.logging_steps) == (0.1, 5, 4, 7)
    sources = {key: source for key, _, source in found.rows()}
    assert sources["learning_rate"] == str(first)
    assert sources["epochs"] == "command line"
    assert sources["logging_steps"] == "$SAFEWORK_TOY_RUN__LOGGING_STEPS"
    assert sources["seed"] == "default"
    without = given(recipes=[first, second])
    assert without.config.epochs == 3 and without.source_of("epochs") == str(second)


def test_mappings_merge_and_lists_are_replaced(tmp_path):
    path = recipe(tmp_path, "a.yaml", "lora: {r: 4}\ntasks: [a, b]\n")
    assert given("tasks=[c]", "lora.r=16", recipes=[path]).config.model_dump()["tasks"] == ["c"]
    assert given("lora.r=16", recipes=[path]).config.lora.r == 16


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", "1e-05"])
def test_a_number_in_scientific_notation_is_a_number(text, tmp_path):
    assert given(f"learning_rate={text}").config.learning_rate == pytest.approx(1e-5)
    assert given(recipes=[recipe(tmp_path, "a.yaml", f"learning_rate: {text}\n")]).config.learning_rate == pytest.approx(1e-5)


def test_words_like_no_and_on_stay_words(tmp_path):
    assert given(recipes=[recipe(tmp_path, "a.yaml", "tasks: [no, on, yes]\n")]).config.tasks == ["no", "on", "yes"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rte=1", "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ("lora.rank=1", "unknown key 'lora.rank'"),
        ("learning_rate=fast", "learning_rate must be a number, not 'fast'"),
        ("learning_rate=true", "learning_rate must be a number, not True"),
        ("epochs=1.5", "epochs must be a whole number, not 1.5"),
        ("tasks=a", "tasks must be a list, not 'a'"),
        ("learning_rate=-1", "learning_rate: Input should be greater than 0, not -1"),
        ("verifiers=x", "verifiers takes several artifacts"),
        ("epochs", "'epochs' is not key=value"),
    ],
)
def test_what_is_wrong_is_named(word, message):
    with pytest.raises(ConfigError) as caught:
        given(word)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_mistake_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        given("learning_rate=fast", "epochz=3")
    assert "learning_rate" in str(caught.value) and "epochz" in str(caught.value)


def test_a_variable_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="SAFEWORK_TOI_RUN__EPOCHS means nothing"):
        given(environ={"SAFEWORK_TOI_RUN__EPOCHS": "3"})
    with pytest.raises(ConfigError, match="SAFEWORK_STROE.*did you mean 'SAFEWORK_STORE'"):
        given(environ={"SAFEWORK_STROE": "/x"})


def test_a_key_given_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'epochs' is given twice"):
        given(recipes=[recipe(tmp_path, "a.yaml", "epochs: 1\nepochs: 2\n")])


def test_a_missing_recipe_names_the_nearest(tmp_path):
    recipe(tmp_path, "safety.yaml", "")
    with pytest.raises(InputError, match="did you mean 'safety.yaml'"):
        given(recipes=[tmp_path / "safty.yaml"])


def test_a_required_input_is_asked_for():
    with pytest.raises(InputError, match="needs model="):
        resolve(TOY, [], [], {})


def test_an_unexpanded_shell_variable_is_refused():
    with pytest.raises(ConfigError, match="shell variable"):
        resolve(TOY, [], ["model=$BASE"], {})


def test_yaml_cannot_build_objects(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        given(recipes=[recipe(tmp_path, "a.yaml", "epochs: !!python/object/apply:os.getpid []\n")])


def test_the_fingerprint_changes_with_the_result_and_with_nothing_else():
    base = given().config
    same = given("logging_steps=50").config
    other = given("seed=1").config
    assert fingerprint(TOY, base, {"model": "d"}) == fingerprint(TOY, same, {"model": "d"})
    assert fingerprint(TOY, base, {"model": "d"}) != fingerprint(TOY, other, {"model": "d"})
    assert fingerprint(TOY, base, {"model": "d"}) != fingerprint(TOY, base, {"model": "e"})


def test_flatten_keeps_empty_mappings():
    assert dict(flatten({"a": {"b": 1}, "c": {}})) == {"a.b": 1, "c": {}}
