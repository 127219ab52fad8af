"""Speeds measured with a clock that the test sets."""

import time

import pytest
import torch

from detector.training.speed import Speed


class Clock:
    """A clock that stands still unless the test changes `now`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def samples(num_images: int) -> list:
    """Return images of 20x30 pixels."""
    return [{"image": torch.zeros(3, 20, 30)}] * num_images


def test_two_reports(clock: Clock) -> None:
    speed = Speed(batch_size=8, flops_per_pixel=1e9)
    clock.now += 50  # the time before training does not count

    def batches():
        """Yield batches of 4 images, half of a step's 8, after 1, 2 and 3 seconds."""
        for seconds in (1, 2, 3):
            clock.now += seconds
            yield samples(4)

    unread = speed.timed(batches())
    for _ in range(2):
        next(unread)
        clock.now += 4
        speed.step()
    # 2 steps in 1 + 4 + 2 + 4 = 11 seconds, 3 of them waiting. 2 x 4 x 600 = 4800 pixels; forward
    # and backward together cost three forward passes: 3 x 4800 x 1e9 FLOPs in 11 seconds.
    assert speed.report() == pytest.approx(
        {"images/s": 16 / 11, "data wait": 3 / 11, "TFLOP/s": 14.4 / 11}
    )
    next(unread)
    clock.now += 2
    speed.step()
    # Since the first report: 1 step in 3 + 2 seconds, with 4 x 600 pixels.
    assert speed.report() == pytest.approx(
        {"images/s": 8 / 5, "data wait": 3 / 5, "TFLOP/s": 7.2 / 5}
    )
    assert (speed.seconds, speed.num_images) == (16, 24)


def test_what_is_between_two_epochs_does_not_count(clock: Clock) -> None:
    speed = Speed(batch_size=2, flops_per_pixel=0.0)
    for _ in range(2):
        for _ in speed.timed([samples(2)]):
            clock.now += 5
            speed.step()
        clock.now += 1000  # an evaluation
    assert (speed.seconds, speed.num_images) == (10, 4)


def test_a_step_of_several_parts(clock: Clock) -> None:
    speed = Speed(batch_size=4, flops_per_pixel=1e9)
    list(speed.timed([samples(2), samples(2)]))
    clock.now += 10
    speed.step()
    # 1 step, 4 x 600 pixels
    expected = {"images/s": 0.4, "data wait": 0, "TFLOP/s": 0.72}
    assert speed.report() == pytest.approx(expected)
