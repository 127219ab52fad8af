"""Compiles and runs programs that emulate CUDA kernels on the CPU, with cuda_emulation.h."""

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
# Each result is rounded once; with 16 bits, so are each column and its gradient.
TOLERANCE = dict(zip(DTYPES, (1e-6, 1e-14, 2**-10, 2**-7), strict=True))
SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def compiled(program: str, folder: Path, *flags: str) -> Path:
    """Compile a program of tests/ops/, named without .cpp, into the folder and return its path."""
    options = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]
    source, target = Path(__file__).with_name(f"{program}.cpp"), folder / program
    command = [*find_compiler(), *options, *flags, *torch_includes(), source, "-o", target]
    subprocess.run(command, check=True)
    return target


def run(program: Path, folder: Path, order: int, operands: dict[str, Tensor]) -> None:
    """Empty the folder, write the operands to files in it, and run the program on them."""
    for old in folder.iterdir():
        old.unlink()
    for name, tensor in operands.items():
        tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(folder / name)
    subprocess.run([program, folder, str(order)], check=True)


def result(folder: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read a result that the program has written to a file of the folder."""
    words = numpy.fromfile(folder / name, dtype=f"i{dtype.itemsize}")
    return torch.from_numpy(words).view(dtype).reshape(shape)
