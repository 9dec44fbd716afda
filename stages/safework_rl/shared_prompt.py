"""Log-probabilities of a group's completions with their common prompt computed once, forward and backward.

The prompt (all but its last token) passes the model once; its keys and values, gradients attached, are handed to every completion of
its group; then the last prompt token and the completions pass behind them. For a causal model that is the same function as the plain
pass over prompt and completion together, at the cost of one prompt a group.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache


def group_logps(
    model: Any, prompt_ids_BP: torch.Tensor, prompt_mask_BP: torch.Tensor, completion_ids_BT: torch.Tensor, completion_mask_BT: torch.Tensor
) -> Any:
    """The output of TRL's fused head for the completions: ``log_probs`` and ``entropy``, (B, T) each, 0 where masked.

    Args:
        model: prepared by ``trl.trainer.utils.add_fused_lm_head``, wrapped or not; both passes go through its forward, so that DDP, FSDP
            and adapters see them.
        prompt_ids_BP, prompt_mask_BP: left-padded.
        completion_ids_BT, completion_mask_BT: right-padded.
    """
    known_BP = prompt_ids_BP.masked_fill(prompt_mask_BP == 0, -1)
    _, group_B = torch.unique(known_BP, dim=0, return_inverse=True)
    first_U = _first_of_each(group_B)
    position_BL = (torch.cat([prompt_mask_BP, completion_mask_BT], dim=1).cumsum(1) - 1).clamp(min=0)
    width = prompt_ids_BP.shape[1]
    prompt = model(
        input_ids=prompt_ids_BP[first_U, :-1],
        attention_mask=prompt_mask_BP[first_U, :-1],
        position_ids=position_BL[first_U, : width - 1],
        use_cache=True,
        logits_to_keep=1,
    )
    cache = DynamicCache([(layer.keys[group_B], layer.values[group_B]) for layer in prompt.past_key_values.layers])
    return model(
        input_ids=torch.cat([prompt_ids_BP[:, -1:], completion_ids_BT[:, :-1]], dim=1),
        attention_mask=torch.cat([prompt_mask_BP, completion_mask_BT[:, :-1]], dim=1),
        position_ids=position_BL[:, width - 1 : -1],
        past_key_values=cache,
        shift_labels=completion_ids_BT.masked_fill(completion_mask_BT == 0, -100),
        fused_lm_head=True,
    )


def _first_of_each(group_B: torch.Tensor) -> torch.Tensor:
    """The first row of each group, by the group's number."""
    row_B = torch.arange(len(group_B), device=group_B.device)
    first_U = row_B.new_full((int(group_B.max()) + 1,), len(group_B))
    return first_U.scatter_reduce(0, group_B, row_B, reduce="amin")
