"""Measures what a call costs the host of a GPU: its launches, and the time until Python goes on.

A GPU waits for its host wherever a call launches more slowly than the kernels run.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

REPEATS = 5


class Launches(NamedTuple):
    """Means over several calls."""

    number: float  # kernels, copies and fills
    busy: float  # seconds that these take on the GPU, without the pauses between them
    host: float  # seconds until the call returns; synchronisations in it count


def measure(call: Callable[[], object]) -> Launches:
    """Measure a call on the current GPU, which must have nothing else to do."""
    call()  # a first call may load kernels and allocate memory
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(REPEATS):
        call()
    host = time.perf_counter() - begin
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPEATS):
            call()
        torch.cuda.synchronize()
    microseconds = [
        event.time_range.elapsed_us()
        for event in profiler.events() or []
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    return Launches(
        number=len(microseconds) / REPEATS,
        busy=sum(microseconds) / 1e6 / REPEATS,
        host=host / REPEATS,
    )
