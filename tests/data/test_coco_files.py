"""Tests of how a COCO-format file is loaded: what is no such file is named by what it is."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from detector.data.coco_files import load_annotations
from detector.data.errors import DatasetError


def test_gzip(tmp_path: Path) -> None:
    content = {"images": [{"id": 1}]}
    for encoded in (json.dumps(content).encode(), gzip.compress(json.dumps(content).encode())):
        (tmp_path / "gt.json").write_bytes(encoded)
        assert load_annotations(tmp_path / "gt.json") == content


@pytest.mark.parametrize(
    "text",
    [b"", b'{"images": [', b"\xff\xfe\xff", b"[" * 100_000, b"\x1f\x8b", b"[]", b"5"],
)
def test_file_that_is_not_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "gt.json").write_bytes(text)
    with pytest.raises(DatasetError, match=r"gt\.json: .*JSON"):
        load_annotations(tmp_path / "gt.json")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.json.*No such file"):
        load_annotations(tmp_path / "absent.json")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(
        DatasetError, match=r"No such file or directory\); did you mean train.json\?"
    ):
        load_annotations(tmp_path / "Train.JSON")


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
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"is .*{what}.*: export or convert it to COCO or VOC"):
        load_annotations(tmp_path / "gt.json")


def test_a_folder_of_vocs_format(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        load_annotations(tmp_path)
    (tmp_path / "a.xml").touch()
    with pytest.raises(
        DatasetError, match="is a folder of XML files, expected a JSON file: .* data=voc$"
    ):
        load_annotations(tmp_path)


def test_results_are_no_annotations(tmp_path: Path) -> None:
    (tmp_path / "dt.json").write_text(json.dumps([{"image_id": 1, "score": 0.5}]))
    with pytest.raises(DatasetError, match="holds a list of results, expected annotations"):
        load_annotations(tmp_path / "dt.json")
