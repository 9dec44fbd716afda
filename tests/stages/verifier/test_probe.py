"""The probe against the conditions that its minimum must meet."""

from __future__ import annotations

import pytest
import torch

from safework_cli.core.launch.world import World
from safework_verifier.train import probe
from safework_verifier.train.probe import FEATURES, fit_probe


def test_the_gradient_vanishes_at_the_fitted_head():
    generator = torch.Generator().manual_seed(0)
    gold = torch.arange(60) % 3
    features = torch.randn(60, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0]) + gold[:, None]
    weight, l2 = [1.0, 2.0, 0.5], 0.01
    rows = fit_probe(features, gold.tolist(), weight, l2).double()
    # d/dV of mean_n w CE(V z, y) + l2 |V|² = mean_n w (p − 1[y]) zᵀ + 2 l2 V, with z = x / std and V = rows · std
    scale = features.double().std(0)
    z, v = features.double() / scale, rows * scale
    error = torch.softmax(z @ v.T, -1) - torch.nn.functional.one_hot(gold, 3)
    error *= torch.tensor(weight)[gold][:, None]
    gradient = error.T @ z / 60 + 2 * l2 * v
    assert gradient.abs().max() < 1e-4
    assert v.abs().max() > 0.1


def test_the_scale_of_a_feature_does_not_matter():
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    gold = (features[:, 0] > 0).long().tolist()
    plain = fit_probe(features, gold, [1.0, 1.0], 0.01)
    stretched = fit_probe(features * torch.tensor([100.0, 1.0, 0.01]), gold, [1.0, 1.0], 0.01)
    assert stretched * torch.tensor([100.0, 1.0, 0.01]) == pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize(("rank", "writes"), [(0, True), (1, False)])
def test_only_the_first_process_writes_the_features(tmp_path, monkeypatch, rank, writes):
    waited = []
    monkeypatch.setattr(probe, "barrier", lambda world: waited.append((tmp_path / FEATURES).exists()))
    probe._save(torch.ones(2, 3), tmp_path / FEATURES, World(rank, 2, rank))
    assert waited == [writes] and [path.name for path in tmp_path.iterdir()] == ([FEATURES] if writes else [])
