"""What vLLM in this process and vLLM on a server share: what is asked of it, and how an answer becomes a completion."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from safework_cli.core.artifacts.bases import base_folder
from safework_cli.core.errors import ConfigError, SafeworkError
from safework_cli.data.image_rows import reads_images
from safework_cli.engines.over_tokens import OverTokens
from safework_cli.engines.protocol import Completion, Sampling, completion_seeds
from safework_cli.engines.vllm.images import processor_options, refuse_other_tokens
from safework_cli.models.folder import read_config
from safework_cli.models.load import read_generation_config
from safework_cli.models.vision import placeholders_of

SAMPLED_LOGPROBS, MODEL_LOGPROBS = "processed_logprobs", "raw_logprobs"
"""vLLM's names of the log-probabilities of the distribution that is sampled from, and of the model's own."""


class OverVllm(OverTokens, ABC):
    """A ``TokenEngine`` over vLLM, wherever it runs.

    Args:
        folder: of the model; the others as in ``OverTokens``.

    Attributes:
        sampled: log-probabilities are those of the distribution that is sampled from; otherwise those of the model.
    """

    sampled: bool

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, batch_size: int, processor: Any = None):
        super().__init__(tokenizer, read_generation_config(folder), batch_size, processor)
        while (base := base_folder(folder)) is not None:  # of an adapter, the model under it says what it reads
            folder = base
        self._placeholders = placeholders_of(read_config(folder)) if reads_images(folder) else []
        self._bounds = processor_options(processor)

    @property
    @abstractmethod
    def name(self) -> str:
        """See ``Engine.name``."""

    def _jobs(
        self, prompts: Sequence[list[int]], sampling: Sampling, n: int, seeds: Sequence[Sequence[int]] | None
    ) -> list[tuple[int, int]]:
        """(position of the prompt, seed) of each completion, n for each prompt. Raises ConfigError for what this engine cannot do, and
        InputError for a prompt that is too long."""
        self._check_lengths(prompts, sampling)
        if self.sampled and sampling.temperature and (sampling.logprobs_at != sampling.temperature or sampling.top_p != 1):
            raise ConfigError(
                "this engine returns log-probabilities of the distribution that is sampled from, at top_p=1", "", "engine.kind=hf"
            )
        if not self.sampled and sampling.logprobs_at != 1:
            raise ConfigError("this engine returns log-probabilities at temperature 1", "", "engine.kind=hf")
        seeds = completion_seeds(sampling.seed, prompts, n) if seeds is None else seeds
        return [(place, seed) for place, own in enumerate(seeds) for seed in own]

    def _options(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """vLLM's sampling parameters of one completion. All that a model's own generation settings could change are given."""
        greedy = sampling.temperature == 0
        # a reply with a placeholder would refer to an image that does not exist
        barred = {"logit_bias": {token: -100.0 for token in self._placeholders}} if self._placeholders else {}
        return barred | {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0 if greedy else sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": None if greedy else seed,
            "logprobs": 0,  # of the sampled token only
            "stop": list(sampling.stop) or None,
            "include_stop_str_in_output": True,
            "stop_token_ids": self.stop_ids,
            "skip_special_tokens": False,
        }

    def _check_tokens(self, prompt: Sequence[int], computed: Sequence[int]) -> None:
        """Refuses a reply to other tokens than the prompt's: see ``refuse_other_tokens``."""
        refuse_other_tokens(prompt, computed, self._placeholders, self.name, self._bounds)

    def _completion(self, prompt: list[int], ids: list[int], logprobs: list[float], finish_reason: str | None) -> Completion:
        if len(logprobs) != len(ids) or not all(map(math.isfinite, logprobs)):
            raise SafeworkError(
                f"vLLM returned {len(ids)} tokens with {sum(map(math.isfinite, logprobs))} finite log-probabilities",
                "the weights are damaged, or overflow in this dtype",
            )
        return Completion(self.text_of(prompt, ids), ids, logprobs, "length" if finish_reason == "length" else "stop", prompt)
