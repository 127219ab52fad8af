"""Times the operator beside other implementations, a plain convolution and the machine's limits.

    python -m ops.benchmark
    python -m ops.benchmark --threads 1,2 --rounds 9
    python -m ops.benchmark --groups 32
    python -m ops.benchmark --device cuda --json operator.json

The shapes are those of a detector's c3, c4 and c5. `--groups 32` gives the convolutions 4, 8 and 16
channels per group, as in ResNeXt. `candidates.py` defines the implementations, called candidates.
Rounds are interleaved: each round runs every candidate once, in a random order, after garbage
collection. The first round is a warm-up and does not count. On CUDA, each pass is captured as a
CUDA graph and replayed, so that the caches are warm and the time of Python is not measured. What a
pass costs the host is measured for the second shape with two images (`launches.py`).

The limit of a pass is the larger of two times that are measured in the same rounds: the time of its
matrix products (one forward, two backward) by `torch.mm` in the same dtype, and the time to move
the bytes that must be read and written, at the bandwidth of a copy. This limit is only as good as
`torch.mm`: a convolution can be faster than the limit if another library has a faster product.
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ops import launches, memory
from ops.candidates import (
    DTYPES,
    Candidate,
    Problem,
    build,
    compulsory_bytes,
    float32_products,
    names,
)

SHAPES = [(128, 100, 152), (256, 50, 76), (512, 25, 38)]  # channels, height, width
PASSES = ("forward", "forward+backward")
COPY_BYTES = 2**28  # far larger than the last-level cache
REPEATS = 10  # replays of a CUDA graph, averaged in one sample

Samples = dict[str, dict[str, list[float]]]  # candidate -> pass -> seconds in each round
Row = dict[str, Any]


# ---- timing ----------------------------------------------------------------------------------


def measure(problem: Problem, device: str, rounds: int) -> Samples:
    """Build every candidate for a problem and time it; see `interleaved`."""
    return interleaved(
        {name: build(name, problem, device) for name in names(device)}, device, rounds
    )


def interleaved(candidates: dict[str, Candidate], device: str, rounds: int) -> Samples:
    """Time the passes of named candidates, and a memory copy ("copy"), in interleaved rounds.

    Returns:
        The seconds of each pass in every round except the first, which is the warm-up.
    """
    calls = {name: passes(candidate) for name, candidate in candidates.items()}
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls["copy"] = {"forward": lambda: target.copy_(source)}
    if device == "cuda":
        calls = {
            name: {p: graphed(call) for p, call in both.items()} for name, both in calls.items()
        }
    order = random.Random(0)  # no candidate always follows the same one
    samples: Samples = {name: {p: [] for p in both} for name, both in calls.items()}
    for round_ in range(rounds + 1):
        gc.collect()
        for name in order.sample(list(calls), len(calls)):
            for pass_, call in calls[name].items():
                elapsed = seconds(call, device)
                if round_:
                    samples[name][pass_].append(elapsed)
    return samples


def passes(candidate: Candidate) -> dict[str, Callable[[], object]]:
    """Return the passes of a candidate; it has no backward if it has no leaves."""

    def forward() -> object:
        with torch.no_grad(), float32_products(candidate.tf32):
            return candidate.forward()

    if not candidate.leaves:
        return {"forward": forward}
    with torch.no_grad(), float32_products(candidate.tf32):
        upstream = torch.ones_like(candidate.forward())

    def both() -> object:
        with float32_products(candidate.tf32):
            return torch.autograd.grad(candidate.forward(), candidate.leaves, upstream)

    return {"forward": forward, "forward+backward": both}


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """Capture a call as a CUDA graph and return a function that replays the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def seconds(call: Callable[[], object], device: str) -> float:
    """Return the seconds of one call: wall time on the CPU, device time on CUDA.

    The device time is the mean of `REPEATS` calls that follow a warm-up call.
    """
    if device == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    begin.record()
    for _ in range(REPEATS):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / REPEATS


# ---- from samples to rows --------------------------------------------------------------------


def rows_of(samples: Samples, problem: Problem, threads: int) -> list[Row]:
    """Return the median, spread and ratios to other medians of each candidate and pass."""
    medians = {
        name: {pass_: statistics.median(times) for pass_, times in both.items()}
        for name, both in samples.items()
    }
    bandwidth = 2 * COPY_BYTES / medians["copy"]["forward"]  # bytes read and written per second
    rows = []
    for name in [name for name in samples if name != "copy"]:
        dtype = name.split()[1]
        moved = compulsory_bytes(problem, DTYPES[dtype])
        for pass_, times in samples[name].items():
            median = medians[name][pass_]
            limit = max(medians[f"mm {dtype}"][pass_], moved[pass_] / bandwidth)
            rows.append(
                {
                    "problem": str(problem),
                    "threads": threads,
                    "candidate": name,
                    "pass": pass_,
                    "ms": 1e3 * median,
                    "spread": (max(times) - min(times)) / median,
                    "times faster than torchvision": (
                        medians["torchvision float32"][pass_] / median
                    ),
                    "times conv2d": median / medians[f"conv2d {dtype}"][pass_],
                    "times the limit": median / limit,
                    "bytes ms": 1e3 * moved[pass_] / bandwidth,
                }
            )
    return rows


def summary_of(rows: list[Row]) -> list[Row]:
    """Average the ratios of our channels-last candidates over the shapes (geometric means).

    Returns:
        A row for each number of threads, batch size, candidate and pass.
    """
    settings = dict.fromkeys(
        (row["threads"], _batch(row), row["candidate"], row["pass"])
        for row in rows
        if row["candidate"].startswith("ours") and "NCHW" not in row["candidate"]
    )
    return [
        {
            "threads": setting[0],
            "N": setting[1],
            "dtype": setting[2].removeprefix("ours "),
            "pass": setting[3],
            **{
                ratio: statistics.geometric_mean(
                    row[ratio]
                    for row in rows
                    if (row["threads"], _batch(row), row["candidate"], row["pass"]) == setting
                )
                for ratio in ("times faster than torchvision", "times conv2d", "times the limit")
            },
        }
        for setting in settings
    ]


def _batch(row: Row) -> int:
    return int(row["problem"].rpartition("N")[2])


def memory_of(device: str, groups: int) -> list[Row]:
    """Measure each convolution's peak memory: every shape, then the second shape with 8 images."""
    problems = [Problem(*shape, groups=groups) for shape in SHAPES]
    problems.append(replace(problems[1], batch=8))
    found = [name for name in names(device) if not name.startswith("mm ")]
    return [
        {"problem": str(problem), "candidate": name, **memory.peaks(name, problem, device)}
        for problem in problems
        for name in found
    ]


def launches_of(groups: int) -> list[Row]:
    """Measure what each convolution's passes cost the host, for the second shape with 2 images."""
    problem = Problem(*SHAPES[1], batch=2, groups=groups)
    rows = []
    for name in [name for name in names("cuda") if not name.startswith("mm ")]:
        for pass_, call in passes(build(name, problem, "cuda")).items():
            cost = launches.measure(call)
            rows.append(
                {
                    "problem": str(problem),
                    "candidate": name,
                    "pass": pass_,
                    "launches": cost.number,
                    "GPU us": 1e6 * cost.busy,
                    "host us": 1e6 * cost.host,
                }
            )
    return rows


# ---- report ----------------------------------------------------------------------------------


def table(header: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """Format a markdown table: floats below 100 with three digits, None as a dash."""

    def text(value: object) -> str:
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) and value < 100 else _plain(value)

    header = list(header)
    rows = [header, ["---"] * len(header), *([text(v) for v in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _plain(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def time_table(rows: list[Row]) -> str:
    """Format the rows of one problem: forward on the left, forward+backward on the right."""
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(row["candidate"], {})[row["pass"]] = row
    lines = [
        [name, *(cell for pass_ in PASSES for cell in _cells(both.get(pass_)))]
        for name, both in by_name.items()
    ]
    for dtype in dict.fromkeys(row["candidate"].split()[1] for row in rows):
        both = by_name[f"mm {dtype}"]
        moved = [[both[pass_]["bytes ms"], None, None, None] for pass_ in PASSES]
        lines.append([f"bytes {dtype}", *moved[0], *moved[1]])
    return table(["", *["forward ms", "±", "x", "/"], *["f+b ms", "±", "x", "/"]], lines)


def _cells(row: Row | None) -> list[object]:
    if row is None:
        return [None] * 4
    ratios = row["times faster than torchvision"], row["times the limit"]
    return [row["ms"], f"{row['spread'] / 2:.0%}", *ratios]


def machine(device: str) -> dict[str, Any]:
    """Describe the hardware and the software versions that the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    telling = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    packages = ("torch", "torchvision", "onnxruntime", "mmcv")
    installed = {d.name: d.version for d in metadata.distributions() if d.name in packages}
    return {
        "processor": fields.get("model name", platform.machine()),
        "flags": [flag for flag in telling if flag in fields.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cudnn tf32": torch.backends.cudnn.allow_tf32 if device == "cuda" else None,
        "versions": installed,
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Measure, print markdown tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m ops.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", default=str(torch.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = arguments.device

    here = machine(device)
    print(json.dumps(here), f"\nmedians of {arguments.rounds} interleaved rounds")
    print(
        "f+b: forward and backward; ±: half the range; x: torchvision float32's time divided by "
        "this time; /: this time divided by the limit for its dtype"
    )
    rows: list[Row] = []
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for batch in (1, 2) if device == "cuda" else (1,):
            for shape in SHAPES:
                problem = Problem(*shape, batch=batch, groups=arguments.groups)
                new = rows_of(measure(problem, device, arguments.rounds), problem, threads)
                print(f"\n**{problem}, threads {threads}**\n\n{time_table(new)}", flush=True)
                rows += new
    summary = summary_of(rows)
    print("\n**Geometric means over the shapes**\n")
    print(table(summary[0], (row.values() for row in summary)))
    costs = launches_of(arguments.groups) if device == "cuda" else []
    if costs:
        print("\n**Launches of a pass, the GPU's time in them, and the host's until it goes on**\n")
        print(table(costs[0], (row.values() for row in costs)))
    print("\n**Peak memory above the inputs, MiB** (outputs and gradients included)\n")
    peaks = memory_of(device, arguments.groups) if memory.measurable(device) else []
    print(
        table(peaks[0], (row.values() for row in peaks))
        if peaks
        else "not measured: this system cannot reset the peak resident set size"
    )
    if arguments.json:
        report = {
            "machine": here,
            "rounds": arguments.rounds,
            "times": rows,
            "summary": summary,
            "launches": costs,
            "memory MiB": peaks,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
