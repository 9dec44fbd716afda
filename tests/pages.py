"""What the tests of the pages share: which pages there are, their blocks, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
_FENCE = re.compile(r"^(?P<mark>[^\n]*)\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^<!-- file: ([\w.-]+) -->\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (?P<kind>run|not run): (?P<detail>.+) -->")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A shell block of a page.

    Attributes:
        line: where its fence stands.
        kind: "run", "not run", or "" where the line before it has no mark.
        detail: how it runs ("tiny"), or why it does not.
        text: the commands; of a ``console`` block the lines after ``$``.
    """

    line: int
    kind: str
    detail: str
    text: str


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def shell_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in _FENCE.finditer("\n" + text):
        if fence["language"] not in ("bash", "console"):
            continue
        mark = _MARK.fullmatch(fence["mark"])
        lines = fence["text"].splitlines()
        if fence["language"] == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        kind, detail = (mark["kind"], mark["detail"]) if mark else ("", "")
        blocks.append(Block(text[: fence.start()].count("\n") + 2, kind, detail, "\n".join(lines)))
    return blocks


def files(page: Path) -> dict[str, str]:
    """Files that the page prints and asks to save: name → text."""
    return dict(_FILE.findall(page.read_text(encoding="utf-8")))


def without_code(page: Path) -> str:
    """The page's text without fenced blocks and code spans: what is left holds the headings and the links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return text


def links(page: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", without_code(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and myst-parser make them: lower case, words joined by dashes, no punctuation."""
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(without_code(page))]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
