"""Log-probabilities of a group's completions with their common prompt computed once, forward and backward.

The prompt (all but its last token) passes the model once; every completion of its group reads its keys and values, gradients
attached; then the last prompt token and the completions follow, those of similar length together. For a causal model that is
the same function as the plain pass over prompt and completion together, at the cost of one prompt a group and of little padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache

from safework_cli.engines.batching import bucket_by_length, pass_cost
from safework_cli.models.vision import BY_TOKEN, Vision, collate, positions


def group_logps(
    model: Any,
    prompt_B: Sequence[int],
    prompt_ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    completion_ids_BT: torch.Tensor,
    completion_mask_BT: torch.Tensor,
    visions: Sequence[Vision | None] = (),
    *,
    one_pass: bool = False,
) -> SimpleNamespace:
    """``log_probs`` and ``entropy`` of the completions by TRL's fused head, (B, T) each, 0 where masked; no
    entropy where the head does not compute it.

    Args:
        model: prepared by ``trl.trainer.utils.add_fused_lm_head``, wrapped or not; both passes go through its forward, so that DDP, FSDP
            and adapters see them.
        prompt_B: a number for each row, equal for equal prompts.
        prompt_ids_BP, prompt_mask_BP: left-padded.
        completion_ids_BT, completion_mask_BT: right-padded.
        visions: vision inputs of each row's images; empty where no prompt has images.
        one_pass: all completions together: where weights are sharded, every process has to make as many passes as the others.
    """
    longest = int(prompt_mask_BP.sum(1).max())  # rows may be part of a wider batch
    prompt_ids_BP, prompt_mask_BP = prompt_ids_BP[:, -longest:], prompt_mask_BP[:, -longest:]
    numbers = {number: unique for unique, number in enumerate(dict.fromkeys(prompt_B))}
    group_B = torch.tensor([numbers[number] for number in prompt_B], device=prompt_ids_BP.device)
    first = [list(prompt_B).index(number) for number in numbers]
    width = prompt_ids_BP.shape[1]
    ids_UP, mask_UP = prompt_ids_BP[first], prompt_mask_BP[first]
    lengths = mask_UP.sum(1).tolist()
    of_prompts = [visions[row] for row in first] if visions else []
    vision = {name: tensor.to(ids_UP.device) for name, tensor in collate(of_prompts, lengths, width).items()}
    position_UP = positions(model, ids_UP, mask_UP, vision)
    # text continues one after the last position of its prompt, in every dimension
    position_BT = position_UP.amax(-1)[..., group_B, None] + completion_mask_BT.cumsum(1)
    position_BT = torch.cat([position_UP[..., group_B, -1:], position_BT[..., :-1]], dim=-1)
    prompt = model(
        input_ids=ids_UP[:, :-1],
        attention_mask=mask_UP[:, :-1],
        position_ids=position_UP[..., :-1],
        use_cache=True,
        logits_to_keep=1,
        **{name: tensor[:, :-1] if name in BY_TOKEN else tensor for name, tensor in vision.items()},
    )
    log_probs_BT = completion_ids_BT.new_zeros(completion_ids_BT.shape, dtype=torch.float32)
    entropy_BT: torch.Tensor | None = torch.zeros_like(log_probs_BT)
    ends_T = torch.arange(1, completion_mask_BT.shape[1] + 1, device=group_B.device)
    lengths_B = (completion_mask_BT.bool() * ends_T).amax(1).tolist()  # up to the last token, whatever is masked before it
    cost = float("inf") if one_pass else pass_cost(group_B.device.type)
    for rows in bucket_by_length(lengths_B, cost):
        width = max(1, lengths_B[rows[0]])
        ids_bT, mask_bT = completion_ids_BT[rows, :width], completion_mask_BT[rows, :width]
        cache = DynamicCache([(layer.keys[group_B[rows]], layer.values[group_B[rows]]) for layer in prompt.past_key_values.layers])
        output = model(
            input_ids=torch.cat([prompt_ids_BP[rows, -1:], ids_bT[:, :-1]], dim=1),
            attention_mask=torch.cat([prompt_mask_BP[rows], mask_bT[:, :-1]], dim=1),
            position_ids=position_BT[..., rows, :width],
            past_key_values=cache,
            shift_labels=ids_bT.masked_fill(mask_bT == 0, -100),
            fused_lm_head=True,
        )
        place = (torch.tensor(rows, device=group_B.device)[:, None], torch.arange(width, device=group_B.device))
        log_probs_BT = log_probs_BT.index_put(place, output.log_probs.float())
        if entropy_BT is None or output.entropy is None:  # a head that was not asked for it gives none, and not 0
            entropy_BT = None
        else:
            entropy_BT = entropy_BT.index_put(place, output.entropy.float())
    return SimpleNamespace(log_probs=log_probs_BT, entropy=entropy_BT)
