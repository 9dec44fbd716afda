"""Garbage collection while other commands use the store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from safework_cli.core import runs
from safework_cli.core.artifacts import InputEntry, Manifest, Store
from safework_cli.core.artifacts.gc import collect, garbage
from safework_cli.core.artifacts.staging import is_locked, this_host
from safework_cli.core.artifacts.store import now
from safework_cli.core.artifacts.transfer import export_folder, import_folder
from safework_cli.core.errors import InputError

OLD = time.time() - 30 * 86400


def put(store: Store, name: str, *inputs: str, fingerprint: str = "f", text: str = "x"):
    folder = store.staging()
    (folder / "text").write_text(text)
    entries = {f"input{i}": InputEntry(ref=ref, kind="generations", digest="d") for i, ref in enumerate(inputs)}
    manifest = Manifest(
        kind="generations", name=name, version=0, created=now(), stage="test", stage_version=1, fingerprint=fingerprint, inputs=entries,
        files=[], digest="",
    )  # fmt: skip
    return store.commit(folder, manifest)


def leave_run(store: Store, name: str, *inputs: str, fingerprint: str = "unmade", host: str | None = None) -> Path:
    run = store.runs / name
    (run / "checkpoints").mkdir(parents=True)
    request = {"stage": "sft", "fingerprint": fingerprint, "inputs": dict(enumerate(inputs)), "host": host or runs.this_host()}
    (run / "request.json").write_text(json.dumps(request))
    return run


def age(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (OLD, OLD))


def listed(store: Store, **settings) -> list[str]:
    return sorted(item.label for item in garbage(store, **{"keep": 1, "runs_days": 7, "with_ancestors": False} | settings))


def test_what_an_unfinished_run_reads_stays_with_its_ancestors(store):
    base, middle = put(store, "base"), put(store, "middle", "generations/base@v1")
    put(store, "base", text="2"), put(store, "middle", text="2")
    assert listed(store) == [base.ref, middle.ref]
    run = leave_run(store, "sft-1", "generations/middle@v1:part")
    assert listed(store) == [] and listed(store, with_ancestors=True) == []
    shutil.rmtree(run)
    run = leave_run(store, "sft-2", str(middle.path))  # given as a path
    assert listed(store) == []
    age(run)
    assert listed(store) == [base.ref, middle.ref, "run sft-2"]
    with FileLock(run / "lock"):  # a long step: nothing was written for a month, and its process lives
        age(run)
        assert listed(store) == []


def test_an_input_that_a_run_asks_for_while_gc_deletes_stays(store):
    put(store, "base"), put(store, "base", text="2")
    found = garbage(store, keep=1, runs_days=7, with_ancestors=False)
    leave_run(store, "sft-1", "generations/base@v1")
    assert collect(store, found) == []
    assert store.resolve("base@v1")


def test_a_run_folder_is_taken_under_its_lock_only(store):
    run = leave_run(store, "sft-1")
    (run / "checkpoints" / "big").write_text("x")
    age(run)
    found = garbage(store, keep=1, runs_days=7, with_ancestors=False)
    with FileLock(run / "lock"):
        assert collect(store, found) == [] and (run / "checkpoints" / "big").exists() and (run / "request.json").exists()
    assert [item.label for item in collect(store, found)] == ["run sft-1"]
    assert not run.exists()


def test_who_waits_for_a_run_folder_that_goes_makes_one_of_their_own(store):
    run = leave_run(store, "sft-1")
    with runs.locked(run):
        runs.empty(run)
        assert not run.exists()
    with runs.locked(run):
        assert run.exists() and not (run / "request.json").exists()


def test_a_run_of_another_host_stays_while_it_is_written_to(store):
    run = leave_run(store, "sft-1", host="elsewhere")
    assert listed(store, runs_days=0) == []
    age(run)
    assert listed(store, runs_days=0) == ["run sft-1"]


def test_a_run_whose_artifact_is_made_is_a_leftover_and_no_unfinished_one(store):
    made = put(store, "made", fingerprint="same")
    leave_run(store, f"sft-{made.name}", fingerprint="same")
    assert listed(store) == ["run sft-made"]


IMPORT = """
import os, sys
from pathlib import Path
from safework_cli.core.artifacts import Store, transfer
real = transfer._copy
def slow(*arguments):
    real(*arguments)
    print("copied", flush=True)
    sys.stdin.readline()
transfer._copy = slow
print(transfer.import_folder(Store(Path(sys.argv[1])), Path(sys.argv[2]), "imported").ref)
"""


@pytest.fixture
def importing(store, tmp_path):
    """An import in a process of its own that has copied everything and not committed yet."""
    export_folder(put(store, "source"), tmp_path / "source")
    words = [sys.executable, "-c", IMPORT, str(store.root), str(tmp_path / "source")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "copied\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("pids_mean_nothing", [False, True])
def test_an_import_that_runs_keeps_its_folder(store, importing, monkeypatch, pids_mean_nothing):
    if pids_mean_nothing:  # another node, another container: the same number names another process, or none
        monkeypatch.setattr("platform.node", lambda: "another")
        monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(ProcessLookupError))
    age(store.root / ".staging")
    assert listed(store) == []
    out, _ = importing.communicate("\n")
    assert out == "generations/imported@v1\n"
    store.verify(store.resolve("imported"), thorough=True)
    assert list((store.root / ".staging").iterdir()) == []


def test_an_import_that_was_killed_leaves_what_gc_collects(store, importing):
    importing.send_signal(signal.SIGKILL)
    importing.wait()
    assert len(list((store.root / ".staging").iterdir())) == 2  # the folder and its lock
    collect(store, garbage(store, keep=1, runs_days=7, with_ancestors=False))
    assert list((store.root / ".staging").iterdir()) == []


def test_without_a_visible_lock_a_folder_of_another_host_stays_for_a_day(store):
    folder = store.root / ".staging" / "elsewhere-12-abc"
    folder.mkdir(parents=True)
    assert listed(store) == []
    age(folder)
    assert listed(store) == ["leftover .staging/elsewhere-12-abc"]


def test_a_lock_that_is_about_to_be_taken_is_no_leftover(store):
    (store.root / ".staging").mkdir(parents=True)
    lock = store.root / ".staging" / f"{this_host()}-12-abc.lock"
    lock.touch()  # its process made the file and takes the lock next
    assert listed(store) == []
    age(lock)
    assert listed(store) == [f"leftover .staging/{lock.name}"]


def test_looking_at_a_lock_that_goes_meanwhile_does_not_bring_it_back(tmp_path, monkeypatch):
    gone = tmp_path / "gone.lock"
    monkeypatch.setattr(Path, "exists", lambda _: True)  # deleted right after this answer
    assert not is_locked(gone)
    assert list(tmp_path.iterdir()) == []


def test_files_that_kills_leave_are_collected_and_are_no_damage(store, cli):
    made = put(store, "made")
    store.resolve("made")
    (made.path / ".manifest.json.4711.tmp").write_text("{")
    (store.root / ".verified" / ".generations.made.v1.json.4711.tmp").write_text("{")
    (store.root / ".verified" / "generations.gone.v1.json").write_text("[]")
    assert cli("artifacts", "verify").returncode == 0
    assert cli("artifacts", "gc", "--yes").returncode == 0
    assert [p.name for p in (store.root / ".verified").iterdir()] == ["generations.made.v1.json"]
    assert sorted(p.name for p in made.path.iterdir()) == ["manifest.json", "text"]


def test_a_damaged_artifact_stays_and_so_do_its_inputs(store, cli):
    put(store, "base"), put(store, "base", text="2")
    path = put(store, "child", "generations/base@v1").path / "manifest.json"
    path.write_text(path.read_text().replace('"test"', '"tesd"'))
    damaged: list[InputError] = []
    assert garbage(store, keep=1, runs_days=7, with_ancestors=False, damaged=damaged) == [] and len(damaged) == 1
    done = cli("artifacts", "gc", "--yes")
    assert done.returncode == 0 and "kept" in done.stderr and "child/v1" in done.stderr


def _gc(root: str) -> int:
    store = Store(Path(root))
    return len(collect(store, garbage(store, keep=1, runs_days=7, with_ancestors=False)))


def test_two_at_once_delete_everything_once(store):
    for number in range(40):
        put(store, "many", text=str(number))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.map(_gc, [str(store.root)] * 3)) == 39
    assert [a.ref for a in store.list()] == ["generations/many@v40"]


def test_verify_and_ls_beside_a_gc_see_no_damage(store, cli, monkeypatch):
    for number in range(3):
        put(store, "many", text=str(number))
    gone = store.resolve("many@v1")
    store.remove(gone)
    with pytest.raises(InputError, match="was deleted in the meantime"):
        store.verify(gone)
    real = Manifest.read.__func__

    def late(cls, folder):  # the folder goes between the listing and the reading
        if folder.name == "v2":
            store.remove(put_back)
        return real(cls, folder)

    put_back = store.resolve("many@v2")
    monkeypatch.setattr(Manifest, "read", classmethod(late))
    damaged: list[InputError] = []
    assert [a.ref for a in store.list(damaged=damaged)] == ["generations/many@v3"] and damaged == []


def test_a_cut_export_is_replaced_and_nothing_else_is(store, tmp_path):
    made = put(store, "made", text="many words")
    out = tmp_path / "out"
    out.mkdir()
    export_folder(made, out)  # an empty folder holds nothing to write over
    (out / "text").write_text("many")
    (out / "manifest.json").unlink()
    export_folder(made, out)
    assert (out / "text").read_text() == "many words" and (out / "manifest.json").exists()
    for spoil in (lambda: (out / "text").write_text("mine words"), lambda: (out / "notes").write_text("mine")):
        shutil.rmtree(out)
        export_folder(made, out)
        spoil()
        with pytest.raises(InputError, match="exists"):
            export_folder(made, out)
    (tmp_path / f".new.exporting-{runs.this_host()}-{2**22 + 1}").mkdir()  # of a process that is gone
    export_folder(made, tmp_path / "new")
    assert not list(tmp_path.glob(".new*"))
    assert import_folder(Store(tmp_path / "other"), tmp_path / "new", None).digest == made.digest


def test_a_full_disk_does_not_keep_gc_from_freeing_it(store, monkeypatch):
    """The folder into which gc moves what it deletes cannot be made there."""
    old, new = put(store, "model"), put(store, "model")
    leave_run(store, "sft-1")
    (store.root / ".staging" / "gone").mkdir(parents=True)
    made = Path.mkdir

    def full(self, *arguments, **options):
        if self.parent == store.root / ".staging":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        made(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    age(store.root / ".staging" / "gone")
    age(store.runs / "sft-1")
    found = garbage(store, keep=1, runs_days=0, with_ancestors=False)
    assert collect(store, found) == found and len(found) == 3
    assert not old.path.exists() and [one.ref for one in store.list()] == [new.ref] and not list(store.runs.iterdir())
    assert not list((store.root / ".staging").iterdir())


def test_a_submission_that_cannot_be_read_stops_gc(tmp_path):
    """What its job needs is unknown, and would be deleted in silence."""
    store = Store(tmp_path / "store")
    folder = store.root / ".slurm" / "sft-1"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text("{")
    with pytest.raises(InputError, match=r"request\.json cannot be read"):
        garbage(store, keep=1, runs_days=0, with_ancestors=False)
