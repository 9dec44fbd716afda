"""Integer answers among choices are counted from 0 or from 1: a source says so, or all its rows together show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.row import read_rows
from safework_cli.report.text import escaped
from safework_data.build.answer_places import AnswerPlaces, refuse_miscounted
from safework_data.build.stage import stage

COLUMNS = {"prompt": "q", "answer": "answer", "meta.choices": "choices"}
CHOICES = ["p", "q", "r", "s"]


def build(work: WorkDir, path: Path, answers: list[Any], choices: list[str] = CHOICES, **more: Any) -> Outcome:
    lines = [json.dumps({"q": f"Question number {n} of the test", "choices": choices, "answer": a}) for n, a in enumerate(answers)]
    path.write_text("\n".join(lines), encoding="utf-8")
    source = {"kind": "file", "path": str(path), "subset": "rl", "task": "knowledge", "columns": COLUMNS} | more
    config = stage.Config.model_validate({"sources": [source], "near_duplicate_threshold": None, "max_dropped": 1.0})
    return stage.run(config, Inputs({}), work)


def golds(work: WorkDir) -> str:
    return "".join(str(row.answer) for row in read_rows(work.output / "rl"))


def test_answers_counted_from_1_are_refused_with_the_line_to_type(work: WorkDir, tmp_path: Path) -> None:
    answers = [n % 4 + 1 for n in range(1200)]  # several pieces
    with pytest.raises(ConfigError) as caught:
        build(work, tmp_path / "rows.jsonl", answers)
    assert caught.value.what == "source 'rows': integer answers are 1 to 4 in 1,200 rows, never 0, and the number of choices in 300"
    assert "would be the letter after the right one" in caught.value.why and "answers_from: 1" in caught.value.do
    outcome = build(work, tmp_path / "rows.jsonl", answers, answers_from=1)
    assert golds(work) == "ABCD" * 300 and outcome.failed_items == 0
    assert outcome.notes == ["source rows: integer answers are places among the choices, counted from 1: 1,200 rows"]
    assert escaped(outcome.notes[0]) in (work.output / "README.md").read_text(encoding="utf-8")


def test_answers_that_are_never_0_are_refused_where_that_is_no_accident(work: WorkDir, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match="integer answers are 1 to 3 in 60 rows, never 0(.|\n)*answers_from: 1(.|\n)*answers_from: 0"):
        build(work, path, [1, 2, 3] * 20)
    build(work, path, [1, 2, 3] * 20, answers_from=0)
    assert golds(work) == "BCD" * 20
    build(work, path, [1, 2, 3] * 6)  # 18 rows say too little
    build(work, path, [1, 2, 3] * 10, choices=[f"option {n}" for n in range(10)])  # of ten choices, so do 30
    build(work, path, [1, 2, 3] * 20 + [0])
    assert golds(work) == "BCD" * 20 + "A"


def test_answers_counted_from_0_are_read_as_before(work: WorkDir, tmp_path: Path) -> None:
    outcome = build(work, tmp_path / "rows.jsonl", [0, 1, 2.0, 3] * 10)
    assert golds(work) == "ABCD" * 10
    assert outcome.notes == ["source rows: integer answers are places among the choices, counted from 0: 40 rows"]
    assert build(work, tmp_path / "rows.jsonl", ["B"] * 40).notes == []


@pytest.mark.parametrize(("answers", "answers_from"), [([0, 1, 2, 3] * 10, 1), ([1, 2, 3, 4] * 10, 0)])
def test_a_setting_that_the_answers_contradict_is_refused(work: WorkDir, tmp_path: Path, answers: list[int], answers_from: int) -> None:
    with pytest.raises(ConfigError, match=f"answers_from is {answers_from}, but(.|\n)*write answers_from: {1 - answers_from}"):
        build(work, tmp_path / "rows.jsonl", answers, answers_from=answers_from)


def test_answers_from_0_to_the_number_of_choices_are_neither(work: WorkDir, tmp_path: Path) -> None:
    answers = [0, 1, 2, 3, 4] * 10
    with pytest.raises(ConfigError, match="answers are 0 in 10 rows and the number of choices in 10"):
        build(work, tmp_path / "rows.jsonl", answers)
    for answers_from, kept in ((0, "ABCD" * 10), (1, "ABCD" * 10)):
        outcome = build(work, tmp_path / "rows.jsonl", answers, answers_from=answers_from)
        assert golds(work) == kept and outcome.metrics["dropped"] == {"answer is not one of the choices": 10}


def test_numbers_that_are_text_are_places_where_the_source_says_how_they_are_counted(work: WorkDir, tmp_path: Path) -> None:
    build(work, tmp_path / "rows.jsonl", ["1", " 4 ", "B", "2"] * 10, answers_from=1)
    assert golds(work) == "ADBB" * 10
    with pytest.raises(InputError, match=r"answers must be letters(.|\n)*answers_from"):
        build(work, tmp_path / "rows.jsonl", ["1", "2", "3", "4"] * 10)


def test_more_choices_than_letters_are_dropped_by_name(work: WorkDir, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="more choices than letters 30"):
        build(work, tmp_path / "rows.jsonl", [*range(30)], choices=[f"option {n}" for n in range(30)])


def test_answers_from_needs_answers_and_choices() -> None:
    source = {"kind": "file", "path": "rows.jsonl", "task": "knowledge", "columns": {"prompt": "q", "answer": "a"}, "answers_from": 1}
    for wrong, said in ((source, "meta.choices"), (source | {"columns": COLUMNS, "answers_from": 2}, "less than or equal to 1")):
        with pytest.raises(ValidationError, match=said):
            stage.Config.model_validate({"sources": [wrong]})


def test_what_two_processes_counted_is_one_count() -> None:
    whole, first, second = AnswerPlaces(), AnswerPlaces(), AnswerPlaces()
    for number, (answer, choices) in enumerate([(3, 4), (1, 2), (0, 4), (5, 5), (-1, 3), (9, 3)]):
        for each in (whole, (first, second)[number > 2]):
            each.add(answer, choices)
    first.extend(second)
    first.extend(AnswerPlaces())
    assert first == whole and (whole.rows, whole.zeros, whole.ends, whole.outside) == (6, 1, 1, 2)
    assert (whole.lowest, whole.highest) == (-1, 9)


def test_numbers_that_are_no_places_say_nothing_of_how_places_are_counted() -> None:
    values = AnswerPlaces()
    for answer in (12, 4, 40, 31, 7):
        values.add(answer, 4)
    refuse_miscounted("sums", values, None)
