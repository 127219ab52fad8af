"""Builds the kernels with one fault at a time and shows whether the operators' tests notice it.

    python tests/ops/planted_bugs.py

Each fault is planted in a copy of ops/, the files that contain it are compiled, and the tests of
that operator must then fail. The table names the first test that failed. The exit status is 1 if a
fault went unnoticed. A fault in lines that this processor never runs is not planted, and the table
says so.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BILINEAR, GEOMETRY = "bilinear.h", "geometry.h"
SAMPLING, PRODUCT, KERNELS = "cpu/sampling.h", "cpu/product.h", "cpu/kernels.cpp"
VECTOR, OPERATOR = "cpu/vector.h", "cpu/deform_conv.cpp"
ROI, ROI_KERNELS, ROI_OPERATOR = "roi.h", "cpu/roi_kernels.cpp", "cpu/deform_roi_pool.cpp"

# fault -> the edits that make it: (file, right text, wrong text)
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
    "the weights of another group": [(KERNELS, "(part.group * outs_ + out)", "out")],
    "the columns of another group": [
        (KERNELS, "columns_.data() + part.group * kParts<T, F> * depth_", "columns_.data()")
    ],
    "another group's grad_output for grad_input": [
        (KERNELS, ": grad_output + part.group * outs_", ": grad_output + first_group_ * outs_")
    ],
    "another group's grad_output for grad_weight": [
        (KERNELS, "rows.count, grad_output + part.group * outs_", "rows.count, grad_output")
    ],
    "another group's copy of grad_output": [
        (KERNELS, "grad_output_.data() + (part.group - first_group_)", "grad_output_.data() + 0")
    ],
    "lanes of the group beside it": [(VECTOR, "lanes ? vector : load(to)", "vector")],
    "zero times the NaN of the group beside it": [
        (VECTOR, "lanes ? vector : load(to)", "lanes ? vector : load(to) + 0 * vector")
    ],
    "the last rows of a group's product": [
        (
            PRODUCT,
            "if constexpr (kRows > 1)\n    multiply_vector",
            "if constexpr (kRows > 2)\n    multiply_vector",
        )
    ],
    "half a pixel left out": [(ROI, "g.aligned ? R(0.5) : R(0)", "R(0)")],
    "small boxes not widened": [(ROI, "if (!g.aligned && axis.size < 1) axis.size = 1;", "")],
    "samples not centred": [(ROI, "(static_cast<R>(sample) + R(0.5))", "static_cast<R>(sample)")],
    "as many samples as whole pixels": [(ROI, "ceil_of(axis.bin)", "floor_of(axis.bin)")],
    "beyond the first pixel nothing": [
        (
            ROI,
            "place >= -1 && place <= static_cast<R>(size)",
            "place >= 0 && place <= static_cast<R>(size)",
        )
    ],
    "beyond the last pixel nothing": [
        (
            ROI,
            "place >= -1 && place <= static_cast<R>(size)",
            "place >= -1 && place <= static_cast<R>(size - 1)",
        )
    ],
    "samples of a huge bin cut too early": [(ROI, "double(size) - double(start)", "double(start)")],
    "an infinite box": [(ROI, "if (!is_sane) return {};", "")],
    "offsets in pixels": [(ROI, "static_cast<R>(g.gamma) * axis.size * offset", "offset")],
    "bins' offsets along y and x swapped": [
        (ROI_KERNELS, "offset[g_.bins() + bin.number]", "offset[bin.number]"),
    ],
    "rows of pixels shared by bins that moved": [
        (ROI_KERNELS, "if (offset || x == 0)", "if (x == 0)")
    ],
    "lines of neighbouring samples not shared": [
        (ROI_KERNELS, "line->weight += weight", "line->weight = weight")
    ],
    "the slope beyond the border": [(ROI_KERNELS, "sample.moves ? R(-1) : R(0)", "R(-1)")],
    "the mask left out of the features' gradient": [
        (ROI_KERNELS, "grads[k] = bin.factor *", "grads[k] = bin.share *"),
        (ROI_KERNELS, "(bin.factor * grad[c])", "(bin.share * grad[c])"),
    ],
    "the mask left out of the bins' gradient": [
        (ROI_KERNELS, "bin.factor * gamma * roi.x.size", "bin.share * gamma * roi.x.size")
    ],
    "the mask's gradient with the mask": [
        (ROI_KERNELS, "grad_mask[at] = bin.share", "grad_mask[at] = bin.factor")
    ],
    "the RoI's height for its width": [(ROI_KERNELS, "gamma * roi.x.size", "gamma * roi.y.size")],
    "gradients of the other image": [
        (ROI_KERNELS, "if (roi_of(g, samples.boxes + 5 * roi).image != image) continue;", "")
    ],
    "the last channels of an image": [
        (ROI_OPERATOR, "(g.channels + channels - 1) / channels", "g.channels / channels")
    ],
    "a box of no image": [(ROI_OPERATOR, "    check_images(g, data<R>(rois));\n", "")],
}

NEEDS = {  # fault -> the capability whose kernels have the faulty line
    "odd rows of bfloat16 columns": "avx512_bf16",
    "another group's copy of grad_output": "avx512_bf16",
}


def plant(folder: Path, edits: list[tuple[str, str, str]]) -> None:
    """Replace each right text by the wrong one, wherever it occurs in its file."""
    for name, right, wrong in edits:
        path = folder / "ops/csrc" / name
        text = path.read_text()
        if right not in text:
            raise SystemExit(f"planted_bugs.py: {name} no longer has the line: {right}")
        path.write_text(text.replace(right, wrong))


def build_module() -> ModuleType:
    """Import ops/build.py without `ops`, since one process can load the kernels only once."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "ops/build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def read_by(source: Path) -> set[Path]:
    """Return a source file and the files of this project that it includes."""
    found: set[Path] = set()
    waiting = [source.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            names = re.findall(r'^#\s*include "(.+)"', file.read_text(), re.MULTILINE)
            waiting += [(file.parent / name).resolve() for name in names]
    return found


def sources_in(folder: Path) -> list[Path]:
    csrc = folder / "ops/csrc"
    return [csrc / "register.cpp", *sorted(csrc.glob("cpu/*.cpp"))]


def compile_objects(build: ModuleType, objects: Path) -> None:
    """Compile all sources without a fault, on all cores."""
    jobs = [
        (str(source), options, str(objects / f"{source.stem}_{name}.o"))
        for source in sources_in(ROOT)
        for name, options in build.capabilities(source.name).items()
    ]
    with redirect_stderr(StringIO()), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: build.compile_cpu(*job), jobs))


class Watch:
    """A plugin of pytest that orders the tests and records the first one that fails."""

    failure: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put tests of kernels first, and the first parameters of each test before its second ones.

        Most faults are then noticed within seconds.
        """
        turns: Counter[str] = Counter()

        def order(item: pytest.Item) -> tuple[bool, int]:
            assert isinstance(item, pytest.Function)
            turns[item.originalname] += 1
            of_kernels = {"kernels", "double_kernels"} & set(item.fixturenames)
            return not of_kernels, turns[item.originalname]

        items.sort(key=order)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failure is None:
            self.failure = report.nodeid.split("::", 1)[1]


def first_failure(
    folder: Path, edits: list[tuple[str, str, str]], test: str, build: ModuleType, objects: Path
) -> str | None:
    """Build the library in `folder`, run one file of tests and return the first test that fails.

    Args:
        objects: folder of object files without a fault. They are linked for all sources that the
            edits do not concern, and for all sources of the other operator.
    """
    edited = {(folder / "ops/csrc" / name).resolve() for name, *_ in edits}
    compile_cpu = build.compile_cpu

    def compile_what_was_edited(source: str, options: list[str], target: str) -> None:
        if edited & read_by(Path(source)) and ("roi" in source) == ("roi" in test):
            compile_cpu(source, options, target)
        else:
            shutil.copy(objects / Path(target).name, target)

    build.compile_cpu = compile_what_was_edited
    build.build_cpu([str(source) for source in sources_in(folder)], folder / "ops/_cpu.so")
    sys.path[:0] = [str(folder), str(folder / "tests")]
    watch = Watch()
    code = pytest.main(
        ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "-c", os.devnull, f"tests/{test}"],
        plugins=[watch],
    )
    return watch.failure or (f"exit status {int(code)}" if code else None)


def noticed_by(
    edits: list[tuple[str, str, str]], test: str, build: ModuleType, objects: Path, answer: Path
) -> int:
    """Write the first test that fails with these edits to `answer`; needs a process of its own.

    Returns:
        The exit status of the process: 0 if the tests ran, else 1.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        without = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / "ops", folder / "ops", ignore=without)
        shutil.copytree(ROOT / "tests/ops", folder / "tests", ignore=without)
        plant(folder, edits)
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
        shown = os.dup(2)
        os.dup2(output, 1), os.dup2(output, 2)
        try:
            answer.write_text(first_failure(folder, edits, test, build, objects) or "")
        except Exception:  # it does not compile
            os.write(shown, traceback.format_exc().encode())
            return 1
    return 0


def capabilities() -> list[str]:
    """Return the names of the kernels that this processor can run."""
    code = "import torch, ops; print(torch.ops.deform_conv.cpu_capabilities())"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # per process; there are as many processes as cores
    os.environ["CXXFLAGS"] = f"{os.environ.get('CXXFLAGS', '')} -O1"  # takes half the time of -O3
    kernels = capabilities()
    import torch  # noqa: F401  (once, for all processes)
    import torchvision  # noqa: F401

    elsewhere = {fault: name for fault, name in NEEDS.items() if name not in kernels}
    conv, roi = "test_deform_conv.py", "test_deform_roi_pool.py"
    jobs: dict[str, tuple[list[tuple[str, str, str]], str]] = {
        "none": ([], conv),
        "none, RoI pooling": ([], roi),
    }
    for fault, edits in FAULTS.items():
        if fault not in elsewhere:
            jobs[fault] = edits, roi if any("roi" in name for name, *_ in edits) else conv
    waiting, running, found = list(jobs), {}, {}
    build = build_module()
    print("| fault | noticed by |\n| --- | --- |", flush=True)
    with TemporaryDirectory() as name:
        objects = Path(name)
        compile_objects(build, objects)
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                fault = waiting.pop(0)
                answer = objects / f"answer {len(waiting)}"
                pid = os.fork()
                if pid == 0:
                    try:
                        os._exit(noticed_by(*jobs[fault], build, objects, answer))
                    finally:
                        os._exit(3)
                running[pid] = fault, answer
            pid, status = os.wait()
            fault, answer = running.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code > 0:
                raise SystemExit(f"planted_bugs.py: {fault}: could not be tried")
            found[fault] = answer.read_text() if code == 0 else f"signal {-code}"
            print(f"| {fault} | {found[fault] or '-'} |", flush=True)
    for fault, name in elsewhere.items():
        print(f"| {fault} | not planted: this processor has no {name} |", flush=True)
    wrong = sum(bool(found[fault]) != bool(edits) for fault, (edits, _) in jobs.items())
    if wrong:
        raise SystemExit(f"planted_bugs.py: {wrong} of {len(jobs)} answers are wrong")


if __name__ == "__main__":
    main()
