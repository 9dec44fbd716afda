"""SFTTrainer whose head reads supervised tokens only, with terms of the loss for the verdict and for the starting model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div
from trl import SFTTrainer

from safework_cli.models.attention import same_by_row
from safework_cli.models.vision import Vision, base_of
from safework_cli.training.sampler import StepSampler, step_sampler
from safework_sft.batches import TARGETS, Batches
from safework_sft.encode import IGNORE

COLUMNS = ("input_ids", "labels", "verdicts", "image_row")


@dataclass(frozen=True, slots=True)
class VerdictTerm:
    """The verdict's term of the loss: Σ over the reply's tokens / ``reply_tokens`` + ``weight`` · Σ over the verdicts / ``verdicts``.

    The denominators are averages over the data set, not counts of the step, so that a token weighs the same in whatever step it falls: over
    an epoch the loss is the mean over all reply tokens plus ``weight`` times the mean over all verdicts, for any accumulation. With
    the step's own counts, the only verdict of one step would weigh as much as eight of another, and the few reply tokens of a step of short
    rows as much as all of another.

    Attributes:
        reply_tokens, verdicts: supervised tokens and deciding tokens of an optimiser step, on average over the data.
    """

    weight: float
    reply_tokens: float
    verdicts: float


class SupervisedTrainer(SFTTrainer):
    """TRL's trainer; on a CPU, the model's own head runs on supervised positions only.

    TRL does the same on devices with Triton. Elsewhere its head scores every position, prompts and padding too, which for short
    replies over a vocabulary of 49,152 took more than half of a step. The loss is the model's own to rounding (tests/stages/sft): what
    it does to its logits, such as scaling and capping them, is done by its own code.

    Args:
        lengths: of the training rows, in tokens.
        verdict_term: of the loss; the rows then have ``verdicts``.
        kl_weight: of the penalty for leaving the starting model; 0 for none.
        reference: the starting model; None where the model in training has adapters, without which it is the starting model.
        padding_free: rows of a pass follow each other without padding; the models keep them apart (``models.attention``).
        vision_of: see ``Batches``.
        ahead: see ``StepSampler``.
    """

    def __init__(
        self,
        *,
        lengths: Sequence[int],
        verdict_term: VerdictTerm | None = None,
        kl_weight: float = 0.0,
        reference: Any = None,
        padding_free: bool = False,
        vision_of: Callable[[int], Vision | None] | None = None,
        ahead: Callable[[Sequence[int]], None] | None = None,
        **settings: Any,
    ):
        super().__init__(**settings)
        self._lengths, self._ahead, self.verdict_term = lengths, ahead, verdict_term
        self._kl_weight, self._reference = kl_weight, reference
        # routers of mixtures of experts are balanced over tokens: each counts once for every row that it is in
        share = not self.aux_loss_enabled
        self.data_collator = Batches(
            self._tokenizer.pad_token_id, padding_free=padding_free, share=share, vision_of=vision_of, model=self.model
        )
        # most models with a vision tower compute the loss of a pass without asking how many tokens the step has: ours does
        self._by_pass, self.model_accepts_loss_kwargs = not self.model_accepts_loss_kwargs, True
        if verdict_term is not None:
            self.loss_is_scaled_for_ga = True  # type: ignore[assignment]  # its denominators are those of a whole step

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(COLUMNS)  # type: ignore[assignment]  # "None" to mypy

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        """(transformers' own length sampler goes from the longest rows to the shortest: a short run ends on one kind of reply.)"""
        return step_sampler(self, self._lengths, self._ahead)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """See ``VerdictTerm``; without a verdict, the mean over the supervised tokens of the step."""
        verdict_BT = inputs.pop("verdicts", None)  # 1 at deciding tokens
        on_one_cpu = inputs["input_ids"].device.type == "cpu" and self.accelerator.num_processes == 1
        if return_outputs or not (on_one_cpu or self.verdict_term or self._kl_weight or self._by_pass):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        term = self.verdict_term
        target_BT = inputs["labels"][:, 1:]
        keep_BT = target_BT != IGNORE
        extra = {"output_router_logits": True} if self.aux_loss_enabled else {}
        logits_NV, output = logits_at(model, inputs, keep_BT, **extra)
        target_N = target_BT[keep_BT]
        self._metrics["train"]["mean_token_accuracy"].append(float((logits_NV.detach().argmax(-1) == target_N).float().mean()))
        # a step's tokens are those of all processes, and DDP averages gradients over them
        counted = keep_BT.sum() if num_items_in_batch is None else num_items_in_batch / self.accelerator.num_processes
        if term is None or verdict_BT is None:
            reply_N = torch.ones_like(target_N, dtype=torch.bool)
            loss = cross_entropy(logits_NV, target_N, reduction="sum") / max(counted, 1)
        else:
            counted = term.reply_tokens / self.accelerator.num_processes
            reply_N = verdict_BT[:, 1:][keep_BT] == 0
            losses_N = cross_entropy(logits_NV, target_N, reduction="none")
            reply_losses, verdict_losses = losses_N[reply_N], losses_N[~reply_N]
            weight = term.weight * self.accelerator.num_processes / term.verdicts
            loss = reply_losses.sum() / counted + weight * verdict_losses.sum()
            self._note(reply_loss=reply_losses, verdict_loss=verdict_losses)
        if self._kl_weight:
            kl_N = self._kl(model, inputs, keep_BT, logits_NV, reply_N)
            loss = loss + self._kl_weight * kl_N.sum() / counted
            self._note(kl=kl_N)
        if not self.aux_loss_enabled:
            return loss
        self._metrics["train"]["aux_loss"].append(float(output.aux_loss.detach()))
        scaled = num_items_in_batch is not None or term is not None
        steps = self.current_gradient_accumulation_steps if scaled else 1  # as TRL: a mean over the passes
        return loss + self.router_aux_loss_coef * output.aux_loss / steps

    def _kl(
        self, model: Any, inputs: dict[str, Any], keep_BT: torch.Tensor, logits_NV: torch.Tensor, reply_N: torch.Tensor
    ) -> torch.Tensor:
        """KL(starting model ‖ model in training) of the next token, at the supervised positions that are not verdicts."""
        if self._reference is None:
            start, without = model, self.accelerator.unwrap_model(model).disable_adapter()
        else:
            start, without = self._reference, nullcontext()
        with torch.no_grad(), without, self.accelerator.autocast():
            start_NV, _ = logits_at(start, inputs, keep_BT)
        logp_NV, start_logp_NV = (logits[reply_N].log_softmax(-1) for logits in (logits_NV, start_NV))
        return kl_div(logp_NV, start_logp_NV, reduction="none", log_target=True).sum(-1)

    def _note(self, **values: torch.Tensor) -> None:
        """Numbers of single tokens: TRL logs the mean over all that came since its last log."""
        for name, value_N in values.items():
            if value_N.numel():  # TRL divides by the count of every name that it has, and a step may hold no verdict
                self._metrics["train"][name].extend(value_N.detach().tolist())


def keeps_images_apart(model: Any, pad_id: int, rows: Sequence[dict[str, Any]], vision_of: Callable[[int], Vision | None]) -> bool:
    """Whether a model, in float32, gives rows with images, without padding, the log-probabilities that it gives them one by one.

    Args:
        rows: with the columns of the training rows, two of them with images.
    """
    pair = [Batches(pad_id, padding_free=flat, vision_of=vision_of, model=model) for flat in (True, False)]

    def supervised(batch: dict[str, Any]) -> torch.Tensor:
        given = {name: value.to(model.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        return logits_at(model, given, given["labels"][:, 1:] != IGNORE)[0]

    return same_by_row(model, lambda: [(supervised(pair[0](rows)), torch.cat([supervised(pair[1]([row])) for row in rows]))])


def logits_at(model: Any, inputs: dict[str, Any], keep_BT: torch.Tensor, **extra: Any) -> tuple[torch.Tensor, Any]:
    """The logits (N, V) in float32 from which the N kept tokens are predicted, and the model's output.

    Args:
        keep_BT: of all tokens but the first.
    """
    causal = base_of(model)
    given = {name: value for name, value in inputs.items() if name not in TARGETS}
    with _head_on(causal, keep_BT) as narrowed:
        output = model(**given, use_cache=False, **extra)
    return (output.logits[0] if narrowed else output.logits[:, :-1][keep_BT]).float(), output


@contextmanager
def _head_on(causal: Any, keep_BT: torch.Tensor) -> Iterator[list[bool]]:
    """Inside, a causal model computes logits (1, N, V) of the N positions kept, from which the next token is predicted.

    Args:
        keep_BT: of all positions but the last.

    Returns:
        a list that holds something once that was done; an architecture that does not call its backbone as a whole gives all logits.
    """
    done: list[bool] = []

    def narrow(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, :-1][keep_BT][None]
        done.append(True)
        return output

    handle = causal.base_model.register_forward_hook(narrow)
    try:
        yield done
    finally:
        handle.remove()
