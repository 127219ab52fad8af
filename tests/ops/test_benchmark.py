"""The benchmark runs and its ratios are those of its medians; it asserts no speed."""

import json
import sys
from pathlib import Path

import pytest
import torch

from ops import benchmark


def test_rows() -> None:
    times = {
        "torchvision float32": ([0.4, 0.2, 0.3], [1.0, 3.0, 2.0]),
        "ours float32": ([0.1, 0.1, 0.5], [0.5, 0.4, 0.6]),
    }
    theirs, ours = benchmark.rows_of(times, (8, 3, 4), 2)
    assert theirs["x forward"] == 1 and theirs["x forward+backward"] == 1
    assert ours["forward ms"] == 100 and ours["x forward"] == 3  # medians 0.3 / 0.1
    assert ours["x forward+backward"] == 4 and ours["spread"] == "40%"
    assert ours["shape"] == "C8@3x4"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark, "SHAPES", [(4, 5, 6)])
    threads = torch.get_num_threads()
    arguments = ["--rounds", "1", "--threads", "1", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len(rows) == 5 and all(row["forward ms"] > 0 for row in rows)
    assert "C4@5x6" in capsys.readouterr().out
