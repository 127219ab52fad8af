"""Do the operator's tests notice? Builds the kernels with one wrong line after the other.

    python tests/ops/planted_bugs.py

Each fault is planted in a copy of ops/, which is compiled; the operator's tests must then fail.
The table tells which test did. The exit status is 1 if a fault went unnoticed. A fault in lines
that this processor never runs is not planted, and the table says so.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import ops  # noqa: F401  (loads the kernels)

ROOT = Path(__file__).resolve().parents[2]
BILINEAR, GEOMETRY = "bilinear.h", "geometry.h"
SAMPLING, PRODUCT, KERNELS = "cpu/sampling.h", "cpu/product.h", "cpu/kernels.cpp"
VECTOR, OPERATOR = "cpu/vector.h", "cpu/deform_conv.cpp"

# fault -> the lines that make it: (file, right, wrong)
FAULTS: dict[str, list[tuple[str, str, str]]] = {
    "truncation for floor": [(BILINEAR, "floor_of(offset)", "T(int(offset))")],
    "dy and dx swapped, forward": [
        (
            KERNELS,
            "g_, y, x, ky, kx, samples_.offset[2 * at], samples_.offset[2 * at + 1]);\n"
            "        const Real<T> modulation",
            "g_, y, x, ky, kx, samples_.offset[2 * at + 1], samples_.offset[2 * at]);\n"
            "        const Real<T> modulation",
        )
    ],
    "dy and dx swapped, gradients": [
        (KERNELS, "modulation * derivative_y", "modulation * derivative_x"),
    ],
    "kernel height and width swapped": [
        (
            KERNELS,
            "tap / g_.kernel_w, kx = tap % g_.kernel_w",
            "tap / g_.kernel_h, kx = tap % g_.kernel_h",
        )
    ],
    "mask left out of grad_input": [
        (SAMPLING, "  Real<T> weight[4];\n};", "  Real<T> weight[4];\n  Real<T> unmasked[4];\n};"),
        (
            SAMPLING,
            "  return corners;",
            "  for (int k = 0; k < 4; ++k)\n"
            "    corners.unmasked[k] =\n"
            "        has_corner(at, k, height, width) ? corner_weight(at, k) : 0;\n"
            "  return corners;",
        ),
        (SAMPLING, "+ from.weight[k] * grad)", "+ from.unmasked[k] * grad)"),
        (SAMPLING, "+= from.weight[k] * grad_column[c]", "+= from.unmasked[k] * grad_column[c]"),
    ],
    "mask left out of grad_offset": [
        (KERNELS, "sample.modulation * derivative_x", "derivative_x"),
    ],
    "a row dropped in d/dx": [
        (
            BILINEAR,
            "(1 - at.fy) * (v[1] - v[0]) + at.fy * (v[3] - v[2])",
            "(1 - at.fy) * (v[1] - v[0])",
        )
    ],
    "offset group ignored, forward": [
        (KERNELS, "g_.offset_groups + run.offset_group)", "g_.offset_groups)"),
    ],
    "offset group ignored, backward": [
        (KERNELS, "g_.offset_groups + block_.offset_group)", "g_.offset_groups)"),
    ],
    "last column outside": [(BILINEAR, "x >= 0 && x < width", "x >= 0 && x < width - 1")],
    "row -1 outside": [(BILINEAR, "low >= -1 && low < size", "low >= 0 && low < size")],
    "horizontal stride for the vertical one": [(GEOMETRY, "y * g.stride_h", "y * g.stride_w")],
    "vertical dilation for the horizontal one": [
        (GEOMETRY, "kx * g.dilation_w", "kx * g.dilation_h")
    ],
    "the last rows of a product": [
        (PRODUCT, "i < rows; i += kTileRows", "i + kTileRows <= rows; i += kTileRows")
    ],
    "the second slice of a deep product": [
        (PRODUCT, "k < depth; k += longest", "k < longest; k += longest")
    ],
    "the other half of the lanes' sum": [(VECTOR, "(I ^ 1)...", "I...")],
    "odd rows of bfloat16 columns": [
        (VECTOR, "_mm512_slli_epi32(second, 16)", "_mm512_slli_epi32(first, 16)")
    ],
    "weights of the second part of the batch": [
        (OPERATOR, "split = 1; split < splits", "split = 2; split < splits")
    ],
    "a block's weight group": [
        (KERNELS, "        block_.group * outs_ * g_.taps() * per_group + ", "        "),
    ],
}

NEEDS = {"odd rows of bfloat16 columns": "avx512_bf16"}  # fault -> the kernel whose lines it is in


def plant(folder: Path, edits: list[tuple[str, str, str]]) -> None:
    """Make the edits in the sources, wherever their lines stand."""
    for name, right, wrong in edits:
        path = folder / "ops/csrc" / name
        text = path.read_text()
        if right not in text:
            raise SystemExit(f"planted_bugs.py: {name} no longer has the line: {right}")
        path.write_text(text.replace(right, wrong))


def first_failure(folder: Path) -> str | None:
    """Build the library in `folder` and run the tests; the first that fails."""
    # `ops` cannot be imported before its library is there: its build hook is loaded by itself.
    code = (
        "import importlib.util, pathlib;"
        "spec = importlib.util.spec_from_file_location('build', 'ops/build.py');"
        "build = importlib.util.module_from_spec(spec); spec.loader.exec_module(build);"
        "csrc = pathlib.Path('ops/csrc');"
        "sources = [csrc / 'register.cpp', *csrc.glob('cpu/*.cpp')];"
        "build.build_cpu(list(map(str, sources)), pathlib.Path('ops/_cpu.so'))"
    )
    built = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if built.returncode:
        raise SystemExit(f"planted_bugs.py: the fault does not compile\n{built.stderr[-2000:]}")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider",
         "--rootdir", ".", "-c", os.devnull, "tests/test_deform_conv.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}:{folder / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    if result.returncode == 0:
        return None
    found = re.search(r"^FAILED \S*::(\S+)", result.stdout, re.MULTILINE)
    return found[1] if found else f"exit status {result.returncode}"


def noticed_by(edits: list[tuple[str, str, str]]) -> str | None:
    """The first test that fails with these edits."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        without = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "ops", folder / "ops", ignore=without)
        shutil.copytree(ROOT / "tests/ops", folder / "tests", ignore=without)
        plant(folder, edits)
        return first_failure(folder)


def main() -> None:
    kernels = torch.ops.deform_conv.cpu_capabilities().split()
    elsewhere = {fault: name for fault, name in NEEDS.items() if name not in kernels}
    faults = {
        "none": [],
        **{fault: edits for fault, edits in FAULTS.items() if fault not in elsewhere},
    }
    unnoticed = 0
    print("| fault | noticed by |\n| --- | --- |", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for fault, failure in zip(faults, pool.map(noticed_by, faults.values()), strict=True):
            print(f"| {fault} | {failure or '-'} |", flush=True)
            unnoticed += (failure is None) == bool(faults[fault])
    for fault, name in elsewhere.items():
        print(f"| {fault} | not planted: this processor has no {name} |", flush=True)
    if unnoticed:
        raise SystemExit(f"planted_bugs.py: {unnoticed} of {len(faults)} answers are wrong")


if __name__ == "__main__":
    main()
