"""Hooks for mkdocs, which make a site of pages that are written to be read in the repository.

CONTRIBUTING.md and, if it exists, CHANGELOG.md become pages of the site. scale.md and the changelog
are added to the navigation if their files exist. A link to a file outside docs/ is changed: it
leads to the page that was made of the file or, if `repo_url` is set, to the file in the repository;
otherwise only its text is kept.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OF_THE_ROOT = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages that do not always exist to the navigation."""
    use, reference = _section(config.nav, "Use"), _section(config.nav, "Reference")
    if (ROOT / "docs" / "scale.md").exists():
        use.append({"At scale": "scale.md"})
    if (ROOT / "CHANGELOG.md").exists():
        reference.append({"Changelog": "changelog.md"})
    return config


def _section(nav: Any, title: str) -> list[Any]:
    (found,) = [one[title] for one in nav if isinstance(one, dict) and title in one]
    assert isinstance(found, list)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root folder as pages."""
    for name, page in OF_THE_ROOT.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links that lead out of docs/."""
    source = next((k for k, v in OF_THE_ROOT.items() if v == page.file.src_uri), None)
    folder = PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent
    folder = folder if source is None else PurePosixPath()

    def inside(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        place = normpath(str(folder / path))
        at = f"#{anchor}" if anchor else ""
        up = "../" * len(PurePosixPath(page.file.src_uri).parent.parts)
        if place in OF_THE_ROOT:
            return f"{mark}[{text}]({up}{OF_THE_ROOT[place]}{at})"
        if place == "docs" or place.startswith("docs/"):
            return f"{mark}[{text}]({up}{place.removeprefix('docs/')}{at})"
        if config.repo_url:
            return f"{mark}[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{place})"
        return text

    # The theme's script does not accept an anchor that begins with a digit.
    markdown = re.sub(r"^## \[(\d[^\]]*)\]", r"## Version \1", markdown, flags=re.MULTILINE)
    parts = CODE.split(markdown)  # every second one is code
    return "".join(LINK.sub(inside, part) if i % 2 == 0 else part for i, part in enumerate(parts))
