"""Memory of large results: kept for the next when it is dropped, within bounds, through NumPy's hook for allocators."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import attnpy

handler_name = np._core.multiarray.get_handler_name
MEGABYTE = 1 << 20
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
sanitized = pytest.mark.skipif(SANITIZED, reason="AddressSanitizer never gives a block again")


def softmax_of_zeros(megabytes):
    """A fresh result of that size: softmax of rows of 1024 zeros."""
    return attnpy.softmax(np.zeros((megabytes * 256, 1024), np.float32))


KEEPS = """
import gc, os
import numpy as np
import attnpy
MEGABYTE = 1 << 20

def softmax_of_zeros(megabytes):
    return attnpy.softmax(np.zeros((megabytes * 256, 1024), np.float32))

def resident():
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

softmax_of_zeros(8)
before = resident()
results = [softmax_of_zeros(8) for _ in range(40)]
assert resident() - before > 250 * MEGABYTE
del results
assert resident() - before < 80 * MEGABYTE
huge = softmax_of_zeros(200)
del huge
assert resident() - before < 80 * MEGABYTE
"""


def test_large_results_have_our_allocator_and_small_ones_numpys():
    assert handler_name(softmax_of_zeros(1)) == "attnpy"
    assert handler_name(attnpy.softmax(np.zeros(1000))) == handler_name(np.zeros(3))
    assert handler_name(np.zeros(MEGABYTE)) == handler_name(np.zeros(3)) != "attnpy"


@sanitized
@pytest.mark.parametrize("megabytes", [1, 3, 16])
def test_dropped_results_are_used_again(megabytes):
    first = softmax_of_zeros(megabytes)
    place = first.ctypes.data
    kept = first[:1].copy()
    del first
    again = softmax_of_zeros(megabytes)
    assert again.ctypes.data == place
    np.testing.assert_array_equal(again[:1], kept)


def test_results_in_use_are_not_used_again():
    first = softmax_of_zeros(3)
    view = first[5:]
    del first
    again = softmax_of_zeros(3)
    assert not np.shares_memory(view, again)
    assert (view == np.float32(1 / 1024)).all() and (again == np.float32(1 / 1024)).all()


@pytest.mark.parametrize("rows", [0, 10, 700, 100000])
def test_a_result_can_be_resized(rows):
    result = softmax_of_zeros(1)
    result[:] = np.arange(result.size).reshape(result.shape)
    result.resize((rows, 1024), refcheck=False)
    same = min(rows, 256)
    np.testing.assert_array_equal(result[:same], np.arange(same * 1024, dtype=np.float32).reshape(-1, 1024))
    assert not result[256:].any()
    del result
    assert (softmax_of_zeros(1) == np.float32(1 / 1024)).all()


@sanitized
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_what_is_kept_is_bounded():
    subprocess.run([sys.executable, "-c", KEEPS], check=True, timeout=60)


def test_many_threads_take_and_drop():
    wrong = []

    def work(number):
        for i in range(60):
            shape = (64 * (1 + (i + number) % 3), 1024)
            result = attnpy.softmax(np.zeros(shape, np.float32))
            result += number
            if not (result == np.float32(number) + np.float32(1 / 1024)).all():
                wrong.append((number, i))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORKS = """
import os
import numpy as np
import attnpy
x = np.zeros((1024, 1024), np.float32)
attnpy.softmax(x)
child = os.fork()
if child == 0:
    os._exit(not all((attnpy.softmax(x) == np.float32(1 / 1024)).all() for _ in range(3)))
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_takes_its_own():
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60)


class Allocator(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free"))


class Handler(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("allocator", Allocator))


def test_the_users_allocator_stays():
    """NumPy's table of C functions: 304 sets the allocator of new arrays, and returns the one before."""
    libc = ctypes.CDLL(None)
    take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    give = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    calls = []
    malloc = take(lambda _, size: calls.append(size) or libc.malloc(size))
    free = give(lambda _, block, size: libc.free(block))
    functions = [ctypes.cast(f, ctypes.c_void_p) for f in (malloc, malloc, malloc, free)]
    handler = Handler(b"ours", 1, Allocator(None, *functions))
    pythonapi = ctypes.pythonapi
    pythonapi.PyCapsule_New.restype = ctypes.py_object
    pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_void_p]
    table = pythonapi.PyCapsule_GetPointer(np._core._multiarray_umath._ARRAY_API, None)
    entry = (ctypes.c_void_p * 310).from_address(table)[304]
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(entry)
    capsule = pythonapi.PyCapsule_New(ctypes.addressof(handler), b"mem_handler", None)
    before = set_handler(capsule)
    try:
        result = softmax_of_zeros(1)
        name = handler_name(result)
        del result
    finally:
        set_handler(before)
    assert name == "ours" and MEGABYTE in calls
    assert handler_name(np.zeros(3)) == "default_allocator"
    assert handler_name(softmax_of_zeros(1)) == "attnpy"


def test_nothing_is_lost_where_memory_is():
    with pytest.raises(MemoryError):
        attnpy.softmax(np.broadcast_to(np.float32(0), (2**24, 2**24)))
    assert handler_name(np.zeros(3)) == "default_allocator"
