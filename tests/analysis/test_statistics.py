"""Intervals of a study beside scipy's tests, and what the simulation counts."""

import math

import numpy as np
import pytest
from scipy import stats

from detector.analysis.study import simulation, statistics
from detector.analysis.study.statistics import Arm, Noise


def arm(values: list[float], resampled: np.ndarray | None = None) -> Arm:
    """Runs of the seeds 0, 1 ...; without `resampled`, images do not matter."""
    found = np.array(values)
    if resampled is None:
        resampled = np.tile(found[:, None], 50)
    return Arm(tuple(range(len(values))), found, resampled)


def test_seeds_alone_are_a_t_test() -> None:
    first, second = [1.0, 2.5, 3.0], [4.0, 6.5, 5.0, 7.0]
    arms = {"a": arm(first), "b": arm(second)}
    found = statistics.difference(arms["b"], arms["a"], statistics.noise(arms, 200))
    expected = stats.ttest_ind(second, first)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.degrees == 5 and found.covers_seeds


def test_seeds_of_a_third_arm_count() -> None:
    """Tukey's and Dunnett's tests pool the variance over all groups, as an ANOVA does."""
    values = {"a": [1.0, 2.5, 3.0], "b": [4.0, 6.5, 5.0], "c": [9.0, 9.5, 8.0]}
    noise = statistics.noise({name: arm(of_arm) for name, of_arm in values.items()}, 200)
    groups = np.array([*values.values()])
    within = np.square(groups - groups.mean(axis=1, keepdims=True)).sum() / 6
    between = 3 * np.square(groups.mean(axis=1) - groups.mean()).sum() / 2
    assert noise.degrees == 6 and noise.between_runs == pytest.approx(within)
    assert between / noise.between_runs == pytest.approx(stats.f_oneway(*groups).statistic)


def test_single_seeds_cover_images_alone() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.array([[0.4], [0.6]])[i] + rng.normal(0, 0.05, (1, 4000)) for i in (0, 1))
    arms = {"a": arm([0.4], first), "b": arm([0.6], second)}
    found = statistics.difference(arms["b"], arms["a"], statistics.noise(arms, 200))
    assert not found.covers_seeds
    assert found.error == pytest.approx(math.sqrt(2) * 0.05, rel=0.05)
    assert found.degrees == pytest.approx(199)


def test_nothing_is_counted_twice() -> None:
    """Runs of one arm differ by how each goes with the images alone: that is what the bootstrap
    finds, and the seeds add nothing.
    """
    rng = np.random.default_rng(1)
    contributions = rng.normal(0, 1, (2, 400, 100))  # arms, seeds, images
    noise = simulation.noise_of(contributions)
    assert noise.between_runs == pytest.approx(0.01, rel=0.1)
    assert noise.runs_with_images == pytest.approx(0.01, rel=0.1)
    assert math.sqrt(noise.seeds) < 0.3 * math.sqrt(noise.between_runs)


def test_seeds_that_all_arms_share_are_taken_away() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 5, 6)
    own = rng.normal(0, 0.1, (3, 6))
    paired = statistics.noise({str(i): arm([*(shared + own[i])]) for i in range(3)}, 200)
    assert paired.is_paired and paired.degrees == 10
    # The residual of a two-way table, by least squares.
    design = np.concatenate([np.repeat(np.eye(3), 6, axis=0), np.tile(np.eye(6), (3, 1))], axis=1)
    values = (shared + own).ravel()
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    assert paired.between_runs == pytest.approx(np.square(values - fitted).sum() / 10)
    alone = statistics.noise({str(i): arm([*own[i]]) for i in range(3)}, 200)
    assert not alone.is_paired and alone.degrees == 15
    other_seeds = Arm((9, 8, 7, 6, 5, 4), shared, np.tile(shared[:, None], 5))
    assert not statistics.noise({"a": arm([*shared]), "b": other_seeds}, 200).is_paired


def test_holm() -> None:
    # Worked by hand: 3 * .01, 2 * .02, then not below the one before.
    assert statistics.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_seeds_that_halve_what_can_be_seen() -> None:
    noise = Noise(between_runs=4.0, runs_with_images=0.0, degrees=8, num_images=200)
    now = statistics.detectable(1e-9, 5, noise, 1)
    seeds = statistics.seeds_to_halve(1e-9, 5, noise, 1)
    assert seeds is not None

    def at(number: int) -> float:
        return statistics.detectable(1e-9, number, Noise(4.0, 0.0, 2 * (number - 1), 200), 1)

    assert at(seeds) <= now / 2 < at(seeds - 1)
    assert statistics.seeds_to_halve(4.0, 5, noise, 1) is None  # what images leave is too much


def test_the_simulation_tells_methods_apart() -> None:
    measured, more = simulation.worlds(seeds=0.6, arms=0.7, runs=0.8)[:2]
    found = simulation.simulate(measured, 3, 2, 400, seed=0)
    # A share of 400 is known to 2 standard errors of 1.1 points.
    assert 0.925 <= found.coverage["ours"] <= 0.975
    assert found.coverage["seeds"] < 0.93  # images are left out
    assert 0.02 < found.false_alarms < 0.08 and 0.74 < found.power < 0.86
    assert found.half_width["ours"] < found.half_width["sum"]
    of_more = simulation.simulate(more, 5, 2, 400, seed=0)
    assert of_more.coverage["images"] < 0.92 <= of_more.coverage["ours"]


def test_the_simulation_takes_a_study() -> None:
    study = {
        "noise": {"of_it_due_to_the_images": 0.008, "of_it_due_to_the_seeds": 0.02},
        "could_have_seen": {"from_images_alone": 0.01, "num_seeds": 4},
    }
    found = simulation.deviations_of(study)
    # 1 point squared is twice the arms' variance and two of 0.8 squared over 4 seeds.
    assert found == pytest.approx({"seeds": 2.0, "runs": 0.8, "arms": math.sqrt((1 - 0.32) / 2)})
