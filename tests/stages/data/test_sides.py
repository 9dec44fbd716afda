"""A training row that repeats a held-out row goes, and the held-out row stays, in whatever order they come; no side is lost unsaid."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.row import Row, read_rows
from safework_data.build.stage import stage

COLUMNS = {"prompt": "q", "reply": "a", "split": "side"}


def texts(count: int, length: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices([f"w{i}" for i in range(3000)], k=length)) for _ in range(count)]


def file_source(path: Path, records: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return {"kind": "file", "path": str(path), "subset": "sft", "task": "general", "columns": COLUMNS} | more


def build(work: WorkDir, *sources: dict[str, Any], **settings: Any) -> Outcome:
    return stage.run(stage.Config.model_validate({"sources": list(sources), **settings}), Inputs({}), work)


def rows_of(work: WorkDir, subset: str, split: str) -> list[Row]:
    return [row for row in read_rows(work.output / subset) if row.split == split]


def events(work: WorkDir, kind: str) -> list[str]:
    lines = (json.loads(line) for file in work.path.glob("*.jsonl") for line in file.read_text(encoding="utf-8").splitlines())
    return [line["text"] for line in lines if line.get("event") == kind]


@pytest.mark.parametrize("first", ["train", "test"])
@pytest.mark.parametrize("more", ["", " now"])  # a copy, and nearly one
def test_of_a_training_row_and_a_held_out_row_that_are_alike_the_training_row_goes(
    work: WorkDir, tmp_path: Path, first: str, more: str
) -> None:
    prompts, replies = texts(30, 60), texts(30, 30, seed=1)
    records = [{"q": q, "a": a, "side": "train"} for q, a in zip(prompts, replies, strict=True)]
    records += [{"q": q + more, "a": a, "side": "test"} for q, a in zip(prompts[:10], replies, strict=False)]
    records.sort(key=lambda record: record["side"] != first)
    outcome = build(work, file_source(tmp_path / "rows.jsonl", records))
    assert {row.question for row in rows_of(work, "sft", "test")} == {q + more for q in prompts[:10]}
    assert {row.question for row in rows_of(work, "sft", "train")} == set(prompts[10:])
    assert outcome.metrics["dropped"] == {"evaluation prompt" if more else "group is held out": 10}


def test_copies_on_one_side_go_as_before(work: WorkDir, tmp_path: Path) -> None:
    long, other = texts(2, 60)
    records = [{"q": q, "a": "yes", "side": side} for side, text in (("train", long), ("test", other)) for q in (text, text, f"{text} now")]
    outcome = build(work, file_source(tmp_path / "rows.jsonl", records), max_dropped=1.0)
    assert outcome.metrics["dropped"] == {"exact duplicate": 2, "near duplicate": 2}
    assert outcome.metrics["subsets"]["sft"]["splits"] == {"train": 1, "test": 1}


def test_a_held_out_row_stays_whatever_a_training_row_says_of_it(work: WorkDir, tmp_path: Path) -> None:
    """Two golds for one conversation contradict each other within one side only; a prompt without words is known by what it is."""
    columns = COLUMNS | {"answer": "gold", "meta.group": "g"}
    records = [
        {"q": "How many are two and two?", "a": "Four", "gold": "5", "side": "train", "g": "a"},
        {"q": "How many are two and two?", "a": "Four", "gold": "4", "side": "test", "g": "b"},
        {"q": "🙂", "a": "🙃", "side": "train", "g": "c"},
        {"q": "🙂", "a": "🙃", "side": "test", "g": "d"},
        {"q": "🙂", "a": "🔥", "side": "train", "g": "e"},
    ]
    outcome = build(work, file_source(tmp_path / "rows.jsonl", records, columns=columns))
    assert [(row.question, row.answer) for row in rows_of(work, "sft", "test")] == [("How many are two and two?", "4"), ("🙂", None)]
    assert [row.reply for row in rows_of(work, "sft", "train")] == ["🔥"]
    assert outcome.metrics["dropped"] == {"evaluation prompt": 1, "exact duplicate": 1}
    details = [json.loads(line) for line in (work.output / "drops.jsonl").read_text().splitlines()]
    assert [drop["detail"] for drop in details] == ["100% of rows/2", "of a held-out row"]


def test_a_side_that_a_source_loses_is_warned_of(work: WorkDir, tmp_path: Path) -> None:
    train = [{"q": q, "a": "yes", "side": "train"} for q in texts(20, 10)]
    test = [{"q": q, "a": "yes", "side": "test"} for q in texts(3, 10, seed=1)]
    broken = [{"q": q * 100, "a": "yes", "side": "test"} for q in texts(3, 10, seed=2)] + [{"q": "", "a": "yes", "side": "test"}]
    outcome = build(work, file_source(tmp_path / "a.jsonl", train + test), max_characters=2000)
    assert not [note for note in outcome.notes if "is left" in note]
    sources = file_source(tmp_path / "b.jsonl", train + broken), file_source(tmp_path / "c.jsonl", test)
    outcome = build(work, *sources, max_characters=2000)
    said = "no row of source 'b' with split 'test' is left: all 4 were dropped (most often: over-long 3, no prompt 1)"
    assert outcome.notes == [said] and events(work, "warning") == [said]
    assert "## Notes" in (card := (work.output / "README.md").read_text(encoding="utf-8")) and "all 4 were dropped" in card


def test_a_subset_that_loses_its_training_rows_is_refused(work: WorkDir, tmp_path: Path) -> None:
    rows = [{"q": q, "a": "yes", "side": side} for q in texts(5, 20) for side in ("train", "test")]
    with pytest.raises(InputError, match="no row of subset 'sft' is left for training") as caught:
        build(work, file_source(tmp_path / "rows.jsonl", rows))
    assert caught.value.why == "most often: group is held out 5" and "held out" in caught.value.do


def annotated(folder: Path, model: str, completions: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{model}.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "type", "prompt", "completion", "final_label", "annotation_1", "annotation_2"])
        for number, (prompt, completion) in enumerate(zip(texts(len(completions), 12), completions, strict=True)):
            writer.writerow([number, "homonyms", prompt, completion, *["1_full_compliance"] * 3])


def test_prompts_on_both_sides_share_no_whole_conversation(work: WorkDir, tmp_path: Path) -> None:
    """With `test_model` the prompts stand on both sides; a reply that the left-out model has word for word is not a training row."""
    annotated(tmp_path / "tables", "a", same := texts(5, 10, seed=1))
    annotated(tmp_path / "tables", "b", same[:2] + texts(3, 10, seed=2))
    source = {"kind": "xstest-completions", "folder": str(tmp_path / "tables"), "test_model": "b", "off_topic": 0}
    outcome = build(work, source)
    assert outcome.metrics["dropped"] == {"exact duplicate": 2}
    assert [len(rows_of(work, "verifier", split)) for split in ("train", "test")] == [3, 5]


def test_a_side_that_the_settings_ask_for_is_refused_if_it_is_lost(work: WorkDir, tmp_path: Path) -> None:
    annotated(tmp_path / "tables", "a", texts(5, 10, seed=1))
    annotated(tmp_path / "tables", "b", [""] * 5)
    source = {"kind": "xstest-completions", "folder": str(tmp_path / "tables"), "test_model": "b", "off_topic": 0}
    with pytest.raises(InputError, match="no row of source 'xstest' with split 'test' is left: all 5 were dropped"):
        build(work, source)
