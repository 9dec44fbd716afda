"""A way for a vLLM server to take weights over: from safetensors files in a folder that trainer and server both see.

vLLM calls ``register`` in every process of a server, by the entry point ``vllm.general_plugins``, wherever safework is installed next to
it. NCCL, vLLM's own way, needs CUDA on both sides; this one needs a shared file system, and works on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BACKEND = "safework"
"""Its name among vLLM's weight-transfer backends."""
LIVE = "SAFEWORK_LIVE_WEIGHTS"
"""Environment variable of a server whose weights will be replaced; ``safework serve`` sets it."""


def keep_weights_loadable() -> None:
    """On a CPU: vLLM's build for it packs linear weights for oneDNN and drops the originals, and what is loaded later never reaches the
    packed copies. To be called before a model is loaded."""
    if not torch.cuda.is_available():
        import vllm._custom_ops as operations

        operations._supports_onednn = False


def register() -> None:
    """Adds the backend to vLLM's. Does nothing where it is there already."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if os.environ.get(LIVE):
        keep_weights_loadable()
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "safework_cli.engines.vllm.plugin", "folder_engine")


def read_folder(folder: Path, expected: int) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, weight) of every weight in a folder's safetensors files.

    Raises:
        FileNotFoundError: the folder holds fewer or more weights than the trainer wrote: it is another one than the trainer's.
    """
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    names = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            names[file] = list(opened.keys())
    if (count := sum(map(len, names.values()))) != expected:
        raise FileNotFoundError(f"{folder} holds {count} weights here, and the trainer wrote {expected}: do both see the same folder?")
    for file, own in names.items():
        with safe_open(file, "pt") as opened:
            for name in own:
                yield name, opened.get_tensor(name)


def __getattr__(name: str) -> Any:
    """``folder_engine``, the class that vLLM makes in each worker: made when it is asked for, since its base is vLLM's."""
    if name == "folder_engine":
        return _folder_engine()
    raise AttributeError(name)


def _folder_engine() -> type:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class Init(WeightTransferInitInfo):
        pass

    @dataclass
    class Update(WeightTransferUpdateInfo):
        folder: str
        weights: int

    class FolderEngine(WeightTransferEngine[Init, Update]):
        init_info_cls, update_info_cls = Init, Update

        def init_transfer_engine(self, init_info: Init) -> None:
            if not torch.cuda.is_available() and not os.environ.get(LIVE):
                raise RuntimeError(f"start the server by `safework serve`, or with {LIVE}=1: else it computes with packed, old weights")

        def start_weight_update(self) -> None:
            # by their names before the reload, which gives an output embedding that is tied to the input's a name of its own: none comes
            # for it, and it keeps sharing the storage that the input's is written to
            self._wanted = {name for name, _ in self.model.named_parameters()}
            initialize_layerwise_reload(self.model)

        def receive_weights(self, update_info: Update) -> None:
            loaded = self.model.load_weights(read_folder(Path(update_info.folder), update_info.weights))
            if loaded is not None and (missing := sorted(self._wanted - set(loaded))):
                raise ValueError(f"{len(missing)} of the model's weights are not among those that came, such as {missing[0]}")

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)

        def shutdown(self) -> None: ...

    return FolderEngine
