"""A study of runs, written as study.json, study.md and study.html."""

import json
import logging
from pathlib import Path

from tqdm import tqdm

from detector.analysis.study.report import arms_table, markdown
from detector.analysis.study.runs import read_runs
from detector.analysis.study.study import study
from detector.training.record import write_json

log = logging.getLogger("study")

RESAMPLES = 1000


def write(
    folders: list[Path],
    output: Path,
    *,
    baseline: str | None = None,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> None:
    """Study the runs in these folders and write the three files.

    Raises:
        StudyError: there is nothing to study, or no such baseline.
    """
    runs = read_runs(folders)
    total = sum(len(of_arm) for of_arm in runs.arms.values())
    with tqdm(total=total, desc="resampling", unit="run", disable=None, leave=False) as bar:
        content = study(
            runs,
            baseline=baseline,
            num_resamples=num_resamples,
            seed=seed,
            progress=lambda _: bar.update() and None,
        )
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "study.json", content)
    (output / "study.md").write_text(markdown(content), encoding="utf-8")
    log.info("%s\n\n%s\n\nall of it is in %s", content["says"], arms_table(content), output)


def read(path: Path) -> dict[str, object]:
    """A study.json."""
    content: dict[str, object] = json.loads(path.read_text())
    return content
