"""Generation and scoring through transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from safework_cli.engines.hf.decode import Decoder, Draws, at_stop_string, unshareable
from safework_cli.engines.over_tokens import OverTokens
from safework_cli.engines.protocol import Completion, Conversation, FinishReason, Sampling, completion_seeds
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.folder import positions_of
from safework_cli.models.padding import pad_left
from safework_cli.models.precision import in_bf16
from safework_cli.models.vision import Vision, base_of, collate, keep_logits, placeholders

SCORED_BYTES = 2**31
"""Most bytes of the logits of one scoring pass: a vocabulary of 152,000 takes 0.6 MB a position."""


class _Drawn(LogitsProcessor):
    """Draws each row's token and leaves the loop no other choice; records the tokens' log-probabilities."""

    def __init__(self, draws: Draws):
        self._draws = draws
        self._columns_B: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token_B, logp_B = self._draws.next(scores.float())
        self._columns_B.append(logp_B)
        return torch.full_like(scores, -torch.inf).scatter(1, token_B[:, None], 0.0)

    def logprobs(self) -> torch.Tensor:
        """Log-probabilities of every generated token, (B, T)."""
        return torch.stack(self._columns_B, dim=1)


class _AtStopString(StoppingCriteria):
    """Ends the rows whose newest token completes a stop string."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int, stops: Sequence[str]):
        self._tokenizer, self._prompt_length, self._stops = tokenizer, prompt_length, stops

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = input_ids[:, self._prompt_length :].tolist()
        return torch.tensor([at_stop_string(self._tokenizer, row, self._stops) for row in rows], device=input_ids.device)


class HFEngine(OverTokens):
    """A ``TokenEngine`` over a transformers model. ``engines.load`` makes it.

    Args:
        model, tokenizer: as loaded by ``models.load``; the model may be in training (its mode is restored after each call).
        batch_size: sequences generated together.
        share_prompts: compute a prompt once for all its replies, if the architecture allows it (otherwise a warning says why not).
        bf16: multiply in bfloat16 from weights that stay float32 (``models.precision``), as the training of this model does.
        processor: of a model that reads images, where they are to be read.

    Raises:
        InputError: the chat template has no generation prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 32,
        *,
        share_prompts: bool = True,
        bf16: bool = False,
        processor: Any = None,
    ):
        super().__init__(tokenizer, model, batch_size, processor)
        self.model, self._bf16 = model, bf16
        reason = unshareable(model) if share_prompts else None
        if reason:
            warnings.warn(f"{type(model).__name__}: prompt sharing is off in generation: {reason}", stacklevel=2)
        self._share = share_prompts and not reason

    @property
    def positions(self) -> int | None:
        """See ``OverTokens.positions``."""
        return positions_of(self.model.config)

    @property
    def name(self) -> str:
        """See ``Engine.name``."""
        return f"transformers/{str(self.model.dtype).removeprefix('torch.')}"

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        n: int = 1,
        visions: Sequence[Vision | None] | None = None,
        seeds: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """See ``TokenEngine.generate_ids``.

        Args:
            visions: the encoded images of each prompt, for vision-language models.
            seeds: of each completion's draws, n for each prompt, in place of what ``completion_seeds`` derives from ``sampling.seed``.
        """
        self._check_lengths(prompts, sampling)
        seeds = completion_seeds(sampling.seed, prompts, n) if seeds is None else seeds
        jobs = [(index, seed) for index, own in enumerate(seeds) for seed in own]
        jobs.sort(key=lambda job: (len(prompts[job[0]]), job[0]))  # similar lengths together: less padding
        results: list[list[Completion]] = [[] for _ in prompts]
        with self._inference():
            for start in range(0, len(jobs), self.batch_size):
                batch = jobs[start : start + self.batch_size]
                images = [visions[i] for i, _ in batch] if visions else None
                made = self._generate_batch([prompts[i] for i, _ in batch], images, sampling, [seed for _, seed in batch])
                for (index, _), completion in zip(batch, made, strict=True):
                    results[index].append(completion)
        return results

    def _generate_batch(
        self, prompts: list[list[int]], visions: list[Vision | None] | None, sampling: Sampling, seeds: list[int]
    ) -> list[Completion]:
        if not self._share:
            return self._generate_unshared(prompts, visions, sampling, seeds)
        decoder = Decoder(self.model, self.tokenizer, self.stop_ids, self.tokenizer.pad_token_id)
        replies = decoder.generate(prompts, sampling, seeds, visions)
        return [
            Completion(
                self.text_of(prompt, reply.token_ids),
                reply.token_ids,
                reply.logprobs,
                "stop" if reply.stopped else "length",
                prompt,
            )
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def _generate_unshared(
        self, prompts: list[list[int]], visions: list[Vision | None] | None, sampling: Sampling, seeds: list[int]
    ) -> list[Completion]:
        """transformers' own loop, for models whose cache cannot be expanded; the tokens are drawn as the decoder draws them."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids_BP, mask_BP = pad_left(prompts, pad, self.model.device)
        drawn = _Drawn(Draws(sampling, seeds, placeholders(self.model)))
        vision = {k: t.to(self.model.device) for k, t in collate(visions or (), [len(p) for p in prompts], width).items()}
        with _neutral_generation(self.model) as model:
            sequences_BL = model.generate(
                input_ids=ids_BP,
                attention_mask=mask_BP,
                max_new_tokens=sampling.max_tokens,
                do_sample=False,  # the processor draws
                eos_token_id=self.stop_ids,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([drawn]),
                stopping_criteria=[_AtStopString(self.tokenizer, width, sampling.stop)] if sampling.stop else [],
                **vision,
            )
        logp_BT = drawn.logprobs().tolist()
        return [
            self._completion(prompt, row[width:], logp, sampling)
            for prompt, row, logp in zip(prompts, sequences_BL.tolist(), logp_BT, strict=True)
        ]

    def _completion(self, prompt: list[int], tokens: list[int], logprobs: list[float], sampling: Sampling) -> Completion:
        """Cuts a generated row at its end; what follows is padding, which may be the stop token itself."""
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.stop_ids), None)
        if sampling.stop:
            stopped = self._stop_string_end(tokens[:end], sampling.stop)
            end = stopped if stopped is not None else end
        finish: FinishReason = "length" if end is None else "stop"
        tokens = tokens[:end]
        return Completion(self.text_of(prompt, tokens), tokens, logprobs[: len(tokens)], finish, prompt)

    def _stop_string_end(self, tokens: list[int], stops: Sequence[str]) -> int | None:
        """How many tokens it took until a stop string had appeared, or None."""
        if not any(stop in self.tokenizer.decode(tokens) for stop in stops):
            return None
        low, high = 1, len(tokens)  # decoding grows with the tokens, so bisect
        while low < high:
            middle = (low + high) // 2
            if any(stop in self.tokenizer.decode(tokens[:middle]) for stop in stops):
                high = middle
            else:
                low = middle + 1
        return low

    def score(self, conversations: Sequence[Conversation], completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """See ``TokenEngine.score``."""
        prompts = [encode_prompt(self.tokenizer, c).ids for c in conversations]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
        results: list[list[float]] = [[] for _ in prompts]
        with self._inference():
            for batch in self._scored_together(order, [len(p) for p in prompts], [len(c) for c in completions]):
                rows = [prompts[i] + list(completions[i]) for i in batch]
                width, start = max(map(len, rows)), min(len(prompts[i]) for i in batch) - 1
                pad = self.tokenizer.pad_token_id
                ids_BL = torch.tensor([r + [pad] * (width - len(r)) for r in rows], device=self.model.device)
                mask_BL = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=self.model.device)
                output = self.model(input_ids=ids_BL, attention_mask=mask_BL, **keep_logits(self.model, width - start))
                logits_BTV = output.logits[:, start - width :]
                for row, index in enumerate(batch):
                    first, count = len(prompts[index]), len(completions[index])
                    logits_TV = logits_BTV[row, first - 1 - start : first - 1 - start + count].float()
                    target_T = ids_BL[row, first : first + count]
                    results[index] = (logits_TV.gather(1, target_T[:, None])[:, 0] - logits_TV.logsumexp(-1)).tolist()
        return results

    def _scored_together(self, order: Sequence[int], prompts: Sequence[int], completions: Sequence[int]) -> Iterator[list[int]]:
        """Rows cut into passes of at most ``batch_size``, whose logits, from the end of the shortest prompt on, take at most SCORED_BYTES.

        Args:
            order: rows by their length.
            prompts, completions: tokens of each.
        """
        of_position = 4 * self.model.config.get_text_config().vocab_size
        batch: list[int] = []
        for row in order:
            longer = [*batch, row]
            kept = prompts[row] + completions[row] - min(prompts[i] for i in longer) + 1
            if batch and (len(batch) == self.batch_size or len(longer) * kept * of_position > SCORED_BYTES):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    @contextmanager
    def _inference(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), in_bf16(self.model, enabled=self._bf16):
                yield
        finally:
            self.model.train(training)


@contextmanager
def _neutral_generation(model: PreTrainedModel) -> Iterator[Any]:
    """The model under its adapters, with an empty generation configuration.

    ``generate`` fills whatever it is not given from the model's own configuration: repetition penalties, ``min_p``, barred n-grams,
    forced and suppressed tokens. What is measured and trained is the policy, and those would change it.
    """
    base = base_of(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield base
    finally:
        base.generation_config = own
