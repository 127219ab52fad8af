"""Exports a checkpoint's weights and a model card; see `detector/training/release.py`.

python -m detector.training.checkpoint export CHECKPOINT DIRECTORY
"""

from detector.training.release import main

if __name__ == "__main__":
    main()
