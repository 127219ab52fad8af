"""Times deformable RoI pooling, and RoIAlign by the same operator, against torchvision's RoIAlign.

    python -m ops.roi_benchmark
    python -m ops.roi_benchmark --threads 1,2 --rounds 9 --json roi_pool.json
    python -m ops.roi_benchmark --device cuda

It measures as `ops.benchmark` does. The problem is the finest level of a detector in training: 2
images of 256 channels at 128x128, 1024 boxes with sides of 20 to 300 pixels, and 7x7 bins that have
2x2 samples, or as many as they have pixels. `deform` has offsets drawn from N(0, 1) and a mask. The
backward computes the gradient of the features, and those of offsets and mask if there are any.

The limit of a pass is the time to move the bytes that must be read and written, at the bandwidth of
a copy: the features, the output and, for the backward, their gradients.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from ops import deform_roi_pool, memory
from ops.benchmark import COPY_BYTES, PASSES, interleaved, machine, table
from ops.candidates import Candidate

IMAGES, CHANNELS, SIDE, STRIDE, BOXES, BINS = 2, 256, 128, 4, 1024, 7
NAMES = (
    "ours float32",
    "ours float32 NCHW",
    "ours bfloat16",
    "ours float32 deform",
    "torchvision float32",
)


def boxes() -> Tensor:
    """Draw boxes (BOXES, 5) within the images."""
    rng = torch.Generator().manual_seed(0)
    extent = float(SIDE * STRIDE)
    centre = torch.rand(BOXES, 2, generator=rng) * extent
    sides = torch.exp(3 + 2.7 * torch.rand(BOXES, 2, generator=rng))
    image = torch.randint(0, IMAGES, (BOXES, 1), generator=rng).float()
    corners = [(centre - sides / 2).clamp(0, extent), (centre + sides / 2).clamp(0, extent)]
    return torch.cat([image, *corners], dim=1)


def build(name: str, ratio: int, device: str) -> Candidate:
    """Build a candidate from one of `NAMES`: "who dtype [how]"."""
    who, dtype_name, *how = name.split()
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=rng)
    if who == "ours" and how != ["NCHW"]:
        features = features.contiguous(memory_format=torch.channels_last)
    features = features.to(device, getattr(torch, dtype_name)).requires_grad_()
    rois = boxes().to(device)
    numbers: dict[str, Any] = {"spatial_scale": 1 / STRIDE, "sampling_ratio": ratio}
    if who == "torchvision":
        return Candidate(lambda: roi_align(features, rois, BINS, **numbers), [features])
    pool = partial(deform_roi_pool, features, rois, BINS, **numbers)
    if how != ["deform"]:
        return Candidate(pool, [features])
    offset = torch.randn(BOXES, 2, BINS, BINS, generator=rng).to(device).requires_grad_()
    mask = torch.rand(BOXES, BINS, BINS, generator=rng).to(device).requires_grad_()
    return Candidate(partial(pool, offset=offset, mask=mask), [features, offset, mask])


def compulsory_bytes(dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes that each pass must read and write at least."""
    features = IMAGES * CHANNELS * SIDE**2 * dtype.itemsize
    output = BOXES * CHANNELS * BINS**2 * dtype.itemsize
    return {"forward": features + output, "forward+backward": 2 * (features + output)}


def rows_of(ratio: int, device: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time every candidate; return a row for each candidate and pass."""
    samples = interleaved({name: build(name, ratio, device) for name in NAMES}, device, rounds)
    medians = {
        name: {pass_: statistics.median(times) for pass_, times in both.items()}
        for name, both in samples.items()
    }
    bandwidth = 2 * COPY_BYTES / medians["copy"]["forward"]
    rows = []
    for name in NAMES:
        moved = compulsory_bytes(getattr(torch, name.split()[1]))
        for pass_ in PASSES:
            times, median = samples[name][pass_], medians[name][pass_]
            rows.append(
                {
                    "samples of a bin": "2x2" if ratio == 2 else "by its size",
                    "threads": threads,
                    "candidate": name,
                    "pass": pass_,
                    "ms": 1e3 * median,
                    "spread": (max(times) - min(times)) / median,
                    "times faster than torchvision": (
                        medians["torchvision float32"][pass_] / median
                    ),
                    "times the limit": median * bandwidth / moved[pass_],
                }
            )
    return rows


def peaks_of(name: str, device: str) -> dict[str, float | None]:
    """Return the MiB of each pass; `memory.py` says why the CPU needs a fresh process."""
    if device == "cuda":
        return memory.measure(build(name, 2, device), device)
    return memory.peaks_of(["ops.roi_benchmark", "--device", device, "--peak", name])


def main() -> None:
    """Measure, print a markdown table, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.roi_benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", default=str(torch.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=NAMES, help="measure only this candidate's peak memory")
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.peak:
        print(json.dumps(memory.measure(build(arguments.peak, 2, device), device)))
        return

    here = machine(device)
    print(json.dumps(here), f"\nmedians of {arguments.rounds} interleaved rounds")
    rows: list[dict[str, Any]] = []
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for ratio in (2, -1):
            rows += rows_of(ratio, device, threads, arguments.rounds)
    print(table(rows[0], (row.values() for row in rows)))
    peaks = []
    if memory.measurable(device):
        peaks = [{"candidate": name, **peaks_of(name, device)} for name in NAMES]
        print("\n**Peak memory above the inputs, MiB** (outputs and gradients included)\n")
        print(table(peaks[0], (row.values() for row in peaks)))
    if arguments.json:
        report = {"machine": here, "rounds": arguments.rounds, "times": rows, "memory MiB": peaks}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
