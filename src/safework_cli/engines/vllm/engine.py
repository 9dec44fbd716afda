"""Generation and scoring through vLLM in this process, and taking over the weights of a model in training.

vLLM's own options keep their names (``VllmSettings``). Every completion has a seed of its own, derived as for transformers: which batch or
process it is drawn in changes nothing. Log-probabilities are of the model (temperature 1), or of the distribution that is sampled from:
vLLM returns one of the two, and which one is decided when it starts. What vLLM and its C++ parts print goes to a log file.
"""

from __future__ import annotations

import atexit
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from safework_cli.core.errors import ConfigError, InputError
from safework_cli.engines.protocol import Completion, Conversation, Sampling
from safework_cli.engines.settings import VllmSettings
from safework_cli.engines.vllm.adapter import lora_request, model_options
from safework_cli.engines.vllm.images import in_process
from safework_cli.engines.vllm.over_vllm import MODEL_LOGPROBS, SAMPLED_LOGPROBS, OverVllm
from safework_cli.engines.vllm.plugin import keep_weights_loadable
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.load import Dtype, load_tokenizer, pick_dtype
from safework_cli.models.processors import load_processor

IN_THIS_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Environment that vLLM reads when it is imported: no second process for the engine core, no log on the terminal, and no report to its
makers."""


class VllmEngine(OverVllm):
    """A ``TokenEngine`` over vLLM in this process. ``engines.load`` makes it.

    Args:
        folder: of the model.
        sampled: log-probabilities are those of the distribution that is sampled from; otherwise those of the model.
        live: the weights will be replaced (``load_weights``).
        log: file for what vLLM prints; a temporary one where None, which is kept if vLLM does not start.
        processor: of a model whose prompts have images.
        trust_remote_code: vLLM may run Python code from the model's folder.

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
        log: Path | None = None,
        processor: Any = None,
        trust_remote_code: bool = False,
    ):
        self.sampled, self._dtype = sampled, str(pick_dtype(dtype)).removeprefix("torch.")
        super().__init__(folder, tokenizer, batch_size, processor)
        more: dict[str, Any] = {"mm_processor_kwargs": self._bounds} if self._bounds else {}
        if trust_remote_code:
            more["trust_remote_code"] = True
        self._llm = _started(folder, settings, self._dtype, sampled=sampled, live=live, log=log, more=more)
        self._adapter = lora_request(folder, live=live)

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
        """See ``TokenEngine.generate_ids``.

        Raises:
            ConfigError: log-probabilities that this engine does not return.
            InputError: vLLM refuses an image, or computed on other tokens than those of a prompt.
        """
        from vllm import SamplingParams

        jobs = self._jobs(prompts, sampling, n, seeds)
        with_images = visions is not None and any(visions)
        given = self._given(prompts, visions or [None] * len(prompts))
        options = [self._options(sampling, seed) | {"detokenize": bool(sampling.stop)} for _, seed in jobs]
        try:
            outputs = self._llm.generate(
                [given[place] for place, _ in jobs], [SamplingParams(**own) for own in options], use_tqdm=False, lora_request=self._adapter
            )
        except (ValueError, RuntimeError) as error:
            if not with_images:
                raise
            raise InputError("vLLM refuses a prompt with images", (str(error).splitlines() or [""])[0][:500], "engine.kind=hf") from error
        results: list[list[Completion]] = [[] for _ in prompts]
        for (place, _), answer in zip(jobs, outputs, strict=True):
            self._check_tokens(prompts[place], answer.prompt_token_ids)
            output = answer.outputs[0]
            ids = list(output.token_ids)
            logprobs = [entry[token].logprob for entry, token in zip(output.logprobs, ids, strict=True)]
            results[place].append(self._completion(list(prompts[place]), ids, logprobs, output.finish_reason))
        return results

    @staticmethod
    def _given(prompts: Sequence[list[int]], visions: Sequence[Any]) -> list[dict[str, Any]]:
        """Each prompt as vLLM takes it; prompts that share their images share what was opened."""
        opened = {id(vision): in_process(vision) for vision in visions if vision}
        return [
            {"prompt_token_ids": vision.short_of(prompt), **opened[id(vision)]} if vision else {"prompt_token_ids": list(prompt)}
            for prompt, vision in zip(prompts, visions, strict=True)
        ]

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``TokenEngine.score``. Raises ConfigError for an adapter on a CPU, which vLLM 0.30 samples with and cannot score with."""
        from vllm import SamplingParams

        if self._adapter is not None and not torch.cuda.is_available():
            raise ConfigError(
                "vLLM on a CPU gives no log-probabilities of given tokens where the model is an adapter",
                "its layers for adapters expect one token of each sequence there (vLLM 0.30)",
                "safework models merge, or engine.kind=hf",
            )
        prompts = [encode_prompt(self.tokenizer, conversation).ids for conversation in conversations]
        asked = [{"prompt_token_ids": prompt + list(ids)} for prompt, ids in zip(prompts, completions, strict=True)]
        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(asked, parameters, use_tqdm=False, lora_request=self._adapter)
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
        if self._placeholders:
            self._llm.llm_engine.reset_encoder_cache()


def load_vllm(
    folder: Path, settings: VllmSettings, *, dtype: Dtype = "auto", trust_remote_code: bool = False, images: bool = False
) -> VllmEngine:
    """The engine around the model in a folder, which reads images where prompts have some; errors as ``VllmEngine``."""
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    processor = load_processor(folder, trust_remote_code=trust_remote_code) if images else None
    return VllmEngine(folder, tokenizer, settings, dtype=dtype, processor=processor, trust_remote_code=trust_remote_code)


def _started(folder: Path, settings: VllmSettings, dtype: str, *, sampled: bool, live: bool, log: Path | None, more: dict[str, Any]) -> Any:
    for name, value in IN_THIS_PROCESS.items():
        os.environ.setdefault(name, value)
    own = log is None
    if log is None:
        handle, name = tempfile.mkstemp(prefix="safework-vllm-", suffix=".log")
        os.close(handle)
        log = Path(name)
    with _printing_to(log):
        try:
            from vllm import LLM
        except ImportError as error:
            if own:
                log.unlink()
            raise ConfigError("engine.kind=vllm needs vllm, which is not installed", str(error), "pip install 'safework[vllm]'") from None
        on_gpu = torch.cuda.is_available()
        if live:
            keep_weights_loadable()
        options: dict[str, Any] = settings.model_dump() | {"enforce_eager": settings.enforce_eager or not on_gpu}
        if not on_gpu:
            options["enable_chunked_prefill"] = False  # a seeded request that is partly prefilled in a step fails on a CPU
        try:
            with _random_numbers_kept():
                started = LLM(
                    **model_options(folder, live=live),
                    dtype=dtype,
                    logprobs_mode=SAMPLED_LOGPROBS if sampled else MODEL_LOGPROBS,
                    seed=0,
                    disable_log_stats=True,
                    **options,
                    **more,
                )
        except (ValueError, NotImplementedError) as error:  # what it says of a model or of settings that it does not take
            raise InputError(
                f"vLLM cannot serve the model in {folder}",
                f"{(str(error).splitlines() or [''])[0][:500]} (its log: {log})",
                "engine.kind=hf; or change engine.vllm (gpu_memory_utilization, max_model_len)",
            ) from error
        except Exception as error:
            error.add_note(f"vLLM's log: {log}")
            raise
    if own:
        atexit.register(log.unlink, missing_ok=True)
    return started


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Writes vLLM's log to a file from here on, and, while the body runs, all that is printed: its C++ parts write to the terminal."""
    logger = logging.getLogger("vllm")
    for handler in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(handler)
        handler.close()
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):  # Python's streams may be others than the files 1 and 2
        for number in kept:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """vLLM seeds Python's, NumPy's and torch's generators when it starts: the run's own go on as if it had not."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
