"""vLLM itself, in the environment that ``make install-vllm`` makes: elsewhere these tests are skipped with a message.

(The folder is not called vllm: pytest would then find it in place of the package.)"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

from conftest import SAFEWORK, cli_environment
from safework_cli.core.artifacts import Store
from safework_cli.core.artifacts.transfer import import_folder
from safework_cli.models.tiny import create_tiny_model
from safework_cli.models.tiny_sizes import TinySizes

START_SECONDS = 280.0
ENGINES = count(1)


@pytest.fixture(autouse=True, scope="session")
def vllm() -> None:
    """Skips where vLLM is not installed."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: make install-vllm test-vllm")


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory, vllm: None) -> Path:
    """A tiny random model whose attention heads are wide enough for vLLM's kernels: 64."""
    folder = tmp_path_factory.mktemp("wide")
    create_tiny_model(folder, sizes=TinySizes(hidden_size=256), seed=0)
    return folder


@pytest.fixture
def share() -> float:
    """Of the memory, for one more engine in this process: on a CPU, vLLM counts what those before it hold as used."""
    return 0.1 * next(ENGINES)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, wide_model: Path) -> Iterator[tuple[str, Path]]:
    """(URL, log) of a server that ``safework serve`` started. Started once: it takes half a minute."""
    with _serving(wide_model, tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture(scope="session")
def serving() -> Callable[[Path, Path], AbstractContextManager[tuple[str, Path]]]:
    """Starts a server of a model, with a folder for its store: gives (URL, log) while the body runs."""
    return _serving


@contextmanager
def _serving(model: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """See ``serving``."""
    store = Store(folder / "store")
    artifact = import_folder(store, model, "wide")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ["--gpu-memory-utilization", "0.05", "--max-model-len", "512"]
    words = ["serve", artifact.ref, "--port", str(port), "--dtype", "float32", "--", *more]
    process = subprocess.Popen([*SAFEWORK, *words], env=cli_environment(store), stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    log, url = store.root / ".servers" / f"{port}.log", f"http://127.0.0.1:{port}"
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # when it is ready
        assert f"engine.server.url={url} " in line, log.read_text()[-3000:]
        yield url, log
    finally:
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.kill()
        process.wait()
