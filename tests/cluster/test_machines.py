"""torchrun with two ranks on each of two machines: kills and cut links do not change a bit.

How long a run takes to end when the network fails is bounded by --max-restarts and rank_timeout.
"""

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
from machines import ADDRESSES, Machines, lacking
from runs import RUN, assert_same_run, await_step, losses, output
from test_ranks import train_20_steps

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 200  # seconds after which a wait fails
STEPS = 18
# The mean over the ranks' means is the mean over all images: there is no batch norm, and the heads
# sample the same number from every image. SGD does not amplify rounding errors.
TRAIN = [
    *RUN,
    *("model.norm=group", "model.rpn_batch_size=32", "model.box_batch_size=8"),
    *("schedule.optimizer=sgd", "schedule.lr=0.02", "schedule.epochs=3"),
]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    why = lacking()
    if why:
        pytest.skip(why)
    with Machines() as machines:
        yield machines


class Training:
    """The same training command, started on both machines."""

    def __init__(
        self,
        machines: Machines,
        environment: dict[str, str],
        folder: Path,
        *overrides: str,
        command: list[str] | None = None,
    ) -> None:
        folder.mkdir()
        self.machines = machines
        self.environment = environment | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.folder = folder
        train = [str(ROOT / "train.py"), *TRAIN, f"hydra.run.dir={folder}", *overrides]
        self.command = command or train
        self.ends: dict[str, subprocess.Popen[str]] = {}
        for name in ADDRESSES:
            self.start(name)

    def start(self, name: str) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        torchrun += ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=left:29500"]
        torchrun += ["--max-restarts=3", *self.command]
        with (self.folder / "out.txt").open("a") as file:
            self.ends[name] = self.machines.start(
                name, *torchrun, env=self.environment, output=file
            )

    def ranks(self, name: str) -> list[int]:
        """Return the ids of the training processes on a machine."""
        found = []
        for pid in self.machines.processes(name):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if str(ROOT / "train.py") in words and "torch.distributed.run" not in words:
                found.append(pid)
        return found

    def codes(self) -> list[int]:
        """Wait for both commands, and return their exit codes."""
        deadline = time.monotonic() + LIMIT
        try:
            return [end.wait(deadline - time.monotonic()) for end in self.ends.values()]
        except subprocess.TimeoutExpired:
            pytest.fail(f"did not end: {output(self.folder)}")
        finally:
            for name in ADDRESSES:
                self.machines.kill(name)


@pytest.fixture(scope="module")
def unbroken(
    machines: Machines, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("machines") / "unbroken"
    training = Training(machines, environment, folder)
    assert training.codes() == [0, 0], output(folder)
    assert "4 process(es)" in output(folder) and len(losses(folder)) == STEPS
    return folder


def test_four_ranks_on_two_machines_are_one_process(
    unbroken: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """In the first epoch the losses differ only by the order of summation in float32.

    Later a rounding error may change which proposals are sampled. From then on two runs differ as
    those of two seeds do.
    """
    command = [sys.executable, str(ROOT / "train.py"), *TRAIN, f"hydra.run.dir={tmp_path}"]
    subprocess.run(command, env=environment, check=True, timeout=LIMIT)
    ours, theirs = losses(unbroken)[:6], losses(tmp_path)[:6]
    for of_four, of_one in zip(ours, theirs, strict=True):
        assert of_four.pop("kind") == of_one.pop("kind")
        assert of_four == pytest.approx(of_one, rel=1e-5, abs=1e-6)


def test_twenty_steps_in_float64(
    machines: Machines,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process and four on two machines agree to 1e-9: in float64 no rounding error changes
    which proposals are sampled.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    train_20_steps(tmp_path / "one.pt", 1)
    call = "import sys, pathlib; from test_ranks import train_20_steps as train; "
    call += "train(pathlib.Path(sys.argv[1]), 1)"
    training = Training(
        machines,
        environment | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'training'}"},
        tmp_path / "run",
        command=["--no-python", sys.executable, "-c", call, str(tmp_path / "four.pt")],
    )
    assert training.codes() == [0, 0], output(training.folder)
    one, four = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "four"))
    assert len(one) == len(four) == 20 and one[19]["loss"] < one[0]["loss"] - 0.5
    for expected, found in zip(one, four, strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_rank_that_is_killed(
    machines: Machines, environment: dict[str, str], unbroken: Path, tmp_path: Path, name: str
) -> None:
    """torchrun restarts all ranks, and they resume from the last checkpoint."""
    rng = random.Random(name)
    training = Training(machines, environment, tmp_path / "run")
    await_step(training.folder, rng.randint(3, STEPS - 6))
    victims = training.ranks(name)
    assert len(victims) == 2
    os.kill(rng.choice(victims), signal.SIGKILL)
    assert training.codes() == [0, 0], output(training.folder)
    assert "resumed after epoch" in output(training.folder)
    assert_same_run(training.folder, unbroken)


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_machine_that_is_lost_and_comes_back(
    machines: Machines, environment: dict[str, str], unbroken: Path, tmp_path: Path, name: str
) -> None:
    """If `right` is lost, `left` waits for it. If `left`, which hosts the rendezvous, is lost,
    torchrun on `right` ends as well, and both are started again.
    """
    training = Training(machines, environment, tmp_path / "run")
    await_step(training.folder, 5)
    machines.kill(name)
    training.ends[name].wait(10)
    if name == "left":
        assert training.ends["right"].wait(LIMIT) != 0, output(training.folder)
        assert not training.ranks("right")
        training.start("right")
    training.start(name)
    assert training.codes() == [0, 0], output(training.folder)
    assert "resumed after epoch" in output(training.folder)
    assert_same_run(training.folder, unbroken)


def test_a_link_that_is_cut_for_30_seconds(
    machines: Machines, environment: dict[str, str], unbroken: Path, tmp_path: Path
) -> None:
    training = Training(machines, environment, tmp_path / "run")
    await_step(training.folder, 5)
    machines.pull("right")
    time.sleep(3)
    before = len(losses(training.folder))
    time.sleep(27)
    assert len(losses(training.folder)) == before < STEPS
    machines.plug("right")
    assert training.codes() == [0, 0], output(training.folder)
    assert_same_run(training.folder, unbroken)
