"""A signal that comes between two updates of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers import Trainer

from safework_cli.core.checkpoints import PREFIX, is_complete
from safework_cli.core.errors import Interrupted, RunAgain
from safework_cli.core.stage import WorkDir


@contextmanager
def interruptible(trainer: Trainer, work: WorkDir, restore: Callable[[], None]) -> Iterator[None]:
    """Inside, after one update and before the next, a signal ends the run at once, with a checkpoint of the last update: what is done in
    between may take minutes, and a scheduler kills a job that has not ended some seconds after its signal.

    Several processes end together, after the next update: none can save the state of all.

    Args:
        restore: undoes what the body may have changed of what a checkpoint holds.

    Raises:
        Interrupted, RunAgain: a signal came.
    """
    if work.world.size > 1:
        yield
        return
    try:
        with work.stop.at_once():
            yield
    except (Interrupted, RunAgain):
        step = trainer.state.global_step
        if step and not is_complete(work.checkpoints / f"{PREFIX}{step}"):
            restore()
            assert trainer.model is not None
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.control = trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        raise
