"""Decodes image files to RGB pixels, in the same way for training and evaluation.

The formats are JPEG, PNG, WebP, BMP, TIFF and GIF, recognised by their first bytes and not by the
file's name. torchvision decodes JPEG. Pillow decodes the other formats, and JPEG in CMYK:
torchvision reads no BMP, no TIFF and no animated WebP, and a PNG with a flipped bit can crash the
process in torchvision (0.29.2: a segmentation fault after "bad adaptive filter value"). Of several
frames or pages, the first is read.

Colours are converted as by Pillow's `convert("RGB")`: grey values are repeated, palettes are
applied, and the alpha channel is dropped without blending. Values of 16 bits are reduced to their
upper 8 bits (v // 256); Pillow does so for colour, but clips grey values at 255.

EXIF orientation: some data sets annotate the pixels as stored, others as a viewer shows them, that
is, rotated or mirrored as the EXIF orientation says. The annotated image size tells which of the
two it is. If it fits both (a half turn, a mirror image, a square), the EXIF orientation is applied,
as browsers, OpenCV and annotation tools do.

Sizes are (h, w).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_image

from detector.data.errors import file_error
from detector.data.folder import read_file

MAX_BYTES = 512 * 2**20  # the largest file that is read
MAX_PIXELS = 89_478_485  # the largest image: a quarter of a gigabyte as RGB; also Pillow's limit

ORIENTATION = 0x0112  # the EXIF tag, whose values are 1 to 8
KINDS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
DEEP = (
    "I",
    "F",
    "I;16S",
    "I;32",
)  # Pillow's modes whose values have an unknown range
JPEG_END = b"\xff\xd9"
HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
MAX_SCANNED = 10**9  # scans x pixels of a JPEG: takes seconds to decode; usual files have 10 scans
PNG_END = b"IEND\xaeB`\x82"  # name and checksum of the last chunk

Size = tuple[int, int]


class Header(NamedTuple):
    """The properties of an image file that are known before it is decoded."""

    kind: str  # one of the values of KINDS
    mode: str  # Pillow's mode: "RGB", "L", "P", ...
    size: Size  # as stored
    orientation: int  # EXIF: 1 upright (or no tag), 2 to 4 keep the size, 5 to 8 swap its sides

    @property
    def upright_size(self) -> Size:
        """The size after the EXIF orientation is applied."""
        height, width = self.size
        return (width, height) if self.orientation > 4 else (height, width)


def read_image(path: Path, *, size: Size | None = None) -> Tensor:
    """Read an image file.

    Args:
        size: the annotated size, which decides whether the EXIF orientation is applied. None
            applies it.

    Returns:
        RGB pixels, uint8 (3, H, W). Their memory layout is channels last, as they were decoded: a
        copy to channels first would take a third of the time.

    Raises:
        DatasetError: the file cannot be read, is too large, is of an unknown format, is damaged,
            or does not have the annotated size. Damage is found as far as the format allows: many
            flipped bits in a JPEG go unnoticed.
    """
    encoded = read_file(path, max_bytes=MAX_BYTES)
    header = read_header(encoded, path)
    size = size or header.upright_size
    if size not in (header.size, header.upright_size):
        raise file_error(path, _wrong_size(header, size))
    try:
        pixels = _decode(encoded, header)
    except Exception as error:  # a damaged file can raise any exception
        raise file_error(path, f"cannot be decoded ({error})") from error
    if pixels.shape[1:] != header.size:
        raise file_error(path, "cannot be decoded (its header gives another size)")
    return apply_orientation(pixels, header.orientation) if size == header.upright_size else pixels


def image_size(path: Path) -> Size:
    """Read the size (h, w) of an image file, after its EXIF orientation is applied.

    Raises:
        DatasetError: the file cannot be read, or `read_header` refuses it.
    """
    return read_header(read_file(path, max_bytes=MAX_BYTES), path).upright_size


def read_header(encoded: bytes, path: Path) -> Header:
    """Read the header of an encoded image. `path` is only used in error messages.

    Raises:
        DatasetError: the header is damaged or of an unknown format, or the image has more than
            MAX_PIXELS pixels.
    """
    kind = _kind(encoded)
    if kind is None:
        raise file_error(path, f"cannot be decoded ({_unknown_kind(encoded)})")
    try:
        with _opened(encoded, kind) as image:
            size = (image.height, image.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{_text(size)} pixels")
            return Header(kind, image.mode, size, _orientation(image, kind, encoded))
    except Image.DecompressionBombError as error:
        raise file_error(path, f"refused, over {MAX_PIXELS} pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise file_error(path, "cannot be decoded (its header is incomplete)") from error
    except Exception as error:  # a damaged file can raise any exception
        raise file_error(path, f"cannot be decoded ({error})") from error


def apply_orientation(pixels: Tensor, orientation: int) -> Tensor:
    """Apply an EXIF orientation to an image (3, H, W), as a viewer does.

    Orientations 5 to 8 swap the sides: the result is then (3, W, H).
    """
    if orientation > 4:
        pixels = pixels.transpose(1, 2)
    # The axes to reverse: 1 for the order of rows, 2 for the order of columns.
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return pixels.flip(flipped) if flipped else pixels  # flip always copies


# ---- Decoding ------------------------------------------------------------------------------------


def _decode(encoded: bytes, header: Header) -> Tensor:
    """Decode to uint8 (3, H, W) as stored; a damaged file can raise any exception."""
    if header.kind == "JPEG":
        scans = encoded.count(b"\xff\xda")  # within the data of a scan, FF is followed by 00
        if scans * header.size[0] * header.size[1] > MAX_SCANNED:
            raise ValueError(f"{scans} scans of {_text(header.size)} pixels would take too long")
    if header.kind == "JPEG" and header.mode != "CMYK":
        buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return decode_image(buffer, mode="RGB")
    if header.kind == "PNG":
        with _opened(encoded, header.kind) as image:
            # Verify the checksums, which decoding ignores. The image cannot be used afterwards.
            image.verify()
        if PNG_END not in encoded:
            raise ValueError("truncated: its last chunk is incomplete")
    with _opened(encoded, header.kind) as image:
        if image.mode in DEEP:
            raise ValueError(f"pixels of Pillow's mode {image.mode}, expected 8 or 16 bits")
        if image.mode.startswith("I;16"):
            pixels = np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _opened(encoded: bytes, kind: str) -> Iterator[Image.Image]:
    """Open an image in Pillow without its warnings, whose causes are checked in this module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded), formats=[kind]) as image:
            yield image


# ---- Headers ------------------------------------------------------------------------------------


def _kind(encoded: bytes) -> str | None:
    for magic, kind in KINDS.items():
        if encoded.startswith(magic) and (kind != "WEBP" or encoded[8:12] == b"WEBP"):
            return kind
    return None


def _orientation(image: Image.Image, kind: str, encoded: bytes) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is missing or unreadable, as viewers assume."""
    if kind == "PNG" and b"eXIf" not in encoded:
        return 1  # Pillow would decode the whole image to look for the block
    if kind == "TIFF":
        return 1  # Pillow applies the orientation itself and gives the size after it
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged block can raise any exception
        return 1
    return orientation if orientation in range(1, 9) else 1


# ---- Messages -----------------------------------------------------------------------------------


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _unknown_kind(encoded: bytes) -> str:
    if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF:
        return "HEIC or AVIF: convert it to JPEG or PNG, for example with the package pillow-heif"
    start = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
    return f"not a JPEG, PNG, WebP, BMP, TIFF or GIF file: {start}"


def _wrong_size(header: Header, size: Size) -> str:
    turned = ""
    if header.upright_size != header.size:
        turned = f" ({_text(header.upright_size)} turned by its EXIF orientation)"
    return f"the file is {_text(header.size)} pixels{turned}, its annotation says {_text(size)}"
