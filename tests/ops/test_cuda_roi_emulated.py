"""The CUDA kernels of RoI pooling without a GPU, against the CPU's in float64.

Not covered: whether nvcc's code does the same, and speed.
"""

from pathlib import Path

import pytest
import torch
from cases import make_rois as make
from cases import relative
from emulated import DTYPES, FORWARD, REVERSE, SANITIZE, SHUFFLED, TOLERANCE, compiled, result, run
from torch import Tensor
from torch.autograd import grad

from ops import deform_roi_pool

SIZE = (3, 2)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("cuda_roi_driver", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the driver so that it stops at undefined behaviour and accesses outside arrays."""
    return compiled("cuda_roi_driver", tmp_path_factory.mktemp("sanitized"), *SANITIZE)


def operands(dtype: torch.dtype, **how) -> dict[str, Tensor]:
    """Draw the tensors of `make`, features in `dtype`, and the gradient of the output."""
    location = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {name: t.to(location) for name, t in make(features=(6, 10), **how).items()}
    rng = torch.Generator().manual_seed(9)
    shape = len(tensors["boxes"]), tensors["input"].shape[1], *SIZE
    tensors["upstream"] = torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)
    return tensors | {"input": tensors["input"].to(dtype)}


def emulated(
    program: Path,
    folder: Path,
    tensors: dict[str, Tensor],
    order: int = FORWARD,
    ratio: int = 2,
    aligned: bool = True,
) -> dict[str, Tensor]:
    """Return the output and the gradients."""
    boxes, features = tensors["boxes"], tensors["input"]
    sizes = [*features.shape, len(boxes), *SIZE, max(ratio, 0), aligned]
    last = {name: tensors[name].permute(0, 2, 3, 1) for name in ("input", "upstream")}
    files = {
        "geometry": torch.tensor([*sizes, DTYPES.index(features.dtype)]),
        "scales": torch.tensor([0.25, 0.3], dtype=torch.float64),
    }
    run(program, folder, order, tensors | last | files)

    def channels_last(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        n, c, h, w = shape
        return result(folder, name, (n, h, w, c), dtype).permute(0, 3, 1, 2)

    results = {
        "output": channels_last("output", tensors["upstream"].shape, features.dtype),
        "input": channels_last("grad_input", features.shape, boxes.dtype),
    }
    for name in tensors.keys() & {"offset", "mask"}:
        results[name] = result(folder, f"grad_{name}", tuple(tensors[name].shape), boxes.dtype)
    return results


def expected(tensors: dict[str, Tensor], ratio: int = 2, aligned: bool = True) -> dict[str, Tensor]:
    doubles = {name: t.double() for name, t in tensors.items()}
    leaves = {n: t.requires_grad_() for n, t in doubles.items() if n not in ("boxes", "upstream")}
    output = deform_roi_pool(
        *(leaves["input"], doubles["boxes"], SIZE, leaves.get("offset"), leaves.get("mask")),
        *(0.25, ratio, aligned, 0.3),
    )
    gradients = grad(output, list(leaves.values()), doubles["upstream"])
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


# Channels are read one by one or 16 bytes at a time; 264 are more than the threads of a block.
@pytest.mark.parametrize(
    "dtype, channels", [*zip(DTYPES, (5, 6, 8, 5), strict=True), (torch.bfloat16, 264)], ids=str
)
def test_every_dtype(sanitized: Path, tmp_path: Path, channels: int, dtype: torch.dtype) -> None:
    tensors = operands(dtype, channels=channels, num_boxes=3, seed=1)
    actual = emulated(sanitized, tmp_path, tensors)
    for name, tensor in expected(tensors).items():
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}.get(dtype, TOLERANCE[dtype])
        assert relative(actual[name], tensor) < tolerance, name


@pytest.mark.parametrize(
    "offset, mask, ratio, aligned",
    [(True, False, -1, True), (False, True, 3, False), (False, False, 17, True)],
)
def test_agrees_with_the_cpu(
    driver: Path, tmp_path: Path, offset: bool, mask: bool, ratio: int, aligned: bool
) -> None:
    # 44 boxes of 6 bins are more bins than a block tests at a time.
    tensors = operands(torch.float64, num_boxes=44, channels=3, offset=offset, mask=mask)
    actual = emulated(driver, tmp_path, tensors, ratio=ratio, aligned=aligned)
    for name, tensor in expected(tensors, ratio, aligned).items():
        assert relative(actual[name], tensor) < 1e-12, name


def test_same_bits_in_any_order_of_threads(driver: Path, tmp_path: Path) -> None:
    tensors = operands(torch.float32, num_boxes=44, channels=8)
    forward, *others = (
        emulated(driver, tmp_path, tensors, order) for order in (FORWARD, REVERSE, SHUFFLED)
    )
    for other in others:
        for name in forward:
            assert torch.equal(forward[name], other[name]), name


@pytest.mark.parametrize("value, ratio", [(float("nan"), 2), (float("inf"), -1), (-1e30, -1)])
def test_absurd_boxes_and_offsets_sample_nothing(
    sanitized: Path, tmp_path: Path, value: float, ratio: int
) -> None:
    tensors = operands(torch.float32)
    tensors["boxes"][3, 2] = value
    tensors["offset"][5, 1, 2, 0] = value
    actual = emulated(sanitized, tmp_path, tensors, ratio=ratio)
    assert not actual["output"][3].any() and not actual["output"][5, :, 2, 0].any()
    for name, tensor in expected(tensors, ratio).items():
        assert relative(actual[name], tensor) < 1e-5, name


def test_a_box_of_no_image_is_nan(sanitized: Path, tmp_path: Path) -> None:
    tensors = operands(torch.float32)
    strange = {2: 2.0, 4: -1.0, 5: float("nan")}
    for number, image in strange.items():
        tensors["boxes"][number, 0] = image
    actual = emulated(sanitized, tmp_path, tensors)
    assert actual["output"].isnan().flatten(1).all(1).tolist() == [i in strange for i in range(9)]
    others = [i for i in range(9) if i not in strange]
    rest = {n: t if n == "input" else t[others] for n, t in tensors.items()}
    assert relative(actual["input"], expected(rest)["input"]) < 1e-5


def test_no_boxes(sanitized: Path, tmp_path: Path) -> None:
    tensors = operands(torch.float32, num_boxes=1)
    none = {name: t if name == "input" else t[:0] for name, t in tensors.items()}
    assert not emulated(sanitized, tmp_path, none)["input"].any()
