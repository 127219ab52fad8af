"""Tests of the data check: counts and problems of a small data set with deliberate faults."""

import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from detector.data import file_problems as files_module
from detector.data import images as images_module
from detector.data.check import LISTED, Report, counts, table
from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.file_problems import file_problems
from detector.data.problems import Problem, annotation_problems

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "emu"}]


def save(path: Path, width: int, height: int, seed: int, **options: object) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def read(folder: Path, images: list[tuple], boxes: list[tuple]) -> DetectionDataset:
    """Write and read a COCO-format data set.

    Args:
        images: (id, name, width, height).
        boxes: (image id, category id, x, y, w, h, crowd).
    """
    content = {
        "images": [
            dict(zip(("id", "file_name", "width", "height"), image, strict=True))
            for image in images
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": bbox, "iscrowd": crowd}
            for n, (i, c, *bbox, crowd) in enumerate(boxes, start=1)
        ],
        "categories": CATEGORIES,
    }
    (folder / "gt.json").write_text(json.dumps(content))
    return read_coco(images=folder, annotations=folder / "gt.json")


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    """Three images: the first has several faults, the second none, the third has no objects."""
    sizes = {"a.jpg": (100, 50), "b.png": (200, 120), "c.jpg": (60, 80)}
    for seed, (name, size) in enumerate(sizes.items()):
        save(tmp_path / name, *size, seed)
    images = [(7 + i, name, *size) for i, (name, size) in enumerate(sizes.items())]
    boxes = [
        (7, 1, 0, 0, 20, 10, 0),  # 200 square pixels: small
        (7, 1, 0, 0, 20, 10, 0),  # a duplicate of it
        (7, 2, 0, 0, 20, 10, 0),  # the same box with another class
        (7, 1, 90, 40, 10.5, 10, 0),  # half a pixel outside
        (7, 1, 5, 5, 0, 10, 0),  # without area
        (7, 1, 5, 5, 1, 10, 0),  # one pixel wide
        (7, 1, 5, 5, 1, 20, 1),  # a crowd, which may be tiny
        (8, 2, 10, 10, 32, 32, 0),  # area 1024: the smallest medium object
        (8, 2, 0, 0, 96, 96, 0),  # area 9216: the smallest large object
    ]
    return read(tmp_path, images, boxes)


def test_counts(dataset: DetectionDataset) -> None:
    assert counts(dataset) == {
        "images": 3,
        "images without objects": 1,
        "image width": [60, 100, 200],
        "image height": [50, 80, 120],
        "objects": 8,
        "crowd or difficult": 1,
        "object width": [1, 20, 96],  # 1 1 10 20 20 20 32 96
        "object height": [10, 10, 96],  # 10 10 10 10 10 20 32 96
        "small objects": 6,
        "medium objects": 1,
        "large objects": 1,
        "classes": {"cat": 5, "dog": 3, "emu": 0},
    }


def test_a_split_without_objects_is_counted(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 4, 5, 0)
    empty = counts(read(tmp_path, [(1, "a.png", 4, 5)], []))
    assert empty["objects"] == 0 and empty["object width"] is None
    assert empty["classes"] == {"cat": 0, "dog": 0, "emu": 0}


def test_annotation_problems(dataset: DetectionDataset) -> None:
    # Image 7 is 100x50 and is enlarged by 2, since 200 / 50 = 4 would make its longer side 400.
    # 1 pixel becomes 2.
    problems = annotation_problems({"train": dataset}, min_size=200, max_size=200)
    found = {(p.kind, p.image_id): p for p in problems}
    assert set(found) == {
        ("box without area", 7),
        ("box clipped", 7),
        ("class without objects", None),
        ("duplicate box", 7),
        ("tiny object", 7),
        ("image without objects", 9),
    }
    assert len(found) == len(problems)
    assert all(p.severity == "warning" and p.split == "train" for p in problems)
    assert found["class without objects", None].detail == "emu"
    assert "annotations[4] (id 5): box" in found["box without area", 7].detail
    assert "annotations[3] (id 4): box" in found["box clipped", 7].detail
    assert "[0.0, 0.0, 20.0, 10.0] (xyxy) is annotated 2 times" in found["duplicate box", 7].detail
    assert found["tiny object", 7].detail.endswith("after the resize: 1")
    assert found["tiny object", 7].file == str(dataset.records[0].path)

    # Enlarged by 200 / 50 = 4, 1 pixel becomes 4 and is no longer tiny.
    larger = annotation_problems({"train": dataset}, min_size=200, max_size=400)
    assert "tiny object" not in {p.kind for p in larger}


def test_upright_files_of_the_right_size_are_not_decoded(
    dataset: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    original = DetectionDataset.__getitem__

    def recording(self: DetectionDataset, index: int) -> object:
        loaded.append(index)
        return original(self, index)

    monkeypatch.setattr(DetectionDataset, "__getitem__", recording)
    assert file_problems({"train": dataset}, decode=False, num_workers=0) == []
    assert loaded == []
    assert file_problems({"train": dataset}, decode=True, num_workers=0) == []
    assert loaded == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_problems(tmp_path: Path, num_workers: int) -> None:
    folder = tmp_path / "images"
    images = []
    for index, name in enumerate(
        [
            "fine.jpg",
            "html.jpg",
            "smaller.png",
            "turned.jpg",
            "cut.jpg",
            "gone.jpg",
            "empty.png",
            "bit.png",
        ]
    ):
        width = 31 if name == "smaller.png" else 32
        options = {"exif": turned(3)} if name == "turned.jpg" else {}
        save(folder / name, width, 24, index, **options)
        images.append((index, name, 32, 24))
    (folder / "html.jpg").write_text("<html>404</html>")
    (folder / "empty.png").write_bytes(b"")
    pixels = bytearray((folder / "bit.png").read_bytes())
    pixels[len(pixels) // 2] ^= 1  # damage that only decoding finds
    (folder / "bit.png").write_bytes(pixels)
    whole = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[:-200])
    dataset = read(folder, images, [])
    (folder / "gone.jpg").unlink()

    def found(decode: bool) -> set[tuple]:
        problems = file_problems({"val": dataset}, decode=decode, num_workers=num_workers)
        for problem in problems:
            assert problem.split == "val"
            assert problem.file == str(folder / images[problem.image_id][1])
        assert len(set(problems)) == len(problems)
        return {(p.severity, p.kind, p.image_id) for p in problems}

    headers = {
        ("error", "image unreadable", 1),
        ("error", "size differs", 2),
        ("warning", "EXIF orientation", 3),
        ("error", "image unreadable", 4),
        ("error", "image unreadable", 5),
        ("error", "image unreadable", 6),
        ("error", "image unreadable", 7),
    }
    assert found(decode=True) == headers
    headers -= {("error", "image unreadable", 7)}
    assert found(decode=False) == headers


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("decode", [False, True])
def test_files_that_end_too_early(tmp_path: Path, suffix: str, decode: bool) -> None:
    names = ["whole", "cut", "half", "longer"]
    for name in names:
        save(tmp_path / f"{name}.{suffix}", 32, 24, 5)
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    for name, changed in (
        ("cut", content[:-2]),
        ("half", content[: len(content) // 2]),
        ("longer", content + b"more"),
    ):
        (tmp_path / f"{name}.{suffix}").write_bytes(changed)
    dataset = read(tmp_path, [(i, f"{name}.{suffix}", 32, 24) for i, name in enumerate(names)], [])
    problems = file_problems({"val": dataset}, decode=decode, num_workers=0)
    assert [(p.kind, p.image_id) for p in problems] == [
        ("image unreadable", 1),
        ("image unreadable", 2),
    ]


def test_files_over_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", 32, 24, 5)
    dataset = read(tmp_path, [(0, "a.png", 32, 24)], [])
    for module in (files_module, images_module):
        monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (problem,) = file_problems({"val": dataset}, decode=False, num_workers=0)
    assert "expected at most 1000" in problem.detail


def test_a_file_that_is_listed_twice(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 16, 16, 0)
    save(tmp_path / "b.png", 16, 16, 1)
    images = [(1, "a.png", 16, 16), (2, "b.png", 16, 16), (3, "./a.png", 16, 16)]
    boxes = [(i, 1, 0, 0, 9, 9, 0) for i in (1, 2, 3)]
    splits = {"train": read(tmp_path, images, boxes), "val": read(tmp_path, images[1:], boxes[1:])}
    problems = annotation_problems(splits, min_size=16, max_size=16)
    (twice,) = [problem for problem in problems if problem.kind == "image listed twice"]
    assert (twice.severity, twice.split, twice.image_id) == ("warning", "train", 3)
    assert "image id 1" in twice.detail and twice.file == str(tmp_path / "a.png")


def test_nothing_to_train_on(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 16, 16, 0)
    for crowd in (0, 1):
        dataset = read(tmp_path, [(1, "a.png", 16, 16)], [(1, 1, 0, 0, 9, 9, crowd)])
        for split in ("train", "val"):
            problems = annotation_problems({split: dataset}, min_size=16, max_size=16)
            kinds = [problem.kind for problem in problems if problem.severity == "error"]
            assert kinds == (["nothing to train on"] if crowd and split == "train" else [])


def test_the_same_image_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    original = hashlib.file_digest

    def recording(file: BinaryIO, digest: str) -> object:
        hashed.append(Path(file.name).name)
        return original(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", recording)
    train, val = tmp_path / "train", tmp_path / "val"
    for seed in range(3):
        save(train / f"{seed}.png", 16, 16, seed)
    val.mkdir()
    shutil.copy(train / "1.png", val / "other name.png")
    # train/0.png has a length that no file of the other split has, so it is not hashed. The other
    # files have such a length: 1.png and its copy are equal, 2.png and 3.png differ in one byte.
    (train / "0.png").write_bytes((train / "0.png").read_bytes() + bytes(999))
    (train / "2.png").write_bytes((train / "0.png").read_bytes() + b"x")
    (val / "3.png").write_bytes((train / "0.png").read_bytes() + b"y")
    splits = {
        "train": read(train, [(i, f"{i}.png", 16, 16) for i in range(3)], []),
        "val": read(val, [(5, "other name.png", 16, 16), (6, "3.png", 16, 16)], []),
    }
    (problem,) = file_problems(splits, decode=False, num_workers=0)
    assert problem[:3] == ("warning", "val", "image shared")
    assert problem.image_id == 5 and problem.file == str(val / "other name.png")
    assert str(train / "1.png") in problem.detail and "(id 1)" in problem.detail
    assert hashed == ["1.png", "2.png", "other name.png", "3.png"]


def test_report(dataset: DetectionDataset) -> None:
    many = [
        Problem("warning", "train", "tiny object", f"number {i}", f"{i}.jpg", i)
        for i in range(LISTED + 3)
    ]
    report = Report({"train": dataset}, [*many, Problem("error", "val", "cannot be read", "why")])
    assert (report.count("error"), report.count("warning")) == (1, LISTED + 3)

    content = json.loads(json.dumps(report.to_json()))
    assert len(content["problems"]) == LISTED + 4
    assert content["problems"][2] == many[2]._asdict()
    assert content["splits"]["train"]["objects"] == 8
    assert (content["errors"], content["warnings"]) == (1, LISTED + 3)

    text = report.to_markdown()
    assert "| image width, pixels (minimum / median / maximum) | 60 / 100 / 200 |" in text
    assert "| objects | 8 |" in text and "| emu | 0 |" in text
    assert "| error | val | cannot be read | 1 |" in text
    assert f"| warning | train | tiny object | {LISTED + 3} |" in text
    assert f"number {LISTED - 1} " in text and f"number {LISTED} " not in text
    assert "... and 3 more" in text
    assert text.index("| error") < text.index("| warning")


def test_usable(dataset: DetectionDataset) -> None:
    path = str(dataset.records[1].path)
    odd = Problem("warning", "train", "tiny object", "why", path, 8)
    broken = Problem("error", "train", "image unreadable", "why", path, 8)
    read_without = Problem("error", "val", "object left out", "gt.json: why", None, 7)
    splits = {"train": dataset, "val": dataset}

    same = Report(splits, [odd]).usable("stop")
    assert [len(usable) for usable in same.values()] == [3, 3]
    report = Report(splits, [odd, read_without, broken, broken])
    with pytest.raises(DatasetError, match=r"^gt\.json: why \(and 2 more\)$"):
        report.usable("stop")
    usable = report.usable("warn")
    assert [record.image_id for record in usable["train"].records] == [7, 9]
    assert len(usable["val"]) == 3
    assert report.lines() == [
        f"error: 2 x image unreadable in train, such as {Path(path).name}",
        "error: 1 x object left out in val, such as gt.json: why",
        f"warning: 1 x tiny object in train, such as {Path(path).name}",
    ]
    nothing = [broken._replace(split="val", file="x.png", image_id=i) for i in (7, 8, 9)]
    with pytest.raises(DatasetError, match=r"^x\.png: why; image id 7; no image of val is left"):
        Report(splits, [broken, *nothing]).usable("warn")


def test_a_check_that_is_told_to_leave(dataset: DetectionDataset) -> None:
    for record in dataset.records:
        record.path.unlink()
    problems = file_problems(
        {"train": dataset}, decode=False, num_workers=0, wrap=lambda looks: islice(looks, 2)
    )
    assert [problem.image_id for problem in problems] == [7, 8]


def test_hostile_names_stay_in_their_cell() -> None:
    lines = table(["a|b", "c"], [["x\ny", "\x1b[31m\udc80"]]).splitlines()
    assert lines == ["| a\\|b | c |", "| --- | --- |", "| x y | \\x1b[31m\\udc80 |"]
    "\n".join(lines).encode()  # raises if a lone surrogate is left
