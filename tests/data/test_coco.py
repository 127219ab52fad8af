"""Tests of the COCO reader: hand-made annotations, and the error message of every fault."""

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset

# Category ids are neither ordered nor dense, annotations are not grouped by image, and image 5 has
# no annotations.
CONTENT = {
    "images": [
        {"id": 900100581187, "file_name": "sub/b.png", "width": 60, "height": 40},
        {"id": 5, "file_name": "a.png", "width": 30, "height": 50},
        {"id": 2, "file_name": "c.png", "width": 30, "height": 50},
    ],
    "categories": [
        {"id": 90, "name": "toothbrush"},
        {"id": 3, "name": "car"},
        {"id": 0, "name": "person"},
    ],
    "annotations": [
        {"id": 7, "image_id": 900100581187, "category_id": 90, "bbox": [1.5, 2, 10, 20.25]},
        {"id": 8, "image_id": 2, "category_id": 0, "bbox": [0, 0, 30, 50], "area": 12.5},
        {"id": 9, "image_id": 900100581187, "category_id": 3, "bbox": [4, 5, 6, 7], "iscrowd": 1},
        {"id": 10, "image_id": 2, "category_id": 3, "bbox": [1, 1, 2, 2], "ignore": 1},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for entry in CONTENT["images"]:
        pixels = torch.full((3, entry["height"], entry["width"]), 9, dtype=torch.uint8)
        to_pil_image(pixels).save(tmp_path / "images" / entry["file_name"])
    return tmp_path


def read(folder: Path, content: object) -> DetectionDataset:
    (folder / "gt.json").write_text(json.dumps(content))
    return read_coco(images=folder / "images", annotations=folder / "gt.json")


def with_boxes(*boxes: list[float]) -> dict:
    content = copy.deepcopy(CONTENT)
    content["annotations"] = [
        {"id": 100 + i, "image_id": 5, "category_id": 3, "bbox": box, "area": 1.0}
        for i, box in enumerate(boxes)
    ]
    return content


def test_samples(folder: Path) -> None:
    dataset = read(folder, CONTENT)
    assert dataset.classes == ("person", "car", "toothbrush")
    assert dataset.category_ids == (0, 3, 90)
    assert dataset.faults == ()
    first, empty, last = (dataset[i] for i in range(3))

    assert first["image_id"] == 900100581187
    assert first["image"].shape == (3, 40, 60) and first["image"].dtype == torch.uint8
    assert first["boxes"].tolist() == [[1.5, 2, 11.5, 22.25], [4, 5, 10, 12]]
    assert first["labels"].tolist() == [3, 2]
    assert first["area"].tolist() == [202.5, 42]  # 10 * 20.25 and 6 * 7, as the file has no area
    assert first["iscrowd"].tolist() == [False, True]

    assert empty["image_id"] == 5 and empty["boxes"].shape == (0, 4)
    assert last["labels"].tolist() == [1, 2]
    assert last["area"].tolist() == [12.5, 4]
    assert last["iscrowd"].tolist() == [False, True]
    for sample in (first, empty, last):
        assert sample["boxes"].dtype == sample["area"].dtype == torch.float32
        assert sample["labels"].dtype == torch.int64
        assert sample["iscrowd"].dtype == torch.bool


def test_boxes_are_clipped_and_dropped_and_counted(folder: Path) -> None:
    dataset = read(
        folder,  # boxes of a 30x50 image
        with_boxes(
            [-1, 0, 5, 5],  # clipped
            [25, 45, 6, 6],  # clipped
            [0, 0, 30.0000001, 50],  # exactly the image in float32
            [3, 3, 0, 4],  # dropped: no width
            [3, 3, 4, -2],  # dropped: no height
            [3, 3, 1e-9, 4],  # dropped: no width in float32
            [3, -0.5, 0, 4],  # dropped, and not counted as clipped
            [2, 3, 4, 5],
        ),
    )
    assert [(f.severity, f.kind, f.image_id) for f in dataset.faults] == [
        *[("warning", "box without area", 5)] * 4,
        *[("warning", "box clipped", 5)] * 2,
    ]
    assert "annotations[3] (id 103): box [3.0, 3.0, 3.0, 7.0]" in dataset.faults[0].detail
    assert dataset[1]["boxes"].tolist() == [
        [0, 0, 4, 5],
        [25, 45, 30, 50],
        [0, 0, 30, 50],
        [2, 3, 6, 8],
    ]


@pytest.mark.parametrize(
    "box",
    [
        [-1.01, 0, 5, 5],
        [0, -1.01, 5, 5],
        [25, 0, 6.01, 5],
        [0, 45, 5, 6.01],
        [30.25, 0, 0.5, 5],  # within the tolerance, but completely outside the image
        [500, 500, 0, 0],
    ],
)
def test_box_outside_the_image(folder: Path, box: list[float]) -> None:
    x, y, w, h = map(float, box)
    with pytest.raises(DatasetError) as error:
        read(folder, with_boxes([1, 1, 2, 2], box))
    for culprit in ("gt.json", "id 101", str([x, y, x + w, y + h]), "30x50"):
        assert culprit in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_box_that_is_not_finite(folder: Path, value: float) -> None:
    with pytest.raises(DatasetError, match=r"gt\.json.*id 101.*(not finite|outside)"):
        read(folder, with_boxes([1, 1, 2, 2], [value, 1, value, 2]))


REMOVED = object()
FAULTS = [  # (path to the changed container, key, new value, words of the error message)
    ([], "images", REMOVED, ["'images'", "missing"]),
    ([], "annotations", REMOVED, ["'annotations'", "missing"]),
    ([], "categories", REMOVED, ["'categories'", "missing"]),
    ([], "images", {}, ["'images'", "{}", "a list"]),
    ([], "images", [], ["'images'", "empty"]),
    ([], "categories", [], ["'categories'", "empty"]),
    (["images"], 1, 5, ["images[1]", "5", "an object"]),
    (["annotations"], 2, None, ["annotations[2]", "None", "an object"]),
    (["images", 1], "id", REMOVED, ["images[1]", "'id'", "missing"]),
    (["images", 1], "id", "5x", ["images[1]", "'id'", "'5x'", "integer"]),
    (["images", 1], "id", 2**70, ["images[1]", "'id'", "integer"]),
    (["images", 1], "id", 900100581187, ["900100581187", "same id"]),
    (["images", 1], "file_name", REMOVED, ["id 5", "'file_name'", "missing"]),
    (["images", 1], "file_name", 3, ["id 5", "'file_name'", "3", "a string"]),
    (["images", 1], "file_name", "no.png", ["id 5", "images/no.png", "not exist"]),
    (["images", 1], "file_name", "no/a.png", ["id 5", "images/no/a.png", "not exist"]),
    (["images", 1], "file_name", "", ["id 5", "images", "not exist"]),
    (["images", 1], "file_name", "a\0/b", ["id 5", "not exist"]),
    (["images", 1], "file_name", "sub", ["id 5", "images/sub", "not exist"]),
    (["images", 1], "file_name", "../gt.json", ["id 5", "../gt.json", "leads out"]),
    (["images", 1], "file_name", "sub/../../gt.json", ["id 5", "gt.json", "leads out"]),
    (["images", 1], "file_name", "../images2/a.png", ["id 5", "images2", "leads out"]),
    (["images", 1], "file_name", "/etc/passwd", ["id 5", "/etc/passwd", "leads out"]),
    (["images", 1], "width", REMOVED, ["id 5", "'width'", "missing"]),
    (["images", 1], "width", 30.5, ["id 5", "'width'", "30.5", "integer"]),
    (["images", 1], "file_name", "x" * 300 + "/a", ["id 5", "xxx cannot be listed"]),
    (["images", 1], "file_name", "a\n.png", ["id 5", r"a\n.png", "not exist"]),
    (["images", 1], "width", 0, ["id 5", "'width'", "0"]),
    (["images", 1], "width", 2**31, ["id 5", "'width'", "2147483648", "2147483647"]),
    (["images", 1], "height", REMOVED, ["id 5", "'height'", "missing"]),
    (["images", 1], "height", True, ["id 5", "'height'", "True", "integer"]),
    (["categories", 1], "id", REMOVED, ["categories[1]", "'id'", "missing"]),
    (["categories", 1], "id", 90, ["categories[1]", "90", "same id"]),
    (["categories", 1], "name", REMOVED, ["categories[1]", "id 3", "'name'", "missing"]),
    (["categories", 1], "name", "toothbrush", ["id 3", "'toothbrush'", "same name"]),
    (["annotations", 1], "image_id", REMOVED, ["id 8", "'image_id'", "missing"]),
    (["annotations", 1], "image_id", 77, ["id 8", "77", "not among the images"]),
    (["annotations", 1], "image_id", [2], ["id 8", "'image_id'", "[2]"]),
    (["annotations", 1], "category_id", REMOVED, ["id 8", "'category_id'", "missing"]),
    (["annotations", 1], "category_id", 1, ["id 8", "1", "not among the categories"]),
    (["annotations", 1], "category_id", False, ["id 8", "'category_id'", "False"]),
    (["categories", 1], "name", "\ud800a", ["id 3", "'name'", "\\ud800a"]),
    (["annotations", 1], "bbox", REMOVED, ["id 8", "'bbox'", "missing"]),
    (["annotations", 1], "bbox", None, ["id 8", "'bbox'", "None"]),
    (["annotations", 1], "bbox", [1, 2, 3], ["id 8", "'bbox'", "[1, 2, 3]"]),
    (["annotations", 1], "bbox", [1, 2, 3, "4x"], ["id 8", "'bbox'", "'4x'"]),
    (["annotations", 1], "bbox", [1, 2, 3, True], ["id 8", "'bbox'", "True"]),
    (["annotations", 1], "bbox", [1, 2, 3, 10**400], ["id 8", "'bbox'"]),
    (["annotations", 1], "area", "big", ["id 8", "'area'", "'big'"]),
    (["annotations", 1], "area", math.nan, ["id 8", "'area'", "nan"]),
    (["annotations", 1], "area", -1, ["id 8", "'area'", "-1"]),
    (["annotations", 1], "area", 1e39, ["id 8", "'area'", "1e+39"]),
    (["annotations", 1], "iscrowd", 2, ["id 8", "'iscrowd'", "2"]),
    (["annotations", 1], "ignore", 2, ["id 8", "'ignore'", "2"]),
    (["annotations", 1], "iscrowd", "2", ["id 8", "'iscrowd'", "'2'"]),
]


@pytest.mark.parametrize(("where", "key", "value", "culprits"), FAULTS)
def test_fault_is_named(
    folder: Path, where: list, key: str | int, value: object, culprits: list[str]
) -> None:
    content = copy.deepcopy(CONTENT)
    target = content
    for step in where:
        target = target[step]
    if value is REMOVED:
        del target[key]
    else:
        target[key] = value
    with pytest.raises(DatasetError) as error:
        read(folder, content)
    message = str(error.value)
    assert "\n" not in message
    for culprit in ("gt.json", *culprits):
        assert culprit in message


def test_relative_image_folder_cannot_be_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "images" / "sub")
    content = copy.deepcopy(CONTENT)
    content["images"] = [{"id": 5, "file_name": "b.png", "width": 60, "height": 40}]
    content["annotations"] = []
    (folder / "gt.json").write_text(json.dumps(content))
    dataset = read_coco(images=Path("."), annotations=folder / "gt.json")
    monkeypatch.chdir(folder)
    assert dataset[0]["image"].shape == (3, 40, 60)  # also found from another working directory
    monkeypatch.chdir(folder / "images" / "sub")
    content["images"][0]["file_name"] = "../a.png"
    (folder / "gt.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="leads out"):
        read_coco(images=Path("."), annotations=folder / "gt.json")


def test_linked_images_and_folders_are_read(folder: Path) -> None:
    (folder / "images").rename(folder / "elsewhere")
    (folder / "images").mkdir()
    (folder / "images" / "sub").symlink_to(folder / "elsewhere" / "sub")
    for name in ("a.png", "c.png"):
        (folder / "images" / name).symlink_to(folder / "elsewhere" / name)
    assert read(folder, CONTENT)[0]["image"].shape == (3, 40, 60)
    (folder / "elsewhere" / "c.png").unlink()
    with pytest.raises(DatasetError, match=r"images/c\.png does not exist"):
        read(folder, CONTENT)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_real_data_against_pycocotools(shared_data: Path, split: str) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    file = shared_data / "aquarium" / "annotations" / f"instances_{split}.json"
    dataset = read_coco(images=shared_data / "aquarium" / split, annotations=file)
    expected = coco.COCO(str(file))
    assert [record.image_id for record in dataset.records] == expected.getImgIds()
    for record in dataset.records:
        annotations = expected.loadAnns(expected.getAnnIds(record.image_id))
        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(record.boxes, boxes, rtol=0, atol=1e-9)
        names = [expected.cats[a["category_id"]]["name"] for a in annotations]
        assert [dataset.classes[label - 1] for label in record.labels] == names
        assert record.area.tolist() == [a["area"] for a in annotations]


def test_links_to_nothing_and_pipes(folder: Path) -> None:
    """They are ignored in the image folder; if the annotations name one, it does not exist."""
    (folder / "images" / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "images" / "pipe.png")
    assert len(read(folder, CONTENT)) == 3
    for name in ("loop.png", "pipe.png"):
        content = copy.deepcopy(CONTENT)
        content["images"][1]["file_name"] = name
        with pytest.raises(DatasetError, match=rf"gt\.json.*id 5.*{name} does not exist"):
            read(folder, content)


def test_image_that_cannot_be_decoded_is_named_with_its_id(folder: Path) -> None:
    dataset = read(folder, CONTENT)
    (folder / "images" / "a.png").write_text("<html>")
    with pytest.raises(DatasetError, match=r"images/a\.png: cannot be decoded.*; image id 5$"):
        dataset[1]


def test_ground_truth_reads_back(folder: Path) -> None:
    dataset = read(folder, CONTENT)
    (folder / "images" / "b.png").symlink_to(folder / "images" / "sub" / "b.png")
    again = read(folder, dataset.ground_truth())
    for before, after in zip(dataset, again, strict=True):
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[key])), key


def test_errors_can_be_left_out(folder: Path) -> None:
    content = copy.deepcopy(CONTENT)
    good = content["annotations"][1]
    content["images"][0]["file_name"] = "lost.png"  # its two objects are left out with it
    content["images"] += [{**content["images"][1], "file_name": "c.png"}, {"id": "six"}]
    content["annotations"].append({**good, "image_id": 5})  # two images have the id 5
    content["annotations"] += [
        {**good, "id": 0},
        {**good, "id": 8},
        {**good, "id": 11, "category_id": 77},
        {**good, "id": 12, "image_id": 404},
        {**good, "id": 13, "bbox": [math.nan, 0, 1, 1]},
        {**good, "id": 14, "bbox": [40, 0, 1, 1]},
        {**good, "id": 15, "bbox": [1, 1, 0, 1]},
        {**good, "id": 16, "bbox": [29, 1, 2, 1]},
        {**good, "id": 17, "bbox": [0, 0, 1]},
        {**good, "id": 18, "bbox": [0, 0, math.inf, 1]},
    ]
    (folder / "gt.json").write_text(json.dumps(content))
    arguments = {"images": folder / "images", "annotations": folder / "gt.json"}
    with pytest.raises(DatasetError, match=r"lost\.png does not exist"):
        read_coco(**arguments)
    dataset = read_coco(**arguments, on_error="warn")

    assert [record.image_id for record in dataset.records] == [2]
    assert dataset.records[0].boxes.tolist() == [
        *[[0, 0, 30, 50], [1, 1, 3, 3], [0, 0, 30, 50], [0, 0, 30, 50], [29, 1, 30, 2]]
    ]
    assert [(f.severity, f.kind, f.image_id) for f in dataset.faults] == [
        ("error", "image left out", 900100581187),
        ("error", "image left out", 5),
        ("error", "image left out", 5),
        ("error", "image left out", None),
        ("warning", "annotation id", 2),
        ("warning", "annotation id", 2),
        ("error", "object left out", 2),
        ("error", "object left out", 404),
        ("error", "object left out", 2),
        ("error", "box not finite", 2),
        ("error", "box not finite", 2),
        ("error", "box outside its image", 2),
        ("warning", "box without area", 2),
        ("warning", "box clipped", 2),
    ]
    order = ((9, 13), (14, 18), (10, 14), (11, 15), (12, 16))
    places = [f"annotations[{i}] (id {n})" for i, n in order]
    for fault, place in zip(dataset.faults[-5:], places, strict=True):
        assert place in fault.detail  # indices into the file's list, not into the usable objects


def test_objects_without_ids_are_one_fault(folder: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for annotation, odd in zip(content["annotations"], (None, {}, 1.5, 7), strict=True):
        annotation["id"] = odd
    (fault,) = read(folder, content).faults
    assert fault.kind == "annotation id" and "annotations[0] (id None)" in fault.detail
    assert "3 objects" in fault.detail
    assert fault.image_id == content["annotations"][0]["image_id"]
