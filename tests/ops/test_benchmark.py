"""The candidates of the benchmark compute the same convolution, and its tables are right.

No speed is asserted.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import relative
from torchvision.ops import deform_conv2d

from ops import benchmark, memory
from ops.candidates import Problem, build, compulsory_bytes, inputs, names

PROBLEM = Problem(8, 5, 6, batch=2)


# ---- candidates ------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("name", [n for n in names("cpu") if n.split()[0] not in ("conv2d", "mm")])
def test_everyone_computes_the_same(name: str, groups: int) -> None:
    problem = replace(PROBLEM, groups=groups)
    t = inputs(problem, "cpu", torch.float32, torch.contiguous_format)
    expected = deform_conv2d(t["input"], t["offset"], t["weight"], padding=1, mask=t["mask"])
    actual = build(name, problem, "cpu").forward()
    # bfloat16 rounds to 8 bits: inputs and weights before the sum, outputs after it
    assert relative(actual, expected) < (2**-7 if "bfloat16" in name else 1e-5)


def test_layouts() -> None:
    for name, last in (("ours float32", True), ("ours float32 NCHW", False), ("mm float32", False)):
        output = build(name, PROBLEM, "cpu").forward()
        assert output.dim() == 2 or output.is_contiguous(memory_format=torch.channels_last) == last


def test_the_product_is_the_convolutions() -> None:
    columns, weight = build("mm bfloat16", PROBLEM, "cpu").leaves
    assert columns.shape == (2 * 5 * 6, 9 * 8) and weight.shape == (9 * 8, 8)
    assert columns.dtype == weight.dtype == torch.bfloat16
    columns, weight = build("mm float32", replace(PROBLEM, groups=4), "cpu").leaves
    assert columns.shape == (4, 2 * 5 * 6, 9 * 2) and weight.shape == (4, 9 * 2, 2)
    plain = build("conv2d float32", replace(PROBLEM, groups=4), "cpu")
    assert plain.leaves[1].shape == (8, 2, 3, 3) and plain.forward().shape == (2, 8, 5, 6)


def test_tf32_is_allowed_in_its_passes_only() -> None:
    def allowed() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = allowed()
    seen = []
    for name in ("ours tf32", "ours float32"):
        candidate = build(name, PROBLEM, "cpu")
        assert candidate.leaves[0].dtype == torch.float32
        forward = candidate.forward

        def watched(forward=forward) -> torch.Tensor:
            seen.append(allowed())
            return forward()

        for call in benchmark.passes(replace(candidate, forward=watched)).values():
            call()
    # Each once for the shape of the output, then in the forward, then in forward and backward.
    assert seen[1:3] == [(True, True)] * 2
    assert seen[4:] == [(False, False)] * 2
    assert allowed() == before


def test_bytes_that_have_to_move() -> None:
    # 60 positions: features 60 * 8 * 2, offsets and mask 60 * 27 * 4, weight 9 * 8 * 8 * 2 bytes
    given = 960 + 6480 + 1152
    forward = given + 960
    assert compulsory_bytes(PROBLEM, torch.bfloat16) == {
        "forward": forward,
        "forward+backward": forward + given + 960 + given,
    }
    grouped = compulsory_bytes(replace(PROBLEM, groups=4), torch.bfloat16)
    assert grouped["forward"] == forward - 1152 * 3 // 4


def test_the_first_round_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "COPY_BYTES", 2**10)
    measured = benchmark.measure(PROBLEM, "cpu", rounds=2)
    assert measured.keys() == {*names("cpu"), "copy"}
    assert all(len(times) == 2 for both in measured.values() for times in both.values())


# ---- rows and tables -------------------------------------------------------------------------


def samples() -> benchmark.Samples:
    """Return the seconds of three rounds, which are not sorted."""

    def both(forward: list[float], backward: list[float]) -> dict[str, list[float]]:
        return {"forward": forward, "forward+backward": backward}

    return {
        "torchvision float32": both([0.4, 0.2, 0.3], [1.0, 3.0, 2.0]),
        "ours float32": both([0.1, 0.1, 0.5], [0.5, 0.4, 0.6]),
        "onnxruntime float32": {"forward": [0.2, 0.2, 0.2]},
        "conv2d float32": both([0.05, 0.05, 0.05], [0.25, 0.25, 0.25]),
        "mm float32": both([0.04, 0.04, 0.04], [0.1, 0.1, 0.1]),
        "copy": {"forward": [1.0, 1.0, 1.0]},
    }


def test_rows_are_medians_and_their_ratios() -> None:
    rows = benchmark.rows_of(samples(), Problem(8, 3, 4), 2)
    ours = next(r for r in rows if (r["candidate"], r["pass"]) == ("ours float32", "forward"))
    assert ours["ms"] == pytest.approx(100) and ours["spread"] == pytest.approx(4)
    assert ours["times faster than torchvision"] == pytest.approx(3)
    assert ours["times conv2d"] == pytest.approx(2)
    assert ours["times the limit"] == pytest.approx(2.5)  # the limit is the product's 40 ms
    assert ours["problem"] == "C8@3x4 N1" and ours["threads"] == 2
    assert len(rows) == 9 and not any(row["candidate"] == "copy" for row in rows)


def test_bytes_are_the_limit_where_copying_is_slow() -> None:
    problem = Problem(8, 3, 4)
    moved = compulsory_bytes(problem, torch.float32)["forward"]
    slow = samples() | {"copy": {"forward": [2 * benchmark.COPY_BYTES / moved * 0.08] * 3}}
    rows = benchmark.rows_of(slow, problem, 1)  # moving the bytes takes 80 ms
    ours = next(r for r in rows if (r["candidate"], r["pass"]) == ("ours float32", "forward"))
    assert ours["bytes ms"] == pytest.approx(80) and ours["times the limit"] == pytest.approx(1.25)


def test_the_summary_is_a_geometric_mean() -> None:
    def row(problem: str, name: str, ratio: float) -> benchmark.Row:
        ratios = ("times faster than torchvision", "times conv2d", "times the limit")
        common = {"threads": 1, "problem": problem, "candidate": name, "pass": "forward"}
        return common | dict.fromkeys(ratios, ratio)

    rows = [row("C1@1x1 N1", "ours float32", 2), row("C2@1x1 N1", "ours float32", 8)]
    rows += [row("C1@1x1 N2", "ours float32", 3), row("C1@1x1 N1", "conv2d float32", 5)]
    first, second = benchmark.summary_of(rows)
    assert first["N"] == 1 and first["times conv2d"] == pytest.approx(4)
    assert second["N"] == 2 and second["times conv2d"] == pytest.approx(3)


def test_tables() -> None:
    lines = [["a", 0.12345, None], ["b", 1234.5, 7]]
    assert benchmark.table(["", "ms", "x"], lines).splitlines() == [
        "|  | ms | x |",
        "| --- | --- | --- |",
        "| a | 0.123 | - |",
        "| b | 1234 | 7 |",
    ]
    table = benchmark.time_table(benchmark.rows_of(samples(), Problem(8, 3, 4), 2))
    assert "| ours float32 | 100 | 200% | 3 | 2.5 | 500 | 20% | 4 | 5 |" in table.splitlines()
    assert "| onnxruntime float32 | 200 | 0% | 1.5 | 5 | - | - | - | - |" in table.splitlines()


# ---- memory and the command --------------------------------------------------------------------


@pytest.mark.skipif(not memory.measurable("cpu"), reason="the resident peak cannot be reset")
@pytest.mark.slow
def test_memory_of_torchvision_is_its_columns() -> None:
    peaks = memory.peaks("torchvision float32", Problem(64, 64, 128), "cpu")
    columns = 9 * 64 * 64 * 128 * 4 / 2**20  # 18 MiB; outputs of 2 MiB and buffers come on top
    assert columns < peaks["forward"] < 2 * columns
    assert columns < peaks["forward+backward"] < 3 * columns


def test_memory_on_cuda_is_read_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator counts exactly; a process for each candidate took minutes."""
    monkeypatch.setattr(memory, "build", lambda name, problem, device: problem)
    monkeypatch.setattr(memory, "measure", lambda problem, device: {"forward": problem.channels})
    monkeypatch.setattr(memory, "peaks_of", None)  # what starts a process
    assert memory.peaks("ours float32", PROBLEM, "cuda") == {"forward": PROBLEM.channels}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_command(
    device: str,
    groups: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", [(4, 5, 6), (8, 3, 4)])
    monkeypatch.setattr(benchmark, "COPY_BYTES", 2**10)
    monkeypatch.setattr(memory, "peaks", lambda *_: {"forward": 1.0, "forward+backward": None})
    threads = torch.get_num_threads()
    arguments = ["--rounds", "1", "--threads", "1", "--device", device, "--groups", str(groups)]
    arguments += ["--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    report = json.loads((tmp_path / "out.json").read_text())
    problems = 2 if device == "cpu" else 4
    forward_only = {"onnxruntime float32", "ours float32 high"}
    passes = sum(1 if name in forward_only else 2 for name in names(device))
    assert len(report["times"]) == problems * passes
    assert all(row["ms"] > 0 for row in report["times"])
    assert report["rounds"] == 1 and report["machine"]["versions"]["torch"]
    assert ("C4@5x6 N1" if groups == 1 else "C4/2@5x6 N1") in capsys.readouterr().out


def test_memory_that_cannot_be_measured_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse() -> None:
        raise PermissionError

    monkeypatch.setattr(memory, "reset_resident_peak", refuse)
    monkeypatch.setattr(benchmark, "SHAPES", [])
    monkeypatch.setattr(benchmark, "summary_of", lambda _: [{"threads": 1}])
    monkeypatch.setattr(sys, "argv", ["benchmark"])
    benchmark.main()
    assert "not measured" in capsys.readouterr().out
