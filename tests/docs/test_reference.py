"""The reference is made from the schemas: every stage has its page, and every setting its meaning, default and bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pages import ROOT
from safework_cli.core.registry import stage_entries

sys.path.insert(0, str(ROOT / "docs"))
import generate

PAGES = generate.pages()


def test_every_stage_has_a_page():
    assert {f"{name.replace(' ', '-')}.md" for name in stage_entries()} | {"index.md", "registered.md", "manifest.md"} == set(PAGES)


@pytest.mark.parametrize("name", stage_entries())
def test_every_setting_has_a_meaning(name: str):
    lines = PAGES[f"{name.replace(' ', '-')}.md"].partition("## Settings")[2].splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| `")]
    assert rows and all(len(row) == 5 for row in rows)
    assert [row[0] for row in rows if len(row[4].strip()) < 4] == []


def test_a_setting_with_its_default_and_bounds():
    page = PAGES["data-build.md"]
    assert '| `require_thought` | list of text | `["cot"]` |' in page
    assert "| `heldout` | number | `0.0` | ≥ 0, &lt; 1 |" in page
    assert "### FileSource" in page and "| `path` | text | required |" in page


def test_a_page_of_a_stage_that_is_gone_is_removed(tmp_path: Path):
    (tmp_path / "old.md").write_text("# safework old\n")
    generate.write(tmp_path)
    assert not (tmp_path / "old.md").exists() and (tmp_path / "sft.md").exists()


def test_code_in_a_cell_is_shown_as_written():
    assert generate.cell("`verifiers.<metric>`: a <b> | c") == "`verifiers.<metric>`: a &lt;b> \\| c"
    assert "&lt;metric>" not in PAGES["eval.md"] and "`verifiers.<metric>`" in PAGES["eval.md"]


def test_no_page_has_a_name_that_the_site_uses_itself():
    """Sphinx writes search.html and genindex.html: a page of such a name is lost without a warning."""
    assert {page.stem for page in (ROOT / "docs").glob("*.md")}.isdisjoint({"search", "genindex", "modindex"})
