"""What is wrong with the detections of a results file, and what each kind of error costs.

    python -m detector.analysis.errors detections=RESULTS.json annotations=GT.json output=DIR
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. iou=0.75
    python -m detector.analysis.errors detections=A.json annotations=GT.json output=. min_score=0.3

writes errors.md, errors.json, three pictures (PNG) and the same pictures for TensorBoard into DIR.

The kinds are those of TIDE, as `diagnosis.py` beside this file defines them; mending all errors of
one kind alone gives what they cost in AP50.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from detector import entry
from detector.config import ConfigError, typed


@dataclass
class ReportConfig:
    """What the command takes; `iou` and `min_score` are the confusion matrix's."""

    detections: str
    annotations: str
    output: str
    iou: float = 0.5
    min_score: float = 0.5


def main() -> None:
    """key=value arguments, as everywhere."""
    given = OmegaConf.from_cli(sys.argv[1:])
    config = typed(ReportConfig, given)
    if not 0 < config.iou <= 1:
        raise ConfigError(f"iou={config.iou} must be in (0, 1]")
    from detector.commands import errors  # torch, which takes seconds to import

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
