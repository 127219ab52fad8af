"""The choice of the memory format. test_benchmark_training.py tests that both compute the same."""

import pytest
import torch

from detector.model.memory_format import training_memory_format

LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    "capability, device, channels, size, expected",
    [
        ("AVX2", "cpu", 256, 800, FIRST),
        ("AVX2", "cpu", 256, 480, FIRST),
        ("AVX2", "cpu", 256, 256, LAST),
        ("AVX2", "cpu", 64, 128, LAST),
        ("AVX2", "cuda", 256, 800, LAST),
        ("AVX512", "cpu", 256, 800, LAST),
        ("DEFAULT", "cpu", 256, 800, LAST),
    ],
)
def test_only_wide_networks_on_large_images_without_avx512(
    capability: str,
    device: str,
    channels: int,
    size: int,
    expected: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    chosen = training_memory_format(torch.device(device), fpn_channels=channels, min_size=size)
    assert chosen == expected
