"""A run that is killed or told to leave at any step goes on to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detector.training.checkpoint import load_checkpoint
from detector.training.preemption import EXIT_CODE

EPOCHS, STEPS = 2, 6  # of an epoch
RUN = [
    "model.backbone=resnet10",
    "model.fpn_channels=16",
    "model.box_head_channels=16",
    "model.anchor_sizes=[8,16,24,32,64]",
    "data.num_train=24",
    "data.num_val=4",
    "data.image_size=64",
    "data.transform.train_min_sizes=[64]",
    "data.transform.min_size=64",
    "data.transform.max_size=64",
    "schedule.batch_size=4",
    "schedule.warmup_steps=2",
    f"schedule.epochs={EPOCHS}",
    "schedule.evaluate_every=1",
    "log_every=1",
    "checkpoint_every=2",
]
LIMIT = 120.0  # seconds for anything to happen


class Runs:
    """Starts training processes by way of the zygote."""

    def __init__(self, cache: Path) -> None:
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
        )

    def ask(self, request: object) -> int:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, folder: Path, *overrides: str) -> int:
        folder.mkdir(exist_ok=True)
        return self.ask([str(folder / "out.txt"), f"hydra.run.dir={folder}", *RUN, *overrides])

    def wait(self, pid: int) -> int:
        return self.ask(pid)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("cache"))
    yield runs
    runs.process.kill()
    runs.process.wait()


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert runs.wait(runs.start(folder)) == 0, (folder / "out.txt").read_text()
    assert len(losses(folder)) == EPOCHS * STEPS
    return folder


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if line["kind"] == "train"]


def await_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + LIMIT
    while len(losses(folder)) < step:
        assert time.monotonic() < deadline, (folder / "out.txt").read_text()
        time.sleep(0.002)


def assert_same_run(folder: Path, unbroken: Path) -> None:
    assert lines(folder) == lines(unbroken)  # every loss, rate and metric
    ours, theirs = (load_checkpoint(f / "checkpoints" / "last.pt") for f in (folder, unbroken))
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, unbroken)]
    assert summaries[0]["status"] == "done"
    assert summaries[0]["metrics"] == summaries[1]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(10))
def test_killed_at_any_step(runs: Runs, unbroken: Path, tmp_path: Path, trial: int) -> None:
    rng = random.Random(trial)
    workers = f"data.num_workers={trial % 3}"
    folder = tmp_path / "run"
    pid = runs.start(folder, workers)
    await_step(folder, rng.randint(1, EPOCHS * STEPS - 1))
    time.sleep(rng.random() * 0.1)
    os.kill(pid, signal.SIGKILL)
    assert runs.wait(pid) == -signal.SIGKILL
    pid = runs.start(folder, workers)
    assert runs.wait(pid) == 0, (folder / "out.txt").read_text()
    assert_same_run(folder, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_told_to_leave_at_any_step(
    runs: Runs, unbroken: Path, tmp_path: Path, number: signal.Signals, trial: int
) -> None:
    rng = random.Random(f"{number} {trial}")
    workers = f"data.num_workers={trial % 3}"
    folder = tmp_path / "run"
    pid = runs.start(folder, workers)
    await_step(folder, rng.randint(1, EPOCHS * STEPS - 2))
    time.sleep(rng.random() * 0.1)
    before = len(losses(folder))
    if trial % 2:
        os.killpg(pid, number)  # its workers get it as well, as in a cluster's job
    else:
        os.kill(pid, number)
    assert runs.wait(pid) == EXIT_CODE, (folder / "out.txt").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "preempted" and summary["signal"] == number.name
    saved = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert before <= saved["step"] <= before + 2  # the step it was in; one may have ended meanwhile
    assert saved["step"] == len(losses(folder))
    pid = runs.start(folder, workers)
    assert runs.wait(pid) == 0, (folder / "out.txt").read_text()
    assert_same_run(folder, unbroken)
