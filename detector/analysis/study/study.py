"""Computes the content of study.json from the runs of a study.

A number of an arm is the mean over the arm's seeds, and is compared with the same number of the
baseline as `statistics.py` explains. Numbers are in 0..1, and so are the sizes of differences.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from detector.analysis.study import statistics
from detector.analysis.study.numbers import CLASS, ERROR, numbers
from detector.analysis.study.runs import Run, Runs, StudyError, shown
from detector.analysis.study.statistics import Arm, Difference, Noise
from detector.evaluation.resampling import draw_images

FORMAT = 1
BETTER, WORSE, NOTHING_SHOWN = "better", "worse", "no difference shown"
COSTS = (  # keys of summary.json
    "num_parameters",
    "gflops",
    "seconds_per_step",
    "seconds_per_image",
    "peak_memory",
    "train_seconds",
)
ONE_POINT = 0.01


def study(
    runs: Runs,
    *,
    baseline: str | None,
    num_resamples: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare all arms with the baseline.

    Args:
        baseline: the name of an arm; None for the arm `none` or, if there is none, the first arm.
        num_resamples: how many times the validation images are resampled.
        seed: the random seed of the resamples.
        progress: is called with the name of each run before its numbers are computed.

    Returns:
        The content of study.json, in dictionaries and lists that json.dumps accepts.

    Raises:
        StudyError: no arm has the name of the baseline.
    """
    baseline = _baseline(runs, baseline)
    num_images = len(runs.ground_truth.image_ids)
    counts = draw_images(num_images, num_resamples, np.random.default_rng(seed))
    measured: dict[str, list[dict[str, np.ndarray]]] = {}
    for name, of_arm in runs.arms.items():
        for run in of_arm:
            progress(f"{name}, seed {run.seed}")
            found = numbers(runs.metric, runs.ground_truth, run.detections, counts)
            measured.setdefault(name, []).append(found)
    primary = next(iter(measured[baseline][0]))
    quantities = {
        name: {
            arm: _arm(runs.arms[arm], [found[name] for found in of_arm])
            for arm, of_arm in measured.items()
        }
        for name in measured[baseline][0]
    }
    quantities = {
        name: arms
        for name, arms in quantities.items()
        if all(np.isfinite(arm.values).all() for arm in arms.values())
    }
    comparisons, noises = _comparisons(quantities, num_images, baseline, primary)
    content: dict[str, Any] = {
        "format": FORMAT,
        "metric": runs.metric,
        "primary": primary,
        "num_images": num_images,
        "num_resamples": num_resamples,
        "baseline": baseline,
        "arms": [
            _described(name, of_arm, {q: arms[name] for q, arms in quantities.items()})
            for name, of_arm in runs.arms.items()
        ],
        "comparisons": comparisons,
        "noise": _noise_described(quantities[primary], noises),
        "could_have_seen": _could_have_seen(quantities[primary], noises),
        "left_out": runs.left_out,
    }
    content["notes"] = notes(content)
    return {"says": headline(content)} | content


def _baseline(runs: Runs, baseline: str | None) -> str:
    if baseline is None:
        return "none" if "none" in runs.arms else next(iter(runs.arms))
    if baseline not in runs.arms:
        raise StudyError(f"baseline={baseline} is none of the arms {', '.join(runs.arms)}")
    return baseline


def _arm(runs: list[Run], found: list[np.ndarray]) -> Arm:
    together = np.stack(found)
    return Arm(tuple(run.seed for run in runs), together[:, 0], together[:, 1:])


def _comparisons(
    quantities: dict[str, dict[str, Arm]], num_images: int, baseline: str, primary: str
) -> tuple[list[dict[str, Any]], list[Noise]]:
    """Compare each arm with the baseline in all numbers, and judge it by the primary one.

    Returns:
        The comparison of each arm, and the noise of the difference in its primary number.
    """
    others = [name for name in quantities[primary] if name != baseline]
    differences: dict[str, dict[str, Difference]] = {arm: {} for arm in others}
    noises = []
    for name, arms in quantities.items():
        is_paired, spread = statistics.are_paired(arms.values()), statistics.pooled(arms.values())
        for arm in others:
            pair = arms[arm], arms[baseline]
            noise = statistics.noise(*pair, num_images, others=spread, is_paired=is_paired)
            differences[arm][name] = statistics.difference(*pair, noise)
            if name == primary:
                noises.append(noise)
    adjusted = statistics.holm([differences[arm][primary].p for arm in others])
    comparisons = [
        {
            "arm": arm,
            "verdict": verdict(differences[arm][primary], p),
            "p_holm": p,
            "differences": {
                name: _difference_described(one) for name, one in differences[arm].items()
            },
        }
        for arm, p in zip(others, adjusted, strict=True)
    ]
    return comparisons, noises


def verdict(difference: Difference, p_holm: float) -> str:
    """Judge a difference by its p value after Holm's correction.

    Single runs show no difference, since runs with another seed might show the opposite.
    """
    if not difference.covers_seeds or p_holm >= 1 - statistics.LEVEL:
        return NOTHING_SHOWN
    return BETTER if difference.value > 0 else WORSE


def _difference_described(one: Difference) -> dict[str, Any]:
    return {
        "value": one.value,
        "low": one.low,
        "high": one.high,
        "standard_error": one.error,
        "degrees_of_freedom": one.degrees,
        "p": one.p,
        "covers": "images and seeds" if one.covers_seeds else "images",
    }


def _described(name: str, runs: list[Run], quantities: dict[str, Arm]) -> dict[str, Any]:
    costs = {
        cost: float(np.mean([run.summary[cost] for run in runs]))
        for cost in COSTS
        if all(cost in run.summary for run in runs)
    }
    return {
        "arm": name,
        "runs": {str(run.seed): shown(run.folder) for run in runs},
        "numbers": {
            quantity: {
                "mean": float(arm.values.mean()),
                "seeds": {
                    str(run.seed): float(value) for run, value in zip(runs, arm.values, strict=True)
                },
            }
            for quantity, arm in quantities.items()
        },
        "costs": costs,
        "curves": {str(run.seed): run.curve for run in runs},
        "offsets": {str(run.seed): run.offsets for run in runs if run.offsets},
    }


def _noise_described(arms: dict[str, Arm], noises: list[Noise]) -> dict[str, Any] | None:
    """Describe how much runs vary, as standard deviations; None if each arm has a single run."""
    spread = statistics.pooled(arms.values())
    if spread is None:
        return None
    seeds = max(spread.runs - spread.with_images, 0.0)
    return {
        "between_seeds_on_these_images": math.sqrt(spread.runs),
        "of_it_due_to_the_images": math.sqrt(spread.with_images),
        "of_it_due_to_the_seeds": math.sqrt(seeds),
        "degrees_of_freedom": spread.degrees,
        "seeds_are_paired": any(noise.is_paired for noise in noises),
    }


def _could_have_seen(arms: dict[str, Arm], noises: list[Noise]) -> dict[str, Any] | None:
    """Describe the smallest true difference that would have been found four times of five.

    It is that of the arm whose difference is known least precisely. None if there is no other arm
    than the baseline, or if each arm has a single run, which cannot show a difference.
    """
    if not noises or any(noise.runs is None for noise in noises):
        return None
    least_known = max(noises, key=lambda noise: statistics.detectable(noise, len(noises)))
    num_seeds = min(len(arm.values) for arm in arms.values())
    return {
        "difference": statistics.detectable(least_known, len(noises)),
        "num_seeds": num_seeds,
        "seeds_to_halve_it": statistics.seeds_to_halve(least_known, num_seeds, len(noises)),
        "from_images_alone": math.sqrt(least_known.images),
    }


def headline(content: dict[str, Any]) -> str:
    """Summarise the study in one line, beginning with what it cannot show."""
    seen, primary = content["could_have_seen"], content["primary"]
    parts = []
    if not content["comparisons"]:
        return f"One arm, {content['baseline']}: there is nothing to compare it with."
    if found_nothing(content):
        return (
            f"No arm detects anything yet: none reaches one point of {primary}. Train longer; "
            "networks that have learned nothing cannot show a difference between arms."
        )
    if seen is None:
        parts.append("One seed an arm: this cannot tell a better arm from a lucky seed.")
    elif seen["difference"] > ONE_POINT:
        parts.append(
            f"This study cannot see one point of {primary}: it would find "
            f"{100 * seen['difference']:.1f} four times of five."
        )
    if seen is not None and seen["num_seeds"] == 2:
        parts.append("Two seeds an arm make its intervals rough.")
    for one in content["comparisons"]:
        difference = one["differences"][primary]
        interval = f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
        parts.append(
            f"{one['arm']} against {content['baseline']}: {one['verdict']}, "
            f"{100 * difference['value']:+.1f} {primary} {interval}."
        )
    return " ".join(parts)


def found_nothing(content: dict[str, Any]) -> bool:
    """Return whether no arm reaches one point, in which case differences mean nothing."""
    primary = content["primary"]
    return all(arm["numbers"][primary]["mean"] < ONE_POINT for arm in content["arms"])


def notes(content: dict[str, Any]) -> list[str]:
    """List what a reader must know to interpret the numbers."""
    arms, said = content["arms"], []
    seeds = {one["arm"]: list(one["runs"]) for one in arms}
    counts = {len(of_arm) for of_arm in seeds.values()}
    if len({tuple(of_arm) for of_arm in seeds.values()}) > 1:
        listed = "; ".join(f"{arm}: {', '.join(of_arm)}" for arm, of_arm in seeds.items())
        said.append(f"The arms have different seeds ({listed}).")
    if counts == {1}:
        said.append(
            "One seed an arm: intervals cover the choice of images only. Another seed may change "
            "each arm by more than that, so the study never says that an arm is better or worse."
        )
    elif min(counts) == 1:
        said.append("An arm with one seed is assumed to vary between seeds as much as the others.")
    if min(counts) == 2:
        said.append(
            "Two seeds an arm: the variance between seeds is estimated from very few runs, so the "
            "intervals are wide, and too narrow if one arm varies much more than another."
        )
    for run, why in content["left_out"].items():
        said.append(f"Left out: {run}: {why}.")
    return said


def classes_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """Select the numbers of single classes: class name -> its entry."""
    return {k.removeprefix(CLASS): v for k, v in numbers.items() if k.startswith(CLASS)}


def errors_of(numbers: dict[str, Any]) -> dict[str, Any]:
    """Select the numbers of kinds of errors: kind -> its entry."""
    return {k.removeprefix(ERROR): v for k, v in numbers.items() if k.startswith(ERROR)}
