"""The search index: built from real files, searched, refused where it does not belong to its passages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, WorkDir
from safework_cli.environments.search.index import INDEX, PASSAGES, Passage, SearchIndex, tokenise, write_index
from safework_data.index.run import first_sentence
from safework_data.index.stage import stage

PASSAGES_HERE = [
    Passage("river", "The river", "The river floods every spring. Farmers wait for it.", "The river floods every spring."),
    Passage("bridge", "A bridge", "The bridge crosses the river near the mill.", "The bridge crosses the river near the mill."),
    Passage("tea", "茶", "绿茶是一种未发酵的茶。它产于山区。", "绿茶是一种未发酵的茶。"),
    Passage("same-1", "", "identical words here", ""),
    Passage("same-2", "", "identical words here", ""),
]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    write_index(folder, PASSAGES_HERE, k1=1.5, b=0.75)
    return folder


def index_of(work: WorkDir, *sources: dict) -> SearchIndex:
    config = stage.Config.model_validate({"sources": list(sources)})
    assert stage.plan(config, Inputs({})).refusals == []
    stage.run(config, Inputs({}), work)
    return SearchIndex.load(work.output)


def test_tokenise() -> None:
    assert tokenise("The RIVER's 2nd flood") == ["the", "river", "s", "2nd", "flood"]
    assert tokenise("绿茶 tea，茶") == ["绿茶", "tea", "茶"]
    assert tokenise("未发酵abc") == ["未发", "发酵", "abc"]
    assert tokenise(" ?!… ") == []


def test_search_finds_ranks_and_reads(built: Path) -> None:
    index = SearchIndex.load(built)
    hits = index.search("flooding river floods", 5)
    assert [hit.id for hit in hits] == ["river", "bridge"]
    assert hits[0].score > hits[1].score > 0 and hits[0].abstract == "The river floods every spring."
    assert [hit.id for hit in index.search("什么是绿茶", 1)] == ["tea"]
    assert index.read("bridge") == PASSAGES_HERE[1] == index.passage(hits[1].number)
    assert len(index) == 5 and "tea" in index and "coffee" not in index
    with pytest.raises(KeyError):
        index.read("coffee")


def test_scores_are_bm25_by_hand(built: Path) -> None:
    """Lucene's BM25: idf = ln(1 + (N − n + ½)/(n + ½)), weight tf/(tf + k1(1 − b + b·|d|/mean))."""
    lengths = [len(tokenise(f"{p.title}\n{p.text}")) for p in PASSAGES_HERE]
    tf, n = 1, 1
    idf = np.log(1 + (len(lengths) - n + 0.5) / (n + 0.5))
    expected = idf * tf / (tf + 1.5 * (0.25 + 0.75 * lengths[1] / np.mean(lengths)))
    assert SearchIndex.load(built).search("mill", 1)[0].score == pytest.approx(expected, rel=1e-4)


def test_ties_follow_the_order_of_the_index_and_nothing_gives_nothing(built: Path) -> None:
    index = SearchIndex.load(built)
    assert [hit.id for hit in index.search("identical", 5)] == ["same-1", "same-2"]
    assert [hit.id for hit in index.search("identical", 1)] == ["same-1"]
    assert index.search("", 5) == index.search("zyzzyva 龘", 5) == index.search("river", 0) == []


def test_no_file_of_the_index_is_a_pickle_and_two_builds_are_equal_bytes(built: Path, tmp_path: Path) -> None:
    arrays = sorted((built / "bm25").glob("*.npy"))
    assert len(arrays) == 3
    for path in arrays:
        assert np.load(path, allow_pickle=False, mmap_mode="r").dtype.kind in "fiu"
    again = tmp_path / "again"
    again.mkdir()
    write_index(again, PASSAGES_HERE, k1=1.5, b=0.75)
    for path in (p for p in built.rglob("*") if p.is_file()):
        assert (again / path.relative_to(built)).read_bytes() == path.read_bytes(), path.name


def test_changed_passages_are_refused(built: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_index(other, [*PASSAGES_HERE[:4], PASSAGES_HERE[4]._replace(text="other words here")], k1=1.5, b=0.75)
    (built / PASSAGES).write_bytes((other / PASSAGES).read_bytes())
    with pytest.raises(InputError, match="an index whose passages changed"):
        SearchIndex.load(built)


def test_a_damaged_index_is_refused(built: Path, tmp_path: Path) -> None:
    record = json.loads((built / INDEX).read_text())
    (built / INDEX).write_text(json.dumps(record | {"tokeniser": "another"}))
    with pytest.raises(InputError, match="built with another tokeniser"):
        SearchIndex.load(built)
    (built / INDEX).write_text("{")
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        SearchIndex.load(built)
    (built / INDEX).write_text(json.dumps(record))
    scores = built / "bm25" / "data.csc.index.npy"
    scores.write_bytes(scores.read_bytes()[:-8])
    with pytest.raises(InputError, match="is damaged"):
        SearchIndex.load(built)
    with pytest.raises(InputError, match="is not a search index"):
        SearchIndex.load(tmp_path)


def test_first_sentence() -> None:
    assert first_sentence("One thing. Two things.") == "One thing."
    assert first_sentence("It costs 3.5 dollars, e.g. at noon. Then it rose.") == "It costs 3.5 dollars, e.g. at noon."
    assert first_sentence("绿茶是茶。它很好。") == "绿茶是茶。"
    assert len(first_sentence("word " * 200)) == 300


def test_files_become_passages_and_what_cannot_be_searched_is_counted(work: WorkDir, tmp_path: Path) -> None:
    lines = [
        {"key": 1, "name": "A", "body": "The mill stands by the river. It is old."}, {"key": 2, "name": "B", "body": " … "},
        {"key": 3, "name": "C", "body": "The mill stands by the river. It is old."}, {"key": None, "name": "D", "body": "No id."},
    ]  # fmt: skip
    path = tmp_path / "wiki.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    source = {"kind": "file", "path": str(path), "columns": {"id": "key", "title": "name", "text": "body"}}
    index = index_of(work, source)
    assert index.read("1") == Passage("1", "A", "The mill stands by the river. It is old.", "The mill stands by the river.")
    outcome = stage.run(stage.Config.model_validate({"sources": [source]}), Inputs({}), work)
    assert outcome.metrics["dropped"] == {"no words in the text": 1, "exact duplicate": 1, "no id": 1}
    assert (outcome.metrics["passages"], outcome.metrics["read"]) == (1, 4)


def test_bad_passages_are_refused(work: WorkDir, tmp_path: Path) -> None:
    def run(text: str, **source) -> None:
        path = tmp_path / "wiki.jsonl"
        path.write_text(text)
        config = stage.Config.model_validate({"sources": [{"kind": "file", "path": str(path), **source}]})
        stage.run(config, Inputs({}), work)

    with pytest.raises(InputError, match="two different passages have the id '1'"):
        run('{"id": 1, "title": "", "text": "a"}\n{"id": 1, "title": "", "text": "b"}\n')
    with pytest.raises(InputError, match="no column 'title'; did you mean 'titel'"):
        run('{"id": 1, "titel": "", "text": "a"}\n')
    with pytest.raises(InputError, match="no passage can be searched") as caught:
        run('{"id": 1, "title": "", "text": "…"}\n')
    assert "no words in the text 1" in caught.value.why
    with pytest.raises(ValueError, match="'txt' is not a field of a passage; did you mean 'text'"):
        run("", columns={"id": "id", "title": "title", "txt": "x"})


def test_xquad_questions_find_their_passages(work: WorkDir, real_data: Path) -> None:
    from safework_cli.data.suites import load_suite

    paths = [str(real_data / "xquad" / f"xquad.{language}.json") for language in ("en", "zh")]
    index = index_of(work, *({"kind": "xquad", "path": path} for path in paths))
    assert len(index) == 480
    for name in ("xquad-en", "xquad-zh"):
        rows = load_suite(name, real_data)[::10]
        found = [row.meta["passages"][0] in [hit.id for hit in index.search(row.question, 5)] for row in rows]
        assert sum(found) / len(found) > 0.9
        assert all(str(row.answer) in index.read(row.meta["passages"][0]).text for row in rows)
