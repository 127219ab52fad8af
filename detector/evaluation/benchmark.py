"""Benchmark COCO's metrics on a data set of full size: ours, pycocotools and faster-coco-eval.

    python -m detector.evaluation.benchmark
    python -m detector.evaluation.benchmark --images 20000 --classes 1200 --objects 250000 \
        --detections 6000000 --candidates ours --rounds 1
    python -m detector.evaluation.benchmark --seed 7 --json evaluation.json

Three JSON files are generated from `--seed`: the ground truth and the results of two detectors. As
in real data sets, most objects are of a few classes, and one in a hundred is a crowd. Half of the
detections are near an object, and scores have three digits.

Each candidate runs in a process of its own, and is timed from the start of the process to the 12
numbers. Rounds are interleaved: each runs all candidates, in random order. The last candidate,
`comparison`, is our paired comparison of both results files with 1000 resamples.

The command prints the time in seconds, the peak memory, and the largest difference of the 12
numbers from those of pycocotools.
"""

import argparse
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detector.evaluation.coco import coco_metrics
from detector.evaluation.columns import Detections, GroundTruth
from detector.evaluation.paired import compare
from detector.evaluation.results import read_detections, read_ground_truth
from detector.tables import table

SIZE = np.array([640.0, 480.0])  # width and height of every image in pixels
RESAMPLES = 1000
BLOCK = 100_000  # entries that are encoded at a time
UNFOUND = -1.0  # the number that pycocotools gives where there are no objects to detect


def random_ground_truth(
    num_images: int, num_classes: int, num_objects: int, rng: np.random.Generator
) -> GroundTruth:
    """Generate objects with sides of 8 to 360 pixels.

    The k-th class, counted from 0, has a frequency proportional to 1 / (k + 10).
    """
    often = 1 / (np.arange(num_classes) + 10)
    sides = np.round(2 ** rng.uniform(3, 8.5, (num_objects, 2)), 2)
    corners = np.round(rng.uniform(size=(num_objects, 2)) * (SIZE - sides), 2)
    return GroundTruth(
        image_ids=np.arange(1, 1 + num_images),
        category_ids=np.arange(1, 1 + num_classes),
        names=tuple(f"class {number}" for number in range(1, 1 + num_classes)),
        images=rng.integers(num_images, size=num_objects),
        classes=rng.choice(num_classes, num_objects, p=often / often.sum()),
        boxes=np.concatenate([corners, sides], axis=1),
        areas=np.round(0.7 * sides.prod(axis=1), 2),
        is_crowd=rng.uniform(size=num_objects) < 0.01,
        entries=[
            {"id": number, "file_name": f"{number:012d}.jpg", "width": 640, "height": 480}
            for number in range(1, 1 + num_images)
        ],
    )


def random_detections(
    truth: GroundTruth, num_detections: int, rng: np.random.Generator
) -> Detections:
    """Generate equally many detections in each image.

    Half of them are near an object of the image, and a fifth of these have a random class. The
    others are anywhere and have a random class.
    """
    images = np.sort(np.arange(num_detections) % len(truth.image_ids))
    by_image = np.argsort(truth.images, kind="stable")
    starts = np.searchsorted(truth.images[by_image], images, side="left")
    counts = np.searchsorted(truth.images[by_image], images, side="right") - starts
    is_near = (rng.uniform(size=num_detections) < 0.5) & (counts > 0)
    places = starts + (rng.uniform(size=num_detections) * counts).astype(np.int64)
    nearest = by_image[places.clip(max=len(by_image) - 1)]
    sides = 2 ** rng.uniform(3, 8.5, (num_detections, 2))
    corners = rng.uniform(size=(num_detections, 2)) * (SIZE - sides)
    boxes = np.concatenate([corners, sides], axis=1)
    close = truth.boxes[nearest]
    close = close + 0.1 * rng.normal(size=close.shape) * close[:, [2, 3, 2, 3]]
    close[:, 2:] = np.abs(close[:, 2:])
    classes = rng.integers(len(truth.names), size=num_detections)
    is_right = is_near & (rng.uniform(size=num_detections) < 0.8)
    scores = np.where(
        is_near, rng.beta(2, 3, size=num_detections), rng.beta(1, 6, size=num_detections)
    )
    return Detections(
        truth.image_ids[images],
        truth.category_ids[np.where(is_right, truth.classes[nearest], classes)],
        np.round(np.where(is_near[:, None], close, boxes), 2),
        np.round(scores, 3),
    )


def make_files(arguments: argparse.Namespace, folder: Path) -> None:
    """Write ground_truth.json, first.json and second.json into a folder."""
    rng = np.random.default_rng(arguments.seed)
    truth = random_ground_truth(arguments.images, arguments.classes, arguments.objects, rng)
    (folder / "ground_truth.json").write_bytes(msgspec.json.encode(truth.to_coco()))
    for name in ("first.json", "second.json"):
        detections = random_detections(truth, arguments.detections, rng)
        with (folder / name).open("wb") as file:  # in blocks: all dictionaries need gigabytes
            for start in range(0, len(detections), BLOCK):
                rows = np.arange(start, min(start + BLOCK, len(detections)))
                encoded = msgspec.json.encode(detections.select(rows).to_coco())
                file.write((b"," if start else b"[") + encoded[1:-1])
            file.write(b"]")


# ---- candidates ----------------------------------------------------------------------------------


def by_ours(folder: Path) -> list[float]:
    """Compute the 12 numbers as `evaluate.py` does."""
    truth = read_ground_truth(folder / "ground_truth.json")
    detections = read_detections(folder / "first.json", truth)
    summary = coco_metrics(truth, detections).summary
    return [UNFOUND if value is None else value for value in summary.values()]


def by_pycocotools(folder: Path) -> list[float]:
    """Compute the 12 numbers with pycocotools, as its README shows."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _evaluated(COCO, COCOeval, folder)


def by_faster_coco_eval(folder: Path) -> list[float]:
    """Compute the 12 numbers with faster-coco-eval, which has the interface of pycocotools."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _evaluated(COCO, COCOeval_faster, folder)


def _evaluated(
    index: Callable[..., Any], evaluator: Callable[..., Any], folder: Path
) -> list[float]:
    with redirect_stdout(io.StringIO()):
        truth = index(str(folder / "ground_truth.json"))
        run = evaluator(truth, truth.loadRes(str(folder / "first.json")), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [float(value) for value in run.stats[:12]]


def by_comparison(folder: Path) -> list[float]:
    """Compute the difference of AP and the two ends of its interval."""
    truth = read_ground_truth(folder / "ground_truth.json")
    both = [read_detections(folder / f"{name}.json", truth) for name in ("first", "second")]
    compared = compare(truth, *both, metric="coco", num_resamples=RESAMPLES, seed=0)
    found = compared.numbers["AP"]
    return [] if found is None else [found.difference, found.low, found.high]


CANDIDATES: dict[str, Callable[[Path], list[float]]] = {
    "ours": by_ours,
    "pycocotools": by_pycocotools,
    "faster-coco-eval": by_faster_coco_eval,
    "comparison": by_comparison,
}


# ---- the command ---------------------------------------------------------------------------------


def in_a_process(candidate: str, folder: Path) -> dict[str, Any]:
    """Run a candidate in a new Python process; return its seconds, peak memory and numbers."""
    command = [sys.executable, "-m", "detector.evaluation.benchmark", "--alone", candidate]
    start = time.perf_counter()
    done = subprocess.run([*command, str(folder)], stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": time.perf_counter() - start} | json.loads(done.stdout.splitlines()[-1])


def alone(candidate: str, folder: Path) -> None:
    """Run a candidate in this process; print its numbers and its peak memory as JSON."""
    numbers = CANDIDATES[candidate](folder)
    # Not ru_maxrss, which starts at the value of the parent process.
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"numbers": numbers, "MiB": peak / 1024}))


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Summarise the rounds of each candidate.

    Returns:
        By candidate: the median and the range of its seconds, its highest peak memory in MiB, its
        numbers, and their largest difference from those of pycocotools. The difference is None
        for the comparison, and if pycocotools was not run.
    """
    judge = runs.get("pycocotools", [{"numbers": None}])[0]["numbers"]
    result = {}
    for name, of_candidate in runs.items():
        seconds = [run["seconds"] for run in of_candidate]
        numbers = of_candidate[0]["numbers"]
        result[name] = {
            "seconds": statistics.median(seconds),
            "range": [min(seconds), max(seconds)],
            "MiB": max(run["MiB"] for run in of_candidate),
            "distance": None
            if judge is None or name == "comparison"
            else max(abs(ours - theirs) for ours, theirs in zip(numbers, judge, strict=True)),
            "numbers": numbers,
        }
    return result


def to_markdown(of_candidates: dict[str, dict[str, Any]]) -> str:
    """Format the summary as a Markdown table."""
    rows = [
        [
            name,
            f"{one['seconds']:.1f}",
            "{:.1f} to {:.1f}".format(*one["range"]),
            f"{one['MiB']:.0f}",
            "-" if one["distance"] is None else f"{one['distance']:.1g}",
        ]
        for name, one in of_candidates.items()
    ]
    return table(["candidate", "s", "range, s", "peak MiB", "farthest from pycocotools"], rows)


def main() -> None:
    """Generate the files, run the candidates, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m detector.evaluation.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=int, default=36_000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        alone(arguments.alone[0], Path(arguments.alone[1]))
        return

    from ops.benchmark import machine  # imports torch, which takes seconds and is not measured

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.candidates}
    order = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        make_files(arguments, Path(folder))
        for _ in range(arguments.rounds):
            for name in order.sample(arguments.candidates, len(arguments.candidates)):
                runs[name].append(in_a_process(name, Path(folder)))
                print(f"{name}: {runs[name][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    found = summary(runs)
    print(to_markdown(found))
    if arguments.json:
        sizes = ("images", "classes", "objects", "detections", "seed", "rounds")
        content = {"machine": machine("cpu")} | {name: getattr(arguments, name) for name in sizes}
        arguments.json.write_text(json.dumps(content | {"candidates": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
