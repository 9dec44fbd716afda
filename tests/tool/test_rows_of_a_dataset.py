"""Which rows a reference to a dataset stands for, and which of them may be trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safework_cli.core.errors import InputError
from safework_cli.data import dataset
from safework_cli.data.dataset import prompts_of, read_dataset, training_rows
from safework_cli.data.row import Row, arrow_schema, write_rows


def rows(*ids: str, split: str = "") -> list[Row]:
    return [Row(i, "general", [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}], split=split) for i in ids]


def ids(found: list[Row]) -> list[str]:
    return [row.id for row in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "exp"
    (home / "old").mkdir(parents=True)
    write_rows(home / "train.parquet", rows("a", "b"))
    write_rows(home / "test.parquet", rows("c"))
    write_rows(home / "old" / "train.parquet", rows("d"))
    return home


def test_a_file_stands_for_its_own_rows_and_no_others(store, folder):
    assert ids(read_dataset(store.resolve(f"{folder}/train.parquet", ("dataset",)))) == ["a", "b"]
    assert ids(read_dataset(store.resolve(f"{folder}/test.parquet", ("dataset",)))) == ["c"]


def test_a_folder_is_read_where_it_is_plain_which_rows_are_meant(store, folder):
    with pytest.raises(InputError, match=r"outside any subset \(test.parquet\)(.|\n)*exp:old"):
        read_dataset(store.resolve(str(folder), ("dataset",)))
    assert ids(read_dataset(store.resolve(f"{folder}:old", ("dataset",)))) == ["d"]
    (folder / "old" / "train.parquet").unlink()
    found = store.resolve(str(folder), ("dataset",))
    assert ids(read_dataset(found)) == ["c", "a", "b"] and ids(training_rows(found)) == ["a", "b"]  # test.parquet says what it is for


@pytest.mark.parametrize("name", ["validation", "validation-00000-of-00001", "dev", "Val", "eval_en", "held_out", "heldout-0", "testing"])
def test_files_that_are_called_as_held_out_splits_are_not_trained_on(store, tmp_path, name):
    write_rows(tmp_path / "train.parquet", rows("a"))
    write_rows(tmp_path / f"{name}.parquet", rows("b"))
    assert ids(training_rows(store.resolve(str(tmp_path), ("dataset",)))) == ["a"]


@pytest.mark.parametrize("name", ["train-0", "develop", "tested", "evals", "values"])
def test_other_files_are(store, tmp_path, name):
    write_rows(tmp_path / f"{name}.parquet", rows("a"))
    assert ids(training_rows(store.resolve(str(tmp_path), ("dataset",)))) == ["a"]


def test_each_task_that_is_named_must_have_rows(store, tmp_path):
    write_rows(tmp_path / "train.parquet", [*rows("a"), *(replace(row, task="safety", source="s") for row in rows("b"))])
    found = store.resolve(str(tmp_path), ("dataset",))
    assert ids(prompts_of(found, tasks=["safety"])) == ["b"] and ids(prompts_of(found, tasks=["safety", "general"])) == ["a", "b"]
    with pytest.raises(InputError, match=r"tasks names 'search', and .* has no such rows(.|\n)*it has general, safety"):
        prompts_of(found, tasks=["safety", "search"])
    with pytest.raises(InputError, match="tasks names 'general', and .* of these sources has no such rows"):
        prompts_of(found, tasks=["safety", "general"], sources=["s"])


def test_only_files_of_the_manifest_are_read(store, commit):
    payload = store.staging()
    (payload / "sft").mkdir()
    write_rows(payload / "sft" / "train.parquet", rows("a"))
    found = commit(payload, "dataset", "d")
    write_rows(found.path / "sft" / "train-2.parquet", rows("stranger"))
    assert ids(read_dataset(found)) == ["a"] and ids(read_dataset(found.with_subset("sft"))) == ["a"]


def test_held_out_rows_are_trained_on_only_where_their_subset_is_named(store, commit):
    payload = store.staging()
    for subset in ("sft", "heldout", "probe"):
        (payload / subset).mkdir()
    write_rows(payload / "sft" / "train.parquet", rows("a", split="train"))
    write_rows(payload / "sft" / "test.parquet", rows("b", split="test"))
    write_rows(payload / "heldout" / "test.parquet", rows("c", split="test"))
    write_rows(payload / "probe" / "test.parquet", rows("d", split="test"))
    found = commit(payload, "dataset", "d")
    said: list[str] = []
    assert ids(training_rows(found.with_subset("sft"), said.append)) == ["a"] and said[0].startswith("1 rows of dataset/d@v1:sft")
    assert ids(training_rows(found.with_subset("heldout"))) == ["c"]
    with pytest.raises(InputError, match=r"all 1 rows of dataset/d@v1:probe are held out(.|\n)*dataset/d@v1:heldout"):
        training_rows(found.with_subset("probe"))


def test_a_dataset_of_several_subsets_is_refused_by_the_plan_naming_one_for_training(store, commit, tiny_artifact, cli):
    payload = store.staging()
    for subset in ("heldout", "sft"):
        (payload / subset).mkdir()
        write_rows(payload / subset / "train.parquet", rows(subset))
    commit(payload, "dataset", "d")
    for words in (("sft", "--dry-run"), ("sft",), ("eval", "--dry-run")):
        done = cli(*words, "model=tiny", "data=d")
        assert done.returncode == 3 and "write dataset/d@v1:sft (of heldout, sft)" in done.stderr, done.stderr
    assert not list(store.runs.glob("*")), "a refused run leaves no folder"


def test_a_file_of_broken_text_is_named(tmp_path, store):
    schema = arrow_schema()
    table = pa.Table.from_pylist([row.to_record() for row in rows("a")], schema=schema)
    broken = pa.Array.from_buffers(pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")])
    pq.write_table(table.set_column(0, schema.field("id"), broken), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="rows.parquet holds rows that cannot be read"):
        read_dataset(store.resolve(str(tmp_path / "rows.parquet"), ("dataset",)))


def test_a_dataset_is_read_once_by_a_process_until_its_files_change(store, folder, monkeypatch):
    read: list[str] = []
    stream = dataset.stream_rows
    monkeypatch.setattr(dataset, "stream_rows", lambda path: read.append(path.name) or stream(path))
    path = f"{folder}/train.parquet"
    first = training_rows(store.resolve(path, ("dataset",)))
    again = training_rows(store.resolve(path, ("dataset",)))
    assert read == ["train.parquet"] and first is not again and all(one is other for one, other in zip(first, again, strict=True))
    again.pop()
    assert ids(read_dataset(store.resolve(path, ("dataset",)))) == ["a", "b"], "each caller has a list of its own"
    write_rows(folder / "train.parquet", rows("changed"))
    assert ids(training_rows(store.resolve(path, ("dataset",)))) == ["changed"] and len(read) == 2
