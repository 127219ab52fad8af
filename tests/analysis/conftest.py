"""Fixtures for the tests of studies."""

from pathlib import Path

import pytest
from run_folders import detections_of, truth, write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Write two arms of three seeds each. The second arm misses far more objects."""
    folder = tmp_path / "sweep"
    for number in range(6):
        arm, seed = ("none", "c5_v2")[number // 3], number % 3
        missing = (0.1, 0.7)[number // 3]
        write_run(
            folder / str(number),
            f"deform={arm}",
            f"seed={seed}",
            detections=detections_of(truth(), 10 * number, missing),
        )
    return folder
