"""The public sets that may be trained on: sound rows, labels, groups, and nothing of the evaluation suites under another name."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.row import Row, problems
from safework_cli.data.suites import SUITES, TRAINING_SETS, load_suite, tables, training_set
from safework_cli.data.suites.readers import in_dev_half
from safework_cli.data.suites.tables import read_table
from safework_cli.verifiers.spec import PRESETS


def rows_of(name: str, folder: Path) -> list[Row]:
    known = training_set(name)
    return list(known.read(known, known.path(folder)))


@pytest.mark.parametrize("name", sorted(TRAINING_SETS))
def test_a_set_gives_sound_rows_with_distinct_ids(real_data: Path, name: str) -> None:
    rows, known = rows_of(name, real_data), TRAINING_SETS[name]
    rejected = Counter(found[0] for row in rows if (found := problems(row)))
    assert sum(rejected.values()) <= 4 and set(rejected) <= {"a message is empty"}, "four published preference replies are empty"
    assert len({row.id for row in rows}) == len(rows) >= 25
    assert {(row.task, row.split, row.source) for row in rows} == {(known.task, known.split, name)}


@pytest.mark.parametrize("name", sorted(name for name in TRAINING_SETS if "judged" in name))
def test_judged_sets_end_in_a_reply_with_a_label_of_the_preset(real_data: Path, name: str) -> None:
    rows = rows_of(name, real_data)
    labels = Counter(row.meta["label"] for row in rows)
    assert set(labels) == set(PRESETS[TRAINING_SETS[name].task].labels), "a single label has no learning signal"
    assert all(row.messages[-1]["role"] == "assistant" for row in rows)
    if TRAINING_SETS[name].task == "knowledge":
        assert all(row.answer for row in rows)


def test_variants_of_one_scene_are_one_group(real_data: Path) -> None:
    scenes = defaultdict(set)
    for row in rows_of("ethics-deontology-judged", real_data):
        scenes[row.question].add(row.group)
    assert len(scenes) < 800 and all(len(groups) == 1 for groups in scenes.values())
    justice = rows_of("ethics-justice-judged", real_data)
    assert len({row.group for row in justice}) < 0.8 * len(justice)


def test_lent_answers_are_wrong_and_of_the_same_kind(real_data: Path) -> None:
    by_group = defaultdict(dict)
    for row in rows_of("simpleqa-judged", real_data):
        by_group[row.group][row.meta["label"]] = row
    pairs = [pair for pair in by_group.values() if len(pair) == 2]
    assert len(pairs) > 2000
    for pair in pairs:
        assert pair["TRUE"].answer == pair["FALSE"].answer and str(pair["TRUE"].answer) in pair["TRUE"].reply
        assert str(pair["FALSE"].answer).lower() != pair["FALSE"].reply.lower()
    said = Counter(row.reply.split()[0] for pair in pairs for row in pair.values())
    openings = [sum(row.reply.startswith("It is ") for row in side) for side in zip(*(p.values() for p in pairs), strict=True)]
    assert said["It"] > 500 and max(openings) < 1.3 * min(openings), "how an answer is said does not tell whether it is right"


def test_a_dialogue_of_preferences_is_taken_apart(real_data: Path) -> None:
    first, second = rows_of("hh-harmless-judged", real_data)[:2]
    assert [m["role"] for m in first.messages] == ["user", "assistant"] * 3
    assert first.messages[0]["content"] == "what are some pranks with a pen i can do?" and first.messages[:-1] == second.messages[:-1]
    assert (first.meta["label"], second.meta["label"]) == ("good", "bad") and first.group == second.group


def test_training_halves_share_no_question_with_the_suites(real_data: Path) -> None:
    for suite, training in (
        ("simpleqa", "simpleqa-train"),
        ("simpleqa", "simpleqa-judged"),
        ("chinese-simpleqa", "chinese-simpleqa-train"),
    ):
        assert not {row.question for row in load_suite(suite, real_data)} & {row.question for row in rows_of(training, real_data)}
    assert not set(TRAINING_SETS) & set(SUITES)


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="mmlu-val"):
        training_set("mmlu-vall")


def test_gzip_is_read_and_a_bomb_or_a_torn_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = tmp_path / "rows.jsonl.gz"
    good.write_bytes(gzip.compress(b"".join(json.dumps({"q": str(n)}).encode() + b"\n" for n in range(1000))))
    assert [record["q"] for record in read_table(good)] == [str(n) for n in range(1000)]
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(InputError, match="not a whole gzip file"):
        list(read_table(torn))
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"q\n" + b"a\n" * 2_000_000))
    monkeypatch.setattr(tables, "FREE_EXPANSION_BYTES", 1000)
    with pytest.raises(InputError, match="unpacks to far more than text does"):
        list(read_table(bomb))


def test_the_halves_of_a_set_share_no_prompt(real_data: Path) -> None:
    halves = [{row.id.partition("/")[2] for row in rows_of(f"harmbench-val-{half}", real_data)} for half in ("dev", "test")]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 80
    assert {row.harmful for row in rows_of("xstest-safe-dev", real_data)} == {False}
    dev = [row.id.partition("/")[2] for label in ("safe", "unsafe") for row in rows_of(f"xstest-{label}-dev", real_data)]
    assert len(dev) == 255 and all(map(in_dev_half, dev)) and in_dev_half("1") is (hashlib.sha256(b"1").hexdigest()[0] < "8")
