"""Text for terminals and markdown tables, with what would break either escaped."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; what would break a row, or a terminal, is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)


def one_line(text: str) -> str:
    """A text without line ends, and without what would disturb a terminal."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _escape(text: str) -> str:
    return one_line(text).replace("|", "\\|")
