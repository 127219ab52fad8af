"""Tests of the generated data set: reproducible images, and annotations that fit them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from detector.data import shapes
from detector.data.shapes import SHAPE_CLASSES, draw_image, shapes_folder

# The SHA-256 of the annotations and pixels of the data set `TINY`, measured with
# opencv-python-headless 5.0 and numpy 2.4 on x86-64. If the generator changes its images, raise
# `shapes.VERSION` and record the new digest here.
TINY = {"num_train": 6, "num_val": 3, "image_size": 96, "seed": 5}
TINY_SHA256 = "79be3320ce2415b4f01308799f0c9cd5f4a73e0222d9b79bd6d5f59855d9eb34"
TINY_VERSION = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes_folder(**TINY, cache=tmp_path_factory.mktemp("cache"))


def _files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _annotations(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def _images(seed: int, split: str, num_images: int) -> list[np.ndarray]:
    return [
        draw_image(seed=seed, split=split, index=index, image_size=64)[0]
        for index in range(num_images)
    ]


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    files = _files(folder)
    assert len(files) == 6 + 3 + 2
    assert files == _files(shapes_folder(**TINY, cache=tmp_path))


def test_content_is_pinned(folder: Path) -> None:
    digest = hashlib.sha256()
    for split in ("train", "val"):
        coco = _annotations(folder, split)
        digest.update(json.dumps(coco, sort_keys=True).encode())
        for image in coco["images"]:
            digest.update(cv2.imread(str(folder / split / image["file_name"])).tobytes())
    assert (digest.hexdigest(), shapes.VERSION) == (TINY_SHA256, TINY_VERSION)


def test_no_two_images_are_the_same() -> None:
    images = _images(0, "train", 4) + _images(0, "val", 4) + _images(1, "train", 4)
    assert len({image.tobytes() for image in images}) == 12


def test_an_image_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    fewer = shapes_folder(**TINY | {"num_train": 2, "num_val": 1}, cache=tmp_path)
    files = _files(folder)
    for split, num_images in (("train", 2), ("val", 1)):
        few, all_ = _annotations(fewer, split), _annotations(folder, split)
        first = [a for a in all_["annotations"] if a["image_id"] <= num_images]
        assert few["annotations"] == first
        for index in range(num_images):
            name = f"{split}/{index:06d}.png"
            assert (fewer / name).read_bytes() == files[name]


def test_annotations_are_those_of_the_masks(folder: Path) -> None:
    """Boxes and areas equal those of pycocotools exactly, as masks consist of whole pixels."""
    num_objects = 0
    for split in ("train", "val"):
        coco = _annotations(folder, split)
        masks, labels = [], []
        for image in coco["images"]:
            _, objects = draw_image(seed=5, split=split, index=image["id"] - 1, image_size=96)
            masks += [(image["id"], coco_mask.encode(np.asfortranarray(o.mask))) for o in objects]
            labels += [layer.label for layer in objects]
        annotations = coco["annotations"]
        assert [a["id"] for a in annotations] == list(range(1, len(masks) + 1))
        assert [a["image_id"] for a in annotations] == [image_id for image_id, _ in masks]
        assert [a["category_id"] for a in annotations] == labels
        assert [a["bbox"] for a in annotations] == [coco_mask.toBbox(m).tolist() for _, m in masks]
        assert [a["area"] for a in annotations] == [coco_mask.area(m) for _, m in masks]
        num_objects += len(annotations)
    assert num_objects > 9


@pytest.mark.parametrize("image_size", [64, 160])
def test_boxes_lie_in_the_image_and_are_what_was_painted(
    image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each edge of a box may differ from the painted pixels by one pixel.

    The box encloses the pixels that are covered by at least half, but pixels with less coverage
    are painted too.
    """
    painted: list[np.ndarray] = []

    def watched(
        rng: np.random.Generator, image: np.ndarray, layer: shapes.Layer, unit: float
    ) -> None:
        before = image.copy()
        paint(rng, image, layer, unit)
        if layer.label:
            painted.append((image != before).any(axis=2))

    paint = shapes._paint
    monkeypatch.setattr(shapes, "_paint", watched)
    for index in range(20):
        painted.clear()
        _, objects = draw_image(seed=3, split="val", index=index, image_size=image_size)
        assert len(painted) == len(objects)
        for layer, changed in zip(objects, painted, strict=True):
            x, y, w, h = shapes._annotation(layer)["bbox"]
            assert x >= 0 and y >= 0 and w > 0 and h > 0
            assert x + w <= image_size and y + h <= image_size
            left, top, width, height = cv2.boundingRect(changed.astype(np.uint8))
            right, bottom = left + width, top + height
            assert np.abs(np.subtract((left, top, right, bottom), (x, y, x + w, y + h))).max() <= 1


def test_every_object_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the visible pixels by painting from bottom to top; the generator works top down."""
    owners: list[int] = []

    def watched(
        rng: np.random.Generator, image: np.ndarray, layer: shapes.Layer, unit: float
    ) -> None:
        owners.append(layer.label)
        owner[layer.mask] = len(owners)

    monkeypatch.setattr(shapes, "_paint", watched)
    shares = []
    for index in range(60):
        owners.clear()
        owner = np.zeros((96, 96), dtype=np.int64)
        _, objects = draw_image(seed=2, split="train", index=index, image_size=96)
        numbers = [number for number, label in enumerate(owners, start=1) if label]
        shares += [
            (owner == number).sum() / layer.mask.sum()
            for number, layer in zip(numbers, objects, strict=True)
        ]
    assert min(shares) >= 0.35
    assert sum(share < 0.9 for share in shares) > 10  # a fair number of objects is occluded


def test_a_hidden_object_is_not_there_and_hides_nothing() -> None:
    def layer(left: int, right: int, label: int) -> shapes.Layer:
        coverage = np.zeros((20, 20), dtype=np.uint8)
        coverage[5:15, left:right] = 4
        return shapes.Layer(coverage, label)

    # Of the 6 columns of `lowest`, 4 are visible below `clutter`; `hidden` would leave only 1. Of
    # the 10 columns of `hidden`, 3 are visible below `clutter` and `highest`.
    lowest = layer(4, 10, 1)
    hidden = layer(5, 15, 2)
    clutter = layer(8, 11, 0)
    highest = layer(11, 15, 3)
    kept = shapes._visible([lowest, hidden, clutter, highest], 20)
    assert [layer.label for layer in kept] == [1, 0, 3]
    shown = layer(5, 14, 2)  # 4 of its 9 columns are visible below `clutter` and `other`
    other = layer(11, 13, 3)
    assert len(shapes._visible([shown, clutter, other], 20)) == 3


def test_every_class_and_the_empty_image_occur() -> None:
    images = [
        draw_image(seed=0, split="train", index=index, image_size=64)[1] for index in range(100)
    ]
    assert {layer.label for objects in images for layer in objects} == set(
        range(1, len(SHAPE_CLASSES) + 1)
    )
    assert 0 < sum(not objects for objects in images) < 10


def test_a_folder_that_is_there_is_used_again(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert shapes_folder(**TINY, cache=folder.parent) == folder
    after = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert after == before


def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*, index: int, **others: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        return draw(index=index, **others)

    draw = draw_image
    monkeypatch.setattr(shapes, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes_folder(**TINY, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_that_was_first_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "theirs").touch()
        os_rename(source, target)

    os_rename = os.rename
    monkeypatch.setattr(os, "rename", rename)
    folder = shapes_folder(**TINY, cache=tmp_path)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("parameter", list(TINY))
def test_other_parameters_have_another_folder(parameter: str, tmp_path: Path) -> None:
    small = {"num_train": 1, "num_val": 1, "image_size": 32, "seed": 0}
    folder = shapes_folder(**small, cache=tmp_path)
    assert shapes_folder(**small | {parameter: 33}, cache=tmp_path) != folder
    assert len(list(tmp_path.iterdir())) == 2


def test_the_default_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    folder = shapes_folder(num_train=1, num_val=1, image_size=32, seed=0)
    assert folder.parent == tmp_path / "xdg" / "deformable-faster-rcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = shapes_folder(num_train=1, num_val=1, image_size=32, seed=0)
    assert folder.parent == tmp_path / "home" / ".cache" / "deformable-faster-rcnn"


@pytest.mark.parametrize("wrong", [{"num_val": 0}, {"image_size": 31}, {"seed": -1}])
def test_parameters_that_make_no_set_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shapes needs"):
        shapes_folder(**TINY | wrong, cache=tmp_path)


def test_pycocotools_reads_it(folder: Path) -> None:
    coco = COCO(folder / "annotations" / "instances_train.json")
    assert len(coco.getImgIds()) == 6
    assert tuple(c["name"] for c in coco.loadCats(coco.getCatIds())) == SHAPE_CLASSES
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(folder / "train" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) == (96, 96, 3)
    assert all(a["iscrowd"] == 0 for a in coco.loadAnns(coco.getAnnIds()))
