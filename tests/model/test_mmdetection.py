"""What the text of a configuration of mmdetection says of its network."""

from collections.abc import Callable

import pytest

from detector.model.weights.mmdetection import conventions_of

# Of mmdetection's `faster-rcnn_r50_fpn`, without what nothing here corresponds to.
TRAIN_CFG = """dict(
    rpn=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
        sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5)),
    rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7)),
    rcnn=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
        sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25)))"""
TEST_CFG = """dict(
    rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7)),
    rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))"""


def within(train_cfg: str, test_cfg: str) -> str:
    return f"model = dict(train_cfg={train_cfg}, test_cfg={test_cfg})"


def beside(train_cfg: str, test_cfg: str) -> str:
    return f"model = dict()\ntrain_cfg = {train_cfg}\ntest_cfg = {test_cfg}"


@pytest.mark.parametrize("text_of", [within, beside])
def test_the_usual_settings_are_no_news(text_of: Callable[[str, str], str]) -> None:
    """Early files of 2.x have `train_cfg` and `test_cfg` beside `model`, later ones within it."""
    assert conventions_of(text_of(TRAIN_CFG, TEST_CFG)) == ({}, [])


@pytest.mark.parametrize("text_of", [within, beside])
@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("type='nms', iou_threshold=0.5", "type='soft_nms'", "test_cfg.rcnn.nms.type=soft_nms"),
        ("score_thr=0.05", "score_thr=0.001", "test_cfg.rcnn.score_thr=0.001"),
        ("max_per_img=100)", "max_per_img=300)", "test_cfg.rcnn.max_per_img=300"),
        ("pos_iou_thr=0.7", "pos_iou_thr=0.6", "train_cfg.rpn.assigner.pos_iou_thr=0.6"),
        ("neg_iou_thr=0.3", "neg_iou_thr=0.4", "train_cfg.rpn.assigner.neg_iou_thr=0.4"),
        ("pos_iou_thr=0.5", "pos_iou_thr=0.6", "train_cfg.rcnn.assigner.pos_iou_thr=0.6"),
        ("num=256", "num=128", "train_cfg.rpn.sampler.num=128"),
        ("pos_fraction=0.25", "pos_fraction=0.5", "train_cfg.rcnn.sampler.pos_fraction=0.5"),
        ("RandomSampler', num=512", "OHEM', num=512", "train_cfg.rcnn.sampler.type=OHEM"),
    ],
)
def test_settings_that_are_not_taken_over_are_named(
    text_of: Callable[[str, str], str], old: str, new: str, told: str
) -> None:
    assert (old in TRAIN_CFG) != (old in TEST_CFG)
    _, others = conventions_of(text_of(TRAIN_CFG.replace(old, new), TEST_CFG.replace(old, new)))
    assert others == [told]


def test_loops_of_training_and_testing_have_the_same_names() -> None:
    text = (
        "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12)\n"
        f"{within(TRAIN_CFG, TEST_CFG.replace('0.05', '0.1'))}\n"
        "test_cfg = dict(type='TestLoop')\n"
    )
    assert conventions_of(text) == ({}, ["test_cfg.rcnn.score_thr=0.1"])
