"""Training runs in other processes, for tests that interrupt them, and readers of their files."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from detector.training.checkpoint import load_checkpoint

EPOCHS, STEPS = 2, 6  # STEPS is the number of steps per epoch
RUN = [
    "model.backbone=resnet10",
    "model.fpn_channels=16",
    "model.box_head_channels=16",
    "model.anchor_sizes=[8,16,24,32,64]",
    "data.num_train=24",
    "data.num_val=5",
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
LIMIT = 120.0  # seconds after which a wait fails


class Runs:
    """Starts training processes by forking them from the zygote."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"XDG_CACHE_HOME": str(self.cache), "OMP_NUM_THREADS": "1"}

    def ask(self, request: object) -> int:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, folder: Path, *overrides: str) -> int:
        folder.mkdir(exist_ok=True)
        return self.ask([str(folder / "out.txt"), f"hydra.run.dir={folder}", *RUN, *overrides])

    def wait(self, pid: int) -> int:
        return self.ask(pid)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def output(folder: Path) -> str:
    return (folder / "out.txt").read_text()


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def lines(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def losses(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if line["kind"] == "train"]


def await_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + LIMIT
    while len(losses(folder)) < step:
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.002)


def assert_same_run(folder: Path, unbroken: Path) -> None:
    """Compare all losses, learning rates, metrics, offset lengths and weights of two runs."""
    ours, theirs = (
        [{key: line[key] for key in line.keys() - {"seconds"}} for line in lines(run)]
        for run in (folder, unbroken)
    )
    assert ours == theirs
    ours, theirs = (load_checkpoint(f / "checkpoints" / "last.pt") for f in (folder, unbroken))
    assert ours["model"].keys() == theirs["model"].keys()
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])
    assert ours["optimizer"]["state"].keys() == theirs["optimizer"]["state"].keys()
    assert summary(folder)["status"] == "done"
    assert summary(folder)["metrics"] == summary(unbroken)["metrics"]
