"""DDP, ZeRO and FSDP: the trainer's arguments for them, whether they were really used, the whole policy to sample from, and saving.

Everything goes through transformers' own arguments (``ddp_…``, ``deepspeed``, ``fsdp``) and accelerate. What is here is what those leave
to the caller: to look at what was made of the arguments, to gather divided weights, and to save them once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, fsdp2_prepare_model
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback
from trl.models.utils import prepare_deepspeed, unwrap_model_for_generation

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import SafeworkError
from safework_cli.core.launch.world import World
from safework_cli.core.settings import LaunchSettings
from safework_cli.core.stage import WorkDir
from safework_cli.models.adapters import Adapter, adapter_of, merged
from safework_cli.models.layers import lora_config
from safework_cli.models.load import Place, pick_device
from safework_cli.models.vision import base_of
from safework_cli.training.config import Lora

DEEPSPEED_CONFIG = "deepspeed.json"
_TYPES = {
    "ddp": (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU),
    "zero2": (DistributedType.DEEPSPEED,),
    "zero3": (DistributedType.DEEPSPEED,),
    "fsdp": (DistributedType.FSDP,),
}


DIVIDED = ("zero3", "fsdp")
"""Strategies by which a process holds a part of each weight."""
IN_PARTS = "the first process reads the model, and the others get their parts of it"


def load_to_train(load: Callable[[Place], Any], launch: LaunchSettings, work: WorkDir, *, whole: bool) -> tuple[Any, Place]:
    """The model that training starts from, and where this process read it. Under FSDP the first process reads it into the host's memory,
    and the others get their parts of each weight when training begins: no GPU holds the whole model, and no host more than one.

    Args:
        load: reads it.
        whole: every process needs it before training.
    """
    if launch.strategy != "fsdp" or whole:
        return load("device"), "device"
    place: Place = "host" if work.world.first else "empty"
    model = load(place)
    if model.state_dict().keys() & dict(model.named_buffers()).keys():  # which accelerate does not send
        return load("device"), "device"
    work.progress.note(IN_PARTS)
    return model, place


def strategy_arguments(launch: LaunchSettings, work: WorkDir, place: Place = "device") -> dict[str, Any]:
    """transformers' training arguments of a strategy; none for one process. DeepSpeed's configuration is kept in the run folder too.

    Args:
        place: where the model was read to.
    """
    if launch.strategy == "single":
        return {}
    found: dict[str, Any] = {"ddp_timeout": int(60 * launch.timeout_minutes)}
    if not torch.cuda.is_available():
        found["ddp_backend"] = "gloo"
    if launch.strategy == "ddp":
        return found | {"ddp_find_unused_parameters": False}
    if launch.strategy == "fsdp":
        settings = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": True}
        settings["cpu_ram_efficient_loading"] = place != "device"  # accelerate then sends the first process's weights to the others
        return found | {"fsdp": True, "fsdp_config": settings | {"state_dict_type": "FULL_STATE_DICT"}}
    config = zero_config(launch)
    if work.world.first:
        (work.path / DEEPSPEED_CONFIG).write_text(json.dumps(config, indent=1))
    return found | {"deepspeed": config}


def zero_config(launch: LaunchSettings) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" is filled in from the training arguments."""
    stage = {"zero2": 2, "zero3": 3}[launch.strategy]
    divided: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        divided |= {
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": launch.persistence_threshold,
        }
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": divided,
        "zero_allow_untested_optimizer": True,
    }


class StrategyGuard(TrainerCallback):
    """Ends a run whose processes do not train as ``launch`` asks for: a library that cannot find what it needs continues without it."""

    def __init__(self, trainer: Trainer, launch: LaunchSettings):
        self._trainer, self._launch = trainer, launch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        accelerator, asked = self._trainer.accelerator, self._launch.strategy
        got = accelerator.distributed_type
        if accelerator.num_processes != self._launch.world or got not in _TYPES[asked]:
            raise SafeworkError(
                f"launch asks for {asked} on {self._launch.world} processes, and the trainer has {got.value} on "
                f"{accelerator.num_processes}",
                "a run that trained otherwise would look the same",
                "report this, with the output of safework doctor",
            )
        if asked in DIVIDED and not any(map(_is_divided, self._trainer.model_wrapped.parameters())):
            raise SafeworkError(
                f"launch asks for {asked}, and no weight is divided among the processes",
                "the model is smaller than what each process keeps whole" if asked == "zero3" else "no layer was wrapped",
                "launch.persistence_threshold=0 divides every weight; or launch.strategy=ddp",
            )
        if asked == "zero2" and (stage := _engine_stage(self._trainer)) != 2:
            raise SafeworkError(f"launch asks for zero2, and DeepSpeed runs stage {stage}", "", "report this")


def _engine_stage(trainer: Trainer) -> int:
    engine: Any = trainer.model_wrapped
    return int(engine.zero_optimization_stage())


def _is_divided(weight: Any) -> bool:
    """Whether this process holds only a part of a weight, under ZeRO-3 or FSDP2."""
    part = getattr(weight, "ds_tensor", None)
    if part is not None:
        return int(part.numel()) < int(weight.ds_numel)
    local = getattr(weight, "to_local", None)
    return local is not None and local().numel() < weight.numel()


@contextmanager
def whole_policy(trainer: Trainer) -> Iterator[Any]:
    """The model in training with whole weights, as one process would have it, to sample from and to measure. All processes call this, and
    those that hold parts gather them for the length of the body."""
    accelerator, wrapped = trainer.accelerator, trainer.model_wrapped
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED and hasattr(wrapped, "zero_optimization_stage"):
        with unwrap_model_for_generation(wrapped, accelerator) as model:
            yield model
    elif kind == DistributedType.FSDP:
        with _gathered(wrapped) as model:
            yield model
    else:
        yield accelerator.unwrap_model(trainer.model)


@contextmanager
def policy_by_weights(trainer: Trainer) -> Iterator[Any]:
    """The model in training, to read one weight after the other (``models.live``). Divided weights stay divided; a model with adapters is
    gathered, since its weights are sums."""
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        with whole_policy(trainer) as model:
            yield model
    else:
        yield trainer.accelerator.unwrap_model(trainer.model_wrapped)


def prepared_to_read(accelerator: Accelerator, model: Any) -> Any:
    """A model that is only read, prepared as the trained one is. FSDP divides it, from the first process's weights where the others have
    none; ``Accelerator.prepare`` does that only for a model that comes with an optimiser. DeepSpeed divides it under ZeRO-3."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return prepare_deepspeed(model, accelerator)
    if accelerator.distributed_type == DistributedType.FSDP:
        return fsdp2_prepare_model(accelerator, model)
    return accelerator.prepare_model(model, evaluation_mode=True)


@contextmanager
def head_gathered(model: Any, launch: LaunchSettings) -> Iterator[None]:
    """Inside, under FSDP, TRL's fused head finds the head's weight gathered.

    The fused head reads the weight without calling the head's module, whose hooks gather it. Where no other module shares the weight, TRL
    takes it as it is divided, by ``full_tensor``, whose gradient is not summed over processes: each would train its part of the head on
    only its own rows.
    """
    causal = base_of(model)
    head = causal.get_output_embeddings() if hasattr(causal, "get_output_embeddings") else None
    if launch.strategy != "fsdp" or head is None:
        yield
        return
    fused = False

    def begins(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal fused
        fused = bool(kwargs.get("fused_lm_head"))

    def ends(*_: Any) -> None:
        if fused and torch.is_grad_enabled():
            head.unshard()  # until the gradients are reduced

    hooks = causal.register_forward_pre_hook(begins, with_kwargs=True), causal.base_model.register_forward_hook(ends)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _gathered(model: Any) -> Iterator[Any]:
    """An FSDP2 model whose parts stay gathered over the body: forward passes need no other process."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with ExitStack() as undo:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            undo.callback(part.set_reshard_after_forward, True, recurse=False)
            part.unshard()
            undo.callback(part.reshard)
        yield model


def trained_model(
    trainer: Trainer, world: World, starting: Callable[[], Any], lora: Lora | None = None, base: Artifact | None = None
) -> tuple[Any | None, Adapter | None]:
    """The trained model with whole weights, its adapters merged, and the adapters where ``lora`` keeps them; no model in the processes that
    have nothing left to do.

    Args:
        starting: loads the model that training began with, which divided weights are put into; called by the first process only.
        lora: its adapters.
        base: the model that training began with, where its adapters may be kept.
    """
    checkpoint, divided = weights_at(trainer), any(map(_is_divided, trainer.model_wrapped.parameters()))
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if divided and checkpoint is None else {}  # by all processes
    if not world.first:
        return None, None
    if checkpoint is None and not divided:
        return _taken_apart(trainer.accelerator.unwrap_model(trainer.model), lora, base)
    model = starting()
    adapters = lora_config(lora, model)
    model = model if adapters is None else get_peft_model(model, adapters)
    if checkpoint is None:
        _take(model, state)
    elif adapters is None:
        _take(model, _read_weights(checkpoint))
    else:
        set_peft_model_state_dict(model, _read_weights(checkpoint))
    whole, kept = _taken_apart(model, lora, base)
    return _onto_device(whole), kept


def _taken_apart(model: Any, lora: Lora | None, base: Artifact | None) -> tuple[Any, Adapter | None]:
    kept = adapter_of(model, base) if lora is not None and lora.keep == "adapter" and base is not None else None
    return merged(model), kept


def _onto_device(model: Any) -> Any:
    """A model in the host's memory, moved to this process's GPU if it has room for it next to what training holds there."""
    device, needed = pick_device(), sum(weight.nbytes for weight in model.parameters())
    fits = device.type != "cuda" or 1.2 * needed < torch.cuda.mem_get_info(device)[0]
    return model.to(device) if fits else model


_AT = "_safework_weights_at"


def leave_weights_at(trainer: Trainer, checkpoint: Path) -> None:
    """Notes that the trained weights are those of a checkpoint, and not what the processes of the trainer hold: divided weights are not
    loaded again only to be gathered and saved."""
    vars(trainer)[_AT] = checkpoint


def weights_at(trainer: Trainer) -> Path | None:
    """The checkpoint that holds the trained weights; None where the trainer does."""
    return vars(trainer).get(_AT)


def _read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint: of the whole model, or of its adapters."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        if file.name.startswith(("model", "adapter_model")):  # a stage may keep tensors of its own in a checkpoint
            weights |= load_file(file)
    return weights


def _take(model: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Puts gathered weights into a model. Raises SafeworkError where some are missing: they would be the starting model's."""
    missing, strange = model.load_state_dict(state, strict=False)
    tied = set(getattr(base_of(model), "_tied_weights_keys", None) or {})
    if missing := [name for name in missing if name.removeprefix("base_model.model.") not in tied]:
        raise SafeworkError(f"{len(missing)} weights were not gathered from the processes (first: {missing[0]})", "", "report this")
    if strange:
        raise SafeworkError(f"{len(strange)} gathered weights are unknown to the model (first: {strange[0]})", "", "report this")
