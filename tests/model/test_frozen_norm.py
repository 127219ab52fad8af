"""The frozen norm compared with torchvision's, which computes scale and shift anew every time."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torchvision
from dispatched import Dispatched
from torch import Tensor, nn

from detector.model.frozen_norm import FrozenBatchNorm2d

INPUT = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


def state(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    names = ("weight", "bias", "running_mean", "running_var")
    return {name: torch.rand(5, generator=rng) for name in names}


def layer(seed: int = 1) -> FrozenBatchNorm2d:
    """Return a layer that has computed its scale and shift."""
    result = FrozenBatchNorm2d(5, 1e-3)
    result.load_state_dict(state(seed))
    result(INPUT)
    return result


def assert_as_torchvision(ours: FrozenBatchNorm2d, dtype: torch.dtype = torch.float32) -> None:
    theirs = torchvision.ops.FrozenBatchNorm2d(5, 1e-3).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        assert torch.equal(ours(INPUT.to(dtype)), theirs(INPUT.to(dtype)))


def test_only_the_first_pass_computes_the_scale() -> None:
    assert_as_torchvision(layer())
    ours = layer()
    with Dispatched() as dispatched:
        ours(INPUT)
    assert dispatched.names == ["mul", "add"]


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_a_buffer_changes(name: str) -> None:
    ours = layer()
    getattr(ours, name).mul_(2)
    assert_as_torchvision(ours)
    setattr(ours, name, torch.full((5,), 3.0))
    assert_as_torchvision(ours)
    torch._foreach_lerp_(list(ours.buffers()), list(layer(2).buffers()), 0.5)  # as EMA does
    assert_as_torchvision(ours)


@pytest.mark.parametrize("assign", [False, True])
def test_other_weights_are_loaded(assign: bool) -> None:
    ours = layer()
    ours.load_state_dict(state(2), assign=assign)
    assert_as_torchvision(ours)


def test_it_is_moved() -> None:
    ours = layer()
    assert_as_torchvision(ours.double(), torch.float64)
    assert_as_torchvision(ours.float())
    assert ours.to("meta")(INPUT.to("meta")).device.type == "meta"
    ours.to_empty(device="cpu").load_state_dict(state(3))
    assert_as_torchvision(ours)


def as_file(ours: FrozenBatchNorm2d) -> FrozenBatchNorm2d:
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    return torch.load(saved, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, as_file])
def test_a_copy_changes(duplicate: Callable[[FrozenBatchNorm2d], FrozenBatchNorm2d]) -> None:
    ours = layer()
    for buffer in ours.buffers():
        buffer.mul_(2).mul_(2)
    assert_as_torchvision(ours)
    for times in range(5):  # one of them gives the copy's buffers the original's versions
        other = duplicate(ours)
        for _ in range(times):
            for buffer in other.buffers():
                buffer.mul_(2)
        assert_as_torchvision(other)
    assert_as_torchvision(ours)
    assert ours.state_dict().keys() == torchvision.ops.FrozenBatchNorm2d(5).state_dict().keys()


def test_inference_mode_before_training() -> None:
    ours = FrozenBatchNorm2d(5, 1e-3)
    with torch.inference_mode():
        ours(INPUT)
        within = layer()  # whose buffers have no versions
        assert_as_torchvision(within)
    nn.Sequential(nn.Conv2d(5, 5, 1), ours)(INPUT).sum().backward()


def test_gradients() -> None:
    ours, theirs = layer(), torchvision.ops.FrozenBatchNorm2d(5, 1e-3)
    theirs.load_state_dict(ours.state_dict())
    grads = []
    for one in (ours, theirs):
        leaf = INPUT.clone().requires_grad_()
        one(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_it_compiles_to_one_graph() -> None:
    ours = layer()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(INPUT), ours(INPUT))
    ours.weight.mul_(2)
    assert torch.equal(compiled(INPUT), ours(INPUT))
