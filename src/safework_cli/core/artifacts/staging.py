"""Folders in which artifacts are put together, and into which deleted ones are moved: who owns them, and which are leftovers.

Each has a lock file next to it that its process holds until it is done; the lock of a process that dies is released. Where a file system
does not carry locks between hosts, the host's name in the folder's name shows that the lock cannot be tested, and the folder stays for a
day.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, lock_descriptor

DAY_SECONDS = 86400
FOREIGN_DAYS = 1.0
"""Days for which something of another host stays after it was last written to: its lock may not be visible here."""
WAIT_SECONDS = 5


def this_host() -> str:
    """This host's name, fit for a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "", platform.node()) or "unknown"


class Staging:
    """The folder ``.staging`` of a store."""

    def __init__(self, root: Path):
        self.root = root
        self._held: dict[Path, FileLock] = {}

    def new(self) -> Path:
        """A fresh, locked folder. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True)
        folder = self.root / f"{this_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lock = FileLock(_lock_of(folder), timeout=WAIT_SECONDS)
        lock.acquire()
        self._held[folder] = lock
        try:
            folder.mkdir()
        except OSError:
            self.done(folder)
            raise
        return folder

    def done(self, folder: Path) -> None:
        """Deletes a folder (or what is left of it) and lets go of its lock."""
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        if lock := self._held.pop(folder, None):
            lock.release()

    def left_behind(self) -> list[Path]:
        """Folders of processes that are gone, and locks that have had no folder for a day: one that is new is about to be locked."""
        entries = sorted(self.root.iterdir()) if self.root.is_dir() else []
        folders = [path for path in entries if path.is_dir() and not path.is_symlink()]
        locks = [path for path in entries if path.suffix == ".lock" and not path.with_suffix("").is_dir()]
        return [path for path in folders if not self._in_use(path)] + [path for path in locks if not (is_locked(path) or is_recent(path))]

    def _in_use(self, folder: Path) -> bool:
        lock = _lock_of(folder)
        if folder in self._held or is_locked(lock):
            return True
        return not (lock.exists() and folder.name.startswith(f"{this_host()}-")) and is_recent(folder)


def is_recent(folder: Path, days: float = FOREIGN_DAYS) -> bool:
    """Whether anything in a folder was written to within so many days."""
    return time.time() - last_written(folder) < days * DAY_SECONDS


def last_written(folder: Path) -> float:
    """When anything in a folder was last written to, in seconds of the epoch. Now, where something was deleted during this look."""
    newest = 0.0
    for path in [folder, *below(folder)]:
        try:
            newest = max(newest, path.lstat().st_mtime)
        except FileNotFoundError:
            return time.time()  # a process works there
    return newest


def below(folder: Path) -> Iterator[Path]:
    """Everything below a folder that another process may be deleting: what goes meanwhile is left out, where ``rglob`` raises."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in [*folders, *files])


def is_locked(lock: Path) -> bool:
    """Whether a process holds a lock file now. No file is made: a lock that its process deletes meanwhile must not appear again."""
    try:
        file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
    except PermissionError:
        return True  # another user's: it cannot be tested and counts as held
    except OSError:
        return False  # no such file, or a file system that may only be read: no process can hold a lock on it
    try:
        return not lock_descriptor(file, blocking=False)  # released as the file is closed
    except OSError:
        return True  # a file system without locks: it cannot be tested and counts as held
    finally:
        os.close(file)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
