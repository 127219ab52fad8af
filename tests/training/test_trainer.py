"""A trainer with a single weight, whose steps and averages can be computed by hand."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from detector.data.dataset import Sample
from detector.data.loading import collate
from detector.model.weights.state_dicts import trained_weights
from detector.training.checkpoint import KEYS, load_checkpoint
from detector.training.distribution import SINGLE_PROCESS
from detector.training.loop import NonFiniteError, Optimization
from detector.training.preemption import StopRequest
from detector.training.record import Record
from detector.training.schedule import lr_schedule
from detector.training.speed import Speed
from detector.training.trainer import Trainer


def sample(image_id: int) -> Sample:
    """Return a 2x2 image with the value 0.2 everywhere and without objects."""
    return Sample(
        image=torch.full((3, 2, 2), 51, dtype=torch.uint8),
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        area=torch.zeros(0),
        iscrowd=torch.zeros(0, dtype=torch.bool),
        image_id=image_id,
    )


class Linear(nn.Module):
    """A model with the loss weight * mean of the image, but NaN in the calls `poisoned`."""

    def __init__(self, poisoned: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(()))
        self.poisoned = poisoned
        self.calls = 0

    def forward(self, images, targets):
        self.calls += 1
        self.seen += 1
        factor = math.nan if self.calls in self.poisoned else 1.0
        return {"loss": factor * self.weight * images[0].mean()}


class Order:
    """A sampler of batches of one image each, in the order of the images."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.first_step = 0

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        self.first_step = first_step

    def __iter__(self):
        return iter([[index] for index in range(self.first_step, self.num_steps)])


def trainer(
    folder: Path,
    model: nn.Module,
    *,
    num_steps: int = 3,
    ema: AveragedModel | None = None,
    **changes,
) -> Trainer:
    """Build a trainer with SGD at a rate of 0.5: each step changes the weight by 0.5 * 0.2."""
    optimizer, order = SGD(model.parameters(), lr=0.5), Order(num_steps)
    how = {
        "optimization": Optimization(
            optimizer=optimizer,
            lr_schedule=lr_schedule(
                optimizer, warmup_steps=0, num_steps=9, milestones=[], gamma=1.0
            ),
            scaler=GradScaler("cpu", enabled=False),
            device=torch.device("cpu"),
            precision=torch.float32,
            ema=ema,
        ),
        "batches": DataLoader(
            [sample(index + 1) for index in range(num_steps)],
            batch_sampler=order,
            collate_fn=collate,
        ),
        "sampler": order,
        "ranks": SINGLE_PROCESS,
        "speed": Speed(batch_size=1, flops_per_pixel=1.0),
        "seed": 0,
        "max_skipped": 0,
        "log_every": 1,
        "checkpoint_every": 1000,
        "profile_steps": 0,
        "folder": folder,
        "description": {"config": {}, "classes": [], "category_ids": [], "data": "all"},
    }
    return Trainer(model=model, **(how | changes))


def train_epoch(trained: Trainer, folder: Path) -> None:
    record = Record(folder, num_steps=9, num_epochs=2, first_step=trained.step)
    try:
        trained.train_epoch(record, StopRequest())
    finally:
        record.close()


def average_of(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    model = Linear()
    trained = trainer(tmp_path, model, ema=average_of(model))
    train_epoch(trained, tmp_path)
    # The weights are 1.9, 1.8, 1.7; their average is 1.9, then 1.85, then (1.85 + 1.7) / 2. The
    # buffers are 1, 2, 3; their average is 1, then 1.5, then 2.25.
    assert model.weight.item() == pytest.approx(1.7) and model.seen.item() == 3
    assert trained.evaluated_model.weight.item() == pytest.approx(1.775)
    assert trained.evaluated_model.seen.item() == 2.25
    average = trained_weights(trained.checkpoint())
    assert average.keys() == model.state_dict().keys()
    assert average["weight"].item() == pytest.approx(1.775) and average["seen"].item() == 2.25


def test_without_an_average(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Linear())
    train_epoch(trained, tmp_path)
    assert trained.evaluated_model is trained.model
    assert trained_weights(trained.checkpoint())["weight"].item() == pytest.approx(1.7)


def test_a_resumed_average(tmp_path: Path) -> None:
    first, second = Linear(), Linear()
    stopped = trainer(tmp_path, first, ema=average_of(first), num_steps=2)
    train_epoch(stopped, tmp_path)
    stopped.finish_epoch()
    stopped.save()
    resumed = trainer(tmp_path, second, ema=average_of(second), num_steps=1)
    resumed.restore(load_checkpoint(tmp_path / "checkpoints" / "last.pt"))
    train_epoch(resumed, tmp_path)
    assert resumed.evaluated_model.weight.item() == pytest.approx(1.775)  # as above


class Dropout(nn.Module):
    """A model whose loss depends on the state of torch's random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images, targets):
        return {
            "loss": self.weight * nn.functional.dropout(images[0], training=self.training).sum()
        }


def test_a_run_resumed_within_an_epoch_draws_the_same_numbers(tmp_path: Path) -> None:
    whole, first, second = Dropout(), Dropout(), Dropout()
    train_epoch(trainer(tmp_path / "whole", whole, num_steps=8, checkpoint_every=5), tmp_path)
    stopped = trainer(tmp_path, first, num_steps=8, checkpoint_every=5)
    train_epoch(stopped, tmp_path)
    resumed = trainer(tmp_path, second, num_steps=8)
    resumed.restore(load_checkpoint(tmp_path / "checkpoints" / "last.pt"))  # after step 5
    assert resumed.position == 5 and not torch.equal(second.weight, whole.weight)
    torch.manual_seed(1)  # as in a new process
    train_epoch(resumed, tmp_path)
    assert torch.equal(second.weight, whole.weight)


def test_steps_that_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="detector.training.trainer")
    model = Linear(poisoned=(1, 3))
    trained = trainer(tmp_path, model, max_skipped=2)
    train_epoch(trained, tmp_path)
    assert trained.skipped == 2 and trained.step == 3 and trained.checkpoint()["skipped"] == 2
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.2) and model.seen.item() == 1
    first, second = (r.getMessage() for r in caplog.records if "left out" in r.getMessage())
    assert "1 of 2" in first and "image ids 1" in first
    assert "2 of 2" in second and "image ids 3" in second
    assert not (tmp_path / "not_finite.pt").exists()


def test_too_many_steps_that_are_left_out(tmp_path: Path) -> None:
    before, after = Linear(poisoned=(1,)), Linear(poisoned=(2,))
    trained = trainer(tmp_path, before, max_skipped=1)
    train_epoch(trained, tmp_path)
    trained.finish_epoch()
    resumed = trainer(tmp_path, after, max_skipped=1)
    resumed.restore(trained.checkpoint())  # it includes the count of skipped steps
    with pytest.raises(NonFiniteError, match=r"loss nan, .* image ids 2; .*not_finite\.pt"):
        train_epoch(resumed, tmp_path)
    dump = torch.load(tmp_path / "not_finite.pt", weights_only=True)
    assert [kept["image_id"] for kept in dump["samples"]] == [2]
    assert dump["model"]["weight"].item() == pytest.approx(2 - 3 * 0.5 * 0.2)  # 2 steps and 1 step
    assert dump["model"]["seen"].item() == 3


def test_best_and_since(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Linear())
    seen = []
    for value in (0.0, 0.3, None, 0.3, 0.4):
        is_best = trained.keep_validation({"metrics": {"AP": value, "AP50": 1.0}})
        seen.append((is_best, trained.since_best, trained.best))
    assert seen == [
        (True, 0, 0.0),
        (True, 0, 0.3),
        (False, 1, 0.3),
        (False, 2, 0.3),
        (True, 0, 0.4),
    ]
    again = trainer(tmp_path, Linear())
    again.restore(trained.checkpoint() | {"since_best": 2})
    assert (again.since_best, again.best) == (2, 0.4)
    assert again.validation == {"metrics": {"AP": 0.4, "AP50": 1.0}}


def test_a_checkpoint_has_every_key(tmp_path: Path) -> None:
    """It also has two keys that are not required, as older checkpoints lack them."""
    assert trainer(tmp_path, Linear()).checkpoint().keys() == KEYS | {"peak_memory", "format"}


def test_a_trace(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Linear(), num_steps=5, profile_steps=2)
    for _ in range(2):  # only the first epoch is traced
        train_epoch(trained, tmp_path)
        trained.finish_epoch()
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name.endswith(".pt.trace.json")
    names = [event.get("name", "") for event in json.loads(path.read_text())["traceEvents"]]
    # The trace has the two steps after the first two.
    steps = [name for name in names if name.startswith("ProfilerStep#")]
    assert sorted(set(steps)) == ["ProfilerStep#2", "ProfilerStep#3"]
    assert any(name.startswith("aten::") for name in names)


def test_no_trace(tmp_path: Path) -> None:
    train_epoch(trainer(tmp_path, Linear()), tmp_path)
    assert not (tmp_path / "profile").exists()
