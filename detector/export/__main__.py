"""Export the detector of a checkpoint, and check that the exported one gives the same detections.

    python -m detector.export checkpoint=runs/.../checkpoints/best.pt output=model.onnx
    python -m detector.export checkpoint=CHECKPOINT output=model.onnx images=DIR
    python -m detector.export checkpoint=CHECKPOINT format=torch output=model.pt2 size=[480,640]

configs/export.yaml describes all values.
"""

import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import parse_export


def main() -> None:
    """Run the command with the key=value arguments that it was called with."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = parse_export(compose("export", sys.argv[1:]))
    from detector.commands import export  # imports torch, which takes seconds

    export.run(config)


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
