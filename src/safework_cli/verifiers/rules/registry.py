"""Rules by name: registered as entry points, made with checked parameters, limited in what they read, identified by version.

A rule is a class with

    name       its name in settings and metrics
    version    an integer, raised whenever it could give another verdict on the same exchange
    judge      as in ``Verifier``
    libraries  distributions that its verdicts depend on, in addition to the standard library (optional)
    gold_problem
               exchange → why no reply can be compared with its gold answer, or None; cheap: it runs on every row (optional)
    rests_on   other rules that it calls (optional)

and parameters: the keyword arguments of its constructor, annotated with types and, by ``Annotated[…, Field(gt=0)]``, with bounds. A rule
is added by one file and one entry point of the group ``safework.rules``, ours in the same way as another package's:

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

from safework_cli.core.artifacts.external import RULE_PREFIX
from safework_cli.core.errors import ConfigError, nearest
from safework_cli.core.registry import entries
from safework_cli.core.yaml_text import parse_yaml
from safework_cli.data.reply import REPLY_FORMAT_VERSION
from safework_cli.verifiers.contract import UNPARSED, Exchange, Verdict

GROUP = "safework.rules"
MAX_REPLY_CHARACTERS = 400_000
"""Of a reply with its thought: about 100,000 tokens of English, more than reasoning models are sampled to. Every rule scores a longer one 0
(``UNPARSED``) without reading it: a verdict must not depend on the load of the machine, so the limit is on size and not on time."""
MAX_GOLD_CHARACTERS = 20_000
"""Of a gold answer and its aliases together. A longer one is an error of the row: ``data build`` drops it by name, ``check_golds``
refuses it."""


@runtime_checkable
class Rule(Protocol):
    """What a rule's class must have; the module's docstring lists what is optional."""

    name: str
    version: int

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]: ...


class BoundedRule:
    """A rule as stages use it: it reads no reply above ``MAX_REPLY_CHARACTERS``, and has a digest.

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
        problem_of = getattr(self.rule, "gold_problem", None)
        return problem_of(exchange) if problem_of is not None else None

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        refused = [over_bound(exchange) for exchange in exchanges]
        read = [exchange for exchange, verdict in zip(exchanges, refused, strict=True) if verdict is None]
        judged: Iterator[Verdict] = iter(self.rule.judge(read) if read else [])
        return [verdict if verdict is not None else next(judged) for verdict in refused]


def over_bound(exchange: Exchange) -> Verdict | None:
    """The verdict on an exchange that is too long: an error for the gold answer, 0 for the reply; None for other exchanges."""
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


def rule_names() -> list[str]:
    """The name of every rule that is registered, sorted."""
    return list(entries(GROUP))


@cache
def rule_class(name: str) -> type[Any]:
    """The class of a rule.

    Raises:
        ConfigError: the rule is unknown (the nearest is named), its class cannot be imported, or it is not a rule.
    """
    known = entries(GROUP)
    if name not in known:
        raise ConfigError(f"unknown rule '{name}'{nearest(name, known)}", "", f"one of: {', '.join(known)}")
    entry = known[name]
    if others := {e.value for e in metadata.entry_points(group=GROUP, name=name)} - {entry.value}:
        raise ConfigError(
            f"two rules are called '{name}': {entry.value} and {min(others)}",
            "which of them a setting means is not guessed",
            "rename the entry point of one of the packages, or uninstall it",
        )
    try:
        made = entry.load()
    except Exception as error:  # another package's code may raise anything
        what = f"the rule '{name}' cannot be loaded from {entry.value}"
        raise ConfigError(what, f"{type(error).__name__}: {error}", "fix or uninstall its package") from error
    version = getattr(made, "version", None)
    lacks = [part for part in ("name", "version", "judge") if not hasattr(made, part)]
    if lacks or made.name != name or not isinstance(version, int) or isinstance(version, bool):
        why = f"its class lacks {', '.join(lacks)}" if lacks else f"its class has name={made.name!r} and version={version!r}"
        raise ConfigError(f"{entry.value} is not a rule called '{name}'", why, f"give it name = '{name}' and an integer version")
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
    name = str(name).strip().removeprefix(RULE_PREFIX).strip()
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
    return text.strip().removeprefix(RULE_PREFIX).partition("{")[0].strip()


def names_rule(text: str) -> bool:
    """Whether a text names one of the rules, whatever the parameters after the name say."""
    return bare_name(text) in entries(GROUP)


def rule_identity(text: Any) -> dict[str, Any]:
    """What a rule's verdicts depend on: its version and parameters, the versions of the libraries it names, of the reply parser, and of the
    rules that it calls. Runs with equal identities give equal verdicts; comments and refactoring do not change it.

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
    return {f"{RULE_PREFIX}{parse_rule(text)}": rule_digest(text) for text in texts}


def _version_of(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
