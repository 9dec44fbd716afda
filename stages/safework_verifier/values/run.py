"""The run of ``safework verifier values``, from top to bottom.

Shapes: B sequences, N rows, D hidden size, P principles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from safework_cli.core.artifacts import Artifact
from safework_cli.core.stage import Outcome, WorkDir
from safework_cli.data.dataset import training_rows
from safework_cli.data.row import Row
from safework_cli.models.folder import positions_of
from safework_cli.models.layers import train_top_layers
from safework_cli.models.load import cast_weights, load_model, load_tokenizer, pick_dtype, save_model, template_hash
from safework_cli.statistics.classification import cluster_bootstrap, estimate
from safework_cli.training.after import after_training
from safework_cli.training.loop import optimisation_of, run_training, training_arguments
from safework_cli.training.sampler import StepSampler, step_sampler
from safework_cli.verifiers.contract import Exchange
from safework_cli.verifiers.values import PrefixWriter, ValueHeads, ValueModel, ValueSpec, hidden_ends, save_heads
from safework_verifier.values.config import ValuesConfig
from safework_verifier.values.prefixes import Prefixes, mean_values, routing_targets, take_apart, valued_rows

TEMPERATURES = np.exp(np.linspace(np.log(0.2), np.log(5.0), 61))


class WithHeads(nn.Module):
    """Backbone and heads as the one module that the trainer moves, saves and resumes. The output embedding stays outside: it is not used,
    and may share its weights with the input's."""

    def __init__(self, backbone: Any, heads: ValueHeads):
        super().__init__()
        self.backbone, self.heads = backbone.base_model, heads

    def forward(self, rows: Sequence[tuple[list[int], int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of values and routing, (B, P) each."""
        return self.heads(*hidden_ends(self.backbone, rows, pad_id))


class Examples(Dataset[dict[str, Any]]):
    """Tokenized prefixes with their values (NaN where a principle has none) and the routing that their prompt asks for."""

    def __init__(self, rows: Sequence[Row], principles: Sequence[str], writer: PrefixWriter):
        routing = routing_targets(rows, principles)
        self.written = [writer.write(Exchange.of(row)) for row in rows]
        self.values = [[row.meta["values"].get(name, float("nan")) for name in principles] for row in rows]
        self.routing = [routing[row.group] for row in rows]

    def __len__(self) -> int:
        return len(self.written)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"written": self.written[index], "values": self.values[index], "routing": self.routing[index]}


class ValueTrainer(Trainer):
    """A Trainer whose loss is the mean binary cross-entropy of the values against their Monte-Carlo estimates, over the principles that a
    prefix has, and the cross-entropy of the routing against its target."""

    def __init__(self, *, routing_weight: float, head_learning_rate: float, pad_id: int, **kwargs: Any):
        self.routing_weight, self.head_learning_rate, self.pad_id = routing_weight, head_learning_rate, pad_id
        super().__init__(data_collator=_as_they_are, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> torch.Tensor:
        logits_BP, routing_BP = model([example["written"] for example in inputs], self.pad_id)
        return value_loss(
            logits_BP,
            torch.tensor([example["values"] for example in inputs], device=logits_BP.device),
            routing_BP,
            torch.tensor([example["routing"] for example in inputs], device=logits_BP.device),
            self.routing_weight,
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs  # plain lists: the tensors are made on the model's device

    def create_optimizer(self, model: Any = None) -> Any:
        """The heads begin at zero and learn faster than the backbone."""
        if self.optimizer is None:
            target: Any = self.model
            heads = [p for name, p in target.named_parameters() if name.startswith("heads.")]
            rest = [p for name, p in target.named_parameters() if not name.startswith("heads.") and p.requires_grad]
            groups = [{"params": heads, "lr": self.head_learning_rate, "weight_decay": 0.0}]
            if rest:
                groups.append({"params": rest, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay})
            self.optimizer = torch.optim.AdamW(groups, betas=(self.args.adam_beta1, self.args.adam_beta2), eps=self.args.adam_epsilon)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> StepSampler:
        data = self.train_dataset
        assert isinstance(data, Examples)
        return step_sampler(self, [len(ids) for ids, _ in data.written])


def _as_they_are(examples: Any) -> Any:
    """Examples of many lengths: they are padded where the model reads them."""
    return examples


def value_loss(
    logits_BP: torch.Tensor, values_BP: torch.Tensor, routing_BP: torch.Tensor, target_BP: torch.Tensor, routing_weight: float
) -> torch.Tensor:
    """mean over known (b, p) of BCE(σ(logit), value) + routing_weight · mean_b CE(softmax(routing), target)."""
    known_BP = ~values_BP.isnan()
    loss_BP = binary_cross_entropy_with_logits(logits_BP, values_BP.nan_to_num(0.5), reduction="none")
    value = (loss_BP * known_BP).sum() / known_BP.sum().clamp(min=1)
    return value + routing_weight * cross_entropy(routing_BP, target_BP)


def train(config: ValuesConfig, model_artifact: Artifact, data: Artifact, work: WorkDir) -> Outcome:
    """Splits, trains, fits temperatures, measures, saves."""
    rows, principles = valued_rows(training_rows(data, work.progress.note), data.ref)
    parts = take_apart(rows, config.eval_fraction, config.seed)
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(model_artifact.path, trust_remote_code=config.trust_remote_code)
    backbone = load_model(model_artifact.path, dtype="float32", trust_remote_code=config.trust_remote_code)
    if config.train_layers == 0:
        backbone.requires_grad_(False)
    elif config.train_layers:
        train_top_layers(backbone, config.train_layers)
    heads = ValueHeads(backbone.config.get_text_config().hidden_size, len(principles)).to(backbone.device)
    spec = ValueSpec(principles=principles, temperatures=[1.0] * len(principles), max_length=config.max_length)
    with work.progress.phase("tokenize", len(parts.train)):
        examples = Examples(parts.train, principles, PrefixWriter(tokenizer, config.max_length, positions_of(backbone.config)))
    trainer = ValueTrainer(
        model=WithHeads(backbone, heads),
        args=_arguments(config, work),
        train_dataset=examples,
        routing_weight=config.routing_weight,
        head_learning_rate=config.head_learning_rate,
        pad_id=tokenizer.pad_token_id,
    )
    state = run_training(trainer, work)

    backbone = cast_weights(backbone, pick_dtype(config.dtype)).eval()
    values = ValueModel(backbone, tokenizer, heads.eval(), spec, batch_size=config.per_device_eval_batch_size)
    metrics, why = after_training("measuring", work, lambda: measure(values, parts, config.seed, work))
    with work.progress.phase("save"):
        save_model(backbone, tokenizer, work.output)
        save_heads(heads, work.output)
        spec.write(work.output)
    made = Outcome(
        metrics=(metrics or {"rows": {"train": len(parts.train)}}) | {"steps": state.global_step},
        seeds={"split, order of rows": f"seed={config.seed}", "matrix products": "not pinned: other hardware rounds differently"},
        chat_template_hash=template_hash(tokenizer),
    )
    if metrics is None:
        made.not_measured(f"{why}; the temperatures stay 1, and nothing is known of the values")
        return made
    (work.output / "verifier_card.md").write_text(card(spec, made.metrics, model_artifact.ref, data.ref), encoding="utf-8")
    worse = [name for name in principles if metrics["principles"][name]["skill"]["value"] <= 0]
    made.notes += [f"{name}: the values are no better than the mean over all prefixes" for name in worse]
    for note in made.notes:
        work.progress.warn(note)
    return made


def _arguments(config: ValuesConfig, work: WorkDir) -> TrainingArguments:
    return training_arguments(
        TrainingArguments,
        work,
        seed=config.seed,
        save_steps=config.save_steps,
        remove_unused_columns=False,
        **optimisation_of(config),
    )


def measure(values: ValueModel, parts: Prefixes, seed: int, work: WorkDir) -> dict[str, Any]:
    """Fits each principle's temperature on one half of the held-out prompts, and measures on the other, beside two baselines."""
    spec = values.spec
    with work.progress.phase("calibrate", len(parts.calibration)):
        logits_NP, _ = _logits(values, parts.calibration)
        spec.temperatures = [
            round(fit_temperature(logits_NP[:, p], _gold(parts.calibration, name)), 4) for p, name in enumerate(spec.principles)
        ]
    with work.progress.phase("evaluate", len(parts.report)):
        logits_NP, routing_NP = _logits(values, parts.report)
    means, targets = mean_values(parts.train, spec.principles), routing_targets(parts.report, spec.principles)
    found: dict[str, Any] = {
        "principles": {},
        "rows": {"train": len(parts.train), "calibration": len(parts.calibration), "report": len(parts.report)},
    }
    for p, name in enumerate(spec.principles):
        gold_N = _gold(parts.report, name)
        known = np.flatnonzero(~np.isnan(gold_N))
        told_N = 1 / (1 + np.exp(-logits_NP[:, p] / spec.temperatures[p]))
        groups = [parts.report[i].group for i in known]
        found["principles"][name] = {
            "temperature": spec.temperatures[p],
            "mean_value": round(float(gold_N[known].mean()), 4),
            "squared_error": _boot(groups, known, lambda rows, t=told_N, g=gold_N: float(((t[rows] - g[rows]) ** 2).mean()), seed),
            "skill": _boot(groups, known, lambda rows, t=told_N, g=gold_N, m=means[p]: skill(t[rows], g[rows], m), seed),
            "ranking": _boot(groups, known, lambda rows, t=told_N, g=gold_N: concordance(t[rows], g[rows]), seed),
            "calibration_error": _boot(groups, known, lambda rows, t=told_N, g=gold_N: calibration_error(t[rows], g[rows]), seed),
        }
    weight_NP = torch.softmax(torch.tensor(routing_NP), -1).numpy()
    chosen_N = weight_NP.argmax(1)
    hits = [int(np.argmax(targets[row.group])) == chosen_N[i] for i, row in enumerate(parts.report)]
    every = np.arange(len(hits))
    hits_N = np.array(hits, dtype=float)
    found["routing"] = _boot([row.group for row in parts.report], every, lambda rows: float(hits_N[rows].mean()), seed)
    return found


def _logits(values: ValueModel, rows: Sequence[Row]) -> tuple[Any, Any]:
    logits_NP, routing_NP = values.logits([values.writer.write(Exchange.of(row)) for row in rows])
    return logits_NP.double().numpy(), routing_NP.double().numpy()


def _gold(rows: Sequence[Row], name: str) -> Any:
    """Monte-Carlo values of a principle, NaN where a row has none, (N,)."""
    return np.array([row.meta["values"].get(name, np.nan) for row in rows])


def _boot(groups: list[str], known: Any, statistic: Any, seed: int) -> dict[str, Any]:
    low, high = cluster_bootstrap(groups, lambda rows: statistic(known[rows]), seed)
    return estimate(len(known), statistic(known), (low, high))


def fit_temperature(logits_N: Any, gold_N: Any) -> float:
    """The temperature on a grid that minimises the binary cross-entropy against soft targets; 1 where nothing is known."""
    known = ~np.isnan(gold_N)
    if not known.any():
        return 1.0
    z_N, y_N = logits_N[known], gold_N[known]
    losses = [float((np.logaddexp(0, z_N / t) - y_N * z_N / t).mean()) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def skill(told_N: Any, gold_N: Any, mean: float) -> float:
    """1 - squared error over that of the mean: the share of the spread that the values explain; below 0 they are worse than the mean."""
    spread = float(((gold_N - mean) ** 2).mean())
    return 1 - float(((told_N - gold_N) ** 2).mean()) / spread if spread > 0 else 0.0


def concordance(told_N: Any, gold_N: Any) -> float:
    """Share of pairs with different values that are put in the right order, ties half; 0.5 is chance (Harrell's C)."""
    order = np.sign(gold_N[:, None] - gold_N[None, :])
    said = np.sign(told_N[:, None] - told_N[None, :])
    differ = order != 0
    return float((((order == said) + 0.5 * (said == 0)) * differ).sum() / differ.sum()) if differ.any() else 0.5


def calibration_error(told_N: Any, gold_N: Any, bins: int = 10) -> float:
    """Mean distance between the mean value told and the mean value met over equal bins, weighted by rows (ECE for soft outcomes)."""
    bin_N = np.minimum((told_N * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_N, weights=told_N - gold_N, minlength=bins)
    return float(np.abs(gap).sum() / len(gold_N))


def card(spec: ValueSpec, metrics: dict[str, Any], model: str, data: str) -> str:
    """Markdown text."""
    rows = metrics["rows"]
    lines = [
        "# Principled value model",
        "",
        f"Scores a prefix of a reply for {', '.join(spec.principles)}, and weighs them by the prompt. Made from `{model}`; learned from "
        f"{rows['train']} prefixes of `{data}`, temperatures fitted on {rows['calibration']}, measured on {rows['report']} of prompts "
        "that neither saw.",
        "",
        "| principle | mean value | squared error | skill over the mean | right order of pairs | calibration error | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in metrics["principles"].items():
        cells = [_with_interval(found[key]) for key in ("squared_error", "skill", "ranking", "calibration_error")]
        lines.append(f"| {name} | {found['mean_value']:.3f} | {' | '.join(cells)} | {found['skill']['n']} |")
    lines += [
        "",
        f"The principle that decides most for a prompt gets the largest weight for {_with_interval(metrics['routing'])} of the prefixes.",
        "Intervals are bootstrapped over prompts, 95 %. The values estimate Monte-Carlo means, which are noisy themselves.",
        "",
    ]
    return "\n".join(lines)


def _with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.3f} ({low:.3f} – {high:.3f})"
