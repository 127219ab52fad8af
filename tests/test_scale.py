"""docs/scale.md is the output of the command, and its estimates agree with sums by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detector.scale import PLANS, costs, measured, page

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_measurements_give() -> None:
    assert (ROOT / "docs" / "scale.md").read_text(encoding="utf-8") == page(measured())


def test_a_step_by_hand() -> None:
    """Each of 8 GPUs gets two images of 800 x 1067 pixels. 18.0 ms were measured for two images of
    512 x 512 pixels.
    """
    one = costs(PLANS[0], measured(), "c3-c5_v2")
    assert one.gpu == pytest.approx(0.018 * 800 * 1067 / 512**2)
    assert one.python == 0.063 and one.step == 0.063 and one.bottleneck == "Python"
    assert one.reducing == pytest.approx(2 * 7 / 8 * 4 * 42_352_899 / 450e9)
    assert one.training == pytest.approx(12 * 118_287 / 16 * 0.063)
    files = json.loads((ROOT / "results" / "evaluation" / "coco.json").read_text())
    detecting = 0.34 * 0.063 * 5000 / 8
    assert one.evaluating == pytest.approx(
        12 * (detecting + files["candidates"]["ours"]["seconds"])
    )


def test_what_is_slowest_bounds() -> None:
    known, plan = measured(), PLANS[0]
    many = replace(plan, batch=64)
    assert costs(many, known, "none").bottleneck == "the GPU"
    slow = known | {"assumed": known["assumed"] | {"NVLink, bytes/s of a GPU": 1e9}}
    assert costs(plan, slow, "none").bottleneck == "reducing"
    assert costs(plan, slow, "none").step > costs(plan, known, "none").step
    few = known | {"assumed": known["assumed"] | {"cores of a GPU": 0.1}}
    assert costs(plan, few, "none").bottleneck == "loading"
