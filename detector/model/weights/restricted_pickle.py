"""An unpickler that runs no code of a file.

It builds only the classes and calls only the functions of a fixed list. Everything else becomes an
`Inert` object, which holds nothing and does nothing.
"""

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


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
