"""Rows of token ids as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, T) each, padded on the left so that every row ends at the last position."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT
