"""What an artifact descends from, as trees for the terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.tree import Tree

    from safework_cli.core.artifacts import Artifact

DEEPEST = 10
"""Levels of a tree: a terminal has no room for more, and rich leaves out what does not fit."""


def lineage_trees(artifact: Artifact, ancestors: Mapping[str, Artifact | None]) -> Iterator[Tree]:
    """The inputs of an artifact and theirs. What an artifact descends from is shown once, where its name comes first: many stages share
    their data. What is deeper than ``DEEPEST`` has a tree of its own after that.

    Args:
        ancestors: as ``Store.lineage`` returns them.
    """
    from rich.text import Text
    from rich.tree import Tree

    from safework_cli.core.artifacts.external import RULE_PREFIX

    waiting, shown = deque([artifact]), {artifact.ref: "above"}

    def grow(tree: Tree, parent: Artifact, depth: int) -> None:
        for slot, entry in parent.manifest.inputs.items():
            child = ancestors.get(entry.whole)
            if child is None:
                where = "part of safework" if entry.ref.startswith(RULE_PREFIX) else "not in this store"
                tree.add(Text.assemble((f"{slot} ", "dim"), entry.ref, (f"  ({where})", "dim")))
                continue
            place = shown.get(child.ref, "") if child.manifest.inputs else ""
            if not place and child.manifest.inputs and depth == DEEPEST:
                place = shown[child.ref] = "below"
                waiting.append(child)
            by = f"  {child.manifest.stage}" + (f" (inputs: {place})" if place else "")
            branch = tree.add(Text.assemble((f"{slot} ", "dim"), entry.ref, (by, "dim")))
            if not place:
                shown[child.ref] = "above"
                grow(branch, child, depth + 1)

    while waiting:
        root = waiting.popleft()
        shown[root.ref] = "above"
        tree = Tree(Text.assemble(root.ref, (f"  {root.manifest.stage}", "dim")))
        grow(tree, root, 1)
        yield tree
