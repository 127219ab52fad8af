"""Tests of annotations as annotation tools and converters write them.

Deviations with only one possible meaning are accepted with one warning per kind; all others are
refused with a hint.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

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


@pytest.mark.parametrize("bbox", [["2", "3.0", 10, "8"], "[2, 3, 10, 8]", "2 3 10 8"])
def test_boxes_as_text(tmp_path: Path, bbox: Any) -> None:
    content = coco(tmp_path)
    content["annotations"][0]["bbox"] = bbox
    dataset = read(tmp_path, content)
    assert_as_usual(dataset)
    assert kinds(dataset) == ["box as text"]


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


def test_masks_without_a_box(tmp_path: Path) -> None:
    """The same rectangle as polygons and as both forms of run lengths."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[3:11, 2:12] = 1
    runs = coco_mask.encode(mask)
    runs["counts"] = runs["counts"].decode()
    column = mask.T.flatten()
    changes = np.flatnonzero(np.diff(column)) + 1
    lengths = np.diff([0, *changes, len(column)]).tolist()
    for segmentation in (
        [[2, 3, 12, 3, 12, 11, 2, 11]],
        [[2, 3, 12, 3, 2, 11], [12, 3, 12, 11, 2, 11]],
        runs,
        {"counts": lengths, "size": [HEIGHT, WIDTH]},
    ):
        content = coco(tmp_path)
        del content["annotations"][0]["bbox"]
        content["annotations"][0]["segmentation"] = segmentation
        dataset = read(tmp_path, content)
        assert_as_usual(dataset)
        assert kinds(dataset) == ["mask without a box"]
    for odd in (
        [[1, 2, "x"]],
        {"counts": [1, 2], "size": [0, 5]},  # would crash the process in pycocotools
        {"counts": [1, 2], "size": [HEIGHT, WIDTH]},
        {"counts": lengths, "size": [WIDTH, HEIGHT]},
        runs | {"size": [2 * HEIGHT, WIDTH]},
    ):
        content["annotations"][0]["segmentation"] = odd
        with pytest.raises(DatasetError, match="'segmentation' is not a valid mask of its image"):
            read(tmp_path, content)


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


def test_a_category_that_stands_for_all(tmp_path: Path) -> None:
    """Roboflow adds a category without objects that all others have as their supercategory."""
    placeholder = {"id": 0, "name": "animals", "supercategory": "none"}
    named = [entry | {"supercategory": "animals"} for entry in coco(tmp_path)["categories"]]
    dataset = read(tmp_path, coco(tmp_path, categories=[placeholder, *named]))
    assert_as_usual(dataset)
    assert kinds(dataset) == ["no class"]
    asked = read(
        *(tmp_path, coco(tmp_path, categories=[placeholder, *named])),
        classes=("animals", "fish", "star"),
    )
    assert asked.classes == ("animals", "fish", "star")
    assert asked.category_ids == (0, 1, 2)
    assert [record.labels.tolist() for record in asked.records] == [[2], [3]]


def test_a_category_that_is_its_own_kind_is_a_class(tmp_path: Path) -> None:
    """A category that is its own supercategory, as "person" in COCO, is one without objects too."""
    crab = {"id": 3, "name": "crab", "supercategory": "crab"}
    dataset = read(tmp_path, coco(tmp_path, categories=[*coco(tmp_path)["categories"], crab]))
    assert dataset.classes == ("fish", "star", "crab") and kinds(dataset) == []


def test_classes_that_differ_in_capitals(tmp_path: Path) -> None:
    content = coco(tmp_path, categories=[{"id": 1, "name": "fish"}, {"id": 2, "name": "FISH"}])
    assert read(tmp_path, content, classes=("FISH", "Fish", "fish")).category_ids == (2, 3, 1)
    content = coco(tmp_path, categories=[{"id": 1, "name": "fish"}, {"id": 2, "name": "star"}])
    dataset = read(tmp_path, content, classes=("Fish", "star", "fish"))
    assert dataset.classes == ("Fish", "star", "fish") and dataset.category_ids == (3, 2, 1)
    with pytest.raises(DatasetError, match="a name is listed twice"):
        read(tmp_path, content, classes=("star", "star"))


def test_two_categories_of_one_name(tmp_path: Path) -> None:
    twins = [*coco(tmp_path)["categories"], {"id": 7, "name": "fish"}]
    dataset = read(tmp_path, coco(tmp_path, categories=twins))
    assert_as_usual(dataset)
    assert kinds(dataset) == ["category twice"]
    content = coco(tmp_path, categories=twins)
    content["annotations"].append({"id": 3, "image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 2]})
    with pytest.raises(DatasetError, match=r"same name 'fish', and both have objects: rename one"):
        read(tmp_path, content)


def test_a_rotated_box_of_cvat(tmp_path: Path) -> None:
    """CVAT writes the box before its rotation; it is read as the upright box around, clipped."""
    content = coco(tmp_path)
    content["annotations"][0] |= {"bbox": [3, 2, 8, 10], "attributes": {"rotation": 90.0}}
    dataset = read(tmp_path, content)
    np.testing.assert_allclose(dataset.records[0].boxes, [[2, 3, 12, 11]], atol=1e-9)
    assert kinds(dataset) == ["rotated box"]
    content["annotations"][0] |= {"bbox": [0, 0, 10, 4], "attributes": {"rotation": -90}}
    np.testing.assert_allclose(read(tmp_path, content).records[0].boxes, [[3, 0, 7, 7]], atol=1e-9)


def test_a_box_of_zeros_beside_a_mask(tmp_path: Path) -> None:
    content = coco(tmp_path)
    content["annotations"][0] |= {"bbox": [0, 0, 0, 0], "segmentation": [[2, 3, 12, 3, 12, 11]]}
    assert_as_usual(read(tmp_path, content))


def test_boxes_of_two_corners(tmp_path: Path) -> None:
    content = coco(tmp_path)
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry |= {"bbox": [x, y, x + w, y + h], "area": w * h}
    with pytest.raises(DatasetError, match=r"'area' of 2 objects .* two corners"):
        read(tmp_path, content)
    outline = {"id": 3, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "area": 31.5}
    content["annotations"] += [outline | {"id": number} for number in (3, 4)]
    read(tmp_path, content)  # areas of outlines may fit two corners by chance


def test_boxes_in_parts_of_the_image(tmp_path: Path) -> None:
    content = coco(tmp_path)
    for entry in content["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(DatasetError, match="lies within one pixel: expected pixels"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"shapes": [], "imagePath": "a.jpg"}, "a file of labelme"),
        ([{"image": "a.jpg", "annotations": []}], "CreateML's"),
        ([{"id": 1, "data": {}, "annotations": []}], "Label Studio"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "a project of VIA"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, content: Any, what: str) -> None:
    with pytest.raises(DatasetError, match=f"is .*{what}.*: export or convert it to COCO or VOC"):
        read(tmp_path, content)


def test_gzip(tmp_path: Path) -> None:
    assert_as_usual(read(tmp_path, gzip.compress(json.dumps(coco(tmp_path)).encode())))


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


def test_a_hint_for_the_file_of_annotations(tmp_path: Path) -> None:
    read(tmp_path, coco(tmp_path))
    with pytest.raises(
        DatasetError, match=r"No such file or directory\); did you mean train.json\?"
    ):
        read_coco(images=tmp_path / "train", annotations=tmp_path / "Train.JSON")


@pytest.mark.parametrize("value", [True, "one", 1.5, None, [1], "1.5", "١x"])
def test_ids_that_could_be_read_in_several_ways_are_refused(tmp_path: Path, value: Any) -> None:
    content = coco(tmp_path)
    content["images"][0]["id"] = value
    with pytest.raises(DatasetError, match="expected a 64-bit integer"):
        read(tmp_path, content)


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


@pytest.mark.parametrize(
    ("text", "crowd", "odd"),
    [
        ("True", True, True),
        ("False", False, True),
        ("Unspecified", False, True),
        ("", False, True),
        ("1", True, False),
        (None, False, False),
    ],
)
def test_words_for_difficult(tmp_path: Path, text: str | None, crowd: bool, odd: bool) -> None:
    voc(tmp_path, difficult=text)
    dataset = read_root(tmp_path)
    assert_one_fish(dataset, crowd=crowd)
    assert kinds(dataset) == ["flag that is no number"] * odd


@pytest.mark.parametrize(
    ("encoding", "label"),
    [
        ("gb2312", "鱼"),
        ("GBK", "魚"),
        ("big5", "魚"),
        ("shift_jis", "さかな"),
        ("euc-kr", "물고기"),
    ],
)
def test_encodings_of_several_bytes(tmp_path: Path, encoding: str, label: str) -> None:
    image(tmp_path / "JPEGImages" / "a.jpg")
    xml = (
        f'<?xml version="1.0" encoding="{encoding}"?><annotation><filename>a.jpg</filename>{SIZE}'
        f"<object><name>{label}</name>{BOX}</object></annotation>"
    )
    write(tmp_path, "a", xml.encode(encoding))
    dataset = read_root(tmp_path)
    assert_one_fish(dataset)
    assert dataset.classes == (label,)


def test_an_encoding_that_is_not_the_declared_one(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages" / "a.jpg")
    write(tmp_path, "a", '<?xml version="1.0" encoding="gb2312"?><a>鱼</a>'.encode()[:-5] + b"\xff")
    with pytest.raises(DatasetError, match=r"a.xml: cannot be read as XML"):
        read_root(tmp_path)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("a.jpg", "image list with file names"),
        ("JPEGImages/a.jpg", "image list with file names"),
        ("/old/VOC/JPEGImages/a.jpg", "image list with file names"),
        ("C:\\VOC\\JPEGImages\\a.JPG", "image list with file names"),
        ("a  -1", None),
        ("a 1", None),
    ],
)
def test_image_lists(tmp_path: Path, line: str, kind: str | None) -> None:
    voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(line + "\n")
    dataset = read_root(tmp_path)
    assert_one_fish(dataset)
    assert kinds(dataset) == [kind] * (kind is not None)


def test_names_with_blanks(tmp_path: Path) -> None:
    voc(tmp_path, name="my fish 1")
    dataset = read_root(tmp_path)
    assert_one_fish(dataset)
    assert kinds(dataset) == ["image name with blanks"]


def test_a_name_that_begins_with_another(tmp_path: Path) -> None:
    voc(tmp_path, name="photo", label="crab")
    voc(tmp_path, name="photo (1)")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("photo (1)\n")
    assert read_root(tmp_path).classes == ("fish",)
    (tmp_path / "Annotations" / "photo (1).xml").unlink()  # must not fall back to photo.xml
    with pytest.raises(DatasetError, match=r"photo \(1\).xml does not exist"):
        read_root(tmp_path)


def test_no_image_sets(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    (tmp_path / "ImageSets" / "Main").rmdir()
    (tmp_path / "ImageSets").rmdir()
    with pytest.raises(DatasetError, match=r"no ImageSets.*ImageSets/Main/train.txt; or put"):
        read_root(tmp_path)
    with pytest.raises(DatasetError, match="neither a folder ImageSets nor XML files"):
        read_root(tmp_path / "JPEGImages")


def test_the_folder_above(tmp_path: Path) -> None:
    voc(tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(DatasetError, match=r"did you mean .*VOC2007\?"):
        read_root(tmp_path)


def test_another_list(tmp_path: Path) -> None:
    voc(tmp_path)
    with pytest.raises(DatasetError, match=r"trainval.txt: cannot be read.*; there are train"):
        read_voc(roots=[tmp_path], image_set="trainval", classes=None)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (
            "<polygon><x1>2</x1><y1>3</y1><x2>12</x2><y2>5</y2><x3>7</x3><y3>11</y3></polygon>",
            "<polygon>",
        ),
        (
            "<polygon><pt><x>2</x><y>3</y></pt><pt><x>12</x><y>11</y></pt></polygon>",
            "<polygon>",
        ),
        (
            "<robndbox><cx>7</cx><cy>7</cy><w>8</w><h>10</h><angle>1.5707963267948966</angle>"
            "</robndbox>",
            "<robndbox>",
        ),
        (
            "<bndbox><xmin>12</xmin><ymin>11</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>",
            "corners in another order",
        ),
    ],
)
def test_other_shapes(tmp_path: Path, box: str, kind: str) -> None:
    voc(tmp_path, box=box)
    dataset = read_root(tmp_path)
    (record,) = dataset.records
    np.testing.assert_allclose(record.boxes, [[2, 3, 12, 11]], atol=1e-9)
    assert kind in kinds(dataset)


def test_a_rotated_box_of_cvat_in_xml(tmp_path: Path) -> None:
    turned = (
        "<attributes><attribute><name>rotation</name><value>90</value></attribute></attributes>"
    )
    upright = "<bndbox><xmin>4</xmin><ymin>3</ymin><xmax>11</xmax><ymax>12</ymax></bndbox>"
    voc(tmp_path, box=upright + turned)
    dataset = read_root(tmp_path)
    np.testing.assert_allclose(dataset.records[0].boxes, [[2, 3, 12, 11]], atol=1e-9)
    assert kinds(dataset) == ["rotated box"]


def test_two_boxes_of_one_object(tmp_path: Path) -> None:
    voc(tmp_path, box=2 * BOX)
    with pytest.raises(DatasetError, match="object 1: has 2 <bndbox>, expected one"):
        read_root(tmp_path)


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


def test_images_of_a_flat_folder_without_xml(tmp_path: Path) -> None:
    voc(tmp_path / "devkit")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "devkit").rglob("a.*"):
        path.rename(flat / path.name)
    for name in ("b.jpg", "c.png", "notes.txt"):
        image(flat / name) if name != "notes.txt" else (flat / name).write_text("")
    dataset = read_root(flat)
    assert_one_fish(dataset)
    (fault,) = dataset.faults
    assert "2 images have no XML file and are not used: b.jpg, c.png" in fault.detail
