"""Rows of tokens as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from safework_sft.encode import IGNORE


class PaddedBatch:
    """Collates rows by padding them on the right.

    Args:
        pad_id: the token that fills up; it is masked.
    """

    def __init__(self, pad_id: int):
        self._fill = {"input_ids": pad_id, "labels": IGNORE, "verdicts": 0}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """(B, T) each: ``input_ids``, ``labels``, ``attention_mask``, and ``verdicts`` where the rows have them."""
        columns = {name: [torch.as_tensor(row[name]) for row in rows] for name in self._fill if name in rows[0]}
        mask = pad_sequence([torch.ones_like(ids) for ids in columns["input_ids"]], batch_first=True)
        padded = {name: pad_sequence(column, batch_first=True, padding_value=self._fill[name]) for name, column in columns.items()}
        return {**padded, "attention_mask": mask}
