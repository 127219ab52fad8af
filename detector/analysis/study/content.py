"""Computes the content of study.json from the runs of a study.

A number of an arm is the mean over the arm's seeds, and is compared with the same number of the
baseline as `statistics.py` explains. Numbers are in 0..1, and so are the sizes of differences.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from detector.analysis.study import statistics
from detector.analysis.study.power import seeds_to_halve, smallest_detectable_difference
from detector.analysis.study.run_metrics import run_metrics
from detector.analysis.study.runs import Run, Runs, StudyError, run_name
from detector.analysis.study.sentences import headline, notes
from detector.analysis.study.statistics import Arm, Difference, VarianceParts
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


def study_content(
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
            found = run_metrics(runs.metric, runs.ground_truth, run.detections, counts)
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
    comparisons, variances = _comparisons(quantities, num_images, baseline, primary)
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
        "noise": _noise(quantities[primary], variances),
        "could_have_seen": _power(quantities[primary], variances),
        "left_out": runs.left_out,
    }
    content["notes"] = notes(content)
    return {"says": headline(content)} | content


def _baseline(runs: Runs, baseline: str | None) -> str:
    if baseline is None:
        return "none" if "none" in runs.arms else next(iter(runs.arms))
    if baseline not in runs.arms:
        raise StudyError(f"baseline={baseline} must be one of the arms {', '.join(runs.arms)}")
    return baseline


def _arm(runs: list[Run], found: list[np.ndarray]) -> Arm:
    together = np.stack(found)
    return Arm(tuple(run.seed for run in runs), together[:, 0], together[:, 1:])


def _comparisons(
    quantities: dict[str, dict[str, Arm]], num_images: int, baseline: str, primary: str
) -> tuple[list[dict[str, Any]], list[VarianceParts]]:
    """Compare each arm with the baseline in all numbers, and judge it by the primary one.

    Returns:
        The comparison of each arm, and the parts of the variance of its primary difference.
    """
    others = [name for name in quantities[primary] if name != baseline]
    differences: dict[str, dict[str, Difference]] = {arm: {} for arm in others}
    variances = []
    for name, arms in quantities.items():
        is_paired = statistics.are_paired(arms.values())
        pooled = statistics.pooled_run_variance(arms.values())
        for arm in others:
            pair = arms[arm], arms[baseline]
            parts = statistics.variance_parts(*pair, num_images, others=pooled, is_paired=is_paired)
            differences[arm][name] = statistics.difference(*pair, parts)
            if name == primary:
                variances.append(parts)
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
    return comparisons, variances


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
        "runs": {str(run.seed): run_name(run.folder) for run in runs},
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


def _noise(arms: dict[str, Arm], variances: list[VarianceParts]) -> dict[str, Any] | None:
    """Describe how much runs vary, as standard deviations; None if each arm has a single run."""
    pooled = statistics.pooled_run_variance(arms.values())
    if pooled is None:
        return None
    seeds = max(pooled.runs - pooled.with_images, 0.0)
    return {
        "between_seeds_on_these_images": math.sqrt(pooled.runs),
        "of_it_due_to_the_images": math.sqrt(pooled.with_images),
        "of_it_due_to_the_seeds": math.sqrt(seeds),
        "degrees_of_freedom": pooled.degrees,
        "seeds_are_paired": any(parts.is_paired for parts in variances),
    }


def _power(arms: dict[str, Arm], variances: list[VarianceParts]) -> dict[str, Any] | None:
    """Describe the smallest true difference that would have been found with a probability of 80 %.

    It is that of the arm whose difference is known least precisely. None if there is no other arm
    than the baseline, or if each arm has a single run, which cannot show a difference.
    """
    if not variances or any(parts.runs is None for parts in variances):
        return None
    number = len(variances)
    least_known = max(variances, key=lambda parts: smallest_detectable_difference(parts, number))
    num_seeds = min(len(arm.values) for arm in arms.values())
    return {
        "difference": smallest_detectable_difference(least_known, number),
        "num_seeds": num_seeds,
        "seeds_to_halve_it": seeds_to_halve(least_known, num_seeds, number),
        "from_images_alone": math.sqrt(least_known.images),
    }
