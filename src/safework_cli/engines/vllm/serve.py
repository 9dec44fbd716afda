"""Starting the vLLM server that a trainer samples with: its command line, its environment, its log."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from safework_cli.core.errors import ConfigError, SafeworkError
from safework_cli.core.launch.start import end_with_parent
from safework_cli.core.signals import ENDING, not_ignored
from safework_cli.core.terminal import visible
from safework_cli.data.image_rows import reads_images
from safework_cli.engines.vllm.over_vllm import SAMPLED_LOGPROBS
from safework_cli.engines.vllm.plugin import BACKEND, LIVE

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Transfer = Literal["folder", "nccl"]
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", LIVE: "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Of the server: the interfaces for weights are among vLLM's development interfaces."""
LAST_LINES = 12
"""Of the server's log, in an error."""
STOP_SECONDS = 30.0
"""How long the server may take to end before it is killed."""


def server_command(
    folder: Path, name: str, *, host: str, port: int, dtype: Dtype, transfer: Transfer, more: Sequence[str] = ()
) -> list[str]:
    """The command that starts vLLM's OpenAI-compatible server.

    Args:
        folder, name: of the model, and what it is called there.
        dtype: "auto" is what this machine's trainer multiplies in.
        more: further options of vLLM, as its command line takes them.

    Raises:
        ConfigError: vLLM is not installed.
    """
    if find_spec("vllm") is None:
        raise ConfigError("safework serve needs vllm, which is not installed", "", "pip install 'safework[vllm]'")
    import torch

    from safework_cli.engines.vllm.adapter import model_options
    from safework_cli.models.load import pick_dtype

    weights = model_options(folder, live=True)  # a trainer's weights replace them: of an adapter, its base's are as good
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", name]
    command += [word for option, value in weights.items() for word in (f"--{option}", value)]
    command += ["--host", host, "--port", str(port), "--dtype", str(pick_dtype(dtype)).removeprefix("torch."), "--seed", "0"]
    command += ["--logprobs-mode", SAMPLED_LOGPROBS, "--generation-config", "vllm"]
    command += ["--weight-transfer-config", json.dumps({"backend": BACKEND if transfer == "folder" else "nccl"})]
    if reads_images(folder):  # prompts with images are sent as token ids over an interface of its own
        command.append("--enable-scale-out")
    if not torch.cuda.is_available():  # a seeded request that is partly prefilled in a step fails on a CPU
        command += ["--enforce-eager", "--no-enable-chunked-prefill"]
    return [*command, *more]


def serve(command: Sequence[str], url: str, log: Path, ready: Callable[[], None]) -> int:
    """Runs the server until it ends or this process gets a signal; its output goes to the log.

    Args:
        url: at which it answers.
        ready: called once, when it does.

    Returns:
        0 after SIGTERM, SIGHUP or SIGUSR1, 130 after Ctrl-C.

    Raises:
        ConfigError: something else listens there.
        SafeworkError: the server ended by itself.
    """
    _refuse_taken(url)
    log.parent.mkdir(parents=True, exist_ok=True)
    stops: deque[int] = deque()
    previous = {number: signal.signal(number, lambda got, _: stops.append(got)) for number in not_ignored((signal.SIGINT, *ENDING))}
    try:
        with log.open("wb") as output:
            environment = os.environ | ENVIRONMENT
            server = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                preexec_fn=end_with_parent,
            )  # fmt: skip
        try:
            waiting = True
            while server.poll() is None and not stops:
                time.sleep(0.5)
                if waiting and _answers(url):
                    waiting = False
                    ready()
        finally:
            _end(server)
        if not stops:
            raise SafeworkError(
                f"the vLLM server at {url} ended with exit code {server.returncode}",
                "\n".join([f"the last lines of {log}:", *(f"    {line}" for line in last_lines(log, LAST_LINES))]),
            )
        return 130 if stops[0] == signal.SIGINT else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _refuse_taken(url: str) -> None:
    """Raises ConfigError where something listens at the address already: its answers would pass for the new server's."""
    where = urllib.parse.urlsplit(url)
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that has just ended take no port
        try:
            trial.bind((where.hostname, where.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # the server says what is wrong with the address
            raise ConfigError(
                f"{url} is in use",
                "something listens there, such as a server that an earlier command has left",
                f"end it (ss -tlnp 'sport = :{where.port}' names it), or choose another --port",
            ) from None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310 - http on an address of our own making
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log file, safe to show."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 2**16))
        return [visible(line)[:300] for line in file.read().decode("utf-8", "replace").splitlines()[-count:]]
