"""Computes the power of a study: how large a true difference it finds with 80 % probability."""

from dataclasses import replace

from scipy import stats

from detector.analysis.study.statistics import LEVEL, VarianceParts, standard_error

POWER = 0.8  # the probability with which a true difference is found


def smallest_detectable_difference(parts: VarianceParts, num_arms: int) -> float:
    """Return the smallest true difference that a study finds with a power of 80 %.

    The test has the level of the first, strictest step of Holm's correction.

    Args:
        num_arms: the number of arms that are compared with the baseline.
    """
    error, degrees = standard_error(parts)
    alpha = (1 - LEVEL) / num_arms
    return float(error * (stats.t.ppf(1 - alpha / 2, degrees) + stats.t.ppf(POWER, degrees)))


def with_more_seeds(parts: VarianceParts, times: float, num_seeds: int) -> VarianceParts:
    """Predict the parts of the variance that a study with more seeds would have.

    Args:
        times: the factor by which the number of seeds of each arm grows.
        num_seeds: the present number of seeds of each arm.
    """
    if parts.runs is None:
        return parts
    shared = max(parts.images - parts.runs_with_images, 0.0)
    return replace(
        parts,
        runs=parts.runs / times,
        runs_with_images=parts.runs_with_images / times,
        degrees=parts.degrees * (times * num_seeds - 1) / (num_seeds - 1),
        images=shared + parts.runs_with_images / times,
    )


def seeds_to_halve(
    parts: VarianceParts, num_seeds: int, num_arms: int, most: int = 1000
) -> int | None:
    """Return the number of seeds of each arm that would halve `smallest_detectable_difference`.

    Returns None if not even `most` seeds would, because the variance due to the images remains, or
    if there are fewer than two seeds to predict it from.

    Args:
        num_seeds: the present number of seeds of each arm.
        num_arms: the number of arms that are compared with the baseline.
    """
    if parts.runs is None or num_seeds < 2:
        return None
    target = smallest_detectable_difference(parts, num_arms) / 2

    def at(seeds: int) -> float:
        more = with_more_seeds(parts, seeds / num_seeds, num_seeds)
        return smallest_detectable_difference(more, num_arms)

    if at(most) > target:
        return None
    low, high = num_seeds, most
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) <= target else (middle, high)
    return high
