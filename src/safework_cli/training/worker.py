"""One of the processes of a stage that runs on several: started by torchrun with the run folder, see ``core.launch.start``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from safework_cli.core.capture import warnings_recorded
from safework_cli.core.errors import SafeworkError
from safework_cli.core.launch.ranks import FOLDER, RankRecord, failed, own_record, write_record
from safework_cli.core.launch.relay import FILE, RelayDisplay
from safework_cli.core.launch.start import read_request, write_outcome
from safework_cli.core.launch.world import World
from safework_cli.core.progress import Progress, QuietDisplay
from safework_cli.core.registry import load_stage
from safework_cli.core.settings import LaunchSettings
from safework_cli.core.signals import StopRequest
from safework_cli.core.stage import Outcome, Stage, WorkDir
from safework_cli.core.system import own_version
from safework_cli.core.system_errors import explain

PARENT_SECONDS = 2.0
"""Between two looks at whether torchrun is still there."""


def main(run: Path) -> int:
    """Runs the stage as this process's part of it; returns the exit code, of which torchrun keeps only whether it is 0."""
    folder = run / FOLDER
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    _log_to(folder / f"{world.rank}.log")
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    record = own_record(world.rank, own_version())
    write_record(folder, record)
    config: Any = None
    try:
        request = read_request(run)
        stage = load_stage(request["stage"])
        _refuse_other_version(request, record, stage)
        config = stage.Config.model_validate(request["config"], strict=False)
        _refuse_other_world(config.launch, world)
        outcome = _run(stage, config, request, run, world)
    except BaseException as error:
        write_record(folder, failed(record, explain(error, None, config) or error, traceback.format_exc()))
        traceback.print_exc()
        return error.exit_code if isinstance(error, SafeworkError) else 1
    if world.first:
        write_outcome(run, outcome)
    record.state = "done"
    write_record(folder, record)
    return 0


def _run(stage: Stage, config: Any, request: dict[str, Any], run: Path, world: World) -> Outcome:
    """Calls the stage with a ``WorkDir`` of this process: the first one keeps the run's records, the others have a folder of their own for
    what they would log, which people read after a failure only."""
    from safework_cli.training.group import started_group

    own = run if world.first else run / FOLDER / str(world.rank)
    own.mkdir(exist_ok=True)
    progress = Progress(own, RelayDisplay(run / FOLDER / FILE) if world.first else QuietDisplay())
    stop = StopRequest((signal.SIGINT, signal.SIGUSR1))  # SIGTERM comes from torchrun, when another process has failed
    try:
        with stop.installed(), warnings_recorded(progress), started_group(config.launch, world):
            work = WorkDir(run, request["fingerprint"], progress, stop, world, request["estimate"])
            outcome: Outcome = stage.run(config, request["inputs"], work)
            return outcome
    finally:
        progress.close()


def _log_to(path: Path) -> None:
    """Sends this process's output, and that of libraries in C, to its log."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _end_with(parent: int) -> None:
    """Ends this process when torchrun is gone, killed with the command: without its lock no process may go on writing into the run."""
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def _refuse_other_version(request: dict[str, Any], record: RankRecord, stage: Stage) -> None:
    here, there = (record.version, stage.version), (request["version"], request["stage_version"])
    if here != there:
        raise SafeworkError(
            f"process {record.rank} on {record.host} has safework {here[0]} ({stage.name} version {here[1]}), and the command has "
            f"{there[0]} (version {there[1]})",
            "the processes of a run must run the same program",
            "install the same version on every node, or start from a shared environment",
        )


def _refuse_other_world(launch: LaunchSettings, world: World) -> None:
    if world.size != launch.world:
        raise SafeworkError(f"{world.size} processes were started, and launch asks for {launch.world}", "", "report this")


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a failed group's threads wait for the others in their destructors
