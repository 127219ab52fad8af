"""The frozen norm compared with torchvision's."""

import pytest
import torch
import torchvision
from dispatched import Dispatched
from torch import Tensor

from detector.model.frozen_norm import FrozenBatchNorm2d

INPUT = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
EPS = 1e-3  # not the default


def layers() -> tuple[FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d]:
    """Build our layer and torchvision's, with the same state."""
    rng = torch.Generator().manual_seed(1)
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: torch.rand(5, generator=rng) for name in names}
    ours, theirs = FrozenBatchNorm2d(5, EPS), torchvision.ops.FrozenBatchNorm2d(5, EPS)
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    return ours, theirs


def with_gradient(layer: torch.nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    leaf = image.clone().requires_grad_()
    output = layer(leaf)
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
    return output.detach(), gradient


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_torchvisions(training: bool, dtype: torch.dtype) -> None:
    ours, theirs = (layer.to(dtype).train(training) for layer in layers())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    for actual, expected in zip(
        with_gradient(ours, INPUT.to(dtype)), with_gradient(theirs, INPUT.to(dtype)), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_features_keep_their_dtype(dtype: torch.dtype) -> None:
    # Computed in float32, and rounded once at the end.
    ours, theirs = layers()
    image = INPUT.to(dtype)
    with torch.autocast("cpu", dtype):
        actual, expected = ours(image), theirs(image)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected.to(dtype), rtol=2**-8, atol=1e-6)


def test_a_single_operator() -> None:
    ours, _ = layers()
    with Dispatched() as dispatched, torch.no_grad():
        ours(INPUT)
    assert len(dispatched.names) == 1


def test_it_compiles_to_one_graph() -> None:
    ours, _ = layers()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), ours(INPUT), rtol=1e-6, atol=1e-6)
