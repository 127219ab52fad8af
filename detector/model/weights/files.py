"""Reads any file of weights without running the code in it.

The formats are torch files (also those of torch before 1.6), plain pickles of numpy arrays
(detectron2's model zoo) and safetensors. torch's `weights_only` refuses some torch files, such as
mmengine checkpoints, because of their message hub. These files and plain pickles are read by an
unpickler that builds only the classes and calls only the functions of a fixed list. Everything else
becomes an `Inert` object, which holds nothing and does nothing.
"""

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch

from detector import exit_codes

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


class Inert:
    """Replaces an object of a class that is not built: accepts every call and does nothing."""

    name = "?"  # of the class that it replaces

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore an item, which pickle adds to a list in this way."""

    def extend(self, items: Any) -> None:
        """Ignore items, which pickle adds to a list in this way."""

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        return self


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


# ---- The unpickler -------------------------------------------------------------------------------


class _CallOnly:
    """A function that a pickle may call but not change."""

    __slots__ = ("__function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__function = function

    def __call__(self, *args: Any) -> Any:
        return self.__function(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function has no state")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _Dtype:
    """A numpy dtype of plain numbers. A pickle may set its byte order and nothing else, because the
    state of a real dtype could make numpy interpret a file's bytes as pointers to objects.
    """

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        is_plain = isinstance(code, str) and re.fullmatch(r"[<>|=]?([biuf][1248]|\?)", code)
        if not is_plain:
            raise pickle.UnpicklingError(f"an array of {str(code)[:20]}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order in ("<", ">", "|", "="):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array whose pickled state must consist of its shape, its dtype and its bytes."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array of objects")
        super().__setstate__((version, shape, dtype.dtype, is_fortran, content))


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Return an empty array, which takes its state from the pickle afterwards."""
    return np.empty(0, dtype="b").view(_Array)


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    array: np.ndarray = np.frombuffer(buffer, dtype=dtype.dtype).reshape(shape, order=order)
    return array


def _scalar(dtype: Any, encoded: Any = b"") -> Any:
    return np.frombuffer(encoded, dtype=dtype.dtype)[0]


def _storage(encoded: bytes) -> Any:
    """Load the storage of a tensor in a plain pickle, which is stored there as a torch file."""
    return torch.load(io.BytesIO(encoded), map_location="cpu", weights_only=True)


# (module, name) -> what the unpickler builds or calls for it.
_BUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _CallOnly(torch.Size),
    ("torch", "device"): _CallOnly(torch.device),
    ("torch._utils", "_rebuild_tensor"): _CallOnly(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _CallOnly(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _CallOnly(lambda data, *others: data),
    ("torch.storage", "_load_from_bytes"): _CallOnly(_storage),
    ("numpy", "dtype"): _CallOnly(_Dtype),
    ("_codecs", "encode"): _CallOnly(_encode),
    **{(name, "set"): _CallOnly(set) for name in ("builtins", "__builtin__")},
    **{(name, "bytes"): _CallOnly(lambda: b"") for name in ("builtins", "__builtin__")},
    **{
        (f"numpy.{core}.{module}", name): _CallOnly(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _empty_array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    """Builds the objects that `_BUILT` lists and dtypes of torch; all others become `Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILT:
            return _BUILT[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Inert", (Inert,), {"name": f"{module}.{name}"})


class RestrictedPickle:
    """The functions that `torch.load` needs of its `pickle_module`."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **how: Any) -> Any:
        """Load the next object of a file."""
        return _Unpickler(file, **how).load()

    @staticmethod
    def loads(data: bytes, **how: Any) -> Any:
        """Load the object that these bytes hold."""
        return _Unpickler(io.BytesIO(data), **how).load()
