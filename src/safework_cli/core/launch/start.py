"""Starts a stage on several processes and waits for them: the command keeps the lock, the signals, the commit and the exit code.

The command's own process imports no torch. It writes what is to be run into the run folder, starts torchrun (inside a Slurm allocation of
several nodes, one torchrun on each by srun), shows what the first process reports, passes Ctrl-C and SIGTERM on to one process of its own
node, and reads the result or the first cause of a failure from the processes' records.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safework_cli.core.artifacts import Artifact, Manifest
from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.artifacts.staging import this_host
from safework_cli.core.errors import ConfigError, SafeworkError
from safework_cli.core.launch.ranks import FOLDER, LAUNCHER_LOG, first_cause, read_records
from safework_cli.core.launch.relay import FILE, Relay
from safework_cli.core.plan.work import Estimate
from safework_cli.core.settings import LaunchSettings
from safework_cli.core.stage import Inputs, Outcome, Stage, WorkDir
from safework_cli.core.system import cores, own_version

REQUEST, OUTCOME, COMMAND = "request.json", "outcome.json", "command.txt"
WORKER = "safework_cli.training.worker"
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FIRST_PORT, PORTS, PORT_ATTEMPTS = 20_000, 20_000, 20
"""Where the nodes of a Slurm job meet."""
END_SECONDS = 60.0
"""How long torchrun may take to end the other processes after one failed, or after a second Ctrl-C, before it is killed."""


def run_on_ranks(stage: Stage, config: Any, inputs: Inputs, work: WorkDir) -> Outcome:
    """Runs a stage on the processes that ``config.launch`` asks for.

    Raises:
        ConfigError: the command that is to start them is missing.
        SafeworkError, RuntimeError: the error of the process that failed first, or what is known of its end.
        Interrupted, RunAgain: a signal came, and the processes have written a checkpoint.
    """
    launch: LaunchSettings = config.launch
    folder = work.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for made in (work.output, work.checkpoints):  # before any process looks for them
        made.mkdir(exist_ok=True)
    write_durably(folder / REQUEST, json.dumps(_request(stage, config, inputs, work), indent=1).encode())
    command = launch_command(launch, work.path, work.fingerprint, os.environ)
    (folder / COMMAND).write_text(" ".join(command) + "\n")
    work.progress.event("launch", strategy=launch.strategy, processes=launch.processes, nodes=launch.nodes, command=command)
    relay = Relay(folder / FILE, work.progress.display)
    with (folder / LAUNCHER_LOG).open("wb") as log, work.stop.deferred():
        # in a session of its own: Ctrl-C in a terminal reaches the command only, which passes it on in order
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=_environment(launch),
            preexec_fn=end_with_parent,
        )  # fmt: skip
        try:
            _wait(process, relay, folder, work)
        finally:
            _end(process)
            relay.pump()
    if process.returncode or not (folder / OUTCOME).exists():
        raise first_cause(folder, launch.world)
    return Outcome(**json.loads((folder / OUTCOME).read_bytes()))


def launch_command(launch: LaunchSettings, run: Path, fingerprint: str, environment: Mapping[str, str]) -> list[str]:
    """The command that starts the processes of a run, to be read and typed by people too.

    Raises:
        ConfigError: several nodes are asked for outside a Slurm allocation of as many.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "0", "--nproc-per-node", str(launch.processes)]
    worker = ["-m", WORKER, str(run)]
    if launch.nodes == 1:
        return [*torchrun, "--standalone", *worker]
    job, nodes = environment.get("SLURM_JOB_ID"), environment.get("SLURM_JOB_NUM_NODES", environment.get("SLURM_NNODES", "0"))
    if job is None:
        what = f"launch.nodes={launch.nodes} outside a Slurm allocation"
        raise ConfigError(what, "the processes of other nodes are started by srun", f"sbatch or salloc with --nodes={launch.nodes}")
    if int(nodes) < launch.nodes:
        what = f"launch.nodes={launch.nodes}, and the Slurm allocation {job} has {nodes}"
        raise ConfigError(what, "", f"sbatch --nodes={launch.nodes}, or launch.nodes={nodes}")
    if "SLURMD_NODENAME" not in environment:
        what = f"launch.nodes={launch.nodes}, and this is not a node of the Slurm allocation {job}"
        raise ConfigError(what, "the command passes signals on to a process of its own node", "start it by sbatch: slurm.time=…")
    srun = ["srun", f"--nodes={launch.nodes}", f"--ntasks={launch.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if cores_of_each := environment.get("SLURM_CPUS_PER_TASK"):  # which srun does not take over from sbatch (since Slurm 22.05)
        srun.append(f"--cpus-per-task={cores_of_each}")
    meeting = f"{platform.node()}:{rendezvous_port(job)}"
    rendezvous = ["--nnodes", str(launch.nodes), "--rdzv-backend", "c10d", "--rdzv-id", fingerprint[:16], "--rdzv-endpoint", meeting]
    deadline = ["--rdzv-conf", f"join_timeout={math.ceil(60 * launch.timeout_minutes)}"]
    return [*srun, *torchrun, *rendezvous, *deadline, *worker]


def rendezvous_port(job: str) -> int:
    """A port of this machine for the processes of a Slurm job to meet on: another for each job of a node, and none that is in use.

    Raises:
        SafeworkError: all that may be taken are in use.
    """
    first = FIRST_PORT + int(job) % PORTS
    for port in range(first, first + PORT_ATTEMPTS):
        with socket.socket() as trial:
            try:
                trial.bind(("", port))
            except OSError:
                continue
        return port
    raise SafeworkError(
        f"the ports {first} to {first + PORT_ATTEMPTS - 1} of {platform.node()} are all in use",
        "the nodes of a job meet on one of them",
        "end what listens there (ss -tlnp), or submit the job again: its number gives it other ports",
    )


def _request(stage: Stage, config: Any, inputs: Inputs, work: WorkDir) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "stage_version": stage.version,
        "version": own_version(),
        "fingerprint": work.fingerprint,
        "config": config.model_dump(mode="json", exclude_unset=True),  # whether a setting was given decides what is refused
        "inputs": {key: _plain(artifact) for key, artifact in inputs.flat().items()},
        "estimate": work.estimate.to_json() if work.estimate is not None else None,
    }


def read_request(run: Path) -> dict[str, Any]:
    """What the processes of a run are to do, with ``inputs`` as ``Inputs`` and the plan's ``estimate``, or None."""
    request: dict[str, Any] = json.loads((run / FOLDER / REQUEST).read_bytes())
    values: dict[str, Any] = {}
    for key, plain in request["inputs"].items():
        artifact = Artifact(Path(plain["path"]), Manifest.model_validate(plain["manifest"]), plain["subset"], plain["external"])
        slot, _, part = key.partition(".")
        if part:
            values.setdefault(slot, {})[part] = artifact
        else:
            values[slot] = artifact
    estimate = request["estimate"]
    return request | {"inputs": Inputs(values), "estimate": None if estimate is None else Estimate.from_json(estimate)}


def write_outcome(run: Path, outcome: Outcome) -> None:
    """Hands the first process's outcome to the command."""
    write_durably(run / FOLDER / OUTCOME, json.dumps(asdict(outcome)).encode())


def _plain(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "manifest": artifact.manifest.model_dump(mode="json"),
        "subset": artifact.subset,
        "external": artifact.external,
    }


def _environment(launch: LaunchSettings) -> dict[str, str]:
    """Without OMP_NUM_THREADS torchrun sets it to 1, and every process would tokenise and compute on one core."""
    threads = str(max(1, cores() // launch.processes))
    return {"OMP_NUM_THREADS": threads, **os.environ}


def end_with_parent() -> None:
    """Called in the child: Linux sends it SIGTERM when the command dies, by kill -9 too. A run never continues without its lock."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], relay: Relay, folder: Path, work: WorkDir) -> None:
    sent = False
    while process.poll() is None:
        relay.pump()
        if work.stop.requested is not None and not sent:
            sent = _send(folder, work.stop.requested)
        time.sleep(POLL_SECONDS)


def _send(folder: Path, number: signal.Signals) -> bool:
    """Passes a signal on to one process of this host, which stops all at the same step: not to the first process, since torchrun numbers
    nodes in the order of their names, so that the first may be on another one. False while none here has begun. SIGTERM is left to
    torchrun, which ends the other processes by it when one has failed."""
    for record in read_records(folder).values():
        if record.host == this_host() and record.state == "running":
            try:
                os.kill(record.pid, signal.SIGINT if number == signal.SIGINT else signal.SIGUSR1)
            except ProcessLookupError:
                continue
            return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """No process is left running, whatever ended the waiting."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
