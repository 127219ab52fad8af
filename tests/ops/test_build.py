"""The build hook: what it compiles, with which tools, and its messages if one is missing."""

from pathlib import Path

import pytest
from setuptools import Distribution, Extension

from ops import build
from ops.libraries import REASON


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset DEFORM_CONV_CUDA, which the environment may have set."""
    monkeypatch.delenv("DEFORM_CONV_CUDA", raising=False)


def test_build_and_use_agree_on_a_name() -> None:
    assert build.REASON == REASON  # the build must not import ops, which needs what it builds


def test_a_compiler_error_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "wrong.cpp").write_text("int main( {")
    with pytest.raises(build.BuildError, match="wrong.cpp.*error"):
        build.build_cpu([str(tmp_path / "wrong.cpp")], tmp_path / "_cpu.so")


def extension(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[list[str]]:
    """Build the CUDA extension without running a compiler; return the commands."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        if "--list-gpu-arch" in command:
            return "compute_75\ncompute_80\ncompute_90\n"
        commands.append(command)
        return ""

    monkeypatch.setattr(build, "run", run)
    build_cuda_library(folder)
    return commands


def build_cuda_library(folder: Path) -> None:
    command = build.BuildLibraries(Distribution())
    command.build_lib = str(folder)
    command.build_extension(Extension("ops._cuda", ["deform_conv.cu"]))


def test_cuda_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: Path("/toolkit/bin/nvcc"))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtorch_cuda.so").touch()
    monkeypatch.setattr(build, "torch_root", lambda: tmp_path)
    for given in ("8.6 9.0a", "8.6;9.0a+PTX"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
        (command,) = extension(monkeypatch, tmp_path)
        assert command[0] == "/toolkit/bin/nvcc"
        assert [part for part in command if part.startswith("-gencode")] == [
            "-gencode=arch=compute_86,code=sm_86",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_90,code=compute_90",  # PTX without the instructions of 90a alone
        ]
        assert command[-1] == str(tmp_path / "ops/_cuda.so")
    # An older nvcc does not know all default architectures: PTX serves the later GPUs.
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    (command,) = extension(monkeypatch, tmp_path)
    assert [part for part in command if part.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


def test_no_nvcc_leaves_cuda_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert extension(monkeypatch, tmp_path) == []
    assert "no nvcc was found" in capsys.readouterr().err
    assert "no nvcc was found" in (tmp_path / "ops" / REASON).read_text()


def test_a_torch_without_cuda_leaves_cuda_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: Path("/toolkit/bin/nvcc"))
    monkeypatch.setattr(build, "torch_root", lambda: tmp_path)
    assert extension(monkeypatch, tmp_path) == []
    assert "for the CPU only" in capsys.readouterr().err


@pytest.fixture
def broken_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide an nvcc that lists its architectures but cannot find a header."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtorch_cuda.so").touch()
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --list-gpu-arch ] && echo compute_80 && exit\n'
        "echo 'warning: a line before'; echo 'x.h:1: fatal error: nv/target: No such file' >&2\n"
        "echo 'another error' >&2; exit 3\n"
    )
    nvcc.chmod(0o755)
    monkeypatch.setattr(build, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(build, "torch_root", lambda: tmp_path)


def test_a_cuda_library_that_fails_leaves_its_reason(tmp_path: Path, broken_nvcc: None) -> None:
    folder = tmp_path / "ops"
    folder.mkdir()
    (folder / "_cuda.so").write_text("of an earlier build")
    build_cuda_library(tmp_path)
    assert not (folder / "_cuda.so").exists()
    reason = (folder / REASON).read_text()
    assert reason.endswith("failed with exit code 3: x.h:1: fatal error: nv/target: No such file\n")


def test_a_cuda_library_that_is_wanted(
    tmp_path: Path, broken_nvcc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFORM_CONV_CUDA", "1")
    with pytest.raises(build.BuildError, match="DEFORM_CONV_CUDA=1, but .*nv/target"):
        build_cuda_library(tmp_path)
    monkeypatch.setenv("DEFORM_CONV_CUDA", "0")
    monkeypatch.setattr(build, "build_cuda", lambda *_: pytest.fail("it is compiled"))
    build_cuda_library(tmp_path)
    assert "DEFORM_CONV_CUDA=0" in (tmp_path / "ops" / REASON).read_text()
    monkeypatch.setenv("DEFORM_CONV_CUDA", "yes")
    with pytest.raises(build.BuildError, match="DEFORM_CONV_CUDA=yes must be auto, 0 or 1"):
        build_cuda_library(tmp_path)


def test_what_ended_a_compiler() -> None:
    assert build.failure(-9, "") == "was ended by signal 9, perhaps because memory ran out"
    assert build.failure(2, "first\nsecond\n") == "failed with exit code 2: first"
    assert build.failure(2, "a\n  ld: fatal: b\n") == "failed with exit code 2: ld: fatal: b"


def test_an_editable_install_has_the_reason_and_no_older_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, built = tmp_path / "source", tmp_path / "built" / "ops"
    for folder in (source, built):
        folder.mkdir(parents=True)
    monkeypatch.setattr(build, "__file__", str(source / "build.py"))
    (source / "_cuda.so").touch()
    (built / REASON).write_text("why")
    command = build.BuildLibraries(Distribution())
    command.build_lib, command.extensions = str(tmp_path / "built"), []
    command.copy_extensions_to_source()
    assert [path.name for path in source.iterdir()] == [REASON]
    (built / REASON).unlink()
    command.copy_extensions_to_source()
    assert list(source.iterdir()) == []


def test_nvcc_of_cuda_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("home/bin", "path", "site/nvidia/cu13/bin"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "nvcc").touch(mode=0o755)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path / "site"))
    monkeypatch.setattr(build, "torch_root", lambda: tmp_path / "elsewhere" / "torch")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert build.find_nvcc() == tmp_path / "home/bin/nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert build.find_nvcc() == tmp_path / "site/nvidia/cu13/bin/nvcc"
    (tmp_path / "site/nvidia/cu13/bin/nvcc").unlink()
    assert build.find_nvcc() == tmp_path / "path/nvcc"
    (tmp_path / "path/nvcc").unlink()
    assert build.find_nvcc() is None


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(RuntimeError, match="a C\\+\\+20 compiler is needed"):
        build.find_compiler()


def test_the_compiler_of_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "env c++")
    assert build.find_compiler() == ["env", "c++"]
    monkeypatch.setenv("CXX", "/nowhere/g++ -m64")
    with pytest.raises(RuntimeError, match="CXX=/nowhere/g.* there is no /nowhere"):
        build.find_compiler()
