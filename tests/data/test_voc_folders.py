"""Tests of the folders of VOC-format data: which annotation files are found, and how lists may err.

Only the annotation files have to be there: they are found, not read.
"""

from pathlib import Path

import pytest

from detector.data.errors import DatasetError, Faults
from detector.data.voc_folders import find_sources


def devkit(root: Path, *names: str, lines: str | None = None) -> Path:
    """Write a folder in the devkit's layout with empty annotation files of these names."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / "Annotations" / f"{name}.xml").touch()
    listed = "".join(f"{name}\n" for name in names) if lines is None else lines
    (root / "ImageSets" / "Main" / "train.txt").write_text(listed)
    return root


def find(root: Path, image_set: str = "train") -> tuple[list[str], list[str]]:
    """Return the names of the annotation files, and the kinds of the faults."""
    faults = Faults("stop")
    sources = find_sources(root, image_set, faults)
    return [source.xml.stem for source in sources], [fault.kind for fault in faults.found]


def test_the_devkits_layout(tmp_path: Path) -> None:
    devkit(tmp_path, "b", "a", "c", lines="b\na\n")
    (first, _) = find_sources(tmp_path, "train", Faults("stop"))
    assert first.xml == tmp_path / "Annotations" / "b.xml"
    assert first.images.root == tmp_path / "JPEGImages"
    assert find(tmp_path) == (["b", "a"], [])


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
    assert find(devkit(tmp_path, "a", lines=f"{line}\n")) == (["a"], [kind] * (kind is not None))


def test_names_with_blanks(tmp_path: Path) -> None:
    assert find(devkit(tmp_path, "my fish 1")) == (["my fish 1"], ["image name with blanks"])


def test_a_name_that_begins_with_another(tmp_path: Path) -> None:
    devkit(tmp_path, "photo", "photo (1)", lines="photo (1)\n")
    assert find(tmp_path)[0] == ["photo (1)"]
    (tmp_path / "Annotations" / "photo (1).xml").unlink()  # must not fall back to photo.xml
    with pytest.raises(DatasetError, match=r"photo \(1\).xml does not exist"):
        find(tmp_path)


def test_a_list_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert find(devkit(tmp_path, "a", lines="\ufeffa\n"))[0] == ["a"]


@pytest.mark.parametrize(
    ("lines", "culprits"),
    [
        ("\n", ["train.txt", "no images"]),
        ("a\nb\n", ["train.txt", "b", "Annotations/b.xml does not exist"]),
        ("a 1\na -1\n", ["train.txt", "a", "twice"]),
        ("a\n./a\n", ["train.txt", "./a", "twice"]),
        ("../ImageSets/a\n", ["train.txt", "../ImageSets/a", "leads out"]),
    ],
)
def test_faults_of_a_list_are_named(tmp_path: Path, lines: str, culprits: list[str]) -> None:
    devkit(tmp_path, "a", lines=lines)
    with pytest.raises(DatasetError) as error:
        find(tmp_path)
    for culprit in culprits:
        assert culprit in str(error.value)


def test_images_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    devkit(tmp_path, "a", lines="a\nlost\na\n")
    faults = Faults("warn")
    assert [source.xml.stem for source in find_sources(tmp_path, "train", faults)] == ["a"]
    assert [(fault.severity, fault.kind) for fault in faults.found] == [
        ("error", "image left out"),
        ("error", "image left out"),
    ]


def test_another_list(tmp_path: Path) -> None:
    devkit(tmp_path, "a")
    with pytest.raises(
        DatasetError,
        match=r"trainval.txt: cannot be read \(No such file or directory\); there are train",
    ):
        find(tmp_path, "trainval")


def test_no_image_sets(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DatasetError, match=r"no ImageSets.*ImageSets/Main/train.txt; or put"):
        find(tmp_path)
    with pytest.raises(DatasetError, match="neither a folder ImageSets nor XML files"):
        find(tmp_path / "JPEGImages")
    with pytest.raises(DatasetError, match="absent: no such folder"):
        find(tmp_path / "absent")


def test_the_folder_above(tmp_path: Path) -> None:
    devkit(tmp_path / "VOCdevkit" / "VOC2007", "a")
    with pytest.raises(DatasetError, match=r"did you mean .*VOC2007\?"):
        find(tmp_path)


def test_the_folder_above_a_flat_one(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.xml").touch()
    with pytest.raises(DatasetError, match=r"did you mean .*/train\?$"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["train.json", "annotations/train.json"])
def test_a_folder_of_cocos_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(DatasetError, match=rf"COCO's format, as .*{name} may have, give data=coco"):
        find(tmp_path)


def test_a_flat_folder(tmp_path: Path) -> None:
    for name in ("b.xml", "a.xml", "a.jpg", "b.png", "c.jpg", "d.PNG", "notes.txt"):
        (tmp_path / name).touch()
    faults = Faults("stop")
    sources = find_sources(tmp_path, "unused", faults)
    assert [source.xml.name for source in sources] == ["a.xml", "b.xml"]
    assert {source.images.root for source in sources} == {tmp_path}
    (fault,) = faults.found
    assert "2 images have no XML file and are not used: c.jpg, d.PNG" in fault.detail
