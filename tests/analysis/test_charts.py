"""What charts draw, as matplotlib says it."""

import warnings

import numpy as np
import pytest

from detector.analysis.charts import training_curves


def curve(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1.0, len(values) + 1), np.array(values)


def test_the_mean_is_over_what_all_seeds_share() -> None:
    """One seed of the first arm stopped early; the second arm was evaluated once; one never."""
    lines = {
        "none": [curve(10, 20, 30, 40), curve(20, 40)],
        "c5_v2": [curve(12), curve(14)],
        "absent": [curve()],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (axes,) = training_curves(lines, "epoch", "AP").axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["none", "c5_v2"] and axes.get_legend() is not None
    assert handles[0].get_xdata() == pytest.approx([1, 2])
    assert handles[0].get_ydata() == pytest.approx([15, 30])
    assert handles[1].get_ydata() == pytest.approx([13])
    assert len(axes.lines) == 4 + 2  # each seed, and each mean
    assert axes.lines[3].get_marker() == "."  # a line of one point would be invisible
    assert axes.get_xlim()[0] == 0 and axes.get_ylim()[0] == 0


def test_no_curves_give_no_legend() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (axes,) = training_curves({"none": [curve()]}, "epoch", "AP").axes
    assert axes.get_legend() is None
