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
processor that has AVX2 only. All candidates get the same images, boxes, initial weights and
optimizer. The learning rate is 0, so that every step repeats the same computation. Batch norm is
frozen, and layer2 to layer4 are trained. Nothing is downloaded: the weights are random, and the
batch norm statistics and the offsets resemble those of a trained network. Every step starts from
the same seed, so that all candidates sample the same number of anchors and proposals.

Rounds are interleaved as in `ops.benchmark`: each round runs every candidate once, in a random
order. The first round is a warm-up and is not counted.
"""

import argparse
import gc
import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detector.builders.model import build_model
from detector.builders.training import build_optimizer
from detector.config import parse_train
from detector.model.flops import counted_flops
from detector.model.memory_format import training_memory_format
from detector.model.resnet import convolutions_3x3
from detector.schema import TrainConfig
from ops import memory
from ops.benchmark import machine, seconds, table

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CANDIDATES = ("ours", "ours deformable", "torchvision", "torchvision deformable")
DTYPES = ("float32", "bfloat16")
SIZE = 512  # pixels
BATCH = 2
NUM_BOXES = 8  # per image
NUM_CLASSES = 80
OFFSET = 2.0  # standard deviation of the offsets, in pixels

# name of the ratio -> candidate of the numerator, candidate of the denominator, goal
RATIOS = {
    "ours / torchvision": ("ours", "torchvision", "at most 0.8"),
    "deformable / plain, ours": ("ours deformable", "ours", "at most 1.15"),
    "torchvision / ours, deformable": (
        "torchvision deformable",
        "ours deformable",
        "at least 5",
    ),
}

Samples = dict[str, list[float]]  # "candidate dtype" -> seconds of each round
Row = dict[str, Any]


# ---- candidates ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A model, its optimizer and the batch that it trains on."""

    model: FasterRCNN
    optimizer: Optimizer
    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    def step(self, dtype_name: str) -> dict[str, Tensor]:
        """Run one training step and return its losses in float32."""
        device, dtype = self.images[0].device.type, getattr(torch, dtype_name)
        torch.manual_seed(0)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            losses = self.model(self.images, self.targets)
        losses = {name: value.float() for name, value in losses.items()}
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}


class TorchvisionDeformableConv2d(torchvision.ops.DeformConv2d):
    """A 3x3 deformable convolution v2, written as a user of torchvision would write it.

    It has the parameters of our layer, and its offset convolution has the same channel order. It
    always runs in float32, because on the CPU torchvision's operator supports neither bfloat16 nor
    autocast.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        channels, stride = conv.in_channels, conv.stride[0]
        super().__init__(channels, conv.out_channels, 3, stride=stride, padding=1, bias=False)
        self.conv_offset = nn.Conv2d(channels, 3 * 9, 3, stride=stride, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map the input of shape (N, C, H, W) to an output of shape (N, O, Ho, Wo)."""
        with torch.autocast(input.device.type, enabled=False):
            input = input.float()
            offset, logits = self.conv_offset(input).split([18, 9], dim=1)
            return super().forward(input, offset, 2 * logits.sigmoid())


def build(name: str, device: str, size: int) -> Candidate:
    """Build a candidate on images of `size` x `size` pixels.

    Candidates of ours and torchvision's have equal weights.

    Args:
        name: one of `CANDIDATES`.
    """
    who, *how = name.split()
    deform = "c3-c5_v2" if how else "none"
    images, targets = batch(device, size)
    frozen = config(deform, "frozen_batch")
    model = ours(frozen) if who == "ours" else torchvisions(deformable=bool(how))
    model.load_state_dict(initial_state(deform, [image.cpu() for image in images]))
    model.train().to(device)
    if who == "ours":
        channels = frozen.model.fpn_channels
        model.to(
            memory_format=training_memory_format(
                torch.device(device), fpn_channels=channels, min_size=size
            )
        )
    optimizer = build_optimizer(
        model,
        frozen.schedule,
        frozen.deform.offset_lr_multiplier,
        frozen.model.roi_offset_lr_multiplier,
    )
    return Candidate(model, optimizer, images, targets)


def config(deform: str, norm: str) -> TrainConfig:
    """Compose the configuration of a ResNet-50-FPN without pretrained weights and of SGD with a
    learning rate of 0.
    """
    choices = ["model=resnet50_fpn", f"deform={deform}", "schedule=1x"]
    values = ["model.weights=null", f"model.norm={norm}", "schedule.lr=0"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return parse_train(compose("train", overrides=choices + values))


def ours(config: TrainConfig) -> FasterRCNN:
    """Build our detector."""
    return build_model(config.model, config.deform, config.data.transform, NUM_CLASSES)


def torchvisions(deformable: bool) -> FasterRCNN:
    """Build torchvision's detector, which does not resize the images, as ours does not either."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    if deformable:
        for name in convolutions_3x3(backbone.body, ["c3", "c4", "c5"]):
            parent, _, child = name.rpartition(".")
            layer = TorchvisionDeformableConv2d(backbone.body.get_submodule(name))
            setattr(backbone.body.get_submodule(parent), child, layer)
    return FasterRCNN(backbone, NUM_CLASSES + 1, _skip_resize=True)


def initial_state(deform: str, images: list[Tensor]) -> dict[str, Tensor]:
    """Return a state dict of random weights whose batch norm statistics are those of the images and
    whose offsets have a standard deviation of `OFFSET` pixels.

    With offsets of zero every deformable convolution would read its input in order, which is faster
    than in a trained network.
    """
    torch.manual_seed(0)
    model = ours(config(deform, "batch"))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # use the mean over all batches; here there is one
        if name.endswith(".conv_offset"):
            # The input is the ReLU of a normalised tensor, so its mean square is 1/2.
            nn.init.normal_(module.weight, std=OFFSET / (module.weight[0].numel() / 2) ** 0.5)
    with torch.no_grad():
        model.backbone(model.transform(images)[0].tensors)
    return model.state_dict()


def batch(device: str, size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images of noise, and targets whose boxes have sides between an eighth and a half of
    the image's side.
    """
    rng = torch.Generator().manual_seed(0)
    images = [torch.rand(3, size, size, generator=rng).to(device) for _ in range(BATCH)]
    targets = []
    for _ in range(BATCH):
        sides = size * (1 / 8 + 3 / 8 * torch.rand(NUM_BOXES, 2, generator=rng))
        corners = (size - sides) * torch.rand(NUM_BOXES, 2, generator=rng)
        labels = torch.randint(1, NUM_CLASSES + 1, (NUM_BOXES,), generator=rng)
        boxes = torch.cat([corners, corners + sides], dim=1)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device)})
    return images, targets


# ---- fairness --------------------------------------------------------------------------------


def work_of(name: str, candidate: Candidate) -> Row:
    """Run one float32 step and return its losses and counts: the parameters, the floating-point
    operations and the RoIs that the box head classifies.
    """
    rois: list[int] = []
    head = candidate.model.roi_heads.box_head
    hook = head.register_forward_pre_hook(lambda _, given: rois.append(len(given[0])))
    with FlopCounterMode(display=False) as counter:
        losses = candidate.step("float32")
    hook.remove()
    parameters = list(candidate.model.parameters())
    return {
        "candidate": name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        # The counter does not support torchvision's operator.
        "GFLOP": None if name == "torchvision deformable" else counted_flops(counter) / 1e9,
        "RoIs": rois[0],
        **{loss: value.item() for loss, value in losses.items()},
    }


def check_equal_work(rows: list[Row]) -> None:
    """Check that our networks do the same work as torchvision's.

    The two plain networks must have equal numbers of parameters, trainable parameters and
    floating-point operations, the two deformable networks equal numbers of parameters, and all four
    must classify the same number of RoIs. Losses are not compared. Those of the plain networks
    agree, but those of the deformable networks agree only roughly: thirteen layers that sample
    noise at random offsets amplify rounding differences until the features differ.

    Raises:
        AssertionError: the work differs.
    """
    by_name = {row["candidate"]: row for row in rows}
    for how, keys in (("", ("parameters", "trainable", "GFLOP")), (" deformable", ("parameters",))):
        for key in keys:
            pair = [by_name[who + how][key] for who in ("ours", "torchvision")]
            assert pair[0] == pair[1], f"{key}{how}: ours {pair[0]}, torchvision's {pair[1]}"
    assert len({row["RoIs"] for row in rows}) == 1, [row["RoIs"] for row in rows]


# ---- time and memory -------------------------------------------------------------------------


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


def peak_in_child(name: str, dtype: str, device: str) -> float:
    """Return the result of `peak`, measured in a new process."""
    progress(f"peak memory: {name} {dtype}")
    # Make glibc return freed memory to the system at once, as `ops.memory` does.
    environment = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    call = f"peak({name!r}, {dtype!r}, {device!r}, {SIZE})"
    result = subprocess.run(
        [sys.executable, "-c", f"from detector.benchmark import peak; print({call})"],
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


# ---- report ----------------------------------------------------------------------------------


def rows_of(samples: Samples, peaks: dict[str, float]) -> list[Row]:
    """Return a row for each candidate and dtype with its median time, its spread and its peak
    memory, if that was measured. The spread is the range of the rounds divided by the median.
    """
    rows = []
    for name, times in samples.items():
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        row = {"candidate": name, "seconds": median, "spread": spread, "MiB": peaks.get(name)}
        rows.append(row)
    return rows


def ratios_of(rows: list[Row], dtypes: list[str]) -> list[Row]:
    """Return the ratios of `RATIOS` between median times, in each dtype."""
    medians = {row["candidate"]: row["seconds"] for row in rows}
    return [
        {
            "ratio": ratio,
            **{dtype: medians[f"{over} {dtype}"] / medians[f"{under} {dtype}"] for dtype in dtypes},
            "goal": goal,
        }
        for ratio, (over, under, goal) in RATIOS.items()
    ]


def table_of(rows: list[Row]) -> str:
    """Format rows that have the same keys as a markdown table."""
    return table(rows[0], (row.values() for row in rows))


def time_table(rows: list[Row]) -> str:
    """Format median times, half the range of the rounds, and peak memory as a markdown table."""
    lines = [
        [row["candidate"], row["seconds"], f"{row['spread'] / 2:.0%}", row["MiB"]] for row in rows
    ]
    return table(["", "s", "±", "MiB"], lines)


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
    del candidates
    peaks = {}
    if memory.measurable(device):
        peaks = {
            f"{name} {dtype}": peak_in_child(name, dtype, device)
            for dtype in dtypes
            for name in CANDIDATES
        }
    rows = rows_of(samples, peaks)
    ratios = ratios_of(rows, dtypes)
    print("\n**Time of a step, and its peak memory above weights and images**")
    print("(s: median; ±: half the range)\n")
    print(time_table(rows))
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
            "ratios": ratios,
        }
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
