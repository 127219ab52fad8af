"""SLURM with several nodes: jobs that are preempted or lose their node compute the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import EPOCHS, RUN, STEPS, assert_same_run, await_step, losses, output, summary
from slurm import Slurm, lacking

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "train.py"), *RUN]
LIMIT = 180  # seconds after which a wait fails


@pytest.fixture(scope="module")
def slurm(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    why = lacking()
    if why:
        pytest.skip(why)
    # The batch script of the documentation calls `python`.
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment = environment | {"PATH": path}
    with Slurm(tmp_path_factory.mktemp("slurm"), environment, num_nodes=3) as slurm:
        yield slurm


def submit(slurm: Slurm, folder: Path, *command: str) -> str:
    """Queue a job with its output in the folder, and return its id."""
    folder.mkdir(exist_ok=True)
    options = ["--parsable", f"--chdir={ROOT}", f"--output={folder}/out.txt", "--open-mode=append"]
    return slurm.run("sbatch", *options, *command).strip()


def template(slurm: Slurm, folder: Path, *overrides: str, nodes: int = 1) -> str:
    """Queue the batch script of the documentation, and return the job's id."""
    script = str(ROOT / "docs" / "cluster.sbatch")
    options = [f"--nodes={nodes}", "--time=20"]
    return submit(slurm, folder, *options, script, *RUN, f"hydra.run.dir={folder}", *overrides)


def until(condition: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.2)


def until_over(slurm: Slurm, job: str, folder: Path) -> str:
    """Wait for the end of a job, and return its state as SLURM names it."""
    over = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
    until(lambda: slurm.state(job)["JobState"] in over, folder)
    return slurm.state(job)["JobState"]


@pytest.fixture(scope="module")
def alone(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the training without SLURM, and return the run folder."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([*TRAIN, f"hydra.run.dir={folder}"], env=environment, check=True, timeout=LIMIT)
    return folder


def test_two_tasks_on_two_nodes(slurm: Slurm, environment: dict[str, str], tmp_path: Path) -> None:
    """Two tasks of srun compute the same bits as two processes of torchrun."""
    ours, theirs = tmp_path / "srun", tmp_path / "torchrun"
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", "--time=5"]
    said = slurm.run(*srun, *TRAIN, f"hydra.run.dir={ours}", limit=LIMIT)
    assert "2 process(es)" in said and len(losses(ours)) == EPOCHS * STEPS
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, *TRAIN[1:], f"hydra.run.dir={theirs}"]
    subprocess.run(command, env=environment, check=True, timeout=LIMIT)
    assert_same_run(ours, theirs)


def test_a_sweep_that_ends_in_a_study(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    arms = ["deform=none,c3-c5_v2", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]
    slurm.run(*TRAIN[:2], "-m", *RUN, *arms, *launcher, limit=2 * LIMIT)
    study = json.loads((tmp_path / "study.json").read_text())
    assert sorted(arm["arm"] for arm in study["arms"]) == ["c3-c5_v2", "none"]
    assert not study["left_out"]
    assert_same_run(tmp_path / "2", alone)  # this arm has the default values


def test_a_job_that_is_preempted(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    """A job is preempted by another one that needs all nodes.

    It is asked to stop, saves, is queued again, and resumes.
    """
    folder = tmp_path / "run"
    job = template(slurm, folder)
    await_step(folder, 3)
    other = submit(
        slurm,
        tmp_path / "other",
        *("--partition=high", f"--nodes={len(slurm.nodes)}", "--wrap", "sleep 5"),
    )
    until(lambda: slurm.state(job)["Restarts"] == "1", folder)
    assert summary(folder)["status"] == "preempted" and summary(folder)["signal"] == "SIGTERM"
    assert len(losses(folder)) < EPOCHS * STEPS
    assert until_over(slurm, other, folder) == "COMPLETED"
    assert until_over(slurm, job, folder) == "COMPLETED", output(folder)
    assert "resumed after epoch" in output(folder)
    assert_same_run(folder, alone)


def test_an_array_of_which_one_task_fails(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    """The failed task is run again alone, and the other one is not touched."""
    needed = tmp_path / "needed"
    script = tmp_path / "array.sh"
    run = f"{tmp_path}/$SLURM_ARRAY_TASK_ID"
    fails = f'[ "$SLURM_ARRAY_TASK_ID" = 1 ] && [ ! -e {needed} ] && wrong="model.weights=none.pt"'
    train = " ".join(f"'{word}'" for word in TRAIN)
    line = f"srun {train} seed=$SLURM_ARRAY_TASK_ID hydra.run.dir={run} $wrong"
    script.write_text(f"#!/bin/bash\n{fails}\n{line}\n")
    job = submit(slurm, tmp_path, "--array=0-1", "--time=5", str(script))
    ends = [until_over(slurm, f"{job}_{task}", tmp_path) for task in range(2)]
    assert ends == ["COMPLETED", "FAILED"], output(tmp_path)
    assert "none.pt: no such file" in output(tmp_path)
    before = (tmp_path / "0" / "checkpoints" / "last.pt").stat()
    needed.touch()
    again = submit(slurm, tmp_path, "--array=1", "--time=5", str(script))
    assert until_over(slurm, f"{again}_1", tmp_path) == "COMPLETED", output(tmp_path)
    assert summary(tmp_path / "1")["status"] == "done"
    assert (tmp_path / "0" / "checkpoints" / "last.pt").stat() == before
    assert_same_run(tmp_path / "0", alone)


def test_a_node_that_dies(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    """The job is started again on another node."""
    folder = tmp_path / "run"
    job = template(slurm, folder)
    await_step(folder, 3)
    node = slurm.state(job)["NodeList"]
    slurm.kill_node(node, with_jobs=True)
    try:
        until(lambda: slurm.state(job)["Restarts"] == "1", folder)
        assert until_over(slurm, job, folder) == "COMPLETED", output(folder)
        assert slurm.state(job)["NodeList"] != node
    finally:
        slurm.start_node(node)
    assert_same_run(folder, alone)


def test_a_node_that_is_lost_from_sight(slurm: Slurm, alone: Path, tmp_path: Path) -> None:
    """The slurmd of a node is killed, but the training on the node lives on.

    The job is started again on another node. There it waits until the former training process,
    which is suspended for a while, has saved and stopped.
    """
    folder = tmp_path / "run"
    job = template(slurm, folder)
    await_step(folder, 3)
    node = slurm.state(job)["NodeList"]
    (former,) = slurm.processes("train.py", but="srun")
    os.kill(former, signal.SIGSTOP)
    slurm.kill_node(node, with_jobs=False)
    try:
        until(lambda: f"process {former} on" in output(folder), folder)
        assert "is of this job and still trains: it is asked to stop" in output(folder)
        before = len(losses(folder))
        time.sleep(2)
        assert len(losses(folder)) == before
        os.kill(former, signal.SIGCONT)
        assert until_over(slurm, job, folder) == "COMPLETED", output(folder)
        assert slurm.state(job)["Restarts"] == "1" and slurm.state(job)["NodeList"] != node
        log = (folder / "train.log").read_text()
        assert "SIGTERM: saved" in log and "resumed after epoch" in log
    finally:
        slurm.start_node(node)
    assert_same_run(folder, alone)
