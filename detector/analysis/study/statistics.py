"""How sure a difference between two arms is: of images, of seeds, and of both.

A run's number depends on its seed and on the images that it is evaluated on. With n runs an arm,
what is measured varies about what is true by

    v = s² / n                    the seeds: initial weights, order of the data
      + w² / n                    how each run alone goes with the images that happen to be there
      + b²                        how the arm goes with them, which all its runs share

for each of two arms. The paired bootstrap over images of the difference of the arms' means finds
b² + w² / n of each; the variance S² between the runs of an arm, on the same images, is s² + w².
Their sum counts w² twice, and w² is what the bootstrap finds of a run's distance from its arm's
mean: W. So

    v = (S1² / n1 + S2² / n2 - W1 / n1 - W2 / n2)+ + B

with t's quantile at the degrees of freedom of Satterthwaite ("An Approximate Distribution of
Estimates of Variance Components", Biometrics Bulletin 1946), as Welch's test has it: arms may vary
unequally. `simulation.py` compares this with what else one could do.

Arms of the same seeds share the order of the data and much of the initial weights, so that a seed
may be lucky for all of them alike. Where an F test of the seeds (5 %, of the table of arms and
seeds) says so, S² and W are those of the seeds' differences.

S: runs (seeds) of an arm;  B: resamples of the images.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8  # four times of five


@dataclass(frozen=True)
class Arm:
    """One number of the runs of an arm.

    Attributes:
        seeds: (S,) of the runs.
        values: (S,) on the images that there are.
        resampled: (S, B) on the resampled ones, which are the same for all runs and arms.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class Noise:
    """What varies of the difference of two arms: variances.

    Attributes:
        runs: by the runs, on the images that there are, S²; None where no arm has two runs.
        runs_with_images: the part of it that other images would have changed, W.
        degrees: of freedom, of `runs`.
        images: by the images, B.
        num_images: I.
        is_paired: the runs of a seed were compared with each other.
    """

    runs: float | None
    runs_with_images: float
    degrees: float
    images: float
    num_images: int
    is_paired: bool = False

    @property
    def seeds(self) -> float:
        """The variance that is the seeds' alone."""
        return max((self.runs or 0.0) - self.runs_with_images, 0.0)


@dataclass(frozen=True)
class Difference:
    """An arm's mean less the baseline's.

    Attributes:
        low, high: the interval of 95 %.
        error: the standard error.
        degrees: of freedom, of the error.
        p: of no difference, two-sided.
        covers_seeds: else the interval covers the choice of images alone.
    """

    value: float
    low: float
    high: float
    error: float
    degrees: float
    p: float
    covers_seeds: bool


@dataclass(frozen=True)
class Spread:
    """Of the runs of an arm: S², W and the degrees of freedom of S²."""

    runs: float
    with_images: float
    degrees: int


def spread(values: np.ndarray, resampled: np.ndarray) -> Spread:
    """Of runs (S,), at least two, and their resamples (S, B)."""
    degrees = len(values) - 1
    own = resampled - resampled.mean(axis=0)
    with_images = float(np.nanvar(own, axis=1).sum()) / degrees
    return Spread(float(np.var(values, ddof=1)), with_images, degrees)


def pooled(arms: Iterable[Arm]) -> Spread | None:
    """What an arm of one run is taken to have: that of all arms of more."""
    spreads = [spread(arm.values, arm.resampled) for arm in arms if len(arm.values) > 1]
    degrees = sum(one.degrees for one in spreads)
    if not degrees:
        return None
    return Spread(
        sum(one.runs * one.degrees for one in spreads) / degrees,
        sum(one.with_images * one.degrees for one in spreads) / degrees,
        degrees,
    )


def noise(
    arm: Arm, baseline: Arm, num_images: int, *, others: Spread | None, is_paired: bool
) -> Noise:
    """What varies of the difference of two arms.

    Args:
        others: `pooled` over all arms.
        is_paired: what `seeds_matter` says of all arms.
    """
    images = float(np.nanvar(arm.resampled.mean(axis=0) - baseline.resampled.mean(axis=0)))
    if is_paired:
        apart = arm.values - baseline.values, arm.resampled - baseline.resampled
        parts = [(spread(*apart), len(arm.values))]
    else:
        parts = []
        for one in (arm, baseline):
            number = len(one.values)
            own = spread(one.values, one.resampled) if number > 1 else others
            if own is None:
                return Noise(None, 0.0, 0.0, images, num_images)
            parts.append((own, number))
    runs = sum(own.runs / number for own, number in parts)
    uncertainty = sum((own.runs / number) ** 2 / own.degrees for own, number in parts)
    return Noise(
        runs,
        sum(own.with_images / number for own, number in parts),
        runs**2 / uncertainty if uncertainty else float(min(own.degrees for own, _ in parts)),
        images,
        num_images,
        is_paired,
    )


def difference(arm: Arm, baseline: Arm, noise: Noise) -> Difference:
    """The arm's mean less the baseline's, and how sure that is."""
    return from_noise(float(arm.values.mean() - baseline.values.mean()), noise)


def from_noise(value: float, noise: Noise) -> Difference:
    """The interval about a difference."""
    error, degrees = error_of(noise)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    p = 2 * float(stats.t.sf(abs(value) / error, degrees)) if error else float(value == 0)
    covers_seeds = noise.runs is not None
    low, high = value - quantile * error, value + quantile * error
    return Difference(value, low, high, error, degrees, p, covers_seeds)


def error_of(noise: Noise) -> tuple[float, float]:
    """Standard error and its degrees of freedom."""
    variance = noise.seeds + noise.images
    most = float(max(noise.num_images - 1, 1))
    uncertainty = noise.images**2 / most
    if noise.runs:
        uncertainty += noise.runs**2 / noise.degrees
    degrees = variance**2 / uncertainty if uncertainty else most
    return float(np.sqrt(variance)), max(degrees, noise.degrees or degrees)


def are_paired(arms: Iterable[Arm]) -> bool:
    """Whether all arms have the same seeds, and these matter to all alike."""
    arms = list(arms)
    if len({arm.seeds for arm in arms}) > 1:
        return False
    return seeds_matter(np.stack([arm.values - arm.values.mean() for arm in arms]))


def seeds_matter(values: np.ndarray) -> bool:
    """Whether seeds matter to all arms alike: an F test at 5 % of values (A, S), whose means over
    the seeds are 0.
    """
    num_arms, num_seeds = values.shape
    if num_arms < 2 or num_seeds < 3:
        return False
    of_seeds = num_arms * float(np.square(values.mean(axis=0)).sum())
    rest = float(np.square(values - values.mean(axis=0)).sum())
    degrees = num_seeds - 1, (num_arms - 1) * (num_seeds - 1)
    ratio = of_seeds / degrees[0] / (rest / degrees[1]) if rest else np.inf
    return bool(of_seeds and stats.f.sf(ratio, *degrees) < 1 - LEVEL)


def holm(ps: list[float]) -> list[float]:
    """Adjusted for several arms against one baseline: Holm, "A Simple Sequentially Rejective
    Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    adjusted = [1.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted


def detectable(noise: Noise, num_arms: int) -> float:
    """The smallest difference of an arm from the baseline that a study would find, with Holm's
    correction at its strictest, four times of five.

    Args:
        num_arms: that are compared with the baseline.
    """
    error, degrees = error_of(noise)
    alpha = (1 - LEVEL) / num_arms
    return float(error * (stats.t.ppf(1 - alpha / 2, degrees) + stats.t.ppf(POWER, degrees)))


def with_seeds(noise: Noise, times: float, num_seeds: int) -> Noise:
    """What it would be with so many times the seeds an arm, of which there are `num_seeds`."""
    if noise.runs is None:
        return noise
    shared = max(noise.images - noise.runs_with_images, 0.0)
    return replace(
        noise,
        runs=noise.runs / times,
        runs_with_images=noise.runs_with_images / times,
        degrees=noise.degrees * (times * num_seeds - 1) / (num_seeds - 1),
        images=shared + noise.runs_with_images / times,
    )


def seeds_to_halve(noise: Noise, num_seeds: int, num_arms: int, most: int = 1000) -> int | None:
    """Seeds an arm at which `detectable` is half of what it is; None where the images, which stay
    the same, do not let it.
    """
    if noise.runs is None or num_seeds < 2:
        return None
    target = detectable(noise, num_arms) / 2

    def at(seeds: int) -> float:
        return detectable(with_seeds(noise, seeds / num_seeds, num_seeds), num_arms)

    if at(most) > target:
        return None
    low, high = num_seeds, most
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) <= target else (middle, high)
    return high
