"""Rules by name: parameters, other packages' rules, what a digest rests on, the bound on size, and versions that say the truth."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from rule_sources import TABLE, own_rules, recorded, sources
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.registry import entries
from safework_cli.verifiers import Exchange, Verdict
from safework_cli.verifiers.contract import UNPARSED
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.rules import check_golds, registry, rule_digest, rule_digests, rule_names, rule_verifier
from safework_cli.verifiers.rules.registry import MAX_GOLD_CHARACTERS, MAX_REPLY_CHARACTERS, RuleText, parse_rule

UNITS = """
from typing import Annotated
from pydantic import Field
from safework_cli.verifiers.contract import Verdict

class UnitsRule:
    name = "units"
    version = 3
    libraries = ("packaging",)

    def __init__(self, unit: str = "km", tolerance: Annotated[float, Field(ge=0, le=1)] = 0.5):
        self.unit, self.tolerance = unit, tolerance

    def judge(self, exchanges):
        return [Verdict(float(self.unit in e.final), str(self.tolerance)) for e in exchanges]

class Nameless:
    def judge(self, exchanges):
        return []
"""


def exchange(reply: str, answer: str | None = None, **meta: object) -> Exchange:
    return Exchange([{"role": "user", "content": "How far?"}], reply, answer, None, dict(meta))


def forget() -> None:
    for cached in (entries, registry.rule_class, registry._parameters_model, registry._made):
        cached.cache_clear()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a distribution on the path that brings a module of rules, as a package that pip installed would be."""

    def installed(**entries: str) -> None:
        (tmp_path / "far_rules.py").write_text(UNITS)
        info = tmp_path / "far_rules-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far-rules\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[safework.rules]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
        monkeypatch.syspath_prepend(str(tmp_path))
        forget()

    yield installed
    monkeypatch.undo()
    sys.modules.pop("far_rules", None)
    forget()


def test_another_packages_rule_is_found_made_and_judges(install):
    install(units="far_rules:UnitsRule")
    assert "units" in rule_names()
    rule = load_verifier("rule:units{unit: m, tolerance: 0.25}")
    assert rule.judge([exchange("5 m"), exchange("5 ft")]) == [Verdict(1.0, "0.25"), Verdict(0.0, "0.25")]
    assert rule_verifier("units").judge([exchange("5 km")]) == [Verdict(1.0, "0.5")]


def test_one_spelling_for_every_way_to_name_a_rule(install):
    install(units="far_rules:UnitsRule")
    spellings = ["units{unit: m, tolerance: 1}", "rule:units{tolerance: 1.0, unit: m}", {"units": {"unit": "m", "tolerance": 1}}]
    assert {str(parse_rule(one)) for one in spellings} == {'units{tolerance: 1.0, unit: "m"}'}
    assert rule_verifier(spellings[0]) is rule_verifier(spellings[2])  # one object: a rule may own a process

    class Settings(BaseModel):
        rules: list[RuleText]

    assert Settings(rules=["rule:choice", {"units": {"unit": "m"}}]).rules == ["choice", 'units{unit: "m"}']  # type: ignore[list-item]
    with pytest.raises(ValidationError, match="did you mean 'choice'"):
        Settings(rules=["choise"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("units{tolerance: 2}", "less than or equal to 1"),
        ("units{tolerance: .nan}", "finite"),
        ("units{tolerance: many}", "valid number"),
        ("units{unitt: m}", "did you mean 'unit'"),
        ("units{unit: m", "units"),
        ("units{1}", "units"),
        ("choice{first: true}", "no parameters"),
        (7, "does not name a rule"),
        ({"units": {}, "choice": {}}, "does not name a rule"),
        ({"units": 3}, "not a mapping"),
    ],
)
def test_parameters_are_checked(install, text, words):
    install(units="far_rules:UnitsRule")
    with pytest.raises(ConfigError) as caught:
        parse_rule(text)
    assert words in " ".join((caught.value.what, caught.value.why, caught.value.do))


def test_two_packages_cannot_claim_one_name(install):
    install(choice="far_rules:UnitsRule")
    with pytest.raises(ConfigError, match="two rules are called 'choice': .*far_rules:UnitsRule"):
        rule_verifier("choice")
    assert rule_verifier("exact").judge([exchange("a", "a")])[0].score == 1.0  # the others can be used


@pytest.mark.parametrize(("entry", "words"), [("far_rules:Nameless", "lacks name, version"), ("far_rules:Gone", "cannot be loaded")])
def test_what_is_not_a_rule_is_named(install, entry, words):
    install(units=entry)
    with pytest.raises(ConfigError) as caught:
        rule_verifier("units")
    assert words in f"{caught.value.what} {caught.value.why}"


def test_a_rule_is_registered_by_one_line_of_pyproject():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    lines = pyproject["project"]["entry-points"]["safework.rules"]
    assert {name: entry.value for name, entry in own_rules().items()} == lines
    for name, value in lines.items():
        assert name == registry.rule_class(name).name and f"{registry.rule_class(name).__module__}:" in value


# --- digests


def test_a_digest_rests_on_version_parameters_libraries_and_the_reply_parser(install, monkeypatch):
    install(units="far_rules:UnitsRule")
    import far_rules

    first = rule_digest("units")
    assert rule_digest("rule:units{unit: km}") == first  # the default, written out
    assert rule_digest("units{unit: m}") != first
    for target, name, value in (
        (far_rules.UnitsRule, "version", 4),
        (registry, "_version_of", lambda library: "99"),
        (registry, "REPLY_FORMAT_VERSION", -1),
        (registry, "MAX_REPLY_CHARACTERS", 5),
        (far_rules.UnitsRule, "rests_on", ("choice",)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, value, raising=name != "rests_on")
            assert rule_digest("units") != first, name
    assert rule_digest("units") == first
    assert rule_digests(["rule:units{unit: m}", "choice"]).keys() == {'rule:units{unit: "m"}', "rule:choice"}


def test_the_digest_of_correctness_follows_the_rules_that_it_calls(monkeypatch):
    before = rule_digest("correctness")
    monkeypatch.setattr(registry.rule_class("choice"), "version", 999)
    assert rule_digest("correctness") != before


def test_a_changed_source_has_a_new_version():
    """A rule that judges otherwise under the same version would make old evaluations look comparable."""
    table = recorded()
    assert table.keys() == {*own_rules(), "reply parser"}, f"python {TABLE.with_name('rule_sources.py')}"
    for name, (version, digest) in sources().items():
        then, known = table[name]
        if digest != known:
            assert version > then, (
                f"the source of '{name}' changed and its version is still {version}. Raise it (class attribute `version`; for the reply "
                f"parser REPLY_FORMAT_VERSION) and run `python tests/rule_sources.py`. Where no verdict can have changed, "
                f"`python tests/rule_sources.py --same-verdicts {name.replace(' ', '-')}` says so."
            )
            pytest.fail(f"the version of '{name}' was raised: run `python tests/rule_sources.py` to record it")


# --- the bound on size


@pytest.mark.parametrize("name", sorted(own_rules()))
def test_a_reply_over_the_bound_is_wrong_unread_in_every_rule(name, monkeypatch):
    rule = rule_verifier(name)
    monkeypatch.setattr(rule.rule, "judge", lambda exchanges: [Verdict(1.0) for _ in exchanges])
    monkeypatch.setattr(registry, "MAX_REPLY_CHARACTERS", 10)
    short, long = exchange("x" * 10, "B"), exchange("x" * 11, "B")
    assert rule.judge([long, short, long]) == [Verdict(0.0, UNPARSED), Verdict(1.0), Verdict(0.0, UNPARSED)]
    assert MAX_REPLY_CHARACTERS >= 100_000


def test_a_gold_answer_over_the_bound_is_an_error_and_refused_before_a_run():
    long = exchange("yes", "x" * (MAX_GOLD_CHARACTERS + 1), answer_type="exact")
    aliases = exchange("yes", "yes", answer_type="exact", aliases=["y" * MAX_GOLD_CHARACTERS])
    for bad in (long, aliases):
        (verdict,) = rule_verifier("correctness").judge([bad])
        assert verdict.score is None
        assert "compare at most" in (verdict.error or "")
        with pytest.raises(InputError, match="compare at most"):  # wherever it stands: 50 rows are tried, and every size is checked
            check_golds([exchange("", "yes", answer_type="exact")] * 120 + [bad] + [exchange("", "no", answer_type="exact")] * 120)
