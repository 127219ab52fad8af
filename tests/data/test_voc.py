"""Tests of the VOC reader: hand-made files, and the COCO reader on the same real images."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.transforms import TrainTransform, sample_seed
from detector.data.voc import read_voc

DOG = "<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>4.5</ymax></bndbox></object>"  # noqa: E501
CAT = "<object><name>cat</name><bndbox><xmax>12</xmax><xmin>7.25</xmin><ymin>40</ymin><ymax>50</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"  # noqa: E501


def xml(*objects: str, filename: str = "a.png", width: str = "30", height: str = "50") -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    name = f"<filename>{filename}</filename>"
    return f"<annotation>{name}{size}{''.join(objects)}</annotation>"


def box_xml(name: str, box: list[float | str]) -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in edges)
    return f"<object><name>{name}</name><bndbox>{bndbox}</bndbox></object>"


def devkit(root: Path, files: dict[str, str], *, image_set: str = "train", flag: str = "") -> Path:
    """Write a root in the devkit's layout, with a 30x50 image for each annotation file."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        black = torch.zeros((3, 50, 30), dtype=torch.uint8)
        to_pil_image(black).save(root / "JPEGImages" / f"{name}.png")
    lines = "".join(f"{name}{flag}\n" for name in files)
    (root / "ImageSets" / "Main" / f"{image_set}.txt").write_text(lines)
    return root


def read(root: Path, classes: tuple[str, ...] | None = None) -> DetectionDataset:
    return read_voc(roots=[root], image_set="train", classes=classes)


def test_samples(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"b": xml(filename="b.png"), "a": xml(DOG, CAT)}, flag="  -1")
    dataset = read(root)
    assert dataset.classes == ("cat", "dog") and dataset.category_ids == (1, 2)
    empty, full = dataset[0], dataset[1]
    assert (empty["image_id"], full["image_id"]) == (1, 2)
    assert empty["boxes"].shape == (0, 4)
    assert full["image"].shape == (3, 50, 30)
    # Pixels 1..30 of a row have the edges 0 and 30. The <part> of an object is not read as one.
    assert full["boxes"].tolist() == [[0, 1, 30, 4.5], [6.25, 39, 12, 50]]
    assert full["labels"].tolist() == [2, 1]
    assert full["iscrowd"].tolist() == [True, False]
    assert full["area"].tolist() == [105, 63.25]  # 30 * 3.5, 5.75 * 11


def test_found_classes_are_sorted(tmp_path: Path) -> None:
    names = ["d", "b", "f", "a", "e", "c"]
    objects = [box_xml(name, [1, 1, 5, 5]) for name in names]
    dataset = read(devkit(tmp_path, {"a": xml(*objects)}))
    assert dataset.classes == ("a", "b", "c", "d", "e", "f")
    assert dataset[0]["labels"].tolist() == [4, 2, 6, 1, 5, 3]


def test_given_classes_keep_their_order(tmp_path: Path) -> None:
    dataset = read(devkit(tmp_path, {"a": xml(DOG, CAT)}), ("dog", "bird", "cat"))
    assert dataset.classes == ("dog", "bird", "cat") and dataset.category_ids == (1, 2, 3)
    assert dataset[0]["labels"].tolist() == [1, 3]


def test_roots_are_concatenated(tmp_path: Path) -> None:
    voc07 = devkit(tmp_path / "VOC2007", {"a": xml(CAT)})
    voc12 = devkit(tmp_path / "VOC2012", {"a": xml(DOG), "b": xml(DOG, CAT, filename="b.png")})
    dataset = read_voc(roots=[voc07, voc12], image_set="train", classes=None)
    assert [record.image_id for record in dataset.records] == [1, 2, 3]
    assert [record.labels.tolist() for record in dataset.records] == [[1], [2], [2, 1]]
    assert [record.path.parent.parent.name for record in dataset.records] == [
        "VOC2007",
        "VOC2012",
        "VOC2012",
    ]


def test_flat_folder(tmp_path: Path) -> None:
    devkit(tmp_path / "devkit", {"b": xml(CAT, filename="b.png"), "a": xml(DOG)})
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in [*tmp_path.glob("devkit/*/*.xml"), *tmp_path.glob("devkit/*/*.png")]:
        path.rename(flat / path.name)
    dataset = read_voc(roots=[flat], image_set="unused", classes=None)
    assert [record.path.name for record in dataset.records] == ["a.png", "b.png"]
    assert [record.labels.tolist() for record in dataset.records] == [[2], [1]]


def test_file_name_falls_back_to_that_of_the_xml(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"a": xml(DOG, filename="IMG_001.JPG")})
    assert [record.path.name for record in read(root).records] == ["a.png"]


def test_boxes_are_clipped_and_dropped_and_counted(tmp_path: Path) -> None:
    objects = [
        box_xml("cat", [0, 0, 5, 5]),  # a 0-based file: clipped
        box_xml("cat", [25, 45, 31, 51]),  # clipped
        box_xml("cat", [5, 5, 4, 9]),  # dropped: its left and right edges are both 4
        box_xml("cat", [5, 5, 5, 5]),  # one pixel
    ]
    dataset = read(devkit(tmp_path, {"a": xml(*objects)}))
    assert [(fault.kind, fault.image_id) for fault in dataset.faults] == [
        *[("box without area", 1), ("box clipped", 1), ("box clipped", 1)]
    ]
    assert "a.xml: object 3: box" in dataset.faults[0].detail
    assert dataset[0]["boxes"].tolist() == [[0, 0, 5, 5], [24, 44, 30, 50], [4, 4, 5, 5]]


FAULTS = [
    ("<annotation>", ["a.xml", "XML"]),
    ("", ["a.xml", "XML"]),
    ("\0", ["a.xml", "XML"]),
    ('<?xml version="1.0" encoding="nonsense"?><annotation/>', ["a.xml", "XML"]),
    ('<!DOCTYPE d [<!ENTITY e "x">]><annotation>&e;</annotation>', ["a.xml", "XML", "Entit"]),
    ("<a>" * 33 + "</a>" * 33, ["a.xml", "XML", "over 32 elements"]),
    ("<a>" * 32 + "<b/>" + "</a>" * 32, ["a.xml", "XML", "over 32 elements"]),
    ("<a>" + "<b/>" * 50_000 + "</a>", ["a.xml", "XML", "over 50000 elements"]),
    (xml(width=""), ["a.xml", "<size/width>", "missing"]),
    (xml(width="0"), ["a.xml", "<size/width>", "0"]),
    (xml(width="1e300"), ["a.xml", "<size/width>", "1e+300", "2147483647"]),
    (xml(height="50.5"), ["a.xml", "<size/height>", "50.5"]),
    (xml(height="tall"), ["a.xml", "<size/height>", "'tall'", "number"]),
    (xml(filename="../../b.png"), ["a.xml", "'../../b.png'", "leads out"]),
    (xml(filename="/etc/passwd"), ["a.xml", "'/etc/passwd'", "leads out"]),
    (xml(DOG, "<object/>"), ["a.xml", "object 2", "<name>", "missing"]),
    (xml("<object><name>dog</name></object>"), ["object 1", "<bndbox/xmin>", "missing"]),
    (xml(box_xml("dog", [1, "x", 3, 4])), ["object 1", "<bndbox/ymin>", "'x'", "number"]),
    (xml(box_xml("dog", [1, 2, "nan", 4])), ["object 1", "nan", "not finite"]),
    (xml(box_xml("dog", [1, 2, "1e999", 4])), ["object 1", "inf", "not finite"]),
    (xml(DOG, box_xml("dog", [1, 2, 3, 52])), ["object 2", "[0.0, 1.0, 3.0, 52.0]", "30x50"]),
    (xml(DOG.replace(">1</diff", ">maybe</diff")), ["object 1", "<difficult>", "'maybe'"]),
    (xml(DOG, CAT.replace("cat", "cow")), ["object 2", "'cow'", "dog, cat"]),
]


@pytest.mark.parametrize(("text", "culprits"), FAULTS)
def test_fault_is_named(tmp_path: Path, text: str, culprits: list[str]) -> None:
    root = devkit(tmp_path, {"a": text})
    with pytest.raises(DatasetError) as error:
        read(root, ("dog", "cat"))
    for culprit in ("Annotations/a.xml", *culprits):
        assert culprit in str(error.value)


def test_missing_image_is_named(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"a": xml(filename="x.jpg")})
    (root / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"a\.xml: .*JPEGImages/x\.jpg does not exist"):
        read(root)


def test_faults_of_the_arguments_are_named(tmp_path: Path) -> None:
    root = devkit(tmp_path / "root", {"a": xml()})
    with pytest.raises(DatasetError, match="root: no object to collect classes from"):
        read(root)
    with pytest.raises(DatasetError, match="dog, cat, dog.*twice"):
        read(root, ("dog", "cat", "dog"))
    with pytest.raises(DatasetError, match="absent: no such folder"):
        read(tmp_path / "absent")
    with pytest.raises(DatasetError, match="neither a folder ImageSets nor XML files"):
        read(tmp_path)


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("layout", ["devkit", "flat"])
def test_real_voc_boxes_are_the_whole_pixels_of_the_coco_boxes(
    shared_data: Path, tmp_path: Path, split: str, layout: str
) -> None:
    aquarium = shared_data / "aquarium"
    xmls = sorted((aquarium / "Annotations_voc" / split).glob("*.xml"))
    flat = layout == "flat"
    if not flat:
        devkit(tmp_path, {})
        names = "".join(f"{path.stem}\n" for path in xmls)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(names)
    for path in xmls:
        (tmp_path / ("" if flat else "Annotations") / path.name).symlink_to(path)
    for path in (aquarium / split).iterdir():
        (tmp_path / ("" if flat else "JPEGImages") / path.name).symlink_to(path)

    voc = read(tmp_path)
    file = aquarium / "annotations" / f"instances_{split}.json"
    coco = read_coco(images=aquarium / split, annotations=file)
    coco_records = {record.path.name: record for record in coco.records}
    assert len(voc) == len(coco) == len(xmls)
    num_edges = num_equal = 0
    for record in voc.records:
        twin = coco_records[record.path.name]
        # The XML was made from the edges before the JSON file truncated them to two decimals, with
        # xmin = floor(x) + 1 and xmax = max(round(x + w), xmin + 1).
        smallest = record.boxes[:, :2] + 2
        for edges, expected in (
            (record.boxes[:, :2], [np.floor(twin.boxes[:, :2] + d) for d in (0, -0.006, 0.006)]),
            (
                record.boxes[:, 2:],
                [np.rint(twin.boxes[:, 2:] + d).clip(smallest) for d in (0, -0.011, 0.011)],
            ),
        ):
            assert (edges == np.stack(expected)).any(axis=0).all(), record.path
            num_edges += edges.size
            num_equal += (edges == expected[0]).sum()
        assert [voc.classes[i - 1] for i in record.labels] == [
            coco.classes[i - 1] for i in twin.labels
        ]
        assert (record.height, record.width) == (twin.height, twin.width)
    assert torch.equal(
        voc[0]["image"], coco[list(coco_records).index(xmls[0].stem + ".jpg")]["image"]
    )  # noqa: E501


def assert_same_samples(voc: DetectionDataset, coco: DetectionDataset) -> None:
    """Assert that both have the same samples, with and without augmentation, bit for bit.

    The images may be in another order.
    """
    transform = TrainTransform(
        min_sizes=[96, 128, 160],
        max_size=200,
        flip_probability=0.5,
        crop_probability=0.0,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.05,
    )
    assert len(voc) == len(coco) and voc.classes == coco.classes
    index_of = {record.path.name: index for index, record in enumerate(coco.records)}
    assert len(index_of) == len(coco)
    for index, record in enumerate(voc.records):
        twin = index_of[record.path.name]
        if index % 4:  # one in four is decoded and augmented
            np.testing.assert_array_equal(record.labels, coco.records[twin].labels)
            boxes = coco.records[twin].boxes.astype(np.float32)
            np.testing.assert_array_equal(record.boxes.astype(np.float32), boxes)
            continue
        sample, expected = voc[index], coco[twin]
        seed = sample_seed(0, 1, index)
        for one, other in (
            (sample, expected),
            (transform(sample, seed=seed), transform(expected, seed=seed)),
        ):
            for key in ("image", "boxes", "labels", "iscrowd"):
                assert one[key].dtype == other[key].dtype
                assert torch.equal(one[key], other[key]), (key, record.path)


@pytest.mark.parametrize(
    ("name", "split"), [("aquarium_mini", "val"), ("aquarium", "train"), ("aquarium", "valid")]
)
def test_coco_converted_to_voc_gives_the_same_samples(
    shared_data: Path, tmp_path: Path, name: str, split: str
) -> None:
    folder = shared_data / name
    file = folder / "annotations" / f"instances_{split}.json"
    coco = read_coco(images=folder / split, annotations=file)
    content = json.loads(file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        box = [repr(edge) for edge in (x + 1, y + 1, x + w, y + h)]
        objects[annotation["image_id"]].append(box_xml(names[annotation["category_id"]], box))
    for image in content["images"]:
        text = xml(
            *objects[image["id"]],
            filename=image["file_name"],
            width=str(image["width"]),
            height=str(image["height"]),
        )
        (tmp_path / image["file_name"]).with_suffix(".xml").write_text(text)
        (tmp_path / image["file_name"]).symlink_to(folder / split / image["file_name"])
    voc = read_voc(roots=[tmp_path], image_set=split, classes=coco.classes)
    assert_same_samples(voc, coco)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_voc_converted_to_coco_gives_the_same_samples(
    shared_data: Path, tmp_path: Path, split: str
) -> None:
    """Uses the data set's own XML files, since its JSON file has boxes before their rounding."""
    images, xmls = shared_data / "aquarium" / split, shared_data / "aquarium" / "Annotations_voc"
    for part, target in (("JPEGImages", images), ("Annotations", xmls / split)):
        (tmp_path / part).symlink_to(target)
    files = sorted((xmls / split).glob("*.xml"))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(
        "".join(f"{file.stem}\n" for file in files)
    )
    voc = read(tmp_path)
    content: dict = {"images": [], "annotations": []}
    content["categories"] = [{"id": 10 + i, "name": name} for i, name in enumerate(voc.classes)]
    for image_id, file in enumerate(reversed(files)):
        text = file.read_text()

        def values(tag: str, text: str = text) -> list[str]:
            return re.findall(f"<{tag}>(.*?)</{tag}>", text)

        width, height = (int(values(tag)[0]) for tag in ("width", "height"))
        content["images"].append(
            {"id": image_id, "file_name": values("filename")[0], "width": width, "height": height}
        )
        corners = [map(int, values(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
        for name, x1, y1, x2, y2 in zip(values("name"), *corners, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 10 + voc.classes.index(name),
                    "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
                }
            )
    (tmp_path / "gt.json").write_text(json.dumps(content))
    coco = read_coco(images=tmp_path / "JPEGImages", annotations=tmp_path / "gt.json")
    assert_same_samples(voc, coco)


def test_errors_can_be_left_out(tmp_path: Path) -> None:
    files = {
        "a": xml(DOG, box_xml("emu", [1, 1, 5, 5]), box_xml("dog", [1, 1, "wide", 5])),
        "b": "<annotation>",
        "c": xml(
            box_xml("cat", [1, 1, 99, 5]),
            CAT,
            box_xml("cat", ["nan", 1, 5, 5]),
            filename="c.png",
        ),
        "d": xml(CAT, filename="d.png"),
    }
    root = devkit(tmp_path, files)
    listed = root / "ImageSets" / "Main" / "train.txt"
    listed.write_text(listed.read_text() + "a\nlost\n")
    (root / "JPEGImages" / "d.png").unlink()
    arguments = {"roots": [root], "image_set": "train", "classes": ("cat", "dog")}
    with pytest.raises(DatasetError, match="listed twice"):
        read_voc(**arguments)
    dataset = read_voc(**arguments, on_error="warn")

    assert [(record.image_id, record.path.stem) for record in dataset.records] == [
        (1, "a"),
        (3, "c"),
    ]
    assert [record.labels.tolist() for record in dataset.records] == [[2], [1]]
    assert [(fault.kind, fault.image_id) for fault in dataset.faults] == [
        ("image left out", None),
        ("image left out", None),
        ("object left out", 1),
        ("image left out", 2),
        ("image left out", 4),
        ("unknown class", 1),
        ("box not finite", 3),
        ("box outside its image", 3),
    ]
    assert all(fault.severity == "error" for fault in dataset.faults)


def test_no_folder_and_an_empty_list(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no VOC-format folder"):
        read_voc(roots=[], image_set="train", classes=None)
    roots = [devkit(tmp_path / "a", {"a": xml(CAT), "b": "<"}), devkit(tmp_path / "b", {})]
    with pytest.raises(DatasetError, match=r"train\.txt: lists no images"):
        read_voc(roots=roots, image_set="train", classes=None, on_error="warn")
