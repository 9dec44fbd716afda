"""One prompt, computed once: the same log-probabilities, entropies and gradients as the plain pass."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from safework_cli.core.progress import read_metrics
from safework_cli.engines import batching as passes_of_lm
from safework_cli.engines.hf.decode import Decoder
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.load import load_tokenizer
from safework_cli.models.vision import collate, placeholders
from safework_rl.shared_prompt import group_logps

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
    """Prompts of unequal length, left-padded, repeated; completions of unequal length, one of them a single token.

    Returns:
        The number of each row's prompt, and its four tensors.
    """
    torch.manual_seed(2)
    width = max(length for length, _ in groups)
    prompts = [(torch.randint(0, 260, (width,)), length) for length, _ in groups]
    rows = [row for row, (_, count) in zip(prompts, groups, strict=True) for _ in range(count)]
    numbers = [number for number, (_, count) in enumerate(groups) for _ in range(count)]
    order = torch.randperm(len(rows)).tolist()  # groups need not lie together
    ids_BP = torch.stack([rows[i][0] for i in order])
    mask_BP = torch.stack([(torch.arange(width) >= width - rows[i][1]).long() for i in order])
    lengths = torch.randint(1, longest + 1, (len(rows), 1))
    lengths[0], lengths[1] = 1, longest
    tensors = (ids_BP, mask_BP, torch.randint(0, 260, (len(rows), longest)), (torch.arange(longest) < lengths).long())
    return [numbers[i] for i in order], tensors


def plain(model, ids_BP, mask_BP, ids_BT, mask_BT, **images):
    ids, mask = torch.cat([ids_BP, ids_BT], 1), torch.cat([mask_BP, mask_BT], 1)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : ids_BP.shape[1]] = -100
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, **images)
    return output.log_probs[:, -ids_BT.shape[1] :], output.entropy[:, -ids_BT.shape[1] :]


@pytest.fixture(params=["several passes", "one pass"])
def passes(request, monkeypatch):
    """Passes by length that cost nothing are many; those that cost much are one."""
    monkeypatch.setattr(passes_of_lm, "COST_ON_CPU", 0 if request.param == "several passes" else 10_000)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_loss_and_every_gradient_agree_with_the_plain_pass(kind, lora, passes):
    model, (numbers, tensors) = model_of(kind, lora), batch()
    agree(model, tensors, plain(model, *tensors), group_logps(model, numbers, *tensors))


def agree(model, tensors, expected, output):
    """The loss of both passes within 1e-5, every gradient within a relative 1e-4."""
    torch.manual_seed(3)
    weight_BT = torch.randn(tensors[2].shape) * tensors[3]

    def loss_and_gradients(logp_BT, entropy_BT):
        model.zero_grad()
        loss = (weight_BT * logp_BT).sum() / tensors[3].sum() + 0.01 * (entropy_BT * tensors[3]).sum()
        loss.backward()
        return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected_loss, expected_gradients = loss_and_gradients(*expected)
    loss, gradients = loss_and_gradients(output.log_probs, output.entropy)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected_gradients.keys() and len(gradients) > 5
    largest = max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # a key's bias moves all scores of a query alike: its gradient is nothing but rounding, on either side
        assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm() + 1e-7 * largest, name
    assert sum(gradient.norm() > 1e-3 * largest for gradient in expected_gradients.values()) > 5


def image(width, height, colour):
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").point(lambda v: (v * colour) % 256).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def image_prompts(processor):
    """Ids and vision of three prompts: one image, none, two images of unequal size."""
    two = [image(28, 28, 5), image(28, 60, 7)]
    asked = [("What is <image> here?", [image(50, 30, 3)]), ("And without one?", []), ("<image> or <image>, rather?", two)]
    return [encode_prompt(processor.tokenizer, [{"role": "user", "content": text}], images, processor) for text, images in asked]


def qwen_prompts(tokenizer):
    """The same for Qwen2.5-VL, whose processor needs torchvision: grids and patches as it would make them."""
    torch.manual_seed(5)
    found = []
    for text, grids in (("What is @ here?", [(1, 4, 2)]), ("And without one?", []), ("@ or @, rather?", [(1, 2, 2), (1, 2, 6)])):
        for _, height, width in grids:
            text = text.replace("@", "<|vision_start|>" + "<|image_pad|>" * (height * width // 4) + "<|vision_end|>", 1)
        ids = encode_prompt(tokenizer, [{"role": "user", "content": text}]).ids
        kinds = (torch.tensor([ids]) == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
        patches = torch.randn(sum(t * h * w for t, h, w in grids), 3 * 2 * 4 * 4)
        found.append((ids, {"pixel_values": patches, "image_grid_thw": torch.tensor(grids), "mm_token_type_ids": kinds} if grids else None))
    return found


@pytest.fixture(params=["llava", "idefics3", "qwen2_5_vl"])
def seeing(request, tiny_model):
    """A model that sees, and three of its prompts."""
    import tiny_vision

    model, processor = getattr(tiny_vision, request.param)(tiny_model)
    return model, (qwen_prompts if request.param == "qwen2_5_vl" else image_prompts)(processor)


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_that_sees_agrees_too(seeing, lora, passes):
    model, prompts = seeing
    add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))
    model.train()
    numbers = [0, 1, 2, 0, 2, 1, 0]
    width = max(len(ids) for ids, _ in prompts)
    lengths = [len(prompts[n][0]) for n in numbers]
    ids_BP = torch.tensor([[0] * (width - length) + prompts[n][0] for n, length in zip(numbers, lengths, strict=True)])
    mask_BP = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    torch.manual_seed(2)
    mask_BT = (torch.arange(9) < torch.tensor([[9], [1], [4], [7], [9], [3], [2]])).long()
    tensors = (ids_BP, mask_BP, torch.randint(0, 200, (7, 9)), mask_BT)
    visions = [prompts[n][1] for n in numbers]
    agree(model, tensors, plain(model, *tensors, **collate(visions, lengths, width, 9)), group_logps(model, numbers, *tensors, visions))


def test_tokens_after_an_image_are_those_of_transformers(seeing):
    """Greedy tokens of a group after each prompt; other images under the same words give other tokens."""
    model, prompts = seeing
    order = [0, 1, 2, 0, 2, 0]
    decoder = Decoder(model.eval(), None, [999], 0)
    with torch.inference_mode():
        found = decoder.generate([prompts[n][0] for n in order], Sampling(12), [0] * len(order), [prompts[n][1] for n in order])
        for n, reply in zip(order, found, strict=True):
            ids = torch.tensor([prompts[n][0]])
            expected = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=999, pad_token_id=0,
                **(prompts[n][1] or {}),
            )  # fmt: skip
            assert reply.token_ids == expected[0, len(prompts[n][0]) :].tolist(), n
        other = {k: -t if k == "pixel_values" else t for k, t in prompts[0][1].items()}
        one, two = decoder.generate([prompts[0][0]] * 2, Sampling(12), [0, 0], [prompts[0][1], other])
        assert one.logprobs != two.logprobs


def test_the_prompt_passes_once_for_each_group():
    model, (numbers, tensors) = model_of("llama", False), batch()
    tokens = []
    model.base_model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True)
    group_logps(model, numbers, *tensors)
    assert tokens == [3 * 29, 9 * 11]  # three prompts of 30 less one, nine completions of 11 (their first token is the prompt's last)


def test_completions_of_like_length_pass_together(monkeypatch):
    model, (numbers, tensors) = model_of("llama", False), batch()
    monkeypatch.setattr(passes_of_lm, "COST_ON_CPU", 0)
    tokens = []
    model.base_model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True)
    group_logps(model, numbers, *tensors)
    assert sum(tokens[1:]) == tensors[3].sum()  # no padding at all
    tokens.clear()
    group_logps(model, numbers, *tensors, one_pass=True)
    assert len(tokens) == 2


def test_a_batch_wider_than_its_rows_costs_nothing_more(monkeypatch):
    model, (numbers, tensors) = model_of("llama", False), batch()
    expected = group_logps(model, numbers, *tensors).log_probs
    wider = [torch.nn.functional.pad(t, (5, 0) if side < 2 else (0, 6)) for side, t in enumerate(tensors)]
    tokens = []
    model.base_model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True)
    found = group_logps(model, numbers, *wider).log_probs
    assert tokens == [3 * 29, 9 * 11]
    torch.testing.assert_close(found[:, :11], expected)
    assert not found[:, 11:].any()


def test_image_placeholders_are_never_sampled(seeing, tiny_model):
    """The placeholder token of an image is never sampled, however much the model wants to."""
    model, prompts = seeing
    barred, tokenizer = placeholders(model), load_tokenizer(tiny_model)
    assert barred
    wanted = barred[0]
    with torch.no_grad():
        model.get_output_embeddings().weight[wanted] = 100 * model.get_output_embeddings().weight.mean(0)
        model.get_output_embeddings().weight[wanted] += 1
    for share in (True, False):
        engine = HFEngine(model, tokenizer, share_prompts=share)
        for temperature in (0.0, 1.0):
            ids, vision = prompts[0]
            ((completion,),) = engine.generate_ids([ids], Sampling(8, temperature), visions=[vision])
            assert wanted not in completion.token_ids


@pytest.mark.parametrize("algorithm", ["cpgd", "grpo"])
def test_a_run_with_shared_prompts_is_a_run_without(algorithm, run_m3, work):
    """Whole steps, with accumulation: passes of half a group, of a group and of two give the same update."""
    updates = {}
    for share in (True, False):
        for passes in (1, 2, 4):
            for old in work.checkpoints.iterdir():
                old.rename(work.path / f"{share}-{passes}-{old.name}")
            run_m3(
                algorithm=algorithm, share_prompts=share, per_device_train_batch_size=8 // passes,
                gradient_accumulation_steps=passes, steps_per_generation=passes,
            )  # fmt: skip
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
