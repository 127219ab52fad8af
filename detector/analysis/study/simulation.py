"""Do the intervals of a study cover what they promise? Runs are drawn whose true difference is
known, and intervals of several kinds are counted that contain it.

    python -m detector.analysis.study.simulation
    python -m detector.analysis.study.simulation repeats=10000
    python -m detector.analysis.study.simulation study=results/study/study.json json=simulation.json

A run's number is the mean of its images' contributions:

    true mean of the arm + seed + arm with image + run with image

each drawn from a normal distribution, or, for images, a skewed one. How much each varies is taken
from a study (study=study.json), and varied about it. The kinds of interval:

    images      the paired bootstrap over images alone
    seeds       Welch's t of the seeds' values alone
    nested      the bootstrap over seeds and, within it, over images; percentiles
    sum         the variances of `seeds` and `images` added, t at Satterthwaite's degrees of freedom
    pooled      as ours, but for one variance between seeds for all arms
    ours        `statistics.py`

Since contributions are added, the bootstrap's variance over images is known without resampling.
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
NESTED_RESAMPLES, NESTED_SHARE = 200, 10  # of so many repeats one is given to the slow one


@dataclass(frozen=True)
class World:
    """What the runs are drawn from: standard deviations, in points of the metric.

    Attributes:
        seeds: of a run's number by its seed.
        shared: the share of that variance that all arms of a seed have in common.
        arms: of an arm's mean over the images that happen to be there.
        runs: of a run's.
        first: the first arm's seeds vary so many times as much.
        skewed: contributions of images are exponential.
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
    """What the command takes. The deviations stand in for a study that is not given."""

    study: str | None = None
    seeds: float = 0.6
    arms: float = 0.7
    runs: float = 0.8
    repeats: int = 2000
    seed: int = 0
    json: str | None = None


def worlds(seeds: float, arms: float, runs: float) -> list[World]:
    """The one that was measured, and others about it."""
    return [
        World("as measured", seeds, arms, runs),
        World("seeds vary twice as much", 2 * seeds, arms, runs),
        World("seeds do not vary", 0.0, arms, runs),
        World("one arm's seeds vary twice as much", seeds, arms, runs, first=2.0),
        World("half of it is shared between arms", seeds, arms, runs, shared=0.5),
        World("skewed images", seeds, arms, runs, skewed=True),
    ]


def draw(world: World, num_arms: int, num_seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Contributions (A, S, I), of arms without a difference."""

    def images(*size: int) -> np.ndarray:
        drawn = rng.exponential(size=size) - 1 if world.skewed else rng.normal(size=size)
        return np.sqrt(NUM_IMAGES) * drawn

    seeds = np.sqrt(1 - world.shared) * rng.normal(size=(num_arms, num_seeds, 1))
    seeds += np.sqrt(world.shared) * rng.normal(size=(1, num_seeds, 1))
    seeds[0] *= world.first
    with_arms = world.arms * images(num_arms, 1, NUM_IMAGES)
    return world.seeds * seeds + with_arms + world.runs * images(num_arms, num_seeds, NUM_IMAGES)


def bounds(contributions: np.ndarray, rng: np.random.Generator, nested: bool) -> dict[str, Any]:
    """Kind -> (low, high) of the second arm's difference from the first."""
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
    """As a study has them, with the bootstrap's variance as it is known here: of a mean over I
    images it is that of the contributions over the root of I.
    """
    return [
        statistics.Arm(
            tuple(range(len(of_arm))), of_arm.mean(axis=1), of_arm / np.sqrt(of_arm.shape[1])
        )
        for of_arm in contributions
    ]


def noises_of(arms: list[statistics.Arm]) -> list[statistics.Noise]:
    """Of each arm's difference from the first."""
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
    """Of one world and size of study.

    Attributes:
        coverage: kind -> share of its intervals that contain the true difference.
        half_width: kind -> the median, in points.
        false_alarms: the share of studies without any difference in which `ours`, with Holm's
            correction, gives a verdict.
        power: the share in which it finds the difference that it says it would find in four of
            five.
        paired: the share in which the seeds were found to be shared.
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
    """Draw so many studies and look at each as if it were the only one."""
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
    """Of all worlds and sizes."""
    deviations = {"seeds": config.seeds, "arms": config.arms, "runs": config.runs}
    if config.study is not None:
        deviations = deviations_of(json.loads(Path(config.study).read_text()))
    for world in worlds(**deviations):
        for num_seeds in SEEDS:
            for num_arms in ARMS:
                yield simulate(world, num_seeds, num_arms, config.repeats, config.seed)


def deviations_of(study: dict[str, Any]) -> dict[str, float]:
    """The deviations of `World`, in points, as a study has measured them."""
    noise, seen = study["noise"], study["could_have_seen"]
    runs = noise["of_it_due_to_the_images"]
    of_difference = seen["from_images_alone"] ** 2 - 2 * runs**2 / seen["num_seeds"]
    return {
        "seeds": 100 * noise["of_it_due_to_the_seeds"],
        "arms": 100 * float(np.sqrt(max(of_difference, 0.0) / 2)),
        "runs": 100 * runs,
    }


def row(result: Result) -> list[str]:
    """Of the table: coverage in percent, half width in points."""
    cells = [f"{100 * result.coverage[kind]:.1f} ({result.half_width[kind]:.2f})" for kind in KINDS]
    shares = [result.false_alarms, result.power, result.paired]
    return [
        *(result.world, str(result.num_seeds), str(result.num_arms), *cells),
        *(f"{100 * share:.1f}" for share in shares),
    ]


def main() -> None:
    """key=value arguments, as everywhere."""
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
