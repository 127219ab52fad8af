"""predict.py, run as from the command line with the checkpoint of a tiny model."""

import csv
import json
import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

import predict
from detector import entry
from detector.builders.model import build_model
from detector.commands import predict as predict_command
from detector.commands import prediction_files
from detector.config import parse_train, to_plain
from detector.evaluation.coco_format import as_ground_truth
from detector.evaluation.inference import detect
from detector.evaluation.result_files import read_results
from detector.training.checkpoint import KEYS, save_checkpoint

CLASSES = ["fish", "sea|star"]
TINY = [
    "model.backbone=resnet10",
    "model.fpn_channels=16",
    "model.box_head_channels=16",
    "model.anchor_sizes=[8,16,24,32,64]",
    "model.score_threshold=0.0",
    "model.detections_per_image=5",
    "data.transform.min_size=64",
    "data.transform.max_size=64",
]


@pytest.fixture(scope="module")
def trained() -> tuple[dict, torch.nn.Module]:
    """Return the configuration of a checkpoint, and a model with its weights."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_train(compose("train", TINY))
    torch.manual_seed(0)
    model = build_model(config.model, config.deform, config.data.transform, len(CLASSES))
    return to_plain(config), model.eval()


@pytest.fixture
def checkpoint(trained: tuple[dict, torch.nn.Module], tmp_path: Path) -> Path:
    config, model = trained
    content = dict.fromkeys(KEYS) | {"config": config, "classes": CLASSES, "category_ids": [3, 9]}
    save_checkpoint(tmp_path / "last.pt", content | {"model": model.state_dict()})
    return tmp_path / "last.pt"


def noise(seed: int, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write b.png, c.JPG, d.webp, more/e.png, a text file, a.jpg, which is not an image, and z.png,
    which is truncated.
    """
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    noise(0, 40, 60).save(folder / "b.png")
    noise(1, 50, 30).save(folder / "c.JPG")
    noise(2, 30, 30).save(folder / "d.webp", lossless=True)
    noise(3, 30, 30).save(folder / "more" / "e.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "a.jpg").write_text("<html>not found</html>")
    (folder / "z.png").write_bytes((folder / "b.png").read_bytes()[:2000])
    return folder


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    """Run predict.py as from the command line; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["predict.py", f"hydra.run.dir={folder}", *overrides])
    handlers = list(logging.root.handlers)
    try:
        entry.run(predict.main)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    finally:
        logging.root.handlers = handlers  # removes those of Hydra, which write to the run folder
    return 0


def one_line(capsys: pytest.CaptureFixture) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_folder(
    trained: tuple[dict, torch.nn.Module],
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "new" / "folder"
    arguments = [f"checkpoint={checkpoint}", f"images={images}", f"output={output}"]
    arguments += ["min_score=0.3", "device=cpu"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 1
    assert "2 of 6 images" in one_line(capsys)
    said = (tmp_path / "run" / "predict.log").read_text()
    assert "left out: " + str(images / "a.jpg") in said and str(images / "z.png") in said
    assert "4 images in" in said
    assert "ignored files that are not images: 1 .txt" in said

    predictions = json.loads((output / "predictions.json").read_text())
    assert [one["file"] for one in predictions] == ["b.png", "c.JPG", "d.webp", "more/e.png"]
    assert [(one["width"], one["height"]) for one in predictions[:2]] == [(60, 40), (30, 50)]
    drawn = output / "drawn"
    names = {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.*")}
    assert names == {"b.png", "c.JPG", "d.webp.png", "more/e.png"}

    # Compare with the detections of the code that evaluates.
    image = torch.from_numpy(np.array(Image.open(images / "b.png"))).permute(2, 0, 1)
    sample = {"image": image, "image_id": 1}
    cpu = torch.device("cpu")
    (found,), _ = detect(trained[1], [[sample]], device=cpu, precision=torch.float32)  # type: ignore[list-item]
    seen = found.scores >= 0.3
    corners = found.boxes + np.pad(found.boxes[:, :2], ((0, 0), (2, 0)))
    assert seen.any()
    ours = predictions[0]["predictions"]
    assert [one["label"] for one in ours] == found.labels[seen].tolist()
    assert [one["class"] for one in ours] == [CLASSES[label - 1] for label in found.labels[seen]]
    assert [one["score"] for one in ours] == pytest.approx(found.scores[seen].tolist(), abs=1e-6)
    boxes = np.array([one["box"] for one in ours])
    np.testing.assert_allclose(boxes, corners[seen], atol=1e-3)
    with Image.open(drawn / "b.png") as picture, Image.open(images / "b.png") as plain:
        assert picture.size == plain.size and picture.tobytes() != plain.tobytes()


def test_one_file_and_nothing_found(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"checkpoint={checkpoint}", f"images={images / 'b.png'}", "min_score=1"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 0
    (prediction,) = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert prediction == {"file": "b.png", "width": 60, "height": 40, "predictions": []}
    assert "b.png: nothing" in (tmp_path / "run" / "predict.log").read_text()
    with Image.open(tmp_path / "run" / "drawn" / "b.png") as picture:
        assert picture.tobytes() == noise(0, 40, 60).tobytes()


def test_pictures_do_not_replace_each_other() -> None:
    twins = [Path("a.jpg"), Path("a.png"), Path("b/c.jpg")]
    texts = ["a.jpg.txt", "a.png.txt", "b/c.txt"]
    assert prediction_files.text_names(twins, Path()) == dict(zip(twins, texts, strict=True))
    paths = [Path(name) for name in ("x.webp", "x.webp.png", "x.webp.png.png", "y.bmp", "z.JPG")]
    names = ["x.webp.png.png.png", "x.webp.png", "x.webp.png.png", "y.bmp.png", "z.JPG"]
    assert prediction_files.drawn_names(paths, Path()) == dict(zip(paths, names, strict=True))


def test_boxes_are_drawn_where_they_are() -> None:
    prediction = {"class": "fish", "label": 2, "score": 0.75, "box": [40.0, 50.0, 80.0, 90.0]}
    picture = prediction_files.draw(torch.zeros(3, 100, 120, dtype=torch.uint8), [prediction])
    rows, columns = np.nonzero((np.asarray(picture) == (0, 255, 0)).all(axis=2))
    assert (columns >= 38).all() and columns.max() <= 82 and 88 <= rows.max() <= 92
    assert (rows == 70).any() and not ((rows == 70) & (columns == 60)).any()


def test_images_are_upright(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated: rows of the file are columns of the image
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[0, 0] = 255  # the file's first pixel is at the upper right of the image
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    arguments = [f"checkpoint={checkpoint}", f"images={tmp_path / 'turned.png'}", "min_score=1"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 0
    (prediction,) = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert (prediction["width"], prediction["height"]) == (4, 6)
    with Image.open(tmp_path / "run" / "drawn" / "turned.png") as picture:
        drawn = np.asarray(picture)
    assert drawn.shape == (6, 4, 3)
    assert drawn[0, 3].tolist() == [255] * 3 and int(drawn.sum()) == 3 * 255


def test_kinds_of_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """TIFF and the first frame of a GIF are read, an error names a package for HEIC, and subfolders
    are not read with recursive=false.
    """
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    frames = [noise(seed, 20, 30) for seed in (0, 1)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "b.tif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((20, 30), 0x8000, np.uint16)).save(folder / "deep.tiff")
    (folder / "c.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    noise(2, 20, 30).save(folder / "below" / "d.png")
    arguments = [f"checkpoint={checkpoint}", f"images={folder}", "min_score=1", "recursive=false"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 1
    assert "1 of 4 images" in one_line(capsys)
    assert "HEIC or AVIF: convert it" in (tmp_path / "run" / "predict.log").read_text()
    with Image.open(tmp_path / "run" / "drawn" / "b.tif.png") as picture:
        assert picture.tobytes() == frames[0].tobytes()
    with Image.open(tmp_path / "run" / "drawn" / "a.gif.png") as picture:
        assert (
            np.abs(np.asarray(picture).astype(int) - np.asarray(frames[0])).mean() < 20
        )  # a GIF has a palette of 256 colours
    with Image.open(tmp_path / "run" / "drawn" / "deep.tiff.png") as picture:
        assert np.unique(picture).tolist() == [0x80]


def test_what_is_saved(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO, YOLO and CSV files agree with predictions.json, and crops are parts of the image."""
    arguments = [f"checkpoint={checkpoint}", f"images={images / 'b.png'}", "min_score=0.1"]
    arguments += ["save=[crops,coco,yolo,csv]"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 0
    run = tmp_path / "run"
    assert not (run / "drawn").exists()
    (image,) = json.loads((run / "predictions.json").read_text())
    ours = image["predictions"]
    assert len(ours) == 5
    boxes = np.array([one["box"] for one in ours])

    coco = json.loads((run / "coco.json").read_text())
    assert coco["categories"] == [{"id": 3, "name": "fish"}, {"id": 9, "name": "sea|star"}]
    found = np.array([one["bbox"] for one in coco["annotations"]])
    np.testing.assert_allclose(found[:, :2] + found[:, 2:], boxes[:, 2:])
    ids = [[3, 9][one["label"] - 1] for one in ours]
    assert [one["category_id"] for one in coco["annotations"]] == ids
    read = read_results(run / "coco.json", as_ground_truth(coco))  # as evaluate.py does
    assert read.scores.tolist() == [one["score"] for one in ours]

    lines = np.loadtxt(run / "yolo" / "b.txt")
    assert lines[:, 0].tolist() == [one["label"] - 1 for one in ours]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / (60, 40)
    np.testing.assert_allclose(lines[:, 1:3], centres, atol=1e-6)
    np.testing.assert_allclose(lines[:, 3:5] * (60, 40), boxes[:, 2:] - boxes[:, :2], atol=1e-4)
    assert (run / "classes.txt").read_text() == "fish\nsea|star\n"

    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [one["score"] for one in ours]
    assert [float(row["x2"]) for row in rows] == boxes[:, 2].tolist()

    crops = sorted((run / "crops").rglob("*.png"))
    assert len(crops) == 5
    best = run / "crops" / ours[0]["class"] / "b.png.1.png"
    x1, y1, x2, y2 = boxes[0]
    part = noise(0, 40, 60).crop((int(x1), int(y1), max(round(x2), int(x1) + 1), round(y2)))
    with Image.open(best) as crop:
        assert crop.tobytes() == part.tobytes()


def test_many_of_one_class_are_counted() -> None:
    many = [{"class": "star", "score": 0.9 - 0.01 * n} for n in range(10)]
    many.insert(1, {"class": "fish", "score": 0.895})
    assert predict_command.found(many, 0.5) == "star x10, fish 0.90"
    assert predict_command.found([], 0.5) == "nothing with a score of at least 0.5"


@pytest.mark.parametrize(
    "change, code, culprit",
    [
        ("images=nowhere", 1, "images=nowhere"),
        ("checkpoint=nowhere.pt", 1, "nowhere.pt"),
        ("min_score=2", 2, "min_score=2"),
        ("save=[drawn,xml]", 2, "save=xml must be one of drawn, crops, coco, yolo, csv"),
        ("min_score=high", 2, "min_score"),
        ("precision=int8", 2, "precision=int8"),
        ("device=cuda:99", 2, "device=cuda:99"),
        ("output=/dev/null/x", 2, "output=/dev/null/x"),
        ("nonsense=1", 2, "nonsense"),
    ],
)
def test_errors_are_one_line(
    change: str,
    code: int,
    culprit: str,
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    arguments = [f"checkpoint={checkpoint}", f"images={images}", change]
    assert command(monkeypatch, tmp_path / "run", *arguments) == code
    assert culprit in one_line(capsys)
    assert not (tmp_path / "run" / "predictions.json").exists()


def test_what_cannot_be_looked_at(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    arguments = [f"checkpoint={checkpoint}", f"images={tmp_path / 'empty'}"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 1
    assert "holds no .jpg" in one_line(capsys)
    assert command(monkeypatch, tmp_path / "run", arguments[0]) == 2
    assert "images" in one_line(capsys)

    drawn = tmp_path / "drawn"  # pictures of an earlier run, which would be overwritten
    drawn.mkdir()
    noise(0, 20, 20).save(drawn / "b.png")
    before = (drawn / "b.png").read_bytes()
    arguments = [arguments[0], f"images={drawn}", f"output={tmp_path}"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 2
    assert "drawn/" in one_line(capsys) and (drawn / "b.png").read_bytes() == before


def test_weights_that_do_not_fit(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    save_checkpoint(checkpoint, content | {"classes": [*CLASSES, "crab"]})
    arguments = [f"checkpoint={checkpoint}", f"images={images}"]
    assert command(monkeypatch, tmp_path / "run", *arguments) == 1
    assert "roi_heads.box_predictor" in one_line(capsys)


def test_the_script_starts_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = Path(predict.__file__)
    monkeypatch.setattr(sys, "argv", [str(path), "nonsense=1"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(path), run_name="__main__")
    assert stop.value.code == 2 and "nonsense" in one_line(capsys)
