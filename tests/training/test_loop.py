"""One epoch of optimization, on a model so small that its steps can be computed by hand."""

import math
import signal

import pytest
import torch
from dispatched import Dispatched
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD

from detector.data.dataset import Sample
from detector.model.frozen_norm import FrozenBatchNorm2d
from detector.training.loop import (
    MemoryExceededError,
    NonFiniteError,
    Optimization,
    compute_losses,
    seed_epoch,
    train_epoch,
)
from detector.training.preemption import Preempted, StopRequest
from detector.training.schedule import lr_schedule

CPU = torch.device("cpu")


def sample(image_id: int, red: int = 51) -> Sample:
    """Return a 2x2 image of one colour with two boxes."""
    return Sample(
        image=torch.full((3, 2, 2), red, dtype=torch.uint8),
        boxes=torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 2.0, 2.0]]),
        labels=torch.tensor([3, 4]),
        area=torch.tensor([2.0, 4.0]),
        iscrowd=torch.tensor([False, False]),
        image_id=image_id,
    )


class Linear(nn.Module):
    """A model with the losses factor * weight * mean of the images, and 1."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.factor = factor
        self.targets: list = []

    def forward(self, images, targets):
        self.targets = targets
        mean = torch.stack([image.mean() for image in images]).mean()
        return {"loss_a": self.factor * self.weight * mean, "loss_b": 0 * self.weight + 1.0}


def epoch(
    model: nn.Module, batches: list[list[Sample]], on_not_finite=None, stop=None, **changes
) -> list:
    optimizer = SGD(model.parameters(), lr=0.5)
    schedule = lr_schedule(optimizer, warmup_steps=0, num_steps=9, milestones=[1], gamma=0.1)
    steps: list[dict[str, float]] = []
    how = {
        "optimizer": optimizer,
        "lr_schedule": schedule,
        "scaler": GradScaler("cpu", enabled=False),
        "device": CPU,
        "precision": torch.float32,
    }
    train_epoch(
        model,
        batches,
        Optimization(**(how | changes)),
        on_step=steps.append,
        on_not_finite=on_not_finite,
        stop=stop,
    )
    return steps


def test_steps() -> None:
    # The images are 51/255 = 0.2: d loss / d weight = 0.2. The learning rates are 0.5 and 0.05.
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


def test_the_parts_of_a_step_are_one_batch() -> None:
    # The images of the first step are 0.2 and 0.4: d loss / d weight = 0.3, at a learning rate of
    # 0.5. Both images of the second step are 0.2, at a learning rate of 0.05.
    images = [sample(1, red=51), sample(2, red=102), sample(3), sample(4)]
    in_parts, at_once = Linear(), Linear()
    steps = epoch(in_parts, [[image] for image in images], num_parts=2)
    expected = epoch(at_once, [images[:2], images[2:]])
    assert [step["loss"] for step in steps] == pytest.approx([2 * 0.3 + 1, 1.85 * 0.2 + 1])
    assert steps == [pytest.approx(step) for step in expected] and steps[0]["loss_b"] == 1
    assert in_parts.weight.item() == pytest.approx(2 - 0.5 * 0.3 - 0.05 * 0.2)
    assert in_parts.weight.item() == pytest.approx(at_once.weight.item(), rel=1e-6)


def test_all_objects_are_targets_but_no_crowds() -> None:
    model = Linear()
    compute_losses(model, [sample(1)], CPU, torch.float32)
    (target,) = model.targets
    assert target["boxes"].tolist() == [[0, 0, 1, 2], [0, 0, 2, 2]]
    assert target["labels"].tolist() == [3, 4]
    with pytest.raises(AssertionError):  # the loader has left them out
        crowd = torch.tensor([False, True])
        compute_losses(model, [sample(1) | {"iscrowd": crowd}], CPU, torch.float32)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_parts(factor: float) -> None:
    model = Linear(factor)
    with pytest.raises(NonFiniteError, match=rf"loss_a {factor}, loss_b 1, .*; image ids 7, 9"):
        epoch(model, [[sample(7), sample(9)]])
    assert model.weight.item() == 2


class Root(Linear):
    """A model with a loss of 0 and an infinite derivative."""

    def forward(self, images, targets):
        return {"loss_a": (self.weight - 2).sqrt()}


def test_a_gradient_that_is_not_finite_stops_as_well() -> None:
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
    """A model with a NaN or an infinity at one step: in the input, a loss, or a gradient only."""

    def __init__(self, step: int, where: str, value: float) -> None:
        super().__init__()
        self.step, self.where, self.value = step, where, value
        self.steps = 0
        self.before = 0.0
        self.register_buffer("seen", torch.zeros(()))  # stands for the statistics of a batch norm

    def forward(self, images, targets):
        self.steps += 1
        self.seen += 1
        if self.steps != self.step:
            return super().forward(images, targets)
        self.before = self.weight.item()
        if self.where == "input":
            images = [image * self.value for image in images]
        losses = super().forward(images, targets)
        if self.where == "loss":  # the gradients stay finite
            losses["loss_b"] = losses["loss_b"].detach() * self.value
        if self.where == "gradient":
            zero = self.weight - self.weight.detach()
            zero.register_hook(lambda gradient: gradient * self.value)
            losses["loss_b"] = losses["loss_b"] + zero
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


@pytest.mark.parametrize("where", ["input", "loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_left_out(where: str, value: float) -> None:
    # The first of three steps is left out. The schedule is stepped to 0.05 all the same, and the
    # other two steps train, with gradients of 0.2.
    model, errors = Poisoned(1, where, value), []
    steps = epoch(model, [[sample(number)] for number in (7, 8, 9)], errors.append)
    assert model.weight.item() == pytest.approx(2 - 2 * 0.05 * 0.2)
    assert model.steps == 3 and model.seen.item() == 2
    assert [step["lr"] for step in steps] == pytest.approx([0.5, 0.05, 0.05])
    assert [math.isfinite(step["loss"]) for step in steps] == [where == "gradient", True, True]
    (error,) = errors
    assert isinstance(error, NonFiniteError) and "image ids 7" in str(error)
    assert error.samples[0]["image_id"] == 7


def test_nothing_is_left_of_a_step_that_is_left_out() -> None:
    model = Poisoned(2, "loss", math.nan)  # its gradient, 0.2, is finite
    epoch(model, [[sample(1)], [sample(2)]], on_not_finite=lambda error: None)
    assert model.weight.item() == model.before == pytest.approx(2 - 0.5 * 0.2)


def test_constants_are_not_saved_for_a_step_that_may_be_left_out() -> None:
    model = Linear()
    model.frozen, model.norm = FrozenBatchNorm2d(3, 1e-5), nn.BatchNorm2d(3)
    clones = []
    for on_not_finite in (None, lambda error: None):
        with Dispatched() as dispatched:
            epoch(model, [[sample(1)]], on_not_finite)
        clones.append(dispatched.names.count("clone"))
    assert clones[1] - clones[0] == 3  # mean, variance and number of batches


class Half(Linear):
    """A model with the same loss in float16, whose largest number is 65504."""

    def forward(self, images, targets):
        mean = torch.stack([image.mean() for image in images]).mean()
        return {"loss_a": (self.weight.half() * mean.half()).float()}


def test_an_overflow_of_float16_halves_the_scale() -> None:
    # The loss scale is the gradient of the scaled loss: 2^16 overflows in float16, 2^15 does not.
    model, scaler = Half(), GradScaler("cpu", init_scale=2.0**16)
    steps = epoch(model, [[sample(1)], [sample(2)]], precision=torch.float16, scaler=scaler)
    assert [step["loss"] for step in steps] == pytest.approx([0.4, 0.4], rel=1e-3)
    assert scaler.get_scale() == 2.0**15
    assert model.weight.item() == pytest.approx(2 - 0.05 * 0.2, rel=1e-5)


def test_the_factor_of_float16_is_not_in_the_step() -> None:
    scaler = GradScaler("cpu", init_scale=2.0**10)
    model = Linear(factor=100.0)  # gradient 20, clipped to 0.5
    steps = epoch(model, [[sample(1)]], clip_norm=0.5, precision=torch.float16, scaler=scaler)
    assert steps[0]["loss"] == pytest.approx(2 * 20 + 1)
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.5, abs=1e-5)


def test_float16_that_overflows_without_a_factor_is_an_error() -> None:
    model, scaler = Root(), GradScaler("cpu", init_scale=4.0)  # then 2, then 1
    batches = [[sample(number)] for number in range(1, 6)]
    with pytest.raises(NonFiniteError, match="gradient norm inf; image ids 3"):
        epoch(model, batches, precision=torch.float16, scaler=scaler)
    assert scaler.get_scale() == 1 and model.weight.item() == 2


def test_a_loss_of_float16_is_an_error_at_any_factor() -> None:
    scaler = GradScaler("cpu", init_scale=4.0)
    with pytest.raises(NonFiniteError, match="loss_b nan"):
        epoch(
            *(Poisoned(1, "loss", math.nan), [[sample(1)]]),
            precision=torch.float16,
            scaler=scaler,
        )


def test_a_request_to_leave_is_met_after_the_step() -> None:
    stop = StopRequest()

    class Interrupted(Linear):
        def forward(self, images, targets):
            if images[0].max() > 0.3:  # the second image
                stop.signal = signal.SIGTERM
            return super().forward(images, targets)

    model = Interrupted()
    with pytest.raises(Preempted, match="^SIGTERM$"):
        epoch(model, [[sample(1)], [sample(2, red=102)], [sample(3)]], stop=stop)
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.2 - 0.05 * 0.4)


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
