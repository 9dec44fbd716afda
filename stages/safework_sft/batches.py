"""Rows of tokens as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from safework_cli.models.attention import one_sequence, without_padding
from safework_cli.models.vision import BY_TOKEN, Vision, collate, placeholders, positions
from safework_sft.encode import IGNORE

TARGETS = ("labels", "verdicts")
"""What the model does not take of a batch."""


class Batches:
    """Collates rows: one after the other without padding, or padded on the right.

    Args:
        pad_id: the token that fills up; it is masked.
        padding_free: the model keeps rows apart (``models.attention``).
        share: what all rows of a pass begin with is computed once; only without padding.
        vision_of: what the images of a row are encoded to, by the row's number in its column ``image_row``.
        model: that reads images: it says which tokens stand for them and where they are.
    """

    def __init__(
        self,
        pad_id: int,
        *,
        padding_free: bool,
        share: bool = True,
        vision_of: Callable[[int], Vision | None] | None = None,
        model: Any = None,
    ):
        self._vision_of, self._model = vision_of, model
        self._placeholders = torch.tensor(placeholders(model) if model is not None else [])
        self._fill, self._padding_free, self._share = {"input_ids": pad_id, "labels": IGNORE, "verdicts": 0}, padding_free, share

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``labels``, and ``verdicts`` where the rows have them: (1, ΣT) with ``position_ids`` and ``row_lengths``, or
        (B, T) with ``attention_mask``; and what the vision tower takes. A row's first token is not a label: what is before it is another
        row."""
        columns = {name: [torch.as_tensor(row[name]) for row in rows] for name in self._fill if name in rows[0]}
        columns["labels"] = [torch.cat([label.new_tensor([IGNORE]), label[1:]]) for label in columns["labels"]]
        visions = self._visions(rows)
        if self._padding_free:
            ids = columns["input_ids"]
            shared = common_beginning(ids, columns["labels"], self._placeholders) if self._share else 0
            flat = {name: one_sequence(column, shared) for name, column in columns.items()}
            return without_padding([row["input_ids"] for row in rows], shared=shared) | flat | self._flat(ids, visions, shared)
        mask = pad_sequence([torch.ones_like(ids) for ids in columns["input_ids"]], batch_first=True)
        padded = {name: pad_sequence(column, batch_first=True, padding_value=self._fill[name]) for name, column in columns.items()}
        # rows begin in the first column
        return {**padded, "attention_mask": mask, **collate(visions, [mask.shape[1]] * len(rows), mask.shape[1])}

    def _visions(self, rows: Sequence[dict[str, Any]]) -> list[Vision | None]:
        if self._vision_of is None:
            return [None] * len(rows)
        visions = [self._vision_of(row["image_row"]) if row.get("image_row", -1) >= 0 else None for row in rows]
        return [vision and ending_with(vision, len(row["input_ids"])) for vision, row in zip(visions, rows, strict=True)]

    def _flat(self, ids: Sequence[torch.Tensor], visions: Sequence[Vision | None], shared: int) -> dict[str, torch.Tensor]:
        """The images of rows without padding, and the positions of all tokens: (1, ΣT), or (3, 1, ΣT) with M-RoPE. Empty without images."""
        if not any(visions):
            return {}
        own = [collate([vision], [len(row)], len(row)) for row, vision in zip(ids, visions, strict=True)]
        found = [positions(self._model, row[None], torch.ones_like(row)[None], vision) for row, vision in zip(ids, own, strict=True)]
        axes = max(position.ndim for position in found)
        columns = [position.expand(3, 1, -1) if axes == 3 else position[None] for position in found]  # (3 or 1, 1, T)
        flat = torch.stack([one_sequence([column[axis, 0] for column in columns], shared) for axis in range(len(columns[0]))])
        batch = collate(visions, [0] * len(ids), 0)
        for name in BY_TOKEN:
            if name in batch:
                rows = [vision[name][0] if vision else torch.zeros_like(row) for row, vision in zip(ids, own, strict=True)]
                batch[name] = one_sequence(rows, shared)
        return batch | {"position_ids": flat if axes == 3 else flat[0]}


def ending_with(vision: Vision, length: int) -> Vision:
    """The images of a row of which the first ``length`` tokens are trained on."""
    return {name: tensor[:, :length] if name in BY_TOKEN else tensor for name, tensor in vision.items()}


def common_beginning(ids: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], images: torch.Tensor | None = None) -> int:
    """How many tokens all rows begin with, up to the last one before any row's first supervised token: that is predicted from a token of
    its own row.

    Args:
        images: the tokens that stand for an image, which is another one in each row: a beginning ends before them.
    """
    if len(ids) < 2:
        return 0
    beginnings_BT = torch.stack([row[: min(map(len, ids))] for row in ids])
    alike_T = (beginnings_BT == beginnings_BT[0]).all(0)
    if images is not None:
        alike_T &= ~torch.isin(beginnings_BT[0], images)
    same = int(alike_T.cumprod(0).sum())
    return max(0, min(same, *(_first_supervised(row) - 1 for row in labels)))


def _first_supervised(labels: torch.Tensor) -> int:
    supervised = (labels != IGNORE).nonzero()
    return int(supervised[0]) if len(supervised) else len(labels)
