"""Tests of image decoding: every format and EXIF orientation against Pillow, and refusals."""

import os
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detector.data.errors import DatasetError
from detector.data.images import MAX_BYTES, MAX_PIXELS, read_image

RNG = np.random.default_rng(0)
H, W = 20, 31
GREY = Image.fromarray(RNG.integers(0, 256, (H, W), dtype=np.uint8))
RGB = Image.fromarray(RNG.integers(0, 256, (H, W, 3), dtype=np.uint8))
RGBA = Image.fromarray(RNG.integers(0, 256, (H, W, 4), dtype=np.uint8))
CMYK = Image.frombytes("CMYK", (W, H), RGBA.tobytes())
PALETTE = RGB.quantize(17)
CORNER = RGB.getpixel((0, 0))
EVERY_FORMAT = [
    (GREY, "JPEG", {}),
    (RGB, "JPEG", {}),
    (RGB, "JPEG", {"progressive": True}),
    (RGB, "JPEG", {"subsampling": 0}),
    (RGB, "JPEG", {"keep_rgb": True}),
    (CMYK, "JPEG", {}),
    (GREY, "PNG", {}),
    (GREY.convert("1"), "PNG", {}),
    (GREY, "PNG", {"transparency": 7}),
    (RGBA.convert("LA"), "PNG", {}),
    (RGB, "PNG", {}),
    (RGB, "PNG", {"transparency": CORNER}),
    (RGBA, "PNG", {}),
    (PALETTE, "PNG", {}),
    (PALETTE, "PNG", {"transparency": 3}),
    (PALETTE, "PNG", {"transparency": bytes(range(17))}),
    (RGB.quantize(2), "PNG", {"bits": 1}),
    (RGB.quantize(13), "PNG", {"bits": 4}),
    (RGB, "WEBP", {}),
    (RGB, "WEBP", {"lossless": True}),
    (RGBA, "WEBP", {"lossless": True}),
    (RGB, "WEBP", {"save_all": True, "append_images": [ImageOps.flip(RGB)], "lossless": True}),
    (RGB, "BMP", {}),
    (GREY, "BMP", {}),
    (PALETTE, "BMP", {}),
    (GREY.convert("1"), "BMP", {}),
]


def saved(tmp_path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    path = tmp_path / "x.jpg"  # the extension must not matter
    image.save(path, kind, **options)
    return path


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(("image", "kind", "options"), EVERY_FORMAT)
def test_every_format_against_pillow(
    tmp_path: Path, image: Image.Image, kind: str, options: dict
) -> None:
    path = saved(tmp_path, image, kind, **options)
    found = read_image(path, size=(H, W))
    assert found.dtype == torch.uint8 and found.permute(1, 2, 0).is_contiguous()
    with Image.open(path) as expected:
        assert torch.equal(found, pixels(expected))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_become_their_upper_eight(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 2**16, (H, W, channels), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "x.png"), values)  # OpenCV expects BGR and BGRA
    rgb = values[..., [2, 1, 0]] if channels > 1 else values[..., [0, 0, 0]]
    found = read_image(tmp_path / "x.png", size=(H, W)).permute(1, 2, 0)
    assert np.array_equal(found.numpy(), rgb // 256)


def test_real_images_against_pillow(shared_data: Path) -> None:
    for path in sorted((shared_data / "aquarium" / "valid").glob("*.jpg"))[:20]:
        with Image.open(path) as expected:
            found = read_image(path, size=(expected.height, expected.width))
            assert torch.equal(found, pixels(expected)), path


# ---- EXIF ---------------------------------------------------------------------------------------


def exif(orientation: object) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turn_that_the_annotated_size_agrees_with(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path = saved(tmp_path, RGB, kind, exif=exif(orientation))
    with Image.open(path) as stored:
        turned = pixels(ImageOps.exif_transpose(stored))
        assert torch.equal(read_image(path, size=tuple(turned.shape[1:])), turned)
        if orientation > 4:  # annotations of the stored pixels
            assert torch.equal(read_image(path, size=(H, W)), pixels(stored))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_without_annotations_is_upright(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    path = saved(tmp_path, RGB, kind, exif=exif(orientation))
    with Image.open(path) as stored:
        assert torch.equal(read_image(path), pixels(ImageOps.exif_transpose(stored)))


def test_a_square_is_turned(tmp_path: Path) -> None:
    square = RGB.crop((0, 0, H, H))
    path = saved(tmp_path, square, "PNG", exif=exif(6))
    clockwise = square.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(read_image(path, size=(H, H)), pixels(clockwise))


def test_a_size_that_no_turn_gives(tmp_path: Path) -> None:
    path = saved(tmp_path, RGB, "JPEG", exif=exif(8))
    with pytest.raises(
        DatasetError, match=r"x\.jpg: .*31x20 pixels \(20x31 turned.*\), its annotation says 31x21"
    ):
        read_image(path, size=(21, 31))
    with pytest.raises(DatasetError, match="31x20 pixels, its annotation says 20x31"):
        read_image(saved(tmp_path, RGB, "JPEG"), size=(31, 20))


@pytest.mark.parametrize("block", [exif(0), exif(9), b"Exif\0\0junk", b"\xff" * 9])
def test_no_turn_by_an_exif_block_that_is_broken(tmp_path: Path, block: object) -> None:
    path = saved(tmp_path, RGB, "PNG", exif=block)
    assert torch.equal(read_image(path, size=(H, W)), pixels(RGB))


# ---- What is refused ----------------------------------------------------------------------------


def refused(path: Path, size: tuple[int, int] = (H, W)) -> str:
    """Return the error message, after checking its form.

    The image is refused within half a second, and the message is one line that names the file.
    """
    start = time.perf_counter()
    with pytest.raises(DatasetError) as error:
        read_image(path, size=size)
    assert time.perf_counter() - start < 0.5
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    return message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4000,
        b"<!DOCTYPE html><html>404</html>",
        b"OggS" + b"\0" * 40,
        b"RIFF\0\0\0\0WAVE",
        b"\xff\xd8",
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    assert "not a JPEG, PNG, WebP, BMP, TIFF or GIF" in refused(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, RGB.crop((0, 0, 28, 20)), kind)  # BMP pads rows to multiples of 4
    whole = path.read_bytes()
    for length in [*range(1, len(whole) - 1, 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, size=(20, 28))


def test_every_flipped_bit_of_a_png_shows(tmp_path: Path) -> None:
    path = saved(tmp_path, RGB.crop((0, 0, 5, 4)), "PNG")
    whole = path.read_bytes()
    for place in range(len(whole) - 12):  # all but the last chunk, which is empty
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        refused(path, size=(4, 5))


def png_chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def test_a_png_that_crashes_torchvision(tmp_path: Path) -> None:
    """A PNG with correct checksums, but with a row filter of the invalid number 9."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 8, 2, 0, 0, 0))
    rows = png_chunk(b"IDAT", zlib.compress((b"\x09" + bytes(3 * W)) * H))
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + rows + png_chunk(b"IEND", b""))
    assert "cannot be decoded" in refused(path)


def bomb(kind: str, height: int, width: int) -> bytes:
    """Return a few bytes whose header claims a huge image."""
    if kind == "PNG":
        head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    if kind == "BMP":
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3)
    parts = b"\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    return b"\xff\xd8\xff\xc0" + frame + parts + b"\xff\xda\x00\x0c\x03" + bytes(20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("size", [(9460, 9460), (14000, 14000), (65000, 65000)])
def test_decompression_bombs(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    """Sizes just over MAX_PIXELS, over twice Pillow's limit, and far above it."""
    assert size[0] * size[1] > MAX_PIXELS
    (tmp_path / "x.jpg").write_bytes(bomb(kind, *size))
    assert f"over {MAX_PIXELS} pixels" in refused(tmp_path / "x.jpg", size)


def test_a_jpeg_of_many_scans(tmp_path: Path) -> None:
    """The last scan is repeated 400 times; over 9 million pixels, decoding would take seconds."""
    path = saved(tmp_path, Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    encoded = path.read_bytes()
    scan = encoded.rindex(b"\xff\xda")
    assert read_image(path, size=(3000, 3000)).sum() == 0
    path.write_bytes(encoded[:scan] + 400 * encoded[scan:-2] + encoded[-2:])
    assert "scans of 3000x3000 pixels" in refused(path, (3000, 3000))


def test_a_whole_image_over_the_limit(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("1", (9460, 9460)), "PNG")
    assert path.stat().st_size < 20_000
    assert f"over {MAX_PIXELS} pixels" in refused(path, (9460, 9460))


def test_files_that_are_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.jpg", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # a sparse file
    assert f"{MAX_BYTES + 1} bytes" in refused(tmp_path / "large.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        assert "not a regular file" in refused(tmp_path / name)
    assert "No such file" in refused(tmp_path / "absent.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path: Path, orientation: int) -> None:
    """It gives the same pixels as a PNG with the same orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    picture.save(tmp_path / "x.png", exif=exif)
    picture.save(tmp_path / "x.tif", exif=exif)
    expected = read_image(tmp_path / "x.png")
    assert torch.equal(read_image(tmp_path / "x.tif"), expected)
