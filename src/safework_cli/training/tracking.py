"""Experiment trackers: transformers' own callbacks (``report_to``) write to them; this module adds the run's identity and lineage.

Files are kept in ``STORE-tracking/``, next to the store, and no tracker uses the network unless the user's environment asks for it
(WANDB_MODE=online, MLFLOW_TRACKING_URI=https://…). Torch-free.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import ConfigError, InputError, RunAgain
from safework_cli.core.runs import read_request
from safework_cli.core.stage import Plan, WorkDir

if TYPE_CHECKING:
    from transformers import Trainer

SUFFIX, PROJECT = "-tracking", "safework"
PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny", "trackio": "trackio", "wandb": "wandb"}
"""Tracker → the package to install."""
IN_EXTRA = ("tensorboard", "mlflow", "wandb")
"""Trackers whose packages are in the extra; trackio needs releases of gradio that do not fit this project's other packages."""
EXTRA = "pip install 'safework[tracking]' for tensorboard, mlflow and wandb"
MLFLOW_RUN = "mlflow_run"
"""The file of a run folder that names its MLflow run: a resumed run continues it."""

_set_here: dict[str, str] = {}
"""Variables that this process set itself, which the next run may replace."""


def plan_tracking(plan: Plan, trackers: Sequence[str]) -> None:
    """Adds to a plan which trackers are used, and a refusal for each one whose package is not installed."""
    for name in trackers:
        if find_spec(name) is None:
            plan.refuse(
                f"tracking names {name}, which is not installed",
                "the run would not be tracked",
                f"pip install {PACKAGES[name]}" + (f"; or {EXTRA}" if name in IN_EXTRA else ""),
            )
    if trackers:
        plan.lines.append(f"tracked by {', '.join(trackers)}")


def tracking_folder(store: Path) -> Path:
    """The folder of the trackers' files: next to the store, since mlflow refuses to read runs below a folder named ``artifacts``, which is
    the store's usual name."""
    return store.with_name(store.name + SUFFIX)


def tracking_arguments(trackers: Sequence[str], work: WorkDir) -> dict[str, Any]:
    """The trainer arguments for these trackers. Points each of them to a folder next to the store, by the variables that it reads,
    where the user's environment does not say otherwise."""
    if not trackers:
        return {"report_to": "none"}
    root = tracking_folder(work.path.parent.parent)
    if "mlflow" in trackers and "artifacts" in root.parts and not os.environ.get("MLFLOW_TRACKING_URI") and not find_spec("sqlalchemy"):
        raise ConfigError(
            f"mlflow cannot read its files below a folder named artifacts ({root})",
            "mlflow-skinny keeps runs in files, and takes such a folder for that of a run's artifacts",
            "pip install mlflow (which keeps them in a database), or use another --store",
        )
    name = run_name(work)
    for variable, value in {
        "TENSORBOARD_LOGGING_DIR": str(root / "tensorboard" / name),
        "MLFLOW_TRACKING_URI": _mlflow_uri(root),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(root),
        "WANDB_PROJECT": PROJECT,
        "TRACKIO_DIR": str(root / "trackio"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }.items():
        if os.environ.get(variable) in (None, _set_here.get(variable)):
            os.environ[variable] = _set_here[variable] = value
    for tracker in filter(find_spec, trackers):  # after their variables: some are read at import
        _import(tracker)
    try:
        root.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere where its folder is missing
    except OSError as error:
        raise _unusable(", ".join(trackers), error, root) from error
    # a frozen copy on the hub is trackio's default at the end of a run
    return {"report_to": list(trackers), "run_name": name, "project": PROJECT, "trackio_static_space_id": False}


def _import(tracker: str) -> None:
    """Raises ConfigError where a tracker's package is installed and broken: transformers would end with its traceback later."""
    try:
        import_module(tracker)
    except Exception as error:  # third-party code: anything may come
        raise ConfigError(
            f"tracking names {tracker}, which cannot be imported",
            f"{type(error).__name__}: {error}",
            f"pip install --force-reinstall {PACKAGES[tracker]}, or leave {tracker} out of tracking",
        ) from error


def _unusable(tracker: str, error: Exception, root: Path) -> InputError:
    what = f"{tracker} cannot write to {root}" if isinstance(error, OSError) else f"{tracker} cannot begin a run"
    return InputError(what, _first_line(error), f"make {root} a folder that you may write to; or leave {tracker} out of tracking")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextmanager
def _failures_explained(trackers: Sequence[str], root: Path) -> Iterator[None]:
    """Turns an error of a tracker into one that says how the run continues: its checkpoints are kept, and trackers are not part of its
    identity."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(root):
            raise _unusable(", ".join(trackers), error, root) from error
        raise
    except Exception as error:
        tracker = next((name for name in trackers if type(error).__module__.partition(".")[0] == name), None)
        if tracker is None:
            raise
        raise RunAgain(
            f"{tracker} failed",
            f"{_first_line(error)}; what was trained so far is kept",
            f"run the same command again; without {tracker} in tracking it resumes the same run",
        ) from error


def _mlflow_uri(root: Path) -> str:
    return f"sqlite:///{root / 'mlflow.db'}" if find_spec("sqlalchemy") else f"file://{root / 'mlflow'}"  # mlflow-skinny has no database


def run_name(work: WorkDir) -> str:
    """What trackers call a run: the artifact's name and the beginning of the fingerprint, so that a resumed run has the same name."""
    name = str(identity(work).get("artifact", "run")).rpartition("/")[2]
    return f"{name}-{work.fingerprint[:8]}"


def identity(work: WorkDir) -> dict[str, str]:
    """What a run makes, and of what: the artifact's reference, stage, fingerprint, and each input's reference and digest."""
    request = read_request(work.path) or {}
    identified: dict[str, str] = {key: str(request[key]) for key in ("artifact", "stage", "fingerprint") if key in request}
    for key, ref in request.get("inputs", {}).items():
        identified |= {f"input.{key}": ref, f"input.{key}.digest": request["digests"][key]}
    return identified


@contextmanager
def tracked(trainer: Trainer, work: WorkDir) -> Iterator[None]:
    """Inside, the trainer's trackers know the run's identity (under ``safework.…`` in its configuration), and a resumed run continues its
    tracked run."""
    trackers = [] if trainer.args.report_to in ("none", None) else list(trainer.args.report_to)
    if not trackers:
        yield
        return
    from transformers import TrainerCallback

    known = {f"safework.{key}": value for key, value in identity(work).items()}

    class Identity(TrainerCallback):
        """Called after the trackers' own callbacks have begun their runs."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if "tensorboard" in trackers:
                writers = [w for c in trainer.callback_handler.callbacks if (w := getattr(c, "tb_writer", None)) is not None]
                for writer in writers:
                    writer.add_text("safework", "```\n" + json.dumps(known, indent=1, ensure_ascii=False) + "\n```", state.global_step)
            if "mlflow" in trackers:
                import mlflow

                mlflow.set_tags(known)
            if "wandb" in trackers:
                import wandb

                wandb.config.update(known, allow_val_change=True)
            if "trackio" in trackers:
                import trackio

                trackio.config.update(known, allow_val_change=True)

    trainer.add_callback(Identity())
    with ExitStack() as runs:
        runs.enter_context(_failures_explained(trackers, tracking_folder(work.path.parent.parent)))
        if "mlflow" in trackers:
            runs.enter_context(_mlflow_run(work, str(trainer.args.run_name)))
        if "wandb" in trackers:
            runs.enter_context(_wandb_run())
        yield


@contextmanager
def _wandb_run() -> Iterator[None]:
    """Ends the run that transformers' callback begins: otherwise its last numbers are written at the end of the process, and the next
    stage of the process continues it."""
    import wandb

    code = 1
    try:
        yield
        code = 0
    finally:
        wandb.finish(exit_code=code)


@contextmanager
def _mlflow_run(work: WorkDir, name: str) -> Iterator[None]:
    """An MLflow run that a resumed run continues: transformers' callback would begin another one."""
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    kept = work.path / MLFLOW_RUN
    started = mlflow.start_run(run_id=kept.read_text() if kept.exists() else None, run_name=name)
    kept.write_text(started.info.run_id)
    status, failures = "KILLED", _Messages(logging.ERROR)
    queue = logging.getLogger("mlflow.utils.async_logging.async_logging_queue")  # it logs the errors of its threads, and raises none
    queue.addHandler(failures)
    try:
        yield
        status = "FINISHED"
    finally:
        try:
            mlflow.flush_async_logging()
        finally:
            queue.removeHandler(failures)
            if failures.messages:
                first = (failures.messages[0].splitlines() or [""])[0][:300]
                work.progress.warn(f"mlflow did not record {len(failures.messages)} batches of numbers, which metrics.jsonl has: {first}")
        mlflow.end_run(status)


class _Messages(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int):
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
