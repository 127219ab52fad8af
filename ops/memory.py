"""Measures the peak memory of a forward, and of a forward and backward, above the inputs.

On CUDA the figure comes from torch's allocator, which counts every byte, so the candidates are
measured one after the other in the calling process. On the CPU it is the growth of the peak
resident set size, which only Linux can reset and which depends on what ran before: there each
candidate has its own process, `python -m ops.memory NAME DEVICE C H W N [GROUPS]`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import torch

from ops.candidates import Candidate, Problem, build, float32_products

MiB = 2**20


def measurable(device: str) -> bool:
    """Return whether this system can reset the peak."""
    try:
        if device == "cpu":
            reset_resident_peak()
    except OSError:
        return False
    return True


def peaks(name: str, problem: Problem, device: str) -> dict[str, float | None]:
    """Return the MiB of each pass; None if there is no such pass."""
    if device == "cuda":
        return measure_warm(name, problem, device)
    return peaks_of(["ops.memory", name, device, *map(str, astuple(problem))])


def peaks_of(module: list[str]) -> dict[str, float | None]:
    """Run a module with its arguments in a fresh process; return the JSON of its last line."""
    # glibc returns freed memory at once, so that the second pass cannot reuse the first one's.
    environment = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    result = subprocess.run(
        [sys.executable, "-m", *module],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def measure_warm(name: str, problem: Problem, device: str) -> dict[str, float | None]:
    """Measure a candidate by its name, after a small run that loads code and compiled kernels.

    What they need once is no part of the operator's workspace.
    """
    measure(build(name, Problem(32, 8, 8), device), device)
    return measure(build(name, problem, device), device)


def measure(candidate: Candidate, device: str) -> dict[str, float | None]:
    """Return the MiB that each pass needs above what the process holds before the first pass."""
    before = _present(device)
    with float32_products(candidate.tf32):
        with torch.no_grad():
            forward = (peak(candidate.forward, device) - before) / MiB
            upstream = torch.ones_like(candidate.forward())
        if not candidate.leaves:
            return {"forward": forward, "forward+backward": None}

        def both() -> object:
            return torch.autograd.grad(candidate.forward(), candidate.leaves, upstream)

        above = peak(both, device) - before - upstream.nbytes
        return {"forward": forward, "forward+backward": above / MiB}


def peak(function: Callable[[], object], device: str) -> int:
    """Return the largest number of bytes held at once during a call, including its result."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated()
    reset_resident_peak()
    function()
    return resident("VmHWM")


def _present(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")


def reset_resident_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Return a field of /proc/self/status, such as VmRSS, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Measure the candidate that the command line names and print the result as JSON."""
    name, device, *sizes = sys.argv[1:]
    print(json.dumps(measure_warm(name, Problem(*map(int, sizes)), device)))


if __name__ == "__main__":
    main()
