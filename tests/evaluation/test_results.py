"""Test which files of ground truth and detections are refused, how, and what is filled in."""

import copy
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.data.values import as_four_numbers, as_integer, as_number
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.columns import look_up_images_and_classes
from detector.evaluation.entries import EvaluationError
from detector.evaluation.results import (
    plain_detections,
    read_detections,
    read_ground_truth,
    write_detections,
)

GROUND_TRUTH: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [{"id": 7, "width": 640, "height": 480, "file_name": "7.jpg"}, {"id": 9}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 3, "bbox": [1, 2, 30, 40], "area": 900.5},
        {"id": 0, "image_id": 9, "category_id": 5, "bbox": [0, 0, 2.5, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
DETECTIONS: list[dict[str, Any]] = [
    {"image_id": 7, "category_id": 3, "bbox": [1.5, 2.0, 30.0, 40.0], "score": 0.9},
    {"image_id": 9, "category_id": 5, "bbox": [0, 0, 2, 4], "score": 1},
]
TRUTH = as_ground_truth(GROUND_TRUTH)
MISSING = object()


def changed(original: Any, place: tuple, value: Any) -> Any:
    """Return a copy of `original` with another value at `place`, or without it for `MISSING`."""
    result = copy.deepcopy(original)
    parent = result
    for key in place[:-1]:
        parent = parent[key]
    if value is MISSING:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return result


def test_ground_truth_is_completed_and_renumbered(tmp_path: Path) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(GROUND_TRUTH))
    assert read_ground_truth(path).to_coco() == {
        "images": GROUND_TRUTH["images"],
        "categories": GROUND_TRUTH["categories"],
        "annotations": [
            # The area is given, iscrowd is filled in.
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [1, 2, 30, 40],
                "area": 900.5,
                "iscrowd": 0,
            },
            # iscrowd is given, the area is filled in: 2.5 * 4.
            {
                "id": 2,
                "image_id": 9,
                "category_id": 5,
                "bbox": [0, 0, 2.5, 4],
                "area": 10,
                "iscrowd": 1,
            },
        ],
    }


def test_annotations_marked_ignore_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gt.json"
    for flags, num_warnings in (
        ({"ignore": 0}, 0),
        ({"ignore": 1, "iscrowd": 1}, 0),
        ({"ignore": 1}, 1),
    ):
        marked = copy.deepcopy(GROUND_TRUTH)
        marked["annotations"][0] |= flags
        path.write_text(json.dumps(marked))
        caplog.clear()
        assert read_ground_truth(path).is_crowd[0] == flags.get("iscrowd", 0)
        assert len(caplog.messages) == num_warnings
    assert caplog.messages[0].startswith(f"{path}: 1 annotations have 'ignore' and not 'iscrowd'")


def test_ground_truth_is_a_copy_and_stays_what_it_is() -> None:
    before = copy.deepcopy(GROUND_TRUTH)
    columns = as_ground_truth(GROUND_TRUTH)
    assert as_ground_truth(columns) is columns
    content = columns.to_coco()
    assert as_ground_truth(content).to_coco() == content
    for entries in content.values():
        entries[0]["id"] = 99
    content["annotations"][0]["bbox"][0] = 99
    assert before == GROUND_TRUTH
    assert columns.to_coco() == as_ground_truth(GROUND_TRUTH).to_coco()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("images",), MISSING, "gt.json: key 'images' is missing"),
        (("annotations",), {}, "gt.json: annotations: expected a list, got {}"),
        (("images", 1), 9, "gt.json: images[1]: expected an object, got 9"),
        (("images", 1, "id"), MISSING, "gt.json: images[1]: key 'id' is missing"),
        (("images", 1, "id"), "9x", "gt.json: images[1]: id: expected an integer, got '9x'"),
        (("images", 1, "id"), 2**63, f"gt.json: images[1]: id: expected an integer, got {2**63}"),
        (("images", 1, "id"), True, "gt.json: images[1]: id: expected an integer, got True"),
        (("images", 1, "id"), 7, "gt.json: images[1]: id 7 is there twice"),
        (("categories", 1, "id"), 3, "gt.json: categories[1]: id 3 is there twice"),
        (("categories", 1, "name"), "cat", "gt.json: categories[1]: name 'cat' is there twice"),
        (
            ("categories", 0, "name"),
            "\ud800",
            "gt.json: categories[0]: name: expected a string, got '\\ud800'",
        ),
        (("categories", 0, "name"), 1, "gt.json: categories[0]: name: expected a string, got 1"),
        (
            ("annotations", 1, "image_id"),
            8,
            "gt.json: annotations[1]: image_id 8 is not in the ground truth's images",
        ),
        (
            ("annotations", 1, "category_id"),
            4,
            "gt.json: annotations[1]: category_id 4 is not in the ground truth's categories",
        ),
        (("annotations", 1, "bbox"), MISSING, "gt.json: annotations[1]: key 'bbox' is missing"),
        (
            ("annotations", 0, "bbox"),
            [5, 5, -1, 4],
            "gt.json: annotations[0]: bbox: expected [x, y, width >= 0, height >= 0] in finite "
            "numbers, got [5, 5, -1, 4]",
        ),
        (
            ("annotations", 0, "area"),
            math.inf,
            "gt.json: annotations[0]: area: expected a finite number >= 0, got inf",
        ),
        (
            ("annotations", 0, "iscrowd"),
            2,
            "gt.json: annotations[0]: iscrowd: expected 0 or 1, got 2",
        ),
    ],
)
def test_ground_truth_refused(tmp_path: Path, place: tuple, value: Any, message: str) -> None:
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(changed(GROUND_TRUTH, place, value)))
    with pytest.raises(EvaluationError) as error:
        read_ground_truth(path)
    assert str(error.value) == str(tmp_path / message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((1,), None, "dt.json[1]: expected an object, got None"),
        ((1, "score"), MISSING, "dt.json[1]: key 'score' is missing"),
        ((1, "score"), math.nan, "dt.json[1]: score: expected a finite number, got nan"),
        ((1, "score"), 10**400, "dt.json[1]: score: expected a finite number, got 1000000"),
        ((1, "score"), "0.5", "dt.json[1]: score: expected a finite number, got '0.5'"),
        ((0, "image_id"), 7.0, "dt.json[0]: image_id: expected an integer, got 7.0"),
        ((0, "bbox"), [1, 2, 3], "dt.json[0]: bbox: expected [x, y, width >= 0, height >= 0]"),
        ((0, "bbox", 2), math.inf, "dt.json[0]: bbox: expected [x, y, width >= 0, height >= 0]"),
        ((0, "bbox", 3), -0.5, "dt.json[0]: bbox: expected [x, y, width >= 0, height >= 0]"),
    ],
)
def test_detections_refused(tmp_path: Path, place: tuple, value: Any, message: str) -> None:
    path = tmp_path / "dt.json"
    path.write_text(json.dumps(changed(DETECTIONS, place, value)))
    with pytest.raises(EvaluationError) as error:
        read_detections(path, TRUTH)
    assert str(error.value).startswith(str(tmp_path / message))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("score", None, "dt.json[1]: score: expected a finite number, got None"),
        ("image_id", 4, "dt.json[1]: image_id 4 is not in the ground truth's images"),
        ("category_id", 4, "dt.json[1]: category_id 4 is not in the ground truth's categories"),
    ],
)
def test_detections_that_do_not_fit_refused(key: str, value: Any, message: str) -> None:
    assert [
        column.tolist() for column in look_up_images_and_classes(TRUTH, as_detections(DETECTIONS))
    ] == [
        [0, 1],
        [0, 1],
    ]
    assert len(look_up_images_and_classes(TRUTH, as_detections([]))[0]) == 0
    with pytest.raises(EvaluationError) as error:
        detections = as_detections(changed(DETECTIONS, (1, key), value), source="dt.json")
        look_up_images_and_classes(TRUTH, detections, source="dt.json")
    assert str(error.value) == message


@pytest.mark.parametrize("read", [read_ground_truth, lambda path: read_detections(path, TRUTH)])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b'{"images": [', "not valid JSON: Expecting value: line 1 column 13"),
        (b"\xff\xfe\xff", "not valid JSON: "),
        (b"[" * 100_000, "not valid JSON: "),
        (b'"detections"', "expected a"),
    ],
)
def test_files_refused(tmp_path: Path, read: Any, content: bytes | None, message: str) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "dt.json"
    detections = changed(DETECTIONS, (0, "score"), 0.1 + 0.2)  # 17 digits
    write_detections(path, detections)
    assert read_detections(path, TRUTH).to_coco() == detections


def test_a_bad_detection_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "dt.json"
    with pytest.raises(EvaluationError, match=r"detections\[0\]: score: expected a finite number"):
        write_detections(path, changed(DETECTIONS, (0, "score"), math.nan))
    assert not path.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
PLACES = [
    *[(key,) for key in GROUND_TRUTH],
    *[("images", 0), ("annotations", 1), ("categories", 1)],
    *[("annotations", 0, key) for key in (*GROUND_TRUTH["annotations"][0], "iscrowd")],
    *[("annotations", 0, "bbox", position) for position in range(4)],
    *[("images", 0, "id"), ("categories", 0, "id"), ("categories", 0, "name")],
]


@settings(max_examples=200, database=None, deadline=None, derandomize=True)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_ground_truth_with_anything_anywhere_is_normalised_or_refused(
    place: tuple, value: Any
) -> None:
    try:
        normal = as_ground_truth(changed(GROUND_TRUTH, place, value)).to_coco()
    except EvaluationError:
        return
    assert as_ground_truth(normal).to_coco() == normal
    for annotation in normal["annotations"]:
        assert all(map(math.isfinite, (*annotation["bbox"], annotation["area"])))


DETECTION_PLACES = [
    *[(0,), (1, "image_id"), (1, "category_id"), (1, "score"), (1, "bbox"), (1, "more")],
    *[(1, "bbox", position) for position in range(4)],
]


def outcome(read: Callable[[], Any]) -> Any:
    """Return the content that was read, or the message of the error."""
    try:
        return read().to_coco()
    except EvaluationError as error:
        return str(error)


@settings(max_examples=300, database=None, deadline=None, derandomize=True)
@given(place=st.sampled_from(DETECTION_PLACES), value=JSON)
def test_detections_with_anything_anywhere_are_read_as_the_json_module_does(
    tmp_path_factory: pytest.TempPathFactory, place: tuple, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.json"
    content = json.dumps(changed(DETECTIONS, place, value))
    path.write_text(content)

    def plainly() -> Any:
        detections = as_detections(json.loads(content), source=str(path))
        look_up_images_and_classes(TRUTH, detections, source=str(path))
        return detections

    assert outcome(lambda: read_detections(path, TRUTH)) == outcome(plainly)


@settings(max_examples=300, database=None, deadline=None, derandomize=True)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_ground_truth_with_anything_anywhere_is_read_as_the_json_module_does(
    tmp_path_factory: pytest.TempPathFactory, place: tuple, value: Any
) -> None:
    """Exceptions are ids, boxes and areas that are text, or 1.0 for 1, which a file may hold."""
    path = tmp_path_factory.getbasetemp() / "anything.json"
    content = json.dumps(changed(GROUND_TRUTH, place, value))
    path.write_text(content)
    found = outcome(lambda: read_ground_truth(path))
    plain = outcome(lambda: as_ground_truth(json.loads(content), source=str(path)))
    is_as_text = any(read(value) is not None for read in (as_integer, as_number, as_four_numbers))
    assert found == plain or (is_as_text and "expected" in plain)


def test_usual_files_are_decoded_into_columns_at_once() -> None:
    """Other keys in the entries, such as segmentations, are skipped."""
    assert plain_detections(json.dumps(DETECTIONS).encode()) is not None
    more = [one | {"id": 3, "segmentation": [[1, 2, 3, 4]], "name": "ä"} for one in DETECTIONS]
    assert plain_detections(json.dumps(more).encode()) is not None
    for key, value in (("score", None), ("image_id", "7"), ("bbox", [1, 2, 3])):
        assert plain_detections(json.dumps([DETECTIONS[0] | {key: value}]).encode()) is None


def test_ground_truth_as_tools_write_it(tmp_path: Path) -> None:
    """Ids as text or 1.0, a box as text, an area of null and gzip give the same ground truth."""
    odd = copy.deepcopy(GROUND_TRUTH)
    odd["images"][0]["id"], odd["categories"][0]["id"] = "7", 3.0
    first, second = odd["annotations"]
    first |= {"image_id": "7", "category_id": "3", "bbox": "[1, 2, 30, 40]", "area": "900.5"}
    second |= {"area": None}
    (tmp_path / "gt.json").write_bytes(gzip.compress(json.dumps(odd).encode()))
    assert read_ground_truth(tmp_path / "gt.json").to_coco() == TRUTH.to_coco()
