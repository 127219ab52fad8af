"""Tests of `python -m detector.data`: the output, files and exit code of each command."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.config import ConfigError
from detector.data.__main__ import main
from detector.data.dataset import DatasetError
from detector.data.sheet import HEADING

CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 32} for i in range(3)],
    "annotations": [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 16]} for i in range(3)
    ],
    "categories": [{"id": 1, "name": "cat"}],
}


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """The arguments of a training on data without faults."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}.json").write_text(json.dumps(CONTENT))
        for image in CONTENT["images"]:
            pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
    words = [f"data.{s}.images={s} data.{s}.annotations={s}.json" for s in ("train", "val")]
    return f"data=coco data.root={tmp_path} data.num_workers=0 {' '.join(words)}".split()


def test_clean_data(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made" / "report.json"
    assert main(["check", f"json={file}", *overrides]) == 0
    out = capsys.readouterr().out
    assert "| images | 3 | 3 |" in out and "\n0 errors, 0 warnings\n" in out
    same = " ".join(overrides)
    assert (  # 800 / 32 = 25
        "\nval: images are resized so that their shorter side is 800 pixels and their longer side "
        "at most 1333: enlarged 25 times\n\nNext: "
    ) in out
    assert out.endswith(
        f"Next: look at the boxes, then train:\n  python -m detector.data sheet {same}\n"
        f"  python train.py {same}\n"
    )

    assert main(["check", "--json", *overrides]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert printed["problems"] == [] and printed["splits"]["val"]["classes"] == {"cat": 3}


def test_broken_files_are_errors(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = bytearray((tmp_path / "val" / "1.png").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "val" / "1.png").write_bytes(broken)
    assert main(["check", *overrides]) == 0  # its first and last bytes are correct
    assert main(["check", "--json", "decode=true", *overrides]) == 1
    out = capsys.readouterr().out
    (problem,) = json.loads(out[out.index("{") :])["problems"]
    assert problem["severity"] == "error" and problem["image_id"] == 1
    assert problem["file"] == str(tmp_path / "val" / "1.png") and problem["split"] == "val"


def test_a_mended_copy(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A new file has faulty boxes clipped or left out, and the original does not change."""
    given = json.loads((tmp_path / "train.json").read_text())
    first, second, third = given["annotations"][:3]
    first["bbox"] = [-0.5, 2, 10, 8]  # clipped
    second["category_id"] = 77  # left out
    third["bbox"] = ["1", "2", "3", "4"]
    given["images"][2]["file_name"] = "lost.png"
    (tmp_path / "train.json").write_text(json.dumps(given))
    before = (tmp_path / "train.json").read_bytes()
    mended = tmp_path / "made" / "mended.json"
    assert main(["check", f"fix={mended}", *overrides]) == 1
    told = capsys.readouterr()
    assert "let fix=FILE write a copy" in told.out and str(mended) in told.err
    assert (tmp_path / "train.json").read_bytes() == before

    content = json.loads(mended.read_text())
    assert len(content["images"]) == len(given["images"]) - 1
    boxes = [entry["bbox"] for entry in content["annotations"]]
    assert [0.0, 2.0, 9.5, 8.0] in boxes
    changes = mended.with_suffix(".changes.txt").read_text()
    for words in ("box clipped", "category_id 77", "lost.png"):
        assert words in changes
    again = [word for word in overrides if not word.startswith("data.train.annotations")]
    assert main(["check", *again, f"data.train.annotations={mended}"]) == 0
    assert main(["check", *overrides]) == 1  # the original still has its errors
    with pytest.raises(ConfigError, match="exists already"):
        main(["check", f"fix={mended}", *overrides])


FAULTS: dict[str, Callable[[dict], object]] = {
    "not finite": lambda content: content["annotations"][1].update(bbox=[float("nan"), 1, 2, 3]),
    "outside": lambda content: content["annotations"][1].update(bbox=[40, 4, 20, 16]),
    "category_id 77": lambda content: content["annotations"][1].update(category_id=77),
    "does not exist": lambda content: content["images"][1].update(file_name="lost.png"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_reader_refuses_is_an_error(
    fault: str,
    split: str,
    tmp_path: Path,
    overrides: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = copy.deepcopy(CONTENT)
    FAULTS[fault](content)
    (tmp_path / f"{split}.json").write_text(json.dumps(content))
    assert main(["check", "--json", *overrides]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] >= 1
    problem = next(p for p in report["problems"] if p["severity"] == "error")
    assert problem["split"] == split
    assert fault in problem["detail"] or fault in problem["kind"]


def test_every_fault_is_listed(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"] += [{**content["annotations"][0], "id": 4 + i} for i in range(2)]
    content["annotations"][3].update(bbox=[float("nan"), 1, 2, 3])
    content["annotations"][4].update(category_id=77)
    content["images"] += [{**content["images"][0], "id": 9, "file_name": "lost.png"}]
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert main(["check", "--json", *overrides]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [(p["kind"], p["image_id"]) for p in report["problems"]] == [
        ("image left out", 9),
        ("object left out", 0),
        ("box not finite", 0),
    ]
    assert report["errors"] == 3 and report["splits"]["val"]["objects"] == 3


@pytest.mark.parametrize("command", ["sheet", "benchmark"])
def test_other_commands_tell_errors_as_well(
    command: str, tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = copy.deepcopy(CONTENT)
    content["annotations"][0]["category_id"] = 77
    (tmp_path / "train.json").write_text(json.dumps(content))
    words = [command, f"out={tmp_path / 'sheet.png'}", "rounds=1", "num_images=1", *overrides]
    with pytest.raises(DatasetError, match="category_id 77"):
        main(words)
    assert main([*words, "data.on_error=warn"]) == 0
    assert "1 x object left out in train, such as" in capsys.readouterr().err


def test_sheet(tmp_path: Path, overrides: list[str]) -> None:
    file = tmp_path / "made" / "sheet.png"
    assert main(["sheet", f"out={file}", "num_images=2", *overrides]) == 0
    with Image.open(file) as image:
        assert image.mode == "RGB"
        assert image.width == 4 * (image.height - HEADING)  # two pairs in one row


def test_benchmark(
    tmp_path: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rates.json"
    words = ["rounds=3", "num_images=2", f"json={file}", "data.transform.train_min_sizes=[40]"]
    assert main(["benchmark", *words, *overrides]) == 0
    report, out = json.loads(file.read_text()), capsys.readouterr().out
    loaders = {"ours", "plain", "ours, decoding", "plain, decoding"}
    assert set(report["rounds"]) == loaders
    assert set(report["summary"]) == loaders | {"ours / plain"}
    for name in loaders:
        rates = report["rounds"][name]
        assert len(rates) == 3 and min(rates) > 0
        assert report["summary"][name]["median"] == sorted(rates)[1]
        assert f"| {name} | {sorted(rates)[1]:.1f} |" in out
    pairs = zip(report["rounds"]["ours"], report["rounds"]["plain"], strict=True)
    ratios = [ours / plain for ours, plain in pairs]
    assert report["summary"]["ours / plain"]["median"] == sorted(ratios)[1]


def test_prepare_says_whether_all_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "coco", "--root", str(tmp_path)]) == 1
    assert "curl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["look"], "look must be one of check, sheet, benchmark, prepare"),
        (["check", "data=coco"], "data.train.images"),
        (["check", "rounds=0"], "rounds=0"),
        (["check", "decode=perhaps"], "decode"),
        (["check", "+unknown=1"], "unknown"),
    ],
)
def test_wrong_words(words: list[str], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        main(words)


def test_a_sheet_of_what_cannot_be_loaded(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "train" / "2.png").write_bytes(b"")
    with pytest.raises(DatasetError, match="2.png"):
        main(["sheet", f"out={tmp_path / 'sheet.png'}", *overrides])


def test_a_file_that_cannot_be_written(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="json=/proc/nothing.json cannot be written"):
        main(["check", "json=/proc/nothing.json", *overrides])
    with pytest.raises(ConfigError, match="out=/proc/no/sheet.png cannot be written"):
        main(["sheet", "out=/proc/no/sheet.png", "num_images=1", *overrides])
