"""What a checkpoint has in addition to weights and optimiser: the objective's state, and the rollout if its updates are not complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from safework_cli.core.launch.world import World
from safework_rl.trl_adapter import LadderTrainer

STATE = "safework_state.json"


class KeepRollout(TrainerCallback):
    """Writes them, and restores the trainer's place in the rollout."""

    def __init__(self, trainer: LadderTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer._step = state.global_step * args.gradient_accumulation_steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, folder = self._trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if trainer.work.world.first:
            (folder / STATE).write_text(json.dumps({"objective": trainer.objective.state(), "first_gap": trainer.first_gap}))
        within = state.global_step % trainer.config.rollout_steps and state.global_step < args.max_steps
        if within and trainer.scored is not None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.scored.items()}
            save_file(tensors | {"rows": torch.tensor(trainer.kept_rows)}, folder / rollout_file(trainer.work.world))


def rollout_file(world: World) -> str:
    """The file of a checkpoint with what a process trains on of an unfinished rollout."""
    return f"rollout-{world.rank}.safetensors"


def load_state(trainer: LadderTrainer, checkpoint: Path | None, *, forked: bool) -> None:
    """Restores the state of the objective, such as λ, and an unfinished rollout, as they were when the checkpoint was written.

    Args:
        forked: the checkpoint is another run's: its λ is used, but its rollout was made under other settings and is sampled again.
    """
    if checkpoint is None:
        return
    kept = json.loads((checkpoint / STATE).read_text())
    trainer.objective.load_state(kept["objective"])
    if forked:
        return
    trainer.first_gap = kept["first_gap"]
    rollout = checkpoint / rollout_file(trainer.work.world)
    if rollout.exists():
        tensors = load_file(rollout)
        trainer.resume_rollout(tensors.pop("rows").tolist(), tensors)


__all__ = ["KeepRollout", "load_state"]
