"""Formats text for terminals and markdown tables, and escapes characters that would break them."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a markdown table; line ends, pipes and control characters are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_escape, line)) + " |" for line in lines)


def one_line(text: str) -> str:
    """Return a text in one line, with characters that are not printable escaped."""
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


def _escape(text: str) -> str:
    return one_line(text).replace("|", "\\|")
