"""Tests with damaged and hostile data, generated from fixed seeds.

Every input gives either a valid data set or a `DatasetError` whose message is one line that names
the file. There are no other exceptions and no warnings, and every input is processed in a limited
time.
"""

import copy
import io
import json
import os
import random
import re
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image

from detector.data.coco import read_coco
from detector.data.dataset import DatasetError, DetectionDataset
from detector.data.images import read_image
from detector.data.voc import read_voc

TIME_LIMIT = 20.0  # seconds of processor time for one input
NUM_IMAGES, NUM_COCO, NUM_XML, NUM_NAMES = 150, 300, 200, 100
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (50, 30, 3), dtype=np.uint8))
HUGE = "9" * 5000


def survives(act: Callable[[], object], *, names: str) -> bool:
    """Call `act` and return True if it succeeds.

    A failure must be a `DatasetError` whose message is one line that contains `names`.
    """
    start = time.process_time()
    error = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The image decoding .* of TorchVision are deprecated")
        try:
            act()
        except DatasetError as caught:
            error = caught
    assert time.process_time() - start < TIME_LIMIT
    if error is not None:
        message = str(error)
        assert names in message and message.isprintable() and len(message) < 2000
        message.encode()  # raises if it cannot be printed
    return error is None


def read_in_both_modes(read: Callable[..., DetectionDataset]) -> None:
    """Read with `on_error` "warn" and "stop"; without errors, both must give the same.

    Raises:
        DatasetError: the error of "stop", which "warn" must have listed as well.
    """
    mended = None
    try:
        mended = read(on_error="warn")
        assert_valid(mended)
    except DatasetError:  # an error of the whole file
        pass
    errors = [fault for fault in mended.faults if fault.severity == "error"] if mended else []
    try:
        strict = read(on_error="stop")
    except DatasetError as error:
        assert mended is None or str(error) in [fault.detail for fault in errors]
        raise
    assert_valid(strict)
    assert mended is not None and not errors
    assert json.dumps(strict.ground_truth()) == json.dumps(mended.ground_truth())


def assert_valid(dataset: DetectionDataset) -> None:
    """Assert that a data set has the documented sample format, in the precision of samples."""
    assert len({record.image_id for record in dataset.records}) == len(dataset) > 0
    for record in dataset.records:
        boxes = record.boxes.astype(np.float32)
        assert (0 <= boxes[:, :2]).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= np.float32((record.width, record.height))).all()
        assert ((record.labels >= 1) & (record.labels <= len(dataset.classes))).all()
        assert np.isfinite(record.area.astype(np.float32)).all()
        assert len(boxes) == len(record.labels) == len(record.area) == len(record.iscrowd)
    assert json.dumps(dataset.ground_truth(), allow_nan=False) and dataset.describe()


# ---- Images -------------------------------------------------------------------------------------


def damaged(rng: random.Random, number: int) -> bytes:
    """Return an image file: intact, cut off, with changed, inserted or repeated bytes, or junk."""
    kind = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")[number % 6]
    mode = rng.choice(["RGB", "L", "P", "CMYK" if kind in ("JPEG", "TIFF") else "1"])
    picture = PICTURE.convert("L" if mode == "P" and kind == "JPEG" else mode)
    if kind == "WEBP":
        picture = PICTURE.convert(rng.choice(["RGB", "RGBA"]))
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = rng.randrange(12)
    picture.save(file, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))
    content = bytearray(file.getvalue())
    damage = rng.randrange(7)
    if damage == 0:
        del content[rng.randrange(len(content)) :]
    elif damage == 1:
        for _ in range(rng.choice([1, 5, 50])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif damage == 2:  # damage in the header only
        for _ in range(5):
            content[rng.randrange(60)] = rng.randrange(256)
    elif damage == 3:
        place = rng.randrange(len(content))
        content[place:place] = rng.randbytes(rng.randrange(1, 100))
    elif damage == 4:
        place = rng.randrange(len(content))
        content[place:] = content[: len(content) - place]
    elif damage == 5:
        magic = rng.choice([b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\0\0\0\0WEBP"])
        content = bytearray(magic + rng.randbytes(500))
    return bytes(content)


def test_images(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "damaged.jpg"
    good = 0
    for number in range(NUM_IMAGES):
        path.write_bytes(damaged(rng, number))

        def act() -> None:
            pixels = read_image(path, size=(50, 30))
            assert pixels.shape == (3, 50, 30)

        good += survives(act, names=str(path))
    assert 20 <= good <= NUM_IMAGES - 80


# ---- COCO ---------------------------------------------------------------------------------------

COCO: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 30, "height": 50},
        {"id": 2, "file_name": "b.png", "width": 30, "height": 50},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4], "area": 9, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 30, 50.5], "iscrowd": 1},
    ],
}
VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2, 5, 77, 2**31, 2**63 - 1, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", "1", "\0", "\ud800", "a\nb", "\x1b[2J"),
    *("x" * 100_000, [], {}, [[]], [1, 2], [0, 0, 1e308, 1e308], [5, 5, -1, -1], [1, 1, 0, 0]),
    *([float("nan")] * 4, [[1, 2, 3, 4]], {"id": 1}, [0] * 1000),
]


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [place for key in keys for place in [(tree, key), *places(tree[key])]]


def mutated_coco(rng: random.Random, number: int) -> bytes:
    content = copy.deepcopy(COCO)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        container, key = rng.choice(places(content))
        change = rng.randrange(4)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        if not places(content):
            break
    text = json.dumps(content).encode()
    damage = number % 10
    if damage == 0:
        return text[: rng.randrange(len(text))]
    if damage == 1:
        place = rng.randrange(len(text))
        junk = rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"\0", b"9" * 5000, b"//"])
        return text[:place] + junk + text[place:]
    if damage == 2:
        return text.decode().encode(rng.choice(["utf-16", "utf-8-sig", "utf-32", "cp037"]))
    return text


def test_coco_files(tmp_path: Path) -> None:
    rng = random.Random(1)
    for name in ("a.png", "b.png"):
        PICTURE.save(tmp_path / name)
    file = tmp_path / "gt.json"
    good = 0
    for number in range(NUM_COCO):
        file.write_bytes(mutated_coco(rng, number))
        good += survives(
            lambda: read_in_both_modes(partial(read_coco, images=tmp_path, annotations=file)),
            names="gt.json",
        )
    assert 10 <= good <= NUM_COCO - 100


# ---- VOC ----------------------------------------------------------------------------------------

FIELDS = ["1", "2", "20", "40", "0", "30", "50", "a.png", "cat"]
XML = (
    "<annotation><filename>{7}</filename><size><width>{5}</width><height>{6}</height></size>"
    "<object><name>{8}</name><difficult>{4}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>"
)
TEXTS = [
    *("", " ", "-1", "0", "1.5", "31", "1e9", "1e308", "1e999", "nan", "-inf", "0x10", "1_0", "١"),
    *(HUGE, "yes", "a\nb", "&#0;", "&amp;", "&#x1b;[2J", "&unknown;", "<b/>", "]]>", "\0", "\x85"),
    *("x" * 100_000, "../a.png", "/etc/passwd", "2147483648"),
]
LOL = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
DOCTYPES = [
    f'<!DOCTYPE a [<!ENTITY l0 "lol">{LOL}]>',
    f'<!DOCTYPE a [<!ENTITY l9 "{"x" * 50_000}">]>',
    '<!DOCTYPE a [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE a [<!ENTITY l9 SYSTEM "file:///dev/zero">]>',
    '<!DOCTYPE a [<!ENTITY l9 SYSTEM "http://127.0.0.1:9/">]>',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;<!ENTITY l9 "x">]>',
    '<!DOCTYPE a SYSTEM "file:///dev/zero"><!-- &l9; -->',
]


def mutated_xml(rng: random.Random, number: int) -> bytes:
    fields = list(FIELDS)
    for _ in range(rng.choice([0, 1, 1, 1, 3])):
        fields[rng.randrange(len(fields))] = rng.choice(TEXTS)
    text = XML.format(*fields)
    damage = number % 10
    if damage == 0:
        fields[8] = "&l9;" * rng.choice([1, 100])
        text = rng.choice(DOCTYPES) + XML.format(*fields)
    elif damage == 1:
        depth = rng.choice([20, 10_000, 70_000])
        deep = rng.choice(["<deep>" * depth + "</deep>" * depth, "<deep/>" * depth])
        text = text.replace("<object>", deep + "<object>")
    elif damage == 2:
        text = text[: rng.randrange(len(text))]
    elif damage == 3:
        tag = rng.choice(re.findall(r"</(\w+)>", text))
        text = re.sub(rf"<{tag}>.*?</{tag}>", rng.choice(["", f"<{tag}/>"]), text, flags=re.S)
    elif damage == 4:
        text = text.replace("<object>", " " * rng.choice([10, 2**20]) + "<object>")
    elif damage == 5:
        encoding = rng.choice(
            ["utf-8", "utf-16", "utf-7", "ascii", "cp037", "hex", "idna", "x" * 99]
        )
        text = f'<?xml version="1.0" encoding="{encoding}"?>' + text
    content = bytearray(text.encode(errors="surrogatepass"))
    if damage == 6:
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def test_xml_files(tmp_path: Path) -> None:
    rng = random.Random(2)
    PICTURE.save(tmp_path / "a.png")
    file = tmp_path / "a.xml"
    good = 0
    for number in range(NUM_XML):
        file.write_bytes(mutated_xml(rng, number))
        good += survives(
            lambda: read_in_both_modes(
                partial(read_voc, roots=[tmp_path], image_set="-", classes=("cat",))
            ),
            names="a.xml",
        )
    assert 20 <= good <= NUM_XML - 80


@pytest.mark.parametrize("doctype", DOCTYPES)
def test_entities_are_refused(tmp_path: Path, doctype: str) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(doctype + XML.format(*FIELDS[:8], "&l9;"))
    with pytest.raises(DatasetError, match=r"a\.xml: cannot be read as XML"):
        read_voc(roots=[tmp_path], image_set="-", classes=None)


def test_xml_over_the_limit(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    padding = 2**20 - len(XML.format(*FIELDS))
    (tmp_path / "a.xml").write_text(XML.format(*FIELDS) + " " * padding)
    assert len(read_voc(roots=[tmp_path], image_set="-", classes=None)) == 1
    (tmp_path / "a.xml").write_text(XML.format(*FIELDS) + " " * (padding + 1))
    with pytest.raises(DatasetError, match=r"a\.xml: has 1048577 bytes, expected at most 1048576"):
        read_voc(roots=[tmp_path], image_set="-", classes=None)


# ---- File names ---------------------------------------------------------------------------------

# Each name leads out of the folder, or does not exist, or is not a regular file.
NAMES = [
    *("/etc/passwd", "//etc/passwd", "/", "..", "../", ".", "./", "../..", "sub/..", "sub/../.."),
    *("../secret.png", "sub/../../secret.png", "sub/../../images/../secret.png"),
    *("./../secret.png", "../images2/secret.png", "..//secret.png", "link/../../secret.png"),
    *("folder/../secret.png", "../" * 40 + "etc/passwd", "a.png/..", "a.png/../../secret.png"),
    *("a.png/x.png", "\x00", "a.png\x00", "a.png\x00.jpg", "../secret.png\x00", "sub\x00/a.png"),
    *("..\\secret.png", "..\\..\\secret.png", "C:\\secret.png", "\\\\host\\share\\a.png"),
    *("sub\\a.png", "C:a.png", "x" * 255, "x" * 256, "x" * 5000, "x/" * 3000 + "a.png"),
    *("x" * 300 + "/a.png", "../" * 20_000, "pipe.png", "socket/a.png", "zero.png", "null.png"),
    *("loop.png", "dangling.png", "sub", "sub/", "loop.png/a.png", "/dev/zero", "/dev/stdin"),
    *("/dev/fd/0", "/proc/self/environ", "/proc/self/mem", "", " ", "\n", "a.png\n", " a.png"),
    *("a.png ", "\ta.png", "a\n.png", "\r\n", "\u2028", "a.png\x1b[2J", "\ud800", "\ud800/a.png"),
    *("\U0010ffff", "\ufeffa.png", "\u202egnp.a", "A.PNG", "a\uff0epng", "\uff41.png", "~"),
    *("~/a.png", "~root/a.png", "$HOME/a.png", "${PWD}/a.png", "%2e%2e/secret.png", "a.png%00"),
    *("..%2fsecret.png", "....//secret.png", "..;/secret.png", ".../secret.png"),
    *("\u2024\u2024/secret.png", "file:///etc/passwd", "http://127.0.0.1:9/a.png"),
    *("s3://bucket/a.png", "data:image/png,", "|ls", "`id`.png", "$(id).png", "*.png", "?.png"),
    *("[a].png", "-rf", "a.png;b.png", "con", "nul", "aux.png"),
    *("pipe.png/a.png", "link", "link/../../images2/secret.png", "folder/a.png", "link/a.png"),
]  # fmt: skip


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose `images` has `a.png`, a pipe and links; secret files lie outside `images`."""
    images = tmp_path / "images"
    for folder in (images / "sub", tmp_path / "images2"):
        folder.mkdir(parents=True)
    for path in (images / "a.png", tmp_path / "secret.png", tmp_path / "images2" / "secret.png"):
        PICTURE.save(path)
    os.mkfifo(images / "pipe.png")
    for name, target in (
        ("zero.png", "/dev/zero"),
        ("null.png", "/dev/null"),
        ("loop.png", "loop.png"),
        ("dangling.png", "nowhere.png"),
        ("link", tmp_path / "images2"),
        ("folder", "sub"),
    ):
        (images / name).symlink_to(target)
    return tmp_path


def test_file_names(hostile: Path) -> None:
    assert len(NAMES) == len(set(NAMES)) >= NUM_NAMES
    for name in NAMES:
        coco = {**COCO, "annotations": []}
        coco["images"] = [{"id": 1, "file_name": name, "width": 30, "height": 50}]
        (hostile / "gt.json").write_text(json.dumps(coco))
        assert not survives(
            lambda: read_coco(images=hostile / "images", annotations=hostile / "gt.json"),
            names="gt.json: images[0] (id 1)",
        ), name


def test_file_names_in_xml(hostile: Path) -> None:
    for name in NAMES:
        if name.strip() == "a.png":  # the reader strips blanks around a text
            continue
        text = XML.format(*FIELDS[:7], escape(name), "cat")
        (hostile / "images" / "z.xml").write_text(text, errors="surrogatepass")
        assert not survives(
            lambda: read_voc(roots=[hostile / "images"], image_set="-", classes=None),
            names="z.xml",
        ), name


def test_file_names_in_image_sets(hostile: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (hostile / folder).mkdir(parents=True)
    (hostile / "images").rename(hostile / "JPEGImages")
    (hostile / "Annotations" / "a.xml").write_text(XML.format(*FIELDS))
    (hostile / "secret.xml").write_text(XML.format(*FIELDS))
    file = hostile / "ImageSets" / "Main" / "train.txt"
    for name in ["../secret", str(hostile / "secret"), *NAMES]:
        if name.removeprefix("\ufeff").strip() == "a.png":  # accepted in place of the id "a"
            continue
        file.write_text(name, errors="surrogatepass")
        assert not survives(
            lambda: read_voc(roots=[hostile], image_set="train", classes=None),
            names="train.txt",
        ), name
    file.write_text("a")
    assert len(read_voc(roots=[hostile], image_set="train", classes=None)) == 1


@pytest.mark.parametrize("name", ["./a.png", "sub/../a.png", "a.png/", "link/secret.png"])
def test_names_of_files_in_the_folder(hostile: Path, name: str) -> None:
    """The last name follows a link in the folder, which is trusted (see folder.py)."""
    coco = {**COCO, "annotations": []}
    coco["images"] = [{"id": 1, "file_name": name, "width": 30, "height": 50}]
    (hostile / "gt.json").write_text(json.dumps(coco))
    dataset = read_coco(images=hostile / "images", annotations=hostile / "gt.json")
    assert dataset[0]["image"].shape == (3, 50, 30)
