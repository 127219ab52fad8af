"""Fixtures of the kernels that tests run on. Tests that this machine cannot run are left out: those
of a GPU, and those of kernels for other processors.
"""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

import ops  # noqa: F401  (loads the kernels)

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


CHUNKED = pytest.param("cuda chunked", marks=pytest.mark.cuda)  # without the fused forward


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Do not let GPUs compute convolutions of float32 in TF32, which is torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


# Tests of kernels that this processor lacks are left out below, and counted in the summary.
PORTABLE, AVX2, AVX512, AVX512_BF16, AMX = (
    pytest.param(name, marks=pytest.mark.processor(name))
    for name in ("portable", "avx2", "avx512", "avx512_bf16", "amx")
)


@pytest.fixture(params=[PORTABLE, AVX2, AVX512, AVX512_BF16, AMX, CUDA, CHUNKED])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Put each set of kernels that this machine can run into use, and return its device."""
    yield from _put_to_use(request)


@pytest.fixture(params=[PORTABLE, AVX2, AVX512, AVX512_BF16, AMX])
def cpu_kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Put each set of kernels of the CPU into use, and return its name."""
    for _ in _put_to_use(request):
        yield request.param


@pytest.fixture(params=[PORTABLE, AVX2, AVX512, CUDA])
def double_kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Do the same for the sets that have their own kernels for float64."""
    yield from _put_to_use(request)


def _put_to_use(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param.startswith("cuda"):
        before = torch.ops.deform_conv.use_fused_cuda_forward("chunked" not in request.param)
        yield "cuda"
        torch.ops.deform_conv.use_fused_cuda_forward(before)
    else:
        before = torch.ops.deform_conv.use_cpu_capability(request.param)
        yield "cpu"
        torch.ops.deform_conv.use_cpu_capability(before)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that cannot run here, and count them for the summary of ../conftest.py."""
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
