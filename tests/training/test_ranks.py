"""Several ranks compute the same losses and metrics as one, and they end together."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
import torch
from hydra import compose, initialize_config_dir
from runs import (
    EPOCHS,
    LIMIT,
    RUN,
    STEPS,
    Runs,
    assert_same_run,
    await_step,
    losses,
    output,
    summary,
)
from torch import nn
from torch.amp import GradScaler

from detector.builders.data import build_data, build_transform
from detector.builders.model import build_model
from detector.builders.training import build_lr_schedule, build_optimizer
from detector.config import parse_train
from detector.data.dataset import DetectionDataset
from detector.data.loading import Augmented, EpochBatchSampler, train_loader
from detector.entry import exit_code
from detector.exit_codes import PREEMPTED
from detector.training import launch as launching
from detector.training.checkpoint import load_checkpoint
from detector.training.distribution import joined
from detector.training.launch import WorkersError, launch
from detector.training.loop import Optimization, train_epoch
from detector.training.preemption import Preempted, StopRequest
from detector.training.validation import validate

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two ranks without an interruption, and return the run folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert runs.wait(runs.start(folder, "devices=2")) == 0, output(folder)
    assert len(losses(folder)) == EPOCHS * STEPS and "2 process(es)" in output(folder)
    return folder


# ---- one rank against two ------------------------------------------------------------------------


class Double(nn.Module):
    """A detector that computes in float64."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector.double()
        assign = detector.rpn.assign_targets_to_anchors

        def assign_double(anchors, targets):
            labels, boxes = assign(anchors, targets)  # its labels are always float32
            return [label.double() for label in labels], boxes

        detector.rpn.assign_targets_to_anchors = assign_double

    def forward(self, images, targets):
        targets = [target | {"boxes": target["boxes"].double()} for target in targets]
        return self.detector([image.double() for image in images], targets)


def train_20_steps(path: Path, num_parts: int) -> None:
    """Train 20 steps on the ranks of the environment, and write the losses to `path`.

    The heads sample the same number of candidates from every image, so that the mean over the
    ranks' means is the mean over the images. There is no batch norm, whose statistics would depend
    on how a batch is split.
    """
    sizes = [
        "model.norm=group",
        "model.rpn_batch_size=32",
        "model.box_batch_size=8",
        "schedule.lr=0.1",
    ]
    sizes += [
        "schedule.optimizer=sgd",
        "schedule.lr=0.1",
        "schedule.warmup_steps=0",
        "schedule.clip_norm=1.0",
    ]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = parse_train(compose("train", overrides=[*RUN, *sizes]))
    with joined(LIMIT) as ranks:
        with ranks.local_main_first():
            train_set = build_data(config)["train"]
        torch.manual_seed(0)
        model = Double(build_model(config.model, config.deform, config.data.transform, 6))
        optimizer = build_optimizer(model, config.schedule, 0.1, 0.01)
        optimization = Optimization(
            optimizer=optimizer,
            lr_schedule=build_lr_schedule(optimizer, config.schedule, steps_per_epoch=5),
            scaler=GradScaler("cpu", enabled=False),
            device=torch.device("cpu"),
            precision=torch.float32,  # no autocast
            clip_norm=config.schedule.clip_norm,
            num_parts=num_parts,
        )
        sampler = EpochBatchSampler(
            train_set,
            batch_size=4,
            seed=0,
            keep_empty=True,
            max_steps=5,
            num_parts=num_parts,
            rank=ranks.rank,
            num_ranks=ranks.num_ranks,
        )
        augmented = Augmented(train_set, transform=build_transform(config.data.transform), seed=0)
        batches = train_loader(augmented, sampler=sampler, num_workers=0)
        steps: list[dict[str, float]] = []
        parallel = ranks.parallel(model, torch.device("cpu"))
        for epoch in range(4):
            sampler.set_epoch(epoch)
            train_epoch(parallel, batches, optimization, on_step=steps.append, ranks=ranks)
        if ranks.is_first:
            torch.save(steps, path)


def test_one_and_two_ranks_and_parts_take_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    train_20_steps(tmp_path / "one.pt", 1)
    train_20_steps(tmp_path / "parts.pt", 2)
    path = tmp_path / "two.pt"
    launch(train_20_steps, path, 1, num_ranks=2, max_restarts=0, exit_code=exit_code)
    one, parts, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "parts", "two"))
    assert len(one) == len(two) == len(parts) == 20
    assert one[19]["loss"] < one[0]["loss"] - 0.5  # it trains
    for expected, *others in zip(one, two, parts, strict=True):
        for other in others:
            assert other == pytest.approx(expected, rel=1e-9, abs=1e-9)


class Oracle(nn.Module):
    """A detector that returns the ground truth, slightly shifted; nothing in every third image."""

    def __init__(self, dataset: DetectionDataset) -> None:
        super().__init__()
        samples = [dataset[index] for index in range(len(dataset))]
        self.answers = {int(sample["image"].sum()): sample for sample in samples}

    def forward(self, images):
        return [self.answer(int((image * 255).round().sum())) for image in images]

    def answer(self, key: int) -> dict[str, torch.Tensor]:
        sample = self.answers[key]
        generator = torch.Generator().manual_seed(key)
        count = 0 if sample["image_id"] % 3 == 0 else len(sample["boxes"])
        boxes = sample["boxes"][:count]
        shifted = boxes + 4 * torch.rand(boxes.shape, generator=generator)
        scores = torch.rand(count, generator=generator).round(decimals=1)  # many scores are equal
        return {"boxes": shifted, "labels": sample["labels"][:count], "scores": scores}


def validate_oracle(path: Path, batch_size: int) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = parse_train(compose("train", overrides=[*RUN, "data.num_val=13"]))
    with joined(LIMIT) as ranks:
        with ranks.local_main_first():
            val_set = build_data(config)["val"]
        summary, _, detections, _ = validate(
            Oracle(val_set),
            val_set,
            "coco",
            ranks=ranks,
            device=torch.device("cpu"),
            precision=torch.float32,
            batch_size=batch_size,
            num_workers=0,
            stop=StopRequest(),
        )
        everywhere = ranks.gather(summary)
        if ranks.is_first:
            assert all(result == summary for result in everywhere)
            path.write_text(json.dumps(summary | {"detections": detections.to_coco()}))


def test_metrics_of_several_ranks_are_those_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics on 13 images, of which the ranks take 5, 4 and 4 in batches of up to 3, are
    exactly the same, and so are the detections and their order.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    validate_oracle(tmp_path / "1.json", 1)
    expected = json.loads((tmp_path / "1.json").read_text())
    assert 0.1 < expected["metrics"]["AP"] < 0.9
    path = tmp_path / "3.json"
    launch(validate_oracle, path, 3, num_ranks=3, max_restarts=0, exit_code=exit_code)
    found = json.loads(path.read_text())
    assert found["metrics"] == expected["metrics"]
    assert found["per_class"] == expected["per_class"]
    assert found["detections"] == expected["detections"] and len(found["detections"]) > 10


# ---- how they are started ------------------------------------------------------------------------


def finished(runs: Runs, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *RUN],
        cwd=folder,
        env=runs.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def test_torchrun(runs: Runs, unbroken: Path, tmp_path: Path) -> None:
    script, folder = str(ROOT / "train.py"), tmp_path / "run"
    done = finished(runs, tmp_path, *TORCHRUN, script, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, unbroken)
    done = finished(runs, tmp_path, *TORCHRUN, script)
    assert done.returncode != 0
    assert "error: the processes have different run folders: give hydra.run.dir" in done.stderr
    assert not list(tmp_path.glob("runs/*/summary.json"))


def test_slurm_on_this_machine(runs: Runs, unbroken: Path, tmp_path: Path) -> None:
    """submitit starts the two tasks of a job on this machine as it does on a cluster."""
    done = finished(
        runs,
        tmp_path,
        *(str(ROOT / "train.py"), "-m", f"hydra.sweep.dir={tmp_path / 'jobs'}"),
        *("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"),
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "jobs" / "0", unbroken)


def test_a_sweep_of_runs_of_two_ranks(runs: Runs, unbroken: Path, tmp_path: Path) -> None:
    """The first arm fails; the second equals the uninterrupted run of two ranks."""
    jobs = tmp_path / "jobs"
    arms = ["schedule.optimizer=lion,adamw"]
    done = finished(
        runs,
        tmp_path,
        *(str(ROOT / "train.py"), "-m", f"hydra.sweep.dir={jobs}", "devices=2", *arms),
    )
    assert done.returncode == 2 and "schedule.optimizer=lion" in done.stderr
    assert [summary(jobs / str(arm))["status"] for arm in range(2)] == ["failed", "done"]
    assert_same_run(jobs / "1", unbroken)
    study = json.loads((jobs / "study.json").read_text())
    assert [arm["arm"] for arm in study["arms"]] == ["adamw"] and len(study["left_out"]) == 1


# ---- how they end --------------------------------------------------------------------------------


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the ranks that a process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


@pytest.mark.parametrize("step, rank, num_workers", [(3, 1, 0), (6, 0, 1), (10, 1, 1)])
def test_a_killed_rank_is_replaced(
    runs: Runs, unbroken: Path, tmp_path: Path, step: int, rank: int, num_workers: int
) -> None:
    """The run resumes from its own checkpoint, even if it was started with resume=none."""
    folder = tmp_path / "run"
    resume = "none" if step == 10 else "auto"
    pid = runs.start(folder, "devices=2", f"data.num_workers={num_workers}", f"resume={resume}")
    await_step(folder, step)
    time.sleep(random.Random(step).random() * 0.1)
    victims = workers_of(pid)
    assert len(victims) == 2
    os.kill(victims[rank], signal.SIGKILL)
    assert runs.wait(pid) == 0, output(folder)
    assert "restart 1 of 3" in output(folder) and "restart 2" not in output(folder)
    assert "resumed after epoch" in output(folder)
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("whom", ["rank 0", "rank 1", "the launcher", "all of them"])
def test_all_ranks_leave_together(runs: Runs, unbroken: Path, tmp_path: Path, whom: str) -> None:
    rng = random.Random(whom)
    folder = tmp_path / "run"
    pid = runs.start(folder, "devices=2")
    await_step(folder, rng.randint(1, EPOCHS * STEPS - 3))
    time.sleep(rng.random() * 0.1)
    before = len(losses(folder))
    ranks = workers_of(pid)
    if whom == "all of them":
        os.killpg(pid, signal.SIGTERM)
    else:
        os.kill({"rank 0": ranks[0], "rank 1": ranks[1]}.get(whom, pid), signal.SIGTERM)
    assert runs.wait(pid) == PREEMPTED, output(folder)
    assert summary(folder)["status"] == "preempted" and summary(folder)["signal"] == "SIGTERM"
    saved = load_checkpoint(folder / "checkpoints" / "last.pt")
    assert before <= saved["step"] <= before + 2 and saved["step"] == len(losses(folder))
    assert runs.wait(runs.start(folder, "devices=2")) == 0, output(folder)
    assert_same_run(folder, unbroken)


def test_a_launcher_that_is_killed(runs: Runs, unbroken: Path, tmp_path: Path) -> None:
    """The ranks of a killed launcher save and end by themselves."""
    folder = tmp_path / "run"
    pid = runs.start(folder, "devices=2")
    await_step(folder, 3)
    ranks = workers_of(pid)
    os.kill(pid, signal.SIGKILL)
    assert runs.wait(pid) == -signal.SIGKILL
    deadline = time.monotonic() + LIMIT
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, output(folder)
        time.sleep(0.1)
    assert summary(folder)["status"] == "preempted"
    assert runs.wait(runs.start(folder, "devices=2")) == 0, output(folder)
    assert_same_run(folder, unbroken)


def test_an_error_that_would_come_again_ends_them_all(runs: Runs, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    overrides = ["devices=2", "conventions=torchvision", "model.weights=nothing.pt"]
    assert runs.wait(runs.start(folder, *overrides)) == 1
    errors = [line for line in output(folder).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "nothing.pt: no such file" in errors[0]
    assert "restart" not in output(folder) and "Traceback" not in output(folder)
    assert summary(folder)["status"] == "failed"


def evaluate_for_ever(path: Path, whom: int, when: str) -> None:
    """Evaluate endlessly on the first rank; the second has few images and waits for the first."""
    with joined(LIMIT) as ranks, StopRequest() as stop:
        for number in stop.until_stopped(range(10**9 if ranks.is_first else 3), ranks):
            if when == "in its share" and ranks.rank == whom and number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        if when == "waiting":
            Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        stop.raise_if_stopped(ranks)


@pytest.mark.parametrize("whom, when", [(0, "in its share"), (1, "in its share"), (1, "waiting")])
def test_one_rank_that_is_asked_to_stop_in_an_evaluation(
    tmp_path: Path, whom: int, when: str
) -> None:
    """The other rank stops too, before the end of its share, which is endless here."""
    signal.alarm(120)  # ends the test if it waits for ever
    try:
        with pytest.raises(Preempted, match="SIGTERM"):
            launch(
                *(evaluate_for_ever, tmp_path, whom, when),
                num_ranks=2,
                max_restarts=0,
                exit_code=exit_code,
            )
    finally:
        signal.alarm(0)


def stop(code: int) -> None:
    os._exit(code)


def test_ranks_that_are_lost_too_often() -> None:
    with pytest.raises(WorkersError, match="exit code 7; restarted 1 times") as caught:
        launch(stop, 7, num_ranks=2, max_restarts=1, exit_code=exit_code)
    assert caught.value.exit_code == 1


def test_a_signal_before_there_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = launching._launch_config

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(*arguments)

    monkeypatch.setattr(launching, "_launch_config", interrupted)
    with pytest.raises(Preempted, match="SIGUSR1"):
        launch(stop, 7, num_ranks=2, max_restarts=1, exit_code=exit_code)


def test_a_sweep_that_is_asked_to_stop_begins_no_other_arm(runs: Runs, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    arms = [f"hydra.sweep.dir={jobs}", "devices=2", "seed=0,1", "schedule.epochs=50"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *RUN, *arms],
        env=runs.environment,
        stdout=subprocess.DEVNULL,
    )
    await_step(jobs / "0", 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == PREEMPTED
    assert summary(jobs / "0")["status"] == "preempted" and not (jobs / "1").exists()
    assert not (jobs / "study.json").exists()  # when asked to stop, there is no time for it
