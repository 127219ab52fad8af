"""Which compiled libraries are found, and the messages about those that are not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ops.__main__ as report
from ops import deform_conv2d, libraries


def test_a_checkout_in_front_of_a_plain_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, installed = tmp_path / "checkout" / "ops", tmp_path / "site" / "ops"
    for folder in (checkout, installed):
        folder.mkdir(parents=True)
    monkeypatch.setattr(libraries, "__file__", str(checkout / "libraries.py"))
    monkeypatch.setattr(sys, "path", [str(checkout.parent), str(installed.parent)])
    with pytest.raises(ImportError, match="checkout/ops/_cpu.so.*pip install -e"):
        libraries._find_folder()
    (installed / "_cpu.so").touch()
    assert libraries._find_folder() == installed
    (checkout / "_cpu.so").touch()
    assert libraries._find_folder() == checkout


def test_a_cpu_library_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "_cpu.so").write_text("junk")
    with pytest.raises(ImportError, match="cannot load .*_cpu.so.*pip install -e"):
        libraries._load_cpu(tmp_path)


def test_why_there_is_no_cuda_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert libraries._load_cuda(tmp_path) == f"there is no {tmp_path / '_cuda.so'}"
    (tmp_path / libraries.REASON).write_text("nvcc failed\n")
    assert libraries._load_cuda(tmp_path) == "nvcc failed"
    (tmp_path / "_cuda.so").write_text("junk")
    assert "cannot load" in str(libraries._load_cuda(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "for the CPU only" in str(libraries._load_cuda(tmp_path))


def test_a_tensor_on_a_gpu_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(libraries, "cuda_missing", "nvcc failed: no such header")
    input = torch.ones(1, 2, 5, 5).as_subclass(OnGpu)
    with pytest.raises(ValueError, match="nvcc failed: no such header; run `pip install"):
        deform_conv2d(input, torch.zeros(1, 18, 3, 3), torch.ones(2, 2, 3, 3))


def test_the_report_of_this_machine() -> None:
    done = subprocess.run([sys.executable, "-m", "ops"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert rows["torch"].split(",")[0].strip() == torch.__version__
    assert rows["CPU library"].strip().endswith("_cpu.so")
    assert rows["check on cpu"].strip().startswith("correct: output ")


def test_the_report_of_a_wrong_operator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def wrong(*args, **kwargs) -> torch.Tensor:
        output = deform_conv2d(*args, **kwargs)
        return output * 1.001 if output.dtype == torch.float32 else output

    monkeypatch.setattr(report, "deform_conv2d", wrong)
    assert report.check("cpu") == 1
    assert "WRONG: output 1.0e-03" in capsys.readouterr().out
    monkeypatch.setattr(libraries, "cuda_missing", "nvcc failed")
    assert report.check("cuda:0") == 1
    assert "not possible without the CUDA library" in capsys.readouterr().out
