"""The store: whole artifacts or none."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import struct
from pathlib import Path

import pytest

from safework_cli.core.artifacts import InputEntry, Manifest, Store
from safework_cli.core.artifacts.gc import collect, garbage
from safework_cli.core.artifacts.references import check_name, name_from_path
from safework_cli.core.artifacts.store import default_store, now
from safework_cli.core.artifacts.transfer import export_folder, import_folder
from safework_cli.core.errors import InputError, RunAgain
from safework_cli.data.dataset import read_dataset
from safework_cli.data.row import Row, write_rows


def manifest(kind: str, name: str, **more) -> Manifest:
    return Manifest(
        kind=kind,
        name=name,
        version=0,
        created=now(),
        stage="test",
        stage_version=1,
        fingerprint=more.pop("fingerprint", "f"),
        files=[],
        digest="",
        **more,
    )


def safetensors(path: Path, shape=(2,)) -> None:
    count = 1
    for side in shape:
        count *= side
    header = json.dumps({"w": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * count]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * count))


def spoil_weights(folder: Path, offsets=(0, 8), second=None, extra: bytes = b"") -> None:
    """Writes a file whose header does not fit its tensors: of another size, overlapping, with a gap, or with bytes at the end."""
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}
    header |= {"x": {"dtype": "F32", "shape": [2], "data_offsets": second}} if second else {}
    text = json.dumps(header).encode()
    end = max(offsets[1], second[1] if second else 0)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end) + extra)


def put_model(store: Store, name: str = "m", content: str = "{}", **more):
    folder = store.staging()
    (folder / "config.json").write_text(content)
    safetensors(folder / "model.safetensors")
    return store.commit(folder, manifest("model", name, **more))


def put_dataset(store: Store, name: str = "d"):
    folder = store.staging()
    for subset in ("cot", "rl"):
        (folder / subset).mkdir()
        write_rows(folder / subset / "rows.parquet", [Row(f"{subset}-1", "safety", [{"role": "user", "content": "hi"}])])
    return store.commit(folder, manifest("dataset", name))


def test_versions_count_up_and_latest_is_found(store):
    assert put_model(store).ref == "model/m@v1"
    assert put_model(store).ref == "model/m@v2"
    assert store.resolve("m").ref == store.resolve("model/m@latest").ref == "model/m@v2"
    assert store.resolve("m@v1").manifest.version == 1


def test_a_subset_has_rows_and_a_digest_of_its_own(store):
    put_dataset(store)
    cot, rl = store.resolve("d:cot"), store.resolve("d:rl")
    assert [row.id for row in read_dataset(cot)] == ["cot-1"]
    assert cot.digest != rl.digest != store.resolve("d").digest
    with pytest.raises(InputError, match="several subsets"):
        read_dataset(store.resolve("d"))
    with pytest.raises(InputError, match="no subset 'coz'; did you mean 'cot'"):
        store.resolve("d:coz")


@pytest.mark.parametrize(
    ("reference", "kinds", "message"),
    [
        ("smolm2", ("model",), "did you mean 'model/smollm2'"),
        ("d", ("model",), "of another kind"),
        ("dataset/d", ("model",), "is a dataset"),
        ("smollm2@v9", ("model",), "no version v9"),
        ("./nowhere", ("model",), "does not exist"),
        ("", ("model",), "empty reference"),
        ("a/b", ("model",), "is not a reference"),
        ("both", ("model", "dataset"), "ambiguous"),
    ],
)
def test_references_that_mean_nothing(store, reference, kinds, message):
    put_model(store, "smollm2")
    put_dataset(store, "d")
    put_dataset(store, "both")
    put_model(store, "both")
    with pytest.raises(InputError, match=message):
        store.resolve(reference, kinds)


def test_a_path_with_a_typing_mistake_is_corrected(store, tmp_path):
    (tmp_path / "mymodel").mkdir()
    with pytest.raises(InputError, match=r"mymodle does not exist; did you mean 'mymodel'\?"):
        store.resolve(str(tmp_path / "mymodle"), ("model",))


def test_a_hub_id_without_network_says_so(store):
    with pytest.raises(InputError, match=r"hf:org/none cannot be fetched") as caught:
        store.resolve("hf:org/none", ("model",))
    assert caught.value.exit_code == 3 and "out of reach" in str(caught.value)


def test_a_flipped_byte_is_found_when_used_and_by_verify(store):
    artifact = put_model(store)
    store.resolve("m")  # verified once: the check below must not rest on that
    file = artifact.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"the bytes of model.safetensors changed"):
        store.resolve("m")


def test_a_damaged_manifest_does_not_hide_the_others(store, cli):
    put_dataset(store)
    path = put_model(store).path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"kind"', b'"kimd"', 1))
    with pytest.raises(InputError, match="is damaged"):
        store.list()
    damaged: list[InputError] = []
    assert [a.ref for a in store.list(damaged=damaged)] == ["dataset/d@v1"] and len(damaged) == 1
    for words in (["artifacts", "ls", "--json"], ["artifacts", "verify"], ["report", "--out", str(store.root / "r.html")]):
        done = cli(*words)
        assert done.returncode == 3 and "manifest.json is damaged" in done.stderr, done.stderr
    assert store.find_run("no such fingerprint", "model") is None
    store.remove(store.resolve("dataset/d"))
    done = cli("report", "--out", str(store.root / "r.html"))
    assert done.returncode == 3 and "is damaged" in done.stderr and "there is nothing" not in done.stderr


def test_verify_finds_a_flip_that_hides_behind_an_old_time(store):
    artifact = put_model(store)
    store.resolve("m")
    file = artifact.path / "model.safetensors"
    before = file.stat()
    with open(file, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x01")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="changed"):
        store.verify(artifact, thorough=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors"),
        (lambda folder: safetensors(folder / "model.safetensors", (0,)), "empty tensor"),
        (lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-3]), "is truncated"),
        (lambda folder: spoil_weights(folder, extra=b"xx"), "is truncated"),
        (lambda folder: spoil_weights(folder, offsets=(0, 4)), "not a safetensors file.*\n.*invalid shape"),
        (lambda folder: spoil_weights(folder, second=(4, 12)), "not a safetensors file.*\n.*invalid offset"),
        (lambda folder: spoil_weights(folder, second=(12, 20)), "not a safetensors file.*\n.*invalid offset"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"<html>not found</html>"), "not a safetensors file"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "link").symlink_to("/etc/hostname"), "symbolic link"),
    ],
)
def test_a_bad_payload_is_never_committed(store, spoil, message):
    folder = store.staging()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        store.commit(folder, manifest("model", "bad"))
    assert store.list() == []


def test_a_full_disk_loses_nothing(store, monkeypatch):
    folder = store.staging()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunAgain, match="no space left"):
        store.commit(folder, manifest("model", "m"))
    monkeypatch.undo()
    assert store.list() == []
    assert store.commit(folder, manifest("model", "m")).ref == "model/m@v1"


def test_every_folder_of_a_new_artifact_is_flushed(store, monkeypatch):
    """A power cut after a commit must not take the name of a file in it, nor of a folder that leads to it."""
    real, flushed = os.fsync, []

    def fsync(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    payload = store.staging()
    (payload / "a" / "b").mkdir(parents=True)
    (payload / "a" / "b" / "note.txt").write_text("x")
    made = store.commit(payload, manifest("generations", "note"))
    folders = [made.path / "a" / "b", made.path / "a", made.path, made.path.parent.parent, store.root, made.path.parent]
    assert set(flushed) >= {folder.stat().st_ino for folder in folders}
    inside = [flushed.index(folder.stat().st_ino) for folder in folders[:3]]
    assert inside == sorted(inside)  # the innermost first


def _commit_one(root: str) -> str:
    return put_model(Store(Path(root))).ref


def test_processes_that_commit_at_once_get_different_versions(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        refs = pool.map(_commit_one, [str(tmp_path / "s")] * 8)
    assert sorted(refs) == sorted(f"model/m@v{i}" for i in range(1, 9))


def test_a_half_made_artifact_is_invisible(store):
    folder = store.root / "model" / "m" / "v1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert store.list() == []
    with pytest.raises(InputError):
        store.resolve("m")
    assert put_model(store).ref == "model/m@v2"  # and its place is not taken


def test_gc_keeps_what_a_kept_artifact_descends_from(store):
    old = put_model(store, "base", "1")
    put_model(store, "base", "2")
    child = put_model(store, "child", inputs={"model": InputEntry(ref=old.ref, kind="model", digest=old.digest)})
    assert [item.label for item in garbage(store, keep=1, runs_days=7, with_ancestors=False)] == []
    listed = garbage(store, keep=1, runs_days=7, with_ancestors=True)
    assert [item.label for item in listed] == ["model/base@v1"]
    store.set_pinned(store.resolve("base@v1"), True)
    assert garbage(store, keep=1, runs_days=7, with_ancestors=True) == []
    store.set_pinned(store.resolve("base@v1"), False)
    collect(store, garbage(store, keep=1, runs_days=7, with_ancestors=True))
    assert [a.ref for a in store.list()] == ["model/base@v2", "model/child@v1"]
    assert store.lineage(child) == {"model/base@v1": None}


def of(**inputs):
    return {"inputs": {slot: InputEntry(ref=one.ref, kind="model", digest=one.digest) for slot, one in inputs.items()}}


def test_lineage_names_each_ancestor_however_deep_and_shows_what_is_shared_once(store, cli):
    """Two inputs each, thirty levels: 2³⁰ lines if what is shared were shown again. rich leaves out what lies too deep to print."""
    one = two = put_model(store, "base")
    for number in range(30):
        one, two = put_model(store, f"a{number}", **of(first=one, second=two)), put_model(store, f"b{number}", **of(first=two, second=one))
    done = cli("artifacts", "lineage", one.ref)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) < 150, done.stderr
    assert sum(line.startswith("model/") for line in lines) > 2, "what is deeper than a terminal is wide has a tree of its own"
    for ref in [one.ref, *store.lineage(one)]:
        assert any(ref in line for line in lines), ref


def test_an_ancestor_costs_one_look_however_many_versions_there_are(store, monkeypatch):
    for _ in range(3):
        base = put_model(store, "base")
    child = put_model(store, "child", **of(model=base))
    monkeypatch.setattr("safework_cli.core.artifacts.store._versions_in", lambda home: pytest.fail("listed the versions"))
    assert list(store.lineage(child)) == ["model/base@v3"]


def test_export_and_import_keep_identity_and_lineage(store, tmp_path):
    artifact = put_model(store, fingerprint="abc", inputs={"data": InputEntry(ref="dataset/d@v1", kind="dataset", digest="x")})
    assert export_folder(artifact, tmp_path / "out")
    seen = (tmp_path / "out").stat()
    assert not export_folder(artifact, tmp_path / "out")  # done already: nothing is written
    now_seen = (tmp_path / "out").stat()
    assert (now_seen.st_ino, now_seen.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns)
    later = put_model(store, fingerprint="abc", inputs=artifact.manifest.inputs)
    with pytest.raises(InputError, match="exists"):
        export_folder(later, tmp_path / "out")
    other = Store(tmp_path / "other")
    back = import_folder(other, tmp_path / "out", "again")
    assert back.ref == "model/again@v1"
    assert (back.digest, back.manifest.fingerprint, back.manifest.inputs) == (artifact.digest, "abc", artifact.manifest.inputs)


def test_the_run_record_is_no_part_of_the_identity(store):
    first = put_model(store)
    folder = store.staging()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    (folder / "safework").mkdir()
    (folder / "safework" / "events.jsonl").write_text("now\n")
    assert store.commit(folder, manifest("model", "m")).digest == first.digest


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b"])
def test_a_name_cannot_leave_its_folder(store, name):
    folder = store.staging()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    with pytest.raises(InputError, match="cannot name"):
        store.commit(folder, manifest("model", name))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
        ("Llama-3.1-8B", "Llama-3.1-8B"),
        ("my model", "my-model"),
        (".cache", "cache"),
        ("Modèle (final)", "Modele-final"),
        ("x" * 200, "x" * 100),
    ],
)
def test_a_folder_keeps_its_name_made_fit(tmp_path, folder, name, monkeypatch):
    path = tmp_path / folder
    path.mkdir()
    assert check_name(name_from_path(path, "model")) == name
    monkeypatch.chdir(path)
    assert name_from_path(Path(), "model") == name


def test_names_beyond_ascii_do_not_share_one(tmp_path):
    names = [name_from_path(tmp_path / name, "model") for name in ("模型", "數據")]
    assert all(check_name(name).startswith("model-") for name in names) and names[0] != names[1]
    assert name_from_path(tmp_path / "train.v2.parquet", "dataset") == "train.v2"


def test_a_folder_that_is_meant_is_offered(store, tmp_path, monkeypatch):
    (tmp_path / "Qwen2.5-7B-Instruct").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"write \./Qwen2.5-7B-Instruct"):
        store.resolve("Qwen2.5-7B-Instruct", ("model",))


def test_a_store_that_is_a_file_is_refused_and_not_empty(tmp_path, cli, monkeypatch):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        done = cli("artifacts", "ls", "--store", str(path))
        assert done.returncode == 3 and f"the store {path} is not a folder" in done.stderr and "empty" not in done.stdout + done.stderr
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is neither a folder nor a link to one"):
        default_store(tmp_path / "broken")
    monkeypatch.setenv("SAFEWORK_STORE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="is not a folder"):
        default_store()
    assert default_store(tmp_path / "not yet").list() == []
