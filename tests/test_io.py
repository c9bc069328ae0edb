"""Safetensors files: every dtype and layout comes back, and what is wrong with a file is told with its name."""

import sys

import ml_dtypes
import numpy as np
import pytest

from attnpy import io, nn

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "strided": np.arange(20, dtype=np.float16)[::3],
    "reversed": np.arange(5, dtype=np.int64)[::-1],
    "swapped": np.arange(5, dtype=">f4"),
    "bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "scalar": np.float32(3),
    "empty": np.zeros((0, 3), np.float32),
    "bool": np.array([True, False]),
    "a.dotted.name": np.array([1, 2], np.uint8),
}


def test_what_is_saved_comes_back(tmp_path):
    io.save_safetensors(tmp_path / "x.safetensors", ARRAYS, metadata={"from": "a test"})
    loaded = io.load_safetensors(tmp_path / "x.safetensors")
    assert loaded.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        array = np.asarray(array)
        assert loaded[name].dtype == array.dtype.newbyteorder("=") and loaded[name].shape == array.shape, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


def test_a_layer_comes_back(tmp_path):
    layer, other = nn.MultiHeadAttention(8, 2, rng=0), nn.MultiHeadAttention(8, 2, rng=1)
    io.save_safetensors(str(tmp_path / "x"), layer.state_dict())
    other.load_state_dict(io.load_safetensors(str(tmp_path / "x")))
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)


def whole(tmp_path):
    io.save_safetensors(tmp_path / "whole", ARRAYS)
    return (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b"abc", lambda b: b"\xff" * 100, lambda b: b[:-3],
                                   lambda b: b[:8] + b"}" + b[9:]])  # fmt: skip
def test_broken_files(tmp_path, spoil):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(spoil(whole(tmp_path)))
    with pytest.raises(ValueError, match=r"broken\.safetensors: "):
        io.load_safetensors(path)


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        io.load_safetensors(tmp_path / "absent")
    with pytest.raises(OSError):
        io.save_safetensors(tmp_path / "no" / "folder", {})


@pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, np.complex128), np.array([None])])
def test_types_that_the_format_lacks(tmp_path, array):
    with pytest.raises(TypeError, match="x: "):
        io.save_safetensors(tmp_path / "x", {"array": array})


def test_types_that_numpy_lacks(tmp_path):
    io.save_safetensors(tmp_path / "x", {"small": np.zeros(2, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(ValueError, match="x: small is of the type F8_E4M3"):
        io.load_safetensors(tmp_path / "x")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"attnpy\[models\]"):
        io.load_safetensors(tmp_path / "x")
