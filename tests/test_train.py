"""Training and evaluation as a user runs them, on a few tiny images."""

import json
import logging
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import train
from detector import entry

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
    """Generated data is kept between these tests, and apart from the user's."""
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
        logging.root.handlers = handlers  # Hydra's write into the run folder
    return 0


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_run_and_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    assert command(train.main, run, *TINY, "schedule.epochs=2", monkeypatch=monkeypatch) == 0

    summary = read_json(run / "summary.json")
    assert summary["status"] == "done" and summary["seed"] == 0
    assert len(summary["metrics"]) == 12 and 0 <= summary["metrics"]["AP50"] <= 1
    assert len(summary["per_class"]) == 6
    assert summary["train_seconds"] > 0 and summary["images_per_second"] > 0
    assert summary["num_parameters"] > 4e6 and len(summary["config_hash"]) == 12
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines if line["kind"] == "val"] == [1, 2]
    assert "ETA" in (run / "train.log").read_text()
    assert "stages: c3-c5" in (run / "config.yaml").read_text()
    assert tensorboard_tags(run) == (
        {"train/loss", "train/lr", "val/AP", "val/AP50"},
        {"val/image_0", "val/image_3"},
    )

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
    voc = tmp_path / "voc"
    assert command(evaluate.main, voc, *results, "metric=voc07", monkeypatch=monkeypatch) == 0
    assert read_json(voc / "metrics.json")["metrics"].keys() == {"mAP", "AP50"}

    other = tmp_path / "other"  # another data set: the training images, as if they were new ones
    folder = annotations.parents[1]
    data = [
        "data=coco",
        f"data.val.images={folder / 'train'}",
        f"data.val.annotations={annotations.with_name('instances_train.json')}",
        "data.num_workers=0",
    ]
    sizes = []
    build = evaluate.build_model
    monkeypatch.setattr(
        evaluate, "build_model", lambda *a: sizes.append(a[2].min_size) or build(*a)
    )
    output = f"output={tmp_path / 'new' / 'folder'}"
    assert command(evaluate.main, other, checkpoint, *data, output, monkeypatch=monkeypatch) == 0
    assert sizes == [64]  # of the training, whatever data=coco says
    other = tmp_path / "new" / "folder"
    images = {d["image_id"] for d in read_json(other / "detections.json")}
    assert images and images <= set(range(1, 13))


def tensorboard_tags(run: Path) -> tuple[set[str], set[str]]:
    """Some of the scalars and images of a run, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    return (
        {"train/loss", "train/lr", "val/AP", "val/AP50"} & set(tags["scalars"]),
        {"val/image_0", "val/image_3"} & set(tags["images"]),
    )


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    plan = [*TINY, "schedule.epochs=3", "schedule.decay=step", "schedule.milestones=[2]"]
    assert command(train.main, whole, *plan, monkeypatch=monkeypatch) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_epoch", stop_after(2))
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
    # A finished run that is started again only says what it found.
    assert command(train.main, whole, *plan, monkeypatch=monkeypatch) == 0
    assert read_json(whole / "summary.json")["status"] == "done"


def test_what_a_resumed_run_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plan = [*TINY, "precision=bfloat16", "schedule.decay=step"]
    assert command(train.main, tmp_path, *plan, "schedule.epochs=1", monkeypatch=monkeypatch) == 0
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as if it had been killed in epoch 2
        file.write(json.dumps({"kind": "train", "step": 4, "loss": 7.0}) + '\n{"kind": "tr')
    assert command(train.main, tmp_path, *plan, "schedule.epochs=2", monkeypatch=monkeypatch) == 0
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
    """The steps at which TensorBoard shows a scalar."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def stop_after(num_epochs: int):
    """A `Trainer.train_epoch` that is interrupted once that many epochs are done."""
    train_epoch = train.Trainer.train_epoch

    def stopping(self, record, stop):
        if self.epoch == num_epochs:
            raise KeyboardInterrupt
        train_epoch(self, record, stop)

    return stopping


def test_an_ablation_ends_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [*TINY, "schedule.epochs=1", "+ablation=stages", "deform=none,c5_v1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra.sweep.dir={tmp_path}", *arms])
    handlers = list(logging.root.handlers)
    entry.run(train.main)
    logging.root.handlers = handlers
    header, _, *rows = (tmp_path / "ablation.md").read_text().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert [name for name in cells[0] if name in ("AP", "M parameters", "s/image")] == [
        "AP",
        "M parameters",
        "s/image",
    ]
    assert len(cells) == 3 and "deform=none" in cells[1][0] and "deform=c5_v1" in cells[2][0]
    parameters = cells[0].index("M parameters")
    # 2 offset convolutions (18, C, 3, 3) with a bias: C is 256 and 512
    more = float(cells[2][parameters]) - float(cells[1][parameters])
    assert more == pytest.approx(18 * ((256 + 512) * 9 + 2) / 1e6, abs=0.011)


def test_an_arm_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = [*TINY, "schedule.epochs=1", "schedule.optimizer=sgd,lion,adamw"]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", f"hydra.sweep.dir={tmp_path}", *arms])
    handlers = list(logging.root.handlers)
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main)
    logging.root.handlers = handlers
    assert stop.value.code == 2
    rows = (tmp_path / "ablation.md").read_text().splitlines()[2:]
    assert len(rows) == 3 and "failed" in rows[1] and "failed" not in rows[0] + rows[2]


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


# ---- errors: one line that names the culprit, exit code 2 for the configuration's, else 1 -------


def small_coco(folder: Path, **change) -> list[str]:
    """One 40x30 image with one object; `change` replaces keys of its annotation or image."""
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
        (["schedule.epoch=3"], ["Could not override 'schedule.epoch'"]),
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
    assert "data.train.images: Missing mandatory value" in one_line(capsys)


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
