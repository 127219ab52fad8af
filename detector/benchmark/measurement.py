"""The time and the peak memory of steps."""

import gc
import os
import random
import subprocess
import sys
from functools import partial

import torch

from detector.benchmark.candidates import SIZE, Candidate, batch, build
from detector.benchmark.work import Row
from ops import launches, memory
from ops.benchmark import seconds

Samples = dict[str, list[float]]  # "candidate dtype" -> seconds of each round


def measure(
    candidates: dict[str, Candidate], device: str, rounds: int, dtypes: list[str]
) -> Samples:
    """Time every candidate's step in each dtype.

    Returns:
        The seconds of each round, without the warm-up round.
    """
    calls = {
        f"{name} {dtype}": (candidate, dtype)
        for dtype in dtypes
        for name, candidate in candidates.items()
    }
    order = random.Random(0)  # so that no candidate always runs after the same other one
    samples: Samples = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name in order.sample(list(calls), len(calls)):
            gc.collect()
            elapsed = step_seconds(*calls[name], device)
            progress(f"round {round_} of {rounds}: {name} {elapsed:.3g} s")
            if round_:
                samples[name].append(elapsed)
    return samples


def step_seconds(candidate: Candidate, dtype: str, device: str) -> float:
    """Return the seconds of one step, then free its gradients, so that they take no memory while
    the next candidate runs.
    """
    elapsed = seconds(lambda: candidate.step(dtype), device)
    candidate.optimizer.zero_grad(set_to_none=True)
    return elapsed


def launches_of(candidates: dict[str, Candidate], dtypes: list[str]) -> list[Row]:
    """Return the launches of every candidate's step in each dtype, and the GPU's seconds in them.

    A step that takes longer than the GPU is busy waits for its host.
    """
    rows: list[Row] = []
    for dtype in dtypes:
        for name, candidate in candidates.items():
            cost = launches.measure(partial(candidate.step, dtype))
            candidate.optimizer.zero_grad(set_to_none=True)
            rows.append(
                {"candidate": f"{name} {dtype}", "launches": cost.number, "GPU s": cost.busy}
            )
    return rows


def peak_memory(name: str, dtype: str, device: str) -> float:
    """Return the result of `peak`: on CUDA in this process, as its allocator counts every byte, and
    on the CPU in a new one, as `ops.memory` does.
    """
    progress(f"peak memory: {name} {dtype}")
    if device == "cuda":
        return peak(name, dtype, device, SIZE)
    # Make glibc return freed memory to the system at once, as `ops.memory` does.
    environment = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    call = f"peak({name!r}, {dtype!r}, {device!r}, {SIZE})"
    result = subprocess.run(
        [sys.executable, "-c", f"from detector.benchmark.measurement import peak; print({call})"],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(result.stdout.splitlines()[-1])


def peak(name: str, dtype: str, device: str, size: int) -> float:
    """Return the peak memory of a step in MiB, without the weights and the images. It includes
    momentum, gradients and activations.

    A step on small images runs first. It allocates the momentum and loads the libraries that the
    first call of an operator loads.
    """
    candidate = build(name, device, size)
    small, targets = batch(device, 64)
    before = memory.peak(lambda: None, device)
    Candidate(candidate.model, candidate.optimizer, small, targets).step(dtype)
    return (memory.peak(lambda: candidate.step(dtype), device) - before) / memory.MiB


def progress(text: str) -> None:
    """Print a line of progress to stderr, so that stdout holds the results only."""
    print(text, file=sys.stderr, flush=True)
