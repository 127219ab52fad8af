"""Detects objects in images with a checkpoint's model, and draws them.

    python predict.py checkpoint=PATH images=DIR|FILE [output=DIR] [min_score=0.5]

configs/predict.yaml lists all values. `detector/commands/predict.py` and
`detector/commands/prediction_files.py` describe the files that are written.
"""

import hydra
from omegaconf import DictConfig

from detector import entry
from detector.command_configs import parse_predict


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="predict")
def main(cfg: DictConfig) -> None:
    """Check the configuration, then detect in an image or in all images of a folder."""
    with entry.one_line_errors():
        config = parse_predict(cfg)
        from detector.commands import predict  # torch, which takes seconds to import

        predict.run(config)


if __name__ == "__main__":
    entry.run(main)
