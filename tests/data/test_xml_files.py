"""Tests of the XML parser: encodings, entities and limits."""

from pathlib import Path

import pytest

from detector.data.errors import DatasetError
from detector.data.xml_files import MAX_BYTES, MAX_DEPTH, MAX_ELEMENTS, parse_xml


def write(folder: Path, content: bytes) -> Path:
    (folder / "a.xml").write_bytes(content)
    return folder / "a.xml"


@pytest.mark.parametrize(
    ("encoding", "label"),
    [
        ("gb2312", "鱼"),
        ("GBK", "魚"),
        ("big5", "魚"),
        ("shift_jis", "さかな"),
        ("euc-kr", "물고기"),
        ("utf-16", "鱼"),
        ("iso-8859-1", "é"),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, label: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><a><name>{label}</name></a>'
    assert parse_xml(write(tmp_path, text.encode(encoding))).findtext("name") == label


def test_an_encoding_that_is_not_the_declared_one(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="gb2312"?><a>鱼</a>'.encode()[:-5] + b"\xff"
    with pytest.raises(DatasetError, match=r"a\.xml: cannot be read as XML"):
        parse_xml(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a>",
        '<?xml version="1.0" encoding="nonsense"?><a/>',
        '<!DOCTYPE a [<!ENTITY e "x">]><a>&e;</a>',
        '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>',
    ],
)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match=r"a\.xml: cannot be read as XML"):
        parse_xml(write(tmp_path, text.encode()))


def test_limits(tmp_path: Path) -> None:
    nested, many = MAX_DEPTH - 1, MAX_ELEMENTS - 1  # beside the root
    parse_xml(write(tmp_path, b"<a>" + b"<b>" * nested + b"</b>" * nested + b"</a>"))
    parse_xml(write(tmp_path, b"<a>" + b"<b/>" * many + b"</a>"))
    parse_xml(write(tmp_path, b"<a/>" + b" " * (MAX_BYTES - 4)))
    nested, many = MAX_DEPTH, MAX_ELEMENTS
    for content, words in (
        (b"<a>" + b"<b>" * nested + b"</b>" * nested + b"</a>", f"over {MAX_DEPTH} elements deep"),
        (b"<a>" + b"<b/>" * many + b"</a>", f"over {MAX_ELEMENTS} elements"),
        (b"<a/>" + b" " * (MAX_BYTES - 3), f"expected at most {MAX_BYTES}"),
    ):
        with pytest.raises(DatasetError, match=words):
            parse_xml(write(tmp_path, content))
