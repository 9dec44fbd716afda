"""Whatever was changed in a store after the commit is found: by verify, and at first use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from safework_cli.core.artifacts import Artifact, InputEntry, Manifest, Store
from safework_cli.core.artifacts.manifest import payload_digest
from safework_cli.core.artifacts.transfer import export_folder, import_folder
from safework_cli.core.errors import InputError
from safework_cli.data.row import Row, write_rows


@pytest.fixture
def dataset(store: Store, commit) -> Artifact:
    folder = store.staging()
    for subset in ("cot", "rl"):
        (folder / subset).mkdir()
        write_rows(folder / subset / "rows.parquet", [Row(f"{subset}-1", "safety", [{"role": "user", "content": "hi"}])])
    return commit(folder, "dataset", "d")


def forge(folder: Path, **changes) -> None:
    """Rewrites a manifest as an attacker would: with its digest."""
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes()).model_copy(update=changes)
    manifest.write(folder)


def test_every_flipped_bit_of_a_manifest_is_found(store, dataset):
    path = dataset.path / "manifest.json"
    raw = path.read_bytes()
    assert dataset.manifest.manifest_sha256 and store.resolve("d").manifest == dataset.manifest
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ (1 << position % 8)]) + raw[position + 1 :])
        with pytest.raises(InputError, match="damaged|no artifact"):
            store.resolve("d", verify=False)
    path.write_bytes(raw)
    assert store.resolve("d").manifest == dataset.manifest


def test_a_manifest_of_before_the_digest_is_read_and_said_to_be_without(store, dataset, cli):
    old = json.loads((dataset.path / "manifest.json").read_bytes())
    del old["manifest_sha256"], old["reuse"]
    (dataset.path / "manifest.json").write_text(json.dumps(old | {"schema_version": 1}, indent=2))
    assert store.resolve("d").manifest.reuse
    done = cli("artifacts", "verify")
    assert done.returncode == 0 and "carries no digest" in done.stderr
    (dataset.path / "manifest.json").write_text(json.dumps(old | {"schema_version": 2}, indent=2))
    with pytest.raises(InputError, match="bytes changed"):
        store.resolve("d")
    (dataset.path / "manifest.json").write_text(json.dumps(old | {"schema_version": 99}, indent=2))
    with pytest.raises(InputError, match="newer safework"):
        store.resolve("d")


def test_pinning_keeps_the_manifest_whole(store, dataset):
    store.set_pinned(dataset, True)
    assert store.resolve("d").manifest.pinned
    store.verify(store.resolve("d"), thorough=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("cot/more.parquet", "x"), ("index.json", "{}"), ("additional_chat_templates/tool.jinja", "x"), (".hidden", "x")],
)
def test_a_file_that_is_not_listed_is_refused_at_first_use(store, dataset, name, text):
    store.resolve("d")  # found whole once: the comparison after this must not rest on that
    (dataset.path / name).parent.mkdir(exist_ok=True)
    (dataset.path / name).write_text(text)
    for use in (lambda: store.resolve("d"), lambda: store.verify(dataset, thorough=True)):
        with pytest.raises(InputError, match="not its own: " + name):
            use()


def test_a_link_is_refused_and_export_never_follows_one(store, dataset, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("key")
    (dataset.path / "README.md").symlink_to(secret)
    with pytest.raises(InputError, match="symbolic link"):
        store.resolve("d")
    export_folder(dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "README.md").exists()
    rows = dataset.path / "rl" / "rows.parquet"
    rows.unlink()
    rows.symlink_to(secret)
    with pytest.raises(InputError, match="symbolic link"):
        export_folder(dataset, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_folder_under_another_name_is_not_that_artifact(store, dataset):
    shutil.copytree(dataset.path, store.root / "dataset" / "d" / "v2")
    with pytest.raises(InputError, match=r"manifest of dataset/d@v1, and the folder is that of dataset/d@v2"):
        store.resolve("d")
    damaged: list[InputError] = []
    assert [a.ref for a in store.list(damaged=damaged)] == ["dataset/d@v1"] and len(damaged) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "../../escaped"},
        {"kind": "models"},
        {"name": "../../escaped"},
        {"name": "n" * 300},
        {"version": -1},
        {"version": 0, "stage": "external"},
    ],
)
def test_a_hostile_manifest_is_not_imported(store, dataset, tmp_path, changes):
    export_folder(dataset, tmp_path / "out")
    forge(tmp_path / "out", **changes)
    with pytest.raises(InputError, match="damaged"):
        import_folder(Store(tmp_path / "other"), tmp_path / "out", None)
    assert not list(tmp_path.rglob("escaped*")) and Store(tmp_path / "other").list() == []


@pytest.mark.parametrize("path", ["../../../escaped", "/etc/hostname", "a/../../b", "a//b", "", "."])
def test_a_listed_path_may_not_lead_out(store, dataset, tmp_path, path):
    export_folder(dataset, tmp_path / "out")
    files = [entry.model_copy(update={"path": path}) for entry in dataset.manifest.files]
    forge(tmp_path / "out", files=files, digest=payload_digest(files))
    with pytest.raises(InputError, match="leads out"):
        import_folder(Store(tmp_path / "other"), tmp_path / "out", None)


def test_an_imported_fingerprint_is_not_believed_unless_asked(store, dataset, tmp_path):
    export_folder(dataset, tmp_path / "out")
    other = Store(tmp_path / "other")
    forge(tmp_path / "out", fingerprint="forged", reuse=True)
    import_folder(other, tmp_path / "out", None)
    assert other.find_run("forged", "dataset") is None
    import_folder(other, tmp_path / "out", None, reuse=True)
    assert other.find_run("forged", "dataset").ref == "dataset/d@v2"


def test_a_copy_that_is_not_the_source_is_not_committed(store, dataset, tmp_path, monkeypatch):
    from safework_cli.core.artifacts import transfer

    export_folder(dataset, tmp_path / "out")
    other, real = Store(tmp_path / "other"), transfer._copy

    def gnawed(source, files, target):  # as if a gc on another host took the folder for a dead process's
        real(source, files, target)
        shutil.rmtree(target / "rl")

    monkeypatch.setattr(transfer, "_copy", gnawed)
    with pytest.raises(InputError, match=r"rl/rows.parquet is missing in the copy"):
        import_folder(other, tmp_path / "out", None)
    assert other.list() == [] and not list((other.root / ".staging").iterdir())


def test_lineage_walks_no_folder_that_a_manifest_names(store, commit, tmp_path, monkeypatch):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text("{}")
    folder = store.staging()
    (folder / "x").write_text("x")
    made = commit(folder, "generations", "g")
    inputs = {"model": InputEntry(ref=str(tmp_path / "big"), kind="model", digest="x")}
    forge(made.path, inputs=inputs)
    monkeypatch.setattr("safework_cli.core.artifacts.external.entry_of", lambda *_: pytest.fail("it was hashed"))
    assert store.lineage(store.resolve("g")) == {str(tmp_path / "big"): None}


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(store, dataset, commit, cli):
    for name in ("loop", "folder", "cache"):
        folder = store.staging()
        (folder / "x").write_text(name)
        commit(folder, "generations", name)
    (store.root / "generations" / "loop" / "v1" / "manifest.json").unlink()
    (store.root / "generations" / "loop" / "v1" / "manifest.json").symlink_to("manifest.json")
    (store.root / "generations" / "folder" / "v1" / "manifest.json").unlink()
    (store.root / "generations" / "folder" / "v1" / "manifest.json").mkdir()
    store.resolve("cache")
    record = store.root / ".verified" / "generations.cache.v1.json"
    record.write_text('[["x"')
    assert store.resolve("cache").ref == "generations/cache@v1"
    assert json.loads(record.read_text())  # made again
    listed, checked = cli("artifacts", "ls", "--json"), cli("artifacts", "verify")
    assert [a["ref"] for a in json.loads(listed.stdout)] == ["dataset/d@v1", "generations/cache@v1"]
    for done in (listed, checked):
        assert done.returncode == 3 and "loop/v1" in done.stderr and "folder/v1" in done.stderr and "Traceback" not in done.stderr
    assert "2 of 4 artifacts are whole" in checked.stderr
