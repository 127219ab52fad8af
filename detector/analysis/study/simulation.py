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
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from detector import entry
from detector.analysis.study import statistics
from detector.analysis.study.power import smallest_detectable_difference
from detector.analysis.study.rival_intervals import KINDS, arms_of, intervals, variance_parts_of
from detector.analysis.study.run_distribution import (
    RunDistribution,
    deviations_of,
    draw,
    variations,
)
from detector.config import parse
from detector.tables import table

SEEDS, ARMS = (2, 3, 5, 10), (2, 3, 6)
NESTED_SHARE = 10  # `nested` is slow: it is computed in every 10th repeat


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


def simulate(
    distribution: RunDistribution, num_seeds: int, num_arms: int, repeats: int, seed: int
) -> Result:
    """Draw `repeats` studies, and compute the intervals and tests of each one on its own."""
    rng = np.random.default_rng([seed, num_seeds, num_arms, *distribution.name.encode()])
    inside: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    halves: dict[str, list[float]] = {kind: [] for kind in KINDS}
    alarms, found, paired = [], [], []
    for repeat in range(repeats):
        contributions = draw(distribution, num_arms, num_seeds, rng)
        for kind, (low, high) in intervals(contributions, rng, repeat % NESTED_SHARE == 0).items():
            inside[kind].append(low <= 0 <= high)
            halves[kind].append((high - low) / 2)
        arms = arms_of(contributions)
        variances = variance_parts_of(arms)
        paired.append(variances[0].is_paired)
        values = np.array([float(arm.values.mean() - arms[0].values.mean()) for arm in arms[1:]])
        ps = [
            statistics.difference_with_interval(*pair).p
            for pair in zip(values, variances, strict=True)
        ]
        alarms.append(min(statistics.holm(ps)) < 1 - statistics.LEVEL)
        better = float(values[0]) + smallest_detectable_difference(variances[0], len(variances))
        ps[0] = statistics.difference_with_interval(better, variances[0]).p
        found.append(statistics.holm(ps)[0] < 1 - statistics.LEVEL)
    return Result(
        distribution.name,
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
    for distribution in variations(**deviations):
        for num_seeds in SEEDS:
            for num_arms in ARMS:
                yield simulate(distribution, num_seeds, num_arms, config.repeats, config.seed)


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
    config = parse(SimulationConfig, OmegaConf.create(given))
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
