"""The decision of a reply in a model's logits: log-odds of the words that mean harmful, where the reply states its verdict.

Shapes: N rows, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from safework_cli.core.errors import InputError
from safework_cli.data.verdict import Words
from safework_cli.engines.batching import bucket_by_length, pass_cost
from safework_cli.models.padding import pad_left
from safework_cli.models.vision import base_of, keep_logits, positions_given

TOKENS_PER_PASS = 4096


@dataclass(frozen=True, slots=True)
class Choice:
    """A language's words as tokens.

    Attributes:
        shared: how many tokens all words begin with; the one after them decides.
        positive, negative: the deciding tokens of the words that mean harmful, and of the others.
    """

    shared: int
    positive: tuple[int, ...]
    negative: tuple[int, ...]


def choices(words: Words, written: Mapping[str, set[tuple[str, tuple[int, ...]]]]) -> dict[str, Choice]:
    """The tokens that decide, by language.

    Args:
        words: what the words mean.
        written: language → (word, its tokens) as they were found in rows: a word has other tokens at the beginning of a line than after
            a space.

    Raises:
        InputError: the deciding tokens of both meanings are the same.
    """
    made: dict[str, Choice] = {}
    for language, pairs in written.items():
        sequences = [tokens for _, tokens in pairs]
        shared = next((i for i, same in enumerate(zip(*sequences, strict=False)) if len(set(same)) > 1), min(map(len, sequences)))
        sides: dict[bool, set[int]] = {True: set(), False: set()}
        for word, tokens in pairs:
            if shared < len(tokens):
                sides[words[language][word]].add(tokens[shared])
        if not sides[True] or not sides[False] or sides[True] & sides[False] or any(shared >= len(tokens) for tokens in sequences):
            listed = ", ".join(f"'{word}'" for word in sorted(words[language]))
            raise InputError(
                f"the first tokens of the verdicts {listed} do not differ",
                "the decision is read from one token, and this tokenizer begins both words alike",
                "use words that begin differently, such as Yes and No",
            )
        made[language] = Choice(shared, tuple(sorted(sides[True])), tuple(sorted(sides[False])))
    return made


def log_odds(model: Any, prefixes: Sequence[Sequence[int]], deciding: Sequence[Choice], pad_id: int) -> NDArray[np.float64]:
    """(N,) logsumexp of the logits of the positive words' tokens minus that of the negative ones, after each prefix.

    Args:
        prefixes: token ids before the deciding token.
        deciding: of each prefix.
    """
    device = base_of(model).device
    odds_N = np.zeros(len(prefixes))
    last = keep_logits(model, 1)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), positions_given(model):
            for bucket in bucket_by_length([len(ids) for ids in prefixes], pass_cost(device.type)):
                step = max(1, TOKENS_PER_PASS // max(1, len(prefixes[bucket[0]])))
                for rows in (bucket[start : start + step] for start in range(0, len(bucket), step)):
                    ids_BL, mask_BL = pad_left([prefixes[row] for row in rows], pad_id, device)
                    output = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, **last)
                    for row, logits_V in zip(rows, output.logits[:, -1].float(), strict=True):
                        choice = deciding[row]
                        odds_N[row] = float(logits_V[[*choice.positive]].logsumexp(0) - logits_V[[*choice.negative]].logsumexp(0))
    finally:
        model.train(was_training)
    return odds_N
