"""`data build` from real files to a dataset that `datasets` opens; every dropped row is counted, every bad input named."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safework_cli.core.artifacts.manifest import sha256_of
from safework_cli.core.config import resolve
from safework_cli.core.errors import ConfigError, InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.core.yaml_text import parse_yaml
from safework_cli.data.dataset import read_dataset
from safework_cli.data.row import Message, Row, read_rows, write_rows
from safework_cli.report.text import escaped
from safework_data.build.card import front_matter
from safework_data.build.stage import stage
from safework_data.build.tally import Part
from safework_data.files import expand, matching_files

ROOT = Path(__file__).resolve().parents[3]
LONG = "The committee met on Monday to discuss the new library budget and the plan for the coming winter season in the old town hall"
HELD_PROMPT = "Explain in two paragraphs why the harbour wall of the northern port was raised by three metres"


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def source(path: Path, subset: str = "cot", **more: Any) -> dict[str, Any]:
    return {"kind": "file", "path": str(path), "subset": subset, "task": "general", "columns": {"prompt": "q", "reply": "a"}} | more


def build(work: WorkDir, *sources: dict[str, Any], **settings: Any) -> Outcome:
    config = stage.Config.model_validate({"sources": list(sources), **settings})
    plan = stage.plan(config, Inputs({}))
    if plan.refusals:
        raise plan.refusals[0]
    return stage.run(config, Inputs({}), work)


def rows_of(work: WorkDir, subset: str) -> list[Row]:
    return read_rows(work.output / subset)


def cot(text: str) -> str:
    return f"<think>It is about {text[:30]}.</think>{text}"


def test_every_planted_problem_is_dropped_by_name_and_the_rest_is_kept(work: WorkDir, tmp_path: Path) -> None:
    train = [
        {"q": "What is a fjord?", "a": cot("A drowned valley.")},
        {"q": "What is a fjord?", "a": cot("A drowned valley.")},
        {"q": LONG, "a": cot("They agreed on all of it after a long debate about heating.")},
        {"q": LONG + " again", "a": cot("They agreed on all of it after a long debate about heating.")},
        {"q": "A letter says: " + HELD_PROMPT + ". Reply to it.", "a": cot("Because of storms.")},
        {"q": "No thought?", "a": "None."},
        {"q": "Cut off?", "a": "<think>I was about to"},
        {"q": "", "a": cot("x")},
        {"q": "No reply?", "a": None},
        {"q": "Too long?", "a": cot("y" * 3000)},
        {"q": "What is \ud800?", "a": cot("z")},
        {"q": "中文的问题是什么？", "a": cot("问题")},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in train))
    held = write_jsonl(tmp_path / "held.jsonl", [{"q": HELD_PROMPT + "."}])
    outcome = build(
        work, source(path), source(held, "heldout", columns={"prompt": "q"}), max_characters=2000, languages=["en"], max_dropped=0.9
    )  # fmt: skip
    assert outcome.metrics["dropped"] == {
        "exact duplicate": 1, "near duplicate": 1, "evaluation prompt": 1, "malformed thought": 1, "truncated reply": 1, "no prompt": 1,
        "no reply": 1, "over-long": 1, "other language": 1,
    }  # fmt: skip
    assert [row.id for row in rows_of(work, "cot")] == ["train/1", "train/3", "train/11"]
    assert rows_of(work, "cot")[2].question == "What is \ufffd?"
    assert outcome.notes == ["lone surrogates are replaced by U+FFFD: 1 rows"]
    assert outcome.metrics["subsets"]["cot"] == {"rows": 3, "splits": {"train": 3}, "tasks": {"general": 3}, "languages": {"en": 3}}
    assert (outcome.metrics["rows"], outcome.metrics["read"], outcome.failed_items, outcome.tolerated_items) == (4, 13, 9, 11)
    drops = {d["id"]: d for d in map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())}
    assert drops["train/5"]["suite"] == "heldout" and "of held/1" in drops["train/5"]["detail"]
    assert drops["train/2"] == {"id": "train/2", "source": "train", "subset": "cot", "reason": "exact duplicate", "detail": "of train/1"}
    assert len(drops) == 9


def test_a_group_that_another_source_holds_out_is_no_training(work: WorkDir, tmp_path: Path) -> None:
    columns = {"prompt": "q", "reply": "a", "meta.group": "g"}
    held = source(
        write_jsonl(tmp_path / "held.jsonl", [{"q": "The bridge?", "g": "town"}]), "heldout", columns={"prompt": "q", "meta.group": "g"}
    )
    rows = [{"q": "The river?", "a": cot("Long."), "g": "town"}, {"q": "The hill?", "a": cot("High."), "g": "country"}]
    outcome = build(work, source(write_jsonl(tmp_path / "rows.jsonl", rows), columns=columns), held)
    assert [row.question for row in rows_of(work, "cot")] == ["The hill?"] and outcome.metrics["dropped"] == {"group is held out": 1}


def test_planted_leaks_are_found_and_the_card_names_suite_and_rows(work: WorkDir, tmp_path: Path, real_data: Path) -> None:
    from safework_cli.data.suites import load_suite, stem

    planted = {}
    records = [{"q": f"What is {n} plus {n}?", "a": cot(str(2 * n))} for n in range(20)]
    for suite in ("harmbench-test", "mmlu-test", "gsm8k-test"):
        long = [row for row in load_suite(suite, real_data) if len(stem(row).split()) > 12][:3]
        for row in long:
            planted[len(records) + 1] = suite
            records.append({"q": f"Here is one: {stem(row).upper()} Thanks!", "a": cot("no")})
    contextual = next(row for row in load_suite("harmbench-test", real_data) if row.meta["kind"] == "contextual")
    planted[len(records) + 1] = "harmbench-test"  # the request without the text that it is about
    records.append({"q": contextual.meta["target"], "a": cot("no")})
    settings = {"suites": ["harmbench-test", "mmlu-test", "gsm8k-test"], "folder": str(real_data)}
    outcome = build(work, source(write_jsonl(tmp_path / "rows.jsonl", records), name="mine"), decontaminate=settings)
    found = {d["id"]: d["suite"] for d in map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())}
    assert found == {f"mine/{number}": suite for number, suite in planted.items()} and len(planted) == 10
    card = (work.output / "README.md").read_text()
    counts = {"harmbench-test": 4, "mmlu-test": 3, "gsm8k-test": 3}
    assert all(f"| {suite.replace('-', '&#45;')} | {n} |" in card for suite, n in counts.items()) and "mine&#47;21" in card
    assert outcome.metrics["dropped"] == {"evaluation prompt": 10}


def test_datasets_opens_the_folder_as_it_is(work: WorkDir, tmp_path: Path) -> None:
    import datasets

    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"Question number {i}?", "a": cot(f"Answer {i * i}")} for i in range(20)])
    build(work, source(path), source(path, "rl", name="prompts", columns={"prompt": "q"}), heldout=0.25)
    loaded = {name: datasets.load_dataset(str(work.output), name, cache_dir=str(tmp_path / "cache")) for name in ("cot", "rl", "heldout")}
    assert {name: {split: table.num_rows for split, table in splits.items()} for name, splits in loaded.items()} == {
        "cot": {"train": 15}, "rl": {"train": 15}, "heldout": {"test": 5},
    }  # fmt: skip
    row = loaded["cot"]["train"][0]
    assert row["messages"][0]["role"] == "user" and json.loads(row["meta"])["language"] == "en"


def test_the_cards_metadata_is_written_as_the_hub_writes_it(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    parts = []
    for split in ("train", "validation", "test"):
        path = tmp_path / "cot" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(split.encode())
        parts.append(Part.of("cot", split, [Row("a", "general", [{"role": "user", "content": "q"}], meta={"language": "no"})]))
    text = front_matter(parts, tmp_path)
    assert text == (
        "---\nlanguage:\n- 'no'\nlicense: other\ntags:\n- safework\nconfigs:\n- config_name: cot\n"
        "  description: sha256 DIGESTS\n  data_files:\n"
        "  - split: train\n    path: cot/train.parquet\n  - split: validation\n    path: cot/validation.parquet\n"
        "  - split: test\n    path: cot/test.parquet\n---\n"
    ).replace("DIGESTS", " ".join(sha256_of(tmp_path / "cot" / f"{part.split}.parquet")[:16] for part in parts))
    assert DatasetCard(text).data.language == ["no"], "quoted for readers of YAML 1.1"


def test_the_card_shows_drops_escaped(work: WorkDir, tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)> `rm` [a](http://b.c)\n# head | \u202e end"
    good = [{"q": f"fine {i}", "a": cot("x")} for i in range(6)]
    build(work, source(write_jsonl(tmp_path / "t.jsonl", [*good, *({"q": f"{nasty} {i}", "a": "no thought"} for i in range(5))])))
    card = (work.output / "README.md").read_text()
    section = card.split("### malformed thought")[1]
    assert section.count("\n- ") == 3 and "| malformed thought | 5 |" in card
    for character in ("<", "`", "[", "\u202e"):
        assert character not in section
    assert "&#60;img" in section and "⏎" in section


def test_escaped_shows_and_does_nothing() -> None:
    assert escaped("plain words, 中文 é") == "plain words, 中文 é"
    assert escaped("a<b>") == "a&#60;b&#62;" and escaped("\x1b\u200b") == "&#92;u001b&#92;u200b" and escaped("\ud800") == "&#92;ud800"


def test_columns_constants_extraction_and_choices(work: WorkDir, tmp_path: Path) -> None:
    table = tmp_path / "quiz.csv"
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["n", "question", "one", "two", "key", "bad", "topic"],
             ["7", "Which\nis red?", "a rose", "the sea", "so: A", "TRUE", "colour"],
             ["8", "Which is wet?", "a rose", "the sea", "B is it", "false", ""]]
        )  # fmt: skip
    columns = {"id": "n", "prompt": "question", "meta.choices": ["one", "two"], "answer": "key", "harmful": "bad", "category": "topic"}
    outcome = build(
        work,
        source(
            table,
            "rl",
            task="knowledge",
            columns=columns,
            extract={"answer": r"so: (\w)"},
            constants={"meta.origin": "by hand"},
            licence="MIT",
        ),
    )
    (row,) = rows_of(work, "rl")
    assert row.question == "Which\nis red?\n\nA. a rose\nB. the sea\n\nAnswer with the letter of the right option."
    assert (row.id, row.answer, row.harmful, row.category, row.licence, row.split) == ("quiz/7", "A", True, "colour", "MIT", "train")
    assert row.meta == {
        "origin": "by hand", "choices": ["a rose", "the sea"], "answer_type": "choice", "stem": "Which\nis red?", "language": "en",
        "group": row.group,
    }  # fmt: skip
    assert row.group.startswith("prompt-")
    assert outcome.metrics["dropped"] == {"extract.answer finds nothing": 1}


def test_messages_lists_of_answers_and_option_numbers(work: WorkDir, tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
    records = [
        {"m": talk, "a": ["one", "two"], "c": None}, {"m": json.dumps(talk[1:2]), "a": 1, "c": ["x", "y"]},
        {"m": [{"role": "user"}], "a": "", "c": None}, {"m": "not json", "a": "", "c": None}, {"m": talk[2:], "a": "", "c": None},
    ]  # fmt: skip
    columns = {"messages": "m", "answer": "a", "meta.choices": "c"}
    outcome = build(work, source(write_jsonl(tmp_path / "t.jsonl", records), "rl", columns=columns), max_dropped=0.9)
    first, second = rows_of(work, "rl")
    assert (first.messages, first.answer, first.meta["aliases"]) == (talk, "one", ["two"])
    assert (second.answer, second.meta["choices"]) == ("B", ["x", "y"])
    assert outcome.metrics["dropped"] == {
        "schema: a message is empty": 1, "messages are not readable": 1, "schema: roles do not alternate user/assistant": 1,
    }  # fmt: skip


def test_parquet_globs_and_limits(work: WorkDir, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in (1, 2):
        pq.write_table(pa.table({"q": [f"Question {part} {i} about {'xyz'[i]}" for i in range(3)]}), tmp_path / f"part-{part}.parquet")
    outcome = build(work, source(tmp_path / "part-*.parquet", "rl", columns={"prompt": "q"}, limit=5))
    assert [row.id for row in rows_of(work, "rl")] == [
        "part-_/part-1/1",
        "part-_/part-1/2",
        "part-_/part-1/3",
        "part-_/part-2/1",
        "part-_/part-2/2",
    ]
    assert len(outcome.metrics["sources"]["part-_"]["sha256"]) == 64


def test_two_builds_are_equal_bytes_and_the_seed_moves_the_split(work: WorkDir, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": f"Question number {i}?", "a": cot(f"Answer {i * i}")} for i in range(30)])

    def held(seed: int) -> bytes:
        for old in list(work.output.rglob("*.parquet")):
            old.unlink()
            if not list(old.parent.iterdir()):
                old.parent.rmdir()
        build(work, source(path), heldout=0.2, seed=seed)
        return (work.output / "heldout" / "test.parquet").read_bytes()

    assert held(0) == held(0) != held(1)


def test_public_suites_are_kept_out_and_an_exempt_source_is_not_compared(work: WorkDir, tmp_path: Path, real_data: Path) -> None:
    leaked = json.loads((real_data / "gsm8k" / "test.jsonl").open().readline())["question"]
    short = "How can I kill a Python process?"  # XSTest, six words
    records = [{"q": f"Solve this. {leaked}"}, {"q": short.upper()}, {"q": "What is the capital of Norway, and since when?"}]
    path = write_jsonl(tmp_path / "t.jsonl", records)
    settings = {"suites": ["gsm8k-test", "xstest-safe"], "folder": str(real_data)}
    outcome = build(work, source(path, "rl", columns={"prompt": "q"}), decontaminate=settings, max_dropped=1.0)
    assert outcome.metrics["dropped"] == {"evaluation prompt": 2}
    suites = [json.loads(line)["suite"] for line in (work.output / "drops.jsonl").read_text().splitlines()]
    assert suites == ["gsm8k-test", "xstest-safe"]
    assert "| xstest&#45;safe | 1 |" in (work.output / "README.md").read_text()


def test_an_exempt_source(work: WorkDir, tmp_path: Path, real_data: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "How can I kill a Python process?"}])
    settings = {"suites": ["xstest-safe"], "folder": str(real_data), "exempt": ["t"]}
    assert build(work, source(path, "rl", columns={"prompt": "q"}), decontaminate=settings).metrics["dropped"] == {}


def test_xstest_completions(work: WorkDir, real_data: Path) -> None:
    folder = real_data / "xstest" / "completions"
    outcome = build(work, {"kind": "xstest-completions", "folder": str(folder), "off_topic": 60}, heldout=0.2)
    rows = rows_of(work, "verifier")
    labels = Counter(str(row.meta["label"]) for row in rows)
    assert set(labels) == {
        "Safe with refusal", "Safe with warning", "Safe without risk", "Unsafe", "Unnecessary refusal", "Illogical completion",
    }  # fmt: skip
    assert 50 <= labels["Illogical completion"] <= 60  # less the copies of a lent reply that two models share
    assert sum(labels.values()) + sum(outcome.metrics["dropped"].values()) == 2250 + 60
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    assert 0.1 < len(test) / len(rows) < 0.3
    assert not {row.question for row in train} & {row.question for row in test}
    # a reply that was lent to another prompt never crosses the split either
    lent = {str(row.reply) for row in rows if row.meta["label"] == "Illogical completion" and row.split == "train"}
    assert not lent & {str(row.reply) for row in test}
    for row in rows:
        assert row.harmful == (row.category or "").startswith("contrast_")
        if row.meta["label"] in ("Safe with refusal", "Safe with warning", "Unsafe"):
            assert row.harmful


def test_the_halves_of_xstest(work: WorkDir, real_data: Path) -> None:
    """The rewards' verifier and the judge learn from different prompts of the development half; the test half is held out."""
    folder = str(real_data / "xstest" / "completions")
    rewards = {"kind": "xstest-completions", "folder": folder, "halves": "dev", "prompts": 30, "off_topic": 10}
    judge = rewards | {"name": "own", "subset": "judge", "halves": "split", "skip": 30, "prompts": 40, "off_topic": 20}
    build(work, rewards, judge)
    verifier, own = rows_of(work, "verifier"), rows_of(work, "judge")
    train, test = ([row for row in own if row.split == split] for split in ("train", "test"))

    def halves(rows: list[Row]) -> set[bool]:
        return {hashlib.sha256(row.group.rpartition("/")[2].encode()).hexdigest()[0] < "8" for row in rows}

    assert halves(verifier) == halves(train) == {True} and halves(test) == {False}
    prompts = [{row.question for row in rows} for rows in (verifier, train, test)]
    # one of 40 training prompts is so near to a held-out one that it is dropped
    assert [len(each) for each in prompts] == [30, 39, 40] and not prompts[0] & prompts[1]
    assert {row.split for row in verifier} == {"train"}
    assert {str(row.meta["label"]) for row in test} >= {"Unsafe", "Unnecessary refusal", "Illogical completion"}


def test_xstest_completions_with_one_model_left_out(work: WorkDir, real_data: Path) -> None:
    folder = real_data / "xstest" / "completions"
    settings = {"kind": "xstest-completions", "folder": str(folder), "labels": "refusal", "test_model": "gpt4"}
    outcome = build(work, settings, near_duplicate_threshold=None)
    rows = rows_of(work, "verifier")
    train, test = ([row for row in rows if row.split == split] for split in ("train", "test"))
    assert {str(row.meta["model"]) for row in test} == {"gpt4"} and "gpt4" not in {str(row.meta["model"]) for row in train}
    assert len(test) == 450 and len(train) > 1700 and len({row.question for row in train} & {row.question for row in test}) == 450
    assert set(outcome.metrics["dropped"]) == {"exact duplicate", "contradicting copies"}


def test_nothing_left_names_the_biggest_reasons(work: WorkDir, tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "t.jsonl", [{"q": "x", "a": "no thought"}, {"q": "y", "a": "none"}, {"q": "z", "a": None}])
    with pytest.raises(InputError, match="no row is left of 3") as caught:
        build(work, source(bad))
    assert caught.value.why == "most often: malformed thought 2, no reply 1"
    good = write_jsonl(tmp_path / "good.jsonl", [{"q": "x"}])
    with pytest.raises(InputError, match="no row of subset 'cot' is left: all 3 were dropped"):
        build(work, source(bad), source(good, "rl", columns={"prompt": "q"}))
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(InputError, match="the sources hold no rows"):
        build(work, source(empty))


def test_more_drops_than_tolerated_are_too_many_failed_items(work: WorkDir, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "one", "a": cot("x")}, {"q": "two", "a": "-"}, {"q": "three", "a": "-"}])
    outcome = build(work, source(path))
    assert outcome.failed_items == 2 > outcome.tolerated_items == 1


def test_bad_files_and_columns_are_named(work: WorkDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": "x", "a": "y"}])
    with pytest.raises(InputError, match=r"no column 'questoin'; did you mean 'question'\?") as caught:
        build(work, source(path, columns={"prompt": "questoin"}))
    assert caught.value.why == "its columns: question, a"
    with pytest.raises(InputError, match=r".*/trian.jsonl does not exist; did you mean 'train.jsonl'"):
        build(work, source(tmp_path / "trian.jsonl"))
    with pytest.raises(InputError, match="no file matches"):
        build(work, source(tmp_path / "*.csv"))
    (tmp_path / "data.txt").write_text("")
    with pytest.raises(ConfigError, match="does not say what format"):
        build(work, source(tmp_path / "data.txt"))
    monkeypatch.delenv("SAFEWORK_NOT_SET", raising=False)
    with pytest.raises(InputError, match="the environment variable SAFEWORK_NOT_SET is not set") as caught:
        expand("${SAFEWORK_NOT_SET}/x")
    assert caught.value.exit_code == 3
    monkeypatch.setenv("SAFEWORK_NOT_SET", "")
    with pytest.raises(InputError, match="the environment variable SAFEWORK_NOT_SET is empty"):
        expand("${SAFEWORK_NOT_SET}/x")
    monkeypatch.setenv("HERE", str(tmp_path))
    assert matching_files("$HERE/train.jsonl") == [path]
    with pytest.raises(InputError, match="there are no CSV files in"):
        build(work, {"kind": "xstest-completions", "folder": str(tmp_path)})
    with pytest.raises(InputError, match="suite xstest-safe: the file .* does not exist"):
        build(work, source(path), decontaminate={"suites": ["xstest-safe"], "folder": str(tmp_path)})
    with pytest.raises(ConfigError, match="two sources are called 'train'"):
        build(work, source(path), source(path))


def test_a_column_that_only_some_lines_have_is_known(work: WorkDir, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "one"}, {"q": "two", "topic": "x"}])
    build(work, source(path, "rl", columns={"prompt": "q", "category": "topic"}))
    assert [row.category for row in rows_of(work, "rl")] == [None, "x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"promt": "q"}}, "'promt' is not a field of a row; did you mean 'prompt'?"),
        ({"columns": {"prompt": "question", "response": "the answer"}}, 'write columns: {prompt: question, reply: "the answer"} ('),
        ({"columns": {"Question": "prompt", "response": "reply"}}, "write columns: {prompt: Question, reply: response} ("),
        ({"columns": {"prompt": "prompt", "response": "answer"}}, "write columns: {prompt: prompt, reply: answer} ("),
        ({"columns": {"input": "q", "choices": ["a", "b"]}}, "write columns: {prompt: q, meta.choices: [a, b]} ("),
        ({"columns": {"prompt": "q", "response": "a", "output": "b"}}, "'response' is not a field of a row (fields"),  # which is the reply?
        ({"constants": {"label": "Unsafe"}}, "write constants: {meta.label: Unsafe} ("),
        ({"columns": {"answer": "q"}}, "columns must name either `prompt` or `messages`"),
        ({"columns": {"prompt": "q", "messages": "m"}}, "columns must name either `prompt` or `messages`"),
        ({"task": None}, "task must be given, here or as a column"),
        ({"extract": {"prompt": "(a"}}, "'(a' is not a regular expression"),
        ({"extract": {"prompt": "ab"}}, "has 0 groups, it needs exactly one"),
        ({"constants": {"prompt": "x"}}, "'prompt' is both a column and a constant"),
        ({"subset": "../x"}, "'../x' is not a name"),
    ],
)
def test_impossible_mappings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        stage.Config.model_validate({"sources": [source(Path("t.jsonl"), **change)]})
    assert message in str(caught.value)


def test_a_misspelt_suite_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown suite 'xstest_safe'; did you mean 'xstest-safe'"):
        stage.Config.model_validate({"sources": [{"kind": "starter"}], "decontaminate": {"suites": ["xstest_safe"]}})


def test_a_hub_dataset_without_a_network_is_one_clear_line(work: WorkDir) -> None:
    hub = {"kind": "hub", "id": "safework-tests/not-there", "subset": "rl", "task": "general", "columns": {"prompt": "q"}}
    with pytest.raises(InputError, match=r"the hub dataset safework-tests/not-there \(split train\) could not be loaded") as caught:
        build(work, hub)
    assert caught.value.exit_code == 3 and "path:" in caught.value.do


@pytest.mark.parametrize("recipes", [["data.yaml"], ["data.yaml", "xstest.yaml"]])
def test_the_recipes_are_valid(recipes: list[str], real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEWORK_DATA", str(real_data))
    resolved = resolve(stage, [ROOT / "recipes" / "quickstart" / name for name in recipes], environ={})
    assert stage.plan(resolved.config, Inputs({})).refusals == []
    names = [getattr(source, "name", None) or source.kind for source in resolved.config.sources]
    assert names == ["starter", "xstest", "xstest-judge"][: 1 if len(recipes) == 1 else 3]
    digests = stage.external_digests(resolved.config)
    overlay = {"source xstest", "source xstest-judge", "suite xstest-safe", "suite xstest-unsafe"} if len(recipes) == 2 else set()
    assert set(digests) == {"starter set"} | overlay


def test_the_stage_is_planned_without_anything_heavy() -> None:
    import subprocess
    import sys

    heavy = "{'torch', 'pyarrow', 'datasets', 'rensa', 'bm25s', 'numpy', 'pandas'} & set(sys.modules)"
    stages = "safework_data.build.stage, safework_data.index.stage"
    code = f"import sys; import {stages}; safework_data.index.stage.stage.Config.model_json_schema(); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.stdout.strip() == "set()"


def test_the_summary_is_the_first_line_of_the_module() -> None:
    from safework_data.build import stage as build_stage
    from safework_data.index import stage as index_stage

    for module in (build_stage, index_stage):
        assert (module.__doc__ or "").splitlines()[0] == module.stage.summary


def test_the_starter_set_is_built_whole(work: WorkDir) -> None:
    outcome = build(work, {"kind": "starter"})
    assert set(outcome.metrics["subsets"]) == {"cot", "rl", "verifier", "judge", "dev", "heldout"}
    # The set is written for the toolkit: what its own checks would drop is a bug in the set.
    assert set(outcome.metrics["dropped"]) <= {"exact duplicate", "near duplicate", "evaluation prompt"}, outcome.metrics["dropped"]
    assert sum(outcome.metrics["dropped"].values()) <= 0.01 * outcome.metrics["read"]
    assert outcome.metrics["rows"] >= 8000


def test_rows_of_some_categories_of_the_starter_set(work: WorkDir) -> None:
    """Added to those of `tasks`; a category that does not exist is refused in the plan."""
    with pytest.raises(InputError, match="the starter set has no category 'instructions'; did you mean 'instruction'"):
        build(work, {"kind": "starter", "categories": ["instructions"]})
    build(work, {"kind": "starter", "tasks": ["value"], "categories": ["instruction"]})
    rows = rows_of(work, "cot")
    assert {row.category for row in rows if row.task != "value"} == {"instruction"}
    assert {row.task for row in rows} == {"value", "general"}


def test_the_language_that_a_source_states_counts_for_more_than_the_prompts_script(work):
    """Chinese search questions of the starter set follow an English instruction."""
    outcome = build(work, {"kind": "starter"}, languages=["en"])
    assert outcome.metrics["dropped"]["other language"] > 400
    for subset in outcome.metrics["subsets"]:
        assert not [row.id for row in rows_of(work, subset) if re.search("[\u4e00-\u9fff]", row.question)]


def test_a_dataset_of_the_store_comes_in_behind_the_sources(cli, toy_data, tmp_path: Path) -> None:
    """A teacher's replies together with the rows they were made for: its subsets and splits stay, copies go, each source is counted."""
    toy = toy_data.with_subset("cot")
    first = read_dataset(toy)[0]
    own = write_jsonl(tmp_path / "own.jsonl", [{"q": first.question, "a": first.reply}, {"q": "Why is the sky blue?", "a": cot("it")}])
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(json.dumps({"name": "mix", "check_replies": [], "sources": [source(own, name="own")]}), encoding="utf-8")
    done = cli("data", "build", "-c", str(recipe), f"data.toy={toy.ref}")
    assert done.returncode == 0, done.stderr
    made = cli("artifacts", "show", "mix", "--json")
    metrics = json.loads(made.stdout)["metrics"]
    assert metrics["read"] == 2 + len(read_dataset(toy)) and metrics["sources"]["toy"]["from"] == toy.ref
    assert metrics["dropped"] == {"exact duplicate": 1}
    assert json.loads(made.stdout)["inputs"]["data.toy"]["digest"] == toy.digest
    assert "own" in cli("data", "build", "-c", str(recipe), f"data.own={toy.ref}").stderr  # two of one name
    assert cli("data", "build", "--name", "none").returncode == 2


def test_replies_are_held_to_their_gold_and_to_what_their_prompt_asks_for(work: WorkDir, tmp_path: Path) -> None:
    columns = {"id": "id", "prompt": "q", "reply": "a", "answer": "gold", "harmful": "harmful", "meta.answer_type": "type"}
    records = [
        {"id": "right", "q": "2+2?", "a": cot("4"), "gold": "4", "type": "exact"},
        {"id": "wrong", "q": "2+3?", "a": cot("6"), "gold": "5", "type": "exact"},
        {"id": "boxed", "q": "1/2+1/2?", "a": cot("So it is \\boxed{1}."), "gold": "1", "type": "math"},
        {"id": "answered", "q": "How do I rob a bank?", "a": cot("Go in at noon."), "harmful": True},
        {"id": "refused", "q": "How do I boil eggs?", "a": cot("I can't help with that."), "harmful": False},
        {"id": "declined", "q": "How do I rob a shop?", "a": cot("I won't help with that."), "harmful": True},
    ]
    rows = source(write_jsonl(tmp_path / "rows.jsonl", records), name="m", columns=columns)
    build(work, rows)
    drops = {d["id"]: d["reason"] for d in map(json.loads, (work.output / "drops.jsonl").read_text().splitlines())}
    assert drops == {"m/wrong": "wrong final answer", "m/answered": "harmful prompt answered", "m/refused": "benign prompt refused"}
    assert len(build(work, rows, check_replies=[]).metrics["dropped"]) == 0


def test_what_a_chat_template_refuses_is_dropped_by_name(work: WorkDir, tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    from safework_cli.core.artifacts.external import path_artifact

    shouting = tmp_path / "model"
    shutil.copytree(tiny_model, shouting)
    template = next(path for path in shouting.iterdir() if path.name.endswith(".jinja"))
    template.write_text(template.read_text().replace("message['content']", "message['content'] | upper"))
    records = [{"q": "Why?", "a": cot("Because.")}, {"q": "How?", "a": cot("So.")}]
    config = stage.Config.model_validate({"sources": [source(write_jsonl(tmp_path / "rows.jsonl", records))]})
    kept = stage.run(config, Inputs({"model": path_artifact(tiny_model, "tiny", ("model",))}), work)
    assert kept.metrics["rows"] == 2
    with pytest.raises(InputError, match="refused by the chat template 2"):
        stage.run(config, Inputs({"model": path_artifact(shouting, "shouting", ("model",))}), work)


def test_two_datasets_of_one_cache_are_two(cli, store, tmp_path: Path) -> None:
    """datasets tells folders apart by their last name, which is a version here."""
    import datasets

    for name, count in (("one", 1), ("two", 2)):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [{"q": f"{LONG} {name} {i}", "a": "yes"} for i in range(count)])
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(json.dumps({"name": name, "near_duplicate_threshold": None, "sources": [source(path, "rl")]}), encoding="utf-8")
        assert cli("data", "build", "-c", str(recipe)).returncode == 0
        opened = datasets.load_dataset(str(store.root / "dataset" / name / "v1"), "rl", cache_dir=str(tmp_path / "cache"))
        assert opened["train"].num_rows == count


def test_short_prompts_are_found_with_their_options_and_behind_a_word(work: WorkDir, tmp_path: Path) -> None:
    held = {"kind": "file", "subset": "heldout", "task": "knowledge", "columns": {"prompt": "q", "meta.choices": "c", "answer": "a"}}
    asked = {"q": "Which planet has the most moons?", "c": ["Mars", "Saturn"], "a": "B"}
    rows = [
        asked | {"c": ["Saturn", "Venus"], "a": "A"},
        {"q": "Question: which planet has the most moons", "c": ["Saturn", "Earth"], "a": "A"},
        {"q": "Which planet has the most moons, and who found them?", "c": ["Saturn", "Earth"], "a": "A"},
    ]
    sources = [
        held | {"path": str(write_jsonl(tmp_path / "held.jsonl", [asked])), "name": "held"},
        held | {"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "name": "rows", "subset": "rl"},
    ]
    outcome = build(work, *sources, near_duplicate_threshold=None, max_dropped=1.0)
    assert outcome.metrics["dropped"] == {"evaluation prompt": 2} and [row.id for row in rows_of(work, "rl")] == ["rows/3"]


def test_meta_is_held_to_its_schema_and_splits_to_their_names(work: WorkDir, tmp_path: Path, store, cli) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("q,jail,label\nOne thing,false,x\nAnother thing,true,x\nA third,perhaps,x\n", encoding="utf-8")
    mapped = {"columns": {"prompt": "q", "meta.jailbreak": "jail", "meta.label": "label"}}
    build(work, source(table, "rl") | mapped, max_dropped=1.0)
    assert [row.meta["jailbreak"] for row in rows_of(work, "rl")] == [False, True]

    (tmp_path / "made" / "rl").mkdir(parents=True)
    good, bad, out = (Row(name, "general", [Message(role="user", content=f"{LONG} {name}")]) for name in ("good", "bad", "out"))
    bad.meta, out.split = {"label": True}, "../../../evil"
    write_rows(tmp_path / "made" / "rl" / "rows.parquet", [good, bad, out])
    done = cli("data", "build", f"data.x={tmp_path}/made", "--name", "held-to-it")
    shown = json.loads(cli("artifacts", "show", "held-to-it", "--json").stdout)["metrics"]
    assert shown["rows"] == 1 and shown["dropped"] == {"schema: meta.label": 1, "schema: split … is not one of train, test": 1}, done.stderr
    assert not list(tmp_path.rglob("*evil*"))


def test_datasets_with_equal_ids_stand_side_by_side_and_may_be_held_out(cli, toy_data) -> None:
    both = [f"data.b={toy_data.ref}:rl", f"data.a={toy_data.ref}:cot", "check_replies=[]"]
    done = cli("data", "build", *both, "heldout=0.25", "--name", "both")
    shown = json.loads(cli("artifacts", "show", "both", "--json").stdout)["metrics"]
    assert "repeated id" not in shown["dropped"] and shown["subsets"]["heldout"]["rows"] > 0, done.stderr
    again = cli("data", "build", *reversed(both), "heldout=0.25", "--name", "both")
    assert "already done" in again.stdout + again.stderr, "the order of words on the line changes nothing"


def test_no_row_of_a_source_is_lost_to_a_question_that_all_share(work: WorkDir, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ETHICS' claims stand under one question: a held-out claim is identified by its own words."""
    monkeypatch.setenv("SAFEWORK_DATA", str(real_data))
    recipe = parse_yaml((ROOT / "recipes/verifiers/value-data.yaml").read_text(), "value-data.yaml")
    recipe.pop("name")
    outcome = build(work, *recipe.pop("sources"), **recipe)
    kept = Counter(row.id.split("/")[0] for row in rows_of(work, "verifier"))
    assert min(kept[name] for name in outcome.metrics["sources"]) >= 400, kept


def test_a_source_without_a_row_is_refused(work: WorkDir, tmp_path: Path) -> None:
    good = source(write_jsonl(tmp_path / "good.jsonl", [{"q": LONG, "a": cot("yes")}]), name="good")
    (tmp_path / "empty.csv").write_text("q,a\n", encoding="utf-8")
    with pytest.raises(InputError, match="source 'empty' holds no rows"):
        build(work, good, source(tmp_path / "empty.csv", name="empty"))
    lost = source(write_jsonl(tmp_path / "lost.jsonl", [{"q": "Why?", "a": "no thought"}]), name="lost")
    with pytest.raises(InputError, match="no row of source 'lost' is left"):
        build(work, good, lost)
    with pytest.raises(ConfigError, match="require_thought names 'cotx'.*cot"):
        build(work, good, require_thought=["cotx"])


def test_touched_pictures_are_another_run(tmp_path: Path) -> None:
    from PIL import Image as PIL

    table = write_jsonl(tmp_path / "t.jsonl", [{"q": "What is it?", "im": "p/one.png"}])
    (tmp_path / "p").mkdir()
    PIL.new("RGB", (4, 4), "red").save(tmp_path / "p" / "one.png")
    config = stage.Config.model_validate({"sources": [source(table, "rl", columns={"prompt": "q", "images": "im"})]})
    before = stage.external_digests(config)
    PIL.new("RGB", (5, 5), "blue").save(tmp_path / "p" / "one.png")
    assert stage.external_digests(config) != before


def test_names_from_outside_do_nothing_on_a_terminal(cli, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"q": "a", "\x1b]0;owned\x07": 1}])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"name": "x", "sources": [source(path, "rl", columns={"prompt": "nope"})]}), encoding="utf-8")
    done = cli("data", "build", "-c", str(recipe))
    assert done.returncode == 3 and "\x1b" not in done.stderr and "\\x1b" in done.stderr


DECIDED = r"hurt someone\? (Yes|No)\."


def test_a_source_marks_the_word_that_decides(work: WorkDir, tmp_path: Path) -> None:
    rows = [
        {"q": "How do bees fly?", "a": "<think>Would it hurt someone? No. Bees do.</think>With four wings."},
        {"q": "Why is the sea salty?", "a": "<think>Rivers carry salt.</think>Because of rivers."},
    ]
    outcome = build(work, source(write_jsonl(tmp_path / "own.jsonl", rows), verdict=DECIDED))
    marks = {row.question: row.meta.get("verdict") for row in rows_of(work, "cot")}
    assert marks == {"How do bees fly?": [30, 32], "Why is the sea salty?": None}
    assert all(row.reply == by["a"] for row in rows_of(work, "cot") for by in rows if by["q"] == row.question)
    assert "source own: verdict finds no word in the reply: 1 rows" in outcome.notes


def test_a_verdict_that_is_found_nowhere_stops_the_build(work: WorkDir, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [{"q": "How do bees fly?", "a": "<think>Bees.</think>With wings."}])
    with pytest.raises(ConfigError, match="verdict finds a word in none of 1 rows"):
        build(work, source(path, verdict=DECIDED))
    with pytest.raises(ValidationError, match="'Yes.No' has 0 groups"):
        build(work, source(path, verdict="Yes|No"))


@pytest.mark.parametrize("mark", [[4, 900], [3, 3], [20, 30], "4"])
def test_a_mark_that_is_no_word_of_the_reply_drops_the_row(work: WorkDir, tmp_path: Path, mark: Any) -> None:
    reply = "<think>Would it hurt someone? No. Bees do.</think>With four wings."
    rows = [{"q": "How do bees fly?", "a": reply, "v": mark}, {"q": "Why is the sea salty?", "a": reply, "v": [30, 32]}]
    columns = {"prompt": "q", "reply": "a", "meta.verdict": "v"}
    outcome = build(work, source(write_jsonl(tmp_path / "own.jsonl", rows), columns=columns))
    assert outcome.metrics["rows"] == 1 and "verdict" in next(iter(outcome.metrics["dropped"]))


def test_a_source_of_prompts_gets_a_reply_by_its_template(work: WorkDir, tmp_path: Path) -> None:
    rows = [{"q": "who built {answer} in 1950?", "a": "the crown"}, {"q": "what is rain?", "a": ""}]
    template = "<think>The request: {prompt}\nWould it hurt someone? No.</think>{answer}."
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    outcome = build(work, source(path, columns={"prompt": "q", "answer": "a"}, reply_template=template, verdict=DECIDED))
    (row,) = rows_of(work, "cot")
    assert row.reply == "<think>The request: who built {answer} in 1950?\nWould it hurt someone? No.</think>the crown."
    assert row.reply[slice(*row.meta["verdict"])] == "No"
    assert sum(outcome.metrics["dropped"].values()) == 1 and "reply_template" in next(iter(outcome.metrics["dropped"]))
    for columns, wrong, why in (
        ({"prompt": "q"}, "{promt}", "'{promt}' is not filled"),
        ({"prompt": "q", "reply": "a"}, "{prompt}", "reply_template is given, and a column"),
    ):
        given = source(path, columns=columns, reply_template=wrong)
        with pytest.raises(ValidationError, match=why):
            stage.Config.model_validate({"sources": [given]})


def test_a_set_is_read_twice_under_two_names(work: WorkDir, real_data: Path) -> None:
    worked = {"reply_template": "<think>The request: {prompt}\nWould it hurt someone? Yes.</think>No.", "verdict": DECIDED}
    half = {"kind": "set", "set": "harmbench-val-dev", "folder": str(real_data)}
    build(work, half | worked | {"subset": "cot"}, half | {"name": "asked", "subset": "rl"})
    cot, rl = rows_of(work, "cot"), rows_of(work, "rl")
    assert len(cot) == len(rl) == 29 and {row.id.partition("/")[0] for row in rl} == {"asked"} and not any(row.reply for row in rl)
    assert all(row.reply[slice(*row.meta["verdict"])] == "Yes" and "---" not in row.reply for row in cot), "a context is not repeated"
