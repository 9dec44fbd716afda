"""The run of ``safework sft``, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from statistics import mean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig as TrlSftConfig

from safework_cli.core.errors import InputError
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.dataset import require_rows, training_rows
from safework_cli.data.reply import parse_reply
from safework_cli.data.row import Image, Row
from safework_cli.engines.load import engine_over
from safework_cli.engines.protocol import Completion, Sampling, TokenEngine
from safework_cli.models.attention import attention_by_row, keeps_rows_apart
from safework_cli.models.card import write_model_card
from safework_cli.models.chat_template import prompt_tokens
from safework_cli.models.folder import positions_of
from safework_cli.models.layers import freeze_vision, lora_config, train_top_layers
from safework_cli.models.load import (
    Place,
    cast_weights,
    load_model,
    load_tokenizer,
    pick_dtype,
    save_model,
    saved_dtype,
    stop_token_ids,
    template_hash,
)
from safework_cli.models.processors import load_processor
from safework_cli.models.rendering import TemplateError, dated
from safework_cli.models.templates import use_template
from safework_cli.models.vision import base_of
from safework_cli.training.after import after_training
from safework_cli.training.evaluation import Evaluation, evaluation_during
from safework_cli.training.group import any_of
from safework_cli.training.loop import multiplies_in_bf16, run_training, supervised_arguments
from safework_cli.training.sampler import rows_per_step
from safework_cli.training.strategy import load_to_train, trained_model, whole_policy
from safework_cli.training.towers import towers_in_every_pass
from safework_sft.config import SftConfig
from safework_sft.decision import Decision
from safework_sft.encode import (
    IGNORE,
    EncodedRows,
    TrainingRows,
    Verdicts,
    VisionOf,
    encode_rows,
    find_verdicts,
    joined,
    refuse_useless,
    rows_to_train,
    tokens_before_reply,
)
from safework_sft.marks import MarkedRows, marked_rows, measured_data, measured_rows, only_cut
from safework_sft.mixture import weighted_positions
from safework_sft.threshold import move_threshold
from safework_sft.trainer import SupervisedTrainer, VerdictTerm, keeps_images_apart


def train(config: SftConfig, inputs: Inputs, work: WorkDir) -> Outcome:
    """Encodes, refuses, trains, saves, samples."""
    model_artifact, data = inputs.one("model"), inputs.one("data")
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    processor = load_processor(model_artifact.path, trust_remote_code=config.trust_remote_code, pixels=config.pixels)
    for speaker in filter(None, (tokenizer, processor)):
        use_template(speaker, config.chat_template)
    rows = training_rows(data, work.progress.note)
    require_rows(len(rows), data, "rows")
    usable = rows
    rows = [usable[position] for position in weighted_positions(usable, config.task_weights, config.seed)]
    cut = only_cut(config.verdict, usable, rows)
    marks = marked_rows(config.verdict, [*rows, *cut]) if config.verdict else None

    def load(place: Place) -> PreTrainedModel:
        return load_model(
            model_artifact.path, dtype="float32", trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation, place=place,
        )  # fmt: skip

    copied, measured = config.kl is not None and config.lora is None, config.verdict is not None and measured_data(inputs) is not None
    model, place = load_to_train(load, config.launch, work, whole=copied or measured)
    stop_ids = stop_token_ids(tokenizer, model)
    with work.progress.phase("tokenize", len(rows)):
        by_id = marks.by_id() if marks else None
        encoded, encoded_cut = (
            encode_rows(some, tokenizer, stop_ids, config.max_length, positions_of(model.config), by_id, processor) for some in (rows, cut)
        )
    refuse_useless(encoded, len(rows) + len(cut), config.max_dropped, encoded_cut)
    for reason, ids in [*encoded.dropped.items(), *encoded_cut.dropped.items()]:
        work.progress.warn(f"{len(ids)} rows dropped: {reason} (such as {ids[0]})")
    verdicts = find_verdicts(joined(encoded, encoded_cut), marks.words) if marks else None
    learned = verdicts if config.verdict and config.verdict.weight else None
    repeats, passes = (config.verdict.repeats, config.verdict.short_passes) if config.verdict else (False, 1)
    training = rows_to_train(encoded, learned, repeats, encoded_cut, passes)

    asked = prompts_to_sample(config, encoded, engine_over(model, tokenizer, processor=processor), work)
    if config.train_layers:
        train_top_layers(model, config.train_layers)
    reference = deepcopy(model).requires_grad_(False).eval() if config.kl and not config.lora else None
    if config.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    args = _arguments(config, work, tokenizer, place)
    lengths = [len(ids) for ids in training.input_ids]
    vision_of = VisionOf(joined(encoded, encoded_cut).rows, tokenizer, stop_ids, processor) if training.has_images else None
    tried = config.padding_free and place != "empty"
    padding_free = any_of(work.world, tried and keeps_apart(model, tokenizer.pad_token_id, training, vision_of))
    trainer = SupervisedTrainer(
        model=model,
        args=args,
        train_dataset=training.dataset(),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, model),
        lengths=lengths,
        padding_free=padding_free,
        verdict_term=verdict_term(config, training, learned, rows_per_step(args)),
        kl_weight=config.kl.weight if config.kl else 0.0,
        reference=reference,
        vision_of=vision_of,
        ahead=None if vision_of is None else lambda some: vision_of.ahead(number for row in some if (number := training.images[row]) >= 0),
    )
    if processor is not None and not config.train_vision:
        freeze_vision(trainer.model)  # with the adapters in it
    decision = _decision(config, inputs, marks, verdicts, [*rows, *cut], tokenizer, stop_ids, positions_of(model.config))
    if decision:
        for reason, ids in decision.dropped.items():
            work.progress.warn(f"verdicts are not measured on {len(ids)} rows of {decision.ref}: {reason} (such as {ids[0]})")
    before = decision.figures(decision.log_odds(trainer.model, work)) if decision else None
    evaluation = _evaluation(config, inputs, work, trainer, tokenizer, processor)
    with ExitStack() as inside:
        towers = towers_in_every_pass(
            (trainer.model, reference), processor, images=training.has_images, launch=config.launch, world=work.world
        )
        callbacks = inside.enter_context(towers)
        for one in (trainer.model, reference):
            if padding_free and one is not None:
                inside.enter_context(attention_by_row(one))
        state = run_training(trainer, work, launch=config.launch, callbacks=callbacks, evaluation=evaluation)
    if trainer.aux_loss_enabled:  # TRL asks for them in every pass from here on
        base_of(trainer.accelerator.unwrap_model(trainer.model)).config.get_text_config().output_router_logits = False
    with work.progress.phase("save"):
        again: Place = "device" if place == "device" else "host"
        trained, adapter = trained_model(trainer, work.world, lambda: load(again), config.lora, model_artifact)
        if trained is None:
            return Outcome()
        dtype = saved_dtype(config.save_dtype, model_artifact.path)
        moved, not_moved = None, ""
        if decision and config.verdict and config.verdict.calibrate:
            text = [number for number, row in enumerate(encoded.rows) if not row.images]
            tokens, labels = ([column[number] for number in text] for column in (encoded.input_ids, encoded.labels))
            moved, not_moved = move_threshold(trained, decision, tokens, labels, work.as_single())
        save_model(trained, processor or tokenizer, work.output, dtype=dtype, adapter=adapter)
    work = work.as_single()
    sampled, why = (
        after_training("sampling", work, lambda: _sample(config, trained, dtype, tokenizer, processor, asked, work)) if asked else ({}, "")
    )
    after, why_not = after_training("measuring verdicts", work, lambda: decision and decision.figures(decision.log_odds(trained, work)))
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    outcome = _outcome(config, encoded, losses, sampled or {}, state.global_step, tokenizer)
    if evaluation is not None:
        evaluation.record(outcome, state)
    if marks and verdicts:
        outcome.metrics["verdict"] = {
            "words": marks.words,
            "marked_rows": sum(place is not None for place in verdicts.places),
            "short_rows": len(training.input_ids) - len(encoded.input_ids),
            "short_tokens": sum(map(len, training.input_ids[len(encoded.input_ids) :])),
            **({"short_dropped": {reason: len(ids) for reason, ids in encoded_cut.dropped.items()}} if encoded_cut.dropped else {}),
            **({"data": decision.ref, "before": before, "after": after} if decision else {}),
            **({"not_measured": {reason: len(ids) for reason, ids in decision.dropped.items()}} if decision and decision.dropped else {}),
            **({"threshold": moved} if moved else {}),
        }
    outcome.metrics["padding_free"] = padding_free
    outcome.metrics["dtype"] = str(dtype).removeprefix("torch.")
    write_model_card(
        work.output, stage="sft", config=config, inputs=inputs, steps=state.global_step, evaluation=outcome.metrics.get("evaluation")
    )
    if not_moved:
        work.progress.warn(not_moved)
        outcome.failed_gates.append(f"{not_moved} (verdict.calibrate=false accepts that)")
    for one in (why, why_not):
        if one:
            outcome.not_measured(one)
    return outcome


def verdict_term(config: SftConfig, training: TrainingRows, verdicts: Verdicts | None, per_step: int) -> VerdictTerm | None:
    """The verdict's term of the loss; None where verdicts are not learned as such.

    Args:
        per_step: rows of an optimiser step.
    """
    if config.verdict is None or verdicts is None:
        return None
    deciding = sum(map(sum, training.verdicts))
    supervised = sum(label != IGNORE for row in training.labels for label in row)
    share = min(1.0, per_step / len(training.input_ids))  # a step that would take more rows than there are takes all of them once
    return VerdictTerm(config.verdict.weight, (supervised - deciding) * share, deciding * share)


def _decision(
    config: SftConfig,
    inputs: Inputs,
    marks: MarkedRows | None,
    verdicts: Verdicts | None,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: list[int],
    positions: int | None,
) -> Decision | None:
    """What the verdicts are measured on; None where no such data is given."""
    data = measured_data(inputs)
    if config.verdict is None or marks is None or verdicts is None or data is None:
        return None
    pairs, _ = measured_rows(config.verdict, inputs, marks, rows)  # the plan says which rows are left out
    longest = min(config.max_length, positions or config.max_length)
    if not pairs:
        return None
    bf16, weight = multiplies_in_bf16(config), config.verdict.harmless_weight
    return Decision(pairs, marks.words, verdicts.choices, tokenizer, stop_ids, longest, data.ref, bf16=bf16, harmless_weight=weight)


def _evaluation(
    config: SftConfig, inputs: Inputs, work: WorkDir, trainer: SupervisedTrainer, tokenizer: PreTrainedTokenizerBase, processor: Any
) -> Evaluation | None:
    """The evaluation during training that the settings ask for; None where they ask for none."""
    before = engine_over(trainer.accelerator.unwrap_model(trainer.model), tokenizer, processor=processor)
    sampling = Sampling(config.eval_max_tokens, seed=config.seed)

    def sample(asked: Sequence[Row]) -> list[Completion]:
        with whole_policy(trainer) as model:
            engine = engine_over(model, tokenizer, processor=processor)
            return [group[0] for group in engine.generate([row.prompt for row in asked], sampling, images=images_of(asked))]

    return evaluation_during(
        config,
        inputs,
        work,
        length_of=lambda row: _prompt_tokens(before, row),
        longest=before.longest_prompt(sampling),
        sample=sample,
        trust_remote_code=config.trust_remote_code,
    )


def keeps_apart(model: Any, pad_id: int, training: TrainingRows, vision_of: VisionOf | None) -> bool:
    """Whether the rows may follow each other without padding: tried with a few random tokens, and with short rows with images."""
    if not keeps_rows_apart(model, max(map(len, training.input_ids))):
        return False
    return vision_of is None or keeps_images_apart(model, pad_id, training.two_short_ones(), vision_of)


def _arguments(config: SftConfig, work: WorkDir, tokenizer: PreTrainedTokenizerBase, place: Place) -> TrlSftConfig:
    return supervised_arguments(
        TrlSftConfig,
        config,
        work,
        place=place,
        max_length=config.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},  # tokens and labels are ours; TRL must not touch them
        eos_token=tokenizer.eos_token,
    )


def prompts_to_sample(config: SftConfig, encoded: EncodedRows, engine: TokenEngine, work: WorkDir) -> list[Row]:
    """Evenly spread rows out of those that are trained on, whose prompts leave room for a reply: looked for before anything is trained.

    Raises:
        InputError: there are none, and ``min_stop_rate`` asks for them.
    """
    sampling = Sampling(config.sample_max_tokens)
    longest = engine.longest_prompt(sampling)
    fitting = [row for row, labels in zip(encoded.rows, encoded.labels, strict=True) if tokens_before_reply(labels) <= longest]
    step = max(1, len(fitting) // max(1, config.sample_prompts))
    chosen = [row for row in fitting[::step] if _prompt_tokens(engine, row) <= longest][: config.sample_prompts]
    if config.sample_prompts and not chosen:
        what = f"no training prompt leaves room for sample_max_tokens={config.sample_max_tokens} within the model's positions"
        if config.min_stop_rate:
            why = f"min_stop_rate={config.min_stop_rate:g} is measured on such replies"
            raise InputError(what, why, "lower sample_max_tokens, or min_stop_rate=0")
        work.progress.warn(f"{what}: none is sampled, and nothing will be known of how often replies stop")
    return chosen


def _prompt_tokens(engine: TokenEngine, row: Row) -> float:
    """Infinitely many where the prompt cannot be asked: the template refuses it."""
    try:
        return prompt_tokens(engine.tokenizer, row.prompt, row.images, engine.processor)
    except TemplateError:  # trained on as a whole conversation, and not to be asked by this template
        return math.inf


def images_of(rows: Sequence[Row]) -> list[list[Image]] | None:
    """The images of each row; None where none has any."""
    return [row.images for row in rows] if any(row.images for row in rows) else None


def _sample(
    config: SftConfig,
    model: PreTrainedModel,
    dtype: torch.dtype,
    tokenizer: PreTrainedTokenizerBase,
    processor: Any,
    chosen: list[Row],
    work: WorkDir,
) -> dict[str, Any]:
    """Greedy replies to training prompts: does the model stop, and does it keep the format?

    Args:
        dtype: in which the model was saved.
    """
    if dtype != pick_dtype("auto"):
        cast_weights(model, torch.float32)  # the saved numbers, in a type that this machine multiplies fast
    with work.progress.phase("sample", len(chosen)):
        engine = engine_over(model, tokenizer, processor=processor)
        sampling = Sampling(config.sample_max_tokens, seed=config.seed)
        completions = [group[0] for group in engine.generate([row.prompt for row in chosen], sampling, images=images_of(chosen))]
    return {
        "n": len(completions),
        "stop_rate": mean(c.finish_reason == "stop" for c in completions),
        "format_rate": mean(parse_reply(c.text).format == "ok" for c in completions),
        "mean_tokens": mean(len(c.token_ids) for c in completions),
        "replies": [{"row": row.id, "reply": c.text} for row, c in zip(chosen, completions, strict=True)],
    }


def _outcome(
    config: SftConfig, encoded: EncodedRows, losses: list[float], sampled: dict[str, Any], steps: int, tokenizer: PreTrainedTokenizerBase
) -> Outcome:
    tenth = max(1, len(losses) // 10)
    outcome = Outcome(
        metrics={
            "rows": len(encoded.input_ids),
            "dropped": {reason: len(ids) for reason, ids in encoded.dropped.items()},
            "tokens": encoded.tokens,
            "supervised_share": round(encoded.supervised_tokens / encoded.tokens, 4),
            "steps": steps,
            "loss_first": round(mean(losses[:tenth]), 4),
            "loss_last": round(mean(losses[-tenth:]), 4),
            "samples": sampled,
        },
        seeds={
            "order of rows, LoRA initialisation, dropout": f"seed={config.seed}",
            "matrix products": "not pinned: other hardware or thread counts round differently",
            **dated(tokenizer),
        },
        chat_template_hash=template_hash(tokenizer),
    )
    if sampled and sampled["stop_rate"] < config.min_stop_rate:
        outcome.failed_gates.append(f"stop rate {sampled['stop_rate']:.2f} is below min_stop_rate={config.min_stop_rate}")
    return outcome
