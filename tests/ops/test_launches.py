"""What a call costs the host of a GPU, with a stand-in for torch's profiler."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from ops import launches


def event(
    device: DeviceType, microseconds: float, *, is_user_annotation: bool = False
) -> SimpleNamespace:
    span = SimpleNamespace(elapsed_us=lambda: microseconds)
    return SimpleNamespace(
        device_type=device, time_range=span, is_user_annotation=is_user_annotation
    )


def test_only_what_runs_on_the_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[SimpleNamespace] = []

    @contextmanager
    def profiled(activities: object):
        recorded.clear()
        yield SimpleNamespace(events=lambda: recorded)

    def call() -> None:
        recorded.append(event(DeviceType.CUDA, 30))
        recorded.append(event(DeviceType.CUDA, 5))
        recorded.append(event(DeviceType.CPU, 1000))
        recorded.append(event(DeviceType.CUDA, 40, is_user_annotation=True))

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(launches, "profile", profiled)
    cost = launches.measure(call)
    assert cost.number == 2
    assert cost.busy == pytest.approx(35e-6)
    assert cost.host > 0


@pytest.mark.cuda
def test_launches_of_a_known_call() -> None:
    a = torch.ones(1000, device="cuda")
    cost = launches.measure(lambda: a.add_(1).mul_(2))
    assert cost.number == 2
    assert 0 < cost.busy < 1e-3
