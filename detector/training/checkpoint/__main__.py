"""Exports a checkpoint's weights and a model card; see `detector/training/export.py`.

python -m detector.training.checkpoint export CHECKPOINT DIRECTORY
"""

from detector.training.export import main

if __name__ == "__main__":
    main()
