"""The operator against its definition and against torchvision's, on every available device."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import hypothesis.strategies as st
import pytest
import torch
import torchvision
from cases import UGLY, Geometry, make, random_geometry, relative
from hypothesis import HealthCheck, given, settings
from reference import reference
from torch import Tensor
from torch.autograd import grad
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ops import DeformConv2d, deform_conv2d
from ops.deform_conv import _allows_fast_float32 as allows_fast_float32


def call(function, tensors: dict[str, Tensor], geometry: Geometry) -> Tensor:
    """Call a function with the signature that ours and torchvision's share."""
    return function(
        tensors["input"],
        tensors["offset"],
        tensors["weight"],
        tensors.get("bias"),
        *geometry.steps,
        tensors.get("mask"),
    )


def with_gradients(function, tensors: dict[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
    """Return the output, and each tensor's gradient for a fixed random gradient of the output."""
    output = call(function, tensors, geometry)
    rng = torch.Generator().manual_seed(9)
    upstream = torch.randn(output.shape, generator=rng, dtype=torch.float64).to(output)
    gradients = grad(output, list(tensors.values()), upstream)
    return {"output": output, **dict(zip(tensors, gradients, strict=True))}


def converted(tensors: dict[str, Tensor], **how) -> dict[str, Tensor]:
    return {name: t.detach().to(**how).requires_grad_() for name, t in tensors.items()}


# ---- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [True, False])
def test_agrees_with_the_definition(double_kernels: str, mask: bool) -> None:
    tensors = make(UGLY, mask=mask)
    expected = with_gradients(
        lambda i, o, w, b, s, p, d, m: reference(i, o, w, b, s, p, d, m), tensors, UGLY
    )
    actual = with_gradients(deform_conv2d, converted(tensors, device=double_kernels), UGLY)
    torchvisions = with_gradients(torchvision.ops.deform_conv2d, tensors, UGLY)
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-13, name
        assert relative(torchvisions[name], expected[name]) < 1e-13, name  # a fair reference


@pytest.mark.parametrize("seed", range(32))
def test_agrees_with_torchvision(double_kernels: str, seed: int) -> None:
    geometry = random_geometry(seed)
    tensors = make(geometry, seed=seed, mask=seed % 2 == 0, bias=seed % 3 > 0)
    expected = with_gradients(torchvision.ops.deform_conv2d, tensors, geometry)
    tensors = converted(tensors, device=double_kernels)
    if seed % 4 > 1:
        tensors["input"] = tensors["input"].detach().to(memory_format=torch.channels_last)
        tensors["input"].requires_grad_()
    actual = with_gradients(deform_conv2d, tensors, geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-12, name


SPECIAL = st.sampled_from([0.0, -0.5, 1.0, -1.0, 2.0, -3.0, 0.25, 7.5, -40.0, 1e6, 1e30, -1e30])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_geometry_and_offset(double_kernels: str, data: st.DataObject) -> None:
    # Offsets may be at whole and half pixels, on borders and far outside, where derivatives jump.
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups, offset_groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    kernel, dilation = data.draw(two), data.draw(two)
    size = tuple(dilation[i] * (kernel[i] - 1) + data.draw(st.integers(1, 6)) for i in range(2))
    geometry = Geometry(
        batch=data.draw(st.integers(1, 3)),
        channels=groups * offset_groups * data.draw(st.integers(1, 20)),
        size=size,
        out_channels=groups * data.draw(st.integers(1, 40)),
        kernel=kernel,
        stride=data.draw(two),
        padding=data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        dilation=dilation,
        groups=groups,
        offset_groups=offset_groups,
    )
    tensors = make(geometry, seed=data.draw(st.integers(0, 99)))
    offset = tensors["offset"].detach().flatten()
    for value in data.draw(st.lists(SPECIAL, max_size=6)):
        offset[data.draw(st.integers(0, len(offset) - 1))] = value
    tensors["offset"] = offset.reshape(tensors["offset"].shape).requires_grad_()
    expected = with_gradients(torchvision.ops.deform_conv2d, tensors, geometry)
    actual = with_gradients(deform_conv2d, converted(tensors, device=double_kernels), geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-12, name


def test_float32_is_no_further_from_float64_than_torchvision(kernels: str) -> None:
    # Far from the origin torchvision rounds the sum of position and offset.
    geometry = Geometry(1, 16, (90, 130), 8, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    double = converted(make(geometry, dtype=torch.float32), dtype=torch.float64)
    single = converted(double, dtype=torch.float32)
    exact = with_gradients(torchvision.ops.deform_conv2d, double, geometry)
    ours = with_gradients(deform_conv2d, converted(single, device=kernels), geometry)
    theirs = with_gradients(torchvision.ops.deform_conv2d, single, geometry)
    for name in exact:
        assert relative(ours[name], exact[name]) <= relative(theirs[name], exact[name]), name


# Tolerated errors against float64, with offsets and masks in float32. float32 rounds sums of many
# products. In 16 bits each factor and result is rounded once: bfloat16 keeps 8 bits, float16 11.
PRECISIONS = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 2**-10}
SIXTEEN_BITS = [torch.bfloat16, torch.float16]
ON_A_GPU = 3e-6  # in float32: cuBLAS may add 15200 products one after another


def with_features(tensors: dict[str, Tensor], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert features, weight and bias to `dtype`, offset and mask to float32."""
    return {
        name: t.detach()
        .to(device, torch.float32 if name in ("offset", "mask") else dtype)
        .requires_grad_()
        for name, t in tensors.items()
    }


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_low_precision_rounds_features_only(kernels: str, seed: int, dtype: torch.dtype) -> None:
    geometry = UGLY if seed == 0 else random_geometry(seed)
    low = with_features(make(geometry, dtype=torch.float32, scale=1.0), kernels, dtype)
    expected = with_gradients(
        torchvision.ops.deform_conv2d, converted(low, device="cpu", dtype=torch.float64), geometry
    )
    actual = with_gradients(deform_conv2d, low, geometry)
    for name in expected:
        assert actual[name].dtype == low.get(name, low["input"]).dtype
        assert relative(actual[name], expected[name]) < PRECISIONS[dtype], name


def detectors_features(geometry: Geometry, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return with_features(make(geometry, dtype=torch.float32), device, dtype)


@cache
def in_float64(geometry: Geometry, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute the expected results of `detectors_features` once for all kernels, in float64.

    Our operator computes them: in float64 it agrees with torchvision's to 1e-12, as tested above,
    and is 30 times faster.
    """
    doubles = converted(detectors_features(geometry, "cpu", dtype), dtype=torch.float64)
    found = with_gradients(deform_conv2d, doubles, geometry)
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels, size", [(128, (100, 152)), (256, (50, 76)), (512, (25, 38))])
def test_precision_at_the_sizes_of_a_detector(
    kernels: str, channels: int, size: tuple[int, int], dtype: torch.dtype
) -> None:
    geometry = Geometry(1, channels, size, channels, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    actual = with_gradients(deform_conv2d, detectors_features(geometry, kernels, dtype), geometry)
    expected = in_float64(geometry, dtype)
    tolerance = PRECISIONS[dtype] if kernels == "cpu" else max(PRECISIONS[dtype], ON_A_GPU)
    for name in expected:
        assert relative(actual[name], expected[name]) < tolerance, name


@pytest.fixture
def high_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("seed", range(4))
def test_float32_in_two_parts(cpu_kernels: str, high_precision: None, seed: int) -> None:
    geometry = random_geometry(seed)
    tensors = make(geometry, dtype=torch.float32)
    exact = call(deform_conv2d, converted(tensors, dtype=torch.float64), geometry)
    high = call(deform_conv2d, tensors, geometry)
    torch.set_float32_matmul_precision("highest")
    plain = call(deform_conv2d, tensors, geometry)
    assert relative(plain, exact) < 1e-6
    assert relative(high, exact) < 3e-5
    assert torch.equal(high, plain) == (cpu_kernels != "amx")  # only it multiplies parts


@pytest.mark.cuda
@pytest.mark.parametrize("groups", [1, 2])
def test_float32_in_tf32(exact_float32: None, groups: int) -> None:
    # TF32 keeps 11 bits of each factor. cuBLAS may use it, and does for sizes such as these.
    geometry = Geometry(2, 64 * groups, (24, 32), 64, (3, 3), (1, 1), (1, 1), (1, 1), groups, 1)
    tensors = converted(make(geometry, dtype=torch.float32), device="cuda")
    exact = with_gradients(deform_conv2d, converted(tensors, dtype=torch.float64), geometry)
    float32 = with_gradients(deform_conv2d, tensors, geometry)
    torch.backends.cudnn.allow_tf32 = True
    tf32 = with_gradients(deform_conv2d, tensors, geometry)
    for name in exact:
        assert relative(float32[name], exact[name]) < ON_A_GPU, name
        assert relative(tf32[name], exact[name]) < 2**-10, name
    for name in ("output", "weight"):
        assert relative(tf32[name], exact[name]) > 2**-15, name


# Geometries with at least 300 blocks of 64 positions, which fill half of any GPU.
FUSED = {
    "two weight groups in an offset group": Geometry(
        3, 128, (48, 75), 132, (3, 3), (1, 1), (1, 1), (1, 1), 2, 1
    ),
    "two offset groups in a weight group": Geometry(
        2, 256, (80, 130), 256, (3, 2), (1, 1), (1, 0), (2, 1), 1, 2
    ),
    "two tiles of outputs, stride": Geometry(
        5, 64, (90, 100), 330, (1, 3), (1, 2), (0, 1), (1, 2), 1, 1
    ),
}


@pytest.mark.cuda
@pytest.mark.parametrize("geometry", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("others", [True, False], ids=["bias and mask", "neither"])
def test_the_fused_forward(geometry: Geometry, dtype: torch.dtype, others: bool) -> None:
    tensors = make(geometry, dtype=torch.float32, mask=others, bias=others)
    tensors = with_features(tensors, "cuda", dtype)
    exact = call(deform_conv2d, converted(tensors, dtype=torch.float64), geometry)
    fused = call(deform_conv2d, tensors, geometry)
    assert relative(fused, exact) < PRECISIONS[dtype]
    assert torch.equal(fused, call(deform_conv2d, tensors, geometry))
    before = torch.ops.deform_conv.use_fused_cuda_forward(False)
    try:
        chunked = call(deform_conv2d, tensors, geometry)
    finally:
        torch.ops.deform_conv.use_fused_cuda_forward(before)
    assert relative(chunked, exact) < PRECISIONS[dtype]
    assert not torch.equal(fused, chunked)  # columns are rounded elsewhere: both have run


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, *SIXTEEN_BITS], ids=str)
def test_several_chunks(dtype: torch.dtype) -> None:
    # Columns and index of five images need over 256 MiB, those of one image less. The chunks are
    # of equal size, so the second one begins inside an image.
    geometry = Geometry(5, 256, (100, 152), 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = with_features(make(geometry, dtype=torch.float32), "cuda", dtype)
    together = with_gradients(deform_conv2d, tensors, geometry)
    shared = {"weight", "bias"}
    upstream = torch.randn(
        together["output"].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    ).to(together["output"])
    alone = []
    for i in range(5):
        one = {name: t if name in shared else t[i : i + 1] for name, t in tensors.items()}
        one = {name: t.detach().requires_grad_() for name, t in one.items()}
        output = call(deform_conv2d, one, geometry)
        gradients = grad(output, list(one.values()), upstream[i : i + 1])
        alone.append({"output": output, **dict(zip(one, gradients, strict=True))})
    for name in together:
        parts = [one[name].double() for one in alone]
        expected = sum(parts) if name in shared else torch.cat(parts)
        assert relative(together[name], expected) < max(PRECISIONS[dtype], ON_A_GPU), name


def test_the_precision_of_float32_is_torchs_setting(
    exact_float32: None, high_precision: None
) -> None:
    assert allows_fast_float32("cpu")
    assert not allows_fast_float32("cuda")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    assert not allows_fast_float32("cpu")
    assert allows_fast_float32("cuda")
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # the newer setting, of convolutions alone
    assert not allows_fast_float32("cuda")


class Calls(TorchDispatchMode):
    """Keeps the arguments of the operators of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "deform_conv":
            self.arguments[function._schema.name] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_forward_and_backward_take_the_same_precision(high_precision: None, precision: str) -> None:
    tensors = make(UGLY, dtype=torch.float32)
    torch.set_float32_matmul_precision(precision)
    with Calls() as calls:
        output = call(deform_conv2d, tensors, UGLY)
        torch.set_float32_matmul_precision("highest")  # a change between them comes too late
        grad(output.sum(), tensors["input"])
    # torch leaves out a last argument that has its default, False.
    forward, backward = (calls.arguments["deform_conv::" + n] for n in ("forward", "backward"))
    expected = (True,) if precision == "high" else ()
    assert forward[8:] == expected
    assert backward[10:] == expected


def test_zero_offsets_are_a_convolution(double_kernels: str) -> None:
    geometry = Geometry(2, 8, (9, 11), 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, 2)
    tensors = converted(make(geometry, mask=False), device=double_kernels)
    zero = torch.zeros_like(tensors["offset"])
    plain = torch.nn.functional.conv2d(
        tensors["input"], tensors["weight"], tensors["bias"], *geometry.steps, groups=2
    )
    actual = call(deform_conv2d, tensors | {"offset": zero}, geometry)
    assert relative(actual, plain) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS], ids=str)
def test_channels_that_fill_several_blocks(kernels: str, dtype: torch.dtype) -> None:
    # The backward divides channels into blocks of at most 32 within an offset group: here 5 blocks
    # of 28, the third of which belongs to both weight groups of 70. The batch of 5 is divided too.
    geometry = Geometry(5, 140, (6, 9), 90, (3, 3), (1, 2), (1, 0), (1, 1), 2, 5)
    if dtype == torch.float64:
        tensors = converted(make(geometry), device=kernels)
    else:
        tensors = with_features(make(geometry, dtype=torch.float32), kernels, dtype)
    doubles = converted(tensors, device="cpu", dtype=torch.float64)
    expected = with_gradients(torchvision.ops.deform_conv2d, doubles, geometry)
    actual = with_gradients(deform_conv2d, tensors, geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < PRECISIONS.get(dtype, 1e-12), name


@pytest.mark.parametrize("groups, offset_groups", [(70, 1), (70, 2), (70, 70)])
def test_many_groups(double_kernels: str, groups: int, offset_groups: int) -> None:
    # Weight groups of a single channel; the last case has offset groups of one channel as well.
    geometry = Geometry(2, 70, (6, 9), 140, (3, 2), (1, 2), (1, 0), (1, 1), groups, offset_groups)
    tensors = make(geometry)
    expected = with_gradients(torchvision.ops.deform_conv2d, tensors, geometry)
    actual = with_gradients(deform_conv2d, converted(tensors, device=double_kernels), geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-12, name


def grouped(groups: int, channels: int, outs: int, offset_groups: int = 1) -> Geometry:
    """Return a geometry with `channels` and `outs` per weight group.

    Its 117 positions are two tiles, the last of which has an odd number of rows.
    """
    size, total = (17, 12), groups * channels
    return Geometry(
        2, total, size, groups * outs, (3, 2), (2, 1), (1, 1), (1, 1), groups, offset_groups
    )


SMALL_GROUPS = [
    *(grouped(32, channels, channels) for channels in (1, 2, 4, 8, 16)),
    grouped(32, 1, 2),
    grouped(13, 3, 5),  # neither number divides a panel of 32
    grouped(6, 8, 6),
    grouped(4, 12, 20),
    grouped(3, 40, 9),  # a group fills more than a panel, and panels belong to two groups
    grouped(3, 9, 40),
    grouped(5, 12, 12, 4),  # offset groups of 15 channels cut weight groups of 12
    grouped(4, 6, 4, 24),
]


@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS], ids=str)
@pytest.mark.parametrize(
    "geometry",
    SMALL_GROUPS,
    ids=lambda g: f"{g.groups} of {g.channels // g.groups} to {g.out_channels // g.groups}",
)
def test_groups_that_share_a_panel(kernels: str, geometry: Geometry, dtype: torch.dtype) -> None:
    if dtype == torch.float64:
        tensors = converted(make(geometry), device=kernels)
    else:
        tensors = with_features(make(geometry, dtype=torch.float32), kernels, dtype)
    doubles = converted(tensors, device="cpu", dtype=torch.float64)
    expected = with_gradients(torchvision.ops.deform_conv2d, doubles, geometry)
    actual = with_gradients(deform_conv2d, tensors, geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < PRECISIONS.get(dtype, 1e-12), name


@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS], ids=str)
def test_results_have_the_memory_format_of_their_tensor(device: str, dtype: torch.dtype) -> None:
    low = make(UGLY, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype == torch.float64:
        tensors = converted(low, device=device)
    else:
        tensors = with_features(low, device, dtype)
    nchw = with_gradients(deform_conv2d, tensors, UGLY)
    assert all(tensor.is_contiguous() for tensor in nchw.values())
    last = {
        name: t.detach().to(memory_format=torch.channels_last) if t.dim() == 4 else t.detach()
        for name, t in tensors.items()
    }
    last = {name: t.requires_grad_() for name, t in last.items()}
    channels_last = with_gradients(deform_conv2d, last, UGLY)
    for name, tensor in channels_last.items():
        if tensor.dim() == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last), name
        assert torch.equal(tensor, nchw[name]), name


@pytest.mark.parametrize("name", ["input", "offset", "weight", "bias", "mask"])
def test_gradients_that_alone_are_wanted(device: str, name: str) -> None:
    tensors = converted(make(UGLY), device=device)
    expected = with_gradients(deform_conv2d, tensors, UGLY)[name]
    alone = {other: t.detach() for other, t in tensors.items()}
    alone[name].requires_grad_()
    output = call(deform_conv2d, alone, UGLY)
    rng = torch.Generator().manual_seed(9)
    output.backward(torch.randn(output.shape, generator=rng, dtype=torch.float64).to(output))
    assert torch.equal(alone[name].grad, expected)
    assert all(t.grad is None for other, t in alone.items() if other != name)


# ---- the border ------------------------------------------------------------------------------


def test_border_and_whole_pixels(double_kernels: str) -> None:
    # (value, d/dy, d/dx) at (dy, dx) from pixel (0, 0), read by a 1x1 kernel.
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], device=double_kernels, dtype=torch.float64)
    weight = torch.ones(1, 1, 1, 1, device=double_kernels, dtype=torch.float64)

    def read(dy: float, dx: float) -> tuple[float, ...]:
        offset = torch.tensor([dy, dx], device=double_kernels, dtype=torch.float64).reshape(
            1, 2, 1, 1
        )
        offset = offset.expand(1, 2, 2, 2).clone().requires_grad_()
        first = deform_conv2d(image, offset, weight)[0, 0, 0, 0]
        return first.item(), *grad(first, offset)[0][0, :, 0, 0].tolist()

    assert read(0.5, 0.5) == (2.5, 2.0, 1.0)  # the mean; down adds 2, right adds 1
    assert read(1.0, 1.0) == (4.0, -4.0, -4.0)  # the cell below and right of pixel 4 is outside
    assert read(-0.5, 0.0) == (0.5, 1.0, 0.5)  # half of pixel 1, zero above; x: half of 2 - 1
    assert read(-1.0, 0.0) == (0.0, 1.0, 0.0)  # on the border: one-sided, as torchvision
    assert read(-1.5, 0.0) == (0.0, 0.0, 0.0)
    assert read(2.0, 0.0) == (0.0, 0.0, 0.0)


def test_border_gradients_agree_with_torchvision(double_kernels: str) -> None:
    # Zero offsets with padding put the first taps exactly on -1, as at the start of any training.
    geometry = Geometry(1, 3, (4, 5), 2, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = make(geometry)
    tensors["offset"] = torch.zeros_like(tensors["offset"]).requires_grad_()
    expected = with_gradients(torchvision.ops.deform_conv2d, tensors, geometry)
    actual = with_gradients(deform_conv2d, converted(tensors, device=double_kernels), geometry)
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-13, name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31])
def test_absurd_offsets_sample_nothing(kernels: str, value: float) -> None:
    tensors = converted(make(UGLY, dtype=torch.float32), device=kernels)
    plain = with_gradients(deform_conv2d, tensors, UGLY)
    offset = tensors["offset"].detach().clone()
    offset[1, 3] = value  # image 1, offset group 0, tap 1, dx
    actual = with_gradients(deform_conv2d, tensors | {"offset": offset.requires_grad_()}, UGLY)
    mask = tensors["mask"].detach().clone()
    mask[1, 1] = 0  # the same tap, switched off
    expected = with_gradients(deform_conv2d, tensors | {"mask": mask.requires_grad_()}, UGLY)
    assert torch.equal(actual["output"], expected["output"])
    assert not torch.equal(actual["output"], plain["output"])
    assert all(tensor.isfinite().all() for tensor in actual.values())
    assert (actual["offset"][1, 2:4] == 0).all() and (actual["mask"][1, 1] == 0).all()


def test_nan_pixels_stay_in_the_cells_they_touch(kernels: str) -> None:
    # With whole offsets, three of the four pixels of a cell have the weight zero.
    image = torch.zeros(1, 1, 5, 5, device=kernels)
    image[0, 0, 2, 3] = float("nan")
    weight, offset = torch.ones(1, 1, 1, 1, device=kernels), torch.zeros(1, 2, 5, 5, device=kernels)
    offset[0, 0, 4] = 7.0  # the last row samples outside
    found = deform_conv2d(image, offset, weight)[0, 0].isnan().nonzero().tolist()
    assert found == [[1, 2], [1, 3], [2, 2], [2, 3]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels, outs", [(1, 1), (2, 3), (4, 4), (8, 8), (16, 16)])
def test_a_group_keeps_its_nan_to_itself(
    kernels: str, channels: int, outs: int, dtype: torch.dtype, value: float
) -> None:
    # Groups are multiplied side by side: zero times another group's NaN would be NaN.
    geometry = Geometry(1, 8 * channels, (5, 7), 8 * outs, (3, 3), (1, 1), (1, 1), (1, 1), 8, 1)
    tensors = with_features(make(geometry, dtype=torch.float32), kernels, dtype)
    tensors["offset"] = torch.zeros_like(tensors["offset"]).requires_grad_()
    output = call(deform_conv2d, tensors, geometry)
    upstream = torch.ones_like(output)
    leaves = [tensors["input"], tensors["weight"]]
    grad_input, grad_weight = grad(output, leaves, upstream)
    others = [group for group in range(8) if group != 3]

    def by_group(tensor: Tensor, dim: int) -> Tensor:
        return tensor.unflatten(dim, (8, -1)).movedim(dim, 0)

    spoilt = tensors["input"].detach().clone()
    spoilt[0, 3 * channels, 2, 3] = value
    spoilt.requires_grad_()
    actual = call(deform_conv2d, tensors | {"input": spoilt}, geometry)
    assert torch.equal(by_group(actual, 1)[others], by_group(output, 1)[others])
    assert not by_group(actual, 1)[3, ..., 2, 3].isfinite().any()
    actual = grad(actual, [spoilt, tensors["weight"]], upstream)
    assert torch.equal(actual[0], grad_input)
    assert torch.equal(by_group(actual[1], 0)[others], by_group(grad_weight, 0)[others])
    assert not by_group(actual[1], 0)[3, :, 0].isfinite().all()

    upstream[0, 3 * outs, 2, 3] = value
    actual = grad(call(deform_conv2d, tensors, geometry), leaves, upstream)
    for found, clean, dim in ((actual[0], grad_input, 1), (actual[1], grad_weight, 0)):
        assert torch.equal(by_group(found, dim)[others], by_group(clean, dim)[others])
        assert not by_group(found, dim)[3].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 6, 5, 7), (1, 6, 1, 1)])
def test_empty_batches_and_single_pixels(kernels: str, shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape[0], 6, shape[2:], 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = converted(make(geometry), device=kernels)
    actual = with_gradients(deform_conv2d, tensors, geometry)
    assert actual["output"].shape == (shape[0], 4, *shape[2:])
    assert actual["weight"].isfinite().all() and (shape[0] or not actual["weight"].any())


# ---- determinism and layout ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(3, 96, (23, 29), 40, (3, 3), (1, 1), (1, 1), (1, 1), 2, 2),
        Geometry(1, 64, (200, 200), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
        Geometry(3, 96, (23, 29), 72, (3, 3), (1, 1), (1, 1), (1, 1), 24, 2),
    ],
    ids=["many outputs", "one output", "many groups"],
)
def test_same_bits_for_any_number_of_threads(geometry: Geometry, dtype: torch.dtype) -> None:
    tensors = with_features(make(geometry, dtype=torch.float32), "cpu", dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            results.append(with_gradients(deform_conv2d, tensors, geometry))
    finally:
        torch.set_num_threads(before)
    for name in results[0]:
        assert all(torch.equal(results[0][name], other[name]) for other in results[1:]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_each_time(kernels: str, dtype: torch.dtype) -> None:
    # Many samples read one pixel: atomic additions to it would have another order each time.
    geometry = Geometry(2, 64, (40, 50), 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = with_features(make(geometry, dtype=torch.float32, scale=8.0), kernels, dtype)
    first, second = (with_gradients(deform_conv2d, tensors, geometry) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_format_follows_the_input(device: str) -> None:
    tensors = converted(make(UGLY), device=device)
    plain = call(deform_conv2d, tensors, UGLY)
    assert plain.is_contiguous()
    tensors["input"] = tensors["input"].detach().to(memory_format=torch.channels_last)
    last = call(deform_conv2d, tensors, UGLY)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_other_memory_formats_give_what_a_convolution_gives(device: str) -> None:
    geometry = Geometry(3, 6, (6, 7), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = converted(make(geometry), device=device)
    whole = torch.randn(3, 6, 8, 7, device=device, dtype=torch.float64)
    for input in (whole[:, :, 1:7], whole[:1, :, :6].expand(3, -1, -1, -1)):
        output = call(deform_conv2d, tensors | {"input": input}, geometry)
        assert output.is_contiguous()
        same = call(deform_conv2d, tensors | {"input": input.contiguous()}, geometry)
        assert torch.equal(output, same)


def test_strided_inputs(device: str) -> None:
    tensors = converted(make(UGLY), device=device)
    strided = {
        name: torch.stack([t.detach(), t.detach() + 1], dim=-1)[..., 0].requires_grad_()
        for name, t in tensors.items()
    }
    expected = with_gradients(deform_conv2d, tensors, UGLY)
    actual = with_gradients(deform_conv2d, strided, UGLY)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_slices_of_one_tensor(kernels: str) -> None:
    # A layer that predicts offsets and mask with one convolution passes slices of its output.
    tensors = converted(make(UGLY, dtype=torch.float32), device=kernels)
    both = torch.cat([tensors["offset"], tensors["mask"]], dim=1).detach()
    both = both.contiguous(memory_format=torch.channels_last).requires_grad_()
    offset, mask = both.split([tensors[name].shape[1] for name in ("offset", "mask")], dim=1)
    expected = with_gradients(deform_conv2d, tensors, UGLY)
    actual = with_gradients(deform_conv2d, tensors | {"offset": offset, "mask": mask}, UGLY)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


# ---- registrations with torch ----------------------------------------------------------------


def operator_arguments(tensors: dict[str, Tensor], geometry: Geometry) -> tuple:
    names = ("input", "offset", "weight", "bias", "mask")
    return *(tensors.get(name) for name in names), *map(list, geometry.steps)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, mask: bool, dtype: torch.dtype) -> None:
    tensors = make(UGLY, dtype=torch.float32, mask=mask)
    tensors = {
        name: t.detach().to(device, torch.float32 if name in ("offset", "mask") else dtype)
        for name, t in tensors.items()
    }
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    arguments = operator_arguments(tensors, UGLY)
    opcheck(torch.ops.deform_conv.forward.default, arguments)
    upstream = torch.ops.deform_conv.forward(*arguments).detach()
    input, offset, weight, _, mask_, *steps = arguments
    detached = [None if t is None else t.detach() for t in (input, offset, weight, mask_)]
    opcheck(torch.ops.deform_conv.backward.default, (upstream, *detached, *steps))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(device: str, dynamic: bool) -> None:
    # aot_eager traces forward and backward as inductor does, without minutes of compiling.
    function = torch.compile(deform_conv2d, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in ((5, 7), (9, 8)):
        geometry = Geometry(2, 6, size, 4, (3, 2), (2, 1), (1, 0), (2, 1), 2, 3)
        tensors = converted(make(geometry, dtype=torch.float32), device=device)
        actual = with_gradients(function, tensors, geometry)
        expected = with_gradients(deform_conv2d, tensors, geometry)
        for name in expected:
            assert relative(actual[name], expected[name]) < 1e-6, name


def test_gradcheck() -> None:
    tensors = make(UGLY)
    assert torch.autograd.gradcheck(
        lambda *leaves: call(deform_conv2d, dict(zip(tensors, leaves, strict=True)), UGLY),
        tuple(tensors.values()),
        fast_mode=True,
    )


def test_double_backward_raises(device: str) -> None:
    tensors = converted(make(UGLY), device=device)
    output = call(deform_conv2d, tensors, UGLY)
    (first,) = grad(output.square().sum(), tensors["input"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        grad(first.sum(), tensors["weight"])


def test_autocast_keeps_offsets_in_float32(device: str) -> None:
    # An offset that passed through bfloat16 would be rounded and give another output.
    tensors = converted(make(UGLY, dtype=torch.float32), device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        output = call(deform_conv2d, tensors, UGLY)
    low = {
        name: t if name in ("offset", "mask") else t.detach().bfloat16()
        for name, t in tensors.items()
    }
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, call(deform_conv2d, low, UGLY))
    gradients = grad(output.float().sum(), list(tensors.values()))
    assert all(g.dtype == torch.float32 for g in gradients)


def test_autocast_mixes_dtypes_and_leaves_float64(device: str) -> None:
    tensors = converted(make(UGLY, dtype=torch.float32), device=device)
    low = with_features(tensors, device, torch.bfloat16)
    expected = call(deform_conv2d, low, UGLY)
    doubles = converted(tensors, dtype=torch.float64)
    plain = call(deform_conv2d, doubles, UGLY)
    with torch.autocast(device, dtype=torch.bfloat16):
        # features of a previous layer in bfloat16, parameters in float32
        assert torch.equal(call(deform_conv2d, tensors | {"input": low["input"]}, UGLY), expected)
        assert torch.equal(call(deform_conv2d, doubles, UGLY), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_offsets_and_masks_of_lower_precision(device: str, dtype: torch.dtype) -> None:
    tensors = with_features(make(UGLY, dtype=torch.float32), device, dtype)
    halves = {name: tensors[name].detach().half().requires_grad_() for name in ("offset", "mask")}
    actual = with_gradients(deform_conv2d, tensors | halves, UGLY)
    floats = {name: t.detach().float().requires_grad_() for name, t in halves.items()}
    expected = with_gradients(deform_conv2d, tensors | floats, UGLY)
    assert torch.equal(actual["output"], expected["output"])
    for name, half in halves.items():
        assert actual[name].dtype == half.dtype
        assert torch.equal(actual[name], expected[name].half())


def test_meta_tensors_have_shapes() -> None:
    tensors = {name: t.detach().to("meta") for name, t in make(UGLY).items()}
    output = call(deform_conv2d, tensors, UGLY)
    assert output.is_meta and output.shape == (2, 4, *UGLY.out_size)


# ---- refusals --------------------------------------------------------------------------------

BAD = {
    "input": (lambda t: {"input": t["input"][0]}, "input must be"),
    "weight": (lambda t: {"weight": t["weight"][:, [0, 1, 2, 0]]}, "weight .* does not fit"),
    "weight dimensions": (lambda t: {"weight": t["weight"][0]}, "weight must be"),
    "groups": (lambda t: {"weight": t["weight"][:3]}, "divided into 2 groups"),
    "offset": (lambda t: {"offset": t["offset"][..., 1:]}, r"offset must have shape .*\(2, 36,"),
    "offset channels": (lambda t: {"offset": t["offset"][:, 1:]}, "offset must have shape"),
    "no offset group": (lambda t: {"offset": t["offset"][:, :0]}, "offset must have shape"),
    "offset groups": (
        lambda t: {"offset": torch.cat([t["offset"], t["offset"][:, :12]], 1), "mask": None},
        "4 offset groups",
    ),
    "mask": (lambda t: {"mask": t["mask"][:, 1:]}, "mask must have shape"),
    "bias": (lambda t: {"bias": t["bias"][1:]}, "bias must have shape"),
    "weight dtype": (lambda t: {"weight": t["weight"].float()}, "weight is torch.float32"),
    "offset dtype": (lambda t: {"offset": t["offset"].long()}, "offset must be floating"),
    "input dtype": (lambda t: {"input": t["input"].long()}, "input must be float32"),
    "device": (lambda t: {"weight": t["weight"].to("meta")}, "weight is on meta"),
    "no channels": (lambda t: {"input": t["input"][:, :0]}, "0 channels"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_refuses_what_does_not_fit(change, message: str) -> None:
    tensors = {name: t.detach() for name, t in make(UGLY).items()}
    with pytest.raises(ValueError, match=message):
        call(deform_conv2d, tensors | change(tensors), UGLY)


def test_refuses_bad_steps() -> None:
    tensors = make(UGLY)
    with pytest.raises(ValueError, match=r"stride \(0, 1\)"):
        deform_conv2d(tensors["input"], tensors["offset"], tensors["weight"], stride=(0, 1))
    with pytest.raises(ValueError, match="too small for kernel"):
        deform_conv2d(tensors["input"], tensors["offset"], tensors["weight"], dilation=9)


KERNEL_BAD = {
    "input": (lambda t: {"input": t["input"][0]}, "input must be"),
    "weight": (lambda t: {"weight": t["weight"][:, [0, 1, 2, 0]]}, "weight .* does not fit"),
    "weight dtype": (
        lambda t: {"weight": t["weight"].float()},
        "weight must be Double .*got Float",
    ),
    "offset": (lambda t: {"offset": t["offset"][..., 1:]}, "offset must have shape"),
    "offset dtype": (
        lambda t: {"offset": t["offset"].float()},
        "offset must be Double .*got Float",
    ),
    "mask": (lambda t: {"mask": t["mask"][..., 1:]}, "mask must have shape"),
    "mask dtype": (lambda t: {"mask": t["mask"].half()}, "mask must be Double .*got Half"),
    "bias": (lambda t: {"bias": t["bias"][1:]}, "bias must have shape"),
    "bias dtype": (lambda t: {"bias": t["bias"].float()}, "bias must be Double .*got Float"),
}


@pytest.mark.parametrize(
    "steps, message",
    [
        (([3, 3], [0, 0], [9, 9]), "too small for the kernel"),
        (([0, 1], [0, 0], [1, 1]), r"stride must be from 1 .* got \(0, 1\)"),
        (([1, 1], [0, 2**32], [1, 2**33]), "padding must be from 0"),
        (([1, 1], [0, 0], [1]), "dilation must be a pair"),
    ],
)
def test_the_kernels_check_steps(device: str, steps, message: str) -> None:
    tensors = {name: t.detach().to(device) for name, t in make(UGLY).items()}
    with pytest.raises(RuntimeError, match=f"deform_conv2d: .*{message}"):
        torch.ops.deform_conv.forward(*operator_arguments(tensors, UGLY)[:5], *steps)


@pytest.mark.parametrize("change, message", KERNEL_BAD.values(), ids=KERNEL_BAD)
def test_the_kernels_check_for_themselves(device: str, change, message: str) -> None:
    tensors = {name: t.detach().to(device) for name, t in make(UGLY).items()}
    with pytest.raises(RuntimeError, match=f"deform_conv2d: {message}"):
        torch.ops.deform_conv.forward(*operator_arguments(tensors | change(tensors), UGLY))


def test_refuses_kernels_that_are_not_there() -> None:
    with pytest.raises(RuntimeError, match="this processor has portable.*, not sse9"):
        torch.ops.deform_conv.use_cpu_capability("sse9")


# ---- module and library ----------------------------------------------------------------------


def test_module_is_a_twin_of_torchvisions() -> None:
    arguments = dict(kernel_size=(3, 2), stride=2, padding=1, dilation=(2, 1), groups=2)
    torch.manual_seed(5)
    ours = DeformConv2d(6, 4, **arguments)
    torch.manual_seed(5)
    theirs = torchvision.ops.DeformConv2d(6, 4, **arguments)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[k], theirs.state_dict()[k]) for k in ours.state_dict())
    geometry = Geometry(2, 6, (7, 9), 4, (3, 2), (2, 2), (1, 1), (2, 1), 2, 3)
    tensors = make(geometry, dtype=torch.float32)
    inputs = tensors["input"], tensors["offset"], tensors["mask"]
    assert relative(ours(*inputs), theirs(*inputs)) < 1e-6
    assert "groups=2" in repr(ours)
    with pytest.raises(ValueError, match="in_channels 5"):
        DeformConv2d(5, 4, 3, groups=2)


def test_a_missing_library_names_the_command(tmp_path) -> None:
    code = """
import shutil, sys, pathlib, ops.deform_conv as module
folder = pathlib.Path(sys.argv[1]) / "ops"
folder.mkdir()
for file in pathlib.Path(module.__file__).parent.glob("*.py"):
    shutil.copy(file, folder)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    code = """
import pathlib, sys, torch.utils.flop_counter  # they may lie where ops is installed
sys.path = [entry for entry in sys.path if not (pathlib.Path(entry) / "ops/_cpu.so").exists()]
import ops
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "ImportError" in result.stderr and "pip install -e ." in result.stderr
