"""What a forked checkpoint's optimiser keeps, and what the new run's settings replace."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from safework_cli.training.callbacks import _ForkedRate


def test_each_group_of_a_forked_optimiser_gets_its_own_rate_and_decay():
    """As of `verifier values`: heads with a higher rate and without decay, then the backbone."""

    def create_optimizer():
        heads, rest = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        return torch.optim.AdamW([
            {"params": [heads], "lr": 1e-2, "weight_decay": 0.0}, {"params": [rest], "lr": 1e-4, "weight_decay": 0.1}
        ])  # fmt: skip

    trainer = SimpleNamespace(create_optimizer=create_optimizer)
    callback = _ForkedRate(trainer)
    optimizer = trainer.create_optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    for group in optimizer.param_groups:  # what the checkpoint brings along
        group |= {"lr": 7.0, "initial_lr": 7.0, "weight_decay": 0.9}
    schedule.base_lrs = [7.0, 7.0]
    callback.on_train_begin(SimpleNamespace(learning_rate=1e-4, weight_decay=0.1), None, None, optimizer=optimizer, lr_scheduler=schedule)
    assert schedule.base_lrs == [1e-2, 1e-4] and schedule.get_last_lr() == [5e-3, 5e-5]
    assert [(group["lr"], group["initial_lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (5e-3, 1e-2, 0.0), (5e-5, 1e-4, 0.1)
    ]  # fmt: skip
