"""What training loops share: the order of rows, and attention in float32."""

from __future__ import annotations

from statistics import mean

import pytest
import torch

from safework_cli.models.attention import attention_in_float32
from safework_cli.models.load import cast_weights, load_model
from safework_cli.training.sampler import StepSampler


def test_a_step_sees_a_random_sample_sorted_by_length_inside():
    """Two kinds of rows, long and short: every step must see both, or the model learns one reply at a time."""
    lengths = [100 + i % 7 if i % 2 else 50 + i % 5 for i in range(203)]
    epoch = 0
    sampler = StepSampler(lengths, per_step=16, seed=3, epoch=lambda: epoch)
    first = list(sampler)
    assert sorted(first) == list(range(203)) and first == list(sampler)
    steps = [[lengths[row] for row in first[k : k + 16]] for k in range(0, 192, 16)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    assert all(0.1 < mean(length > 80 for length in step) < 0.9 for step in steps)
    epoch = 1
    assert list(sampler) != first


def test_attention_in_float32_is_the_same_attention_and_leaves_no_trace(tiny_model):
    model = load_model(tiny_model, dtype="float32")
    ids = torch.arange(3, 27).view(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0

    def gradient() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, attention_mask=mask).logits[:, -1].logsumexp(-1).sum().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    seen: list[tuple[torch.dtype, bool]] = []  # of the query, and whether autocast would still cast it
    fused = torch.nn.functional.scaled_dot_product_attention
    plain = gradient()

    def watched(query: torch.Tensor, *others, **settings) -> torch.Tensor:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return fused(query, *others, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        with attention_in_float32(model):
            inside = gradient()
            with torch.autocast("cpu", torch.bfloat16):
                model(input_ids=ids, attention_mask=mask)
        assert set(seen) == {(torch.float32, False)}
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, attention_mask=mask)
        assert seen[-1][1]
    for name, found in inside.items():
        assert torch.allclose(found, plain[name], rtol=1e-4, atol=1e-6), name


def test_cast_weights_leave_the_model_that_would_be_loaded(tiny_model):
    ids = torch.arange(3, 203).view(1, 200) % 60
    cast, loaded = cast_weights(load_model(tiny_model, dtype="float32"), torch.bfloat16), load_model(tiny_model, dtype="bfloat16")
    rounded = load_model(tiny_model, dtype="float32").to(torch.bfloat16)
    with torch.inference_mode():
        expected = loaded(input_ids=ids).logits
        assert torch.equal(cast(input_ids=ids).logits, expected)
        assert not torch.equal(rounded(input_ids=ids).logits, expected)
