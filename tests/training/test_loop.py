"""One epoch of optimization, on a model so small that its steps are computed by hand."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from detector.data.dataset import Sample
from detector.training.loop import NonFiniteError, compute_losses, seed_epoch, train_epoch
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


def epoch(model: nn.Module, batches: list[list[Sample]], clip_norm: float | None = None) -> list:
    optimizer = SGD(model.parameters(), lr=0.5)
    schedule = lr_schedule(optimizer, warmup_steps=0, num_steps=9, milestones=[1], gamma=0.1)
    steps: list[dict[str, float]] = []
    train_epoch(
        model,
        batches,
        optimizer=optimizer,
        lr_schedule=schedule,
        device=CPU,
        precision=torch.float32,
        clip_norm=clip_norm,
        on_step=steps.append,
    )
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
    with pytest.raises(NonFiniteError, match=rf"loss_a {factor}, loss_b 1; image ids 7, 9"):
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
