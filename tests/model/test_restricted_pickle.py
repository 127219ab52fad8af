"""Pickles and torch files that would run code, and those of plain numbers."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.model.weights import files
from detector.model.weights.files import WeightsError
from detector.model.weights.restricted_pickle import Inert, RestrictedPickle


class Bomb:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple:
        return self.call, self.args


@pytest.mark.parametrize("protocol", [2, 4])
def test_no_code_of_a_file_runs(protocol: int, tmp_path: Path) -> None:
    """This holds for plain pickles and for both formats of torch files."""
    mark = tmp_path / "ran"
    bombs = [
        Bomb(os.system, f"touch {mark}"),
        Bomb(eval, f"open({str(mark)!r}, 'w')"),
        Bomb(getattr, "text", "upper"),
        Bomb(Path.touch, mark),
    ]
    state = {key: torch.zeros(2) for key in ("layer1.0.conv1.weight",)}
    for bomb in bombs:
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"x": bomb}, protocol=protocol))
        torch.save({"model": state, "x": bomb}, tmp_path / "new.pth", pickle_protocol=protocol)
        old = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
        torch.save({"model": state, "x": bomb}, tmp_path / "old.pth", **old)
        for name in ("plain.pkl", "new.pth", "old.pth"):
            content = files.read(tmp_path / name)
            assert isinstance(content.objects["x"], Inert), name
    assert not mark.exists()


def test_a_dtype_cannot_be_made_to_hold_objects() -> None:
    """numpy would use the eight bytes as a pointer and crash the process."""
    dtype = (
        b"cnumpy\ndtype\n(U\x01OI00\nI01\ntR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK tb"
    )
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"U\x08AAAAAAAAtR"
    for kind in (b"O", b"O8", b"S8", b"V8", b"M8"):
        code = dtype.replace(b"U\x01O", b"U" + bytes([len(kind)]) + kind)
        for content in (code, scalar.replace(dtype, code)):
            with pytest.raises(pickle.UnpicklingError, match="an array of"):
                RestrictedPickle.loads(b"\x80\x02" + content + b".")


def test_a_storage_within_a_pickle_runs_no_code(tmp_path: Path) -> None:
    """TorchScript in place of a storage would otherwise be loaded, and could write files."""
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), scripted)
    bomb = Bomb(torch.storage._load_from_bytes, scripted.getvalue())
    (tmp_path / "scripted.pkl").write_bytes(pickle.dumps({"x": bomb}))
    with pytest.raises(WeightsError, match="cut off or damaged"):
        files.read(tmp_path / "scripted.pkl")


def test_a_function_that_is_allowed_cannot_be_changed() -> None:
    """The BUILD opcode sets an object's state, which is refused for the allowed functions."""
    harmful = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00ak\x01sb."
    harmful = harmful.replace(b"k\x01", b"K\x01")
    with pytest.raises(pickle.UnpicklingError, match="has no state"):
        RestrictedPickle.loads(harmful)


def test_numpy_of_every_kind_is_read_as_numpy_reads_it(tmp_path: Path) -> None:
    arrays = {
        "float32": np.arange(6, dtype="f4").reshape(2, 3),
        "float16": np.arange(3, dtype="f2"),
        "big endian": np.arange(4, dtype=">f8"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "int64": np.arange(3),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "scalar": np.float64(2.5),
    }
    for protocol in (2, 4, 5):
        (tmp_path / "arrays.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
        read = files.read(tmp_path / "arrays.pkl").objects
        for name, expected in arrays.items():
            np.testing.assert_array_equal(read[name], expected, err_msg=name)
            assert np.asarray(read[name]).dtype.newbyteorder("=") == expected.dtype.newbyteorder(
                "="
            )


def test_tensors_in_a_plain_pickle(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    (tmp_path / "tensors.pkl").write_bytes(pickle.dumps(tensors))
    read = files.read(tmp_path / "tensors.pkl").objects
    assert all(torch.equal(read[key], value) for key, value in tensors.items())
