"""Label verifiers: a causal language model that judges by the probabilities of its next token, in one forward pass."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from safework_cli.core.errors import InputError
from safework_cli.engines.batching import bucket_by_length, pass_cost
from safework_cli.engines.hf.decode import MIN_PREFIX, States, cache_after_prefix, unshareable
from safework_cli.models.folder import positions_of
from safework_cli.models.padding import pad_left
from safework_cli.models.vision import Prompt, collate, positions
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.prompting import JudgePrompt, PromptWriter, code_sequences, code_token_ids
from safework_cli.verifiers.spec import LabelSpec
from safework_cli.verifiers.verdicts import verdict_of

# Shape suffixes: B sequences, T tokens, V vocabulary, C labels.


def padded_batch(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Token ids, mask and positions (B, T), padded on the left so that every row ends at the same position."""
    ids_BT, mask_BT = pad_left(rows, pad_id, device)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)}


class _AfterOpening(DynamicLayer):
    """The keys and values of an opening before those of a batch, (B, H, O + T, D), for one pass: nothing is kept afterwards."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        count = len(key_states)
        both = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([opening.expand(count, -1, -1, -1), own], dim=2) for opening, own in both)
        return keys, values


@dataclass(frozen=True, slots=True)
class Opening:
    """Tokens with which several prompts begin, such as the instruction: their ids, keys and values of each layer, (1, H, O, D)."""

    ids: Sequence[int]
    states: States

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Any, ids: Sequence[int]) -> Opening:
        ids_1O = torch.tensor([ids], device=model.device)
        cache = model(input_ids=ids_1O, logits_to_keep=1, use_cache=True, past_key_values=DynamicCache()).past_key_values
        return cls(ids, [(layer.keys, layer.values) for layer in cache.layers])

    @property
    def length(self) -> int:
        return len(self.ids)

    def cache(self, count: int, *, keep: bool) -> DynamicCache:
        """The cache that ``count`` prompts continue; ``keep`` if their own keys and values are needed afterwards."""
        if keep:
            return cache_after_prefix(self.states, count)
        cache = DynamicCache()
        for keys, values in self.states:
            layer = _AfterOpening()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache


class Openings:
    """What prompts begin with, each computed once for a model whose weights do not change.

    Which tokens those are depends on the template alone, never on the prompts at hand or judged earlier: in bf16 the place at which a
    prompt is divided changes its last digits, and a resumed run would reward the same reply differently.
    """

    def __init__(self, model: Any):
        self._model = model
        self._shareable = not unshareable(model)
        self._known: dict[tuple[int, ...], Opening] = {}

    def groups(self, prompts: Sequence[JudgePrompt]) -> Iterator[tuple[Opening | None, list[int]]]:
        """The indices of prompts with one opening, and that; None for those that share too little, or with images."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            shared = self._shareable and prompt.vision is None and prompt.opening >= MIN_PREFIX
            found.setdefault(tuple(prompt.ids[: prompt.opening]) if shared else (), []).append(index)
        for ids, indices in found.items():
            if ids and ids not in self._known:
                self._known[ids] = Opening.of(self._model, ids)
            yield self._known.get(ids), indices


def judge_batch(
    model: Any, prompts: Sequence[JudgePrompt | Prompt], pad_id: int, opening: Opening | None = None, *, keep: bool = False
) -> dict[str, Any]:
    """Prompts as a batch for the model, with their images, after an opening that all of them share."""
    if opening:
        batch = padded_batch([prompt.ids[opening.length :] for prompt in prompts], pad_id, model.device)
        shared_BO = batch["attention_mask"].new_ones(len(prompts), opening.length)
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": torch.cat([shared_BO, batch["attention_mask"]], dim=1),
            "position_ids": batch["position_ids"] + opening.length,
            "past_key_values": opening.cache(len(prompts), keep=keep),
        }
    batch = padded_batch([prompt.ids for prompt in prompts], pad_id, model.device)
    if any(prompt.vision for prompt in prompts):
        width = batch["input_ids"].shape[1]
        vision = collate([prompt.vision for prompt in prompts], [len(prompt.ids) for prompt in prompts], width)
        vision = {name: tensor.to(model.device) for name, tensor in vision.items()}
        batch["position_ids"] = positions(model, batch["input_ids"], batch["attention_mask"], vision)
        batch |= vision
    return batch


def label_logits(model: torch.nn.Module, batch: dict[str, Any], code_ids: Sequence[int]) -> torch.Tensor:
    """Logits of the label codes as next token, (B, C), float32. Training and judging both read them here.

    Only the last position passes through the vocabulary: (B, V) logits exist, never (B, T, V).
    """
    logits_BV = model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1]
    return logits_BV[:, list(code_ids)].float()


def sequence_logits(model: torch.nn.Module, batch: dict[str, Any], codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probability of each code, written out as the continuation, (B, C), float32: Σ_t log p(code_t | prompt, code_<t).

    The prompts pass through the model once; their keys and values are then repeated for the codes, which share the rest of the cost.
    """
    out = model(**batch, logits_to_keep=1, use_cache=True)
    device = batch["input_ids"].device
    B, C, W = len(batch["input_ids"]), len(codes), max(map(len, codes))
    ids_CW = torch.tensor([list(code) + [code[-1]] * (W - len(code)) for code in codes], device=device)
    real_CW = torch.tensor([[1.0] * len(code) + [0.0] * (W - len(code)) for code in codes], device=device)
    first_BV = out.logits[:, -1].float().log_softmax(-1)
    logp_BC = first_BV[:, ids_CW[:, 0]]
    if W == 1:
        return logp_BC
    cache = out.past_key_values
    cache.batch_repeat_interleave(C)
    fed_NW = ids_CW[:, :-1].repeat(B, 1)  # N = B·C, the codes of one prompt one after another
    mask_NT = batch["attention_mask"].repeat_interleave(C, 0)
    # a prompt ends in text, whose position is its greatest in every dimension (M-RoPE): with images, there are fewer than tokens
    positions_NW = batch["position_ids"][..., -1:].repeat_interleave(C, -2) + 1 + torch.arange(W - 1, device=device)
    mask_NT = torch.cat([mask_NT, torch.ones_like(fed_NW)], 1)  # padding after a code changes nothing before it
    logits_NWV = model(input_ids=fed_NW, attention_mask=mask_NT, position_ids=positions_NW, past_key_values=cache, use_cache=True).logits
    logp_NW = logits_NWV.float().log_softmax(-1).gather(2, ids_CW[:, 1:].repeat(B, 1)[..., None])[..., 0]
    return logp_BC + (logp_NW * real_CW[:, 1:].repeat(B, 1)).sum(1).view(B, C)


@dataclass(frozen=True, slots=True)
class Reading:
    """The model's judgement of one exchange.

    Attributes:
        probabilities: of the labels in the spec's order; they sum to 1.
        left_out: tokens of query and reply that did not fit and were cut from the middle.
        empty: the reply had no final answer, so the model was not asked.
        unreadable: why the model could not be asked, such as a missing gold answer.
    """

    probabilities: list[float]
    left_out: int = 0
    empty: bool = False
    unreadable: str | None = None


class LabelVerifier:
    """A ``Verifier`` over a causal language model and its ``LabelSpec``.

    Args:
        model, tokenizer: as loaded by ``models.load``; the model's mode is restored after each call. Its weights must not change while
            the judge is in use: what it computed of the instruction serves every later call.
        processor: of a vision-language backbone; without it, exchanges with images cannot be scored.
        batch_size: exchanges judged together at most; those of like length are.
        name: in logs and metrics; the task by default.

    Attributes:
        judged, truncated, empty: how many exchanges were judged so far, how many of them lost their middle, how many were empty.

    Raises:
        ConfigError: labels that no token distinguishes, or no room for a reply.
        InputError: the architecture cannot keep logits to the last position.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: LabelSpec,
        *,
        processor: Any = None,
        batch_size: int = 16,
        name: str | None = None,
    ):
        self.model, self.tokenizer, self.spec, self.batch_size = model, tokenizer, spec, batch_size
        self.name = name or spec.task
        self._codes = code_sequences(tokenizer, spec) if spec.code_reading == "whole" else None
        self.code_ids = [] if self._codes else code_token_ids(tokenizer, spec)
        self.writer = PromptWriter(tokenizer, spec, processor)
        self._openings = Openings(model)
        self.judged = self.truncated = self.empty = 0
        if "logits_to_keep" not in inspect.signature(model.forward).parameters:
            raise InputError(f"{type(model).__name__} cannot judge", "its forward has no logits_to_keep", "take another backbone")
        if reason := unshareable(model):
            warnings.warn(f"{type(model).__name__}: each judgement computes the instruction again: {reason}", stacklevel=2)
        limit = positions_of(model.config)
        if limit is not None and spec.max_length > limit:
            raise InputError(f"max_length {spec.max_length} exceeds the model's {limit} positions", "", f"max_length={limit}")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict for each exchange. A model that yields no finite number is an error, not a class."""
        return [
            Verdict(None, error=reading.unreadable)
            if reading.unreadable
            else verdict_of(self.spec, reading.probabilities, exchange, certain=reading.empty)
            for reading, exchange in zip(self.read(exchanges), exchanges, strict=True)
        ]

    def read(self, exchanges: Sequence[Exchange]) -> list[Reading]:
        """Label probabilities of each exchange, calibrated, before any knowledge of ``harmful``."""
        certain = [float(label == self.spec.empty_label) for label in self.spec.labels]
        readings = [Reading(certain, empty=not e.final.strip(), unreadable=self.writer.unreadable(e)) for e in exchanges]
        prompts: dict[int, JudgePrompt] = {}
        for i, reading in enumerate(readings):
            if not reading.empty and not reading.unreadable:
                try:
                    prompts[i] = self.writer.write(exchanges[i])
                except InputError as error:  # an image that cannot be read
                    readings[i] = Reading([], unreadable=error.what)
        asked = list(prompts)
        logits = self._logits([prompts[i] for i in asked])
        for i, logits_C in zip(asked, logits, strict=True):
            probabilities = torch.softmax(logits_C / self.spec.temperature, dim=-1).tolist()
            readings[i] = Reading(probabilities, prompts[i].left_out)
        self.judged += len(exchanges)
        self.empty += sum(reading.empty for reading in readings)
        self.truncated += sum(prompt.left_out > 0 for prompt in prompts.values())
        return readings

    def _logits(self, rows: Sequence[JudgePrompt]) -> list[torch.Tensor]:
        """Code logits of tokenized prompts, (C,) each on the CPU, in order."""
        logits: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        pad_id = int(self.tokenizer.pad_token_id or 0)
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                lengths = [len(row.ids) for row in rows]
                for opening, group in self._openings.groups(rows):
                    order = sorted(group, key=lambda i: -lengths[i])
                    for chosen in self._passes(order, lengths, opening.length if opening else 0):
                        batch = judge_batch(self.model, [rows[i] for i in chosen], pad_id, opening, keep=self._codes is not None)
                        logits_BC = self._read(batch).cpu()
                        for i, logits_C in zip(chosen, logits_BC, strict=True):
                            logits[i] = logits_C
        finally:
            self.model.train(training)
        return logits

    def _passes(self, order: Sequence[int], lengths: Sequence[int], shared: int) -> Iterator[list[int]]:
        """Rows, longest first, cut into batches of ``batch_size`` and these into what costs least."""
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for rows in bucket_by_length([lengths[row] - shared for row in batch], pass_cost(self.model.device.type)):
                yield [batch[row] for row in rows]

    def _read(self, batch: dict[str, Any]) -> torch.Tensor:
        return sequence_logits(self.model, batch, self._codes) if self._codes else label_logits(self.model, batch, self.code_ids)
