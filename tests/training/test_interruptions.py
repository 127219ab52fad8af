"""A run that is killed or asked to stop at any step, and resumed, computes the same bits."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from runs import EPOCHS, RUN, STEPS, Runs, assert_same_run, await_step, losses, output, summary

from detector.exit_codes import PREEMPTED
from detector.training.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert runs.wait(runs.start(folder)) == 0, output(folder)
    assert len(losses(folder)) == EPOCHS * STEPS
    return folder


# Steps before the first checkpoint, after it, between two checkpoints, at the end of an epoch, in
# the next epoch, and near the end of the run. The moment within the step is random.
@pytest.mark.slow
@pytest.mark.parametrize("num_workers, step", [(0, 1), (1, 2), (2, 5), (0, 6), (1, 7), (2, 11)])
def test_killed_at_any_step(
    runs: Runs, unbroken: Path, tmp_path: Path, num_workers: int, step: int
) -> None:
    workers = f"data.num_workers={num_workers}"
    folder = tmp_path / "run"
    pid = runs.start(folder, workers)
    await_step(folder, step)
    time.sleep(random.Random(step).random() * 0.1)
    os.kill(pid, signal.SIGKILL)
    assert runs.wait(pid) == -signal.SIGKILL
    pid = runs.start(folder, workers)
    assert runs.wait(pid) == 0, output(folder)
    assert_same_run(folder, unbroken)


# All steps; each signal, sent to the process alone and to its process group; 0, 1 and 2 workers.
@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS - 1))
def test_asked_to_stop_at_any_step(runs: Runs, unbroken: Path, tmp_path: Path, step: int) -> None:
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[step % 3]
    workers = f"data.num_workers={step // 3 % 3}"
    folder = tmp_path / "run"
    pid = runs.start(folder, workers)
    await_step(folder, step)
    time.sleep(random.Random(step).random() * 0.1)
    before = len(losses(folder))
    if step % 2:
        os.killpg(pid, number)  # the workers receive it too, as in a job of a cluster
    else:
        os.kill(pid, number)
    assert runs.wait(pid) == PREEMPTED, output(folder)
    ending = summary(folder)
    assert ending["status"] == "preempted" and ending["signal"] == number.name
    saved = load_checkpoint(folder / "checkpoints" / "last.pt")
    # The current step is finished; another one may have ended after `before` was counted.
    assert before <= saved["step"] <= before + 2
    assert saved["step"] == len(losses(folder))
    pid = runs.start(folder, workers)
    assert runs.wait(pid) == 0, output(folder)
    assert_same_run(folder, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_second_job_in_the_folder_is_refused(
    runs: Runs, unbroken: Path, tmp_path: Path, devices: int
) -> None:
    """The second job ends with one line that names the first, which is not disturbed."""
    folder, second = tmp_path / "run", tmp_path / "second"
    second.mkdir()
    pid = runs.start(folder)
    await_step(folder, 1)
    words = [f"hydra.run.dir={folder}", f"devices={devices}", *RUN]
    assert runs.wait(runs.ask([str(second / "out.txt"), *words])) == 1
    assert f"error: {folder}: process {pid} on {os.uname().nodename} trains here" in output(second)
    assert "Traceback" not in output(second)
    assert runs.wait(pid) == 0, output(folder)
    assert_same_run(folder, unbroken)
