"""The run of ``safework verifier values``, from top to bottom."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from safework_cli.core.artifacts import Artifact
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.dataset import training_rows
from safework_cli.models.folder import positions_of
from safework_cli.models.layers import train_top_layers
from safework_cli.models.load import Place, cast_weights, load_model, load_tokenizer, pick_dtype, save_model, template_hash
from safework_cli.models.processors import Headers, load_processor
from safework_cli.training.after import after_training
from safework_cli.training.loop import run_training, supervised_arguments
from safework_cli.training.strategy import load_to_train, trained_model
from safework_cli.training.towers import towers_in_every_pass
from safework_cli.verifiers.values import PrefixWriter, ValueHeads, ValueModel, ValueSpec, save_heads
from safework_verifier.values.card import card
from safework_verifier.values.config import ValuesConfig
from safework_verifier.values.measure import measure
from safework_verifier.values.prefixes import split_by_prompt, valued_rows
from safework_verifier.values.trainer import Examples, ValueTrainer, WithHeads


class _Loaded(WithHeads):
    """The same around a model that was loaded again, and is saved as a whole."""

    def __init__(self, model: Any, heads: ValueHeads):
        super().__init__(model, heads)
        self._whole = [model]  # in a list, since its weights are the backbone's: it must not be one of its modules

    @property
    def whole(self) -> Any:
        return self._whole[0]


def train(config: ValuesConfig, model_artifact: Artifact, data: Artifact, work: WorkDir) -> Outcome:
    """Splits, trains, fits temperatures, measures, saves."""
    rows, principles = valued_rows(training_rows(data, work.progress.note), data.ref)
    parts = split_by_prompt(rows, config.eval_fraction, config.seed)
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    processor = load_processor(model_artifact.path, trust_remote_code=config.trust_remote_code, pixels=config.pixels)

    def load(place: Place) -> PreTrainedModel:
        return load_model(
            model_artifact.path, dtype="float32", trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation, place=place,
        )  # fmt: skip

    def untrained() -> ValueHeads:
        return ValueHeads(backbone.config.get_text_config().hidden_size, len(principles))

    backbone, place = load_to_train(load, config.launch, work, whole=False)
    if config.train_layers == 0:
        backbone.requires_grad_(False)
    elif config.train_layers:
        train_top_layers(backbone, config.train_layers)
    spec = ValueSpec(principles=principles, temperatures=[1.0] * len(principles), max_length=config.max_length)
    with work.progress.phase("tokenize", len(parts.train)):
        most = positions_of(backbone.config)
        writer = PrefixWriter(tokenizer, config.max_length, most, processor)
        headers = PrefixWriter(tokenizer, config.max_length, most, processor and Headers(processor))
        examples = Examples(parts.train, principles, writer.write, headers.write)
    trainer = ValueTrainer(
        model=WithHeads(backbone, untrained().to(backbone.device)),
        args=supervised_arguments(TrainingArguments, config, work, place=place, remove_unused_columns=False),
        train_dataset=examples,
        routing_weight=config.routing_weight,
        head_learning_rate=config.head_learning_rate,
        pad_id=tokenizer.pad_token_id,
    )
    images = examples.has_images
    with towers_in_every_pass((backbone,), processor, images=images, launch=config.launch, world=work.world) as callbacks:
        state = run_training(trainer, work, launch=config.launch, callbacks=callbacks)
    whole, _ = trained_model(trainer, work.world, lambda: _Loaded(load("device" if place == "device" else "host"), untrained()))
    if whole is None:
        return Outcome()
    work = work.as_single()

    backbone = whole.whole if isinstance(whole, _Loaded) else backbone
    backbone, heads = cast_weights(backbone, pick_dtype(config.dtype)).eval(), whole.heads.eval()
    values = ValueModel(backbone, tokenizer, heads, spec, batch_size=config.per_device_eval_batch_size, processor=processor)
    metrics, why = after_training("measuring", work, lambda: measure(values, parts, config.seed, work))
    with work.progress.phase("save"):
        save_model(backbone, processor or tokenizer, work.output)
        save_heads(heads, work.output)
        spec.write(work.output)
    made = Outcome(
        metrics=(metrics or {"rows": {"train": len(parts.train)}}) | {"steps": state.global_step},
        seeds={"split, order of rows": f"seed={config.seed}", "matrix products": "not pinned: other hardware rounds differently"},
        chat_template_hash=template_hash(tokenizer),
    )
    if metrics is None:
        made.not_measured(f"{why}; the temperatures stay 1, and how good the values are is unknown")
        return made
    (work.output / "verifier_card.md").write_text(card(spec, made.metrics, model_artifact.ref, data.ref), encoding="utf-8")
    worse = [name for name in principles if metrics["principles"][name]["skill"]["value"] <= 0]
    made.notes += [f"{name}: the values are not better than the mean over all prefixes" for name in worse]
    for note in made.notes:
        work.progress.warn(note)
    return made
