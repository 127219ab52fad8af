"""Estimates the time of a training run on many GPUs from measurements on single machines.

    python -m detector.scale > docs/scale.md

No run of these sizes has been made, so the estimates can be wrong. Every number that they start
from is in `results/scale/measured.json`: correct it there. The model of a step is simple:

    computing   the larger of two times: the time of the GPU, which is proportional to the pixels of
                its images, and the time that Python needs to launch a step, whatever the size of
                the images
    reducing    the ring all-reduce of the gradient over n GPUs, which moves 2 (n - 1) / n times its
                bytes through the slowest link; only the part that does not overlap with the
                backward pass counts
    loading     the time in which the CPU cores of a GPU load its images; it counts only if it is
                longer than the rest of the step
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.tables import table

RESULTS = Path(__file__).parents[1] / "results" / "scale"
GPUS_OF_A_NODE = 8
HOUR = 3600.0


@dataclass(frozen=True)
class Plan:
    """A training run whose time is estimated.

    Attributes:
        images: number of images in the training set.
        pixels: mean number of pixels of an image after resizing.
        batch: images of a step, over all GPUs.
        checkpoint_every: steps between two checkpoints.
        evaluation: index of the measured evaluation that is run after every epoch.
        val_images: number of images in the validation set.
    """

    name: str
    images: int
    pixels: int
    epochs: int
    gpus: int
    batch: int
    checkpoint_every: int
    evaluation: int
    val_images: int


COCO = {"images": 118_287, "pixels": 800 * 1067, "evaluation": 0, "val_images": 5000}
OBJECTS365 = {"images": 1_742_289, "pixels": 800 * 1067, "evaluation": 1, "val_images": 80_000}
PLANS = [
    Plan("COCO 1x, 8 GPUs", epochs=12, gpus=8, batch=16, checkpoint_every=1000, **COCO),
    Plan("COCO 3x, 8 GPUs", epochs=36, gpus=8, batch=16, checkpoint_every=1000, **COCO),
    Plan(
        "COCO 1x, 8 GPUs, 8 images each", epochs=12, gpus=8, batch=64, checkpoint_every=1000, **COCO
    ),
    Plan("Objects365, 64 GPUs", epochs=12, gpus=64, batch=128, checkpoint_every=1000, **OBJECTS365),
    Plan(
        "Objects365, 64 GPUs, 8 images each",
        epochs=12,
        gpus=64,
        batch=512,
        checkpoint_every=1000,
        **OBJECTS365,
    ),
]


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a step, of a whole step, and of the parts of the run."""

    gpu: float
    python: float
    reducing: float  # including the part that overlaps with the backward pass
    loading: float
    step: float
    start: float
    training: float
    evaluating: float
    saving: float

    @property
    def bottleneck(self) -> str:
        """The part of a step that decides how long the step takes."""
        if self.loading >= self.step:
            return "loading"
        if self.step > max(self.gpu, self.python):
            return "reducing"
        return "Python" if self.python > self.gpu else "the GPU"

    @property
    def whole(self) -> float:
        return self.start + self.training + self.evaluating + self.saving


def measured() -> dict[str, Any]:
    """Read the measurements that the estimates start from, including the files they refer to."""
    content: dict[str, Any] = json.loads((RESULTS / "measured.json").read_text())
    loader = json.loads((RESULTS / content["loading"]["file"]).read_text())
    content["loading"]["rate"] = loader["summary"]["ours"]["median"]
    files = [json.loads((RESULTS / name).read_text()) for name in content["evaluation"]["files"]]
    content["evaluation"]["sets"] = [
        {
            "images": one["images"],
            "detections": one["detections"],
            "seconds": one["candidates"]["ours"]["seconds"],
            "MiB": one["candidates"]["ours"]["MiB"],
        }
        for one in files
    ]
    return content


def costs(plan: Plan, known: dict[str, Any], deform: str) -> Costs:
    """Estimate the time of a run.

    Args:
        known: the measurements, as `measured` returns them.
        deform: none or c3-c5_v2.
    """
    step, assumed = known["step"], known["assumed"]
    ours = step[deform]
    per_gpu = plan.batch / plan.gpus
    gpu = ours["busy"] * per_gpu / step["images"] * plan.pixels / step["pixels"]
    computing = max(gpu, ours["wall"])
    within = plan.gpus <= GPUS_OF_A_NODE
    link = assumed["NVLink, bytes/s of a GPU" if within else "network, bytes/s of a GPU"]
    reducing = 2 * (plan.gpus - 1) / plan.gpus * 4 * ours["trainable"] / link
    exposed = max(0.0, reducing - assumed["backward, share of a step"] * computing)
    loading = per_gpu / (known["loading"]["rate"] * assumed["cores of a GPU"])
    one_step = max(computing + exposed, loading)

    steps = plan.epochs * plan.images / plan.batch
    evaluation = known["evaluation"]["sets"][plan.evaluation]
    detecting = assumed["forward, share of a step"] * max(gpu / per_gpu, ours["wall"])
    evaluating = detecting * plan.val_images / plan.gpus + evaluation["seconds"]
    return Costs(
        gpu=gpu,
        python=ours["wall"],
        reducing=reducing,
        loading=loading,
        step=one_step,
        start=known["start"]["seconds"] * plan.images / known["start"]["images"],
        training=steps * one_step,
        evaluating=plan.epochs * evaluating,
        saving=steps / plan.checkpoint_every * known["checkpoint"]["seconds"],
    )


PAGE = """# At scale, on paper

These estimates are calculated by `python -m detector.scale` from measurements on single machines.
**No run of these sizes has been made.** If a number is wrong, correct it in
[measured.json](../results/scale/measured.json) and run the command again.

## A step, in milliseconds

{steps}

The time of the GPU is that of two 512x512 images, scaled by the number of pixels. The time of
Python is what launching a step took; it does not depend on the size of the images. The time of
reducing includes the part that overlaps with the backward pass.

## A run, in hours

{runs}

## Measurements and assumptions

{sources}

These values are assumed, from vendors' pages or by rule of thumb, and were not measured:

{assumed}

## The bottlenecks, and what to do about them

- **Python** limits a deformable step of two images on such a GPU. More images per GPU
  (`schedule.batch_size`) cost no time until the GPU needs as long as Python.
- **Loading** is the next bottleneck. `data.num_workers=auto` starts at most 8 workers per process.
  If a GPU trains on more images than these load, set a larger number, up to the number of cores.
- **Reducing** overlaps with the backward pass entirely at these bandwidths. A network with a tenth
  of the bandwidth would add {slow:.0f} ms to a step of two images on each of 64 GPUs; more images
  per GPU would then help.
- **Evaluation** runs in one process while the other GPUs wait: {seconds:.0f} s and {GiB:.1f} GiB
  for the {images} images of Objects365. A larger `schedule.evaluate_every` makes it less frequent.
- **The start** reads all annotations in every process: {memory:.0f} GB each for Objects365, and
  eight times as much on a node, which may not have that much memory. This is what fails first. The
  remedy would be to read the annotations once per node and to share the arrays.
"""


def page(known: dict[str, Any]) -> str:
    """Return the page as markdown."""
    evaluation = known["evaluation"]["sets"][1]
    assumed = [[name, f"{value:g}"] for name, value in known["assumed"].items()]
    return PAGE.format(
        steps=_of_steps(known),
        runs=_of_runs(known),
        sources="\n".join(_sources(known)),
        assumed=table(["", "value"], assumed),
        slow=_slow_network(known),
        seconds=evaluation["seconds"],
        GiB=evaluation["MiB"] / 1024,
        images=evaluation["images"],
        memory=known["start"]["GB"] * PLANS[-1].images / known["start"]["images"],
    )


def _of_steps(known: dict[str, Any]) -> str:
    header = ["plan", "deform", "GPU", "Python", "reducing", "loading", "a step", "bound by"]
    return table(
        header,
        [
            [
                plan.name,
                deform,
                *(
                    f"{1000 * value:.0f}"
                    for value in (one.gpu, one.python, one.reducing, one.loading, one.step)
                ),
                one.bottleneck,
            ]
            for plan, deform, one in _all(known)
        ],
    )


def _of_runs(known: dict[str, Any]) -> str:
    header = ["plan", "deform", "start", "training", "evaluation", "checkpoints", "all"]
    return table(
        header,
        [
            [
                plan.name,
                deform,
                *(
                    f"{value / HOUR:.2f}"
                    for value in (one.start, one.training, one.evaluating, one.saving, one.whole)
                ),
            ]
            for plan, deform, one in _all(known)
        ],
    )


def _all(known: dict[str, Any]) -> Iterable[tuple[Plan, str, Costs]]:
    for plan in PLANS:
        for deform in ("none", "c3-c5_v2"):
            yield plan, deform, costs(plan, known, deform)


def _slow_network(known: dict[str, Any]) -> float:
    """Return the milliseconds that a network with a tenth of the bandwidth would add to a step of
    two images per GPU.
    """
    key = "network, bytes/s of a GPU"
    slow = known | {"assumed": known["assumed"] | {key: known["assumed"][key] / 10}}
    plan = PLANS[3]
    with_it, without = (costs(plan, one, "c3-c5_v2").step for one in (slow, known))
    return 1000 * (with_it - without)


def _sources(known: dict[str, Any]) -> Iterable[str]:
    for key in ("step", "loading", "start", "checkpoint"):
        one = known[key]
        yield f"- {key}: {one['what']}; {one['device']}, {one['date']}."
    for one in known["evaluation"]["sets"]:
        yield (
            f"- evaluation: {one['images']} images with {one['detections']} detections in "
            f"{one['seconds']:.1f} s, by python -m detector.evaluation.benchmark."
        )


def main() -> None:
    """Print the page."""
    print(page(measured()), end="")


if __name__ == "__main__":
    main()
