"""Rules by name: found by entry point, made with checked parameters, bounded in what they read, and identified by version.

A rule is a class with

    name       what it is called in settings and metrics
    version    an integer, raised whenever it could give another verdict on the same exchange
    judge      as in ``Verifier``
    libraries  distributions that its verdicts rest on, beside the standard library (optional)
    gold_problem
               exchange → why no reply can be compared with its gold answer, or None; cheap, since every row is asked (optional)
    rests_on   other rules that it calls (optional)

and parameters: the keyword arguments of its constructor, annotated with types and, by ``Annotated[…, Field(gt=0)]``, with bounds. Another
package adds one by an entry point of the group ``safework.rules``:

    [project.entry-points."safework.rules"]
    units = "my_package.rules:UnitsRule"

Settings name a rule with or without parameters: ``math``, ``rule:math``, ``math{time_limit_seconds: 5}``, or, as YAML,
``{math: {time_limit_seconds: 5}}``. Torch-free; a rule's module is imported when the rule is first used.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Annotated, Any, Protocol, get_type_hints, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.yaml_text import parse_yaml
from safework_cli.data.reply import REPLY_FORMAT_VERSION
from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict

GROUP = "safework.rules"
PREFIX = "rule:"

MAX_REPLY_CHARACTERS = 400_000
"""Of a whole reply, thought included: about 100,000 tokens of English, above what reasoning models are sampled to. A longer one is wrong in
every rule (0, ``UNPARSED``), unread: a verdict must not depend on how busy the machine is, so the bound is on size and not on time."""
MAX_GOLD_CHARACTERS = 20_000
"""Of a gold answer and its aliases together. A longer one is an error of the row, which ``data build`` drops by name and ``check_golds``
refuses."""

BUILT_IN: dict[str, str] = {
    "choice": "safework_cli.verifiers.rules.choice:ChoiceRule",
    "constraints": "safework_cli.verifiers.rules.constraints:ConstraintsRule",
    "contains": "safework_cli.verifiers.rules.text:ContainsRule",
    "correctness": "safework_cli.verifiers.rules.correctness:CorrectnessRule",
    "exact": "safework_cli.verifiers.rules.text:ExactRule",
    "f1": "safework_cli.verifiers.rules.text:F1Rule",
    "format": "safework_cli.verifiers.rules.form:FormatRule",
    "language": "safework_cli.verifiers.rules.form:LanguageRule",
    "math": "safework_cli.verifiers.rules.mathematics:MathRule",
    "refusal": "safework_cli.verifiers.rules.refusal:RefusalRule",
}
"""The package's own, which its metadata lists too: here, they are there however the package was put on the path."""


@runtime_checkable
class Rule(Protocol):
    """What a rule's class must have; see the module's docstring for what it may have."""

    name: str
    version: int

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]: ...


class BoundedRule:
    """A rule as stages hold it: it reads no reply above ``MAX_REPLY_CHARACTERS``, and knows what identifies it.

    Attributes:
        name: the rule's.
        spec: name and parameters, as settings write them.
        rule: the rule itself.
    """

    def __init__(self, rule: Rule, spec: RuleSpec):
        self.rule, self.spec, self.name = rule, spec, rule.name

    @property
    def digest(self) -> str:
        return rule_digest(self.spec)

    def gold_problem(self, exchange: Exchange) -> str | None:
        """Why no reply can be compared with an exchange's gold answer, or None: it is too long, or the rule itself refuses it."""
        if (long := over_bound(exchange)) is not None and long.error is not None:
            return long.error
        asked = getattr(self.rule, "gold_problem", None)
        return asked(exchange) if asked is not None else None

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        refused = [over_bound(exchange) for exchange in exchanges]
        read = [exchange for exchange, verdict in zip(exchanges, refused, strict=True) if verdict is None]
        found: Iterator[Verdict] = iter(self.rule.judge(read) if read else [])
        return [verdict if verdict is not None else next(found) for verdict in refused]


def over_bound(exchange: Exchange) -> Verdict | None:
    """The verdict on an exchange that is too long to be read: an error where the gold answer is, 0 where the reply is. None otherwise."""
    aliases = exchange.meta.get("aliases")
    texts = [exchange.answer or "", *map(str, aliases if isinstance(aliases, list) else ())]
    if (gold := sum(map(len, texts))) > MAX_GOLD_CHARACTERS:
        return Verdict(
            None, error=f"the gold answer and its aliases hold {gold:,} characters; rules compare at most {MAX_GOLD_CHARACTERS:,}"
        )
    return Verdict(0.0, UNPARSED) if len(exchange.reply) > MAX_REPLY_CHARACTERS else None


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule as settings name it.

    Attributes:
        name: of the rule.
        parameters: those that were given; the others have their defaults.
    """

    name: str
    parameters: Mapping[str, Any]

    def __str__(self) -> str:
        given = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(self.parameters.items()))
        return f"{self.name}{{{given}}}" if given else self.name


@cache
def _entries() -> dict[str, metadata.EntryPoint]:
    """Name → entry point: ours, and those of installed packages. Raises ConfigError where two packages claim one name."""
    found = {name: metadata.EntryPoint(name, value, GROUP) for name, value in BUILT_IN.items()}
    for entry in metadata.entry_points(group=GROUP):
        known = found.get(entry.name)
        if known is not None and known.value != entry.value and not entry.value.startswith("safework_cli."):
            raise ConfigError(
                f"two rules are called '{entry.name}': {known.value} and {entry.value}",
                "which of them a setting means is not guessed",
                "rename the entry point of one of the packages, or uninstall it",
            )
        found.setdefault(entry.name, entry)
    return found


def rule_names() -> list[str]:
    """Every rule's name, ours and others', sorted."""
    return sorted(_entries())


@cache
def rule_class(name: str) -> type[Any]:
    """The class of a rule.

    Raises:
        ConfigError: there is no such rule (names the nearest), or its class cannot be imported or is not a rule.
    """
    entries = _entries()
    if name not in entries:
        raise ConfigError(f"there is no rule verifier '{name}'{nearest(name, entries)}", "", f"one of: {', '.join(rule_names())}")
    try:
        made = entries[name].load()
    except Exception as error:  # another package's code: anything may come
        what = f"the rule '{name}' cannot be loaded from {entries[name].value}"
        raise ConfigError(what, f"{type(error).__name__}: {error}", "fix or uninstall the package that brings it") from error
    version = getattr(made, "version", None)
    lacks = [part for part in ("name", "version", "judge") if not hasattr(made, part)]
    if lacks or made.name != name or not isinstance(version, int) or isinstance(version, bool):
        why = f"its class lacks {', '.join(lacks)}" if lacks else f"its class has name={made.name!r} and version={version!r}"
        raise ConfigError(f"{entries[name].value} is not a rule called '{name}'", why, f"give it name = '{name}' and an integer version")
    return made


@cache
def _parameters_model(name: str) -> type[BaseModel]:
    """The parameters of a rule, checked: the keyword arguments of its constructor with their annotations."""
    made = rule_class(name)
    hints = get_type_hints(made.__init__, include_extras=True, globalns=vars(sys.modules[made.__module__]))
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(made).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    return create_model(f"{made.__name__}Parameters", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def parse_rule(text: Any) -> RuleSpec:
    """A rule as settings name it: ``math``, ``rule:math``, ``math{time_limit_seconds: 5}`` or ``{math: {time_limit_seconds: 5}}``.

    Raises:
        ConfigError: it is not of this form, the rule does not exist, or a parameter is unknown or out of its bounds.
    """
    if isinstance(text, RuleSpec):
        return text
    if isinstance(text, Mapping) and len(text) == 1:
        ((name, given),) = text.items()
    elif isinstance(text, str):
        name, brace, rest = text.strip().partition("{")
        given = parse_yaml(brace + rest, text) if brace else {}
    else:
        raise ConfigError(f"{text!r} does not name a rule", "", "write NAME, NAME{parameter: value}, or {NAME: {parameter: value}}")
    name = str(name).strip().removeprefix(PREFIX).strip()
    rule_class(name)
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise ConfigError(f"the parameters of the rule '{name}' are not a mapping", "", f"write {name}{{parameter: value}}")
    model = _parameters_model(name)
    try:
        values = model.model_validate(dict(given)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        where, known = ".".join(map(str, first["loc"])), list(model.model_fields)
        why = f"it has {', '.join(known)}" if known else "it has no parameters"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"the rule '{name}' has no parameter '{where}'{nearest(where, known)}", why) from None
        raise ConfigError(f"the rule '{name}', parameter '{where}': {first['msg']}", "", why) from None
    return RuleSpec(name, {key: values[key] for key in given})


def _normal(value: Any) -> Any:
    try:
        return str(parse_rule(value)) if isinstance(value, str | Mapping) else value
    except ConfigError as error:
        raise ValueError(": ".join(filter(None, (error.what, error.why)))) from None


RuleText = Annotated[str, BeforeValidator(_normal)]
"""A setting that names a rule: checked when the configuration is read, and normalised to one spelling."""


@cache
def _made(text: str) -> BoundedRule:
    spec = parse_rule(text)
    return BoundedRule(rule_class(spec.name)(**spec.parameters), spec)


def rule_verifier(text: Any) -> BoundedRule:
    """The rule that a setting names, one object for the process and the parameters (the mathematics rule owns a worker process).

    Args:
        text: as ``parse_rule`` takes it.

    Raises:
        ConfigError: as ``parse_rule``.
    """
    return _made(str(parse_rule(text)))


def bare_name(text: str) -> str:
    """The name in a rule's setting, without ``rule:`` and parameters; of a text that names no rule, the text up to a brace."""
    return text.strip().removeprefix(PREFIX).partition("{")[0].strip()


def names_rule(text: str) -> bool:
    """Whether a text names one of the rules, whatever the parameters after the name say."""
    return bare_name(text) in _entries()


def rule_identity(text: Any) -> dict[str, Any]:
    """What a rule's verdicts rest on: its version and parameters, the versions of the libraries it names, of the reply parser, and of the
    rules that it calls. Two runs whose identities are equal judge alike; comments and refactoring do not change it.

    Raises:
        ConfigError: as ``parse_rule``.
    """
    spec = parse_rule(text)
    made = rule_class(spec.name)
    parameters = _parameters_model(spec.name).model_validate(dict(spec.parameters)).model_dump(mode="json")
    return {
        "rule": spec.name,
        "version": made.version,
        "parameters": parameters,
        "libraries": {library: _version_of(library) for library in sorted(getattr(made, "libraries", ()))},
        "reply_format": REPLY_FORMAT_VERSION,
        "bounds": [MAX_REPLY_CHARACTERS, MAX_GOLD_CHARACTERS],
        "rests_on": [rule_identity(other) for other in getattr(made, "rests_on", ())],
    }


def rule_digest(text: Any) -> str:
    """sha256 of ``rule_identity``: part of fingerprints, and of what evaluations must share to be compared."""
    return hashlib.sha256(json.dumps(rule_identity(text), sort_keys=True).encode()).hexdigest()


def rule_digests(texts: Sequence[Any]) -> dict[str, str]:
    """ "rule:NAME{…}" → digest, for the fingerprint of a stage that judges by these rules."""
    return {f"{PREFIX}{parse_rule(text)}": rule_digest(text) for text in texts}


def _version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
