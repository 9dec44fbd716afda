"""vLLM with the weights of the policy: in this process, or on a server that samples for all processes of the run."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from safework_cli.core.stage import WorkDir
from safework_cli.engines.openai import key_of
from safework_cli.engines.protocol import TokenEngine
from safework_cli.engines.vllm.engine import VllmEngine
from safework_cli.engines.vllm.served import ServedVllm
from safework_cli.engines.vllm.server import VllmServer
from safework_cli.models.live import live_weights
from safework_cli.models.load import Dtype
from safework_cli.training.group import barrier, gathered
from safework_cli.training.strategy import policy_by_weights
from safework_rl.config import RlConfig


class VllmPolicy:
    """An engine that takes the policy's weights over when they have changed.

    Args:
        config: of the run: where replies are sampled, and whether code of the folder may run.
        folder: of the model that training began with.
        in_bf16: whether the trainer multiplies in bfloat16, as the engine then does.
        processor: of a policy whose prompts have images.
    """

    def __init__(
        self,
        config: RlConfig,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        work: WorkDir,
        *,
        in_bf16: bool,
        processor: Any = None,
    ):
        settings = config.engine
        dtype: Dtype = "bfloat16" if in_bf16 else "float32"
        self._work = work
        self._run = gathered(work.world, [secrets.token_hex(8)])[0]
        self._step: int | None = None
        self._engine: VllmEngine | ServedVllm
        if settings.server is None:
            log = work.path / f"vllm-{work.world.rank}.log"
            self._engine = VllmEngine(
                folder, tokenizer, settings.vllm, dtype=dtype, sampled=True, live=True, log=log, processor=processor,
                trust_remote_code=config.trust_remote_code,
            )  # fmt: skip
        else:
            server = VllmServer(settings.server, key_of(settings.server))
            scratch, sends = work.path / "served", work.world.first
            self._engine = ServedVllm(server, folder, tokenizer, dtype=dtype, scratch=scratch, sends=sends, processor=processor)
            work.progress.note(f"replies are sampled by {self._engine.name}")

    def at(self, trainer: Trainer, step: int) -> TokenEngine:
        """The engine with the weights of this step. All processes of the run call it.

        Args:
            trainer: of the policy.
        """
        if self._step != step:
            with policy_by_weights(trainer) as model:
                if isinstance(self._engine, VllmEngine):
                    self._engine.load_weights(live_weights(model))
                else:
                    self._send(self._engine, model, f"{self._run}:{step}")
            self._step = step
        return self._engine

    def _send(self, engine: ServedVllm, model: Any, version: str) -> None:
        """Sends the weights from one process; where they are divided, each is gathered from all of them as its turn comes."""
        engine.load_weights(partial(live_weights, model), version)
        if not engine.sends:
            for _ in live_weights(model):
                pass
        barrier(self._work.world)
