"""Links between the pages, and to files of the repository, lead somewhere; so do anchors."""

from __future__ import annotations

from pathlib import Path

import pytest

from pages import PAGES, ROOT, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    broken = []
    for link in links(page):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            broken.append(link)
    assert not broken


def test_the_anchors_of_headings():
    assert {"rules", "mathematics-and-short-texts"} <= anchors(ROOT / "docs" / "verifiers.md")


def test_every_page_is_reached_from_the_index():
    index = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in links(ROOT / "docs" / "index.md")}
    assert {page for page in PAGES if page.parent == ROOT / "docs"} - index == {ROOT / "docs" / "index.md"}
