"""Commands as forks of one process that has imported the libraries: a process of its own for each, without five to ten seconds of imports.

``python forked.py SOCKET`` imports them and waits; ``forked_client.py`` passes it a command's words, environment, folder and files, and
ends as the fork ends: with its exit code, or by its signal. Signals that the client receives reach the fork; when the client is killed, the
fork is killed. Folders that a command has in ``PYTHONPATH`` and the server has not are put first, with their ``sitecustomize``. What else
Python and the libraries read as they start (locales, numbers of threads) is the server's: a command whose environment differs from the
server's in more than ``OWN``, or that has fewer folders, is refused, and the client starts Python in its place.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).with_name("forked_client.py")
PRELOADED = (
    "safework_cli.core.prepare", "safework_cli.training.group", "safework_cli.training.planned", "safework_sft.run", "safework_rl.step",
    "safework_rl.trl_adapter", "safework_verifier.train.run", "safework_verifier.values.run", "safework_eval.run", "safework_search.run",
    "torch.distributed.run", "transformers.models.llama.modeling_llama",
)  # fmt: skip
OWN = (
    "SAFEWORK_", "PYTEST_", "PROCESSES_", "SLURM", "TORCHELASTIC_", "TORCH_NCCL_", "TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR",
    "PATH", "PYTHONPATH", "PWD", "OLDPWD", "SHLVL", "_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_",
)  # fmt: skip
"""Beginnings of the names of variables that a command reads itself."""
REFUSED = 0


class Forks:
    """A server and the commands that start forks of it.

    Attributes:
        folder: has ``safework`` and ``python``, to be put before others in PATH. Python's ``-m MODULE`` is a fork; all else is Python.
        command: the words that ``safework``'s follow, of a command whose own child processes are no forks.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "bin"
        self.folder.mkdir(parents=True)
        address = Path(tempfile.mkdtemp(prefix="forks-")) / "s"  # a socket's path has 108 characters at most
        client = [sys.executable, "-IS", str(CLIENT), str(address), sys.executable]
        self.command = [*client, "-c"]
        for name in ("safework", "python"):
            script = self.folder / name
            script.write_text(f'#!/bin/sh\nexec {" ".join(client)} "$0" "$@"\n')
            script.chmod(0o755)
        self._server = subprocess.Popen([sys.executable, __file__, str(address)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(30)


class Server:
    """Forks for each connection, and says how each fork ended. Ends with its own standard input."""

    def __init__(self, listener: socket.socket, environment: dict[str, str]):
        self._listener, self._environment = listener, environment
        self._added = {key: value for key, value in os.environ.items() if environment.get(key) != value}  # by imports
        self._connections: dict[int, socket.socket] = {}

    def serve(self) -> None:
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        while True:
            known = {connection.fileno(): pid for pid, connection in self._connections.items()}
            ready, _, _ = select.select([0, readable, self._listener, *known], [], [])
            if 0 in ready:
                break
            if readable in ready:
                os.read(readable, 4096)
                self._reap()
            for number in set(ready) & known.keys():
                if (pid := known[number]) in self._connections:
                    self._hear(pid)
            if self._listener in ready:
                self._accept()
        for pid in self._connections:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _hear(self, pid: int) -> None:
        """A client sends the numbers of signals; what it does not close, ends."""
        with suppress(ConnectionError):
            if numbers := self._connections[pid].recv(16):
                for number in numbers:
                    os.kill(pid, number)
                return
        os.kill(pid, signal.SIGKILL)  # not reaped yet: it exists
        self._connections.pop(pid).close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if (connection := self._connections.pop(pid, None)) is not None:
                with suppress(OSError):
                    connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(status)))
                connection.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb") as stream:
            head, files, _, _ = socket.recv_fds(connection, 4, 3)
            asked = json.loads(stream.read(struct.unpack("I", head)[0]))
        if not self._serves(asked):
            connection.sendall(struct.pack("i", REFUSED))
            connection.close()
        elif (pid := os.fork()) == 0:
            self._listener.close()
            for other in (connection, *self._connections.values()):
                other.close()
            _become(asked, files, self._added)
        else:
            self._connections[pid] = connection
            connection.sendall(struct.pack("i", pid))
        for file in files:
            os.close(file)

    def _serves(self, asked: dict[str, Any]) -> bool:
        theirs: dict[str, str] = asked["environment"]
        differing = {key for key in theirs.keys() | self._environment.keys() if theirs.get(key) != self._environment.get(key)}
        from safework_cli.cli.main import ENVIRONMENT

        differing -= {key for key in ENVIRONMENT if key not in theirs}  # which the command sets
        module = Path(asked["words"][0]).name != "python" or _module(asked["words"][1:]) is not None
        ours, their = (set(given.get("PYTHONPATH", "").split(os.pathsep)) for given in (self._environment, theirs))
        return module and ours <= their | {""} and all(key.startswith(OWN) for key in differing)


def _module(words: list[str]) -> int | None:
    """Where the name of the module is in Python's words, if they start a module."""
    at = 1 if words[:1] == ["-u"] else 0
    return at + 1 if words[at : at + 1] == ["-m"] and len(words) > at + 1 else None


def _become(asked: dict[str, Any], files: list[int], added: dict[str, str]) -> None:
    """Runs a command in this fork, and ends it."""
    code: Any = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"] | added)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # open to the end
        sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1, errors="backslashreplace")  # noqa: SIM115
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        _add_folders(os.environ.get("PYTHONPATH", ""))
        code = _run(asked["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) or end.code is None else print(end.code, file=sys.stderr) or 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does at its end
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code or 0)


def _add_folders(paths: str) -> None:
    for folder in reversed([path for path in paths.split(os.pathsep) if path and path not in sys.path]):
        sys.path.insert(1, folder)
        if (site := Path(folder) / "sitecustomize.py").exists():
            runpy.run_path(str(site))


def _run(words: list[str]) -> Any:
    program, *rest = words
    if program != "-c":  # by a script of ``Forks.folder``: its child processes are forks too
        sys.executable = str(Path(program).with_name("python"))
    if Path(program).name == "python":
        at = _module(rest)
        assert at is not None
        sys.argv = rest[at:]
        return runpy.run_module(rest[at], run_name="__main__", alter_sys=True) and 0
    from safework_cli.cli.main import main

    sys.argv = words
    return main()


def serve(address: str) -> None:
    from importlib import import_module

    from safework_cli.cli.main import ENVIRONMENT

    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    environment = dict(os.environ)
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    sys.path[0] = ""  # as for ``python -c`` and ``-m``
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(16)
    print("ready", flush=True)
    try:
        Server(listener, environment).serve()
    finally:
        Path(address).unlink()
        Path(address).parent.rmdir()


if __name__ == "__main__":
    serve(sys.argv[1])
