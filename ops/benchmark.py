"""Times the operator beside torchvision's and beside a plain convolution, in one process.

    python -m ops.benchmark [--device cpu|cuda] [--threads 1,2] [--rounds 5] [--json FILE]

The shapes are those of a detector's c3, c4 and c5 (3x3, padding 1, with mask, offsets N(0, 2^2)
pixels). Rounds are interleaved: each runs every candidate once. Reported are medians in
milliseconds and, from the same rounds, how many times faster than torchvision in float32 that is.
torchvision has no bfloat16 on the CPU.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import conv2d

from ops import deform_conv2d

SHAPES = [(128, 100, 152), (256, 50, 76), (512, 25, 38)]  # channels, height, width
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Times = dict[str, tuple[list[float], list[float]]]  # candidate -> seconds forward, forward+backward


def inputs(shape: tuple[int, int, int], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Channels-last features and weights of one dtype, offsets and mask in float32."""
    channels, height, width = shape
    rng = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng).contiguous(memory_format=torch.channels_last)

    tensors = {
        "input": normal(1, channels, height, width).to(device, dtype),
        "weight": normal(channels, channels, 3, 3).to(device, dtype),
        "offset": 2 * normal(1, 18, height, width).to(device),
        "mask": normal(1, 9, height, width).sigmoid().to(device),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def candidates(
    shape: tuple[int, int, int], device: str
) -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Each candidate's forward, and the tensors whose gradients it has."""
    runs: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {}
    for name, dtype in DTYPES.items():
        t = inputs(shape, device, dtype)

        def deformable(
            function: Callable[..., Tensor], t: dict[str, Tensor] = t
        ) -> Callable[[], Tensor]:
            return lambda: function(t["input"], t["offset"], t["weight"], padding=1, mask=t["mask"])

        def plain(t: dict[str, Tensor] = t) -> Tensor:
            return conv2d(t["input"], t["weight"], padding=1)

        runs[f"ours {name}"] = deformable(deform_conv2d), list(t.values())
        runs[f"conv2d {name}"] = plain, [t["input"], t["weight"]]
        if name == "float32":
            theirs = deformable(torchvision.ops.deform_conv2d)
            runs["torchvision float32"] = theirs, list(t.values())
    return runs


def measure(shape: tuple[int, int, int], device: str, rounds: int) -> Times:
    """Seconds of every candidate in every round; the first round warms up and is left out."""
    runs = candidates(shape, device)
    times: Times = {name: ([], []) for name in runs}
    for round_ in range(rounds + 1):
        for name, (forward, leaves) in runs.items():

            def both(forward=forward, leaves=leaves) -> None:  # type: ignore[no-untyped-def]
                output = forward()
                torch.autograd.grad(output, leaves, torch.ones_like(output))

            with torch.no_grad():
                first = seconds(forward, device)
            second = seconds(both, device)
            if round_:
                times[name][0].append(first)
                times[name][1].append(second)
    return times


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rows_of(times: Times, shape: tuple[int, int, int], threads: int) -> list[dict[str, object]]:
    """A row for each candidate: medians in milliseconds, ratios to torchvision, the spread."""
    reference = [statistics.median(t) for t in times["torchvision float32"]]
    rows = []
    for name, (forward, both) in times.items():
        medians = [statistics.median(forward), statistics.median(both)]
        rows.append(
            {
                "shape": "C{}@{}x{}".format(*shape),
                "threads": threads,
                "candidate": name,
                "forward ms": round(1e3 * medians[0], 2),
                "forward+backward ms": round(1e3 * medians[1], 2),
                "x forward": round(reference[0] / medians[0], 2),
                "x forward+backward": round(reference[1] / medians[1], 2),
                "spread": f"{(max(both) - min(both)) / medians[1]:.0%}",
            }
        )
    return rows


def main() -> None:
    """Measure, print a markdown table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", default=str(torch.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    rows = []
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            rows += rows_of(measure(shape, arguments.device, arguments.rounds), shape, threads)
    machine = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else processor(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(machine.values()) + "\n")
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


def processor() -> str:
    """The processor's name, as Linux tells it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
