"""Token-by-token generation in which a prompt is computed once, however many replies it gets.

transformers' ``generate`` repeats the prompt for every reply of a group, pads short prompts to the longest one, and continues
finished replies until the last one has finished. Here the tokens with which all prompts begin (a system prompt, the head of an episode) are
computed once for the batch, each distinct prompt once, its keys and values are copied to its replies, and replies leave the batch when
they end. The tokens are those of ``generate``: `tests/tool/test_decode.py` compares them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, TemperatureLogitsWarper
from transformers.cache_utils import DynamicLayer
from transformers.generation import TopPLogitsWarper

from safework_cli.core.errors import SafeworkError
from safework_cli.engines.hf.packed import packed_linears
from safework_cli.engines.protocol import Sampling
from safework_cli.models.padding import pad_left
from safework_cli.models.vision import Vision, base_of, collate, has_vision_tower, placeholders, positions

States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (B, H, L, D)."""
MIN_PREFIX = 16
"""Shared first tokens below which sharing them saves nothing."""
PREFILL_TOKENS = 8192
"""Most tokens of one prefill pass: they bound its memory."""
MIN_FILL = 0.75
"""A prefill pass takes prompts down to this share of its longest one; the rest would be padding."""
COMPACT_BELOW = 0.8
"""Finished replies leave the batch when less than this share is still running: removing them copies the cache."""


@dataclass(slots=True)
class Decoded:
    """One generated reply: token ids with the stop token, the log-probability of each, and whether it stopped before ``max_tokens``."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


def unshareable(model: PreTrainedModel) -> str | None:
    """Why the model's cache cannot be expanded to a group; None if it can."""
    base = base_of(model)
    takes = inspect.signature(base.forward).parameters
    if "position_ids" not in takes:
        return "it takes no position_ids"
    if has_vision_tower(model) and "token_type_ids" in takes:
        return "it attends within an image in both directions"
    kinds = {type(layer) for layer in DynamicCache(config=base.config).layers} - {DynamicLayer}
    return f"its cache has layers of another kind ({', '.join(sorted(k.__name__ for k in kinds))})" if kinds else None


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer with spare capacity: a new token is written after the others; DynamicLayer would copy them all."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._key_buffer, self._value_buffer = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        length, added = self.keys.shape[2], key_states.shape[2]
        if length + added > self._key_buffer.shape[2]:
            room = length + added + max(32, length // 4)
            self._key_buffer, self._value_buffer = _wider(self.keys, room), _wider(self.values, room)
        self._key_buffer[:, :, length : length + added] = key_states
        self._value_buffer[:, :, length : length + added] = value_states
        self.keys, self.values = self._key_buffer[:, :, : length + added], self._value_buffer[:, :, : length + added]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        assert self.keys is not None and self.values is not None
        self._key_buffer, self._value_buffer = self.keys, self.values


def _wider(states_BHLD: torch.Tensor, room: int) -> torch.Tensor:
    wide = states_BHLD.new_empty(*states_BHLD.shape[:2], room, states_BHLD.shape[3])
    wide[:, :, : states_BHLD.shape[2]] = states_BHLD
    return wide


class Decoder:
    """Generates for a batch of prompts; call it under ``torch.inference_mode``.

    Args:
        stop_ids: tokens that end a reply.
        pad_id: any token; it is masked everywhere.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], pad_id: int):
        self.model, self.tokenizer, self.pad_id = model, tokenizer, pad_id
        self.stop_ids = torch.tensor(list(stop_ids), device=model.device)
        self._placeholders = placeholders(model)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], visions: Sequence[Vision | None] | None = None
    ) -> list[Decoded]:
        """One reply for each prompt, in order; a prompt that occurs n times gets n replies and is computed once.

        Args:
            seeds: of each reply's draws.
            visions: the encoded images of each prompt; the replies of a group share the object.
        """
        with packed_linears(self.model, rows=len(prompts)):
            return self._generate(prompts, visions or [None] * len(prompts), sampling, Draws(sampling, seeds, self._placeholders))

    def _generate(
        self, prompts: Sequence[Sequence[int]], visions: Sequence[Vision | None], sampling: Sampling, draws: Draws
    ) -> list[Decoded]:
        keys = [(tuple(prompt), id(vision)) for prompt, vision in zip(prompts, visions, strict=True)]
        distinct = dict(zip(keys, visions, strict=True))
        layers, mask_NP, logits_NV, next_N = self._prefill([prompt for prompt, _ in distinct], list(distinct.values()))
        place = {key: i for i, key in enumerate(distinct)}
        row_B = torch.tensor([place[key] for key in keys], device=self.model.device)
        cache = DynamicCache()
        while layers:  # popped: prompt and group are in memory together for one layer only
            states = layers.pop(0)
            cache.layers.append(_GrowingLayer(*(self._kept(tensor[row_B]) for tensor in states)))
        return self._decode(cache, mask_NP[row_B], next_N[row_B], logits_NV[row_B], sampling, draws)

    def _kept(self, states_BHLD: torch.Tensor) -> torch.Tensor:
        """In the type that attention computes in, which each step would cast all of them to."""
        return states_BHLD.float() if states_BHLD.device.type == "cpu" and torch.is_autocast_enabled("cpu") else states_BHLD

    # ------------------------------------------------------------ prompts

    def _prefill(
        self, prompts: list[tuple[int, ...]], visions: list[Vision | None]
    ) -> tuple[States, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keys and values (N, H, P, D) of every layer, the mask (N, P), the last logits (N, V) and the position that comes next (N,) of
        distinct prompts.

        Columns are: the tokens that all prompts share (if none has images), padding, each prompt's own tokens.
        """
        shared = common_prefix(prompts)
        if shared < MIN_PREFIX or len(prompts) == 1 or any(visions):
            shared = 0
        own = [prompt[shared:] for prompt in prompts]
        width = max(map(len, own))
        prefix = self._forward([prompts[0][:shared]], [None], [], 0)[0] if shared else []
        order = sorted(range(len(prompts)), key=lambda i: -len(own[i]))
        parts: list[States] = []
        logits, nexts = [], []
        for batch in _passes(order, [len(tokens) for tokens in own]):
            states, logits_bV, next_b = self._forward([own[i] for i in batch], [visions[i] for i in batch], prefix, shared)
            missing = width - len(own[batch[0]])
            parts.append([(_pad_after(keys, shared, missing), _pad_after(values, shared, missing)) for keys, values in states])
            logits.append(logits_bV)
            nexts.append(next_b)
        back_N = torch.tensor(order, device=self.model.device).argsort()
        layers: States = []
        while parts[0]:  # popped, for the same reason as above
            keys, values = zip(*(part.pop(0) for part in parts), strict=True)
            layers.append((torch.cat(keys)[back_N], torch.cat(values)[back_N]))
        own_NP = pad_left(own, self.pad_id, self.model.device)[1]
        mask_NP = torch.cat([own_NP.new_ones(len(own), shared), own_NP], dim=1)
        return layers, mask_NP, torch.cat(logits)[back_N], torch.cat(nexts)[back_N]

    def _forward(
        self, prompts: list[tuple[int, ...]], visions: list[Vision | None], prefix: States, shared: int
    ) -> tuple[States, torch.Tensor, torch.Tensor]:
        """Keys and values after prompts that follow the same prefix of ``shared`` tokens, the last logits and the next positions."""
        width, count = max(map(len, prompts)), len(prompts)
        device = self.model.device
        ids_BP, own_BP = pad_left(prompts, self.pad_id, device)
        mask_BP = torch.cat([own_BP.new_ones(count, shared), own_BP], dim=1)
        cache = cache_after_prefix(prefix, count)
        vision = {name: tensor.to(device) for name, tensor in collate(visions, [len(p) for p in prompts], width).items()}
        position_BP = positions(self.model, ids_BP, mask_BP, vision)[..., -width:]
        logits_BV = self._logits(ids_BP, mask_BP, position_BP, cache, vision)
        next_B = position_BP.movedim(-2, 0).flatten(1).amax(1) + 1  # the largest of all dimensions
        states: Any = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr] # all are DynamicLayer
        return states, logits_BV, next_B

    def _logits(
        self, ids_BT: torch.Tensor, mask_BL: torch.Tensor, position_BT: torch.Tensor, cache: DynamicCache, vision: Vision
    ) -> torch.Tensor:
        """Logits (B, V) after the last of the new tokens."""
        output = self.model(
            input_ids=ids_BT, attention_mask=mask_BL, position_ids=position_BT, past_key_values=cache, use_cache=True, logits_to_keep=1,
            **vision,
        )  # fmt: skip
        return output.logits[:, -1].float()

    # ------------------------------------------------------------ replies

    def _decode(
        self,
        cache: DynamicCache,
        mask_BL: torch.Tensor,
        next_B: torch.Tensor,
        logits_BV: torch.Tensor,
        sampling: Sampling,
        draws: Draws,
    ) -> list[Decoded]:
        replies = [Decoded() for _ in range(len(mask_BL))]
        running = list(replies)  # the reply of each row of the batch
        for step in range(sampling.max_tokens):
            token_B, logp_B = draws.next(logits_BV)
            ended_B = torch.isin(token_B, self.stop_ids)
            for reply, token, logp, ended in zip(running, token_B.tolist(), logp_B.tolist(), ended_B.tolist(), strict=True):
                if not reply.stopped:
                    reply.token_ids.append(token)
                    reply.logprobs.append(logp)
                    reply.stopped = ended or at_stop_string(self.tokenizer, reply.token_ids, sampling.stop)
            alive = [row for row, reply in enumerate(running) if not reply.stopped]
            if not alive or step + 1 == sampling.max_tokens:
                break
            if len(alive) < COMPACT_BELOW * len(running):
                rows = torch.tensor(alive, device=mask_BL.device)
                cache.batch_select_indices(rows)
                draws.keep(alive)
                mask_BL, next_B, token_B, running = mask_BL[rows], next_B[rows], token_B[rows], [running[row] for row in alive]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
            logits_BV = self._logits(token_B[:, None], mask_BL, next_B[:, None], cache, {})
            next_B = next_B + 1
        return replies


class Draws:
    """The tokens that a batch of replies draws, step by step, each row from random numbers of its own.

    A row's numbers are those of a counter-based generator (Philox, keyed by the row's seed), one for each step, and the token is where
    the number falls in the cumulated distribution. What a row draws therefore depends only on its logits and its seed, not on the
    other rows or on when they leave.

    Args:
        seeds: of each row.
        barred: tokens that are never drawn.
    """

    _BLOCK = 64
    """Steps whose numbers are generated at once."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], barred: Sequence[int]):
        self._sampling, self._barred = sampling, list(barred)
        self._bits = [np.random.Philox(key=seed) for seed in seeds]
        self._uniform_BS: np.ndarray = np.empty((len(seeds), 0))
        self._warpers = LogitsProcessorList()
        if sampling.temperature not in (0, 1):
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.temperature and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def next(self, logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row (B,), and its log-probability at ``Sampling.logprobs_at`` (B,), whatever is barred or truncated.

        Raises:
            SafeworkError: the logits are not finite.
        """
        token_B = self._token(logits_BV)
        at = self._sampling.logprobs_at
        scaled_BV = logits_BV if at == 1 else logits_BV / at
        logp_B = scaled_BV.gather(1, token_B[:, None])[:, 0] - scaled_BV.logsumexp(-1)
        if not torch.isfinite(logp_B).all():
            raise SafeworkError(
                "the model's logits are NaN or infinite",
                "its weights or activations overflow; a reply drawn from them would be noise",
                "try dtype=float32, or another model",
            )
        return token_B, logp_B

    def keep(self, rows: Sequence[int]) -> None:
        """Continues with these rows only, in this order."""
        self._bits = [self._bits[row] for row in rows]
        self._uniform_BS = self._uniform_BS[list(rows)]

    def _token(self, logits_BV: torch.Tensor) -> torch.Tensor:
        if self._barred:
            logits_BV = logits_BV.clone()
            logits_BV[:, self._barred] = -torch.inf
        if self._sampling.temperature == 0:
            return logits_BV.argmax(-1)
        share_BV = self._warpers(None, logits_BV).softmax(-1)  # type: ignore[arg-type] # these two do not read the ids
        below_BV = share_BV.cumsum(-1, dtype=torch.float64)
        total_B1 = below_BV[:, -1:]
        at_B1 = torch.from_numpy(self._uniform()).to(total_B1.device)[:, None] * total_B1
        at_B1 = torch.minimum(at_B1, total_B1.nextafter(torch.zeros_like(total_B1)))  # a token of share 0 is never drawn
        return torch.searchsorted(below_BV, at_B1, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)  # NaN would come after all of them

    def _uniform(self) -> np.ndarray:
        """The next number of each row, in [0, 1), (B,)."""
        if not self._uniform_BS.shape[1]:
            bits_BS = np.stack([bits.random_raw(self._BLOCK) for bits in self._bits])
            self._uniform_BS = (bits_BS >> 11) * 2.0**-53
        uniform_B, self._uniform_BS = self._uniform_BS[:, 0].copy(), self._uniform_BS[:, 1:]
        return uniform_B


def at_stop_string(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], stops: Sequence[str]) -> bool:
    """Whether the newest token completes a stop string. A token has at least one byte: the last few tokens suffice."""
    if not stops:
        return False
    tail = tokenizer.decode(token_ids[-max(len(stop.encode()) for stop in stops) - 1 :])
    return any(stop in tail for stop in stops)


def cache_after_prefix(prefix: States, count: int) -> DynamicCache:
    """A cache for ``count`` prompts that follow the same prefix, whose keys and values are (1, H, L, D)."""
    return DynamicCache([(keys.expand(count, -1, -1, -1), values.expand(count, -1, -1, -1)) for keys, values in prefix])


def common_prefix(prompts: Sequence[tuple[int, ...]] | Sequence[list[int]]) -> int:
    """How many first tokens all prompts share; fewer than the shortest has, because each needs a last token of its own."""
    low, high = min(prompts), max(prompts)  # in lexicographic order all others are between these two
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def _passes(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Rows, longest first, cut into passes of similar length and limited size."""
    passes: list[list[int]] = []
    for row in order:
        longest = lengths[passes[-1][0]] if passes else 0
        if passes and lengths[row] >= MIN_FILL * longest and (len(passes[-1]) + 1) * longest <= PREFILL_TOKENS:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def _pad_after(states_BHLD: torch.Tensor, shared: int, missing: int) -> torch.Tensor:
    """Adds ``missing`` masked columns after the shared ones."""
    if not missing:
        return states_BHLD
    gap = states_BHLD.new_zeros(*states_BHLD.shape[:2], missing, states_BHLD.shape[3])
    return torch.cat([states_BHLD[:, :, :shared], gap, states_BHLD[:, :, shared:]], dim=2)
