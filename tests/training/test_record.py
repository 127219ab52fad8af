"""TensorBoard, metrics.jsonl and the terminal show what a run records."""

import io
import json
import logging
import os
import pty
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from detector.evaluation.coco import Curve
from detector.evaluation.offset_sizes import LayerSizes
from detector.training.record import Record, duration


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def scalar(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def test_scalars(tmp_path: Path) -> None:
    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=0)
    for step, loss in ((1, 0.5), (2, 0.25)):
        speed = {"images/s": 8.0 * step, "data wait": 0.5, "TFLOP/s": 0.125}
        record.training(step, 1, {"loss": loss}, speed)
    record.close()
    assert scalar(tmp_path, "train/loss") == [(1, 0.5), (2, 0.25)]
    assert scalar(tmp_path, "speed/images per s") == [(1, 8.0), (2, 16.0)]
    assert scalar(tmp_path, "speed/data wait") == [(1, 0.5), (2, 0.5)]
    assert scalar(tmp_path, "speed/TFLOP per s") == [(1, 0.125), (2, 0.125)]


def test_curves(tmp_path: Path) -> None:
    """At a recall of 0.5 and a precision of 0.8, 4 of 8 objects are found, and 1 false positive."""
    precision = np.where(np.arange(101) <= 50, 0.8, 0.0)
    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=0)
    record.curves(3, {"fish": Curve(precision, num_objects=8)})
    record.close()
    (event,) = events(tmp_path).Tensors("val/fish")
    assert event.step == 3
    found, wrong, _, missed, shown, recall = tensor_util.make_ndarray(event.tensor_proto)
    assert recall[50] == pytest.approx(0.5) and shown[50] == pytest.approx(0.8)
    assert (found[50], wrong[50], missed[50]) == pytest.approx((4, 1, 4))
    assert (
        recall[0] == 1 and shown[0] == 0 and recall[100] == 0 and shown[100] == pytest.approx(0.8)
    )
    assert "val/fish" in events(tmp_path).PluginTagToContent("pr_curves")


def test_a_loss_that_is_not_finite_is_json(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not in JSON")

    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=0)
    record.training(1, 1, {"loss": float("nan"), "loss_a": float("inf"), "lr": 0.5}, {})
    record.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (line["loss"], line["loss_a"], line["lr"]) == (None, None, 0.5)


def test_the_table_of_runs(tmp_path: Path) -> None:
    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=0)
    config = {"schedule.lr": 0.5, "compile": True, "deform.version": "v2"}
    record.hparams(config | {"overfit": None, "milestones": [8, 11]}, {"AP": 0.25, "APs": None})
    record.close()
    contents = events(tmp_path).PluginTagToContent("hparams")
    parts = {tag: HParamsPluginData.FromString(content) for tag, content in contents.items()}
    shown = parts["_hparams_/session_start_info"].session_start_info.hparams
    assert shown["schedule.lr"].number_value == 0.5
    assert shown["compile"].number_value == 1  # so torch writes booleans
    assert shown["deform.version"].string_value == "v2"
    assert shown["overfit"].string_value == "None"
    assert shown["milestones"].string_value == "[8, 11]"
    metrics = parts["_hparams_/experiment"].experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/AP"]  # the tag that `validation` uses


def test_no_bar_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=1)
    record.advance()
    record.close()
    assert sys.stderr.getvalue() == ""


def test_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", terminal)
        logging.root.addHandler(console := logging.StreamHandler(sys.stdout))
        logging.root.addHandler(file := logging.FileHandler(tmp_path / "train.log"))
        caplog.set_level("INFO")
        record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=1)
        for step in (2, 3, 4):
            time.sleep(0.15)  # the bar is drawn at most ten times a second
            record.advance()
            record.training(step, 2, {"loss": 0.5}, {"images/s": 8.0})
        logging.getLogger("other").info("another line")
        record.close()
        logging.root.removeHandler(console)
        logging.root.removeHandler(file)
        shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert (
        "1/4" in shown
        and "epoch 1/2" in shown
        and "epoch 2/2" in shown
        and "loss 0.5  8 images/s" in shown
    )
    assert any(f"{step}/4" in shown for step in (2, 3, 4))
    assert "another line" in shown and "step 3/4" not in shown  # only the bar shows step 3
    log = (tmp_path / "train.log").read_text()
    assert "epoch 2/2  step 3/4  loss 0.5  8 images/s  0:0" in log and "another line" in log


def test_a_line_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    record = Record(tmp_path, num_steps=90000, num_epochs=12, first_step=0)
    scalars = {"loss": 1.23456, "loss_objectness": 0.5, "lr": 0.00123456}
    speed = {"images/s": 104.321, "data wait": 0.5, "TFLOP/s": 0.125}
    record.training(100, 1, scalars, speed | {"data wait": 0.1})
    record.training(100, 1, scalars, speed)
    record.close()
    short, waiting = (line.getMessage() for line in caplog.records)
    start = "epoch 1/12  step 100/90000  loss 1.23  lr 0.00123  104 images/s  "
    assert short.startswith(start) and short.endswith(" left") and "waiting" not in short
    assert waiting.startswith(start + "50% waiting for data  ")


def test_durations() -> None:
    seconds = (0.4, 59.6, 151, 3600, 100 * 3600 + 61)
    assert [duration(s) for s in seconds] == ["0:00", "1:00", "2:31", "1:00:00", "100:01:01"]


def test_other_processes_record_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = Record(None, num_steps=4, num_epochs=2, first_step=0)
    record.advance()
    record.training(1, 1, {"loss": 0.5}, {"images/s": 8.0})
    record.validation(1, 1, {"AP": 0.25}, seconds=1.0)
    record.images(1, [])
    record.hparams({}, {})
    record.close()
    assert list(tmp_path.iterdir()) == []


def test_offsets_that_run_away_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = Record(tmp_path, num_steps=4, num_epochs=2, first_step=0)
    near = LayerSizes(mean=0.5, p99=2.0, largest=9.0, side=8.0)  # a quarter of the side: no warning
    far = LayerSizes(mean=0.5, p99=2.1, largest=9.0, side=8.0)
    for epoch, last in ((1, near), (2, far), (3, far)):
        record.offsets(2 * epoch, epoch, {"layer3.0.conv1": near, "layer4.0.conv1": last})
    record.close()
    warnings = [line.message for line in caplog.records if line.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("layer4.0.conv1: 1 in 100 offsets")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[1]["layers"]["layer4.0.conv1"] == {
        "mean": 0.5,
        "p99": 2.1,
        "largest": 9.0,
        "side": 8.0,
    }
