"""One prompt, computed once: the same log-probabilities, entropies and gradients as the plain pass."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from safework_cli.progress import read_metrics
from safework_rl.shared_prompt import _first_of_each, group_logps

SHAPE = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def model_of(kind: str, lora: bool):
    torch.manual_seed(1)
    config, cls = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    model = cls(config(tie_word_embeddings=kind == "qwen2", **SHAPE))
    for parameter in model.parameters():
        parameter.data *= 3  # far from the uniform attention and flat logits of a fresh model
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))
    return model.train()


def batch(groups=((19, 4), (7, 4), (30, 1)), longest=11):
    """Prompts of unequal length, left-padded, repeated; completions of unequal length, one of them a single token."""
    torch.manual_seed(2)
    width = max(length for length, _ in groups)
    prompts = [(torch.randint(0, 260, (width,)), length) for length, _ in groups]
    rows = [row for row, (_, count) in zip(prompts, groups, strict=True) for _ in range(count)]
    order = torch.randperm(len(rows)).tolist()  # groups need not lie together
    ids_BP = torch.stack([rows[i][0] for i in order])
    mask_BP = torch.stack([(torch.arange(width) >= width - rows[i][1]).long() for i in order])
    lengths = torch.randint(1, longest + 1, (len(rows), 1))
    lengths[0], lengths[1] = 1, longest
    return ids_BP, mask_BP, torch.randint(0, 260, (len(rows), longest)), (torch.arange(longest) < lengths).long()


def plain(model, ids_BP, mask_BP, ids_BT, mask_BT):
    ids, mask = torch.cat([ids_BP, ids_BT], 1), torch.cat([mask_BP, mask_BT], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : ids_BP.shape[1]] = -100
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return output.log_probs[:, -ids_BT.shape[1] :], output.entropy[:, -ids_BT.shape[1] :]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_loss_and_every_gradient_agree_with_the_plain_pass(kind, lora):
    model, tensors = model_of(kind, lora), batch()
    torch.manual_seed(3)
    weight_BT = torch.randn(tensors[2].shape) * tensors[3]

    def loss_and_gradients(logp_BT, entropy_BT):
        model.zero_grad()
        loss = (weight_BT * logp_BT).sum() / tensors[3].sum() + 0.01 * (entropy_BT * tensors[3]).sum()
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, expected_gradients = loss_and_gradients(*plain(model, *tensors))
    output = group_logps(model, *tensors)
    loss, gradients = loss_and_gradients(output.log_probs, output.entropy)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 5
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm(), name
        assert expected_gradients[name].norm() > 0


def test_the_prompt_passes_once_for_each_group():
    model, tensors = model_of("llama", False), batch()
    tokens = []
    model.base_model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True)
    group_logps(model, *tensors)
    assert tokens == [3 * 29, 9 * 11]  # three prompts of 30 less one, nine completions of 11 (their first token is the prompt's last)


def test_the_first_row_of_each_group():
    assert _first_of_each(torch.tensor([2, 0, 2, 1, 0])).tolist() == [1, 3, 0]


@pytest.mark.parametrize("algorithm", ["cpgd", "grpo"])
def test_a_run_with_shared_prompts_is_a_run_without(algorithm, run_m3, work):
    """Whole steps, with accumulation: passes of half a group, of a group and of two give the same update."""
    updates = {}
    for share in (True, False):
        for passes in (1, 2, 4):
            for old in work.checkpoints.iterdir():
                old.rename(work.path / f"{share}-{passes}-{old.name}")
            run_m3(algorithm=algorithm, share_prompts=share, per_device_train_batch_size=8 // passes, gradient_accumulation_steps=passes)
            last = read_metrics(work.progress.metrics_path)[-1]
            updates[share, passes] = (last["loss"], last["grad_norm"], last["entropy"])
    assert updates[True, 1][1] > 0
    for found in updates.values():
        assert found == pytest.approx(updates[True, 1], rel=1e-4, abs=1e-6), updates


@pytest.mark.parametrize("share", [True, False])
def test_what_is_sampled_is_what_is_trained_at_other_temperatures(share, run_m3, work):
    run_m3(temperature=0.6, share_prompts=share)
    assert read_metrics(work.progress.metrics_path)[-1]["engine/logprob_gap"] < 1e-4


def test_what_cannot_share_says_so(run_m3, work):
    run_m3(gradient_checkpointing=True)
    assert "gradient_checkpointing recomputes layers" in (work.path / "events.jsonl").read_text()
