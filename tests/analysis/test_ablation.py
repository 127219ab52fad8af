"""The table of a comparison."""

import json
from pathlib import Path

from detector.analysis.ablation import write_table


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
