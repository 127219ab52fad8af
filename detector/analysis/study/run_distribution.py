"""Draws the runs of simulated studies, whose true differences are known to be zero.

The docstring of `simulation.py` says what the metric of a run consists of.

A: arms, S: seeds of an arm, I: images.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_IMAGES = 200


@dataclass(frozen=True)
class RunDistribution:
    """The distribution that runs are drawn from. Standard deviations are in points of the metric.

    Attributes:
        seeds: the standard deviation of the effect of the seed.
        arms: the standard deviation of an arm's mean interaction with the images.
        runs: the standard deviation of a run's mean interaction with the images.
        shared: the share of the variance of the seeds that all arms have in common.
        first: the factor by which the seeds of the first arm vary more than those of the others.
        skewed: whether the interactions with images have an exponential distribution.
    """

    name: str
    seeds: float
    arms: float
    runs: float
    shared: float = 0.0
    first: float = 1.0
    skewed: bool = False


def variations(seeds: float, arms: float, runs: float) -> list[RunDistribution]:
    """Return the distribution that was measured, and variations of it."""
    return [
        RunDistribution("as measured", seeds, arms, runs),
        RunDistribution("seeds vary twice as much", 2 * seeds, arms, runs),
        RunDistribution("seeds do not vary", 0.0, arms, runs),
        RunDistribution("one arm's seeds vary twice as much", seeds, arms, runs, first=2.0),
        RunDistribution("half of it is shared between arms", seeds, arms, runs, shared=0.5),
        RunDistribution("skewed images", seeds, arms, runs, skewed=True),
    ]


def deviations_of(study: dict[str, Any]) -> dict[str, float]:
    """Return the standard deviations of `RunDistribution`, in points, that a study has measured."""
    noise, power = study["noise"], study["could_have_seen"]
    runs = noise["of_it_due_to_the_images"]
    of_difference = power["from_images_alone"] ** 2 - 2 * runs**2 / power["num_seeds"]
    return {
        "seeds": 100 * noise["of_it_due_to_the_seeds"],
        "arms": 100 * float(np.sqrt(max(of_difference, 0.0) / 2)),
        "runs": 100 * runs,
    }


def draw(
    distribution: RunDistribution, num_arms: int, num_seeds: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw contributions (A, S, I) of arms whose true means are equal."""

    def images(*size: int) -> np.ndarray:
        drawn = rng.exponential(size=size) - 1 if distribution.skewed else rng.normal(size=size)
        return np.sqrt(NUM_IMAGES) * drawn

    seeds = np.sqrt(1 - distribution.shared) * rng.normal(size=(num_arms, num_seeds, 1))
    seeds += np.sqrt(distribution.shared) * rng.normal(size=(1, num_seeds, 1))
    seeds[0] *= distribution.first
    with_arms = distribution.arms * images(num_arms, 1, NUM_IMAGES)
    return (
        distribution.seeds * seeds
        + with_arms
        + distribution.runs * images(num_arms, num_seeds, NUM_IMAGES)
    )
