"""The manual's screenshot of a study page shows the committed study, and pictures are small."""

import hashlib
import re

from pages import ROOT
from PIL import Image

STUDY = ROOT / "results" / "study" / "study.json"


def test_the_picture_is_of_the_study_as_it_is() -> None:
    said = Image.open(ROOT / "docs" / "study-page.png").info
    assert said["SHA-256 of study.json"] == hashlib.sha256(STUDY.read_bytes()).hexdigest()


def test_pictures_are_small_and_used() -> None:
    pages = "".join(
        path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    )
    for path in ROOT.glob("docs/*.*"):
        if path.suffix in (".png", ".jpg", ".svg"):
            assert path.stat().st_size < 200_000, path
            assert re.search(rf"\((docs/)?{re.escape(path.name)}\)", pages), path
