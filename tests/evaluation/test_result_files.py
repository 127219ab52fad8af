"""Test reading results as other detectors write them; every file has the same two detections."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.choices import BOX_FORMATS
from detector.evaluation.coco_format import as_detections, as_ground_truth
from detector.evaluation.columns import Detections
from detector.evaluation.entries import EvaluationError
from detector.evaluation.explain import explain
from detector.evaluation.result_files import read_results

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "width": 200, "height": 100, "file_name": "train/seven.jpg"},
        {"id": 9, "width": 200, "height": 100, "file_name": "train/nine.jpg"},
    ],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [60, 50, 30, 20]},
        {"image_id": 9, "category_id": 5, "bbox": [100, 20, 40, 30]},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
TRUTH = as_ground_truth(CONTENT)
EXPECTED = [
    {"image_id": 7, "category_id": 3, "bbox": [60.0, 50.0, 30.0, 20.0], "score": 0.9},
    {"image_id": 9, "category_id": 5, "bbox": [100.0, 20.0, 40.0, 30.0], "score": 0.5},
]
XYXY = ([60.0, 50.0, 90.0, 70.0], [100.0, 20.0, 140.0, 50.0])


def entries(**changes: tuple) -> list[dict[str, Any]]:
    """Return both detections in COCO's format, with other values for some keys.

    Args:
        changes: key -> its values in the first and in the second detection.
    """
    return [
        one | {key: pair[index] for key, pair in changes.items()}
        for index, one in enumerate(EXPECTED)
    ]


def without(key: str, **changes: tuple) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != key} for one in entries(**changes)]


def read(folder: Path, content: Any, **options: str) -> list[dict[str, Any]]:
    path = folder / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_results(path, TRUTH, **options).to_coco()


@pytest.mark.parametrize(
    "content",
    [
        entries(),
        {"annotations": entries()},
        {"predictions": entries()},
        {"results": entries(), "info": {}},
        entries(image_id=("7", "9.0"[:1])),
        entries(image_id=("seven.jpg", "nine.jpg")),
        entries(image_id=("seven", "train/nine.jpg")),
        entries(image_id=("/data/images/seven.png", "C:\\x\\nine.jpg")),
        without("image_id", file_name=("seven.jpg", "nine.jpg")),
        entries(category_id=("cat", "Dog ")),
        without("category_id", category_name=("cat", "dog")),
        without("category_id", label=("cat", "dog")),
        entries(category_id=(3.0, "5")),
        entries(bbox=("[60, 50, 30, 20]", ["100", "20", 40, 30])),
        entries(score=("0.9", 0.5)),
        [
            {
                "file": "seven.jpg",
                "predictions": [{"class": "cat", "label": 1, "score": 0.9, "box": XYXY[0]}],
            },
            {
                "file": "nine.jpg",
                "predictions": [{"class": "dog", "label": 2, "score": 0.5, "box": XYXY[1]}],
            },
        ],
        gzip.compress(json.dumps(entries()).encode()),
        "\n".join(map(json.dumps, EXPECTED)).encode(),
        ("\n".join(map(json.dumps, EXPECTED)) + "\n\n").encode(),
    ],
)
def test_json_of_every_form(tmp_path: Path, content: Any) -> None:
    assert read(tmp_path, content) == EXPECTED


def test_files_of_detectron2_and_mmdetection(tmp_path: Path) -> None:
    path = tmp_path / "instances_predictions.pth"
    contiguous = entries(category_id=(0, 1))
    by_image = [{"image_id": one["image_id"], "instances": [one]} for one in contiguous]
    torch.save(by_image, path)
    assert read_results(path, TRUTH).to_coco() == EXPECTED

    path = tmp_path / "results.pkl"
    samples = [
        {
            "img_id": one["image_id"],
            "ori_shape": (100, 200),
            "pred_instances": {
                "bboxes": torch.tensor([box]),
                "scores": torch.tensor([one["score"]]),
                "labels": torch.tensor([label]),
            },
        }
        for label, (one, box) in enumerate(zip(EXPECTED, XYXY, strict=True))
    ]
    plain = [
        one | {"pred_instances": {k: v.numpy() for k, v in one["pred_instances"].items()}}
        for one in samples
    ]
    for content in (plain, samples):  # of arrays, and of tensors
        path.write_bytes(pickle.dumps(content))
        for found, expected in zip(read_results(path, TRUTH).to_coco(), EXPECTED, strict=True):
            assert found["bbox"] == expected["bbox"]
            assert found["category_id"] == expected["category_id"]
            assert found["score"] == pytest.approx(expected["score"])

    none = np.zeros((0, 5))
    rows = [np.array([[*box, one["score"]]]) for one, box in zip(EXPECTED, XYXY, strict=True)]
    path.write_bytes(pickle.dumps([[rows[0], none], [none, rows[1]]]))
    assert read_results(path, TRUTH).to_coco() == EXPECTED
    path.write_bytes(pickle.dumps([[rows[0], none]]))
    with pytest.raises(EvaluationError, match="has 1 images, the ground truth 2"):
        read_results(path, TRUTH)


def test_a_folder_of_yolo(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "seven.txt").write_text("0 0.375 0.6 0.15 0.2 0.9\n\n")
    (tmp_path / "nine.txt").write_text("1 0.6 0.35 0.2 0.3 0.5")
    found = sorted(read_results(tmp_path, TRUTH).to_coco(), key=lambda one: one["image_id"])
    for one, expected in zip(found, EXPECTED, strict=True):
        assert one["bbox"] == pytest.approx(expected["bbox"])
        assert {**one, "bbox": 0} == {**expected, "bbox": 0}
    (tmp_path / "train").mkdir()
    (tmp_path / "nine.txt").rename(tmp_path / "train" / "nine.txt")
    assert len(read_results(tmp_path, TRUTH)) == 2
    (tmp_path / "nine.txt").write_text("1 0.6 0.35 0.2 0.3")
    with pytest.raises(EvaluationError, match=r"nine.txt, line 1: .*save_conf=True"):
        read_results(tmp_path, TRUTH)


def test_a_file_with_image_ids_of_its_own(tmp_path: Path) -> None:
    """As in predict.py's coco.json, images and categories agree with the ground truth by name."""
    own = {
        "images": [{"id": 1, "file_name": "nine.jpg"}, {"id": 2, "file_name": "a/seven.jpg"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": entries(image_id=(2, 1), category_id=(2, 1)),
    }
    assert read(tmp_path, own) == EXPECTED
    with pytest.raises(EvaluationError, match="image_id 'ten.jpg' is not in the ground truth's"):
        read(tmp_path, own | {"images": [{"id": 1, "file_name": "ten.jpg"}, own["images"][1]]})


def test_options_do_not_change_forms_that_say_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "seven.txt").write_text("0 0.375 0.6 0.15 0.2 0.9")
    for options in ({"box_format": "cxcywh"}, {"categories": "from_one"}):
        (found,) = read_results(tmp_path, TRUTH, **options).to_coco()
        assert found["bbox"] == pytest.approx(EXPECTED[0]["bbox"])
        assert found["category_id"] == 3


def test_a_name_that_looks_like_an_id(tmp_path: Path) -> None:
    """1.jpg has the id 2, and 2.jpg the id 1: a number is an id, and a file name is a name."""
    images = [{"id": 1, "file_name": "2.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    sizes = {"width": 200, "height": 100}
    truth = as_ground_truth(CONTENT | {"annotations": [], "images": [o | sizes for o in images]})
    (tmp_path / "1.txt").write_text("0 0.375 0.6 0.15 0.2 0.9")
    assert read_results(tmp_path, truth).image_ids[0] == 2
    path = tmp_path / "results.json"
    for key, value, expected in (
        ("image_id", 1, 1),
        ("file_name", "1", 2),
        ("image_id", "1.jpg", 2),
    ):
        one = {k: v for k, v in EXPECTED[0].items() if k != "image_id"} | {key: value}
        path.write_text(json.dumps([one]))
        assert read_results(path, truth).image_ids[0] == expected
    path.write_text(json.dumps([EXPECTED[0] | {"image_id": "1"}]))
    with pytest.raises(EvaluationError, match="the id of one image and the file name of another"):
        read_results(path, truth)


def in_format(box: list[float], form: str) -> list[float]:
    x1, y1, x2, y2 = box
    values = {
        "xywh": [x1, y1, x2 - x1, y2 - y1],
        "xyxy": box,
        "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
    }[form.split("_")[0]]
    scale = [200, 100, 200, 100] if form.endswith("normalised") else [1, 1, 1, 1]
    return [value / side for value, side in zip(values, scale, strict=True)]


@pytest.mark.parametrize("form", BOX_FORMATS)
def test_box_formats(tmp_path: Path, form: str) -> None:
    content = entries(bbox=tuple(in_format(box, form) for box in XYXY))
    found = read(tmp_path, content, box_format=form)
    for one, expected in zip(found, EXPECTED, strict=True):
        assert one["bbox"] == pytest.approx(expected["bbox"])


@pytest.mark.parametrize(("kind", "ids"), [("from_zero", (0, 1)), ("from_one", (1, 2))])
def test_counted_categories(tmp_path: Path, kind: str, ids: tuple) -> None:
    assert read(tmp_path, entries(category_id=ids), categories=kind) == EXPECTED


@pytest.mark.parametrize(
    ("kind", "given", "first"), [("from_one", 0, 1), ("from_one", 3, 1), ("from_zero", 2, 0)]
)
def test_counted_categories_out_of_range_are_named_as_in_the_file(
    tmp_path: Path, kind: str, given: int, first: int
) -> None:
    with pytest.raises(EvaluationError) as error:
        read(tmp_path, entries(category_id=(1, given)), categories=kind)
    assert str(error.value) == (
        f"{tmp_path / 'results.json'}[1]: class {given}, counted from {first}, is not one of the "
        "ground truth's 2 classes"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entries(image_id=(7, 8)), "[1]: image_id 8 is not in the ground truth's images"),
        (entries(image_id=(7, True)), "[1]: image_id: expected an id or a name, got True"),
        (entries(category_id=(3, 0)), "give categories=from_zero"),
        (entries(category_id=(3, 2)), "give categories=from_one"),
        (entries(category_id=(3, "bird")), "category 'bird' is not in the ground truth's"),
        (entries(category_id=(3, None)), "[1]: category_id: expected an integer, got None"),
        (entries(bbox=(XYXY[0], [1, 2, 3])), "[1]: bbox: expected four numbers, got [1, 2, 3]"),
        (entries(bbox=(XYXY[0], [1, 2, -3, 4])), "width or height would be negative"),
        (entries(score=(1, None)), "[1]: score: expected a finite number, got None"),
        (without("score"), "[0]: key 'score' is missing"),
        (without("image_id"), "[0]: key 'image_id' is missing"),
        (without("bbox"), "[0]: key 'bbox' is missing"),
        ({"images": []}, "one under annotations, predictions, results, detections"),
        ([1], "[0]: expected an object, got 1"),
        (b"{", "not valid JSON"),
        (
            [{"img_id": 7, "pred_instances": {"bboxes": [XYXY[0]], "scores": [1]}}],
            "expected lists bboxes, scores and labels of one length",
        ),
        (b"\x80\x02oops", "cut off or damaged"),
    ],
)
def test_refusals(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(EvaluationError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(str(tmp_path / "results.json"))
    assert message in str(error.value)


def test_a_message_shows_at_most_eighty_characters_of_the_content(tmp_path: Path) -> None:
    huge = {f"key {number}": ["x" * 50] * 50 for number in range(50)}
    with pytest.raises(EvaluationError) as error:
        read(tmp_path, entries(bbox=(XYXY[0], huge)))
    assert len(str(error.value)) - len(str(tmp_path / "results.json")) < 80 + 60


# ---- Explanations --------------------------------------------------------------------------------


def hints(folder: Path, content: Any, only: int | None = None, **options: str) -> list[str]:
    """Return the lines of `explain`, for all objects or for those of the image `only`."""
    objects = [one for one in CONTENT["annotations"] if only in (None, one["image_id"])]
    truth = as_ground_truth(CONTENT | {"annotations": objects})
    how = {"box_format": "xywh", "categories": "ids"} | options
    found = as_detections(read(folder, content, **how))

    def reread(form: str, categories: str) -> Detections:
        path = folder / "results.json"
        return read_results(path, TRUTH, box_format=form, categories=categories)

    return explain(truth, found, reread, **how)


@pytest.mark.parametrize("form", ["xyxy", "cxcywh", "xywh_normalised", "cxcywh_normalised"])
def test_boxes_of_another_format_are_noticed(tmp_path: Path, form: str) -> None:
    content = entries(bbox=tuple(in_format(box, form) for box in XYXY))
    told = hints(tmp_path, content)
    assert f"read with box_format={form}, AP50 is 100.0" in told


def test_exchanged_categories_are_noticed(tmp_path: Path) -> None:
    told = hints(tmp_path, entries(category_id=(5, 3)))
    assert len(told) == 1
    assert "with all classes as one (class_agnostic=true), AP50 is 100.0" in told[0]


def test_shifted_categories_are_noticed(tmp_path: Path) -> None:
    """Categories are counted from 0 in the file, and read as if counted from 1."""
    content = entries(category_id=(1, 1))[1:]
    told = hints(tmp_path, content, categories="from_one", only=9)
    assert "read with categories=from_zero, AP50 is 100.0" in told


def test_a_detector_that_is_just_bad_is_not_explained(tmp_path: Path) -> None:
    assert hints(tmp_path, entries(bbox=([5, 5, 9, 9], [1, 1, 5, 5]))) == []
    assert hints(tmp_path, entries()) == []
    assert hints(tmp_path, []) == []
