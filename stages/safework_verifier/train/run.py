"""The run of ``safework verifier train``, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import get_peft_model
from transformers import PreTrainedModel, TrainingArguments

from safework_cli.core.artifacts import Artifact
from safework_cli.core.errors import InputError
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.dataset import read_dataset
from safework_cli.models.adapters import Adapter
from safework_cli.models.layers import keep_first_layers, lora_config, train_top_layers
from safework_cli.models.load import Place, cast_weights, load_model, load_tokenizer, pick_dtype, save_model, template_hash
from safework_cli.models.processors import Headers, load_processor
from safework_cli.training.after import after_training
from safework_cli.training.loop import multiplies_in_bf16, run_training, supervised_arguments
from safework_cli.training.strategy import load_to_train, trained_model
from safework_cli.training.towers import towers_in_every_pass
from safework_cli.verifiers.labels import LabelVerifier
from safework_cli.verifiers.prompting import PromptWriter, code_token_ids
from safework_cli.verifiers.spec import LabelSpec
from safework_verifier.attacks import augmented
from safework_verifier.measure import measure
from safework_verifier.rows import Parts, class_weights, labelled_rows, split_by_prompt, unused_calibration
from safework_verifier.save import outcome, unmeasured, write_reports
from safework_verifier.train.config import VerifierTrainConfig
from safework_verifier.train.probe import fit_probe, last_features, write_head
from safework_verifier.train.trainer import Examples, LabelTrainer


def train(config: VerifierTrainConfig, model_artifact: Artifact, data: Artifact, work: WorkDir) -> Outcome:
    """Splits, trains, calibrates, measures, saves."""
    spec = config.spec()
    items, missing = labelled_rows(read_dataset(data), spec, config.tolerated_missing_labels)
    parts = split_by_prompt(items, missing, config.eval_fraction, config.seed, calibrate_on=config.calibrate_on)
    if text := unused_calibration(config.calibrate_on, items):
        work.progress.warn(text)
    parts.train += augmented(parts.train, spec, config.attacked_share, config.cut_short_share, config.seed)

    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    processor = load_processor(model_artifact.path, trust_remote_code=config.trust_remote_code, pixels=config.pixels)

    def load(place: Place) -> Any:
        model = load_model(
            model_artifact.path, dtype="float32", trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation, place=place,
        )  # fmt: skip
        return _backbone(config, model)

    model, place = load_to_train(load, config.launch, work, whole=config.head == "probe" or config.train_layers == 0)
    writer = LabelVerifier(model, tokenizer, spec, processor=processor).writer  # refuses labels that cannot be read, before training
    examples, cut = _tokenize(spec, writer, parts, work)
    if config.head == "probe":
        _probe(config, spec, model, tokenizer, examples, work)
    starting = partial(load, "device" if place == "device" else "host")
    trained, adapter, steps = _train(config, spec, model, model_artifact, tokenizer, processor, examples, work, place, starting)
    if trained is None:
        return Outcome()
    work = work.as_single()

    trained = cast_weights(trained, pick_dtype(config.dtype)).eval()
    verifier = LabelVerifier(trained, tokenizer, spec, processor=processor, batch_size=config.per_device_eval_batch_size)
    metrics, why = after_training("measuring", work, lambda: measure(verifier, parts, config.attack_rows, config.seed, work))
    with work.progress.phase("save"):
        save_model(trained, processor or tokenizer, work.output, adapter=adapter)
        spec.write(work.output)
    counts = {"train": len(parts.train), "missing_label": missing, "train_truncated": cut}
    if metrics is None:
        return unmeasured({"rows": counts, "steps": steps}, why, template_hash(tokenizer))
    metrics["rows"] |= counts
    metrics["steps"] = steps
    _, why = after_training("the card", work, lambda: write_reports(spec, metrics, parts, (model_artifact.ref, data.ref), work))
    made = outcome(metrics, config.min_accuracy, template_hash(tokenizer), work)
    if why:
        made.not_measured(why)
    return made


def _backbone(config: VerifierTrainConfig, model: PreTrainedModel) -> Any:
    """The model with only the layers to keep, and with gradients only for the layers to train."""
    if config.keep_layers:
        keep_first_layers(model, config.keep_layers)
    if config.train_layers:
        train_top_layers(model, config.train_layers)
    return model


def _tokenize(spec: LabelSpec, writer: PromptWriter, parts: Parts, work: WorkDir) -> tuple[Examples, int]:
    """The training rows as judge prompts, and how many were truncated. Empty replies are left out: they are labelled without the model.

    Raises:
        InputError: a row cannot be judged: it has no gold answer for a grader, images for a backbone without a vision tower, or an image
            that the processor refuses.
    """
    for item in (*parts.train, *parts.calibration, *parts.report):
        if why := writer.unreadable(item.exchange):
            raise InputError(f"row '{item.row.id}' cannot be judged", why, "leave such rows out of the data, or use another backbone")
    items = [item for item in parts.train if item.exchange.final.strip()]
    with work.progress.phase("tokenize", len(items)):
        headers = PromptWriter(writer.tokenizer, spec, writer.processor and Headers(writer.processor))
        examples = Examples([item.exchange for item in items], [item.gold for item in items], writer.write, headers.write)
    if cut := examples.truncated:
        work.progress.warn(f"{cut} of {len(examples)} training rows exceed max_length={spec.max_length} and lost their middle")
    return examples, cut


def _probe(config: VerifierTrainConfig, spec: LabelSpec, model: Any, tokenizer: Any, examples: Examples, work: WorkDir) -> None:
    """Fits the head on the features of the untrained backbone."""
    with torch.autocast(model.device.type, torch.bfloat16, enabled=multiplies_in_bf16(config)):  # as in the training steps
        features_ND = last_features(model, examples, tokenizer.pad_token_id, config.per_device_eval_batch_size, work)
    weight_C = class_weights(examples.golds, len(spec.labels), config.class_weights)
    with work.progress.phase("probe"):
        rows_CD = fit_probe(features_ND, examples.golds, weight_C, config.probe_l2)
    write_head(model, code_token_ids(tokenizer, spec), rows_CD)


def _train(
    config: VerifierTrainConfig,
    spec: LabelSpec,
    model: Any,
    base: Artifact,
    tokenizer: Any,
    processor: Any,
    examples: Examples,
    work: WorkDir,
    place: Place,
    starting: Callable[[], Any],
) -> tuple[Any | None, Adapter | None, int]:
    """The trained model (adapters merged), None in processes that have nothing left to do; the adapters where they are kept; and the steps
    taken.

    Args:
        place: where the model was read to.
        starting: loads it again, as it was before training.
    """
    if config.train_layers == 0:
        return (model if work.world.first else None), None, 0
    adapters = lora_config(config.lora, model)
    if adapters is not None:
        model = get_peft_model(model, adapters)
    trainer = LabelTrainer(
        model=model,
        args=supervised_arguments(TrainingArguments, config, work, place=place, remove_unused_columns=False),
        train_dataset=examples,
        processing_class=tokenizer,
        code_ids=code_token_ids(tokenizer, spec),
        weight_C=class_weights(examples.golds, len(spec.labels), config.class_weights),
        label_smoothing=config.label_smoothing,
        pad_id=tokenizer.pad_token_id,
    )
    images = examples.has_images
    with towers_in_every_pass((trainer.model,), processor, images=images, launch=config.launch, world=work.world) as callbacks:
        state = run_training(trainer, work, launch=config.launch, callbacks=callbacks)
    return *trained_model(trainer, work.world, starting, config.lora, base), state.global_step
