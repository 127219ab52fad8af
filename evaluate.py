"""Scores a checkpoint, or results files that anything may have made.

    python evaluate.py checkpoint=PATH [data=...] [metric=coco|voc07|voc12]
    python evaluate.py detections=RESULTS.json data.annotations=GT.json [metric=...]
    python evaluate.py detections=A.json compare_with=B.json data.annotations=GT.json [metric=...]

configs/evaluate.yaml says what else there is, `detector/commands/evaluate.py` what is done.
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from detector import entry
from detector.config import check_given, typed_evaluate


@hydra.main(version_base="1.3", config_path=str(entry.CONFIGS), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """A checkpoint or a results file."""
    with entry.one_line_errors():
        if "transform" in cfg.data:  # what a training needs need not be given
            no_augmentation = OmegaConf.load(entry.CONFIGS / "augment" / "none.yaml")
            cfg.data.transform = OmegaConf.merge(no_augmentation, cfg.data.transform)
        if "train" in cfg.data:
            cfg.data.train = None
            check_given(cfg)
            cfg.data.train = cfg.data.val
        config = typed_evaluate(cfg)
        from detector.commands import evaluate  # torch, which takes seconds to import

        evaluate.run(config)


if __name__ == "__main__":
    entry.run(main)
