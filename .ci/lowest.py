"""Prints the lowest versions that a pyproject.toml admits, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in sorted({line for group in groups for line in group}):
    lowest = re.match(r"([\w.-]+)[^>=]*[>=]=([\w.]+)", requirement)
    if lowest:
        print(f"{lowest[1]}=={lowest[2]}")
