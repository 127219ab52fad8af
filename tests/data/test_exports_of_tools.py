"""Tests of annotations as annotation tools and converters write them.

Deviations with only one possible meaning are accepted with one warning per kind; all others are
refused with a hint.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.voc import read_voc

WIDTH, HEIGHT = 40, 30


def image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)
    return path


def kinds(dataset: DetectionDataset) -> list[str]:
    return [fault.kind for fault in dataset.faults]


# ---- COCO ----------------------------------------------------------------------------------------


def coco(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return content with two images, one object in each, and two categories."""
    for name in ("a.jpg", "b.jpg"):
        image(folder / "train" / name)
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8]},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [4, 5, 6, 7]},
        ],
        "categories": [{"id": 1, "name": "fish"}, {"id": 2, "name": "star"}],
    }
    return content | changes


def read(folder: Path, content: Any, **options: Any) -> DetectionDataset:
    file = folder / "train.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_coco(images=folder / "train", annotations=file, **options)


def assert_as_usual(dataset: DetectionDataset) -> None:
    assert [record.path.name for record in dataset.records] == ["a.jpg", "b.jpg"]
    assert [record.labels.tolist() for record in dataset.records] == [[1], [2]]
    assert dataset.records[0].boxes.tolist() == [[2, 3, 12, 11]]
    assert dataset.records[1].boxes.tolist() == [[4, 5, 10, 12]]
    assert (dataset.records[0].height, dataset.records[0].width) == (HEIGHT, WIDTH)
    assert dataset.classes == ("fish", "star")


@pytest.mark.parametrize("kind", [str, float])
def test_ids_as_text_and_as_fractions(tmp_path: Path, kind: Any) -> None:
    content = coco(tmp_path)
    for entry in (*content["images"], *content["categories"]):
        entry["id"] = kind(entry["id"])
    for entry in content["annotations"]:
        entry["image_id"], entry["category_id"] = (
            kind(entry["image_id"]),
            kind(entry["category_id"]),
        )
    content["images"][0]["id"] = 1  # one of them stays an integer
    dataset = read(tmp_path, content)
    assert_as_usual(dataset)
    assert kinds(dataset) == ["id that is no integer"]


@pytest.mark.parametrize("size", [{}, {"width": 0, "height": 0}, {"width": None, "height": None}])
def test_images_without_a_size(tmp_path: Path, size: dict[str, Any]) -> None:
    content = coco(tmp_path)
    content["images"][0] = {"id": 1, "file_name": "a.jpg"} | size
    dataset = read(tmp_path, content)
    assert_as_usual(dataset)
    assert kinds(dataset) == ["image without a size"]


def test_a_turned_image_without_a_size_is_as_a_viewer_shows_it(tmp_path: Path) -> None:
    content = coco(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train" / "a.jpg", exif=exif)
    content["images"][0] = {"id": 1, "file_name": "a.jpg"}
    dataset = read(tmp_path, content)
    assert (dataset.records[0].height, dataset.records[0].width) == (WIDTH, HEIGHT)
    assert dataset[0]["image"].shape == (3, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (".\\a.jpg", "file name with backslashes"),
        ("train/a.jpg", "file name with the images' folder"),
        ("train\\a.jpg", "file name with backslashes"),
    ],
)
def test_file_names_with_folders(tmp_path: Path, name: str, kind: str) -> None:
    content = coco(tmp_path)
    content["images"][0]["file_name"] = name
    dataset = read(tmp_path, content)
    assert_as_usual(dataset)
    assert kind in kinds(dataset)


def test_boxes_in_parts_of_the_image(tmp_path: Path) -> None:
    content = coco(tmp_path)
    for entry in content["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(DatasetError, match="lies within one pixel: expected pixels"):
        read(tmp_path, content)


def test_classes_of_another_order_number_and_case(tmp_path: Path) -> None:
    """A validation set may have its own category ids: its classes are matched by name."""
    other = [{"id": 5, "name": "STAR "}, {"id": 9, "name": "fish"}]
    content = coco(tmp_path, categories=other)
    content["annotations"][0]["category_id"], content["annotations"][1]["category_id"] = 9, 5
    dataset = read(tmp_path, content, classes=("crab", "fish", "star"))
    assert [record.labels.tolist() for record in dataset.records] == [[2], [3]]
    assert dataset.classes == ("crab", "fish", "star")
    assert dataset.category_ids == (10, 9, 5)
    assert kinds(dataset) == ["class in other capitals"]
    with pytest.raises(DatasetError, match="class 'fish' is not among the classes"):
        read(tmp_path, content, classes=("crab", "star"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.png", "a.jpg"),
        ("A.JPG", "a.jpg"),
        ("c.jpg", "more/c.jpg"),
        ("/data/old/a.jpg", "a.jpg"),
        ("C:\\data\\a.jpg", "a.jpg"),
        ("my%20dog.jpg", "my dog.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
def test_hints_for_names_that_are_not_there(tmp_path: Path, name: str, meant: str) -> None:
    content = coco(tmp_path)
    image(tmp_path / "train" / "more" / "c.jpg")
    image(tmp_path / "train" / "my dog.jpg")
    image(tmp_path / "train" / "caf\u00e9.jpg")
    content["images"][0]["file_name"] = name
    with pytest.raises(DatasetError) as error:
        read(tmp_path, content)
    assert str(error.value).endswith(f"; did you mean {meant}?")


# ---- VOC -----------------------------------------------------------------------------------------

BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>12</xmax><ymax>11</ymax></bndbox>"
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def voc(
    root: Path,
    *,
    name: str = "a",
    size: str = SIZE,
    box: str = BOX,
    label: str = "fish",
    difficult: str | None = "0",
    filename: str | None = None,
) -> None:
    """Write a root with one image that has one object at [2, 3, 12, 11]."""
    image(root / "JPEGImages" / f"{name}.jpg")
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    xml = (
        f"<annotation><filename>{filename or name + '.jpg'}</filename>{size}"
        f"<object><name>{label}</name>{flag}{box}</object></annotation>"
    )
    write(root, name, xml.encode())


def write(root: Path, name: str, xml: bytes, listed: str | None = None) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Annotations" / f"{name}.xml").write_bytes(xml)
    with (root / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write(f"{listed or name}\n")


def read_root(root: Path, classes: tuple[str, ...] | None = None) -> DetectionDataset:
    return read_voc(roots=[root], image_set="train", classes=classes)


def assert_one_fish(dataset: DetectionDataset, *, crowd: bool = False) -> None:
    (record,) = dataset.records
    assert record.boxes.tolist() == [[2, 3, 12, 11]]
    assert record.labels.tolist() == [1]
    assert record.iscrowd.tolist() == [crowd]
    assert (record.height, record.width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>"])
def test_no_size(tmp_path: Path, size: str) -> None:
    voc(tmp_path, size=size)
    dataset = read_root(tmp_path)
    assert_one_fish(dataset)
    assert kinds(dataset) == ["image without a size"]


def test_what_labelme_deleted(tmp_path: Path) -> None:
    voc(tmp_path, box=f"{BOX}</object><object><name>star</name><deleted>1</deleted>{BOX}")
    dataset = read_root(tmp_path)
    assert_one_fish(dataset)
    assert dataset.classes == ("fish",)


def test_the_reason_is_told_where_no_object_can_be_read(tmp_path: Path) -> None:
    voc(tmp_path, box=BOX.replace(">3<", ">3,5<"))
    with pytest.raises(DatasetError, match=r"collect classes from; the first: .*a.xml.*'3,5'"):
        read_voc(roots=[tmp_path], image_set="train", classes=None, on_error="warn")


def test_a_file_name_from_another_place(tmp_path: Path) -> None:
    voc(tmp_path, filename="/home/me/labels/a.jpg")
    assert_one_fish(read_root(tmp_path))


def test_a_file_name_and_a_namesake_that_differ(tmp_path: Path) -> None:
    voc(tmp_path, filename="b.jpg")
    assert_one_fish(read_root(tmp_path))  # b.jpg is not there
    image(tmp_path / "JPEGImages" / "b.jpg")
    with pytest.raises(DatasetError, match="<filename> is b.jpg, but a.jpg has the XML file's"):
        read_root(tmp_path)


def test_other_capitals_than_in_training(tmp_path: Path) -> None:
    voc(tmp_path, label=" FISH ")
    dataset = read_root(tmp_path, classes=("fish", "star"))
    assert_one_fish(dataset)
    assert kinds(dataset) == ["class in other capitals"]
    with pytest.raises(DatasetError, match="class 'FISH' is not among fish, Fish"):
        read_root(tmp_path, classes=("fish", "Fish"))
