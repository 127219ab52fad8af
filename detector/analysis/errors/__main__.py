"""Splits the errors in a results file by kind, and measures the AP50 that each kind costs.

    python -m detector.analysis.errors detections=RESULTS.json annotations=GT.json output=DIR
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. iou=0.75
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. min_score=0.3

The command prints the tables of errors.md, and writes errors.md, errors.json, three pictures (PNG)
and the same pictures for TensorBoard into output=DIR.

The kinds of errors are those of TIDE; the docstring of diagnosis.py, in the folder of this command,
defines them. A kind costs the AP50 that would be gained if all errors of this kind, and no others,
were fixed.

The confusion matrix matches detections with a score of at least min_score (by default 0.5) to
objects at an IoU of at least iou (by default 0.5).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, parse


@dataclass
class ReportConfig:
    """Arguments of the command; `iou` and `min_score` are used for the confusion matrix."""

    detections: str
    annotations: str
    output: str
    iou: float = 0.5
    min_score: float = 0.5


def main() -> None:
    """Run the command with the key=value arguments of the command line."""
    given = OmegaConf.from_cli(sys.argv[1:])
    config = parse(ReportConfig, given)
    if not 0 < config.iou <= 1:
        raise ConfigError(f"iou={config.iou} must be in (0, 1]")
    from detector.commands import errors  # imports torch, which takes seconds

    try:
        print(
            errors.report(
                Path(config.detections),
                Path(config.annotations),
                Path(config.output),
                iou=config.iou,
                min_score=config.min_score,
            ),
            end="",
        )
    except OSError as error:
        raise ConfigError(f"output={given.output}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
