"""Training and evaluation, run as from the command line on a few tiny images."""

import json
import logging
import math
import os
import pickle
import re
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

import evaluate
import train
from detector import entry
from detector.analysis.offsets import __main__ as offsets
from detector.analysis.sampling import __main__ as sampling
from detector.builders import model as building
from detector.builders import training as training_builders
from detector.commands import evaluate_checkpoint, training_data
from detector.commands import plan as plan_command
from detector.commands import train as train_command
from detector.config import parse_train
from detector.data import file_problems
from detector.data.problems import Problem
from detector.evaluation.coco_format import as_detections
from detector.evaluation.metrics import Metrics
from detector.evaluation.offset_sizes import OffsetSizes
from detector.evaluation.timing import Timing
from detector.model.weights.state_dicts import trained_weights
from detector.training import loop, validation
from detector.training.checkpoint import load_checkpoint
from detector.training.distribution import Ranks
from detector.training.preemption import Preempted, StopRequest
from detector.training.release import export
from detector.training.validation import Validation

TINY = [
    "model.backbone=resnet10",
    "model.fpn_channels=16",
    "model.box_head_channels=16",
    "model.anchor_sizes=[8,16,24,32,64]",
    "data.num_train=12",
    "data.num_val=5",
    "data.image_size=64",
    "data.transform.train_min_sizes=[64]",
    "data.transform.min_size=64",
    "data.transform.max_size=64",
    "schedule.batch_size=4",
    "schedule.warmup_steps=2",
    "schedule.evaluate_every=1",
    "log_every=1",
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep generated data for all tests of this file, outside the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def command(main, folder: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run an entry point as from the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["program.py", f"hydra.run.dir={folder}", *overrides])
    handlers = list(logging.root.handlers)
    try:
        entry.run(main)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    finally:
        logging.root.handlers = handlers  # removes those of Hydra, which write to the run folder
    return 0


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_and_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    formats: list[tuple[dict, torch.memory_format]] = []

    def memory_format(device: torch.device, **of: int) -> torch.memory_format:
        formats.append((of, torch.contiguous_format))
        return torch.contiguous_format

    monkeypatch.setattr(training_builders, "training_memory_format", memory_format)
    assert command(train.main, run, *TINY, "schedule.epochs=2", monkeypatch=monkeypatch) == 0
    assert formats == [({"fpn_channels": 16, "min_size": 64}, torch.contiguous_format)]
    assert "warmup_steps" not in (run / "train.log").read_text()  # no warning: two of six steps
    weights = load_checkpoint(run / "checkpoints" / "last.pt")["model"]
    assert weights["backbone.body.layer1.0.conv1.weight"].is_contiguous()

    summary = read_json(run / "summary.json")
    assert summary["status"] == "done" and summary["seed"] == 0
    assert len(summary["metrics"]) == 12 and 0 <= summary["metrics"]["AP50"] <= 1
    assert len(summary["per_class"]) == 6
    assert summary["train_seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["num_parameters"] > 4e6 and len(summary["config_hash"]) == 12
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines if line["kind"] == "val"] == [1, 2]
    log = (run / "train.log").read_text()
    assert re.search(
        r"epoch 2/2  step 4/6  loss [\d.]+  lr [\d.e-]+  [\d.]+ images/s  0:\d\d left", log
    )
    assert f"checkpoint={run}/checkpoints/best.pt" in log and "instances" not in log
    assert "stages: c3-c5" in (run / "config.yaml").read_text()
    assert tensorboard_tags(run) == (
        {"train/loss", "train/lr", "val/AP", "val/AP50"},
        {"val/image_0", "val/image_3", "train/before and after augmentation"},
    )
    assert read_json(run / "data_check.json")["splits"]["train"]["images"] == 12

    scored = tmp_path / "scored"
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.pt'}"
    assert command(evaluate.main, scored, checkpoint, monkeypatch=monkeypatch) == 0
    metrics = read_json(scored / "metrics.json")
    assert metrics["metrics"] == pytest.approx(summary["metrics"], abs=1e-6)
    assert read_json(scored / "metrics.json")["seconds_per_image"] > 0
    assert metrics["per_class"] == {k: pytest.approx(v) for k, v in summary["per_class"].items()}

    (annotations,) = Path(os.environ["XDG_CACHE_HOME"]).glob(
        "*/*train12*/annotations/instances_val.json"
    )
    again = tmp_path / "again"
    results = [f"detections={scored / 'detections.json'}", f"data.annotations={annotations}"]
    assert command(evaluate.main, again, *results, monkeypatch=monkeypatch) == 0
    assert read_json(again / "metrics.json")["metrics"] == pytest.approx(
        metrics["metrics"], abs=1e-9
    )
    sizes = tmp_path / "sizes"  # detection at two sizes and in mirrored images, with timing
    options = [checkpoint, "min_sizes=[64,96]", "flip=true", "timing_images=2"]
    assert command(evaluate.main, sizes, *options, monkeypatch=monkeypatch) == 0
    timing = read_json(sizes / "metrics.json")["timing"]
    assert timing["num_images"] == 2 and timing["forward_ms"] > 0 and timing["gflops"] > 0
    assert read_json(sizes / "detections.json") != read_json(scored / "detections.json")
    batches = tmp_path / "batches"  # the same detections in the same order
    options = [checkpoint, "eval_batch_size=4", "timing_images=3"]
    assert command(evaluate.main, batches, *options, monkeypatch=monkeypatch) == 0
    one_by_one = read_json(scored / "detections.json")
    for found, one in zip(read_json(batches / "detections.json"), one_by_one, strict=True):
        assert found == {
            "image_id": one["image_id"],
            "category_id": one["category_id"],
            "bbox": pytest.approx(one["bbox"], abs=1e-3),
            "score": pytest.approx(one["score"], rel=1e-4),
        }
    timing = read_json(batches / "metrics.json")["timing"]
    assert timing["batch_size"] == 4 and timing["num_images"] == 3
    soft = tmp_path / "soft"
    options = [checkpoint, "nms=soft_gaussian", "nms_sigma=0.1"]
    assert command(evaluate.main, soft, *options, monkeypatch=monkeypatch) == 0
    assert read_json(soft / "detections.json") != read_json(scored / "detections.json")
    options = [checkpoint, "nms=soft_linear", "flip=true"]  # flip merges by hard NMS
    assert command(evaluate.main, tmp_path / "x", *options, monkeypatch=monkeypatch) == 2
    options = [checkpoint, "min_sizes=[0]"]
    assert command(evaluate.main, tmp_path / "x", *options, monkeypatch=monkeypatch) == 2
    options = [checkpoint, "iou_thresholds=[0.3]"]  # not for COCO; refused before the detection
    assert command(evaluate.main, tmp_path / "x", *options, monkeypatch=monkeypatch) == 2
    assert not (tmp_path / "x" / "detections.json").exists()
    voc = tmp_path / "voc"
    assert command(evaluate.main, voc, *results, "metric=voc07", monkeypatch=monkeypatch) == 0
    assert read_json(voc / "metrics.json")["metrics"].keys() == {"mAP", "AP50", "AP70"}

    other = tmp_path / "other"  # another data set, for which the training images are used
    folder = annotations.parents[1]
    data = [
        "data=coco",
        f"data.val.images={folder / 'train'}",
        f"data.val.annotations={annotations.with_name('instances_train.json')}",
        "data.num_workers=0",
    ]
    sizes = []
    build = building.build_model
    monkeypatch.setattr(
        building, "build_model", lambda *a: sizes.append(a[2].min_size) or build(*a)
    )
    output = f"output={tmp_path / 'new' / 'folder'}"
    assert command(evaluate.main, other, checkpoint, *data, output, monkeypatch=monkeypatch) == 0
    assert sizes == [64]  # min_size of the training, not of data=coco
    other = tmp_path / "new" / "folder"
    images = {d["image_id"] for d in read_json(other / "detections.json")}
    assert images and images <= set(range(1, 13))


def tensorboard_tags(run: Path) -> tuple[set[str], set[str]]:
    """Read the tags of some of a run's scalars and images from its TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    return (
        {"train/loss", "train/lr", "val/AP", "val/AP50"} & set(tags["scalars"]),
        {tag for tag in tags["images"] if tag not in ("val/image_1", "val/image_2")},
    )


def test_conventions_stay_with_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conventions of detectron2's weights are in config.yaml. A resumed run, an exported model
    and a training from that model keep them.
    """
    run, further = tmp_path / "run", tmp_path / "further"
    short = [*TINY, "schedule.epochs=1", "limit_val_batches=2", "deform=none"]
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_train(compose("train", short))
    model = building.build_model(config.model, config.deform, config.data.transform, 6)
    state = model.state_dict()
    numpy = {
        key.replace("backbone.body.", "backbone.bottom_up.").replace("layer", "res"): value.numpy()
        for key, value in state.items()
        if key.startswith("backbone.body.layer") and "num_batches" not in key
    }
    renamed = {
        re.sub(r"res(\d)", lambda found: f"res{int(found[1]) + 1}", key)
        .replace("downsample.0", "shortcut")
        .replace("downsample.1", "shortcut.norm"): value
        for key, value in numpy.items()
    }
    renamed = {re.sub(r"\.bn(\d)\.", r".conv\1.norm.", key): one for key, one in renamed.items()}
    for kind in ("weight", "bias", "running_mean", "running_var"):
        one = state[f"backbone.body.bn1.{kind}"].numpy()
        renamed[f"backbone.bottom_up.stem.conv1.norm.{kind}"] = one
    renamed["backbone.bottom_up.stem.conv1.weight"] = state["backbone.body.conv1.weight"].numpy()
    file = tmp_path / "backbone.pkl"
    file.write_bytes(pickle.dumps({"model": renamed, "__author__": "detectron2"}))

    words = [*short, f"model.weights={file}"]
    assert command(train.main, run, *words, monkeypatch=monkeypatch) == 0
    shown = OmegaConf.load(run / "config.yaml").model.conventions
    assert (shown.framework, shown.channel_order) == ("detectron2", "bgr")
    words[words.index("schedule.epochs=1")] = "schedule.epochs=2"
    assert command(train.main, run, *words, monkeypatch=monkeypatch) == 0
    assert load_checkpoint(run / "checkpoints" / "last.pt")["epoch"] == 2
    export(run / "checkpoints" / "last.pt", tmp_path / "exported")
    words = [*short, f"model.weights={tmp_path / 'exported' / 'model.safetensors'}"]
    assert command(train.main, further, *words, monkeypatch=monkeypatch) == 0
    assert OmegaConf.load(further / "config.yaml").model.conventions == shown


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    plan = [*TINY, "schedule.epochs=3", "schedule.decay=step", "schedule.milestones=[2]"]
    assert command(train.main, whole, *plan, monkeypatch=monkeypatch) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_command.Trainer, "train_epoch", stop_after(2))
        assert command(train.main, broken, *plan, monkeypatch=monkeypatch) == 130
    assert read_json(broken / "summary.json")["status"] == "failed"
    assert command(train.main, broken, *plan, monkeypatch=monkeypatch) == 0
    first, second = (
        torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (whole, broken)
    )
    assert first["step"] == second["step"] == 9
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    for key in ("metrics", "per_class"):
        assert read_json(whole / "summary.json")[key] == read_json(broken / "summary.json")[key]
    losses = [
        [
            (x["step"], x["loss"])
            for x in map(json.loads, (run / "metrics.jsonl").open())
            if "loss" in x
        ]
        for run in (whole, broken)
    ]
    assert losses[0] == losses[1]
    # A finished run that is started again does not train any further, and says so.
    assert "already done" not in (whole / "train.log").read_text()
    assert command(train.main, whole, *plan, monkeypatch=monkeypatch) == 0
    assert read_json(whole / "summary.json")["status"] == "done"
    assert re.search(
        r"already done in \d+:\d\d of training, coco", (whole / "train.log").read_text()
    )


def test_a_stopped_run_names_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preempted(self, record, stop):
        raise Preempted("SIGTERM")

    monkeypatch.setattr(train_command.Trainer, "train_epoch", preempted)
    folder = tmp_path / "run"
    assert command(train.main, folder, *TINY, monkeypatch=monkeypatch) == 75
    said = f"SIGTERM: saved; the same command with hydra.run.dir={folder} resumes the run"
    assert said in (folder / "train.log").read_text()


def test_what_a_resumed_run_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plan = [*TINY, "precision=bfloat16", "schedule.decay=step"]
    assert command(train.main, tmp_path, *plan, "schedule.epochs=1", monkeypatch=monkeypatch) == 0
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as if the run was killed in epoch 2
        file.write(json.dumps({"kind": "train", "step": 4, "loss": 7.0}) + '\n{"kind": "tr')
    further = [*plan, "schedule.epochs=2", "eval_batch_size=2"]
    assert command(train.main, tmp_path, *further, monkeypatch=monkeypatch) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6] and all(line.get("loss") != 7.0 for line in lines)
    assert scalar_steps(tmp_path, "val/AP") == [3, 6]
    before = (tmp_path / "summary.json").read_text()
    for change in ("deform=none", "seed=1", "schedule.lr=0.1"):
        capsys.readouterr()
        assert command(train.main, tmp_path, *plan, change, monkeypatch=monkeypatch) == 1
        assert "last.pt was trained with" in one_line(capsys)
    assert (tmp_path / "summary.json").read_text() == before


def scalar_steps(run: Path, tag: str) -> list[int]:
    """Return the steps at which TensorBoard shows a scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def stop_after(num_epochs: int):
    """Return a `Trainer.train_epoch` that is interrupted after `num_epochs` epochs."""
    train_epoch = train_command.Trainer.train_epoch

    def stopping(self, record, stop):
        if self.epoch == num_epochs:
            raise KeyboardInterrupt
        train_epoch(self, record, stop)

    return stopping


def sweep(folder: Path, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a sweep as from the command line."""
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra.sweep.dir={folder}", *TINY, *words])
    handlers = list(logging.root.handlers)
    try:
        entry.run(train.run_or_sweep)
    finally:
        logging.root.handlers = handlers


def test_a_plan_measures_batches_of_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings: list[Timing] = []
    noted(*(monkeypatch, plan_command, "time_images"), lambda _, timing: timings.append(timing))
    words = [*TINY, "plan=true", "eval_batch_size=5"]  # of the five images
    assert command(train.main, tmp_path, *words, monkeypatch=monkeypatch) == 0
    assert [(timing.batch_size, timing.num_images) for timing in timings] == [(5, 5)]


@pytest.mark.slow
def test_a_sweep_ends_in_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command, started again, trains nothing and writes the same study."""
    words = ["schedule.epochs=1", "+ablation=stages", "deform=none,c5_v2", "seed=0,1"]
    sweep(tmp_path, *words, monkeypatch=monkeypatch)
    study = read_json(tmp_path / "study.json")
    none, deformable = study["arms"]
    assert [none["arm"], deformable["arm"]] == ["none", "c5_v2"] and none["runs"].keys() == {
        "0",
        "1",
    }
    # There are two offset convolutions of shape (27, C, 3, 3) with a bias; C is 256 and 512.
    more = deformable["costs"]["num_parameters"] - none["costs"]["num_parameters"]
    assert more == 27 * ((256 + 512) * 9 + 2)
    assert all(none["costs"][cost] > 0 for cost in ("gflops", "seconds_per_step", "peak_memory"))
    assert (
        none["numbers"]["AP"]["seeds"]["1"]
        == read_json(tmp_path / "1/summary.json")["metrics"]["AP"]
    )
    layers = study["learned"]["c5_v2"]["layers"]
    assert [name for name in layers if layers[name]["is_deformable"]] == [
        "layer4.0.conv1",
        "layer4.0.conv2",
    ]
    assert layers["layer1.0.conv1"]["dilation"]["background"]["mean"] == 1
    assert '"mapped": ["none", "c5_v2"]' in (tmp_path / "study.html").read_text()
    assert not study["left_out"] and (tmp_path / "study.md").exists()

    lines = [json.loads(line) for line in (tmp_path / "2/metrics.jsonl").read_text().splitlines()]
    offsets = [line for line in lines if line["kind"] == "offsets"]
    assert len(offsets) == 1 and set(offsets[0]["layers"]) == {"layer4.0.conv1", "layer4.0.conv2"}
    assert scalar_steps(tmp_path / "2", "offsets p99/layer4.0.conv1") == [3]

    names = ("study.json", "study.md", "study.html")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    monkeypatch.setattr(train_command.Trainer, "train_epoch", None)
    sweep(tmp_path, *words, monkeypatch=monkeypatch)
    for name in names:
        assert (tmp_path / name).read_bytes() == before[name]


@pytest.mark.slow
def test_rows_of_the_papers_table_are_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of the table becomes an arm, although rows differ in several keys."""
    rows = "+ablation/paper_table3=dilation_2,dilation_6,deform_conv,both"
    words = ["schedule.epochs=1", "+ablation=paper_table3", rows, "model.anchor_sizes=[16,32,64]"]
    sweep(tmp_path, *words, monkeypatch=monkeypatch)
    study = read_json(tmp_path / "study.json")
    arms = ["dilation_2", "dilation_6", "deform_conv", "both"]
    assert [arm["arm"] for arm in study["arms"]] == arms
    assert study["baseline"] == "dilation_2" and not study["left_out"]
    plain, wide, deformable, both = (arm["costs"]["num_parameters"] for arm in study["arms"])
    assert plain == wide and deformable - plain == 18 * ((256 + 512) * 9 + 2)
    assert both - deformable == 2 * 49 * (16 * 49 + 1)  # offsets of 49 bins from 16 x 49 values
    layers = study["learned"]["dilation_6"]["layers"]
    assert layers["layer4.0.conv1"]["dilation"]["background"]["mean"] == 6


def test_the_offsets_and_sampling_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run, looks = tmp_path / "run", tmp_path / "looks"
    plan = [*TINY, "schedule.epochs=1", "deform=c5_v1"]
    assert command(train.main, run, *plan, monkeypatch=monkeypatch) == 0
    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.pt'}"

    def look(main, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["look", *words])
        try:
            entry.run(main)
        except SystemExit as stop:
            assert stop.code in (1, 2)
        return capsys.readouterr().err

    assert look(offsets.main, checkpoint) == ""
    layers = read_json(run / "offsets.json")
    assert [name for name, layer in layers.items() if layer["is_deformable"]] == [
        "layer4.0.conv1",
        "layer4.0.conv2",
    ]
    assert "| layer4.0.conv2 | deformable |" in (run / "offsets.md").read_text()
    assert "max_images=0 must be at least 1" in look(offsets.main, checkpoint, "max_images=0")
    assert "give checkpoint=FILE" in look(offsets.main)

    image = tmp_path / "one.png"
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(image)
    words = [checkpoint, f"images={image}", f"output={looks}"]
    look(sampling.main, *words, "points=10,20", "30,40")
    with Image.open(looks / "one.png") as picture:
        assert picture.size[0] > 1000
    assert "points=64,5 is outside" in look(sampling.main, *words, "points=64,5")
    assert "here is not a point; give x,y" in look(sampling.main, *words, "points=here")


def test_a_sweep_that_is_only_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ["schedule.epochs=7", "deform=none,c5_v2", "seed=0,1,2", "plan=true"]
    sweep(tmp_path, *words, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    assert "6 runs of 2 arms" in printed and "nothing was trained" in printed
    plan = read_json(tmp_path / "4" / "plan.json")
    assert plan["steps"] == 7 * 3 and plan["evaluations"] == 7 and plan["images"] == 5
    assert plan["seconds_per_step"] > 0 and plan["seconds_per_image"] > 0
    row = next(line for line in printed.splitlines() if line.startswith("| c5_v2 |"))
    assert row.startswith(f"| c5_v2 | 3 | 21 | {plan['seconds_per_step']:.3f} |")
    assert read_json(tmp_path / "3" / "plan.json") == plan  # an arm is measured only once
    assert not list(tmp_path.glob("*/summary.json")) and not (tmp_path / "study.json").exists()


@pytest.mark.slow
def test_an_arm_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as stop:
        sweep(
            tmp_path,
            *("schedule.epochs=1", "schedule.optimizer=sgd,lion,adamw"),
            monkeypatch=monkeypatch,
        )
    assert stop.value.code == 2
    study = read_json(tmp_path / "study.json")
    assert [arm["arm"] for arm in study["arms"]] == ["sgd", "adamw"]
    ((run, why),) = study["left_out"].items()
    assert Path(run).name == "1" and "failed" in why and "lion" in why


def test_real_images_from_the_command_line(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scored = tmp_path / "run", tmp_path / "scored"
    recipe = [
        "+experiment=aquarium_mini",
        f"data.root={shared_data / 'aquarium_mini'}",
        *("model=resnet18_fpn", "model.weights=null", "model.norm=batch"),
        *("model.trainable_layers=5", "model.rpn_top_n_train=200", "model.rpn_top_n_test=100"),
        *("model.box_batch_size=64", "model.fpn_channels=32", "model.box_head_channels=64"),
        *("data.transform.train_min_sizes=[96]", "data.transform.min_size=96"),
        *("schedule.epochs=1", "model.score_threshold=0.0"),
    ]
    assert command(train.main, run, *recipe, monkeypatch=monkeypatch) == 0
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.pt'}"
    assert command(evaluate.main, scored, checkpoint, monkeypatch=monkeypatch) == 0
    summary, metrics = read_json(run / "summary.json"), read_json(scored / "metrics.json")
    assert summary["metrics"] == pytest.approx(metrics["metrics"], abs=1e-6)
    assert set(summary["per_class"]) >= {"fish", "jellyfish", "penguin", "stingray"}
    assert read_json(scored / "detections.json")


# ---- options that are off by default --------------------------------------------------------


def lines_of(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def noted(monkeypatch: pytest.MonkeyPatch, module, name: str, note) -> None:
    """Replace a function of a module by one that also passes its arguments and its result to
    `note` at each call.
    """
    function = getattr(module, name)

    def noting(*args, **kwargs):
        result = function(*args, **kwargs)
        note(args, result)
        return result

    monkeypatch.setattr(module, name, noting)


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.slow
def test_the_average_is_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[dict[str, torch.Tensor]] = []
    for module, name in (
        (validation, "detect"),
        (train_command, "draw"),
        (evaluate_checkpoint, "detect"),
    ):
        noted(
            *(monkeypatch, module, name),
            # evaluate.py passes a wrapper with the model in its attribute `model`.
            lambda args, _: used.append(state_of(getattr(args[0], "model", args[0]))),
        )
    run, broken, scored = tmp_path / "run", tmp_path / "broken", tmp_path / "scored"
    plan = [*TINY, "schedule.ema_decay=0.75", "schedule.decay=step", "limit_train_batches=1"]
    plan += ["keep_every=1", "schedule.evaluate_every=9"]
    assert command(train.main, run, *plan, "schedule.epochs=3", monkeypatch=monkeypatch) == 0

    paths = [run / "checkpoints" / f"step_{step}.pt" for step in (1, 2, 3)]
    first, second, third = (load_checkpoint(path)["model"] for path in paths)
    last = load_checkpoint(run / "checkpoints" / "last.pt")
    average = trained_weights(last)
    # The average starts as the first weights; each step takes 3/4 of it and 1/4 of the new weights.
    name = "backbone.body.layer1.0.conv1.weight"
    expected = 0.5625 * first[name].double() + 0.1875 * second[name] + 0.25 * third[name]
    torch.testing.assert_close(average[name].double(), expected, rtol=1e-6, atol=1e-8)
    assert not torch.equal(average[name], last["model"][name])

    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.pt'}"
    assert command(evaluate.main, scored, checkpoint, monkeypatch=monkeypatch) == 0
    assert len(used) == 3
    for state in used:
        assert_equal(state, average)
    export(run / "checkpoints" / "last.pt", tmp_path / "export")
    assert_equal(safetensors.torch.load_file(tmp_path / "export" / "model.safetensors"), average)

    for epochs in (1, 3):
        change = f"schedule.epochs={epochs}"
        assert command(train.main, broken, *plan, change, monkeypatch=monkeypatch) == 0
    assert_equal(load_checkpoint(broken / "checkpoints" / "last.pt")["ema"], last["ema"])


def test_a_step_that_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, calls = loop.compute_losses, []

    def poisoned(model, samples, *args):
        calls.append([sample["image_id"] for sample in samples])
        losses = compute(model, samples, *args)
        return {
            name: value * (math.nan if len(calls) == 2 else 1) for name, value in losses.items()
        }

    monkeypatch.setattr(loop, "compute_losses", poisoned)
    plan = [*TINY, "schedule.epochs=1", "max_skipped_steps=1"]
    assert command(train.main, tmp_path, *plan, monkeypatch=monkeypatch) == 0
    assert read_json(tmp_path / "summary.json")["skipped_steps"] == 1
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["skipped"] == 1
    losses = [line["loss"] for line in lines_of(tmp_path, "train")]
    assert losses[1] is None and losses[0] > 0 and losses[2] > 0
    (line,) = (x for x in (tmp_path / "train.log").read_text().splitlines() if "left out (1" in x)
    assert f"image ids {', '.join(map(str, calls[1]))}" in line


def test_patience_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.1, 0.3, 0.2, 0.3, 0.25])

    def validate(*args, **kwargs) -> Validation:
        numbers = {"AP": next(found)}
        ours = {"metrics": numbers, "per_class": {}, "seconds_per_image": 0.1}
        return Validation(ours, Metrics(numbers, {}), as_detections([]), OffsetSizes())

    monkeypatch.setattr(train_command, "validate", validate)
    plan = [*TINY, "limit_train_batches=1", "schedule.epochs=9", "schedule.decay=step"]
    for _ in range(2):  # epochs 3 and 4 do not exceed 0.3 of epoch 2; a second start ends the same
        stops = [*plan, "schedule.patience=2"]
        assert command(train.main, tmp_path, *stops, monkeypatch=monkeypatch) == 0
        summary = read_json(tmp_path / "summary.json")
        assert (summary["status"], summary["epochs"]) == ("done", 4)
        assert summary["metrics"] == {"AP": 0.3}
    assert load_checkpoint(tmp_path / "checkpoints" / "best.pt")["epoch"] == 2
    log = (tmp_path / "train.log").read_text()
    assert log.count("no improvement in the last 2 evaluations: the run ends") == 2
    more = [*plan, "schedule.patience=3"]  # the run continues where it stopped
    assert command(train.main, tmp_path, *more, monkeypatch=monkeypatch) == 0
    assert read_json(tmp_path / "summary.json")["epochs"] == 5
    assert [line["AP"] for line in lines_of(tmp_path, "val")] == [0.1, 0.3, 0.2, 0.3, 0.25]
    log = (tmp_path / "train.log").read_text()  # names the best value, not the last one
    assert f"The best checkpoint, with AP 30.0, is {tmp_path}/checkpoints/best.pt" in log


def test_a_run_without_improvement_on_the_checkpoint_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([0.3, 0.2])

    def validate(*args, **kwargs) -> Validation:
        numbers = {"AP": next(found)}
        ours = {"metrics": numbers, "per_class": {}, "seconds_per_image": 0.1}
        return Validation(ours, Metrics(numbers, {}), as_detections([]), OffsetSizes())

    monkeypatch.setattr(train_command, "validate", validate)
    plan = [*TINY, "limit_train_batches=1", "schedule.decay=step"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert command(train.main, first, *plan, "schedule.epochs=1", monkeypatch=monkeypatch) == 0
    assert "warmup_steps=2 of a run of 1 steps" in (first / "train.log").read_text()
    more = ["schedule.epochs=2", f"resume={first / 'checkpoints' / 'last.pt'}"]
    assert command(train.main, second, *plan, *more, monkeypatch=monkeypatch) == 0
    log = (second / "train.log").read_text()
    assert f"The last checkpoint is {second}/checkpoints/last.pt" in log
    assert f"python evaluate.py checkpoint={second}/checkpoints/last.pt" in log


def test_fewer_epochs_than_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [*TINY, "limit_train_batches=1", "schedule.evaluate_every=9", "schedule.decay=step"]
    with monkeypatch.context() as patch:
        patch.setattr(train_command.Trainer, "train_epoch", stop_after(2))
        longer = [*plan, "schedule.epochs=3"]
        assert command(train.main, tmp_path, *longer, monkeypatch=monkeypatch) == 130
    assert command(train.main, tmp_path, *plan, "schedule.epochs=1", monkeypatch=monkeypatch) == 0
    summary = read_json(tmp_path / "summary.json")
    assert summary["epochs"] == 2 and len(summary["metrics"]) == 12


def image_ids(monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], list[int]]:
    """Return the ids of the images that are trained on and evaluated; later runs fill them in."""
    trained: set[int] = set()
    evaluated: list[int] = []
    noted(
        *(monkeypatch, loop, "compute_losses"),
        lambda args, _: trained.update(sample["image_id"] for sample in args[1]),
    )
    noted(
        *(monkeypatch, validation, "detect"),
        lambda _, result: evaluated.extend(found.image_id for found in result[0]),
    )
    return trained, evaluated


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, evaluated = image_ids(monkeypatch)
    plan = [*TINY, "schedule.epochs=2", "schedule.evaluate_every=2"]
    plan += ["limit_train_batches=2", "limit_val_batches=3"]
    assert command(train.main, tmp_path, *plan, monkeypatch=monkeypatch) == 0
    steps = [(line["epoch"], line["step"]) for line in lines_of(tmp_path, "train")]
    assert steps == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert evaluated == [1, 2, 3]
    assert len(trained) > 8  # of 12 images: the two epochs have different images


def test_overfitting_some_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, evaluated = image_ids(monkeypatch)
    plan = [*TINY, "schedule.epochs=2", "schedule.evaluate_every=2", "overfit=4"]
    assert command(train.main, tmp_path, *plan, monkeypatch=monkeypatch) == 0
    assert [line["step"] for line in lines_of(tmp_path, "train")] == [1, 2]
    assert trained == {1, 2, 3, 4} and evaluated == [1, 2, 3, 4]
    log = (tmp_path / "train.log").read_text()
    assert "validation is on the training images" in log


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in lines_of(run, "train")]


@pytest.mark.slow
def test_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = [*TINY, "schedule.decay=step", "limit_train_batches=1", "schedule.evaluate_every=9"]
    for run, precision, epochs in (
        *(("exact", "float32", 2), ("whole", "float16", 2)),
        *(("broken", "float16", 1), ("broken", "float16", 2)),
    ):
        how = [*plan, f"precision={precision}", f"schedule.epochs={epochs}"]
        assert command(train.main, tmp_path / run, *how, monkeypatch=monkeypatch) == 0
    exact, rounded = losses_of(tmp_path / "exact"), losses_of(tmp_path / "whole")
    # With untrained weights, rounding changes a few proposals.
    assert rounded == pytest.approx(exact, rel=0.05) and rounded != exact
    whole, broken = (
        load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "broken")
    )
    assert_equal(whole["model"], broken["model"])
    assert whole["scaler"] == broken["scaler"] and whole["scaler"]["scale"] >= 1
    assert {value.dtype for value in whole["model"].values()} == {torch.float32, torch.int64}


@pytest.mark.slow
def test_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    seen: list[bool] = []
    noted(
        *(monkeypatch, loop, "compute_losses"),
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()),
    )
    plan = [*TINY, "schedule.epochs=1", "limit_train_batches=2"]
    try:
        for run, wanted in (("a", "true"), ("b", "true"), ("c", "false")):
            how = [*plan, f"deterministic={wanted}"]
            assert command(train.main, tmp_path / run, *how, monkeypatch=monkeypatch) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [True] * 4 + [False] * 2
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")


@pytest.mark.slow
def test_compiled_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Evaluation is replaced, because it would need another compilation.
    nothing = {"metrics": {"AP": 0.0}, "per_class": {}}
    found = Validation(nothing, Metrics({"AP": 0.0}, {}), as_detections([]), OffsetSizes())
    monkeypatch.setattr(train_command, "validate", lambda *args, **kwargs: found)
    monkeypatch.setattr(train_command, "draw", lambda *args: [])
    plan = [*TINY, "schedule.epochs=1", "limit_train_batches=2"]
    for compiled in ("false", "true"):
        how = [*plan, f"compile={compiled}"]
        assert command(train.main, tmp_path / compiled, *how, monkeypatch=monkeypatch) == 0
    assert losses_of(tmp_path / "true") == pytest.approx(losses_of(tmp_path / "false"), rel=1e-3)
    assert "NMS, RoI pooling and losses stay eager" in (tmp_path / "true/train.log").read_text()
    plain, compiled = (
        load_checkpoint(tmp_path / run / "checkpoints" / "last.pt") for run in ("false", "true")
    )
    assert plain["model"].keys() == compiled["model"].keys()
    checkpoint = f"checkpoint={tmp_path / 'true' / 'checkpoints' / 'last.pt'}"
    scored = tmp_path / "scored"  # evaluation does not compile the model
    assert command(evaluate.main, scored, checkpoint, monkeypatch=monkeypatch) == 0


# ---- errors: one line that names the culprit; exit code 2 for the configuration, otherwise 1 -----


def small_coco(folder: Path, **change) -> list[str]:
    """Write a COCO data set of one 40x30 image with one object; return the words that select it.

    Args:
        change: `image` and `annotation` replace keys of the image's and the object's entry.
    """
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "images" / "one.png")
    content = {
        "images": [{"id": 1, "file_name": "one.png", "width": 40, "height": 30}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 12], "iscrowd": 0}
        ],
        "categories": [{"id": 2, "name": "fish"}],
    }
    content["images"][0] |= change.get("image", {})
    content["annotations"][0] |= change.get("annotation", {})
    (folder / "gt.json").write_text(json.dumps(content))
    paths = {"images": folder / "images", "annotations": folder / "gt.json"}
    return ["data=coco", "data.num_workers=0"] + [
        f"data.{split}.{key}={path}" for split in ("train", "val") for key, path in paths.items()
    ]


def one_line(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "overrides, culprits",
    [
        (["schedule.epoch=3"], ["schedule.epoch", "did you mean schedule.epochs?"]),
        (["data.root=x"], ["data.root belongs to data=coco and data=voc"]),
        (["schedule.epochs=many"], ["schedule.epochs", "many"]),
        (["model=resnet9000"], ["model/resnet9000"]),
        (["deform.stages=c9"], ["deform.stages=c9"]),
        (["metric=f1"], ["metric=f1"]),
        (["precision=int8"], ["precision=int8"]),
        (["device=cuda:99"], ["device=cuda:99"]),
        (["schedule.optimizer=lion"], ["schedule.optimizer=lion"]),
        (["schedule.decay=linear"], ["schedule.decay=linear"]),
        (["data.transform.flip_probability=2"], ["data.transform", "flip_probability=2"]),
        (["data.num_train="], ["data.num_train"]),
        (["data.on_error=skip"], ["data.on_error=skip"]),
        (["data.transform.min_size=0"], ["data.transform.min_size=0 must be at least 1"]),
        (["data.num_train=0"], ["data.num_train=0 must be at least 1"]),
        (["schedule.batch_size=0"], ["schedule.batch_size=0"]),
        (["deform.mask_start=7"], ["deform.mask_start=7"]),
        (["model.norm=frozen_batch"], ["model.weights=null", "frozen_batch"]),
    ],
)
def test_errors_of_the_configuration(
    overrides: list[str],
    culprits: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert command(train.main, tmp_path, *TINY, *overrides, monkeypatch=monkeypatch) == 2
    line = one_line(capsys)
    assert all(culprit in line for culprit in culprits), line


def test_a_missing_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert command(train.main, tmp_path, "data=coco", monkeypatch=monkeypatch) == 2
    line = one_line(capsys)
    assert "data.train.images=FOLDER data.train.annotations=FILE data.val.images=FOLDER" in line
    assert command(train.main, tmp_path, "data=voc", monkeypatch=monkeypatch) == 2
    assert "missing: give data.root=FOLDER" in one_line(capsys)
    assert command(train.main, tmp_path, "data=voc", "data.root=x", monkeypatch=monkeypatch) == 2
    assert "data.root=x: no such folder" in one_line(capsys)


@pytest.mark.parametrize(
    "change, culprits",
    [
        ({"image": {"file_name": "two.png"}}, ["gt.json", "two.png"]),
        ({"annotation": {"bbox": [35, 2, 10, 12]}}, ["gt.json", "id 5", "40x30"]),
        ({"image": {"width": 41}}, ["one.png", "41x30", "40x30"]),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_data(
    change: dict,
    culprits: list[str],
    num_workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    plan = [*TINY[:4], "schedule.batch_size=1", "schedule.epochs=1"]
    data = [*small_coco(tmp_path / "data", **change), f"data.num_workers={num_workers}"]
    run = tmp_path / "run"
    assert command(train.main, run, *plan, *data, monkeypatch=monkeypatch) == 1
    line = one_line(capsys)
    assert all(culprit in line for culprit in culprits) and "Traceback" not in line, line
    assert read_json(run / "summary.json")["status"] == "failed"


def test_broken_data_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = small_coco(tmp_path / "data")
    content = read_json(tmp_path / "data" / "gt.json")
    images = tmp_path / "data" / "images"
    (fish,), image = content["annotations"], content["images"][0]
    for number in (2, 3):
        Image.fromarray(np.full((30, 40, 3), number, np.uint8)).save(images / f"{number}.png")
        content["images"].append({**image, "id": number, "file_name": f"{number}.png"})
        content["annotations"].append({**fish, "id": 5 + number, "image_id": number})
    content["annotations"].append({**fish, "id": 9, "bbox": [90, 2, 10, 12]})
    (tmp_path / "data" / "gt.json").write_text(json.dumps(content))
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[:-20])  # the header remains readable
    plan = [*TINY[:4], "schedule.batch_size=2", "schedule.epochs=1", *data]
    plan += [f"data.transform.{key}=64" for key in ("min_size", "max_size")]
    plan += ["data.transform.train_min_sizes=[64]", "data.group_by_aspect=false"]

    stopped, run, scored = (tmp_path / name for name in ("stopped", "run", "scored"))
    assert command(train.main, stopped, *plan, monkeypatch=monkeypatch) == 1
    assert "annotations[3] (id 9)" in one_line(capsys)
    report = read_json(stopped / "data_check.json")
    assert [p["kind"] for p in report["problems"]].count("box outside its image") == 2

    trained, evaluated = image_ids(monkeypatch)
    assert command(train.main, run, *plan, "data.on_error=warn", monkeypatch=monkeypatch) == 0
    assert trained == {1, 3} and evaluated == [1, 3]
    report = read_json(run / "data_check.json")
    (broken,) = {p["file"] for p in report["problems"] if p["kind"] == "image unreadable"}
    assert broken == str(images / "2.png") and report["errors"] == 4
    log = (run / "train.log").read_text()
    assert "error: 1 x image unreadable in train, such as 2.png" in log
    assert "warning: 3 x image shared in val, such as" in log

    checkpoint = f"checkpoint={run / 'checkpoints' / 'last.pt'}"
    assert command(evaluate.main, scored, checkpoint, monkeypatch=monkeypatch) == 0
    assert (
        read_json(scored / "metrics.json")["metrics"] == read_json(run / "summary.json")["metrics"]
    )
    assert read_json(scored / "data_check.json")["errors"] == 2
    capsys.readouterr()
    strict = [checkpoint, "data=coco", *data[1:2], *data[4:], "data.on_error=stop"]
    assert command(evaluate.main, scored, *strict, monkeypatch=monkeypatch) == 1
    assert "annotations[3] (id 9)" in one_line(capsys)
    assert command(evaluate.main, scored, *strict[:-2], monkeypatch=monkeypatch) == 2
    assert "missing: give data.val.annotations=FILE" in one_line(capsys)

    (images / "2.png").write_bytes(whole)  # a resumed run would now train on this image too
    more = ["data.on_error=warn", "schedule.epochs=2"]
    assert command(train.main, run, *plan, *more, monkeypatch=monkeypatch) == 1
    assert "not those that the run began with" in one_line(capsys)


def test_a_signal_ends_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_problems, "_header", lambda path: pytest.fail("the check went on"))
    with initialize_config_dir(str(entry.CONFIGS), version_base="1.3"):
        config = parse_train(compose("train", overrides=small_coco(tmp_path / "data")))
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    with pytest.raises(Preempted, match="SIGTERM"):
        training_data.load_data(config, tmp_path, Ranks(), stop)


def test_the_first_rank_checks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*small_coco(tmp_path / "data"), "data.on_error=warn"]
    content = read_json(tmp_path / "data" / "gt.json")
    content["images"].append({**content["images"][0], "id": 2})
    (tmp_path / "data" / "gt.json").write_text(json.dumps(content))
    with initialize_config_dir(str(entry.CONFIGS), version_base="1.3"):
        config = parse_train(compose("train", overrides=words))
    broken = Problem("error", "train", "image unreadable", "why", "one.png", 1)

    class Second(Ranks):
        def broadcast(self, item: list) -> list:
            assert item == []
            return [broken]

        def all_gather(self, item: object) -> list:
            return [None, item]

        def barrier(self, meanwhile: object = None) -> None:
            pass

    monkeypatch.setattr(training_data, "check_data", lambda *_: pytest.fail("rank 1 checks too"))
    train_set, val_set = training_data.load_data(config, tmp_path, Second(1, 2, 1), StopRequest())
    assert [record.image_id for record in train_set.records] == [2]
    assert [record.image_id for record in val_set.records] == [1, 2]
    assert not (tmp_path / "data_check.json").exists()


def test_a_missing_annotation_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = [*small_coco(tmp_path / "data"), "data.val.annotations=nowhere.json"]
    assert command(train.main, tmp_path / "run", *data, monkeypatch=monkeypatch) == 1
    assert "nowhere.json" in one_line(capsys)


def test_errors_of_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(code: int, culprit: str, *overrides: str) -> None:
        assert command(evaluate.main, tmp_path, *overrides, monkeypatch=monkeypatch) == code
        assert culprit in one_line(capsys)

    (tmp_path / "junk.pt").write_bytes(b"junk")
    fails(2, "checkpoint=PATH")
    fails(2, "data.annotations", "detections=x.json")
    fails(2, "chekpoint", "chekpoint=x")
    fails(1, "junk.pt", f"checkpoint={tmp_path / 'junk.pt'}")
    fails(1, "nowhere.json", "detections=x.json", "data.annotations=nowhere.json")
    fails(1, f"{tmp_path}: cannot be read: is not a file", f"checkpoint={tmp_path}")
    folder = [f"detections={tmp_path}", f"data.annotations={tmp_path}"]
    fails(1, f"{tmp_path}: cannot be read: is not a file", *folder)
    fails(2, "iou_thresholds=[0.0]", *folder, "metric=voc07", "iou_thresholds=[0]")
    fails(2, "timing_images=-1", "checkpoint=x", "timing_images=-1")
    fails(2, "eval_batch_size=0", "checkpoint=x", "eval_batch_size=0")
    one = {"images": [{"id": 1}], "annotations": [], "categories": []}
    (tmp_path / "gt.json").write_text(json.dumps(one))
    (tmp_path / "dt.json").write_text("[]")
    results = [f"detections={tmp_path / 'dt.json'}", f"data.annotations={tmp_path / 'gt.json'}"]
    fails(
        1, "dt.json/folder: Not a directory", *results, f"output={tmp_path / 'dt.json' / 'folder'}"
    )
    both = [*results, f"compare_with={tmp_path / 'dt.json'}", "resamples=1000000000000000"]
    fails(1, "out of memory", *both)


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plan = [*TINY, "schedule.epochs=1", "schedule.lr=1e30", "schedule.clip_norm=null"]
    plan += ["schedule.optimizer=sgd", "schedule.warmup_steps=0"]
    assert command(train.main, tmp_path, *plan, monkeypatch=monkeypatch) == 1
    line = one_line(capsys)
    assert "not finite" in line and "loss_objectness" in line and "image ids" in line
    assert "NonFiniteError" in read_json(tmp_path / "summary.json")["error"]
    dump = torch.load(tmp_path / "not_finite.pt", weights_only=True)
    assert f"in {tmp_path / 'not_finite.pt'}" in line
    assert len(dump["samples"]) == 4 and dump["samples"][0]["image"].dtype == torch.uint8
    assert all(str(sample["image_id"]) in line for sample in dump["samples"])


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_scripts_start_from_the_command_line(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = Path(__file__).resolve().parents[1] / program
    monkeypatch.setattr(sys, "argv", [str(path), "nonsense=1"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 2 and "nonsense" in one_line(capsys)
