"""From the bytes of an image file to its pixels, RGB, in training and evaluation alike.

JPEG, PNG, WebP, BMP, TIFF and GIF, told by their first bytes and not by their name. torchvision
decodes JPEG. Pillow decodes the others, and JPEG in CMYK: torchvision has no BMP, no TIFF and no
animated WebP (of several frames or pages the first is taken), and a PNG with a flipped bit can end
the process in it (0.29.2: a segmentation fault after "bad adaptive filter value").

Colours are those of Pillow's `convert("RGB")`: grey is repeated, a palette is looked up,
transparency is left out and shows the colours that are stored under it. 16 bits become the upper 8
of them (v // 256); Pillow does so with colour, but clips grey at 255.

EXIF orientation. Of some data sets the annotations are of the pixels as they are stored, of others
as a viewer shows them, turned. The size that the annotations give says which. Where both sizes
agree with it (a half turn, a mirror image, a square), the image is turned, as browsers, OpenCV and
the tools that boxes are drawn with do.

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

MAX_BYTES = 512 * 2**20  # of a file
MAX_PIXELS = 89_478_485  # of an image: a quarter of a gigabyte of RGB, Pillow's limit too

ORIENTATION = 0x0112  # EXIF tag; 1 to 8
KINDS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")  # of their names
DEEP = (
    "I",
    "F",
    "I;16S",
    "I;32",
)  # Pillow's modes of values beyond 16 bits: nothing says their range
JPEG_END = b"\xff\xd9"
HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
MAX_SCANNED = 10**9  # scans of a JPEG times its pixels: seconds to decode; a normal one has ten
PNG_END = b"IEND\xaeB`\x82"  # the last chunk's name and checksum

Size = tuple[int, int]


class Header(NamedTuple):
    """What an image file says of itself before it is decoded."""

    kind: str  # one of KINDS
    mode: str  # Pillow's: "RGB", "L", "P", ...
    size: Size  # as stored
    orientation: int  # EXIF: 1 (or none) as stored, 2 to 4 of the same size, 5 to 8 sides swapped

    @property
    def turned_size(self) -> Size:
        """The size after the turn that EXIF asks for."""
        height, width = self.size
        return (width, height) if self.orientation > 4 else (height, width)


def read_image(path: Path, *, size: Size | None = None) -> Tensor:
    """The pixels uint8 (3, H, W), RGB, of an image that its annotations say has this size; of one
    without annotations, turned as EXIF says.

    In memory they lie as they were decoded, channels last: a copy would take a third of the time.

    Raises:
        DatasetError: the file cannot be read, is too large, of another kind, broken as far as its
            format shows (in a JPEG many a flipped bit does not), or of another size.
    """
    encoded = read_file(path, max_bytes=MAX_BYTES)
    header = read_header(encoded, path)
    size = size or header.turned_size
    if size not in (header.size, header.turned_size):
        raise file_error(path, _other_size(header, size))
    try:
        pixels = _decode(encoded, header)
    except Exception as error:  # of any kind: the file's bytes decide which
        raise file_error(path, f"cannot be decoded ({error})") from error
    if pixels.shape[1:] != header.size:
        raise file_error(path, "cannot be decoded (its header gives another size)")
    return turn(pixels, header.orientation) if size == header.turned_size else pixels


def image_size(path: Path) -> Size:
    """(h, w) of an image that nothing else tells the size of, turned as EXIF says.

    Raises:
        DatasetError: as `read_header`.
    """
    return read_header(read_file(path, max_bytes=MAX_BYTES), path).turned_size


def read_header(encoded: bytes, path: Path) -> Header:
    """Kind, size and orientation of an encoded image; `path` is for the message.

    Raises:
        DatasetError: no header of a known kind, or one of more than MAX_PIXELS.
    """
    kind = _kind(encoded)
    if kind is None:
        raise file_error(path, f"cannot be decoded ({_other_kind(encoded)})")
    try:
        with _opened(encoded, kind) as image:
            size = (image.height, image.width)
            if size[0] * size[1] > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{_text(size)} pixels")
            return Header(kind, image.mode, size, _orientation(image, kind, encoded))
    except Image.DecompressionBombError as error:
        raise file_error(path, f"refused, over {MAX_PIXELS} pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise file_error(path, "cannot be decoded (its header is not whole)") from error
    except Exception as error:  # of any kind: the file's bytes decide which
        raise file_error(path, f"cannot be decoded ({error})") from error


def turn(pixels: Tensor, orientation: int) -> Tensor:
    """An image (3, H, W) as a viewer shows it; orientations 5 to 8 give (3, W, H)."""
    if orientation > 4:
        pixels = pixels.transpose(1, 2)
    # Along which axes the stored image runs backwards: rows (1), columns (2).
    flipped = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return pixels.flip(flipped) if flipped else pixels  # flip copies in any case


# ---- Decoding ------------------------------------------------------------------------------------


def _decode(encoded: bytes, header: Header) -> Tensor:
    """uint8 (3, H, W) as stored; raises errors of many kinds."""
    if header.kind == "JPEG":
        scans = encoded.count(b"\xff\xda")  # within a scan, FF is followed by 00
        if scans * header.size[0] * header.size[1] > MAX_SCANNED:
            raise ValueError(f"{scans} scans of {_text(header.size)} pixels would take too long")
    if header.kind == "JPEG" and header.mode != "CMYK":
        buffer = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return decode_image(buffer, mode="RGB")
    if header.kind == "PNG":
        with _opened(encoded, header.kind) as image:
            image.verify()  # the checksums, which decoding does not look at; it uses the image up
        if PNG_END not in encoded:
            raise ValueError("truncated: its last chunk is not whole")
    with _opened(encoded, header.kind) as image:
        if image.mode in DEEP:
            raise ValueError(f"values of {image.mode}, expected 8 or 16 bits")
        if image.mode.startswith("I;16"):
            pixels = np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _opened(encoded: bytes, kind: str) -> Iterator[Image.Image]:
    """Pillow's image, without its warnings: of what they are about, we take care here."""
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
    """1 to 8; 1 where the EXIF block is missing or cannot be read, as viewers take it."""
    if kind == "PNG" and b"eXIf" not in encoded:
        return 1  # Pillow would decode the whole image to look for it
    if kind == "TIFF":
        return 1  # Pillow turns it, and gives the size after that
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of any kind: the file's bytes decide which
        return 1
    return orientation if orientation in range(1, 9) else 1


# ---- Messages -----------------------------------------------------------------------------------


def _text(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _other_kind(encoded: bytes) -> str:
    if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF:
        return "HEIC or AVIF: the package pillow-heif reads it, to save it as JPEG or PNG"
    start = f"it begins with {encoded[:12]!r}" if encoded else "it is empty"
    return f"not a JPEG, PNG, WebP, BMP, TIFF or GIF file: {start}"


def _other_size(header: Header, size: Size) -> str:
    turned = ""
    if header.turned_size != header.size:
        turned = f" ({_text(header.turned_size)} turned by its EXIF orientation)"
    return f"the file is {_text(header.size)} pixels{turned}, its annotation says {_text(size)}"
