"""The run of every ``safework rl`` stage, from top to bottom; the objective is what differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from trl import GRPOConfig

from safework_cli.core.artifacts.manifest import RECORD
from safework_cli.core.checkpoints import read_mark
from safework_cli.core.errors import InputError
from safework_cli.core.launch.world import World
from safework_cli.core.progress import read_metrics
from safework_cli.core.registry import entries, load_registered
from safework_cli.core.stage import Inputs, Outcome, WorkDir
from safework_cli.data.dataset import require_rows, training_rows
from safework_cli.data.row import Row
from safework_cli.models.card import write_model_card
from safework_cli.models.folder import positions_of, read_config
from safework_cli.models.layers import disable_dropout, freeze_vision, lora_config, train_top_layers
from safework_cli.models.load import Place, load_model, load_tokenizer, save_model, saved_dtype, template_hash
from safework_cli.models.processors import load_processor
from safework_cli.models.rendering import TemplateError, dated
from safework_cli.models.templates import use_template
from safework_cli.training.after import after_training
from safework_cli.training.loop import latest_checkpoint, multiplies_in_bf16, run_training, training_arguments, warmup_share
from safework_cli.training.strategy import load_to_train, trained_model
from safework_cli.training.towers import towers_in_every_pass
from safework_cli.training.tracking import identity
from safework_cli.verifiers.contract import Verifier, cut_for
from safework_cli.verifiers.load import load_verifier
from safework_cli.verifiers.rules import names_rule, rule_verifier
from safework_rl.checkpoint import KeepRollout, load_state
from safework_rl.config import RlConfig
from safework_rl.curriculum import Curriculum
from safework_rl.evaluate import policy_evaluation
from safework_rl.hints import idle_constants, why_idle
from safework_rl.losses.trl import TrlLoss
from safework_rl.measures import learns
from safework_rl.monitor import Monitor
from safework_rl.objectives import Objective, RegisteredReward, Routes, TaskRewards
from safework_rl.preflight import preflight
from safework_rl.prompts import Prompts
from safework_rl.reference import as_reference, kl_counts, refuse_other_model
from safework_rl.registry import REWARDS
from safework_rl.routing import JUDGE_ALL
from safework_rl.signal import TaskSignal, signal_by_task
from safework_rl.step import Episodes, StepContext
from safework_rl.trl_adapter import LadderTrainer

CURVES = (
    "reward",
    "correct",
    "unparsed",
    "unscorable",
    "completions/mean_length",
    "groups/zero_variance",
    "entropy",
    "cpgd/drift",
    "cpgd/clip_share",
    "cpgd/log_ratio",
    "cpgd/drift_force",
    "kl",
    "engine/logprob_gap",
    "choice/",
    "verdict/",
    "refusal/",
    "search/reliability",
    "search/false_certain",
    "search/true_certain",
    "search/lambda",
)
"""Numbers whose first and last values go into the manifest; a name that ends with a slash stands for all numbers below it."""


def train(
    config: RlConfig,
    objective: Objective,
    inputs: Inputs,
    work: WorkDir,
    *,
    phases: Sequence[tuple[Sequence[str], float]],
    task_weights: Mapping[str, float],
    category_weights: Mapping[str, float] | None = None,
    search: Episodes | None = None,
    refill: int = 0,
    unrewarded: Collection[str] = (),
) -> Outcome:
    """Selects the prompts, trains, saves, and summarises the curves.

    Args:
        unrewarded: drawn tasks without a reward: only the KL to the reference trains on their replies.
    """
    model_artifact, data = inputs.one("model"), inputs.one("data")
    warnings = config.warnings()
    for text in warnings:
        work.progress.warn(text)
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    tasks = {task for tasks, _ in phases for task in tasks}
    processor = load_processor(model_artifact.path, trust_remote_code=config.trust_remote_code, pixels=config.pixels)
    for speaker in filter(None, (tokenizer, processor)):
        use_template(speaker, config.chat_template)
    positions = positions_of(read_config(model_artifact.path, trust_remote_code=config.trust_remote_code)) or math.inf

    prompts = Prompts(tokenizer, processor, episodes=search is not None)
    other = inputs.maybe("reference")
    kl_on = partial(kl_counts, kl=config.kl, other=other is not None)
    usable = training_rows(data, work.progress.note)
    idle = [row.id for row in usable if row.task in unrewarded and not kl_on(row)]
    if idle:
        why = "their task has no reward, and the KL does not count there"
        work.progress.note(f"{len(idle)} prompts left out, harmful or not marked as harmless: {why} (such as {idle[0]})")
        usable = [row for row in usable if row.task not in unrewarded or kl_on(row)]
    rows, dropped = _usable_rows(usable, tasks, prompts.length, positions, config)
    for reason, ids in dropped.items():
        work.progress.warn(f"{len(ids)} rows dropped: {reason} (such as {ids[0]})")
    _refuse_dropped(len(rows), dropped, config)
    require_rows(len(rows), data, "prompts of the tasks asked for")
    kl_rows = sum(map(kl_on, rows)) if config.beta else 0
    if config.beta and not kl_rows:
        raise InputError(
            f"the KL to the reference counts on none of the {len(rows)} rows of {data.ref}",
            "beta is above 0, and kl.tasks and kl.harmful leave out every row",
            "change kl.tasks or kl.harmful, or set beta=0",
        )
    curriculum = Curriculum(rows, phases, config.prompts_used, config.prompts_per_rollout, task_weights, config.seed, category_weights)
    order = curriculum.order()
    with work.progress.phase("preflight"):
        trained = inputs.many("verifiers").keys()
        preflight(objective, rows, tasks - set(unrewarded), trained, config.preflight, entries(REWARDS).keys() - trained)

    def load(place: Place) -> PreTrainedModel:
        return load_model(
            model_artifact.path, dtype="float32", trust_remote_code=config.trust_remote_code,
            attn_implementation=config.attn_implementation, place=place,
        )  # fmt: skip

    checkpoint = latest_checkpoint(work)
    try_groups = config.preflight_groups > 0 and checkpoint is None
    model, place = load_to_train(load, config.launch, work, whole=try_groups)
    reference = None
    if other is not None:
        refuse_other_model(other, model_artifact, tokenizer, rows, trust_remote_code=config.trust_remote_code)
        reference = as_reference(load_model(other.path, dtype="float32", trust_remote_code=config.trust_remote_code, place=place))
    elif config.beta and not config.lora:
        # TRL would load it from the folder that the model's configuration names, which is an adapter's base
        reference = as_reference(load(place))
    disable_dropout(model)
    with_images = any(row.images for row in rows)
    if config.train_layers:
        train_top_layers(model, config.train_layers)
    trainer = LadderTrainer(
        run=StepContext(config, objective, rows, curriculum, prompts, search, refill, unrewarded, kl_on, work.world, prompts.ahead),
        work=work,
        folder=model_artifact.path,
        processor=processor if with_images else None,
        reference=reference,
        model=model,
        args=grpo_arguments(config, work, place),
        train_dataset=Dataset.from_dict({"prompt": [rows[i].prompt for i in order], "row": order}),
        processing_class=tokenizer,
        peft_config=lora_config(config.lora, model),
    )
    if processor is not None and not config.train_vision:
        freeze_vision(trainer.model)  # with the adapters in it
    trainer.add_callback(KeepRollout(trainer))
    signals: dict[str, TaskSignal] = {}
    if try_groups:
        with work.progress.phase("preflight of groups"), trainer.engine() as engine:
            signals = signal_by_task(engine, trainer.run, config.preflight_groups)
        for task, signal in signals.items():
            work.progress.note(f"{task}: {signal.sentence}")
            if not signal.varying:
                work.progress.warn(f"no sampled group of the task {task} has replies that earn different rewards ({signal.sentence})")
    load_state(trainer, checkpoint, forked=checkpoint is not None and read_mark(checkpoint)["forked"])
    callbacks: list[TrainerCallback] = [Monitor(work, config.max_idle_steps)]
    asked = Prompts(tokenizer, processor, episodes=search is not None)  # of their own: another file's rows may have the same ids
    evaluation = policy_evaluation(config, inputs, work, engine=trainer.engine, encode=asked, positions=positions, search=search)
    models = (trainer.model, trainer.ref_model)
    with towers_in_every_pass(models, processor, images=with_images, launch=config.launch, world=work.world) as towers:
        state = run_training(
            trainer,
            work,
            launch=config.launch,
            max_skipped=config.max_skipped_updates,
            callbacks=[*callbacks, *towers],
            evaluation=evaluation,
            cycle=config.rollout_steps,
        )
    with work.progress.phase("save"):
        again: Place = "device" if place == "device" else "host"
        whole, adapter = trained_model(trainer, work.world, partial(load, again), config.lora, model_artifact)
        if whole is None:
            return Outcome()
        dtype = saved_dtype(config.save_dtype, model_artifact.path)
        save_model(whole, processor or tokenizer, work.output, dtype=dtype, adapter=adapter)
    _, why = after_training("keeping the samples", work, lambda: trainer.samples.write_parquet(work.output / RECORD / "samples.parquet"))
    outcome = Outcome(
        metrics={"steps": state.global_step, "rows": len(rows), "dropped": {k: len(v) for k, v in dropped.items()}}
        | ({"kl_rows": kl_rows} if config.beta else {})
        | ({"left_out": len(idle)} if idle else {})
        | ({"preflight": {task: asdict(signal) for task, signal in signals.items()}} if signals else {})
        | _curve_ends(state.log_history),
        seeds={
            "prompts, order, sampling of each step": f"seed={config.seed}",
            "matrix products": "not pinned: other hardware or thread counts round differently, and sampling amplifies it",
            **dated(tokenizer),
        },
        chat_template_hash=template_hash(tokenizer),
        notes=warnings,
    )
    if evaluation is not None:
        evaluation.record(outcome, state)
    write_model_card(
        work.output,
        stage=identity(work).get("stage", "rl"),
        config=config,
        inputs=inputs,
        steps=state.global_step,
        evaluation=outcome.metrics.get("evaluation"),
    )
    if why:
        outcome.not_measured(why)
    if cut := {name: counts for name, verifier in objective_verifiers(objective).items() if (counts := cut_for(verifier))}:
        outcome.metrics["cut_for_verifiers"] = cut  # since this start of the run, and of this process's share
        for name, counts in cut.items():
            what = f"the verifier {name} read {counts['truncated']} of {counts['judged']} replies without a part"
            outcome.notes.append(f"{what}: with the prompt they exceed its max_length")
            work.progress.warn(outcome.notes[-1])
    history = read_metrics(work.metrics_path)
    skipped = {entry["step"] for entry in state.log_history if "skipped_update" in entry}
    if held_by_nothing := idle_constants(history, config.beta):
        outcome.notes.append(held_by_nothing)
        work.progress.warn(held_by_nothing)
    made = sum(learns(entry) and entry["step"] not in skipped for entry in state.log_history if "grad_norm" in entry)
    outcome.metrics |= {
        "updates": made,
        "steps_without_gradient": state.global_step - made - len(skipped),
        "skipped_updates": len(skipped),
        "dtype": str(dtype).removeprefix("torch."),
    }
    if made == 0:
        what = "no update was made" if skipped else "no step had a gradient"
        nothing = f"{what}: {why_idle(history, len(skipped))}; nothing was learnt"
        if config.require_gradient or skipped:
            outcome.failed_gates.append(nothing if skipped else f"{nothing} (require_gradient=false accepts that)")
        else:
            work.progress.warn(nothing)
    return outcome


def objective_verifiers(objective: Objective) -> Mapping[str, Verifier]:
    """The verifiers of an objective by name; none where it has no rewards by task."""
    rewards = getattr(objective, "rewards", None)
    return rewards.verifiers if isinstance(rewards, TaskRewards) else {}


def task_rewards(config: RlConfig, routes: Routes, inputs: Inputs, world: World) -> TaskRewards:
    """The rewards of the routes: verifiers that were given, rules, and registered rewards, each loaded once. Any other name is in the route
    of a task that is not drawn: the plan refuses it elsewhere."""
    given, registered = inputs.many("verifiers"), entries(REWARDS)
    verifiers: dict[str, Verifier] = {}
    for name in sorted({name for route in routes.values() for name in route} | JUDGE_ALL):
        if name in given:
            verifiers[name] = load_verifier(given[name], trust_remote_code=config.trust_remote_code)
        elif names_rule(name):
            verifiers[name] = rule_verifier(name)
        elif name in registered:
            verifiers[name] = RegisteredReward(name, load_registered(REWARDS, name, "reward"))
    return TaskRewards(routes, verifiers, config.format, config.language, config.correct_threshold, world)


def _usable_rows(
    rows: list[Row],
    tasks: set[str],
    length_of: Callable[[Row], int],
    positions: float,
    config: RlConfig,
) -> tuple[list[Row], dict[str, list[str]]]:
    """Rows of the tasks, and reason → ids of those that cannot be trained on.

    Args:
        length_of: row → tokens of its prompt.
        positions: of the model, for prompt and reply together.
    """
    kept: list[Row] = []
    dropped: dict[str, list[str]] = {}
    longest = positions - config.max_completion_length
    for row in rows:
        if row.task not in tasks:
            continue
        try:
            length = length_of(row)
        except TemplateError as error:
            dropped.setdefault(error.what, []).append(row.id)
            continue
        if length > config.max_prompt_length:
            dropped.setdefault(f"prompt longer than max_prompt_length={config.max_prompt_length} tokens", []).append(row.id)
        elif length > longest:
            reason = f"prompt longer than the {longest} tokens that max_completion_length={config.max_completion_length} leaves of the "
            dropped.setdefault(f"{reason}model's {positions} positions", []).append(row.id)
        else:
            kept.append(row)
    return kept, dropped


def _refuse_dropped(kept: int, dropped: Mapping[str, Sequence[str]], config: RlConfig) -> None:
    """Refuses to train where more than ``max_dropped`` of the rows cannot be used."""
    lost = sum(len(ids) for ids in dropped.values())
    if lost > config.max_dropped * (kept + lost):
        reason, ids = max(dropped.items(), key=lambda item: len(item[1]))
        raise InputError(
            f"{lost} of {kept + lost} rows cannot be trained on; {len(ids)} of them: {reason} (such as {ids[0]})",
            f"max_dropped accepts {config.max_dropped:.0%}; the rest would be another data set than the one that was given",
            "change the lengths, the data or the chat template, or raise max_dropped",
        )


def grpo_arguments(config: RlConfig, work: WorkDir, place: Place = "device") -> GRPOConfig:
    """TRL's settings of a run.

    Args:
        place: where the model was read to.
    """
    shared = config.model_dump(
        include={
            "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "max_steps", "num_generations",
            "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations", "max_completion_length",
            "temperature", "beta", "gradient_checkpointing",
        }
    )  # fmt: skip
    loss = config.policy_loss
    if isinstance(loss, TrlLoss):
        shared |= loss.arguments()
    return training_arguments(
        GRPOConfig,
        work,
        seed=config.seed,
        save_steps=config.save_steps,
        tracking=config.tracking,
        launch=config.launch,
        place=place,
        warmup_steps=warmup_share(config.warmup_ratio),
        steps_per_generation=config.passes_per_rollout,
        bf16=multiplies_in_bf16(config),
        use_bias_correction_kl=False,  # TRL's default multiplies the KL by the ratio; the official scripts do not
        shuffle_dataset=False,  # the order is the curriculum's
        remove_unused_columns=False,
        **shared,
    )


def _curve_ends(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the first and the last fifth of the steps: one step's mean is mostly noise."""
    logged = sorted({name for entry in history for name in entry})
    names = [name for curve in CURVES for name in logged if name == curve or (curve.endswith("/") and name.startswith(curve))]
    ends: dict[str, Any] = {}
    for name in names:
        values = [entry[name] for entry in history if entry.get(name) is not None]
        if values:
            fifth = max(1, len(values) // 5)
            ends[name] = {"first": significant(fmean(values[:fifth])), "last": significant(fmean(values[-fifth:]))}
    return ends


def significant(value: float) -> float:
    """Four digits: a drift of 3e-06 is not 0."""
    return float(f"{value:.4g}")
