"""One epoch of optimization, on a model so small that its steps are computed by hand."""

import math

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD

from detector.data.dataset import Sample
from detector.training.loop import (
    MemoryExceededError,
    NonFiniteError,
    Optimization,
    compute_losses,
    seed_epoch,
    train_epoch,
)
from detector.training.schedule import lr_schedule

CPU = torch.device("cpu")


def sample(image_id: int, red: int = 51) -> Sample:
    """A 2x2 image of one colour, and two boxes, of which the second is a crowd."""
    return Sample(
        image=torch.full((3, 2, 2), red, dtype=torch.uint8),
        boxes=torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 2.0, 2.0]]),
        labels=torch.tensor([3, 4]),
        area=torch.tensor([2.0, 4.0]),
        iscrowd=torch.tensor([False, True]),
        image_id=image_id,
    )


class Linear(nn.Module):
    """Losses weight * mean of the images, and the number of boxes."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.factor = factor
        self.targets: list = []

    def forward(self, images, targets):
        self.targets = targets
        mean = torch.stack([image.mean() for image in images]).mean()
        return {"loss_a": self.factor * self.weight * mean, "loss_b": 0 * self.weight + 1.0}


def epoch(model: nn.Module, batches: list[list[Sample]], on_not_finite=None, **changes) -> list:
    optimizer = SGD(model.parameters(), lr=0.5)
    schedule = lr_schedule(optimizer, warmup_steps=0, num_steps=9, milestones=[1], gamma=0.1)
    steps: list[dict[str, float]] = []
    optimization = Optimization(
        optimizer=optimizer,
        lr_schedule=schedule,
        scaler=GradScaler("cpu", enabled=False),
        device=CPU,
        precision=torch.float32,
        **changes,
    )
    train_epoch(model, batches, optimization, on_step=steps.append, on_not_finite=on_not_finite)
    return steps


def test_steps() -> None:
    # Images of 51/255 = 0.2: d loss / d weight = 0.2; rates 0.5, then 0.05.
    model = Linear()
    steps = epoch(model, [[sample(1)], [sample(2)]])
    assert [step["loss"] for step in steps] == pytest.approx([2 * 0.2 + 1, 1.9 * 0.2 + 1])
    assert [step["lr"] for step in steps] == pytest.approx([0.5, 0.05])
    assert steps[0]["loss_b"] == 1
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.2 - 0.05 * 0.2)


def test_clipping() -> None:
    model = Linear(factor=100.0)  # gradient 20, clipped to 0.5
    epoch(model, [[sample(1)]], clip_norm=0.5)
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.5, abs=1e-5)


def test_crowds_are_no_targets() -> None:
    model = Linear()
    compute_losses(model, [sample(1)], CPU, torch.float32)
    (target,) = model.targets
    assert target["boxes"].tolist() == [[0, 0, 1, 2]] and target["labels"].tolist() == [3]


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_parts(factor: float) -> None:
    model = Linear(factor)
    with pytest.raises(NonFiniteError, match=rf"loss_a {factor}, loss_b 1, .*; image ids 7, 9"):
        epoch(model, [[sample(7), sample(9)]])
    assert model.weight.item() == 2


def test_a_gradient_that_is_not_finite_stops_as_well() -> None:
    class Root(Linear):
        def forward(self, images, targets):
            return {"loss_a": (self.weight - 2).sqrt()}  # 0, with an infinite derivative

    model = Root()
    with pytest.raises(NonFiniteError, match="gradient norm inf"):
        epoch(model, [[sample(1)]])
    assert model.weight.item() == 2


def test_an_epoch_has_its_own_seed() -> None:
    draws = {}
    for seed, number in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_epoch(seed, number)
        draw = torch.rand(4).tolist()
        assert draws.setdefault((seed, number), draw) == draw
    assert len({tuple(draw) for draw in draws.values()}) == 3


def test_autocast_is_bfloat16_and_losses_are_float32() -> None:
    seen = []

    class Product(Linear):
        def forward(self, images, targets):
            seen.append((images[0] @ images[0]).dtype)
            return {"loss_a": (images[0].bfloat16().mean() * self.weight).bfloat16()}

    losses = compute_losses(Product(), [sample(1)], CPU, torch.bfloat16)
    assert seen == [torch.bfloat16] and losses["loss_a"].dtype == torch.float32


class Poisoned(Linear):
    """NaN or infinity at one step: in the input, a loss, or a gradient alone."""

    def __init__(self, step: int, where: str, value: float) -> None:
        super().__init__()
        self.step, self.where, self.value = step, where, value
        self.steps = 0
        self.before = 0.0

    def forward(self, images, targets):
        self.steps += 1
        if self.steps < self.step:
            return super().forward(images, targets)
        self.before = self.weight.item()
        if self.where == "input":
            images = [image * self.value for image in images]
        losses = super().forward(images, targets)
        if self.where == "loss":
            losses["loss_b"] = losses["loss_b"] * self.value
        if self.where == "gradient":
            self.weight.register_hook(lambda gradient: gradient * self.value)
        return losses


@pytest.mark.parametrize("trial", range(20))
def test_poison_is_found_in_its_step(trial: int) -> None:
    where = ("input", "loss", "gradient")[trial % 3]
    step = 1 + trial * 7 % 10
    model = Poisoned(step, where, math.nan if trial % 2 else math.inf)
    with pytest.raises(NonFiniteError, match=f"image ids {100 + step}") as caught:
        epoch(model, [[sample(100 + number)] for number in range(1, 11)])
    assert model.steps == step and model.weight.item() == model.before
    assert caught.value.samples[0]["image_id"] == 100 + step


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_names_the_batch(error: Exception) -> None:
    class Greedy(Linear):
        def forward(self, images, targets):
            raise error

    with pytest.raises(MemoryExceededError, match=r"2 images: 7 \(2x2\), 9 \(2x2\); give"):
        epoch(Greedy(), [[sample(7), sample(9)]])


def test_other_errors_stay_what_they_are() -> None:
    class Wrong(Linear):
        def forward(self, images, targets):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        epoch(Wrong(), [[sample(7)]])
