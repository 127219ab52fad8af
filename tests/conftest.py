"""Fixtures for every test."""

from pathlib import Path

import pytest

from detector.data.loading import kill_workers


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here: {folder} does not exist")
    return folder


def pytest_sessionfinish() -> None:
    """Workers of loaders that tests keep would hold up the end: they leave late, see loading.py."""
    kill_workers()
