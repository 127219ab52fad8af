"""Deformable RoI pooling against its definition and, without offsets, against torchvision."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torchvision
from cases import make_rois as make
from cases import relative
from hypothesis import HealthCheck, given, settings
from reference import roi_reference
from torch import Tensor, nn
from torch.autograd import forward_ad, grad
from torch.export import Dim
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from ops import DeformRoIPool, deform_roi_pool
from ops.onnx import roi_align

SIZE = (3, 2)  # of the output
NUMBERS = {"spatial_scale": 0.25, "sampling_ratio": 2, "aligned": True, "gamma": 0.3}


def converted(tensors: dict[str, Tensor], **how: Any) -> dict[str, Tensor]:
    return {name: t.detach().to(**how) for name, t in tensors.items()}


def call(function, tensors: dict[str, Tensor], size: tuple[int, int], **numbers) -> Tensor:
    numbers = NUMBERS | numbers
    names = ("spatial_scale", "sampling_ratio", "aligned", "gamma")
    return function(
        *(tensors["input"], tensors["boxes"], size, tensors.get("offset"), tensors.get("mask")),
        *(numbers[name] for name in names),
    )


def with_gradients(function, tensors: dict[str, Tensor], size=SIZE, **numbers) -> dict[str, Tensor]:
    """Return the output, and the gradients for a fixed random gradient of the output."""
    leaves = {
        name: t.detach().clone().requires_grad_() if name != "boxes" else t
        for name, t in tensors.items()
    }
    output = call(function, leaves, size, **numbers)
    rng = torch.Generator().manual_seed(9)
    upstream = torch.randn(output.shape, generator=rng, dtype=torch.float64).to(output)
    wanted = {name: t for name, t in leaves.items() if t.requires_grad}
    gradients = grad(output, list(wanted.values()), upstream)
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def torchvisions(input, boxes, size, offset, mask, scale, ratio, aligned, gamma) -> Tensor:
    assert offset is None and mask is None
    return torchvision.ops.roi_align(input, boxes, size, scale, ratio, aligned)


# ---- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("offset, mask", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 3])
def test_agrees_with_the_definition(
    double_kernels: str, offset: bool, mask: bool, aligned: bool, ratio: int
) -> None:
    tensors = make(offset=offset, mask=mask)
    how = {"aligned": aligned, "sampling_ratio": ratio}
    expected = with_gradients(roi_reference, tensors, **how)
    actual = with_gradients(deform_roi_pool, converted(tensors, device=double_kernels), **how)
    assert expected.keys() == actual.keys()
    for name in expected:
        assert relative(actual[name], expected[name]) < 1e-13, name


@pytest.mark.parametrize("channels", [1, 7, 70])  # tails, single vectors, runs of vectors
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 1, 2, 16])
def test_without_offsets_it_is_roi_align(
    double_kernels: str, channels: int, aligned: bool, ratio: int
) -> None:
    how = {"aligned": aligned, "sampling_ratio": ratio, "spatial_scale": 0.23}
    for seed in range(3):
        tensors = make(
            num_boxes=12, channels=channels, size=(7, 5), offset=False, mask=False, seed=seed
        )
        expected = with_gradients(torchvisions, tensors, (7, 5), **how)
        tensors = converted(tensors, device=double_kernels)
        if seed == 1:
            tensors["input"] = tensors["input"].to(memory_format=torch.channels_last)
        actual = with_gradients(deform_roi_pool, tensors, (7, 5), **how)
        for name in expected:
            assert relative(actual[name], expected[name]) < 1e-12, name


COORDINATE = st.one_of(
    st.sampled_from([0.0, 4.0, -4.0, -1.0, 10.0, 44.0, 56.0, 55.999, -300.0, 3e3]),
    st.floats(-80, 150),
)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    corners=st.lists(st.tuples(*[COORDINATE] * 4), min_size=1, max_size=5),
    aligned=st.booleans(),
    ratio=st.integers(-1, 4),
    features=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_any_box(
    double_kernels: str,
    corners: list[tuple[float, ...]],
    aligned: bool,
    ratio: int,
    features: tuple[int, int],
) -> None:
    """Boxes lie at whole pixels, on borders or far outside, are inverted or have no area."""
    boxes = torch.tensor(corners, dtype=torch.float64)
    if aligned and ratio < 1:  # torchvision fails on inverted boxes here; see the next test
        first, last = boxes.split(2, dim=1)
        boxes = torch.cat([torch.minimum(first, last), torch.maximum(first, last)], dim=1)
    tensors = make(features=features, channels=3, offset=False, mask=False)
    tensors["boxes"] = torch.cat([torch.arange(len(boxes))[:, None] % 2, boxes], dim=1)
    how = {"aligned": aligned, "sampling_ratio": ratio}
    expected = with_gradients(torchvisions, tensors, **how)
    actual = with_gradients(deform_roi_pool, converted(tensors, device=double_kernels), **how)
    for name in expected:
        assert torch.allclose(actual[name].cpu(), expected[name], rtol=1e-11, atol=1e-12), name


def test_inverted_boxes_sample_nothing_where_bins_are_sampled_by_their_size(
    double_kernels: str,
) -> None:
    tensors = make(num_boxes=2, offset=False, mask=False, device=double_kernels)
    tensors["boxes"] = tensors["boxes"].new_tensor([[0, 30, 10, 10, 30], [1, 30, 30, 10, 10]])
    actual = with_gradients(deform_roi_pool, tensors, sampling_ratio=-1)
    assert not actual["output"].any() and not actual["input"].any()


def test_a_bin_moves_by_a_share_of_its_roi(kernels: str) -> None:
    # On a ramp that rises by 1 a column and 10 a row, a bin's average is the value at its centre. A
    # RoI of 8 x 12 pixels of the features, bins of 4 x 4: centres are 2 pixels from their corners.
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    ramp = (10 * y + x)[None, None].to(kernels)
    boxes = torch.tensor([[0.0, 20, 16, 68, 48]], device=kernels)  # aligned: from 4.5, 3.5
    offset = torch.zeros(1, 2, 2, 3, device=kernels)
    offset[0, 0, 0, 1] = 0.5  # along x by 0.1 * 0.5 * 12 = 0.6
    offset[0, 1, 1, 2] = -1.0  # along y by 0.1 * -1 * 8 = -0.8: ten times that in value
    mask = torch.ones(1, 2, 3, device=kernels)
    mask[0, 1, 0] = 0.25
    rows, columns = 10 * (3.5 + torch.tensor([[2.0], [6.0]])), 4.5 + torch.tensor([2.0, 6, 10])
    expected = rows + columns
    expected[0, 1] += 0.6
    expected[1, 2] -= 8.0
    expected[1, 0] *= 0.25
    actual = deform_roi_pool(ramp, boxes, (2, 3), offset, mask, 0.25, 2, True)
    torch.testing.assert_close(actual[0, 0].cpu(), expected)


PRECISIONS = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2**-10}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("ratio", [-1, 2])
def test_precision_at_the_sizes_of_a_detector(kernels: str, dtype: torch.dtype, ratio: int) -> None:
    """Boxes and offsets stay in float32: bfloat16 would round them by whole pixels."""
    sizes: dict[str, Any] = {"num_boxes": 60, "channels": 150, "features": (80, 120)}
    tensors = make(**sizes, size=(7, 7), dtype=torch.float32, device=kernels)
    tensors["input"] = tensors["input"].to(dtype)
    how = {"sampling_ratio": ratio, "gamma": 0.1}
    doubles = converted(tensors, dtype=torch.float64, device="cpu")
    expected = with_gradients(deform_roi_pool, doubles, (7, 7), **how)
    actual = with_gradients(deform_roi_pool, tensors, (7, 7), **how)
    for name in expected:
        assert actual[name].dtype == (dtype if name in ("input", "output") else torch.float32)
        assert relative(actual[name], expected[name]) < PRECISIONS[dtype], name


# ---- boxes that are far away, absurd or absent -----------------------------------------------


def test_a_box_far_larger_than_the_image_costs_no_more_than_the_image(double_kernels: str) -> None:
    """Its bins have a huge number of samples; those outside the image are skipped."""
    tensors = make(num_boxes=3, channels=2, offset=False, mask=False, device=double_kernels)
    tensors["boxes"][:, 1:] = tensors["boxes"].new_tensor(
        [[-4e8, -3e8, 4e8, 3e8], [-1e5, 10, 1e5, 30], [1e8, 1e8, 4e8, 4e8]]
    )
    output = call(deform_roi_pool, tensors, (1, 1), sampling_ratio=-1)
    # Here samples are one pixel apart: they fall on every pixel, and on one beyond each border.
    image = tensors["input"][int(tensors["boxes"][0, 0])]
    padded = nn.functional.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    torch.testing.assert_close(
        output[0, :, 0, 0], padded.sum((1, 2)) / (2e8 * 1.5e8), atol=0, rtol=1e-12
    )
    assert output[1].abs().max() > 0 and not output[2].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("ratio", [-1, 2])
def test_absurd_boxes_and_offsets_sample_nothing(kernels: str, value: float, ratio: int) -> None:
    tensors = make(dtype=torch.float32, device=kernels)
    plain = with_gradients(deform_roi_pool, tensors, sampling_ratio=ratio)
    spoilt = converted(tensors, copy=True)
    spoilt["boxes"][3, 2] = value
    spoilt["offset"][5, 1, 2, 0] = value
    actual = with_gradients(deform_roi_pool, spoilt, sampling_ratio=ratio)
    assert not actual["output"][3].any() and not actual["output"][5, :, 2, 0].any()
    assert all(tensor.isfinite().all() for tensor in actual.values())
    assert not actual["offset"][3].any() and not actual["mask"][3].any()
    assert not actual["offset"][5, :, 2, 0].any() and not actual["mask"][5, 2, 0]
    others = [i for i in range(len(tensors["boxes"])) if i not in (3, 5)]
    for name in ("output", "offset", "mask"):
        assert torch.equal(actual[name][others], plain[name][others]), name


def test_nan_pixels_stay_in_the_bins_that_read_them(kernels: str) -> None:
    tensors = make(num_boxes=2, channels=9, dtype=torch.float32, device=kernels)
    tensors["offset"].zero_()
    tensors["boxes"] = tensors["boxes"].new_tensor([[0, 6, 6, 22, 30], [1, 6, 6, 22, 30]])
    tensors["input"][0, 4, 2, 2] = float("nan")
    spoilt = call(deform_roi_pool, tensors, SIZE).isnan()
    # The box reaches from 1 to 5 along x in two bins, and from 1 to 7 along y in three. The first
    # bin reads pixels 1 to 3.
    assert spoilt[0, 4, 0, 0] and spoilt.sum() == 1


@pytest.mark.parametrize("image", [2.0, -1.0, float("nan")])
def test_a_box_of_an_image_that_is_not_there(device: str, image: float) -> None:
    tensors = make(device=device)
    tensors["boxes"][4, 0] = image
    if device == "cuda":
        assert call(deform_roi_pool, tensors, SIZE).isnan().flatten(1).all(1).tolist() == [
            number == 4 for number in range(9)
        ]
        return
    with pytest.raises(RuntimeError, match=r"boxes\[4\] is of image (2|-1|-?nan), and input has 2"):
        call(deform_roi_pool, tensors, SIZE)


@pytest.mark.parametrize("batch", [0, 2])
def test_no_boxes(device: str, batch: int) -> None:
    tensors = make(num_boxes=1, device=device)
    tensors = {name: t[:0] for name, t in tensors.items()} | {"input": tensors["input"][:batch]}
    actual = with_gradients(deform_roi_pool, tensors)
    assert actual["output"].shape == (0, 5, *SIZE)
    assert actual["input"].shape == (batch, 5, 11, 14) and not actual["input"].any()


# ---- the same bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_every_time(kernels: str, dtype: torch.dtype) -> None:
    sizes: dict[str, Any] = {"num_boxes": 50, "channels": 75, "features": (20, 30)}
    tensors = make(**sizes, dtype=torch.float32, device=kernels)
    tensors["input"] = tensors["input"].to(dtype)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            runs.append(with_gradients(deform_roi_pool, tensors))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("dtype", [torch.float64, *PRECISIONS], ids=str)
def test_the_gradient_has_the_memory_format_of_the_features(
    device: str, dtype: torch.dtype
) -> None:
    tensors = make(dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    features = tensors["input"].to(dtype)
    last = features.to(memory_format=torch.channels_last)
    nchw = with_gradients(deform_roi_pool, tensors | {"input": features})
    channels_last = with_gradients(deform_roi_pool, tensors | {"input": last})
    assert nchw["input"].is_contiguous() and nchw["output"].is_contiguous()
    assert channels_last["input"].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(nchw[name], channels_last[name]) for name in nchw)


@pytest.mark.parametrize("name", ["input", "offset", "mask"])
def test_gradients_that_alone_are_wanted(device: str, name: str) -> None:
    tensors = make(device=device)
    expected = with_gradients(deform_roi_pool, tensors)[name]
    alone = converted(tensors) | {name: tensors[name].clone().requires_grad_()}
    output = call(deform_roi_pool, alone, SIZE)
    rng = torch.Generator().manual_seed(9)
    output.backward(torch.randn(output.shape, generator=rng, dtype=torch.float64).to(output))
    assert torch.equal(alone[name].grad, expected)


# ---- the operator in other parts of torch ----------------------------------------------------


@pytest.mark.parametrize("offset, mask", [(True, True), (False, False), (True, False)])
def test_is_a_proper_operator(device: str, offset: bool, mask: bool) -> None:
    tensors = make(offset=offset, mask=mask, device=device)
    leaves = {name: t.requires_grad_(name != "boxes") for name, t in tensors.items()}
    opcheck(
        torch.ops.deform_roi_pool.forward,
        (
            *(leaves["input"], leaves["boxes"], leaves.get("offset"), leaves.get("mask")),
            *([*SIZE], 0.25, 2, True, 0.3),
        ),
    )


class Pooling(nn.Module):
    def forward(self, input: Tensor, boxes: Tensor, offset: Tensor) -> Tensor:
        return deform_roi_pool(input.relu(), boxes, SIZE, offset.tanh(), None, 0.25, 2, True).exp()


def test_compiles_to_one_graph_for_any_size(device: str) -> None:
    compiled = torch.compile(Pooling(), backend="aot_eager", fullgraph=True, dynamic=True)
    for num_boxes, features in ((4, (9, 12)), (7, (13, 8))):
        tensors = make(num_boxes=num_boxes, features=features, mask=False, device=device)
        arguments = [t.requires_grad_(n != "boxes") for n, t in tensors.items()]
        actual, expected = compiled(*arguments), Pooling()(*arguments)
        assert relative(actual, expected) < 1e-14
        wanted = [arguments[0], arguments[2]]
        pairs = zip(grad(actual.sum(), wanted), grad(expected.sum(), wanted), strict=True)
        assert all(relative(a, e) < 1e-13 for a, e in pairs)


def test_autocast_leaves_features_as_they_come(device: str) -> None:
    tensors = make(dtype=torch.float32, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert call(deform_roi_pool, tensors, SIZE).dtype == torch.float32
        low = tensors | {"input": tensors["input"].bfloat16()}
        assert call(deform_roi_pool, low, SIZE).dtype == torch.bfloat16


def test_the_module_is_the_function(device: str) -> None:
    tensors = make(device=device)
    module = DeformRoIPool(SIZE, **NUMBERS)
    assert torch.equal(module(**tensors), call(deform_roi_pool, tensors, SIZE))
    assert "sampling_ratio=2, aligned=True, gamma=0.3" in repr(module)


def test_counts_samples() -> None:
    tensors = {name: t.requires_grad_(name != "boxes") for name, t in make(mask=False).items()}

    def count(**numbers) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter:
            output = call(deform_roi_pool, tensors, SIZE, **numbers)
            forward = counter.get_total_flops()
            output.sum().backward()
        return forward, counter.get_total_flops() - forward

    # 9 boxes of 3 x 2 bins and 5 channels, 2 x 2 samples of four multiply-adds. The backward
    # computes the value, two slopes and the gradients of four pixels: four times as much.
    assert count() == (9 * 6 * 5 * 4 * 8, 4 * 9 * 6 * 5 * 4 * 8)
    assert count(sampling_ratio=-1)[0] == 9 * 6 * 5 * 8


def test_derivatives_there_are_none_of() -> None:
    tensors = {name: t.requires_grad_(name != "boxes") for name, t in make().items()}
    output = call(deform_roi_pool, tensors, SIZE)
    (first,) = grad((output**2).sum(), tensors["input"], create_graph=True)
    with pytest.raises(NotImplementedError, match="deform_roi_pool has no double backward"):
        first.sum().backward()
    plain = {name: t.detach() for name, t in tensors.items()}
    with forward_ad.dual_level():
        plain["input"] = forward_ad.make_dual(plain["input"], torch.ones_like(plain["input"]))
        with pytest.raises(NotImplementedError, match="deform_roi_pool has no forward-mode"):
            call(deform_roi_pool, plain, SIZE)


class Align(nn.Module):
    def __init__(self, ratio: int, aligned: bool) -> None:
        super().__init__()
        self.how = (None, None, 0.25, ratio, aligned)

    def forward(self, input: Tensor, boxes: Tensor) -> Tensor:
        return deform_roi_pool(input, boxes, SIZE, *self.how)


@pytest.mark.parametrize(
    "ratio, aligned, captured_before", [(2, True, False), (-1, False, False), (3, False, True)]
)
def test_onnx_knows_it_without_offsets(ratio: int, aligned: bool, captured_before: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tensors = make(offset=False, mask=False, dtype=torch.float32)
    module, arguments = Align(ratio, aligned), (tensors["input"], tensors["boxes"])
    how: dict[str, Any] = {"dynamo": True, "opset_version": 19, "verbose": False}
    shapes = {"input": {}, "boxes": {0: Dim("num_boxes")}}
    if captured_before:
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
        operator = torch.ops.deform_roi_pool.forward.default
        exported = torch.onnx.export(program.run_decompositions({operator: roi_align}), **how)
    else:
        exported = torch.onnx.export(module, arguments, dynamic_shapes=shapes, **how)
    model = exported.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    boxes = tensors["boxes"][:5]
    (actual,) = session.run(None, {"input": tensors["input"].numpy(), "boxes": boxes.numpy()})
    expected = module(tensors["input"], boxes).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_onnx_has_no_offsets() -> None:
    pytest.importorskip("onnxscript")
    tensors = make(mask=False, dtype=torch.float32)
    arguments = (tensors["input"], tensors["boxes"], tensors["offset"], None, SIZE)
    with pytest.raises(NotImplementedError, match="ONNX has no deformable RoI pooling"):
        roi_align(*arguments, 0.25, 2, True, 0.1)
    with pytest.raises(Exception, match="deform_roi_pool"):  # torch's message names the operator
        torch.onnx.export(Pooling(), tuple(tensors.values()), dynamo=True, verbose=False)


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"input": torch.ones(5, 7, 6)}, r"input must be \(N, C, H, W\), got \(5, 7, 6\)"),
        ({"input": torch.ones(2, 5, 0, 6)}, r"input \(2, 5, 0, 6\) has no channels or no pixels"),
        ({"input": torch.ones(2, 5, 7, 6).long()}, "input must be float32, .*, got torch.int64"),
        ({"boxes": [torch.ones(3, 4)]}, "boxes must be a tensor, got list"),
        ({"boxes": torch.ones(3, 4)}, r"boxes must be \(R, 5\), .*; got \(3, 4\)"),
        ({"boxes": torch.ones(9, 5).long()}, "boxes must be floating point, got torch.int64"),
        ({"offset": torch.ones(9, 2, 2, 3)}, r"offset must have shape \(9, 2, 3, 2\) for 9 boxes"),
        ({"offset": 0.5}, "offset must be a tensor or None, got float"),
        ({"mask": torch.ones(9, 1, 3, 2)}, r"mask must have shape \(9, 3, 2\) .* \(9, 1, 3, 2\)"),
        ({"mask": torch.ones(9, 3, 2, device="meta")}, "mask is on meta, input on cpu"),
        ({"output_size": (0, 2)}, r"output_size must be positive, got \(0, 2\)"),
        ({"output_size": 2.5}, "output_size must be one or two integers, got 2.5"),
        ({"spatial_scale": float("nan")}, "spatial_scale must be a finite number, got nan"),
        ({"gamma": float("inf")}, "gamma must be a finite number, got inf"),
    ],
)
def test_names_what_came_and_what_was_expected(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deform_roi_pool(**(make() | {"output_size": SIZE} | NUMBERS | change))


def test_the_compiled_operator_checks_as_well() -> None:
    tensors = make()
    numbers = ([*SIZE], 0.25, 2, True, 0.1)

    def run(change: dict) -> None:
        torch.ops.deform_roi_pool.forward(*(tensors | change).values(), *numbers)

    for change, message in (
        ({"boxes": tensors["boxes"].float()}, "deform_roi_pool: boxes must be Double beside an"),
        ({"offset": tensors["offset"][:8]}, r"offset must have shape \(9, 2, 3, 2\)"),
        ({"mask": tensors["mask"][:, :2]}, r"mask must have shape \(9, 3, 2\)"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(change)
