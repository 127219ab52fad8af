"""What a run on many GPUs will cost, calculated from what was measured on single machines.

    python -m detector.scale > docs/scale.md

No run of these sizes has been made: the page can be wrong, and `results/scale/measured.json`, which
has every number that it starts from, is where to correct it. The model of a step is simple:

    computing   the greater of what the GPU needs for its images, in proportion to their pixels,
                and of what Python needs to launch a step, whatever their size
    reducing    a ring's 2 (n - 1) / n times the gradient's bytes through the slowest link, as far
                as the backward does not hide it
    loading     images over the cores that are there, where that is slower than the rest
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
    """A run.

    Attributes:
        images: of the training set.
        pixels: of an image after its resize, on average.
        batch: images of a step, over all GPUs.
        checkpoint_every: steps.
        evaluation: which of the measured evaluations it has, once an epoch.
        val_images: of the validation set.
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
    """Seconds: of a step's parts, of a step, and of the whole run's parts."""

    gpu: float
    python: float
    reducing: float  # in full; what the backward hides is part of it
    loading: float
    step: float
    start: float
    training: float
    evaluating: float
    saving: float

    @property
    def bound(self) -> str:
        """What decides how long a step takes."""
        if self.loading >= self.step:
            return "loading"
        if self.step > max(self.gpu, self.python):
            return "reducing"
        return "Python" if self.python > self.gpu else "the GPU"

    @property
    def whole(self) -> float:
        return self.start + self.training + self.evaluating + self.saving


def measured() -> dict[str, Any]:
    """What the calculation starts from, with the files that it names."""
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
    """What a plan costs.

    Args:
        known: as `measured` returns it.
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

Calculated by `python -m detector.scale` from measurements on single machines. **No run of these
sizes has been made.** Where a number is wrong, correct it in
[measured.json](../results/scale/measured.json) and run the command again.

## A step, in milliseconds

{steps}

The GPU's time is that of two images of 512x512 in proportion to pixels; Python's is what launching
a step took, of whatever size. Reducing is in full: the backward hides it.

## A run, in hours

{runs}

## What it starts from

{sources}

Assumed, from vendors' pages or by rule of thumb, and not measured:

{assumed}

## What bounds first, and what to change then

- **Python** bounds a deformable step of two images on such a GPU. More images on each
  (`schedule.batch_size`) cost nothing up to the size at which the GPU takes as long, and bounds.
- **Loading** comes next. `data.num_workers` is at most 8 by itself; where a GPU uses more images
  than these load, give more, as far as there are cores.
- **Reducing** stays hidden behind the backward at these bandwidths. A network of a tenth of that
  would add {slow:.0f} ms to a step of two images on each of 64 GPUs: more images on each, then.
- **Evaluation** is one process's, while the other GPUs wait: {seconds:.0f} s and {GiB:.1f} GiB for
  the {images} images of Objects365. `schedule.evaluate_every` makes it rarer.
- **The start** reads all annotations in every process: {memory:.0f} GB each for Objects365, eight
  times that on a node, which it may not have. This fails first there; reading once a node and
  sharing the arrays is the change to make.
"""


def page(known: dict[str, Any]) -> str:
    """The page, as markdown."""
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
                one.bound,
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
    """Milliseconds of a step that a network of a tenth of the bandwidth adds, two images a GPU."""
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
