"""Computes the interval of a study for simulated runs, and the intervals that it competes with.

The docstring of `simulation.py` explains the kinds of interval.

Since a metric is a mean over images here, the variance of the bootstrap over images is known
without resampling.

A: arms, S: seeds of an arm, I: images, B: resamples.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from detector.analysis.study import statistics

KINDS = ("images", "seeds", "nested", "sum", "pooled", "ours")
RESAMPLES = 200  # of `nested`


def intervals(contributions: np.ndarray, rng: np.random.Generator, nested: bool) -> dict[str, Any]:
    """Compute the intervals of the second arm's difference from the first.

    Args:
        contributions: (A, S, I).
        nested: compute the interval `nested` as well.

    Returns:
        Kind of interval -> (low, high).
    """
    num_arms, num_seeds, num_images = contributions.shape
    values, means = contributions.mean(axis=2), contributions.mean(axis=1)
    value = values[1].mean() - values[0].mean()
    images = float(np.var(means[1] - means[0])) / num_images
    of_arms = values[:2].var(axis=1, ddof=1) / num_seeds
    found = {
        "images": _about(value, images, num_images - 1),
        "seeds": _about(value, of_arms.sum(), _satterthwaite(of_arms, [num_seeds - 1] * 2)),
        "sum": _about(
            value,
            of_arms.sum() + images,
            _satterthwaite([*of_arms, images], [num_seeds - 1] * 2 + [num_images - 1]),
        ),
    }
    arms = arms_of(contributions)
    parts = variance_parts_of(arms)[0]
    ours = statistics.difference_with_interval(value, parts)
    found["ours"] = (ours.low, ours.high)
    pooled = statistics.pooled_run_variance(arms)
    assert pooled is not None
    of_all = statistics.difference_with_interval(
        value,
        replace(
            parts,
            runs=2 * pooled.runs / num_seeds,
            runs_with_images=2 * pooled.with_images / num_seeds,
            degrees=pooled.degrees,
        ),
    )
    found["pooled"] = (of_all.low, of_all.high)
    if nested:
        found["nested"] = _nested(contributions[:2], rng)
    return found


def arms_of(contributions: np.ndarray) -> list[statistics.Arm]:
    """Return the arms as `statistics.py` takes them, without resampling any images.

    Contributions divided by the square root of I stand in for the resampled values: their variance
    is that of a bootstrapped mean over I images.
    """
    return [
        statistics.Arm(
            tuple(range(len(of_arm))), of_arm.mean(axis=1), of_arm / np.sqrt(of_arm.shape[1])
        )
        for of_arm in contributions
    ]


def variance_parts_of(arms: list[statistics.Arm]) -> list[statistics.VarianceParts]:
    """Return the parts of the variance of each other arm's difference from the first."""
    num_images, is_paired = arms[0].resampled.shape[1], statistics.are_paired(arms)
    return [
        statistics.variance_parts(arm, arms[0], num_images, others=None, is_paired=is_paired)
        for arm in arms[1:]
    ]


def _about(value: float, variance: float, degrees: float) -> tuple[float, float]:
    half = float(stats.t.ppf((1 + statistics.LEVEL) / 2, degrees) * np.sqrt(variance))
    return value - half, value + half


def _satterthwaite(variances: Any, degrees: list[int]) -> float:
    variances = np.asarray(variances)
    return float(variances.sum() ** 2 / np.sum(variances**2 / np.array(degrees)))


def _nested(contributions: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    _, num_seeds, num_images = contributions.shape
    counts = rng.multinomial(num_images, [1 / num_images] * num_images, size=RESAMPLES)
    values = contributions @ counts.T / num_images  # (2, S, B)
    drawn = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=(2, RESAMPLES))
    means = np.einsum("asb,abs->ab", values, drawn / num_seeds)
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5])
    return float(low), float(high)
