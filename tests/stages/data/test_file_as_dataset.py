"""A file of rows where a dataset is wanted: built on the way, found again, and read by the names of its columns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safework_cli.core.artifacts import Store
from safework_cli.core.config import resolve
from safework_cli.core.data_files import build_request
from safework_cli.core.errors import InputError
from safework_cli.core.prepare import prepare
from safework_cli.core.record import Prepared, manifest_of
from safework_cli.core.registry import load_stage
from safework_cli.core.runtime import execute
from safework_cli.core.stage import Outcome
from safework_cli.core.system import PeakMemory
from safework_cli.data.dataset import read_dataset, training_rows
from safework_cli.data.row import Row, read_rows, write_rows
from safework_cli.data.schema import row_schema
from safework_data.build.columns import columns_of
from safework_data.build.sources_config import FileSource
from safework_data.build.splits import HoldOut
from safework_data.build.stage import stage as data_build
from safework_data.files import digest_of
from safework_sft.stage import stage as sft

RECORDS = [{"prompt": f"What is {n} plus {n + 1}?", "response": f"The sum is {2 * n + 1}."} for n in range(6)]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def prepared(store: Store, model: Path, data: str, **options: bool) -> Prepared:
    return prepare(sft, resolve(sft, [], [f"model={model}", f"data={data}"], {}), store, **options)


def build(store: Store, sources: str, *settings: str) -> list[Row]:
    made = execute(prepare(data_build, resolve(data_build, [], [f"sources={sources}", *settings], {}), store), store, quiet=True)
    return read_dataset(made.artifact)


def written(tmp_path: Path, ending: str) -> Path:
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif ending == "csv":
        with path.open("w", newline="") as handle:
            table = csv.DictWriter(handle, ["prompt", "response"])
            table.writeheader()
            table.writerows(RECORDS)
    elif ending == "json":
        path.write_text(json.dumps(RECORDS))
    elif ending == "jsonl.gz":
        with gzip.open(path, "wt") as handle:
            handle.writelines(json.dumps(record) + "\n" for record in RECORDS)
    else:
        write_jsonl(path, RECORDS)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz"])
def test_a_file_becomes_a_dataset_of_training_rows(store: Store, tiny_model: Path, tmp_path: Path, ending: str) -> None:
    made = prepared(store, tiny_model, str(written(tmp_path, ending))).inputs.one("data")
    assert made.ref == "dataset/rows@v1" and made.external is None and made.manifest.stage == "data build"
    rows = training_rows(made)
    assert [(row.question, row.reply, row.task, row.split) for row in rows] == [
        (record["prompt"], record["response"], "general", "train") for record in RECORDS
    ]


def test_an_unchanged_file_finds_its_dataset_and_a_changed_one_makes_a_version(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    first, again = (prepared(store, tiny_model, str(path)) for _ in range(2))
    assert first.inputs.one("data").ref == again.inputs.one("data").ref == "dataset/rows@v1" and first.fingerprint == again.fingerprint
    explicit = build(store, json.dumps([{"kind": "file", "path": str(path)}]), "near_duplicate_threshold=null")
    assert [a.ref for a in store.list("dataset")] == ["dataset/rows@v1"] and len(explicit) == 6, "the request is that of data build"
    write_jsonl(path, RECORDS[:4])
    changed = prepared(store, tiny_model, str(path))
    assert changed.inputs.one("data").ref == "dataset/rows@v2" and len(training_rows(changed.inputs.one("data"))) == 4


def test_a_plan_says_what_would_be_built_and_builds_nothing(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    plan = prepared(store, tiny_model, str(path), build=False).plan
    assert not store.list() and not list(store.runs.glob("*"))
    assert plan.lines[0] == "data build → dataset/rows" and "  rows.jsonl: columns: {prompt: prompt, reply: response}" in plan.lines
    prepared(store, tiny_model, str(path))
    assert "6 rows" in " ".join(prepared(store, tiny_model, str(path), build=False).plan.lines), "once built, the plan is the stage's own"
    write_jsonl(path, [{"a": 1}])
    refused = prepared(store, tiny_model, str(path), build=False).plan.refusals
    assert refused and refused[0].what.startswith("data build: ") and len(store.list()) == 1


def test_the_command_line_builds_on_the_way_and_the_lineage_names_the_dataset(cli, store: Store, tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    words = ("sft", f"model={tiny_model}", "data=./rows.jsonl", "max_steps=1", "sample_prompts=0")
    planned = cli(*words, "--dry-run", cwd=tmp_path)
    assert planned.returncode == 0 and "data build → dataset/rows" in planned.stderr and not store.list()
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0 and "data build: ./rows.jsonl → dataset/rows@v1" in done.stderr, done.stderr
    made = store.resolve(done.stdout.strip())
    assert made.manifest.inputs["data"].ref == "dataset/rows@v1" and "dataset/rows@v1" in store.lineage(made)
    again = cli(*words, cwd=tmp_path)
    assert again.stdout == done.stdout and "data build:" not in again.stderr


def test_errors_of_the_build_are_shown_as_its_own(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"prompt": "a", "response": "b"}\n{"prompt": \n')
    with pytest.raises(InputError, match=r"data build of .*rows\.jsonl: .*line 2: not JSON"):
        prepared(store, tiny_model, str(broken))
    copies = write_jsonl(tmp_path / "copies.jsonl", RECORDS[:1] * 9)
    with pytest.raises(InputError, match=r"8 of 9 rows were dropped, 0 are tolerated(.|\n)*exact duplicate 8") as refused:
        prepared(store, tiny_model, str(copies))
    assert "use the rest: data=dataset/copies@v1; or build it with other rules" in refused.value.do
    command = shlex.split(refused.value.do.partition("--help): ")[2])
    assert command[:3] == ["safework", "data", "build"] and build(store, command[3].removeprefix("sources="), command[4])
    assert [a.ref for a in store.list("dataset")] == ["dataset/copies@v1"], "the command that is shown is the request that was made"


def test_rows_that_are_alike_stay_where_a_file_is_given(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    frame = " ".join(f"word{n}" for n in range(30))
    alike = [{"prompt": f"{frame} item {n}?", "response": "Ask at the desk."} for n in range(40)]
    path = write_jsonl(tmp_path / "mine.jsonl", alike)
    assert len(training_rows(prepared(store, tiny_model, str(path)).inputs.one("data"))) == 40
    with_the_check = build(store, json.dumps([{"kind": "file", "name": "checked", "path": str(path)}]), "max_dropped=1")
    assert len(with_the_check) < 40, "data build itself drops near duplicates"


def test_what_a_file_lost_on_the_way_is_said_each_time_and_kept(store: Store, tiny_model: Path, tmp_path: Path, capsys) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [*RECORDS * 5, *RECORDS[:1]])
    words = [f"model={tiny_model}", f"data={path}", "max_dropped=0.9", "max_steps=1", "sample_prompts=0", "verdict=null"]
    said = f"data build of {path}: 25 of 31 rows dropped: exact duplicate 25 (drops.jsonl of dataset/mine@v1 lists them)"
    for _ in range(2):  # the second time it is built already
        planned = prepare(sft, resolve(sft, [], words, {}), store, quiet=True)
        assert said in capsys.readouterr().err and f"note: {said}" in planned.plan.lines
    assert manifest_of(planned, Outcome(notes=["other"]), 1.0, PeakMemory(0, None)).notes == [said, "other"]
    with pytest.raises(InputError, match="25 of 31 rows were dropped, 1 are tolerated"):
        prepare(sft, resolve(sft, [], words[:2], {}), store, quiet=True)


def test_the_product_s_own_rows_need_no_columns(store: Store, tmp_path: Path) -> None:
    rows = [
        Row("a", "safety", [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}], category="x", harmful=True,
            source="people", licence="MIT", split="train", meta={"group": "g", "language": "en", "label": "unsafe"}),
        Row("b", "knowledge", [{"role": "user", "content": "Which? \nA. x\nB. y"}], answer="B", split="test",
            meta={"group": "h", "language": "en", "answer_type": "choice", "choices": ["x", "y"], "stem": "Which?"}),
    ]  # fmt: skip
    write_rows(tmp_path / "own.parquet", rows)
    records = [row.to_record() | {"meta": row.meta} for row in rows]
    assert all(set(record) <= set(row_schema()["properties"]) for record in records)
    write_jsonl(tmp_path / "own.jsonl", records)
    for name in ("own.parquet", "own.jsonl"):
        made = build(store, json.dumps([{"kind": "file", "path": str(tmp_path / name)}]))
        expected = [row for row in read_rows(tmp_path / "own.parquet")]
        for row in expected:
            row.id, row.source, row.licence = f"own/{row.id}", row.source or "own", row.licence or "unknown"
        assert sorted(made, key=lambda row: row.id) == expected


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [("meta", "{", "meta is not plain JSON"), ("answer", 5, "answer is int"), ("messages", [{"role": "user"}], "a message is not")],
)
def test_a_row_that_breaks_the_schema_is_dropped_by_name(store: Store, tmp_path: Path, field: str, value: Any, problem: str) -> None:
    good = {"id": "a", "task": "general", "messages": [{"role": "user", "content": "Why?"}], "meta": {}}
    path = write_jsonl(tmp_path / "own.jsonl", [good, good | {"id": "b", field: value}])
    assert [row.id for row in build(store, json.dumps([{"kind": "file", "path": str(path)}]))] == ["own/a"]
    dropped = json.loads((store.resolve("dataset/own").path / "drops.jsonl").read_text())
    assert dropped["id"].startswith("own/") and dropped["reason"] == "schema" and problem in dropped["detail"]


def test_a_split_column_says_what_is_held_out(store: Store, tmp_path: Path) -> None:
    sides = ["train", "test", "Validation", "train", "", "nowhere"]
    path = write_jsonl(tmp_path / "rows.jsonl", [record | {"split": side} for record, side in zip(RECORDS, sides, strict=True)])
    made = build(store, json.dumps([{"kind": "file", "path": str(path)}]))
    assert {row.id: row.split for row in made} == {
        "rows/1": "train", "rows/2": "test", "rows/3": "test", "rows/4": "train", "rows/5": "train",
    }  # fmt: skip
    artifact = store.resolve("dataset/rows")
    assert [row.id for row in training_rows(artifact)] == ["rows/1", "rows/4", "rows/5"]
    assert artifact.manifest.metrics["dropped"] == {"split is neither train nor test": 1}


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"instruction": "a", "output": "b"}, {"prompt": "instruction", "reply": "output"}),
        ({"question": "a", "completion": "b"}, {"prompt": "question", "reply": "completion"}),
        ({"Prompt": "a", "reply": "b", "answer": "c"}, {"prompt": "Prompt", "reply": "reply", "answer": "answer"}),
        ({"conversations": [{"from": "human", "value": "a"}]}, {"messages": "conversations"}),
        ({"prompt": "a", "image": "a.png", "task": "safety"}, {"prompt": "prompt", "images": "image", "task": "task"}),
        ({"prompt": "a", "task": "summarise", "meta": {"label": "x"}}, {"prompt": "prompt", "meta.label": "meta.label"}),
    ],
)
def test_columns_are_found_by_the_usual_names(tmp_path: Path, record: dict[str, Any], columns: dict[str, str]) -> None:
    found = columns_of(FileSource(kind="file", path=str(write_jsonl(tmp_path / "rows.jsonl", [record]))))
    assert found.source.columns == columns and not found.own
    assert found.source.task == (None if "task" in columns else "general")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"q": "a?", "a b": "c"}, "which column holds the prompts"),
        ({"instruction": "a", "input": "b", "output": "c"}, "2 columns may be the prompt: instruction, input"),
        ({"prompt": "a", "response": "b", "output": "c"}, "2 columns may be the reply: response, output"),
        ({"question": "a", "answer": "b"}, "the gold answer that replies are compared with"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "the conversation may be 'messages', or 'prompt'"),
    ],
)
def test_what_is_ambiguous_is_refused_with_a_command_that_works(store: Store, tmp_path: Path, record: dict, message: str) -> None:
    path = write_jsonl(tmp_path / "my rows.jsonl", [record])
    with pytest.raises(InputError, match=message) as refused:
        build(store, json.dumps([{"kind": "file", "path": str(path)}]))
    command = shlex.split(refused.value.do.splitlines()[0].partition("]'")[0] + "]'")
    assert command[:3] == ["safework", "data", "build"]
    assert len(build(store, command[3].removeprefix("sources="))) == 1


def test_the_starter_set_s_own_files_are_part_of_the_fingerprint() -> None:
    config = data_build.Config.model_validate({"sources": [{"kind": "starter"}]})
    assert data_build.external_digests(config)["starter set"] != digest_of([])


def test_a_hub_dataset_without_a_commit_is_not_pinned() -> None:
    table = {"kind": "hub", "subset": "rl", "task": "general", "columns": {"prompt": "q"}}
    sources = [table | {"id": "a/b"}, table | {"id": "a/c", "revision": "v1"}, table | {"id": "a/d", "revision": "0" * 40}]
    config = data_build.Config.model_validate({"sources": sources})
    assert data_build.unpinned(config) == ["hf:a/b@main", "hf:a/c@v1"]


def shown(store: Store, words: list[str]) -> str:
    from rich.console import Console

    stage = load_stage(" ".join(words[:2]))
    made = execute(prepare(stage, resolve(stage, [], words[2:], {}), store), store, quiet=True).artifact
    out = Console(width=200, file=io.StringIO(), record=True)
    out.print(stage.show(made))
    return out.export_text()


def test_a_build_ends_with_what_it_read_dropped_and_wrote(store: Store, tmp_path: Path) -> None:
    records = [*RECORDS, RECORDS[0], {"prompt": "", "response": "x"}]
    sources = [{"kind": "file", "path": str(write_jsonl(tmp_path / "rows.jsonl", records)), "subset": "sft"}]
    lines = shown(store, ["data", "build", f"sources={json.dumps(sources)}", "heldout=0.3"]).splitlines()
    assert lines[0].split() == ["subset", "read", "dropped", "written", "dropped", "because"]
    assert [line.split() for line in lines[1:3]] == [
        ["sft", "8", "1", "4", "train", "4", "no", "prompt", "1"],
        ["heldout", "0", "1", "2", "test", "2", "exact", "duplicate", "1"],
    ]


def test_an_index_ends_with_what_it_read_dropped_and_wrote(store: Store, tmp_path: Path) -> None:
    passages = [{"id": str(n), "title": "t", "text": text} for n, text in enumerate(["Bees fly.", "Bees fly.", "Ants walk."])]
    sources = [{"kind": "file", "path": str(write_jsonl(tmp_path / "p.jsonl", passages))}]
    lines = shown(store, ["data", "index", f"sources={json.dumps(sources)}"]).splitlines()
    assert lines[1].split() == ["p", "3", "1", "2", "en", "2", "exact", "duplicate", "1"]


def test_the_lot_is_drawn_once_for_each_row(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    rank = HoldOut._rank
    monkeypatch.setattr(HoldOut, "_rank", lambda self, group: drawn.append(group) or rank(self, group))
    path = write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    stage = data_build
    words = [f"sources={json.dumps([{'kind': 'file', 'path': str(path)}])}", "heldout=0.4"]
    made = execute(prepare(stage, resolve(stage, [], words, {}), store), store, quiet=True).artifact
    assert made.manifest.metrics["subsets"]["heldout"]["rows"] == 2 and len(drawn) == len(RECORDS)


def test_a_file_that_changes_while_it_is_read_is_not_filed_under_its_old_content(store: Store, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", RECORDS)
    before = prepare(*build_request(path), store)
    write_jsonl(path, RECORDS[:3])
    with pytest.raises(InputError, match="changed during the run: source rows"):
        execute(before, store, quiet=True)
    assert not store.list() and not list(store.runs.iterdir())
    write_jsonl(path, RECORDS)
    assert len(read_dataset(execute(prepare(*build_request(path), store), store, quiet=True).artifact)) == 6


def test_one_file_by_several_paths_is_one_dataset(store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my $5 rows [1]"
    folder.mkdir()
    write_jsonl(folder / "rows.jsonl", RECORDS)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for path in ("./rows.jsonl", "../link/../link/rows.jsonl", "../link/rows.jsonl", str(tmp_path / "link" / "rows.jsonl")):
        assert prepared(store, tiny_model, path).inputs.one("data").ref == "dataset/rows@v1"


def test_what_is_no_table_is_refused_with_what_to_do(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for reference in (str(tmp_path / "pipe.jsonl"), "/dev/null"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            prepared(store, tiny_model, reference)
    with pytest.raises(InputError, match="is a pipe or a device"):
        build(store, json.dumps([{"kind": "file", "path": str(tmp_path / "pipe.jsonl")}]))
    path = write_jsonl(tmp_path / "rows.txt", RECORDS)
    with pytest.raises(InputError, match="not a file of rows by its name") as refused:
        prepared(store, tiny_model, str(path))
    command = shlex.split(refused.value.do.partition(": ")[2])
    assert command[:3] == ["safework", "data", "build"] and len(build(store, command[3].removeprefix("sources="))) == 6


@pytest.mark.parametrize(
    ("late", "name"),
    [
        ({"prompt": "What is 1?", "response": "1", "split": "test"}, "split"),
        ({"prompt": "What is 1?", "output": "1"}, "output"),
        ({"prompt": "What is 1?", "response": "1", "answer": "1"}, "answer"),
        ({"prompt": "What is 1?", "response": "1", "meta": {"label": "x"}}, "meta.label"),
    ],
)
def test_a_column_that_only_late_rows_have_is_not_left_out_silently(store: Store, tmp_path: Path, late: dict, name: str) -> None:
    early = [{"prompt": f"What is {n} and {n * n} in words?", "response": str(n)} for n in range(150)]
    path = write_jsonl(tmp_path / "rows.jsonl", [*early, late])
    with pytest.raises(InputError, match=f"row 151: the column '{name}' is not in the first 100 rows"):
        build(store, json.dumps([{"kind": "file", "path": str(path)}]))
    explicit = {"kind": "file", "path": str(path), "task": "general", "columns": {"prompt": "prompt", "reply": "response"}}
    assert len(build(store, json.dumps([explicit]))) > 100


def test_a_second_file_with_other_columns_is_not_left_out_silently(store: Store, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    write_jsonl(tmp_path / "b.jsonl", [record | {"split": "test"} for record in RECORDS])
    with pytest.raises(InputError, match="row b/1: the column 'split'"):
        build(store, json.dumps([{"kind": "file", "name": "both", "path": str(tmp_path / "*.jsonl")}]))
