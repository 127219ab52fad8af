"""Confidence intervals and tests for the difference of two arms, over both images and seeds.

The metric of a run depends on its seed and on the images that it is evaluated on. The mean over the
n runs of an arm therefore varies around its true value with the variance

    v = s² / n        the seeds: initial weights, order of the data
      + w² / n        the interaction of each single run with the validation images
      + b²            the interaction of the arm with the images, which all its runs share

and the difference of two arms varies with the sum of both variances. Two estimates are available:

- The paired bootstrap over images, applied to the difference of the two means, gives V, which
  estimates b² + w² / n, summed over both arms.
- The sample variance S² between the runs of an arm, on the same images, estimates s² + w².

V and S² / n together count w² twice. The bootstrap variance of a run's distance from its arm's
mean, W, estimates w² alone, so that it can be subtracted. The variance of the difference of arms 1
and 2 is

    v = max(S1² / n1 + S2² / n2 - W1 / n1 - W2 / n2, 0) + V

Its interval uses the quantile of Student's t at Satterthwaite's degrees of freedom ("An Approximate
Distribution of Estimates of Variance Components", Biometrics Bulletin 1946), as Welch's test does,
so the variances of the arms need not be equal. `simulation.py` compares this with alternatives.

Arms with the same seeds share the order of the data and much of the initial weights, so a seed may
be lucky for all arms alike. If an F test on the table of arms and seeds shows this (at 5 %), runs
of the same seed are paired: S² and W are then computed from the differences of the paired runs.

In shapes, A is the number of arms, S that of the runs (seeds) of an arm, and B that of the
resamples of the images.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Arm:
    """One metric of all runs of an arm.

    Attributes:
        seeds: the seeds of the S runs.
        values: (S,), the metric on the validation images.
        resampled: (S, B), the metric on resamples of them, which are the same for all arms.
    """

    seeds: tuple[int, ...]
    values: np.ndarray
    resampled: np.ndarray


@dataclass(frozen=True)
class VarianceParts:
    """The parts of the variance of the difference of two arms.

    Attributes:
        runs: the variance between runs on the same images, S1² / n1 + S2² / n2; None if no arm has
            two runs to estimate it from.
        runs_with_images: the part of `runs` that is due to the images, W1 / n1 + W2 / n2.
        degrees: the degrees of freedom of `runs`.
        images: the variance due to the choice of images, V.
        num_images: the number of validation images.
        is_paired: whether runs of the same seed are paired.
    """

    runs: float | None
    runs_with_images: float
    degrees: float
    images: float
    num_images: int
    is_paired: bool = False

    @property
    def seeds(self) -> float:
        """The variance due to the seeds alone."""
        return max((self.runs or 0.0) - self.runs_with_images, 0.0)


@dataclass(frozen=True)
class Difference:
    """The difference of two arms: an arm's mean minus the baseline's.

    Attributes:
        low, high: the 95 % confidence interval.
        error: the standard error.
        degrees: the degrees of freedom of the standard error.
        p: the two-sided p value of the hypothesis that there is no difference.
        covers_seeds: whether the interval covers the choice of seeds and images, or of images only.
    """

    value: float
    low: float
    high: float
    error: float
    degrees: float
    p: float
    covers_seeds: bool


@dataclass(frozen=True)
class RunVariance:
    """How much the runs of an arm vary: S², W, and the degrees of freedom of S²."""

    runs: float
    with_images: float
    degrees: int


def run_variance(values: np.ndarray, resampled: np.ndarray) -> RunVariance:
    """Measure how much at least two runs vary, from their values (S,) and resamples (S, B)."""
    degrees = len(values) - 1
    own = resampled - resampled.mean(axis=0)
    with_images = float(np.nanvar(own, axis=1).sum()) / degrees
    return RunVariance(float(np.var(values, ddof=1)), with_images, degrees)


def pooled_run_variance(arms: Iterable[Arm]) -> RunVariance | None:
    """Pool the variances of all arms that have at least two runs, weighted by degrees of freedom.

    Arms with a single run are assumed to vary by this much. Returns None if no arm has two runs.
    """
    variances = [run_variance(arm.values, arm.resampled) for arm in arms if len(arm.values) > 1]
    degrees = sum(one.degrees for one in variances)
    if not degrees:
        return None
    return RunVariance(
        sum(one.runs * one.degrees for one in variances) / degrees,
        sum(one.with_images * one.degrees for one in variances) / degrees,
        degrees,
    )


def variance_parts(
    arm: Arm, baseline: Arm, num_images: int, *, others: RunVariance | None, is_paired: bool
) -> VarianceParts:
    """Estimate the variances of the difference of an arm from the baseline.

    Args:
        num_images: the number of validation images.
        others: what `pooled_run_variance` returns for all arms. It stands in for an arm with a
            single run.
        is_paired: what `are_paired` returns for all arms.
    """
    images = float(np.nanvar(arm.resampled.mean(axis=0) - baseline.resampled.mean(axis=0)))
    if is_paired:
        apart = arm.values - baseline.values, arm.resampled - baseline.resampled
        of_arms = [(run_variance(*apart), len(arm.values))]
    else:
        of_arms = []
        for one in (arm, baseline):
            number = len(one.values)
            own = run_variance(one.values, one.resampled) if number > 1 else others
            if own is None:
                return VarianceParts(None, 0.0, 0.0, images, num_images)
            of_arms.append((own, number))
    runs = sum(own.runs / number for own, number in of_arms)
    uncertainty = sum((own.runs / number) ** 2 / own.degrees for own, number in of_arms)
    return VarianceParts(
        runs,
        sum(own.with_images / number for own, number in of_arms),
        runs**2 / uncertainty if uncertainty else float(min(own.degrees for own, _ in of_arms)),
        images,
        num_images,
        is_paired,
    )


def difference(arm: Arm, baseline: Arm, parts: VarianceParts) -> Difference:
    """Return the arm's mean minus the baseline's, with its confidence interval and p value."""
    return difference_with_interval(float(arm.values.mean() - baseline.values.mean()), parts)


def difference_with_interval(value: float, parts: VarianceParts) -> Difference:
    """Return a difference of this value with its confidence interval and p value."""
    error, degrees = standard_error(parts)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    p = 2 * float(stats.t.sf(abs(value) / error, degrees)) if error else float(value == 0)
    covers_seeds = parts.runs is not None
    low, high = value - quantile * error, value + quantile * error
    return Difference(value, low, high, error, degrees, p, covers_seeds)


def standard_error(parts: VarianceParts) -> tuple[float, float]:
    """Return the standard error of a difference and its degrees of freedom."""
    variance = parts.seeds + parts.images
    most = float(max(parts.num_images - 1, 1))
    uncertainty = parts.images**2 / most
    if parts.runs:
        uncertainty += parts.runs**2 / parts.degrees
    degrees = variance**2 / uncertainty if uncertainty else most
    # The subtraction of W must not leave fewer degrees of freedom than the runs have.
    return float(np.sqrt(variance)), max(degrees, parts.degrees or degrees)


def are_paired(arms: Iterable[Arm]) -> bool:
    """Return whether all arms have the same seeds, and `seeds_matter` finds that these matter."""
    arms = list(arms)
    if len({arm.seeds for arm in arms}) > 1:
        return False
    return seeds_matter(np.stack([arm.values - arm.values.mean() for arm in arms]))


def seeds_matter(values: np.ndarray) -> bool:
    """Test whether seeds shift the metric of all arms alike: an F test at 5 %.

    Args:
        values: (A, S), with the mean of each arm subtracted.
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
    """Adjust p values for the comparison of several arms with one baseline.

    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of
    Statistics 1979.
    """
    adjusted = [1.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
