"""Recipes, precedence, sources, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import Field

from safework_cli.core.artifacts.manifest import canonical_digest
from safework_cli.core.config import fingerprint, flatten, read_recipe, resolve
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.paths import user_path
from safework_cli.core.settings import Settings, StageConfig, cosmetic, ordered
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.core.yaml_text import parse_yaml


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


class RuledConfig(StageConfig):
    judge: str = ""
    """A rule."""


class Ruled(Toy):
    name = "ruled"
    Config = RuledConfig
    inputs = {}


class RoutedConfig(StageConfig):
    rewards: dict[str, dict[str, float]] = ordered(default_factory=dict, inner=True)
    """Routes."""


class Routed(Toy):
    name = "routed"
    Config = RoutedConfig
    inputs = {}


TOY, RULED, ROUTED = Toy(), Ruled(), Routed()


def recipe(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def given(*words: str, recipes=(), environ=None):
    return resolve(TOY, recipes, ["model=m", *words], environ or {})


def routed(*words: str, recipes=()):
    return resolve(ROUTED, recipes, words, {})


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


def test_a_rule_with_parameters_is_one_word():
    for word in ("rule:math{time_limit_seconds: 20}", "math{time_limit_seconds: 20, b: {c: 1}}"):
        assert resolve(RULED, (), [f"judge={word}"], {}).config.judge == word
        assert resolve(RULED, (), [], {"SAFEWORK_RULED__JUDGE": word}).config.judge == word
    with pytest.raises(ConfigError, match="lora: .*not 'r{a: 1}'"):
        given("lora=r{a: 1}")
    assert given("lora={r: 4}").config.lora.r == 4


def test_an_empty_mapping_removes_what_a_recipe_gave(tmp_path):
    first = recipe(tmp_path, "a.yaml", "rewards: {knowledge: {correctness: 1, refusal: 0.5}, safety: {refusal: 1}}\n")
    empty = routed("rewards.knowledge={}", recipes=[first])
    assert empty.config.rewards == {"knowledge": {}, "safety": {"refusal": 1.0}}
    assert empty.source_of("rewards.knowledge") == "command line"
    assert not any(key.startswith("rewards.knowledge.") for key in empty.sources)
    second = recipe(tmp_path, "b.yaml", "rewards: {knowledge: {}}\n")
    assert routed(recipes=[first, second]).config.rewards["knowledge"] == {}
    replaced = routed("rewards.knowledge={}", "rewards.knowledge.refusal=1", recipes=[first])
    assert replaced.config.rewards["knowledge"] == {"refusal": 1.0}


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
        ("learning_rate=-1", "learning_rate must be above 0, not -1"),
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
    with pytest.raises(ConfigError, match="SAFEWORK_TOI_RUN__EPOCHS is unknown"):
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


def test_the_order_of_a_route_is_part_of_the_fingerprint_and_that_of_other_mappings_is_not():
    def identity(text):
        return fingerprint(ROUTED, routed(f"rewards={text}").config, {})

    assert identity("{a: {x: 1, y: 2}}") != identity("{a: {y: 2, x: 1}}")
    assert identity("{a: {x: 1}, b: {y: 2}}") == identity("{b: {y: 2}, a: {x: 1}}")
    config = routed("rewards={a: {x: 1, y: 2}}").config
    before = {"stage": "routed", "version": ROUTED.version, "config": config.model_dump(mode="json", exclude={"slurm"}), "inputs": {}}
    for name in ("processes", "nodes", "timeout_minutes", "persistence_threshold", "device", "check_memory"):
        del before["config"]["launch"][name]
    assert fingerprint(ROUTED, config, {}) == canonical_digest(before)  # an ordered route: runs from before are found again


def test_flatten_keeps_empty_mappings():
    assert dict(flatten({"a": {"b": 1}, "c": {}})) == {"a.b": 1, "c": {}}


def test_yaml_is_read_by_the_core_schema_of_1_2():
    text = "[010, 0o10, 0x1F, +5, 1:30, 1_000, 0b1, 1e-5, .5, -.inf, 2024-01-01, yes, on, ~, true, !!str 5, '010']"
    assert parse_yaml(text, "here") == [
        10, 8, 31, 5, "1:30", "1_000", "0b1", 1e-5, 0.5, float("-inf"), "2024-01-01", "yes", "on", None, True, "5", "010",
    ]  # fmt: skip
    assert parse_yaml("%YAML 1.1\n---\na: 010", "here") == {"a": 10}


def test_merge_keys_take_a_mapping_or_several_and_own_keys_win():
    text = "base: &base {r: 8, alpha: 16}\none: {<<: *base, r: 4}\ntwo:\n  <<: [*base, {alpha: 1, dropout: 0.5}]\n"
    assert parse_yaml(text, "here") == {
        "base": {"r": 8, "alpha": 16},
        "one": {"r": 4, "alpha": 16},
        "two": {"r": 8, "alpha": 16, "dropout": 0.5},
    }


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("a: 1\nb: {{ value }}", 2, "placeholder"),
        ("a: 1\n? [b, c]\n: 2", 2, "a list stands where a key"),
        ("a: 1\n2: b", 2, "the key 2 is not text"),
        ("a: 1\na: 2", 2, "given twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", 1, "given twice"),
        ("a:\n  <<: 3", 2, "takes a mapping"),
        ("a: !!python/object:os.system x", 1, "not of YAML's core schema"),
        ("a: !!binary aGk=", 1, "not of YAML's core schema"),
        ("a: !!int x", 1, "not a whole number"),
        ("a: 1\nb: [1", 2, "expected"),
        ("a: 1\n---\nb: 1", 2, "a second document"),
        ("a: " + "9" * 5000, 1, "5,000 digits"),
        ("a: " + "[" * 200 + "]" * 200, 1, "nested deeper"),
        ("a: &a [*a]", 1, "alias of itself"),
        ("a: b\nc: *d", 2, "undefined alias"),
        ('a: "\\ud800"', 1, "surrogate"),
        ("a: &a {b: 1}\n" + "".join(f"k{i}: {i}\n" for i in range(100_000)), 2499, "more than 5,000"),
    ],
)
def test_yaml_that_no_setting_can_be_is_refused_by_its_line(text, line, why):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "r.yaml")
    assert f"line {line} " in error.value.what and why in error.value.why and error.value.do


def test_a_file_of_the_package_may_hold_more_values_than_a_recipe():
    text = "".join(f"k{i}: {i}\n" for i in range(5_000))
    with pytest.raises(ConfigError):
        parse_yaml(text, "r.yaml")
    assert len(parse_yaml(text, "part.yaml", most_values=20_000)) == 5_000
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, "part.yaml", most_values=7_000)
    assert "more than 7,000" in error.value.why


@pytest.mark.parametrize("merge", [False, True])
def test_aliases_that_multiply_are_refused(merge):
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 12):
        ten = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i}\n  <<: [{ten}]" if merge else f"a{i}: &a{i} [{ten}]")
    with pytest.raises(ConfigError, match="those that aliases repeat"):
        parse_yaml("\n".join(lines), "bomb.yaml")


def test_names_that_are_no_paths_of_this_machine_are_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="is not UTF-8(.|\n)*mv"):
        resolve(TOY, (), ["model=./caf\udce9"], {})
    with pytest.raises(ConfigError, match="is not UTF-8"):
        given("tasks=[caf\udce9]")
    with pytest.raises(InputError, match="is not UTF-8"):
        given(recipes=[tmp_path / "caf\udce9.yaml"])
    with pytest.raises(InputError, match="too long(.|\n)*300 bytes"):
        given(recipes=[tmp_path / ("r" * 300)])
    with pytest.raises(InputError, match="the user 'no-such-user' is unknown"):
        user_path("~no-such-user/data")
    with pytest.raises(InputError, match="NUL"):
        user_path("a\0b")
    (tmp_path / "latin.yaml").write_bytes(b"epochs: 1\ntasks: [caf\xe9]\n")
    with pytest.raises(ConfigError, match=r"latin.yaml, line 2: not UTF-8(.|\n)*iconv"):
        given(recipes=[tmp_path / "latin.yaml"])


def test_messages_stay_short_however_wrong_the_recipe_is(tmp_path):
    keys = "".join(f"unknown_{i}: {i}\n" for i in range(2000))
    with pytest.raises(ConfigError, match="and 1,990 more") as error:
        given(recipes=[recipe(tmp_path, "many.yaml", keys)])
    assert len(str(error.value)) < 3000
    with pytest.raises(ConfigError) as error:
        given("epochs=" + "'" + "9" * 4000 + "'")
    assert len(str(error.value)) < 400


def test_a_recipe_comes_through_a_pipe(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"max_steps: 3\n")
    os.close(writing)
    assert read_recipe(Path(f"/dev/fd/{reading}")).values == {"max_steps": 3}
    os.close(reading)
    with pytest.raises(ConfigError, match="has more than"):
        read_recipe(Path("/dev/zero"))
