"""Parses XML files from untrusted sources.

Entities are refused, and the size, the number of elements and their nesting are limited.
"""

import codecs
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, TreeBuilder

from defusedxml.ElementTree import XMLParser

from detector.data.errors import file_error
from detector.data.folder import read_file

MULTIBYTE = ("gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")
MAX_BYTES = 2**20  # of an XML file; a thousand objects take a quarter of that
MAX_ELEMENTS = 50_000  # in an XML file; enough for four thousand objects
MAX_DEPTH = 32  # of nested elements in an XML file; the devkit has 4


class _LimitedTree(TreeBuilder):
    """Builds the element tree with limits on the number of elements and on their nesting.

    A megabyte of nothing but elements would take seconds to parse.
    """

    number = 0
    depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self.number += 1
        self.depth += 1
        if self.number > MAX_ELEMENTS:
            raise ValueError(f"over {MAX_ELEMENTS} elements")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"over {MAX_DEPTH} elements deep")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> Element:
        self.depth -= 1
        return super().end(tag)


def parse_xml(xml: Path) -> Element:
    """Return the root element of an XML file.

    Raises:
        DatasetError: the file cannot be read, is not XML, declares entities, or exceeds a limit.
    """
    encoded = read_file(xml, max_bytes=MAX_BYTES)
    try:
        parser = XMLParser(target=_LimitedTree())
        parser.feed(_readable(encoded))
        tree: Element = parser.close()
    except (ParseError, ValueError, LookupError) as error:
        raise file_error(xml, f"cannot be read as XML ({error})") from error
    return tree


def _readable(encoded: bytes) -> bytes:
    """Convert an XML file to UTF-8 if it declares a multi-byte encoding that the parser lacks.

    An example of such an encoding is gb2312.
    """
    declared = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)[\"'][^>]*\?>", encoded)
    if declared is None:
        return encoded
    codec = codecs.lookup(declared[1].decode("ascii")).name
    if codec not in MULTIBYTE:
        return encoded
    codec = "gb18030" if codec in ("gb2312", "gbk") else codec  # a superset of both
    return encoded[declared.end() :].decode(codec).encode()
