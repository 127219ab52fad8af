"""Writes a checkpoint's weights and a model card for others; `detector/training/export.py` does it.

python -m detector.training.checkpoint export CHECKPOINT DIRECTORY
"""

from detector.training.export import main

if __name__ == "__main__":
    main()
