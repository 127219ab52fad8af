"""Writes a checkpoint's detector for another runtime, and checks that it finds the same there.

    python -m detector.export checkpoint=runs/.../checkpoints/best.pt output=model.onnx
    python -m detector.export checkpoint=CHECKPOINT output=model.onnx images=DIR
    python -m detector.export checkpoint=CHECKPOINT format=torch output=model.pt2 size=[480,640]

configs/export.yaml says what the values are.
"""

import sys

from hydra import compose, initialize_config_dir

from detector import entry
from detector.command_configs import typed_export


def main() -> None:
    """key=value arguments, as everywhere."""
    with initialize_config_dir(version_base="1.3", config_dir=str(entry.CONFIGS)):
        config = typed_export(compose("export", sys.argv[1:]))
    from detector.commands import export  # torch, which takes seconds to import

    export.run(config)


if __name__ == "__main__":
    entry.show_help(__doc__)
    entry.run(main)
