"""Principled value models: a model that scores a *prefix* of a reply, once for each principle, and weighs the principles by the prompt.

SafeWork-R1 names principled value models and a routing vector and defines neither (`docs/safeladder.md` 7). This stand-in:

    v_p(x, s) = σ(u_p · h(x, s) / T_p)      the chance that a reply which begins with s will be judged well by principle p
    w(x)      = softmax(R · h(x))           how much each principle weighs for prompt x
    score     = Σ_p w_p(x) v_p(x, s)

h is the last hidden state of a shared backbone at the end of the prefix, or of the prompt; both come from one forward pass. v_p is learned
from Monte-Carlo continuations, as process reward models are (Wang et al., arXiv 2312.08935).

Shapes: B sequences, D hidden size, P principles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safework_cli.core.artifacts.manifest import write_durably
from safework_cli.core.errors import InputError
from safework_cli.models.chat_template import after_opening, encode_prompt
from safework_cli.models.folder import first_line, positions_of
from safework_cli.models.rendering import render
from safework_cli.models.vision import Prompt
from safework_cli.models.weights import refuse_not_finite
from safework_cli.verifiers.contract import Exchange, Verdict
from safework_cli.verifiers.labels import judge_batch
from safework_cli.verifiers.prompting import cut_middle
from safework_cli.verifiers.spec import SPEC_FILE

HEADS_FILE = "value_heads.safetensors"


class ValueSpec(BaseModel):
    """The content of a value model's ``verifier.json``."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    version: int = 1
    kind: Literal["value_model"] = "value_model"
    principles: list[str]
    """In the order of every vector."""
    temperatures: list[float]
    """One for each principle; divides its logit; fitted on held-out prompts."""
    max_length: int
    """Tokens of prompt and prefix; a longer prompt loses its middle, then the prefix its beginning."""

    def write(self, folder: Path) -> None:
        write_durably(folder / SPEC_FILE, self.model_dump_json(indent=2).encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> ValueSpec:
        """Raises InputError where the file is damaged."""
        try:
            return cls.model_validate_json((folder / SPEC_FILE).read_bytes())
        except ValidationError as error:
            raise InputError(
                f"{folder / SPEC_FILE} is damaged", error.errors()[0]["msg"], "train the value model again with --fresh"
            ) from None


class ValueHeads(nn.Module):
    """One value for each principle, and the routing over them, from hidden states."""

    def __init__(self, hidden: int, principles: int):
        super().__init__()
        self.values = nn.Linear(hidden, principles)
        self.routing = nn.Linear(hidden, principles)
        for layer in (self.values, self.routing):
            nn.init.zeros_(layer.weight)  # begins at one half, and at equal weights
            nn.init.zeros_(layer.bias)

    def forward(self, prefix_BD: torch.Tensor, prompt_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the values and of the routing, both (B, P)."""
        return self.values(prefix_BD), self.routing(prompt_BD)


Written = tuple[Prompt, int]
"""Prompt and prefix, and how many tokens the prefix has."""


class PrefixWriter:
    """Token ids of a prompt and a prefix of its reply. The prefix is untrusted: none of its tokens is a control token.

    Args:
        positions: of the model, at most. Raises InputError where ``max_length`` exceeds them.
        processor: of a model that reads images.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, positions: int | None = None, processor: Any = None):
        if positions is not None and max_length > positions:
            raise InputError(f"max_length {max_length} exceeds the model's {positions} positions", "", f"max_length={positions}")
        self.tokenizer, self.max_length, self._processor = tokenizer, max_length, processor
        self.truncated = 0
        """How many prompts or prefixes did not fit and lost a part."""

    def write(self, exchange: Exchange) -> Written:
        """The ids, and how many of them follow the prompt (an empty prefix is read at the prompt's end).

        Raises:
            InputError: see ``encode_prompt``; or a prompt with images is longer than ``max_length`` allows: its middle cannot be left out.
        """
        ids, vision = encode_prompt(self.tokenizer, exchange.messages, exchange.images, self._processor)
        text = render(self.tokenizer, exchange.messages, generation_prompt=True, images=bool(exchange.images))
        reply = after_opening(text, exchange.reply)  # a template that opens the thought has written its tag already
        prefix = self.tokenizer(reply, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        fits = len(ids) + len(prefix) <= self.max_length
        prefix = prefix if fits else prefix[-(self.max_length // 2) :]
        if exchange.images and len(ids) + len(prefix) > self.max_length:
            what = f"a prompt with images has {len(ids)} tokens, and max_length={self.max_length} leaves {self.max_length - len(prefix)}"
            raise InputError(what, "an image cannot be cut", "raise max_length, or scale the images down")
        self.truncated += not fits
        return Prompt(cut_middle(ids, self.max_length - len(prefix), []) + prefix, vision), len(prefix)


def hidden_ends(model: Any, rows: Sequence[Written], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Last hidden states at the end of each prefix and at the end of its prompt, (B, D) each, float32."""
    batch = judge_batch(model, [prompt for prompt, _ in rows], pad_id)
    hidden_BTD = model.base_model(**batch, use_cache=False).last_hidden_state
    length_B = torch.tensor([length for _, length in rows], device=hidden_BTD.device)
    places = hidden_BTD.shape[1] - 1 - length_B
    return hidden_BTD[:, -1].float(), hidden_BTD[torch.arange(len(rows), device=hidden_BTD.device), places].float()


class ValueModel:
    """A ``Verifier`` of prefixes. ``judges_prefixes`` makes guided search pass it the unfinished reply.

    Args:
        batch_size: prefixes in a forward pass; they are sorted by length first.
        processor: of a model that reads images; without it, exchanges with images cannot be judged.
    """

    judges_prefixes = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        heads: ValueHeads,
        spec: ValueSpec,
        *,
        batch_size: int = 16,
        name: str | None = None,
        processor: Any = None,
    ):
        self.model, self.tokenizer, self.heads, self.spec = model, tokenizer, heads.to(model.device), spec
        self.name, self.batch_size = name or "values", batch_size
        self.writer = PrefixWriter(tokenizer, spec.max_length, positions_of(model.config), processor)
        self.judged = 0

    @property
    def truncated(self) -> int:
        """As in ``LabelVerifier``: how many were cut to ``max_length``."""
        return self.writer.truncated

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """The routed value of each prefix; the label names the principle that weighs most."""
        written: dict[int, Written] = {}
        verdicts: list[Verdict] = []
        self.judged += len(exchanges)
        for number, exchange in enumerate(exchanges):
            verdicts.append(Verdict(None, error="the value model gave no finite value"))
            try:
                written[number] = self.writer.write(exchange)
            except InputError as error:  # the template refuses it, or it has images that the model cannot read
                verdicts[number] = Verdict(None, error=error.what)
        for number, values_P, weights_P in zip(written, *self._read([*written.values()]), strict=True):
            score = float((values_P * weights_P).sum())
            if 0.0 <= score <= 1.0 + 1e-6:  # NaN fails this test
                verdicts[number] = Verdict(min(score, 1.0), self.spec.principles[int(weights_P.argmax())])
        return verdicts

    def values(self, exchanges: Sequence[Exchange]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and routing weights, (N, P) each, on the CPU."""
        return self._read([self.writer.write(exchange) for exchange in exchanges])

    def _read(self, rows: Sequence[Written]) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NP, routing_NP = self.logits(rows)
        return torch.sigmoid(logits_NP / torch.tensor(self.spec.temperatures)), torch.softmax(routing_NP, -1)

    def logits(self, rows: Sequence[Written]) -> tuple[torch.Tensor, torch.Tensor]:
        """Value logits before temperature, and routing logits, (N, P) each, on the CPU."""
        count = len(self.spec.principles)
        logits_NP, routing_NP = torch.zeros(len(rows), count), torch.zeros(len(rows), count)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0].ids))
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(order), self.batch_size):
                    chosen = order[start : start + self.batch_size]
                    prefix_BD, prompt_BD = hidden_ends(self.model, [rows[i] for i in chosen], int(self.tokenizer.pad_token_id or 0))
                    value_BP, route_BP = self.heads(prefix_BD, prompt_BD)
                    logits_NP[chosen], routing_NP[chosen] = value_BP.cpu(), route_BP.cpu()
        finally:
            self.model.train(training)
        return logits_NP, routing_NP


def save_heads(heads: ValueHeads, folder: Path) -> None:
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in heads.state_dict().items()}, folder / HEADS_FILE)


def load_heads(folder: Path, spec: ValueSpec) -> ValueHeads:
    """Raises InputError where the heads do not fit the spec."""
    try:
        state = load_file(folder / HEADS_FILE)
        heads = ValueHeads(state["values.weight"].shape[1], len(spec.principles))
        heads.load_state_dict(state)
    except (OSError, LookupError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder / HEADS_FILE} does not fit verifier.json", first_line(error), "train it again with --fresh") from None
    refuse_not_finite(folder, heads)
    return heads.eval()
