"""How far a model's log-probabilities on each path are from those of a plain forward pass over one unpadded sequence, in nats.

Three rows: one image, none, two images of unequal sizes. ``benchmarks/families.py`` prints the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from trl.trainer.utils import add_fused_lm_head

from safework_cli.data.row import Row
from safework_cli.engines.hf.decode import unshareable
from safework_cli.engines.hf.engine import HFEngine
from safework_cli.engines.protocol import Sampling
from safework_cli.models.attention import attention_by_row, keeps_rows_apart
from safework_cli.models.chat_template import encode_prompt
from safework_cli.models.load import stop_token_ids
from safework_cli.models.vision import BY_TOKEN, Prompt, Vision
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.spec import SHORT_TEMPLATES, preset
from safework_cli.verifiers.values import hidden_ends
from safework_rl.shared_prompt import group_logps
from safework_sft.batches import Batches
from safework_sft.encode import IGNORE, VisionOf, encode_rows, rows_to_train
from safework_sft.trainer import keeps_images_apart, logits_at


def image(width: int, height: int, factor: int) -> dict[str, Any]:
    content = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").point(lambda v: (v * factor) % 256).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": "x.png"}


def row(number: int, question: str, reply: str, *images: dict[str, Any]) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Row(str(number), "general", messages, list(images))


TEXT_ROWS = [row(1, "And without one?", "Nothing of the kind, of course."), row(3, "Why?", "Because."), row(4, "What is it then?", "It.")]
ROWS = [
    row(0, "What is <image> here?", "A gradient.", image(60, 40, 3)),
    TEXT_ROWS[0],
    row(2, "<image>\nor <image>, rather?", "Two.", image(56, 56, 5), image(40, 120, 7)),
]


class Model:
    """A model and what encodes its prompts.

    Args:
        processor: None for a text model, which gets ``TEXT_ROWS``.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any):
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.rows = TEXT_ROWS if processor is None else ROWS

    def prompts(self) -> list[Prompt]:
        return [encode_prompt(self.tokenizer, row.prompt, row.images, self.processor) for row in self.rows]

    def plain(self, ids: Sequence[int], vision: Vision | None) -> torch.Tensor:
        """Log-probabilities of every next token, (T, V)."""
        ids_1T = torch.tensor([list(ids)])
        given = {}
        for name, tensor in (vision or {}).items():
            missing = len(ids) - tensor.shape[1] if name in BY_TOKEN else 0
            given[name] = torch.cat([tensor, tensor.new_zeros(1, missing)], 1) if missing else tensor
        with torch.no_grad():
            return self.model.eval()(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), **given).logits[0].float().log_softmax(-1)

    def after_prompt(self, prompt: Sequence[int], ids: Sequence[int], vision: Vision | None) -> torch.Tensor:
        """Of the tokens after a prompt, (T,)."""
        logp_TV = self.plain([*prompt, *ids], vision)
        return logp_TV[len(prompt) - 1 : -1].gather(1, torch.tensor(list(ids))[:, None])[:, 0]


def _off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach() - expected).abs().max())


def generation(of: Model) -> float:
    """Of sampled tokens, two replies to each prompt in one batch."""
    engine = HFEngine(of.model, of.tokenizer, processor=of.processor)
    drawn = engine.generate([row.prompt for row in of.rows], Sampling(12, 1.0, seed=3), 2, images=[row.images for row in of.rows])
    worst = 0.0
    for (ids, vision), group in zip(of.prompts(), drawn, strict=True):
        for completion in group:
            assert completion.prompt_ids == ids, completion.error
            worst = max(worst, _off(torch.tensor(completion.logprobs), of.after_prompt(ids, completion.token_ids, vision)))
    return worst


def supervised(of: Model, padding_free: bool = False) -> float | None:
    """Of the supervised tokens of a batch, as ``safework sft`` trains on them; None where the architecture does not keep its rows apart."""
    stops = stop_token_ids(of.tokenizer, of.model)
    encoded = encode_rows(of.rows, of.tokenizer, stops, 4096, processor=of.processor)
    assert not encoded.dropped, encoded.dropped
    columns = rows_to_train(encoded, None, False).dataset()
    vision_of = VisionOf(encoded.rows, of.tokenizer, stops, of.processor)
    rows = [columns[i] for i in range(len(of.rows))]
    if padding_free and not (
        keeps_rows_apart(of.model, max(map(len, encoded.input_ids)))
        and (of.processor is None or keeps_images_apart(of.model, of.tokenizer.pad_token_id, rows, vision_of))
    ):
        return None
    inputs = Batches(of.tokenizer.pad_token_id, padding_free=padding_free, vision_of=vision_of, model=of.model)(rows)
    keep_BT = inputs["labels"][:, 1:] != IGNORE
    with attention_by_row(of.model):
        logits_NV, _ = logits_at(of.model.train(), inputs, keep_BT)
    counts = [sum(label != IGNORE for label in labels[1:]) for labels in encoded.labels]
    found = logits_NV.log_softmax(-1).gather(1, inputs["labels"][:, 1:][keep_BT][:, None])[:, 0].split(counts)
    worst = 0.0
    for number, (ids, labels, logp, prompt) in enumerate(zip(encoded.input_ids, encoded.labels, found, of.prompts(), strict=True)):
        assert ids[: len(prompt.ids)] == prompt.ids, "trained on another prompt than is asked"
        vision = vision_of(number) if of.rows[number].images else None
        expected = of.plain(ids, vision)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        worst = max(worst, _off(logp, expected[torch.tensor(labels[1:]) != IGNORE]))
    return worst


def without_padding(of: Model) -> float | None:
    return supervised(of, padding_free=True)


def reinforcement(of: Model) -> float | None:
    """Of groups whose prompts are computed once, as the rl stages train on them; None where the architecture does not allow that."""
    if unshareable(of.model):
        return None
    prompts, numbers, lengths = of.prompts(), [0, 1, 2, 2, 0], [7, 3, 5, 7, 1]
    rows, width = [prompts[n] for n in numbers], max(len(ids) for ids, _ in prompts)
    ids_BP = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in rows])
    mask_BP = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in rows])
    completion_BT = torch.randint(0, 200, (5, 7), generator=torch.Generator().manual_seed(1))
    mask_BT = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
    visions = [vision for _, vision in rows] if of.processor else []
    add_fused_lm_head(of.model.eval(), temperature=1.0, outputs=("log_probs", "entropy"))
    try:
        shared = group_logps(of.model, numbers, ids_BP, mask_BP, completion_BT, mask_BT, visions).log_probs
    finally:
        del of.model.forward  # the head of one's own, which the other paths do not take
    each = zip(rows, completion_BT.tolist(), lengths, shared, strict=True)
    return max(_off(logp[:length], of.after_prompt(ids, words[:length], vision)) for (ids, vision), words, length, logp in each)


def judging(of: Model, reading: str) -> float:
    """Of a judge's labels, by their first token or by all of their tokens."""
    spec = preset("value")
    spec.template, spec.strict_template = SHORT_TEMPLATES["value"]
    spec.max_length, spec.code_reading = 900, reading  # type: ignore[assignment]
    judge = LabelVerifier(of.model, of.tokenizer, spec, processor=of.processor, batch_size=4)
    exchanges = [Exchange.of(row) for row in of.rows]
    codes = judge._codes or [[code] for code in judge.code_ids]
    worst = 0.0
    for exchange, found in zip(exchanges, judge.read(exchanges), strict=True):
        assert not found.unreadable, found.unreadable
        prompt = judge.writer.write(exchange)
        expected = torch.stack([of.after_prompt(prompt.ids, code, prompt.vision).sum() for code in codes]).log_softmax(-1)
        worst = max(worst, _off(torch.tensor(found.probabilities).log(), expected))
    return worst


def values(of: Model) -> float:
    """Of the hidden states at the end of prompt and prefix: a padded batch against each row of its own."""
    rows = [(prompt._replace(ids=[*prompt.ids, 65, 66]), 2) for prompt in of.prompts()]
    with torch.no_grad():
        together = hidden_ends(of.model.eval(), rows, 0)
        alone = [hidden_ends(of.model, [written], 0) for written in rows]
    return max(_off(one[end][0], together[end][number]) for number, one in enumerate(alone) for end in (0, 1))


PATHS = {
    "generation": generation,
    "sft": supervised,
    "sft without padding": without_padding,
    "rl": reinforcement,
    "judging, first token": lambda of: judging(of, "first"),
    "judging, whole label": lambda of: judging(of, "whole"),
    "values": values,
}
"""Path → its largest error."""
