"""The kernels of several processors in one library, and the emulation of a matrix unit."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import planted_bugs
import pytest

from ops import build

ROOT = Path(__file__).resolve().parents[2]
CPU = ROOT / "ops/csrc/cpu"
SOURCES = [str(CPU.parent / "register.cpp"), *map(str, CPU.glob("*.cpp"))]
CASES = "amx and not sizes_of_a_detector"  # the latter would take the emulation a minute


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the library; return the folder of the library and its object files."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "TemporaryDirectory", lambda: nullcontext(str(folder)))
        build.build_cpu(SOURCES, folder / "_cpu.so")
    return folder


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_library_compiles_and_loads_and_its_kernels_share_no_function(built: Path) -> None:
    # The linker keeps one of several equal inline functions: it could be the one for a processor
    # that the user does not have.
    code = (
        f"import torch; torch.ops.load_library({str(built / '_cpu.so')!r});"
        "print(torch.ops.deform_conv.forward.default._schema.name)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "deform_conv::forward", result.stderr
    for file, table in (("kernels", "kTable"), ("roi_kernels", "kRoiTable")):
        for capability in build.capabilities(f"{file}.cpp"):
            target = str(built / f"{file}_{capability}.o")
            command = ["nm", "-C", target]
            symbols = subprocess.run(command, capture_output=True, text=True, check=True)
            lines = [line.split(maxsplit=2) for line in symbols.stdout.splitlines()]
            lines = [line for line in lines if len(line) == 3]
            shared = [name for _, kind, name in lines if kind in "WwVvu" and "DW.ref." not in name]
            visible = [name for _, kind, name in lines if kind in "TRDB"]
            assert shared == [] and visible == [f"deform_conv::{capability}::{table}"]


@pytest.mark.parametrize("edits", planted_bugs.FAULTS.values(), ids=planted_bugs.FAULTS)
def test_faults_can_still_be_planted(tmp_path: Path, edits: list[tuple[str, str, str]]) -> None:
    shutil.copytree(ROOT / "ops/csrc", tmp_path / "ops/csrc")
    planted_bugs.plant(tmp_path, edits)  # exits if a line is missing


@pytest.mark.processor("avx512_bf16")  # which the kernels around the matrix unit use
def test_matrix_unit_by_emulation(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Runs the operator's own tests on a library whose matrix unit is tests/ops/amx_emulation.h.
    header = Path(__file__).with_name("amx_emulation.h")
    monkeypatch.setenv("CXXFLAGS", f"'-DDEFORM_CONV_EMULATE_AMX=\"{header}\"'")
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("*.so", "csrc"))
    compile_cpu = build.compile_cpu

    def compile_what_differs(source: str, options: list[str], target: str) -> None:
        name = Path(target).name
        if name in ("capability_.o", "kernels_amx.o"):
            compile_cpu(source, options, target)
        else:
            shutil.copy(built / name, target)

    monkeypatch.setattr(build, "compile_cpu", compile_what_differs)
    build.build_cpu(SOURCES, tmp_path / "ops/_cpu.so")
    for name in ("cases.py", "conftest.py", "reference.py", "test_deform_conv.py"):
        shutil.copy(Path(__file__).with_name(name), tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CASES]
    result = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "test_deform_conv.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" not in result.stdout and "passed" in result.stdout
