"""Test how the time of an image is split, with a clock that moves only where the test lets it."""

from types import SimpleNamespace

import pytest
import torch
from small import small_detector
from torchvision.models.detection import FasterRCNN

from detector.evaluation.timing import WARM_UP, measure
from detector.model.flops import forward_flops
from detector.model.resnet import resnet


class Clock:
    """A clock in seconds that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class SlowDataset:
    """A data set whose images take 1 s, 2 s ... to load; it records the indices asked for."""

    def __init__(self, clock: Clock, num_images: int) -> None:
        self.clock = clock
        self.records = [SimpleNamespace(height=40, width=60)] * num_images
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> dict:
        self.asked.append(index)
        self.clock.seconds += index + 1
        return {"image": torch.zeros(3, 40, 60, dtype=torch.uint8)}


def slowed(clock: Clock, function, seconds: float):
    def slow(*args, **kwargs):
        clock.seconds += seconds
        return function(*args, **kwargs)

    return slow


@pytest.fixture
def model() -> FasterRCNN:
    torch.manual_seed(0)
    return small_detector(
        resnet(name="resnet10", norm="batch", c5_dilation=1, norm_eps=1e-5, stride_in_1x1=False),
        trainable_layers=3,
    )


@pytest.mark.parametrize("batch_size, batches", [(1, 5), (2, 3), (5, 1)])
def test_each_part_gets_its_own_time(
    model: FasterRCNN, monkeypatch: pytest.MonkeyPatch, batch_size: int, batches: int
) -> None:
    clock = Clock()
    parts = [  # of a batch: 10 + 20 + 30 + 40 s forward, 300 + 200 s of post-processing
        *((model.transform, "forward", 10), (model.backbone, "forward", 20)),
        *((model.rpn, "forward", 30), (model.roi_heads.box_head, "forward", 40)),
        *((model.roi_heads, "postprocess_detections", 300), (model.transform, "postprocess", 200)),
    ]
    for module, name, seconds in parts:
        monkeypatch.setattr(module, name, slowed(clock, getattr(module, name), seconds))
    dataset = SlowDataset(clock, 9)
    timing = measure(
        model.train(),
        dataset,  # type: ignore[arg-type]
        device=torch.device("cpu"),
        precision=torch.float32,
        max_images=5,
        batch_size=batch_size,
        clock=clock,
    )
    assert timing.load_ms == pytest.approx(3000)  # the mean of 1, 2, 3, 4, 5 s
    assert timing.forward_ms == pytest.approx(100_000 * batches / 5)
    assert timing.post_ms == pytest.approx(500_000 * batches / 5)
    assert timing.num_images == 5 and timing.batch_size == batch_size
    assert dataset.asked == [*range(min(WARM_UP * batch_size, 5)), *range(5)]
    assert not model.training and not model.roi_heads.box_predictor._forward_hooks


def test_the_size_of_the_model(model: FasterRCNN) -> None:
    count = sum(tensor.numel() for tensor in dict(model.named_parameters()).values())
    timing = measure(
        model,
        SlowDataset(Clock(), 1),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        precision=torch.bfloat16,
        max_images=100,
    )
    assert timing.num_images == 1 and timing.num_parameters == count
    assert timing.gflops == forward_flops(model, 64, 96) / 1e9
    assert timing.forward_ms > 0 and timing.post_ms > 0


def test_the_hook_is_gone_after_an_error(
    model: FasterRCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(model.rpn, "forward", broken)
    with pytest.raises(RuntimeError):
        measure(
            model,
            SlowDataset(Clock(), 2),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            precision=torch.float32,
            max_images=2,
        )
    assert not model.roi_heads.box_predictor._forward_hooks


def test_no_image(model: FasterRCNN) -> None:
    with pytest.raises(ValueError, match="an image to measure"):
        measure(
            model,
            SlowDataset(Clock(), 0),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            precision=torch.float32,
            max_images=5,
        )
