"""YAML 1.2 as recipes and settings use it: ruamel.yaml parses, the core schema (https://yaml.org/spec/1.2.2/#103-core-schema) says what a
plain word is, and what cannot be a setting is refused with its line.

ruamel.yaml's own constructors are left out: they read dates, binaries, `1_000` and `0b1`, share the objects of aliases, and follow a
``%YAML 1.1`` line back to octal numbers and to `yes`. PyYAML knows YAML 1.1 only.
"""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from safework_cli.core.errors import ConfigError

MAX_DEPTH = 50
MAX_VALUES = 5_000
"""Keys and values of one recipe or setting, those that aliases repeat counted each time."""
_CORE = "tag:yaml.org,2002:"
_SCHEMA = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")),
    ("merge", re.compile("<<")),
)


class _Refused(Exception):
    """A text that is YAML and no setting: what is wrong, at which node, what to do."""

    def __init__(self, line: int, why: str, do: str = "correct the YAML there"):
        self.line, self.why, self.do = line, why, do


class _CoreResolver(VersionedResolver):
    """What a plain scalar is by the core schema, and `<<` (of YAML 1.1, and widely used)."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            for name, pattern in _SCHEMA:
                if pattern.fullmatch(value):
                    return Tag(suffix=_CORE + name)
        return {ScalarNode: self.DEFAULT_SCALAR_TAG, SequenceNode: self.DEFAULT_SEQUENCE_TAG, MappingNode: self.DEFAULT_MAPPING_TAG}[kind]


class _BoundedComposer(Composer):
    """Stops at a text of too many values before it has been read to its end."""

    def __init__(self, loader: Any = None):
        super().__init__(loader)
        self.count = 0
        self.most: int = loader.most_values
        self.warn_double_anchors = False  # the later one holds from there on, as YAML says

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count += 1
        if self.count > self.most:
            raise _too_many(self.parser.peek_event().start_mark.line, self.most)
        return super().compose_node(parent, index)


def dump_yaml(value: Any) -> str:
    """Plain values (mappings, lists, text, numbers) as YAML for people, in the order in which they are."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 140
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def parse_yaml(text: str, where: str, *, most_values: int = MAX_VALUES) -> Any:
    """The value of one YAML document, of plain Python types.

    Args:
        where: the file or the word of the command line, for messages.
        most_values: keys and values that the text may hold; more than the default only for files of the package.

    Raises:
        ConfigError: the text is not YAML, or holds what no setting can be (a key that is not text or comes twice, an unknown tag, more than
            ``most_values`` values, nesting deeper than ``MAX_DEPTH``), with its line.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of a command line that are not UTF-8
        raise ConfigError(
            f"{where} is not UTF-8", "settings and the names of files are", "type it in UTF-8; rename the file where one is named"
        )
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer, yaml.Resolver, yaml.max_depth = _BoundedComposer, _CoreResolver, MAX_DEPTH
    yaml.most_values = most_values  # type: ignore[attr-defined]  # read by the composer
    try:
        node = yaml.compose(text)
        return None if node is None else _Build(most_values).value(node, 0)
    except _Refused as refused:
        raise ConfigError(f"{where}, line {refused.line + 1} cannot be read", refused.why, refused.do) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}, line {mark.line + 1}" if mark else where
        why = f"nested deeper than {MAX_DEPTH}" if "maximum depth" in str(error.problem) else str(error.problem or error.context)
        why = "a second document begins here" if "another document" in why else why
        raise ConfigError(f"{place} cannot be read", why, "correct the YAML there") from None
    except (YAMLError, RecursionError, ValueError, AssertionError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConfigError(f"{where} cannot be read", why, "correct the YAML there") from None


class _Build:
    """Python values of nodes. Aliases are copied out, so that no two settings share an object; what that makes of a text is bounded."""

    def __init__(self, most: int) -> None:
        self.count, self.most = 0, most

    def value(self, node: Node, depth: int) -> Any:
        self.count += 1
        if self.count > self.most:
            raise _too_many(node.start_mark.line, self.most)
        if depth > MAX_DEPTH:
            raise _Refused(node.start_mark.line, f"nested deeper than {MAX_DEPTH}, or an alias of itself")
        kind = _kind(node)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, depth)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, ScalarNode):
            return _scalar(node, kind)
        raise _Refused(node.start_mark.line, f"the tag '{node.tag}' is not of YAML's core schema", "leave the tag out")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        seen_merge = False
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                kind = "mapping" if isinstance(key_node, MappingNode) else "list"
                why = f"a {kind} stands where a key is expected"
                if kind == "mapping" and key_node.flow_style:
                    raise _Refused(key_node.start_mark.line, f"{why}: {{{{ … }}}} is a template's placeholder", "fill it in, or quote it")
                raise _Refused(key_node.start_mark.line, why, "write `key: value`; quote a text that begins with [ or {")
            if _kind(key_node) == "merge" and not seen_merge:
                seen_merge = True
                for mapping in self._merged(value_node, depth):
                    merged = mapping | merged  # of several, the earlier wins
                continue
            key = "<<" if _kind(key_node) == "merge" else _scalar(key_node, _kind(key_node))
            if not isinstance(key, str):
                raise _Refused(key_node.start_mark.line, f"the key {key_node.value or 'null'} is not text", f'write "{key_node.value}":')
            if key in own or (key == "<<" and seen_merge):
                raise _Refused(key_node.start_mark.line, f"the key '{key}' is given twice", "leave one of them out")
            own[key] = self.value(value_node, depth + 1)
        return merged | own

    def _merged(self, node: Node, depth: int) -> list[dict[str, Any]]:
        items = node.value if isinstance(node, SequenceNode) else [node]
        if not all(isinstance(item, MappingNode) for item in items):
            raise _Refused(
                node.start_mark.line, "<< takes a mapping, or a list of mappings", "write <<: *NAME, with NAME's anchor on a mapping"
            )
        return [self.value(item, depth + 1) for item in items]


def _kind(node: Node) -> str:
    return str(node.tag).removeprefix(_CORE)


def _scalar(node: ScalarNode, kind: str) -> Any:
    text = node.value
    try:
        if kind == "str":
            text.encode()
            return text
        if kind == "null" and _matches(kind, text):
            return None
        if kind == "bool" and _matches(kind, text):
            return text.lower() == "true"
        if kind == "int" and _matches(kind, text):
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if kind == "float" and (_matches(kind, text) or _matches("int", text)):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except UnicodeEncodeError:
        raise _Refused(node.start_mark.line, "a lone surrogate, which no UTF-8 file can hold", "write the character itself") from None
    except ValueError:  # a number of more digits than Python converts
        raise _Refused(node.start_mark.line, f"a number of {len(text):,} digits") from None
    if kind == "merge":
        raise _Refused(node.start_mark.line, "<< is a key, and not a value", 'quote it: "<<"')
    if kind in dict(_SCHEMA):
        what = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "null"}[kind]
        raise _Refused(node.start_mark.line, f"{text[:60]!r} is not {what}", "leave the tag out, or correct the value")
    raise _Refused(node.start_mark.line, f"the tag '{node.tag}' is not of YAML's core schema", "leave the tag out")


def _matches(kind: str, text: str) -> bool:
    return bool(dict(_SCHEMA)[kind].fullmatch(text))


def _too_many(line: int, most: int) -> _Refused:
    return _Refused(line, f"more than {most:,} keys and values, those that aliases repeat included", "is it a data file?")
