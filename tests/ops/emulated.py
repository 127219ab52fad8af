"""Programs that run CUDA kernels on the CPU, compiled for it by cuda_emulation.h."""

import subprocess
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ops.build import find_compiler, torch_includes

FORWARD, REVERSE, SHUFFLED = range(3)  # orders of threads
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
]  # as the programs number them
# One rounding of each result, and for 16 bits one of each column and of its gradient.
TOLERANCE = dict(zip(DTYPES, (1e-6, 1e-14, 2**-10, 2**-7), strict=True))
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def compiled(program: str, folder: Path, *flags: str) -> Path:
    """The program of tests/ops/, by its name without .cpp, in the folder."""
    options = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
    source, target = Path(__file__).with_name(f"{program}.cpp"), folder / program
    command = [*find_compiler(), *options, *flags, *torch_includes(), source, "-o", target]
    subprocess.run(command, check=True)
    return target


def run(program: Path, folder: Path, order: int, operands: dict[str, Tensor]) -> None:
    """Run it on these operands, each a file of the folder, which is emptied before."""
    for old in folder.iterdir():
        old.unlink()
    for name, tensor in operands.items():
        tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(folder / name)
    subprocess.run([program, folder, str(order)], check=True)


def result(folder: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What it has left in a file of the folder."""
    words = numpy.fromfile(folder / name, dtype=f"i{dtype.itemsize}")
    return torch.from_numpy(words).view(dtype).reshape(shape)
