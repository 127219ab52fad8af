"""A run that is killed or told to leave at any step goes on to the same bits."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import EPOCHS, STEPS, Runs, assert_same_run, await_step, losses, output, summary

from detector.exit_codes import PREEMPTED
from detector.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert runs.wait(runs.start(folder)) == 0, output(folder)
    assert len(losses(folder)) == EPOCHS * STEPS
    return folder


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
    assert runs.wait(pid) == 0, output(folder)
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
    assert runs.wait(pid) == PREEMPTED, output(folder)
    ending = summary(folder)
    assert ending["status"] == "preempted" and ending["signal"] == number.name
    saved = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert before <= saved["step"] <= before + 2  # the step it was in; one may have ended meanwhile
    assert saved["step"] == len(losses(folder))
    pid = runs.start(folder, workers)
    assert runs.wait(pid) == 0, output(folder)
    assert_same_run(folder, unbroken)
