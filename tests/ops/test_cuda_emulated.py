"""The CUDA kernels of the convolution without a GPU, against torchvision.

Not covered: whether nvcc's code does the same, matrix products by cuBLAS, and speed.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import torchvision
from cases import UGLY, Geometry, make, random_geometry, relative
from emulated import (
    DTYPES,
    FORWARD,
    REVERSE,
    SANITIZE,
    SHUFFLED,
    TOLERANCE,
    compiled,
    result,
    run,
)
from torch import Tensor
from torch.nn.functional import pad

# Channels that allow 16-byte accesses: 16 to a weight group, 32 to an offset group.
WIDE = Geometry(2, 64, (7, 9), 12, (3, 2), (2, 1), (1, 2), (1, 2), 4, 2)

# Geometries that the fused forward supports: weight and offset groups of 64 channels or multiples.
FUSED = {
    "two offset groups in a weight group": Geometry(
        2, 256, (5, 8), 40, (2, 1), (1, 1), (1, 0), (2, 1), 2, 4
    ),
    "two tiles of outputs": Geometry(1, 64, (5, 9), 264, (1, 3), (1, 2), (0, 1), (1, 2), 1, 1),
    "three steps to a tap": Geometry(3, 192, (6, 5), 130, (3, 2), (2, 1), (1, 2), (1, 1), 1, 1),
    "two weight groups in an offset group": Geometry(
        1, 128, (3, 4), 12, (1, 2), (1, 1), (0, 1), (1, 1), 2, 1
    ),
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("cuda_driver", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the driver so that it stops at undefined behaviour and accesses outside arrays."""
    return compiled("cuda_driver", tmp_path_factory.mktemp("sanitized"), *SANITIZE)


def operands(geometry: Geometry, dtype: torch.dtype, **how) -> dict[str, Tensor]:
    """Draw the tensors of `cases.make`, features in `dtype`, and the gradient of the output."""
    location = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {name: t.detach() for name, t in make(geometry, **how).items()}
    shape = geometry.batch, geometry.out_channels, *geometry.out_size
    generator = torch.Generator().manual_seed(9)
    tensors["upstream"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {
        name: t.to(location if name in ("offset", "mask") else dtype) for name, t in tensors.items()
    }


def numbers(geometry: Geometry, dtype: torch.dtype, most_bytes: int, spare: int) -> Tensor:
    """Return the numbers of the driver's file `geometry`."""
    return torch.tensor([
        geometry.batch, geometry.channels, *geometry.size,
        geometry.out_channels, *geometry.out_size, *geometry.kernel,
        *geometry.stride, *geometry.padding, *geometry.dilation,
        geometry.groups, geometry.offset_groups, spare, most_bytes, DTYPES.index(dtype),
    ])  # fmt: skip


def emulated(
    driver: Path,
    folder: Path,
    geometry: Geometry,
    tensors: dict[str, Tensor],
    order: int = FORWARD,
    most_bytes: int = 16384,
    spare: int = 0,
) -> dict[str, Tensor]:
    """Return the output and, if `upstream` is among the tensors, the gradients.

    Args:
        most_bytes: limit for a chunk of columns; the default is small and makes many chunks.
        spare: elements between the samples of two positions in offset and mask; they hold NaN.
    """
    dtype = tensors["input"].dtype
    location = tensors["offset"].dtype
    last = {name: t.permute(0, 2, 3, 1) if t.dim() == 4 else t for name, t in tensors.items()}
    for name in {"offset", "mask"} & set(last):
        last[name] = pad(last[name], (0, spare), value=float("nan"))
    run(driver, folder, order, {"geometry": numbers(geometry, dtype, most_bytes, spare), **last})

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        n, c, h, w = shape
        either = dtype if name in ("output", "grad_input", "grad_weight") else location
        stored = (folder / name).stat().st_size
        if stored and stored != either.itemsize * math.prod(shape):
            either = location  # several chunks are added in it
        return result(folder, name, (n, h, w, c), either).permute(0, 3, 1, 2)

    shape = geometry.batch, geometry.out_channels, *geometry.out_size
    results = {"output": read("output", shape)}
    for name in ("input", "offset", "weight", "mask"):
        if name in tensors and "upstream" in tensors:
            results[name] = read("grad_" + name, tuple(tensors[name].shape))
    return results


def rows_of_chunks(folder: Path) -> list[int]:
    """Return the number of positions in each chunk of the backward."""
    return numpy.fromfile(folder / "chunks", dtype="i8").tolist()


def launches(folder: Path) -> list[int]:
    """Return the launches of the forward and of the backward that `emulated` has run."""
    return result(folder, "launches", (2,), torch.int64).tolist()


def expected(geometry: Geometry, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute what `emulated` returns with torchvision in float64."""
    doubles = {name: t.double().requires_grad_() for name, t in tensors.items()}
    output = torchvision.ops.deform_conv2d(
        doubles["input"], doubles["offset"], doubles["weight"], doubles.get("bias"),
        *geometry.steps, doubles.get("mask"),
    )  # fmt: skip
    output.backward(doubles["upstream"].detach())
    names = [name for name in ("input", "offset", "weight", "mask") if name in doubles]
    return {"output": output.detach()} | {name: doubles[name].grad for name in names}


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_torchvision(driver: Path, tmp_path: Path, seed: int) -> None:
    geometry = random_geometry(seed)
    tensors = operands(geometry, torch.float64, seed=seed, mask=seed % 2 == 0, bias=seed % 3 > 0)
    actual = emulated(driver, tmp_path, geometry, tensors)
    for name, tensor in expected(geometry, tensors).items():
        assert relative(actual[name], tensor) < 1e-13, name


@pytest.mark.parametrize("geometry", [UGLY, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("most_bytes", "spare"), [(4096, 0), (1 << 24, 5)], ids=["chunks", "one"])
def test_every_dtype(
    sanitized: Path,
    tmp_path: Path,
    geometry: Geometry,
    dtype: torch.dtype,
    most_bytes: int,
    spare: int,
) -> None:
    tensors = operands(geometry, dtype)
    actual = emulated(sanitized, tmp_path, geometry, tensors, most_bytes=most_bytes, spare=spare)
    assert (len(rows_of_chunks(tmp_path)) == 1) == (most_bytes > 4096)
    for name, tensor in expected(geometry, tensors).items():
        assert relative(actual[name], tensor) < TOLERANCE[dtype], name


LAUNCHES = [  # of a forward and of a backward in one chunk
    (UGLY, torch.float32, False, [2, 9]),  # sample, multiply
    (UGLY, torch.float32, True, [3, 9]),  # the output begins with the bias
    (replace(UGLY, channels=12, out_channels=8), torch.bfloat16, False, [2, 9]),
    (FUSED["two offset groups in a weight group"], torch.bfloat16, True, [1, 9]),
]


@pytest.mark.parametrize(("geometry", "dtype", "bias", "expected"), LAUNCHES)
def test_launches(
    driver: Path,
    tmp_path: Path,
    geometry: Geometry,
    dtype: torch.dtype,
    bias: bool,
    expected: list[int],
) -> None:
    # Backward: a product, five for the index, gather, differentiate, a product.
    tensors = operands(geometry, dtype, bias=bias)
    emulated(driver, tmp_path, geometry, tensors, most_bytes=1 << 24)
    assert launches(tmp_path) == expected


def test_chunks_of_large_problems(driver: Path, tmp_path: Path) -> None:
    # 2^31 corners would overflow an int: 2^20 positions of 4 * 9 * 64 corners are more.
    crowded = Geometry(1, 64, (1024, 1024), 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, 64)
    run(driver, tmp_path, FORWARD, {"geometry": numbers(crowded, torch.float32, 1 << 60, 0)})
    rows = rows_of_chunks(tmp_path)
    assert sum(rows) == 2**20
    assert len(rows) == 2
    # 1 MiB holds 382 positions: 9 samples of 64 * 4 bytes and four corners of 12, and a list of 8.
    plain = replace(crowded, offset_groups=1, size=(10, 100))
    run(driver, tmp_path, FORWARD, {"geometry": numbers(plain, torch.float32, 1 << 20, 0)})
    assert rows_of_chunks(tmp_path) == [334, 334, 332]


@pytest.mark.parametrize("geometry", FUSED.values(), ids=FUSED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fused_forward(
    driver: Path, tmp_path: Path, geometry: Geometry, dtype: torch.dtype
) -> None:
    tensors = operands(geometry, dtype, mask=geometry.batch > 1, bias=geometry.batch > 1)
    tensors["offset"][0, 1, 1] = float("nan")
    inputs = {name: t for name, t in tensors.items() if name != "upstream"}
    outputs = [
        emulated(driver, tmp_path, geometry, inputs, order, spare=3)["output"]
        for order in (FORWARD, REVERSE, SHUFFLED)
    ]
    tensors["offset"][0, 1, 1] = 1e6
    exact = expected(geometry, tensors)["output"]
    for output in outputs:
        assert torch.equal(output, outputs[0])
        assert relative(output, exact) < TOLERANCE[dtype]


def test_fused_forward_stays_inside_its_arrays(sanitized: Path, tmp_path: Path) -> None:
    geometry = FUSED["two weight groups in an offset group"]
    tensors = operands(geometry, torch.bfloat16)
    del tensors["upstream"]
    assert emulated(sanitized, tmp_path, geometry, tensors)["output"].isfinite().all()


@pytest.mark.parametrize("out_channels", [6, 3])
def test_products_of_single_rows_and_columns(
    driver: Path, tmp_path: Path, out_channels: int
) -> None:
    # cuBLAS refuses a matrix of one row or column if it is told the other way of storing it.
    geometry = Geometry(1, 3, (4, 5), out_channels, (1, 1), (1, 1), (0, 0), (1, 1), 3, 1)
    tensors = operands(geometry, torch.float64)
    actual = emulated(driver, tmp_path, geometry, tensors)
    for name, tensor in expected(geometry, tensors).items():
        assert relative(actual[name], tensor) < 1e-13, name


@pytest.mark.parametrize("channels", [35, 136])
def test_more_channels_than_lanes_move_at_once(driver: Path, tmp_path: Path, channels: int) -> None:
    # 32 lanes take 35 channels one by one; 8 lanes take 136 in packs of 8: 64, 64 and 8.
    geometry = replace(UGLY, channels=channels, groups=1, offset_groups=1)
    tensors = operands(geometry, torch.bfloat16)
    actual = emulated(driver, tmp_path, geometry, tensors)
    for name, tensor in expected(geometry, tensors).items():
        assert relative(actual[name], tensor) < TOLERANCE[torch.bfloat16], name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -1e30, 2.0**31, -(2.0**31)])
def test_absurd_offsets_sample_nothing(sanitized: Path, tmp_path: Path, value: float) -> None:
    tensors = operands(UGLY, torch.float32)
    tensors["offset"][1, 3] = value  # image 1, offset group 0, tap 1, dx
    actual = emulated(sanitized, tmp_path, UGLY, tensors)
    tensors["mask"][1, 1] = 0  # the same tap, switched off
    tensors["offset"][1, 3] = 0
    switched_off = expected(UGLY, tensors)
    switched_off["offset"][1, 2:4] = 0
    switched_off["mask"][1, 1] = 0
    for name, tensor in switched_off.items():
        assert relative(actual[name], tensor) < 1e-6, name


@pytest.mark.parametrize("most_bytes", [16384, 1 << 24])
def test_every_sample_on_one_pixel(driver: Path, tmp_path: Path, most_bytes: int) -> None:
    geometry = Geometry(2, 8, (8, 9), 4, (3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    tensors = operands(geometry, torch.float32)
    rows = torch.arange(8.0)[:, None], torch.arange(9.0)[None, :]
    for tap in range(9):
        for axis, to in enumerate((3.25, 5.5)):
            base = rows[axis] - 1 + (tap % 3 if axis else tap // 3)
            tensors["offset"][:, 2 * tap + axis] = to - base
    actual = emulated(driver, tmp_path, geometry, tensors, most_bytes=most_bytes)
    assert (actual["input"] != 0).any(1).sum() == 2 * 4  # the four pixels around it, in each image
    for name, tensor in expected(geometry, tensors).items():
        assert relative(actual[name], tensor) < 3e-6, name


def test_empty_batch(sanitized: Path, tmp_path: Path) -> None:
    geometry = replace(UGLY, batch=0)
    actual = emulated(sanitized, tmp_path, geometry, operands(geometry, torch.float32))
    assert actual["output"].shape == (0, 4, *geometry.out_size)
    assert not actual["weight"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", [UGLY, WIDE], ids=["narrow", "wide"])
def test_same_bits_in_any_order_of_threads(
    driver: Path, tmp_path: Path, geometry: Geometry, dtype: torch.dtype
) -> None:
    tensors = operands(geometry, dtype, scale=0.5)
    forward, *others = (
        emulated(driver, tmp_path, geometry, tensors, order, most_bytes=1 << 16)
        for order in (FORWARD, REVERSE, SHUFFLED)
    )
    for other in others:
        for name in forward:
            assert torch.equal(forward[name], other[name]), name
