"""Markdown pages, and the comments in them between which the figures stand."""

import json
import re
from pathlib import Path

from detector.config import ConfigError
from detector.quote.tables import TABLES
from detector.quote.values import value

CODE = r"^```.*?^```|`[^`\n]*`"
QUOTE = r"^<!-- quote (?P<kind>\S+) (?P<file>\S+)(?P<rest>[^\n]*?) -->\n.*?^<!-- end of quote -->"
VALUE = (
    r"(?P<alone>^[ \t]*)?<!-- value (?P<value_file>\S+): (?P<path>[^\n]*?):(?P<format>[^:\n]*?)-->"
    r"[^<\n]*<!-- end -->"
)
PARTS = re.compile(f"(?P<code>{CODE})|{QUOTE}|{VALUE}", re.DOTALL | re.MULTILINE)


def quoted(path: Path) -> str:
    """Return the text of a markdown page with all its quotes brought up to date.

    Raises:
        ConfigError: a quote names a file, an entry or a kind that does not exist.
    """

    def fresh(found: re.Match[str]) -> str:
        if found["code"] is not None:
            return found[0]
        where = f"{path}, line {found.string.count(chr(10), 0, found.start()) + 1}"
        name = found["file"] or found["value_file"]
        try:
            content = json.loads((path.parent / name).read_text(encoding="utf-8"))
            if found["kind"] is None:
                if found["alone"] is not None:
                    raise ValueError("a line must not begin with a value's comment")
                opening = found[0].split("-->")[0]
                text = value(content, found["path"], found["format"].strip())
                return f"{opening}-->{text}<!-- end -->"
            words = found["rest"].split()
            if found["kind"] not in TABLES:
                raise ValueError(f"{found['kind']} must be one of {', '.join(TABLES)}")
            opening = found[0].split("\n")[0]
            text = TABLES[found["kind"]](content, *words)
            return f"{opening}\n\n{text}\n\n<!-- end of quote -->"
        except OSError as error:
            raise ConfigError(f"{where}: {name}: {error.strerror}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(f"{where}: {name}: {type(error).__name__} {error}") from error

    return PARTS.sub(fresh, path.read_text(encoding="utf-8"))
