"""Leaves out what this machine cannot run: tests of a GPU, and of kernels for other processors."""

from collections import Counter

import pytest
import torch

import ops  # noqa: F401  (loads the kernels)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is left out is counted for ../conftest.py, which tells of it."""
    kernels = torch.ops.deform_conv.cpu_capabilities().split()
    left_out: Counter[str] = Counter()
    kept = []
    for item in items:
        processors = [name for mark in item.iter_markers("processor") for name in mark.args]
        missing = [f"a processor with {name}" for name in processors if name not in kernels]
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            missing.append("a GPU")
        left_out.update(missing[:1])
        if not missing:
            kept.append(item)
    config.left_out = left_out  # type: ignore[attr-defined]
    items[:] = kept
