"""How sure a difference between two arms is: of images, of seeds, and of both.

A run's number depends on its seed and on the images that it is evaluated on. With n runs an arm,
what is measured varies about what is true by

    v = s² / n                    the seeds: initial weights, order of the data
      + w² / n                    how each run alone goes with the images that happen to be there
      + b²                        how the arm goes with them, which all its runs share

for each of two arms. The paired bootstrap over images of the difference of the arms' means finds
b² + w² / n; the variance between the runs of an arm, on the same images, is s² + w². Their sum
counts w² twice, and w² is what the bootstrap finds of a run's distance from its arm's mean. So

    v = (S² - W)+ (1 / n1 + 1 / n2) + B

with S² and W pooled over all arms, which assumes that seeds matter alike in each, and t's quantile
at the degrees of freedom of Satterthwaite ("An Approximate Distribution of Estimates of Variance
Components", Biometrics Bulletin 1946). `simulation.py` compares this with what else one could do.

Arms of the same seeds share the order of the data and much of the initial weights, so that a seed
may be lucky for all of them alike. Where an F test of the seeds (5 %, of the table of arms and
seeds) says so, S² and W are what is left once each seed's mean over the arms is taken away.

S: runs (seeds) of an arm;  B: resamples of the images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
    """What varies, pooled over arms.

    Attributes:
        between_runs: S², the variance between the runs of an arm on the same images; None where no
            arm has two runs.
        runs_with_images: W, the part of it that other images would have changed.
        degrees: of freedom, of S².
        num_images: I.
        is_paired: seeds matter to all arms alike, and that part is taken away.
    """

    between_runs: float | None
    runs_with_images: float
    degrees: int
    num_images: int
    is_paired: bool = False

    @property
    def seeds(self) -> float:
        """The variance that is the seeds' alone."""
        return max((self.between_runs or 0.0) - self.runs_with_images, 0.0)


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


def noise(arms: Mapping[str, Arm], num_images: int) -> Noise:
    """What varies within the arms."""
    values = [arm.values - arm.values.mean() for arm in arms.values()]
    resampled = [arm.resampled - arm.resampled.mean(axis=0) for arm in arms.values()]
    degrees = sum(len(of_arm) - 1 for of_arm in values)
    if degrees == 0:
        return Noise(None, 0.0, 0, num_images)
    is_paired = len({arm.seeds for arm in arms.values()}) == 1 and seeds_matter(np.stack(values))
    if is_paired:
        values = [of_arm - np.mean(values, axis=0) for of_arm in values]
        resampled = [of_arm - np.mean(resampled, axis=0) for of_arm in resampled]
        degrees = (len(values) - 1) * (len(values[0]) - 1)
    squares = sum(float(np.square(of_arm).sum()) for of_arm in values)
    with_images = sum(float(np.nanvar(of_arm, axis=1).sum()) for of_arm in resampled)
    return Noise(squares / degrees, with_images / degrees, degrees, num_images, is_paired)


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


def difference(arm: Arm, baseline: Arm, noise: Noise) -> Difference:
    """The arm's mean less the baseline's, and how sure that is."""
    both = arm.resampled.mean(axis=0) - baseline.resampled.mean(axis=0)
    value = float(arm.values.mean() - baseline.values.mean())
    share = 1 / len(arm.values) + 1 / len(baseline.values)
    return from_variances(value, float(np.nanvar(both)), share, noise)


def from_variances(value: float, images: float, share: float, noise: Noise) -> Difference:
    """The interval.

    Args:
        images: B, the variance of the difference over resamples of the images.
        share: 1 / n1 + 1 / n2.
    """
    error, degrees = error_of(images, share, noise)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    p = 2 * float(stats.t.sf(abs(value) / error, degrees)) if error else float(value == 0)
    covers_seeds = noise.between_runs is not None
    low, high = value - quantile * error, value + quantile * error
    return Difference(value, low, high, error, degrees, p, covers_seeds)


def error_of(images: float, share: float, noise: Noise) -> tuple[float, float]:
    """Standard error and its degrees of freedom."""
    variance = noise.seeds * share + images
    of_images = images**2 / max(noise.num_images - 1, 1)
    of_seeds = 0.0
    if noise.between_runs:
        of_seeds = (noise.between_runs * share) ** 2 / noise.degrees
    uncertainty = of_seeds + of_images
    least = float(noise.degrees or max(noise.num_images - 1, 1))
    degrees = max(variance**2 / uncertainty, least) if uncertainty else least
    return float(np.sqrt(variance)), float(degrees)


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


def detectable(images: float, num_seeds: float, noise: Noise, num_arms: int) -> float:
    """The smallest difference between two arms of so many seeds that the study would find, with
    Holm's correction at its strictest, four times of five.

    Args:
        images: B, at the study's own number of seeds.
        num_arms: that are compared with the baseline.
    """
    error, degrees = error_of(images, 2 / num_seeds, noise)
    alpha = (1 - LEVEL) / num_arms
    return float(error * (stats.t.ppf(1 - alpha / 2, degrees) + stats.t.ppf(POWER, degrees)))


def seeds_to_halve(
    images: float, num_seeds: int, noise: Noise, num_arms: int, most: int = 1000
) -> int | None:
    """Seeds an arm at which `detectable` is half of what it is; None where the images, which stay
    the same, do not let it.
    """
    target = detectable(images, num_seeds, noise, num_arms) / 2
    shared = max(images - 2 * noise.runs_with_images / num_seeds, 0.0)
    arms = 1 + num_arms

    def at(seeds: int) -> float:
        more = Noise(
            noise.between_runs, noise.runs_with_images, arms * (seeds - 1), noise.num_images
        )
        return detectable(shared + 2 * noise.runs_with_images / seeds, seeds, more, num_arms)

    if noise.between_runs is None or at(most) > target:
        return None
    low, high = num_seeds, most
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) <= target else (middle, high)
    return high
