"""Reads any file of weights without running the code in it.

The formats are torch files (also those of torch before 1.6), plain pickles of numpy arrays
(detectron2's model zoo) and safetensors. torch's `weights_only` refuses some torch files, such as
mmengine checkpoints, because of their message hub. These files and plain pickles are read by the
unpickler of `restricted_pickle.py`.
"""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from detector import exit_codes
from detector.model.weights.restricted_pickle import RestrictedPickle

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first object in a file of torch before 1.6
MAX_SHOWN = 80  # characters of the reason why a file cannot be read

# The first bytes of files that people mistake for weights, and how errors describe such a file.
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself, with `git lfs pull`",
    b"<": "a web page or XML: the download did not give the file",
    b"{": "JSON text",
    b"[": "JSON text",
    b"\x1f\x8b": "gzip: unpack it first",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zXZ": "xz: unpack it first",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"\x89HDF": "HDF5, as Keras writes it",
    b"\x93NUMPY": "one NumPy array",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF",
    b"GGUF": "GGUF, a format of language models",
    b"\x08": "ONNX or another protocol buffer, which holds a program and no state dict",
}


class WeightsError(ValueError):
    """Weights cannot be obtained or do not fit. The message names the file or the tensors."""

    exit_code = exit_codes.FAILED


class FileContent(NamedTuple):
    """The content of a file of weights."""

    kind: str  # such as "a torch file"
    objects: Any  # dictionaries and lists of tensors, numpy arrays and others
    metadata: dict[str, str]  # only of safetensors files


def read(path: Path) -> FileContent:
    """Read a file of weights; its tensors are on the CPU.

    Raises:
        WeightsError: the file is missing, damaged or in another format; the message says which.
    """
    if path.is_dir():
        found = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        inside = f"; it holds {', '.join(found[:5])}" if found else ""
        raise WeightsError(f"{path} is a folder, not a file of weights{inside}")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    kind, reader = _reader(path, start)
    try:
        return reader(path)
    except WeightsError:
        raise
    except Exception as error:  # torch, pickle and safetensors raise many kinds on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0][:MAX_SHOWN]
        raise WeightsError(
            f"{path} is {kind}, but cut off or damaged ({reason}): fetch or save it again"
        ) from error


SUFFIXES = (".pt", ".pth", ".pkl", ".safetensors", ".bin", ".ckpt")


def _reader(path: Path, start: bytes) -> tuple[str, Callable[[Path], FileContent]]:
    """Recognise a file's format by its first bytes; return the format's name and its reader."""
    if start.startswith(b"PK\x03\x04"):
        return _zip_reader(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < max(path.stat().st_size, 2**27):
        return "safetensors", _read_safetensors
    if start.startswith(b"\x80"):
        return "a pickle", _read_pickle
    raise WeightsError(f"{path} is no file of weights but {_other_format(start)}")


def _other_format(start: bytes) -> str:
    if not start:
        return "empty"
    for magic, words in OTHERS.items():
        if start.startswith(magic):
            return words
    return f"something that begins with {start[:12]!r}"


def _zip_reader(path: Path) -> tuple[str, Callable[[Path], FileContent]]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise WeightsError(
            f"{path} is a torch file or another zip archive, but cut off or damaged: fetch or save "
            "it again"
        ) from error
    if any(name.endswith("constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript program, which is not loaded because it could run any "
            "code: save model.state_dict() of the model that it was made from"
        )
    if any(name.endswith("data.pkl") for name in names):
        return "a torch file", _read_torch
    if any(name.endswith(".npy") for name in names):
        what = "an archive of NumPy arrays"
    elif any("/models/" in f"/{name}" or name.endswith(".pt2") for name in names):
        what = "a torch.export program"
    else:
        what = f"a zip archive of {len(names)} files, such as {names[0] if names else 'none'}"
    raise WeightsError(f"{path} is no file of weights but {what}")


def _read_safetensors(path: Path) -> FileContent:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return FileContent("safetensors", safetensors.torch.load_file(path), metadata)


def _read_torch(path: Path) -> FileContent:
    try:
        objects = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds objects that weights_only refuses
        objects = torch.load(
            path,
            map_location="cpu",
            weights_only=False,  # safe with RestrictedPickle
            pickle_module=RestrictedPickle,
        )
    return FileContent("a torch file", objects, {})


def _read_pickle(path: Path) -> FileContent:
    """Read a plain pickle, or a file of torch before 1.6, which begins with a pickle."""
    with path.open("rb") as file:
        # Many files were written by Python 2, whose strings need this encoding.
        first = RestrictedPickle.load(file, encoding="latin1")
    if type(first) is int and first == TORCH_MAGIC:
        return _read_torch(path)._replace(kind="a torch file in the format before 1.6")
    return FileContent("a pickle", first, {})
