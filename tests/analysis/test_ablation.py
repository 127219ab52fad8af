"""The table of a comparison."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detector.analysis.ablation import draw_curves, write_table


def finished(folder: Path, number: int, overrides: list[str], **summary) -> None:
    run = folder / str(number)
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("".join(f"- {item}\n" for item in overrides))
    (run / "summary.json").write_text(json.dumps(summary))


def test_table(tmp_path: Path) -> None:
    numbers = {"num_parameters": 6_360_000, "seconds_per_image": 0.01234, "train_seconds": 99.7}
    done = {"status": "done", **numbers}
    arm = ["+ablation=stages", "deform=c5_v2"]
    finished(tmp_path, 10, arm, metrics={"AP": 0.5, "AP50": 1.0, "AR1": 0.1}, **done)
    finished(
        tmp_path,
        2,
        ["+ablation=stages", "deform=none", "seed=1"],
        metrics={"AP": 0.4, "AP50": None},
        **done,
    )
    finished(tmp_path, 11, ["+ablation=stages", "deform=c2-c5_v2"], status="failed")
    table = write_table(tmp_path)
    assert (tmp_path / "ablation.md").read_text() == table + "\n"
    assert table.splitlines() == [
        "| arm | AP | AP50 | M parameters | s/image | s/training |",
        "| --- | --- | --- | --- | --- | --- |",
        "| deform=none seed=1 | 40.0 | - | 6.36 | 0.0123 | 100 |",
        "| deform=c5_v2 | 50.0 | 100.0 | 6.36 | 0.0123 | 100 |",
        "| deform=c2-c5_v2 | failed |  |  |  |  |",
    ]


def test_curves(tmp_path: Path) -> None:
    """Of two runs: AP falls from 60 to 30 and rises from 0 to 60 over two epochs, the loss of the
    first is 2 in its first epoch and 1 in its second, the other has none. A third has no AP. All
    were killed while they wrote.
    """
    done = [
        {"kind": "train", "step": 1, "epoch": 1, "loss": 1.5},
        {"kind": "train", "step": 2, "epoch": 1, "loss": 2.5},
        {"kind": "val", "step": 2, "epoch": 1, "AP": 0.6, "AP50": 0.9},
        {"kind": "train", "step": 3, "epoch": 2, "loss": 1.0},
        {"kind": "train", "step": 4, "epoch": 2, "loss": None},
        {"kind": "val", "step": 4, "epoch": 2, "AP": 0.3, "AP50": 0.9},
    ]
    begun = [{"kind": "val", "epoch": epoch, "mAP": ap} for epoch, ap in ((1, 0.0), (2, 0.6))]
    none = [{"kind": "val", "epoch": 1, "AP": None}]
    for number, lines in enumerate((done, begun, none)):
        finished(tmp_path, number, [f"seed={number}"], status="failed")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / str(number) / "metrics.jsonl").write_text(text + '{"kind": "val", "ep')
    draw_curves(tmp_path)

    with Image.open(tmp_path / "ablation.png") as picture:
        left, right = np.split(np.asarray(picture.convert("RGB")).astype(int), 2, axis=1)

    def height(panel: np.ndarray, column: int, color: tuple[int, int, int]) -> float:
        """Where the line is, from 0 at the bottom of the plot to 1 at its top."""
        rows = np.flatnonzero((panel[60:561, 60 + column] == color).all(axis=1))
        return 1 - float(rows.mean()) / 500

    red, green = (204, 31, 31), (31, 204, 31)
    # 500 pixels are two epochs, and 60 percent; the first epoch ends in the middle.
    for column in (260, 400, 490):
        share = (column - 250) / 250
        assert abs(height(left, column, red) - (1 - 0.5 * share)) < 0.01
        assert abs(height(left, column, green) - share) < 0.01
        assert abs(height(right, column, red) - (1 - 0.5 * share)) < 0.01
    plot = right[60:561, 60:561]
    assert not (plot == green).all(axis=2).any()


def test_one_epoch_can_be_seen(tmp_path: Path) -> None:
    finished(tmp_path, 0, ["seed=0"], status="done")
    (tmp_path / "0" / "metrics.jsonl").write_text('{"kind": "val", "epoch": 1, "AP": 0.5}\n')
    draw_curves(tmp_path)
    with Image.open(tmp_path / "ablation.png") as picture:
        plot = np.asarray(picture.convert("RGB"))[60:561, 60:561]
    rows, columns = np.nonzero((plot == (204, 31, 31)).all(axis=2))
    assert len(rows) > 10 and rows.max() <= 4 and columns.min() >= 496  # 50 is the axis' end
