"""Scores a checkpoint or results files of any detector.

    python evaluate.py checkpoint=PATH [data=...] [metric=coco|voc07|voc12]
    python evaluate.py detections=RESULTS.json data.annotations=GT.json [metric=...]
    python evaluate.py detections=A.json compare_with=B.json data.annotations=GT.json [metric=...]

configs/evaluate.yaml lists all values.
"""

import hydra
from omegaconf import DictConfig

from detector import entry
from detector.command_configs import fill_in_training_data, parse_evaluate


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Check the configuration, then evaluate; torch is imported only for a checkpoint."""
    with entry.one_line_errors():
        config = parse_evaluate(fill_in_training_data(cfg))
        from detector.commands import evaluate

        evaluate.run(config)


if __name__ == "__main__":
    entry.run(main)
