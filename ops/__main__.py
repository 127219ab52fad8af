"""Prints what a bug report needs, and checks the operator on every device.

    python -m ops

The report lists the versions, the compiled libraries (and why one of them is missing), the
processor and its kernels, and the GPUs. The check computes a small deformable convolution in
float32 and prints the relative errors of its output and gradients against float64. The exit code is
1 if the check fails on any device.
"""

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from ops import deform_conv2d, libraries

PACKAGES = ("deformable-faster-rcnn", "torchvision", "numpy", "hydra-core")
TOLERANCE = 1e-5  # relative; in sums of 216 float32 products, two kinds of kernels differ by 1e-6


def main() -> int:
    """Print the report; return the exit code."""
    torch.backends.cudnn.allow_tf32 = False  # the check expects exact products on a GPU too
    print_row("Python", f"{platform.python_version()} on {platform.platform()}")
    print_row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    for name in PACKAGES:
        print_row(name, version_of(name))
    print_row("CPU library", str(libraries.folder / "_cpu.so"))
    missing = libraries.cuda_missing
    is_there = missing is None
    print_row("CUDA library", str(libraries.folder / "_cuda.so") if is_there else f"no: {missing}")
    kernels = torch.ops.deform_conv.cpu_capabilities().split()
    print_row("CPU", f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print_row("CPU kernels", f"{kernels[-1]} (of {', '.join(kernels)})")
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices[1:]:
        print_row(device, torch.cuda.get_device_name(device))
    if not devices[1:]:
        print_row("GPU", "none that torch can use")
    return max([check(device) for device in devices])


def print_row(name: str, value: str) -> None:
    """Print one line of the report."""
    print(f"{name + ':':<24}{value}")


def version_of(name: str) -> str:
    """Return the version of an installed package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def check(device: str) -> int:
    """Compare the operator on a device with float64 on the CPU, and print the errors.

    Returns:
        0 if the operator is correct, 1 if it is wrong or cannot run on this device.
    """
    if device != "cpu" and libraries.cuda_missing is not None:
        print_row(f"check on {device}", "not possible without the CUDA library")
        return 1
    try:
        before = torch.ops.deform_conv.use_cpu_capability("portable")
        expected = output_and_gradients("cpu", torch.float64)
        torch.ops.deform_conv.use_cpu_capability(before)
        actual = output_and_gradients(device, torch.float32)
    except RuntimeError as error:
        print_row(f"check on {device}", f"failed: {str(error).splitlines()[0]}")
        return 1
    pairs = list(zip(actual, expected, strict=True))
    errors = [float((a.double().cpu() - e).norm() / e.norm()) for a, e in pairs]
    is_right = max(errors) < TOLERANCE  # false for NaN
    texts = f"output {errors[0]:.1e}, gradients {max(errors[1:]):.1e} from float64"
    print_row(f"check on {device}", f"{'correct' if is_right else 'WRONG'}: {texts}")
    return 0 if is_right else 1


def output_and_gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Compute a modulated deformable convolution of random tensors, the same on every device.

    Returns:
        The output and the gradients of the input, offset, mask, weight and bias.
    """
    rng = torch.Generator().manual_seed(0)
    input, offset, mask, weight, bias = (
        torch.randn(shape, generator=rng).to(device, dtype).requires_grad_()
        for shape in ((2, 24, 13, 17), (2, 36, 13, 17), (2, 18, 13, 17), (32, 24, 3, 3), (32,))
    )
    output = deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)
    leaves = [input, offset, mask, weight, bias]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m ops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    sys.exit(main())
