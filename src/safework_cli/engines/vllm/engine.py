"""Generation and scoring through vLLM in this process, and taking over the weights of a model in training.

vLLM's own options keep their names (``VllmSettings``). Every completion has a seed of its own, derived as for transformers: which batch or
process it is drawn in changes nothing. Log-probabilities are of the model (temperature 1), or of the distribution that is sampled from:
vLLM tells one of the two, and which one is decided when it starts.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import ConfigError, InputError, SafeworkError
from safework_cli.engines.over_tokens import OverTokens
from safework_cli.engines.protocol import Completion, Conversation, Sampling, completion_seeds
from safework_cli.engines.settings import VllmSettings
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.load import Dtype, load_tokenizer, pick_dtype, read_generation_config

IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Environment that vLLM reads when it is imported: no second process for the engine core, and no report to its makers."""


class VllmEngine(OverTokens):
    """A ``TokenEngine`` over vLLM. ``engines.load`` makes it.

    Args:
        folder: of the model.
        sampled: log-probabilities are those of the distribution that is sampled from; otherwise those of the model.
        live: the weights will be replaced (``load_weights``).

    Raises:
        ConfigError: vLLM is not installed.
        InputError: vLLM cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        settings: VllmSettings,
        *,
        dtype: Dtype = "auto",
        batch_size: int = 256,
        sampled: bool = False,
        live: bool = False,
    ):
        self._llm = _started(folder, settings, dtype, sampled=sampled, live=live)
        self._sampled, self._dtype = sampled, str(pick_dtype(dtype)).removeprefix("torch.")
        super().__init__(tokenizer, read_generation_config(folder), batch_size)

    @property
    def positions(self) -> int | None:
        """See ``OverTokens.positions``."""
        return int(self._llm.llm_engine.model_config.max_model_len)

    @property
    def name(self) -> str:
        """See ``Engine.name``."""
        return f"vllm/{self._dtype}"

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        visions: Sequence[Any] | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See ``TokenEngine.generate_ids``. Raises ConfigError for images, and for log-probabilities that this engine does not tell."""
        if visions is not None and any(vision is not None for vision in visions):
            raise ConfigError("engine.kind=vllm reads no images here", "they are encoded for transformers", "engine.kind=hf")
        self._check_lengths(prompts, sampling)
        self._check_logprobs(sampling)
        seeds = completion_seeds(sampling.seed, prompts, n) if seeds is None else seeds
        jobs = [(place, seed) for place, own in enumerate(seeds) for seed in own]
        asked = [{"prompt_token_ids": list(prompts[place])} for place, _ in jobs]
        outputs = self._llm.generate(asked, [self._parameters(sampling, seed) for _, seed in jobs], use_tqdm=False)
        results: list[list[Completion]] = [[] for _ in prompts]
        for (place, _), output in zip(jobs, outputs, strict=True):
            results[place].append(self._completion(list(prompts[place]), output.outputs[0]))
        return results

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``TokenEngine.score``."""
        from vllm import SamplingParams

        prompts = [encode_prompt(self.tokenizer, conversation) for conversation in conversations]
        asked = [{"prompt_token_ids": prompt + list(ids)} for prompt, ids in zip(prompts, completions, strict=True)]
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(asked, parameters, use_tqdm=False)
        return [
            [entry[token].logprob for entry, token in zip(output.prompt_logprobs[len(prompt) :], ids, strict=True)]
            for output, prompt, ids in zip(outputs, prompts, completions, strict=True)
        ]

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replaces the weights by those of a model in training, tensor by tensor, and forgets what was computed with the old ones."""
        model = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        for name, tensor in named:
            model.load_weights([(name, tensor)])
        self._llm.reset_prefix_cache()

    def _check_logprobs(self, sampling: Sampling) -> None:
        if self._sampled and sampling.temperature and (sampling.logprobs_at != sampling.temperature or sampling.top_p != 1):
            raise ConfigError(
                "this engine tells log-probabilities of the distribution that is sampled from, at top_p=1", "", "engine.kind=hf"
            )
        if not self._sampled and sampling.logprobs_at != 1:
            raise ConfigError("this engine tells log-probabilities at temperature 1", "", "engine.kind=hf")

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams

        greedy = sampling.temperature == 0
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0,
            seed=None if greedy else seed,
            logprobs=0,  # of the sampled token only
            stop=list(sampling.stop) or None,
            include_stop_str_in_output=True,
            stop_token_ids=self.stop_ids,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
        )

    def _completion(self, prompt: list[int], output: Any) -> Completion:
        ids = list(output.token_ids)
        logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)]
        if not all(map(math.isfinite, logprobs)):
            raise SafeworkError("vLLM gave a log-probability that is not finite", "the weights are damaged, or overflow in this dtype")
        return Completion(self.text_of(prompt, ids), ids, logprobs, "length" if output.finish_reason == "length" else "stop", prompt)


def load_vllm(
    folder: Path,
    settings: VllmSettings,
    *,
    dtype: Dtype = "auto",
    trust_remote_code: bool = False,
    sampled: bool = False,
    live: bool = False,
) -> VllmEngine:
    """The engine around the model in a folder; arguments and errors as ``VllmEngine``."""
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    return VllmEngine(folder, tokenizer, settings, dtype=dtype, sampled=sampled, live=live)


def _started(folder: Path, settings: VllmSettings, dtype: Dtype, *, sampled: bool, live: bool) -> Any:
    for name, value in IN_THIS_PROCESS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError("engine.kind=vllm needs vllm, which is not installed", str(error), "pip install 'safework[vllm]'") from None
    on_gpu = torch.cuda.is_available()
    if live and not on_gpu:
        import vllm._custom_ops as operations

        operations._supports_onednn = False  # vLLM's CPU build repacks weights and drops the originals, which nothing can be loaded into
    options: dict[str, Any] = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "max_model_len": settings.max_model_len,
        "enforce_eager": settings.enforce_eager or not on_gpu,
    }
    if not on_gpu:
        options["enable_chunked_prefill"] = False  # a seeded request that is partly prefilled in a step fails on a CPU
    with _random_numbers_kept():
        try:
            return LLM(
                model=str(folder),
                dtype=str(pick_dtype(dtype)).removeprefix("torch."),
                logprobs_mode="processed_logprobs" if sampled else "raw_logprobs",
                seed=0,
                disable_log_stats=True,
                **options,
            )
        except (ValueError, NotImplementedError) as error:  # what it says of a model or of settings that it does not take
            raise InputError(
                f"vLLM cannot serve the model in {folder}",
                (str(error).splitlines() or [""])[0][:500],
                "engine.kind=hf; or change engine.vllm (gpu_memory_utilization, max_model_len)",
            ) from error


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """vLLM seeds Python's, NumPy's and torch's generators when it starts: the run's own go on as if it had not."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
