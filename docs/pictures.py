"""Takes the README's screenshot of the study page for results/study/study.json, with chromium.

    pip install -e '.[browser]' && python docs/pictures.py

The SHA-256 of study.json is stored in the picture's metadata, and a test compares it.
"""

import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from detector.analysis.study.page import page

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "results" / "study" / "study.json"
PICTURE = ROOT / "docs" / "study-page.png"
KEY = "SHA-256 of study.json"
WIDTH, HEIGHT, MARGIN = 1100, 826, 20  # pixels: what it says, its table and the first two charts
COLOURS = 96


def digest() -> str:
    """Return the SHA-256 of the committed study."""
    return hashlib.sha256(STUDY.read_bytes()).hexdigest()


def screenshot() -> Image.Image:
    """Render the study page and return its top."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("error: no chromium was found on PATH; install it")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "study.html"
        path.write_text(page(json.loads(STUDY.read_text()), None), encoding="utf-8")
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        view.goto(path.as_uri())
        taken = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        opened.close()
    return taken.crop((0, MARGIN, WIDTH, HEIGHT))


def main() -> None:
    """Take the screenshot and write it with the study's SHA-256."""
    said = PngImagePlugin.PngInfo()
    said.add_text(KEY, digest())
    screenshot().quantize(COLOURS).save(PICTURE, optimize=True, pnginfo=said)
    print(PICTURE)


if __name__ == "__main__":
    main()
