"""The recorded version and source digest of every rule, and of the reply parser: ``python tests/rule_sources.py`` writes the table.

A digest is of the syntax tree without docstrings, over the rule's module and every other module of the rules that it imports or names as a
file: comments and layout do not count. A changed digest under an unchanged version is not written, unless ``--same-verdicts NAME`` says
that no verdict can have changed.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

from safework_cli.core.registry import entries  # noqa: E402
from safework_cli.data import reply  # noqa: E402
from safework_cli.verifiers.rules import registry  # noqa: E402

TABLE = Path(__file__).with_name("rule_versions.json")
PACKAGE = "safework_cli.verifiers.rules"
FRAME = {PACKAGE, f"{PACKAGE}.registry", f"{PACKAGE}.inputs"}
"""How rules are found, not how they judge."""


def recorded() -> dict[str, tuple[int, str]]:
    return {name: (version, digest) for name, (version, digest) in json.loads(TABLE.read_text()).items()}


def own_rules() -> dict[str, EntryPoint]:
    """Name → entry point of the rules of this repository."""
    return {name: entry for name, entry in entries(registry.GROUP).items() if entry.module.startswith(PACKAGE)}


def sources() -> dict[str, tuple[int, str]]:
    """Name → (version, digest of the source) as they are now."""
    found = {}
    for name, entry in own_rules().items():
        modules = sorted(_reached(entry.module, set()))
        texts = [f"{module}\n{_normalised(_tree(module))}" for module in modules]
        found[name] = (registry.rule_class(name).version, _digest(texts))
    return found | {
        "reply parser": (reply.REPLY_FORMAT_VERSION, _digest([_normalised(ast.Module(_used_by(reply.parse_reply.__name__), []))]))
    }


def _used_by(function: str) -> list[ast.stmt]:
    """A function of ``reply`` with all that it uses of the module, in the module's order."""
    tree = _tree(reply.__name__)
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {name.id: node for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    used, left = set[str](), [function]
    while left:
        if (name := left.pop()) not in used and name in defined:
            used.add(name)
            left += [node.id for node in ast.walk(defined[name]) if isinstance(node, ast.Name)]
    return [node for node in tree.body if any(defined[name] is node for name in used)]


def _reached(module: str, seen: set[str]) -> set[str]:
    """The modules of the rules that a module depends on, and itself."""
    if module in seen or module in FRAME:
        return seen
    seen.add(module)
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            _reached(str(node.module), seen)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".py") and "/" not in node.value:
            other = f"{PACKAGE}.{node.value.removesuffix('.py')}"  # run as a script, such as the mathematics worker
            if importlib.util.find_spec(other) is not None:
                _reached(other, seen)
    return seen


def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _normalised(tree: ast.Module) -> str:
    """The tree as text, without docstrings and without the version that is compared with it."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)) and not _is_version(part)
            ]
            node.body = kept  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_version(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["version"]


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--same-verdicts", nargs="+", default=[], metavar="NAME", help="rules whose source changed without any verdict; or all"
    )
    same = {name.replace("-", " ") for name in parser.parse_args().same_verdicts}
    table = recorded() if TABLE.is_file() else {}
    for name, (version, digest) in sorted(sources().items()):
        then, known = table.get(name, (version - 1, ""))
        if digest != known and version <= then and not same & {name, "all"}:
            raise SystemExit(f"'{name}' changed under version {version}: raise it, or --same-verdicts {name.replace(' ', '-')}")
        table[name] = (version, digest)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(sources()))
    TABLE.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
