"""Compares the time and memory of a training step with torchvision's, for Faster R-CNN R50-FPN on a
batch of two 512x512 images.

    python -m detector.benchmark
    python -m detector.benchmark --threads 1 --rounds 5 --dtypes float32
    python -m detector.benchmark --device cuda --json step.json

    ours                    `model=resnet50_fpn deform=none`, as the application builds it
    ours deformable         the same network with `deform=c3-c5_v2`
    torchvision             the network that `fasterrcnn_resnet50_fpn` builds for pretrained weights
    torchvision deformable  the same network with torchvision's deformable convolution in c3 to c5

A step is the forward pass with targets, the backward pass and the step of SGD. It is timed in
float32 and under bfloat16 autocast; `--dtypes float32` skips bfloat16, which takes minutes on a
processor that has AVX2 only. On a GPU, float32 follows torch's defaults: convolutions, also our
deformable ones, multiply in TF32, and torchvision's deformable convolution does not.

All candidates get the same images, boxes, initial weights and optimizer. The learning rate is 0, so
that every step repeats the same computation. Batch norm is frozen, and layer2 to layer4 are
trained. Nothing is downloaded: the weights are random, and the batch norm statistics and the
offsets resemble those of a trained network. Every step starts from the same seed, so that all
candidates sample the same number of anchors and proposals.

Rounds are interleaved as in `ops.benchmark`: each round runs every candidate once, in a random
order. The first round is a warm-up and is not counted.
"""

import argparse
import json
from pathlib import Path

import torch

from detector.benchmark.candidates import BATCH, CANDIDATES, NUM_BOXES, NUM_CLASSES, SIZE, build
from detector.benchmark.measurement import launches_of, measure, peak_memory, progress
from detector.benchmark.report import ratios_of, rows_of, table_of, time_table
from detector.benchmark.work import check_equal_work, work_of
from ops import memory
from ops.benchmark import machine

DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure, print markdown tables and, with --json, write the results to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m detector.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device, rounds = arguments.device, arguments.rounds
    torch.set_num_threads(arguments.threads)
    dtypes = arguments.dtypes

    here = machine(device)
    print(json.dumps(here))
    print(f"\nmedians of {rounds} interleaved rounds, {arguments.threads} threads", flush=True)
    candidates, work = {}, []
    for name in CANDIDATES:
        progress(f"work of a step: {name}")
        candidates[name] = build(name, device, SIZE)
        work.append(work_of(name, candidates[name]))
        candidates[name].optimizer.zero_grad(set_to_none=True)
    check_equal_work(work)
    print(f"\n**Work of a step, float32**\n\n{table_of(work)}", flush=True)

    samples = measure(candidates, device, rounds, dtypes)
    costs = launches_of(candidates, dtypes) if device == "cuda" else []
    del candidates
    peaks = {}
    if memory.measurable(device):
        peaks = {
            f"{name} {dtype}": peak_memory(name, dtype, device)
            for dtype in dtypes
            for name in CANDIDATES
        }
    rows = rows_of(samples, peaks)
    ratios = ratios_of(rows, dtypes)
    print("\n**Time of a step, and its peak memory above weights and images**")
    print("(s: median; ±: half the range)\n")
    print(time_table(rows))
    if costs:
        print("\n**Launches of a step, and the GPU's time in them**\n")
        print(table_of(costs))
    print(f"\n**Ratios of the times**\n\n{table_of(ratios)}")
    if arguments.json:
        report = {
            "machine": here,
            "threads": arguments.threads,
            "rounds": rounds,
            "problem": {"size": SIZE, "batch": BATCH, "boxes": NUM_BOXES, "classes": NUM_CLASSES},
            "work": work,
            "samples": samples,
            "steps": rows,
            "launches": costs,
            "ratios": ratios,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
