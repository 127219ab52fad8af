"""Confidence intervals of a study agree with scipy's tests and cover what the simulation draws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from detector.analysis.study import power, simulation, statistics
from detector.analysis.study.rival_intervals import arms_of, variance_parts_of
from detector.analysis.study.run_distribution import deviations_of, variations
from detector.analysis.study.statistics import Arm, VarianceParts


def arm(values: list[float], resampled: np.ndarray | None = None) -> Arm:
    """Return runs of the seeds 0, 1 ...; without `resampled` the images add no variance."""
    found = np.array(values)
    if resampled is None:
        resampled = np.tile(found[:, None], 50)
    return Arm(tuple(range(len(values))), found, resampled)


def parts_of(arms: list[Arm], num_images: int = 200) -> VarianceParts:
    """Of the second arm's difference from the first, as a study has it."""
    return statistics.variance_parts(
        arms[1],
        arms[0],
        num_images,
        others=statistics.pooled_run_variance(arms),
        is_paired=statistics.are_paired(arms),
    )


def test_seeds_alone_are_a_t_test() -> None:
    """Without variance of the images the test is Welch's, which allows unequal variances."""
    first, second = [1.0, 2.5, 3.0], [4.0, 6.5, 5.0, 7.0]
    arms = [arm(first), arm(second)]
    found = statistics.difference(arms[1], arms[0], parts_of(arms))
    expected = stats.ttest_ind(second, first, equal_var=False)
    interval = expected.confidence_interval()
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.degrees == pytest.approx(expected.df) and found.covers_seeds


def test_an_arm_of_one_seed_is_taken_to_vary_as_the_others() -> None:
    arms = [arm([1.0]), arm([4.0, 6.5, 5.0]), arm([7.0, 7.5])]
    found = parts_of(arms)
    within = (np.var([4.0, 6.5, 5.0]) * 3 + np.var([7.0, 7.5]) * 2) / 3
    assert found.runs == pytest.approx(within + np.var([4.0, 6.5, 5.0], ddof=1) / 3)
    assert statistics.difference(arms[1], arms[0], found).covers_seeds


def test_single_seeds_cover_images_alone() -> None:
    rng = np.random.default_rng(0)
    arms = [arm([value], value + rng.normal(0, 0.05, (1, 4000))) for value in (0.4, 0.6)]
    found = statistics.difference(arms[1], arms[0], parts_of(arms))
    assert not found.covers_seeds
    assert found.error == pytest.approx(math.sqrt(2) * 0.05, rel=0.05)
    assert found.degrees == pytest.approx(199)


def test_noise_of_the_images_is_not_counted_twice() -> None:
    """Runs of one arm differ only in their values for single images. The bootstrap measures this
    variance, and the seeds add none.
    """
    rng = np.random.default_rng(1)
    contributions = rng.normal(0, 1, (2, 400, 100))  # arms, seeds, images
    (found,) = variance_parts_of(arms_of(contributions))
    each = 2 * 0.01 / 400  # of two arms: the variance of a mean over 100, over 400 seeds
    assert found.runs == pytest.approx(each, rel=0.1)
    assert found.runs_with_images == pytest.approx(each, rel=0.1)
    assert found.images == pytest.approx(each, rel=0.3)
    assert found.seeds < 0.1 * found.runs


def test_effects_of_shared_seeds_cancel() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(0, 5, 6)
    own = rng.normal(0, 0.1, (3, 6))
    arms = [arm([*(shared + own[i])]) for i in range(3)]
    assert statistics.are_paired(arms)
    found = statistics.difference(arms[1], arms[0], parts_of(arms))
    expected = stats.ttest_rel(arms[1].values, arms[0].values)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9) and found.degrees == 5
    assert not statistics.are_paired([arm([*own[i]]) for i in range(3)])
    other_seeds = Arm((9, 8, 7, 6, 5, 4), shared, np.tile(shared[:, None], 5))
    assert not statistics.are_paired([arm([*shared]), other_seeds])


def test_the_test_of_shared_seeds() -> None:
    """It agrees with the F test of a two-way table whose residuals are found by least squares."""
    rng = np.random.default_rng(3)
    design = np.concatenate([np.repeat(np.eye(3), 6, axis=0), np.tile(np.eye(6), (3, 1))], axis=1)
    answers = []
    for _ in range(200):
        values = rng.normal(0, 1, (3, 6)) + 0.5 * rng.normal(0, 1, 6)
        arms_alone, both = (
            values.ravel() - columns @ np.linalg.lstsq(columns, values.ravel(), rcond=None)[0]
            for columns in (design[:, :3], design)
        )
        explained = np.square(arms_alone).sum() - np.square(both).sum()
        ratio = explained / 5 / (np.square(both).sum() / 10)
        centred = values - values.mean(axis=1, keepdims=True)
        expected = stats.f.sf(ratio, 5, 10) < 0.05
        answers.append(expected)
        assert statistics.seeds_matter(centred) == expected
    assert 10 < sum(answers) < 150


def test_holm() -> None:
    # By hand: 3 * .01 and 2 * .02; the last p-value is raised to the one before.
    assert statistics.holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_seeds_that_halve_the_detectable_difference() -> None:
    """With a quarter of the variance and more degrees of freedom, fewer than four times as many."""
    arms = [arm([0.0, 2.0, 4.0, 1.0, 3.0]), arm([5.0, 9.0, 8.0, 6.0, 7.0])]
    found = parts_of(arms)
    now = power.smallest_detectable_difference(found, 1)
    seeds = power.seeds_to_halve(found, 5, 1)
    assert seeds is not None and 10 < seeds < 20

    def at(number: int) -> float:
        error = math.sqrt(2 * 2.5 / number)  # 2.5 is the variance of each arm
        degrees = 2 * (number - 1)
        return error * (stats.t.ppf(0.975, degrees) + stats.t.ppf(0.8, degrees))

    assert now == pytest.approx(at(5)) and at(seeds) <= now / 2 < at(seeds - 1)
    images = VarianceParts(runs=1.0, runs_with_images=0.0, degrees=8, images=4.0, num_images=200)
    assert power.seeds_to_halve(images, 5, 1) is None  # what images leave is too much


def test_the_simulation_tells_methods_apart() -> None:
    measured, more, _, unequal, *_ = variations(seeds=0.6, arms=0.7, runs=0.8)
    found = simulation.simulate(measured, 3, 2, 400, seed=0)
    # The tolerance is two standard errors; for a proportion of 400 one is 1.1 points.
    assert 0.925 <= found.coverage["ours"] <= 0.975
    assert found.coverage["seeds"] < 0.93  # this method ignores the images
    assert 0.02 < found.false_alarms < 0.08 and 0.74 < found.power < 0.86
    assert found.half_width["ours"] < found.half_width["sum"]
    of_more = simulation.simulate(more, 5, 2, 400, seed=0)
    assert of_more.coverage["images"] < 0.92 <= of_more.coverage["ours"]
    of_unequal = simulation.simulate(replace(unequal, seeds=2.4), 3, 6, 200, seed=0)
    assert of_unequal.coverage["pooled"] < 0.92 <= of_unequal.coverage["ours"]


def test_the_simulation_takes_a_study() -> None:
    study = {
        "noise": {"of_it_due_to_the_images": 0.008, "of_it_due_to_the_seeds": 0.02},
        "could_have_seen": {"from_images_alone": 0.01, "num_seeds": 4},
    }
    found = deviations_of(study)
    # 1 point squared is twice the arms' variance and two of 0.8 squared over 4 seeds.
    assert found == pytest.approx({"seeds": 2.0, "runs": 0.8, "arms": math.sqrt((1 - 0.32) / 2)})
