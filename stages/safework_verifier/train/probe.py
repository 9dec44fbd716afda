"""A linear probe as the verifier's head: the label codes' rows of the output embedding, fitted on frozen features.

Where a backbone is small, shallow or trained for few steps, logistic regression on its last hidden state finds in one forward pass what
gradient steps from the model's own head take epochs for. Without further training it is a cheap verifier; before fine-tuning it is LP-FT
(Kumar et al. 2022, arXiv 2202.10054), which protects the features from the gradients of a random head.

Shapes: N rows, D hidden size, C labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from safework_cli.core.launch.world import World
from safework_cli.core.stage import WorkDir
from safework_cli.training.group import barrier, gathered
from safework_cli.verifiers.labels import Openings, judge_batch, label_logits
from safework_verifier.train.trainer import Examples

FEATURES = "features.safetensors"
MAX_ITERATIONS = 200


def last_features(model: Any, examples: Examples, pad_id: int, batch_size: int, work: WorkDir) -> torch.Tensor:
    """The input of the output embedding at the last position of each prompt, (N, D) float32. Saved in the run folder, for a resumed run."""
    kept = work.checkpoints / FEATURES
    if all(gathered(work.world, [kept.exists()])):  # all processes read it, or none: the first one may write it while others start
        return load_file(kept)["features_ND"]
    features: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []  # of the last pass, which may have been an opening's
    judged: list[int] = []
    model.eval()
    lengths = examples.lengths
    order = sorted(range(len(examples)), key=lambda i: lengths[i])  # similar lengths together: less padding
    openings = Openings(model)
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0][:, -1].float().cpu()))
    try:
        with torch.inference_mode(), work.progress.phase("features", len(examples)) as phase:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                prompts = [examples.prompt(i) for i in rows]
                for opening, group in openings.groups(prompts):
                    label_logits(model, judge_batch(model, [prompts[i] for i in group], pad_id, opening), [0])
                    features.append(seen[-1])
                    seen.clear()
                    judged += [rows[i] for i in group]
                phase.advance(len(rows))
    finally:
        handle.remove()
    features_ND = torch.empty(len(examples), features[0].shape[1])
    features_ND[judged] = torch.cat(features)
    _save(features_ND, kept, work.world)
    return features_ND


def _save(features_ND: torch.Tensor, path: Path, world: World) -> None:
    """The first process writes: two that write and rename one file lose it to each other."""
    if world.first:
        partial = path.with_suffix(".partial")
        save_file({"features_ND": features_ND}, partial)
        partial.replace(path)  # after a kill there is a complete file or none
    barrier(world)


def fit_probe(features_ND: torch.Tensor, gold_N: Sequence[int], weight_C: Sequence[float], l2: float) -> torch.Tensor:
    """Multinomial logistic regression: the head's rows, (C, D) float32.

    Minimises mean_n w(y_n) CE(V z_n, y_n) + l2 ‖V‖² over z = x / std(x) by L-BFGS in float64, and returns V / std. It has no intercept,
    because an output embedding has none: hidden states have dimensions that are almost constant, and these have its role.
    """
    gold = torch.tensor(list(gold_N))
    weight_N = torch.tensor(list(weight_C), dtype=torch.float64)[gold]
    scale_D = features_ND.double().std(0).clamp(min=1e-6)
    z_ND = features_ND.double() / scale_D
    v_CD = torch.zeros(len(weight_C), features_ND.shape[1], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([v_CD], max_iter=MAX_ITERATIONS, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = (weight_N * cross_entropy(z_ND @ v_CD.T, gold, reduction="none")).mean() + l2 * v_CD.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return (v_CD.detach() / scale_D).float()


def write_head(model: Any, code_ids: Sequence[int], rows_CD: torch.Tensor) -> None:
    """Writes the rows into the output embedding, after untying it from the input embedding, which must not change."""
    head = model.get_output_embeddings()
    weight_VD = head.weight.detach().clone()
    weight_VD[list(code_ids)] = rows_CD.to(weight_VD)
    head.weight = torch.nn.Parameter(weight_VD, requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False
