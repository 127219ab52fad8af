"""The learning rates of single steps agree with those computed by hand."""

import pytest
import torch
from torch.optim import SGD

from detector.training.schedule import lr_schedule


def rates(num_steps: int, **how) -> list[float]:
    """Return the rates at steps 0 to num_steps - 1, after checking a second group at a tenth."""
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    schedule = lr_schedule(optimizer, num_steps=num_steps, **how)
    seen = []
    for _ in range(num_steps):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(0.1 * first)
        seen.append(first)
        optimizer.step()
        schedule.step()
    return seen


def test_warm_up_and_steps() -> None:
    seen = rates(8, warmup_steps=2, milestones=[4, 6], gamma=0.1)
    # 1/1000, then half way to 1: (0.001 + 1) / 2; 1 from step 2; a tenth from step 4; a tenth of
    # that from step 6
    assert seen == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_ends_at_zero() -> None:
    seen = rates(4, warmup_steps=0, milestones=None, gamma=0.1)
    # (1 + cos(pi t / 4)) / 2, which would be 0 at step 4
    assert seen == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
