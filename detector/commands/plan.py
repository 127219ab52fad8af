"""Estimates how long a run or a sweep would take, from a few measured steps and images.

The result of the measured steps is discarded: a run folder gets only a plan.json. An arm of a sweep
is measured once, whatever the number of its seeds.
"""

import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detector.analysis.study.arms import arms_of
from detector.builders.data import build_data
from detector.builders.device import build_device, build_precision
from detector.config import config_hash
from detector.evaluation.timing import measure as time_images
from detector.schema import TrainConfig
from detector.step_time import step_seconds
from detector.tables import table
from detector.training.durable import write_json
from detector.training.record import duration

log = logging.getLogger("plan")

STEPS, IMAGES = 8, 4  # numbers of training steps and validation images (at least a batch) measured
WARM_UP = 2  # number of steps before these
FILE = "plan.json"


def measure(config: TrainConfig, folder: Path) -> None:
    """Write plan.json into the run folder and log the estimate."""
    arm = config_hash(replace(config, seed=0))
    known = [plan for plan in plans_of(folder.parent).values() if plan["arm"] == arm]
    plan = known[0] if known else {"arm": arm, **_measured(config)}
    write_json(folder / FILE, plan)
    log.info("%s", line(plan))


def _measured(config: TrainConfig) -> dict[str, Any]:
    splits = build_data(config)
    val_set, device = splits.get("val", splits["train"]), build_device(config.device)
    schedule, images = config.schedule, max(IMAGES, config.eval_batch_size)
    log.info("measuring at most %d steps, and the detection in %d images", STEPS, images)
    trainer, seconds = step_seconds(
        config, splits["train"], device=device, steps=STEPS, warm_up=WARM_UP
    )
    timing = time_images(
        trainer.model,
        val_set,
        device=device,
        precision=build_precision(config.precision),
        max_images=images,
        batch_size=config.eval_batch_size,
    )
    evaluations = -(-schedule.epochs // schedule.evaluate_every)
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "steps": schedule.epochs * trainer.sampler.num_steps,
        "seconds_per_step": statistics.median(seconds),
        "evaluations": evaluations,
        "images": len(val_set),
        "seconds_per_image": (timing.load_ms + timing.forward_ms + timing.post_ms) / 1000,
    }


def seconds_of(plan: dict[str, Any]) -> float:
    """Return the estimated seconds of a whole run, training and evaluations."""
    training: float = plan["steps"] * plan["seconds_per_step"]
    return training + plan["evaluations"] * plan["images"] * plan["seconds_per_image"]


def line(plan: dict[str, Any]) -> str:
    """Describe the estimate for one run in one line."""
    return (
        f"{plan['steps']} steps of {plan['seconds_per_step']:.3f} s, {plan['evaluations']} "
        f"evaluations of {plan['images']} images of {plan['seconds_per_image']:.3f} s: "
        f"{duration(seconds_of(plan))} on {plan['device']} with {plan['threads']} threads"
    )


def plans_of(folder: Path) -> dict[Path, dict[str, Any]]:
    """Read the plan.json of every run in a sweep's folder, by run folder."""
    return {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{FILE}"))}


def is_planned(folder: Path) -> bool:
    """Return whether the runs of a sweep were planned, and none of them was trained."""
    return bool(plans_of(folder)) and not any(folder.glob("*/summary.json"))


def sum_up(folder: Path) -> None:
    """Log a table of the arms of a sweep, and the estimated time of all runs in sequence."""
    plans = plans_of(folder)
    names = arms_of(list(plans))
    arms = {names[run]: plan for run, plan in plans.items()}
    rows = [
        [
            arm,
            str(sum(name == arm for name in names.values())),
            str(plan["steps"]),
            f"{plan['seconds_per_step']:.3f}",
            duration(seconds_of(plan)),
        ]
        for arm, plan in arms.items()
    ]
    total = duration(sum(map(seconds_of, plans.values())))
    header = ["arm", "runs", "steps", "seconds a step", "a run"]
    log.info(
        "%d runs of %d arms, one after the other: about %s; nothing was trained\n\n%s",
        *(len(plans), len(arms), total, table(header, rows)),
    )
