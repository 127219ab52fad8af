"""Measures the speed of training, the time spent waiting for data, and the peak memory."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch

from detector.data.dataset import Sample
from ops import memory


class Speed:
    """Measures the training speed between two reports.

    Args:
        batch_size: the number of images per step, over all ranks.
        flops_per_pixel: FLOPs of a forward pass per pixel of the input images. A backward pass is
            taken to cost twice as much.

    Attributes:
        seconds: the time this process has spent in training, without evaluations.
        num_images: the number of images trained on in this time, over all ranks.
    """

    def __init__(self, *, batch_size: int, flops_per_pixel: float) -> None:
        self.batch_size = batch_size
        self.flops_per_pixel = flops_per_pixel
        self.seconds = 0.0
        self.num_images = 0
        self._start()

    def _start(self) -> None:
        self._began = self._counted = time.perf_counter()
        self._waited = 0.0
        self._steps = 0
        self._pixels = 0

    def timed(self, batches: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
        """Yield this rank's batches, and count the time until each arrives as waiting for data."""
        self._start()  # the time before, such as an evaluation, is not training
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                samples = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            self._pixels += sum(sample["image"][0].numel() for sample in samples)
            yield samples

    def step(self) -> None:
        """Count a finished step."""
        now = time.perf_counter()
        self.seconds += now - self._counted
        self._counted = now
        self._steps += 1
        self.num_images += self.batch_size

    def report(self) -> dict[str, float]:
        """Return the speed since the last report, or since the epoch began.

        Returns:
            `images/s` over all ranks; `data wait`, the share of time that this rank waited for
            data, in [0, 1]; and `TFLOP/s` of this rank.
        """
        seconds = time.perf_counter() - self._began
        values = {
            "images/s": self._steps * self.batch_size / seconds,
            "data wait": self._waited / seconds,
            "TFLOP/s": 3 * self.flops_per_pixel * self._pixels / seconds / 1e12,
        }
        self._start()
        return values


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory`, if the operating system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        memory.reset_resident_peak()


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes since `reset_peak_memory`.

    On a GPU this is the memory of its tensors, on a CPU the resident memory of the process, or 0 if
    it is unknown.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return memory.resident("VmHWM")
    except OSError:
        return 0
