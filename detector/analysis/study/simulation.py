"""Simulates studies to test whether their confidence intervals have the coverage that they claim.

Runs are drawn whose true difference is known, and it is counted how many intervals contain it.

    python -m detector.analysis.study.simulation
    python -m detector.analysis.study.simulation repeats=10000
    python -m detector.analysis.study.simulation study=results/study/study.json json=simulation.json

The metric of a run is the mean over its images of the contributions

    true mean of the arm + effect of the seed + interaction of arm and image
                         + interaction of run and image

The effects are drawn from normal distributions, and those of images from a skewed distribution as
well. Their standard deviations are those of a study (study=study.json) or of the arguments seeds,
arms and runs, in points, and variations of these. The kinds of interval are:

    images      the paired bootstrap over images alone
    seeds       Welch's t interval from the values of the seeds alone
    nested      percentiles of a bootstrap over both seeds and images
    sum         the variances of `seeds` and `images` added, with Student's t at Satterthwaite's
                degrees of freedom
    pooled      as `ours`, but with one variance between seeds that all arms share
    ours        the interval of `statistics.py`

Since a metric is a mean over images here, the variance of the bootstrap over images is known
without resampling.

A: arms, S: seeds of an arm, I: images, B: resamples.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from detector import entry
from detector.analysis.study import statistics
from detector.config import typed
from detector.tables import table

NUM_IMAGES = 200
SEEDS, ARMS = (2, 3, 5, 10), (2, 3, 6)
KINDS = ("images", "seeds", "nested", "sum", "pooled", "ours")
NESTED_RESAMPLES, NESTED_SHARE = 200, 10  # `nested` is slow: it is computed in every 10th repeat


@dataclass(frozen=True)
class World:
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


@dataclass
class SimulationConfig:
    """Arguments of the command. The standard deviations are used if no study is given."""

    study: str | None = None
    seeds: float = 0.6
    arms: float = 0.7
    runs: float = 0.8
    repeats: int = 2000
    seed: int = 0
    json: str | None = None


def worlds(seeds: float, arms: float, runs: float) -> list[World]:
    """Return the distribution that was measured, and variations of it."""
    return [
        World("as measured", seeds, arms, runs),
        World("seeds vary twice as much", 2 * seeds, arms, runs),
        World("seeds do not vary", 0.0, arms, runs),
        World("one arm's seeds vary twice as much", seeds, arms, runs, first=2.0),
        World("half of it is shared between arms", seeds, arms, runs, shared=0.5),
        World("skewed images", seeds, arms, runs, skewed=True),
    ]


def draw(world: World, num_arms: int, num_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Draw contributions (A, S, I) of arms whose true means are equal."""

    def images(*size: int) -> np.ndarray:
        drawn = rng.exponential(size=size) - 1 if world.skewed else rng.normal(size=size)
        return np.sqrt(NUM_IMAGES) * drawn

    seeds = np.sqrt(1 - world.shared) * rng.normal(size=(num_arms, num_seeds, 1))
    seeds += np.sqrt(world.shared) * rng.normal(size=(1, num_seeds, 1))
    seeds[0] *= world.first
    with_arms = world.arms * images(num_arms, 1, NUM_IMAGES)
    return world.seeds * seeds + with_arms + world.runs * images(num_arms, num_seeds, NUM_IMAGES)


def bounds(contributions: np.ndarray, rng: np.random.Generator, nested: bool) -> dict[str, Any]:
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
    noise = noises_of(arms)[0]
    ours = statistics.from_noise(value, noise)
    found["ours"] = (ours.low, ours.high)
    spread = statistics.pooled(arms)
    assert spread is not None
    of_all = statistics.from_noise(
        value,
        replace(
            noise,
            runs=2 * spread.runs / num_seeds,
            runs_with_images=2 * spread.with_images / num_seeds,
            degrees=spread.degrees,
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


def noises_of(arms: list[statistics.Arm]) -> list[statistics.Noise]:
    """Return the noise of each other arm's difference from the first."""
    num_images, is_paired = arms[0].resampled.shape[1], statistics.are_paired(arms)
    return [
        statistics.noise(arm, arms[0], num_images, others=None, is_paired=is_paired)
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
    counts = rng.multinomial(num_images, [1 / num_images] * num_images, size=NESTED_RESAMPLES)
    values = contributions @ counts.T / num_images  # (2, S, B)
    drawn = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=(2, NESTED_RESAMPLES))
    means = np.einsum("asb,abs->ab", values, drawn / num_seeds)
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Result:
    """How the intervals did for one distribution of runs and one size of study.

    Attributes:
        world: the name of the distribution.
        coverage: kind of interval -> the share of its intervals that contain the true difference.
        half_width: kind of interval -> half of the median width of its intervals, in points.
        false_alarms: the share of studies in which `ours`, with Holm's correction, says that an arm
            is better or worse although there is no difference.
        power: the share of studies in which `ours` finds a true difference of the size that it
            claims to find in four of five studies.
        paired: the share of studies in which the F test pairs the runs of the same seed.
    """

    world: str
    num_seeds: int
    num_arms: int
    coverage: dict[str, float]
    half_width: dict[str, float]
    false_alarms: float
    power: float
    paired: float


def simulate(world: World, num_seeds: int, num_arms: int, repeats: int, seed: int) -> Result:
    """Draw `repeats` studies, and compute the intervals and tests of each one on its own."""
    rng = np.random.default_rng([seed, num_seeds, num_arms, *world.name.encode()])
    inside: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    halves: dict[str, list[float]] = {kind: [] for kind in KINDS}
    alarms, found, paired = [], [], []
    for repeat in range(repeats):
        contributions = draw(world, num_arms, num_seeds, rng)
        for kind, (low, high) in bounds(contributions, rng, repeat % NESTED_SHARE == 0).items():
            inside[kind].append(low <= 0 <= high)
            halves[kind].append((high - low) / 2)
        arms = arms_of(contributions)
        noises = noises_of(arms)
        paired.append(noises[0].is_paired)
        values = np.array([float(arm.values.mean() - arms[0].values.mean()) for arm in arms[1:]])
        ps = [statistics.from_noise(*pair).p for pair in zip(values, noises, strict=True)]
        alarms.append(min(statistics.holm(ps)) < 1 - statistics.LEVEL)
        better = float(values[0]) + statistics.detectable(noises[0], len(noises))
        ps[0] = statistics.from_noise(better, noises[0]).p
        found.append(statistics.holm(ps)[0] < 1 - statistics.LEVEL)
    return Result(
        world.name,
        num_seeds,
        num_arms,
        {kind: float(np.mean(inside[kind])) for kind in KINDS},
        {kind: float(np.median(halves[kind])) for kind in KINDS},
        float(np.mean(alarms)),
        float(np.mean(found)),
        float(np.mean(paired)),
    )


def results(config: SimulationConfig) -> Iterator[Result]:
    """Simulate all distributions of runs and all sizes of study."""
    deviations = {"seeds": config.seeds, "arms": config.arms, "runs": config.runs}
    if config.study is not None:
        deviations = deviations_of(json.loads(Path(config.study).read_text()))
    for world in worlds(**deviations):
        for num_seeds in SEEDS:
            for num_arms in ARMS:
                yield simulate(world, num_seeds, num_arms, config.repeats, config.seed)


def deviations_of(study: dict[str, Any]) -> dict[str, float]:
    """Return the standard deviations of `World`, in points, that a study has measured."""
    noise, seen = study["noise"], study["could_have_seen"]
    runs = noise["of_it_due_to_the_images"]
    of_difference = seen["from_images_alone"] ** 2 - 2 * runs**2 / seen["num_seeds"]
    return {
        "seeds": 100 * noise["of_it_due_to_the_seeds"],
        "arms": 100 * float(np.sqrt(max(of_difference, 0.0) / 2)),
        "runs": 100 * runs,
    }


def row(result: Result) -> list[str]:
    """Return a row of the table: coverage in percent, with the half width in points in brackets."""
    cells = [f"{100 * result.coverage[kind]:.1f} ({result.half_width[kind]:.2f})" for kind in KINDS]
    shares = [result.false_alarms, result.power, result.paired]
    return [
        *(result.world, str(result.num_seeds), str(result.num_arms), *cells),
        *(f"{100 * share:.1f}" for share in shares),
    ]


def main() -> None:
    """Run the command with the key=value arguments of the command line."""
    given = OmegaConf.from_cli(sys.argv[1:])
    config = typed(SimulationConfig, OmegaConf.create(given))
    header = ["runs are drawn", "seeds", "arms", *KINDS, "false alarms", "power", "paired"]
    found = []
    print(table(header, []), flush=True)
    for result in results(config):
        print(table(header, [row(result)]).splitlines()[-1], flush=True)
        found.append(asdict(result))
    if config.json is not None:
        Path(config.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
