"""The operator in other parts of torch: the flop counter, vmap and functional derivatives."""

import pytest
import torch
from cases import UGLY, Geometry, make, relative
from torch import Tensor
from torch.autograd import forward_ad, grad
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from ops import deform_conv2d


def convolve(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    return deform_conv2d(input, offset, weight, None, *UGLY.steps, mask)


def leaves(**how) -> list[Tensor]:
    return list(make(UGLY, bias=False, **how).values())


# ---- flops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_counts_the_flops_of_a_convolution(mask: bool, groups: int) -> None:
    geometry = Geometry(3, 12, (7, 9), 8, (3, 2), (2, 1), (1, 0), (2, 1), groups, 3)
    tensors = make(geometry, mask=mask)

    def deformable() -> Tensor:
        return deform_conv2d(
            *(tensors[name] for name in ("input", "offset", "weight", "bias")),
            *geometry.steps,
            tensors.get("mask"),
        )

    def plain() -> Tensor:
        names = ("input", "weight", "bias")
        return conv2d(*(tensors[name] for name in names), *geometry.steps, groups=groups)

    def count(function, backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            output = function()
            if backward:
                output.sum().backward()
        return counter.get_total_flops()

    forward = 2 * 3 * (3 * 8) * 8 * (12 // groups) * (3 * 2)  # 2 N P O (C / groups) K
    assert count(deformable, False) == count(plain, False) == forward
    assert count(deformable, True) == 3 * forward
    if groups == 1:  # with groups torch counts a convolution's weight gradient `groups` times
        assert count(plain, True) == 3 * forward


# ---- vmap ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("mapped", [(0, None, None, None), (1, 0, 2, 0), (None, None, 0, None)])
def test_vmap_is_a_loop(mapped: tuple[int | None, ...]) -> None:
    several = [leaves(seed=seed) for seed in range(3)]
    arguments = [
        several[0][i] if dim is None else torch.stack([case[i] for case in several], dim)
        for i, dim in enumerate(mapped)
    ]

    def loop() -> Tensor:
        pick = [
            [
                t if dim is None else t.select(dim, n)
                for t, dim in zip(arguments, mapped, strict=True)
            ]
            for n in range(3)
        ]
        return torch.stack([convolve(*tensors) for tensors in pick])

    actual, expected = torch.func.vmap(convolve, mapped)(*arguments), loop()
    assert torch.equal(actual, expected)
    gradients = zip(grad(actual.sum(), arguments), grad(expected.sum(), arguments), strict=True)
    assert all(relative(a, e) < 1e-14 for a, e in gradients)


# ---- unsupported derivatives raise instead of being zero --------------------------------------


@pytest.mark.parametrize("which", range(4))
def test_forward_mode_raises(which: int) -> None:
    tensors = [t.detach() for t in leaves()]
    with forward_ad.dual_level():
        tensors[which] = forward_ad.make_dual(tensors[which], torch.ones_like(tensors[which]))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            convolve(*tensors)


def test_jvp_raises() -> None:
    tensors = tuple(t.detach() for t in leaves())
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(convolve, tensors, tensors)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.hessian])
def test_functional_derivatives_raise(transform) -> None:
    # torch's custom operators do not support these; torch.autograd.grad works.
    tensors = [t.detach() for t in leaves()]
    with pytest.raises(RuntimeError, match="setup_context"):
        transform(lambda *arguments: convolve(*arguments).sum())(*tensors)
