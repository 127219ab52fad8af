"""How fast training is, what it waits for, and how much memory it takes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch

from detector.data.dataset import Sample
from ops import memory


class Speed:
    """Counts the steps between two reports.

    Args:
        batch_size: images of a step, over all ranks.
        flops_per_pixel: of a forward; a backward is taken to be two.

    Attributes:
        seconds, num_images: since it was made, of this process.
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
        """The batches of this rank; time spent here is spent waiting."""
        self._start()  # what was before was not training
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
        """A step is done."""
        now = time.perf_counter()
        self.seconds += now - self._counted
        self._counted = now
        self._steps += 1
        self.num_images += self.batch_size

    def report(self) -> dict[str, float]:
        """Since the last one: images a second over all ranks; of this rank, the share of time that
        it waited for data, and TFLOP/s.
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
    """Let `peak_memory` forget what was before, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        memory.reset_resident_peak()


def peak_memory(device: torch.device) -> int:
    """The most bytes held since: tensors on a GPU, or the whole process; 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return memory.resident("VmHWM")
    except OSError:
        return 0
