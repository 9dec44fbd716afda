"""A pretended GPU with real values: tensors that say they are on it compute on the CPU, and mixing the two raises, as CUDA does.

torch lets a Python program register a device. ``pretended(monkeypatch)`` makes the product choose it, so that whole stages run on it; what
reads a tensor on the wrong side fails with the sentence that CUDA has for it. FakeTensorMode also knows devices but has no values, which
sampling and rewards need.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "fakegpu"
aten = torch.ops.aten


class _Backend(_DummyBackendModule):
    """What ``torch.fakegpu`` offers."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]


_setup_privateuseone_for_python_backend(NAME, _Backend())
GPU = torch.device(NAME, 0)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on the pretended GPU; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype, device=GPU,
            requires_grad=real.requires_grad,
        )  # fmt: skip
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def item(self) -> Any:
        return self.held.item()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    __array__ = numpy  # type: ignore[assignment]

    def untyped_storage(self) -> Any:
        """(safetensors tells by it which tensors share memory.)"""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OnGpu, (self.held,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copy = OnGpu(self.held.detach().clone()).requires_grad_(self.requires_grad)
            vars(copy).update({name: value for name, value in vars(self).items() if name != "held"})
            memo[id(self)] = copy
        return memo[id(self)]

    @property
    def data(self) -> Any:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator on the values of its arguments; raises where CUDA would refuse their devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    asked = kwargs.get("device") or next((leaf for leaf in args if isinstance(leaf, torch.device)), None)
    refuse_mixed(func, args, tensors)
    real_args, real_kwargs = tree_map(_real, args), tree_map(_real, kwargs)
    made = func(*real_args, **real_kwargs)
    if not func._schema.returns:
        return None
    if "out" in kwargs:
        return kwargs["out"]
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor):
        return args[0]
    if asked is None:
        there = isinstance(args[0], OnGpu) if func in COPYING else bool(on_gpu)
    else:
        there = torch.device(asked).type == NAME
    return tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, torch.Tensor) else leaf, made) if there else made


COPYING = (aten._to_copy.default, aten.copy_.default)
"""Operators between devices."""
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
"""Operators on a GPU's tensor that take indices from a CPU."""


def refuse_mixed(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """Raises where tensors of both devices meet; a number as a tensor of no dimensions may be anywhere."""
    if func in COPYING:
        return
    if func in INDEXING:
        if not isinstance(args[0], OnGpu) and any(isinstance(leaf, OnGpu) for leaf in tree_leaves(args[1])):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [args[0], *args[2:3]]
    there, here = ([tuple(t.shape) for t in tensors if isinstance(t, OnGpu) == on_gpu] for on_gpu in (True, False))
    if any(isinstance(t, OnGpu) for t in tensors) and any(here):
        raise RuntimeError(f"Expected all tensors to be on the same device: {func} got {there} on {NAME}:0 and {here} on the cpu")


def _real(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) and leaf.type == NAME:
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, OnGpu) else leaf


class Pretending(TorchDispatchMode):
    """Inside, tensors can be made on the pretended GPU and moved to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return compute(func, args, kwargs or {})

    def __enter__(self) -> Any:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*raised)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, the product finds this GPU, in every thread."""
    run = threading.Thread.run

    def run_pretending(self: threading.Thread) -> None:
        with Pretending():
            run(self)

    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with monkeypatch.context() as patched, Pretending():
        patched.setattr("safework_cli.models.load.pick_device", lambda: GPU)
        patched.setattr("safework_cli.training.loop.pick_device", lambda: GPU)
        patched.setenv("ACCELERATE_TORCH_DEVICE", str(GPU))
        patched.setattr(threading.Thread, "run", run_pretending)
        torch.__future__.set_swap_module_params_on_conversion(True)  # weights that are tied stay so, as on a GPU
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swapped)
            AcceleratorState._reset_state(reset_partial_state=True)
