"""Suites read public sets as published; broken tables are named by file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.data.row import problems
from safework_cli.data.suites import SUITES, load_suite, render_choices, stem, tables
from safework_cli.data.suites.readers import LETTERS, evaluation_half, shuffled
from safework_cli.data.suites.tables import read_table

ROWS = {
    "harmbench-test": 320, "strongreject": 313, "xstest-safe": 250, "xstest-unsafe": 200, "flames": 1000, "safetybench": 2100,
    "ethics-justice": 500, "ethics-deontology": 500, "ethics-virtue": 500, "ethics-commonsense": 500, "mmlu-test": 1140,
    "truthfulqa": 817, "nq-open": 3610, "gsm8k-test": 1319, "math500": 500, "ifeval": 541, "xquad-en": 1190, "xquad-zh": 1190,
    "xquad-en-given": 1190, "xquad-zh-given": 1190, "followbench-content": 125, "followbench-format": 150, "followbench-mixed": 85,
    "followbench-situation": 110, "followbench-style": 150, "figstep": 250, "gaokao-mm-biology": 21, "gaokao-mm-mathematics": 80,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name for name, suite in SUITES.items() if suite.tried))
def test_a_suite_gives_sound_rows_with_distinct_ids(real_data: Path, name: str) -> None:
    rows = load_suite(name, real_data)
    assert len(rows) == ROWS.get(name, len(rows))
    assert len({row.id for row in rows}) == len(rows)
    assert [found for row in rows if (found := problems(row))] == []
    assert {(row.task, row.harmful, row.split) for row in rows} == {(SUITES[name].task, SUITES[name].harmful, "test")}
    for row in rows:
        if row.meta.get("answer_type") == "choice":
            assert row.answer in LETTERS[: len(row.meta["choices"])]
            if not name.startswith("gaokao"):  # its options are part of the question, as they were printed
                assert f"{row.answer}. {row.meta['choices'][LETTERS.index(row.answer)]}" in row.question


def test_known_answers(real_data: Path) -> None:
    assert load_suite("gsm8k-test", real_data)[0].answer == "18"
    assert load_suite("math500", real_data)[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert load_suite("mmlu-test", real_data)[1].answer == "C"
    first = load_suite("truthfulqa", real_data)[0]
    assert first.meta["choices"][LETTERS.index(str(first.answer))] == "Nothing in particular happens when you eat a pomegranate."
    constraints = load_suite("ifeval", real_data)[0].meta["constraints"]
    assert constraints[2] == {"id": "length_constraints:number_words", "relation": "at least", "num_words": 300}
    nq = load_suite("nq-open", real_data)[0]
    assert (nq.answer, nq.meta["aliases"]) == ("14 December 1972 UTC", ["December 1972"])


def test_truthfulqa_does_not_always_put_the_true_option_first(real_data: Path) -> None:
    answers = [row.answer for row in load_suite("truthfulqa", real_data)]
    assert 0.15 < answers.count("A") / len(answers) < 0.35


def test_the_evaluation_half_is_fixed_by_the_question(real_data: Path) -> None:
    rows = load_suite("simpleqa", real_data)
    assert 2000 < len(rows) < 2330 and all(evaluation_half(row.question) for row in rows)


def test_stem_leaves_out_what_the_suite_wrote() -> None:
    from safework_cli.data.row import Message, Row

    asked = render_choices("Which?", ["x", "y"], "zh")
    assert asked == "Which?\n\nA. x\nB. y\n\n请只回答正确选项的字母。"
    assert stem(Row("a", "knowledge", [Message(role="user", content=asked)], meta={"stem": "Which?"})) == "Which?"
    assert stem(Row("a", "knowledge", [Message(role="user", content=asked)])) == asked


def test_shuffled_is_a_permutation_fixed_by_its_key() -> None:
    options, order = shuffled(["a", "b", "c", "d"], "key")
    assert sorted(options) == ["a", "b", "c", "d"] and [["a", "b", "c", "d"][i] for i in order] == options
    assert shuffled(["a", "b", "c", "d"], "key") == (options, order)


def test_an_unknown_suite_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no suite 'harmbench_test'; did you mean 'harmbench-test'") as caught:
        load_suite("harmbench_test", tmp_path)
    assert "xstest-safe" in caught.value.why


def test_a_missing_set_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suite xstest-safe: the file .* does not exist") as caught:
        load_suite("xstest-safe", tmp_path)
    assert "walledai/XSTest" in caught.value.why and str(tmp_path / "xstest") in caught.value.do
    with pytest.raises(InputError, match="the folder .* does not exist"):
        load_suite("xstest-safe", tmp_path / "nowhere")


def test_a_changed_set_names_the_column(tmp_path: Path) -> None:
    (tmp_path / "strongreject").mkdir()
    path = tmp_path / "strongreject" / "strongreject_dataset.csv"
    path.write_text("category,forbidden_prompts\nx,y\n")
    with pytest.raises(InputError, match="record 1: no column 'forbidden_prompt'; did you mean 'forbidden_prompts'"):
        load_suite("strongreject", tmp_path)
    path.write_text("category,forbidden_prompt\n")
    with pytest.raises(InputError, match=r"suite strongreject: .* holds no rows"):
        load_suite("strongreject", tmp_path)


def rows_of(tmp_path: Path, name: str, content: bytes | str, format: str | None = None) -> list[dict]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(path, format))


def test_csv_keeps_quoted_newlines_and_drops_the_byte_order_mark(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.csv", '\ufeffa,b\r\n"x\ny",2\r\n\r\n"say ""hi""",3\r\n') == [
        {"a": "x\ny", "b": "2"},
        {"a": 'say "hi"', "b": "3"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "what", "why"),
    [
        ("a.csv", "a,b\n1,2\n1,2,3\n", "line 3: broken CSV row", "it has 3 fields, the header names 2"),
        ("a.csv", 'a,b\n1,2\n"x,2\n1,2\n', "line 3: broken CSV row", "a quoted field is never closed"),
        ("a.csv", "a,a\n1,2\n", "the header names column 'a' twice", ""),
        ("a.csv", b"a,b\n1,2\n1,\xb3\n", "line 3: not UTF-8", "byte 0xb3 at position 3"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: not JSON", "Expecting value at column"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2: a JSON list, not an object", ""),
        ("a.jsonl", "[" * 100_000, "line 1: not usable JSON", "recursion"),
        ("a.json", '{"a": 1}\n{"a": 2}\n', "line 2: not JSON", "format: jsonl"),
        ("a.json", '{"a": 1}', "not an array of JSON objects", ""),
        ("a.parquet", b"PAR1 and then nothing", "not a readable Parquet file", ""),
    ],
)
def test_a_broken_table_is_named_by_line(tmp_path: Path, name: str, content: bytes | str, what: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path, name, content)
    assert what in caught.value.what and str(tmp_path / name) in caught.value.what
    assert why in caught.value.why


def test_a_line_beyond_the_guard_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 64)
    assert rows_of(tmp_path, "a.jsonl", json.dumps({"a": "x" * 40})) == [{"a": "x" * 40}]
    with pytest.raises(InputError, match="line 2: longer than"):
        rows_of(tmp_path, "a.jsonl", '{"a": 1}\n' + json.dumps({"a": "x" * 80}))


def test_an_unknown_suffix_asks_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the name does not say what format"):
        rows_of(tmp_path, "a.txt", "{}")
    assert rows_of(tmp_path, "a.txt", '{"a": 1}', "jsonl") == [{"a": 1}]
    with pytest.raises(InputError, match="the file .* does not exist"):
        list(read_table(tmp_path / "b.csv"))


def test_a_parquet_file_that_unpacks_to_far_more_is_read_a_few_rows_at_a_time(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * 20_000_000]))
    pq.write_table(pa.table({"prompt": text}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from safework_cli.data.suites.tables import read_table\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))\n"
        "print(sum(1 for _, record in zip(range(40), read_table(Path(sys.argv[1])))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "bomb.parquet")], capture_output=True, text=True)
    assert done.stdout.strip() == "40", done.stderr


def test_tables_that_no_rows_are_written_as_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wide = tmp_path / "wide.csv"
    wide.write_text(",".join(f"c{i}" for i in range(200_000)) + "\n" + ",".join("1" for _ in range(200_000)) + "\n")
    deep, array = tmp_path / "deep.jsonl", tmp_path / "deep.json"
    deep.write_text('{"q": ' + "[" * 200 + "]" * 200 + "}\n")
    array.write_text('[{"q": 1}, {"q": ' + "[" * 200 + "]" * 200 + "}]")
    flat = tmp_path / "flat.jsonl"
    flat.write_text(json.dumps({"q": [{"a": [i]} for i in range(300)]}) + "\n")
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table({"q": broken}), tmp_path / "latin.parquet")
    for path, what in (
        (wide, "200,000 columns"),
        (deep, "line 1: nested deeper than 100"),
        (array, "object 2: nested deeper than 100"),
        (tmp_path / "latin.parquet", "a text that is not UTF-8"),
    ):
        with pytest.raises(InputError, match=what):
            list(read_table(path))
    assert len(list(read_table(flat))) == 1


def test_a_suite_of_another_package_is_one_line_of_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry point: the suite is listed and read by name, and an entry that is not a suite is refused."""
    from safework_cli.core import registry

    (tmp_path / "theirs.py").write_text(
        "from safework_cli.data.row import Row\n"
        "from safework_cli.data.suites import Suite\n"
        "def read(suite, path):\n"
        "    yield suite.row('1', [{'role': 'user', 'content': path.read_text()}], answer='4', meta={'answer_type': 'exact'})\n"
        "sums = Suite('their-sums', 'sums', 'sums.txt', 'general', read, 'example.org', 'MIT')\n"
    )
    info = tmp_path / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[safework.suites]\ntheir-sums = theirs:sums\nother-name = theirs:sums\n")
    (tmp_path / "sums.txt").write_text("2+2?")
    monkeypatch.syspath_prepend(tmp_path)
    registry.entries.cache_clear()
    try:
        assert "their-sums" in SUITES and len(SUITES) > 20
        (row,) = load_suite("their-sums", tmp_path)
        assert (row.id, row.split, row.answer) == ("their-sums/1", "test", "4")
        with pytest.raises(ConfigError, match="theirs:sums is the suite 'their-sums'"):
            load_suite("other-name", tmp_path)
        with pytest.raises(ConfigError, match="did you mean 'their-sums'"):
            load_suite("their-sum", tmp_path)
    finally:
        registry.entries.cache_clear()
