"""Fine-tune a model on reasoned replies (chain-of-thought SFT).

Takes a model and a dataset whose rows end in a reply; makes a model. Refuses: rows that the chat template refuses or whose reply writes
a control token (beyond ``max_dropped``), a supervised-token share of 0 % or 100 %, a turn that does not end in a stop token, rows with
images for a model that reads text only, zero rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from safework_cli.core.errors import SafeworkError
from safework_cli.core.formats import percent, plain
from safework_cli.core.plan.tokens import characters_per_token
from safework_cli.core.plan.work import Work
from safework_cli.core.stage import Inputs, Outcome, Plan, Slot, Stage, WorkDir
from safework_cli.data.dataset import require_rows, training_rows
from safework_cli.data.image_rows import refuse_unread_images
from safework_cli.training.closing import closing_table, dropped, evaluation_lines
from safework_cli.training.heldout import EVAL_SLOTS, plan_evaluation
from safework_cli.training.tracking import plan_tracking
from safework_cli.training.work import disk_of, hold_others, tokens_and_patches, training_work
from safework_sft.config import SftConfig, VerdictConfig
from safework_sft.marks import count_marks, marked_rows, measured_data, measured_rows, only_cut, refuse_unmeasured
from safework_sft.mixture import weighted_positions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from safework_cli.core.artifacts import Artifact
    from safework_cli.data.row import Row


TEMPLATE_TOKENS = 5
"""That a chat template writes around a message, about."""


class SftStage(Stage):
    name = "sft"
    version = 9  # 9: held-out prompts by task; 8: the verdict's threshold by a fit; 7: image rows train, and the processor is saved
    summary = "Fine-tune a model on reasoned replies (chain-of-thought SFT)."
    Config = SftConfig
    inputs = {
        "model": Slot(("model",), "the model to start from"),
        "data": Slot(("dataset",), "rows that end in an assistant reply, such as starter:cot"),
        "verdict_data": Slot(
            ("dataset",),
            "held-out rows to measure verdicts on: marked ones, or prompts with harmful, such as starter:dev (default: eval_data)",
            optional=True,
        ),
        **EVAL_SLOTS,
    }
    output = "model"
    many_processes = True

    def plan(self, config: SftConfig, inputs: Inputs) -> Plan:
        model, data = inputs.one("model"), inputs.one("data")
        plan = Plan(name=f"{model.name.split('-sft')[0]}-sft")
        try:
            usable = training_rows(data)
            require_rows(len(usable), data, "rows")
            chosen = [usable[position] for position in weighted_positions(usable, config.task_weights, config.seed)]
            rows = len(chosen)
            refuse_unread_images(chosen, data.ref, model, config.max_dropped)
            verdict_lines: list[str] = []
            if config.verdict:
                short, verdict_lines = _plan_verdict(config.verdict, inputs, chosen, only_cut(config.verdict, usable, chosen))
                rows += short
        except SafeworkError as refusal:
            plan.refusals.append(refusal)
            return plan
        per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.launch.world
        if config.max_steps > 0:
            plan.optimizer_steps = config.max_steps
        else:
            plan.optimizer_steps = math.ceil(rows / per_step * config.num_train_epochs)
        plan.work = _work(config, model, chosen, plan.optimizer_steps)
        plan.tokens = round(plan.work.step_tokens * config.launch.world * plan.optimizer_steps)
        plan.disk_bytes = disk_of(plan.work, config.save_dtype, adapters_only=config.lora is not None and config.lora.keep == "adapter")
        parameters = plan.work.shape.parameters
        plan.lines = [
            f"train {model.ref} ({parameters / 1e6:.0f} M weights{', LoRA' if config.lora else ''}) on {data.ref} ({rows} rows)",
            f"{per_step} rows a step, learning rate {config.learning_rate:g}, loss on assistant tokens only",
            *verdict_lines,
            f"then sample {config.sample_prompts} replies and report how many stop",
        ]
        if config.min_stop_rate and not config.sample_prompts:
            why = "it is measured on the replies that are sampled after training, and sample_prompts=0 samples none"
            plan.refuse(f"min_stop_rate={config.min_stop_rate:g} cannot be checked", why, "sample_prompts=8, or min_stop_rate=0")
        if config.verdict is None:
            if inputs.maybe("verdict_data"):
                plan.refuse("verdict_data is given without verdict", "no verdicts are measured", "set verdict={}")
            if marks := count_marks(chosen):
                plan.lines.append(f"note: {marks} rows mark their verdict; verdict={{}} would give it a loss term of its own")
        if config.kl:
            plan.lines.append(f"plus {config.kl.weight:g} × KL to the starting model on the reply's tokens")
            hold_others(plan, weights=0 if config.lora else parameters)
        if config.verdict and config.verdict.calibrate and config.lora and config.lora.keep == "adapter":
            why = "the threshold is moved by a weight that is not in the adapter"
            plan.refuse("verdict.calibrate is given with lora.keep=adapter", why, "lora.keep=merged")
        if config.lora and config.lora.full and config.lora.keep == "adapter":
            why = "the file of an adapter holds adapters only"
            plan.refuse("lora.full is given with lora.keep=adapter", why, "lora.keep=merged")
        if config.lora and config.train_layers:
            plan.refuse("lora and train_layers are both given", "adapters sit in every layer", "choose one")
        if config.lora and config.learning_rate < 2e-5:
            plan.lines.append("note: adapters usually want a learning rate near 1e-4")
        plan_tracking(plan, config.tracking)
        plan_evaluation(plan, config, inputs, lambda: usable)
        return plan

    def show(self, artifact: Artifact) -> RenderableType:
        """The numbers to look at first."""
        return closing_table([*_closing_lines(artifact.manifest.metrics)])

    def run(self, config: SftConfig, inputs: Inputs, work: WorkDir) -> Outcome:
        from safework_sft.run import train

        return train(config, inputs, work)


def _work(config: SftConfig, model: Artifact, rows: list[Row], steps: int) -> Work:
    """What the rows ask for. Where TRL computes the loss it does so in tiles; ours has all logits of the supervised positions."""
    texts = ["".join(message["content"] for message in row.messages) for row in rows]
    ratio, ours = characters_per_token(model.path, texts), config.verdict is not None or config.kl is not None
    replies = sum(len(message["content"]) for row in rows for message in row.messages if message["role"] == "assistant")
    images = tokens_and_patches(model.path, rows, config.pixels)
    lengths = [
        min(len(text) / ratio + TEMPLATE_TOKENS * len(row.messages) + tokens, config.max_length)
        for text, row, (tokens, _) in zip(texts, rows, images, strict=True)
    ]
    return training_work(
        model.path,
        config,
        lengths,
        steps,
        "supervised" if config.launch.world == 1 or ours else "tiles",
        head_on_card=None if ours else "tiles",
        supervised=min(1.0, replies / ratio / max(1, sum(lengths))),
        padded=not config.padding_free,
        frozen_embedding=config.freeze_embeddings,
        extra_forwards=1.0 if config.kl else 0.0,
        loads_parts=not ours,
        patches=[patches for _, patches in images],
    )


def _plan_verdict(config: VerdictConfig, inputs: Inputs, chosen: list[Row], cut: list[Row]) -> tuple[int, list[str]]:
    """The number of short rows, and what the plan says of the verdicts.

    Args:
        cut: rows that come in their short form only.
    """
    rows = [*chosen, *cut]
    training = marked_rows(config, rows)
    measured, left_out = measured_rows(config, inputs, training, rows)
    short = config.short_passes * (len(cut) + (len(training.pairs) - len(cut) if config.weight and config.repeats else 0))
    meanings = [(word, "harmful" if bad else "harmless") for pair in training.words.values() for word, bad in pair.items()]
    words = ", ".join(f"'{word}' {meaning}" for word, meaning in meanings)
    lines = [
        f"{len(training.pairs)} rows state a verdict ({words})"
        + (f", which has a loss term of its own with weight {config.weight:g}" if config.weight else ", which is only measured")
        + (f"; {short} short rows end with it" if short else "")
    ]
    if not measured:
        refuse_unmeasured(config)
    data = measured_data(inputs)
    if measured and data:
        lines.append(f"verdicts are measured before and after training on {len(measured)} rows of {data.ref}")
        if left_out:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
            lines.append(f"note: {left_out.total():,} rows of it are not measured: {reasons}")
        if config.calibrate:
            weighed = "" if config.harmless_weight == 1 else f" (a harmless prompt called harmful counts {config.harmless_weight:g} times)"
            lines.append(f"their threshold{weighed} is moved to 0 after training, by the scale of the last normalisation")
    return short, lines


def _verdict_lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    verdict = metrics.get("verdict") or {}
    if moved := verdict.get("threshold"):
        yield "verdict threshold", f"{moved['before']:+.2f} → {moved['after']:+.2f}, at {moved['cost']:.2g} nats a token of the replies"
    for when in ("before", "after"):
        if figures := verdict.get(when):
            called = figures["called_harmful"]
            shares = ", ".join(f"{percent(called[name]['value'], called[name]['n'])} of {called[name]['n']} {name}" for name in called)
            area, threshold = figures["auc"]["value"], figures["threshold"]
            yield f"verdicts {when}", f"AUC {area:.3f}; called harmful: {shares}; threshold {threshold:+.2f}"


def _closing_lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows", f"{metrics['rows']:,}{dropped(metrics)}"
    yield "steps", str(metrics["steps"])
    verdict = metrics.get("verdict") or {}
    count, tokens = verdict.get("short_rows", 0), verdict.get("short_tokens", 0)  # one token of each is supervised
    short = f"; in {count:,} short rows {count:,} of {tokens:,}" if tokens else ""
    yield "supervised", f"{100 * metrics['supervised_share']:.1f}% of {metrics['tokens']:,} tokens{short}"
    yield "loss", f"{plain(metrics['loss_first'])} → {plain(metrics['loss_last'])}"
    if sampled := metrics["samples"]:
        rates = f"{percent(sampled['stop_rate'], sampled['n'])} stopped, {percent(sampled['format_rate'], sampled['n'])} in the format"
        yield "sampled replies", f"{sampled['n']}: {rates}, {sampled['mean_tokens']:.0f} tokens on average"
    yield from _verdict_lines(metrics)
    yield from evaluation_lines(metrics)


stage = SftStage()
