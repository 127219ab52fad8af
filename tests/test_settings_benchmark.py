"""The benchmark of training steps counts and compares the right steps. No speed is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import TINY

from detector import entry, settings_benchmark, step_time
from detector.config import ConfigError
from detector.settings_benchmark import (
    Candidate,
    busy,
    child,
    compare,
    in_child,
    options,
    to_markdown,
)

WORDS = [*TINY, "limit_train_batches=3"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["contiguous_format", "channels_last"])
def test_a_step_in_a_memory_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainers = []
    make = step_time.build_trainer

    def build_trainer(*args, **kwargs):
        trainers.append(make(*args, **kwargs))
        return trainers[-1]

    monkeypatch.setattr(step_time, "build_trainer", build_trainer)
    seconds = child(name, WORDS)
    assert len(seconds) == 1 and seconds[0] > 0  # of three steps, two are the warm-up
    (trainer,) = trainers
    weight = trainer.model.backbone.body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=getattr(torch, name))
    assert trainer.optimization.lr_schedule.last_epoch == 3  # all three were optimizer steps


def test_settings_of_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], dict[str, str]]] = []
    neighbours: list[int] = []

    class Entered:
        def __init__(self, count: int) -> None:
            neighbours.append(count)

        __enter__ = __exit__ = lambda *_: None

    def run(command, *, env, **_):
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 0, "a line\n[0.5, 0.25]\n", "")

    monkeypatch.setattr(settings_benchmark, "busy", Entered)
    monkeypatch.setattr(settings_benchmark.subprocess, "run", run)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    candidate = Candidate("x", ("data.num_workers=1",), {"OMP_WAIT_POLICY": "active"}, None, 2)
    assert in_child(candidate, ["seed=1"], steps=8) == [0.5, 0.25]
    ((command, environment),) = calls
    assert command[-5:] == [
        "child",
        "None",
        "seed=1",
        "data.num_workers=1",
        "limit_train_batches=10",
    ]
    assert environment["OMP_WAIT_POLICY"] == "active" and "GOMP_SPINCOUNT" not in environment
    assert environment["PATH"] == os.environ["PATH"] and neighbours == [2]


def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="x: .*there is no sead: did you mean seed"):
        in_child(Candidate("x"), ["sead=1"], steps=1)


def test_neighbours_are_busy_and_end() -> None:
    started: list[subprocess.Popen] = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings_benchmark.subprocess, "Popen", Noted)
        with pytest.raises(KeyError), busy(2):
            assert len(started) == 2 and all(process.poll() is None for process in started)
            raise KeyError
    assert all(process.returncode is not None for process in started)


def test_candidates_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(candidate: Candidate, overrides: list[str], steps: int) -> list[float]:
        order.append(candidate.name)
        return [float(len(order))] * steps

    monkeypatch.setattr(settings_benchmark, "in_child", noting)
    found = compare([Candidate("a"), Candidate("b")], [], rounds=2, steps=1)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": [[1.0], [3.0]], "b": [[2.0], [4.0]]}


def test_medians() -> None:
    rows = to_markdown({"a": [[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]}).splitlines()
    assert rows[2] == "| a | 4.500 | 2.000 to 5.000 |"


def test_options() -> None:
    own, others = options(["rounds=7", "seed=1", "json=a=b.json"])
    assert own == {"rounds": "7", "steps": "10", "json": "a=b.json"} and others == ["seed=1"]
    for wrong in ("rounds=0", "steps=many", "steps=-1"):
        with pytest.raises(ConfigError, match=f"{wrong} must be a number of at least 1"):
            options([wrong])


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(settings_benchmark, "in_child", lambda *_: [0.5])
    file = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["x", "neighbours", "rounds=1", "seed=3", f"json={file}"])
    settings_benchmark.main()
    assert "| as here, 2 neighbours | 0.500 |" in capsys.readouterr().out
    report = json.loads(file.read_text())
    assert len(report["seconds"]) == 9 and report["machine"]["versions"]["torch"]
    of_name = {one["name"]: one for one in report["candidates"]}
    assert of_name["as here, 1 neighbours"]["environment"] == entry.OPENMP_PASSIVE_WAIT
    monkeypatch.setattr(sys, "argv", ["x", "neighbors"])
    with pytest.raises(ConfigError, match="give one of formats, workers, neighbours"):
        settings_benchmark.main()
