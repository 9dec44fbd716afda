"""Names that other tools use for our settings and commands, so that an error can show the right one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from safework_cli.core.errors import nearest

SETTINGS = {
    "model_name_or_path": "model",
    "pretrained_model_name_or_path": "model",
    "model_name": "model",
    "model_path": "model",
    "base_model": "model",
    "dataset_name": "data",
    "dataset": "data",
    "dataset_path": "data",
    "train_dataset": "data",
    "train_file": "data",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "loss_type": "algorithm",
}
"""A setting's name in TRL, transformers, axolotl, … → its name here."""

RENAMED = {
    "cpgd": ("loss", ""),
    "epsilon": ("loss.epsilon", ""),
    "epsilon_high": ("loss.epsilon_high", ""),
    "endpoint": ("engine", "engine.kind=openai"),
}
"""A setting or block of an earlier version → its name now, and what else has to be given."""

NO_PPO = "PPO with a critic is not available: rl m3 compares the replies of a group (algorithm=cpgd, grpo, dr_grpo, gspo, …)"
NO_DPO = "DPO is not available: rl m3 learns from the rewards of verifiers, not from preference pairs"
COMMANDS = {
    "train": ("sft", "supervised fine-tuning is called sft; RL is `safework rl m3`, a verifier is trained by `safework verifier train`"),
    "finetune": ("sft", "supervised fine-tuning is called sft"),
    "fine-tune": ("sft", "supervised fine-tuning is called sft"),
    "evaluate": ("eval", ""),
    "grpo": ("rl m3 algorithm=grpo", "GRPO is an algorithm of rl m3"),
    "rl grpo": ("rl m3 algorithm=grpo", "GRPO is an algorithm of rl m3"),
    "cpgd": ("rl m3", "CPGD is the default algorithm of rl m3"),
    "rl cpgd": ("rl m3", "CPGD is the default algorithm of rl m3"),
    "rl train": ("rl m3", ""),
    "ppo": ("rl m3", NO_PPO),
    "rl ppo": (
        "rl m3",
        NO_PPO,
    ),
    "dpo": ("rl m3", NO_DPO),
    "rl dpo": ("rl m3", NO_DPO),
    "reward": ("verifier train", "a reward model is called a verifier"),
    "download": ("models pull", ""),
    "pull": ("models pull", ""),
    "models download": ("models pull", ""),
    "models get": ("models pull", ""),
    "models import": ("artifacts import", "a folder on this disk needs no pull"),
    "models ls": ("artifacts ls --kind model", ""),
    "models list": ("artifacts ls --kind model", ""),
    "list": ("artifacts ls", ""),
    "merge": ("models merge", ""),
    "pipeline": ("ladder", "commands that use each other's references are a ladder's file"),
    "ls": ("artifacts ls", ""),
    "artifacts list": ("artifacts ls", ""),
    "runs list": ("runs ls", ""),
    "recipes list": ("recipes ls", ""),
}
"""A command's name elsewhere → the command here, and why where the name does not say it."""


def setting_named(name: str, valid: Iterable[str]) -> str | None:
    """The setting that is meant by a name (``--learning-rate``, ``model_name_or_path``); None where there is none."""
    name, valid = name.replace("-", "_"), set(valid)
    if name in valid:
        return name
    other = SETTINGS.get(name)
    return other if other in valid else None


def renamed(key: str, value: Any, valid: Iterable[str]) -> tuple[str, str] | None:
    """What a setting of an earlier version is called now.

    Args:
        value: what was given; of a block, a mapping.
        valid: the keys that there are: another stage may never have had the setting.

    Returns:
        The names as they are now, each after the one that was given, and the words to type; None where the key never was a setting.
    """
    new, more = RENAMED.get(key, ("", ""))
    if not new or new.partition(".")[0] not in valid:
        return None
    given = {f".{name}": one for name, one in value.items()} if isinstance(value, dict) and value else {"": value}
    names = ", ".join(f"'{key}{end}' is now '{new}{end}'" for end in given)
    words = [f"{new}{end}={one if isinstance(one, str) else json.dumps(one)}" for end, one in given.items()]
    return names, " ".join([*([more] if more else []), *map(shlex.quote, words)])


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """As ``nearest``, with the names of other tools known."""
    valid = list(valid)
    known = setting_named(name, valid)
    return f"; did you mean '{known}'?" if known else nearest(name, valid)
