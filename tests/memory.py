"""Arrays in memory that hurts: beside guard pages, unaligned, reversed, far apart, mapped from a file."""

import ctypes
import mmap
import tempfile
import weakref

import numpy as np

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ_WRITE = 0, 3

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def guarded_bytes(count, side):
    """`count` bytes that end at ("end") or begin behind ("start") a page without access."""
    inner = max(1, -(-count // PAGE)) * PAGE
    address = libc.mmap(None, inner + 2 * PAGE, PROT_READ_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    for page in (address, address + PAGE + inner):
        if libc.mprotect(page, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = address + PAGE + (inner - count if side == "end" else 0)
    buffer = (ctypes.c_char * count).from_address(first)
    weakref.finalize(buffer, libc.munmap, address, inner + 2 * PAGE)
    return np.frombuffer(buffer, np.uint8) if count else np.empty(0, np.uint8)


def guarded(array, side, gap=0):
    """A copy between guard pages; rows of the last axis lie `gap` elements apart, with nothing behind the last."""
    array = np.asarray(array)
    if array.ndim == 0 or array.size == 0:
        gap = 0
    pitch = (array.shape[-1] if array.ndim else 1) + gap
    rows = array.size // array.shape[-1] if array.ndim and array.size else array.size
    size = (rows * pitch - gap if array.size else 0) * array.itemsize
    strides = [array.itemsize]
    for n, axis in enumerate(reversed(array.shape[1:])):
        strides.append(strides[-1] * axis if n else pitch * array.itemsize)
    strides = tuple(reversed(strides[: array.ndim]))
    if array.size == 0:
        return array.copy()
    copy = np.ndarray(array.shape, array.dtype, guarded_bytes(size, side), 0, strides)
    copy[...] = array
    return copy


def layouts(array, folder=None):
    """(name, array): equal arrays that lie differently in memory."""
    array = np.asarray(array)
    yield "Fortran", array.copy("F")
    if array.ndim > 1:
        yield "transposed", array.swapaxes(-1, -2).copy().swapaxes(-1, -2)
    if array.ndim > 2:
        yield "heads inside", array.swapaxes(-2, -3).copy().swapaxes(-2, -3)
    yield "reversed", turned(turned(array).copy())
    yield "last axis reversed", array[..., ::-1].copy()[..., ::-1] if array.ndim else array.copy()
    yield "stepped", stepped(array)
    yield "rows far apart", far_apart(array)
    yield "unaligned", unaligned(array)
    swapped = swapped_bytes(array)
    if swapped is not None:
        yield "byte-swapped", swapped
        yield "byte-swapped, stepped", stepped(swapped)
    fixed = array.copy()
    fixed.setflags(write=False)
    yield "read-only", fixed
    if folder is not None and array.size:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(array.tobytes())
            file.flush()
            yield "memory-mapped", np.memmap(file.name, array.dtype, "r", shape=array.shape)


def turned(array):
    """Every axis backwards."""
    return np.flip(array) if array.ndim else array


def stepped(array):
    """Every second element along every axis; those between hold ones."""
    wide = np.ones([2 * n for n in array.shape], array.dtype)
    view = wide[(..., *(slice(None, None, 2),) * array.ndim)]
    view[...] = array
    return view


def interleaved(array):
    """Rows that lie among one another: every second element, and the next row begins before the last has ended."""
    if array.ndim < 2 or array.shape[-1] < 3:
        return array.copy()
    rows, n = array.shape[-2:]
    pitch = 2 * n - 3  # odd, so that a row falls between the elements of the last; over n for the one after that
    wide = np.ones((*array.shape[:-2], rows * pitch + 2), array.dtype)
    strides = (*wide.strides[:-1], pitch * array.itemsize, 2 * array.itemsize)
    view = np.lib.stride_tricks.as_strided(wide, array.shape, strides)
    view[...] = array
    return view


def far_apart(array):
    """Rows 2500 bytes apart, and more."""
    if array.ndim < 2:
        return array.copy()
    wide = np.ones([*array.shape[:-1], array.shape[-1] + -(-2500 // array.itemsize)], array.dtype)
    view = wide[..., : array.shape[-1]]
    view[...] = array
    return view


def unaligned(array):
    """One byte behind an aligned address."""
    bytes_ = np.empty(array.nbytes + 1, np.uint8)
    copy = np.ndarray(array.shape, array.dtype, bytes_, 1)
    copy[...] = array
    return copy


def swapped_bytes(array):
    """In the other byte order; None for types that have none."""
    if array.itemsize == 1 or array.dtype.kind not in "fiu":
        return None
    return array.astype(array.dtype.newbyteorder())


def resident_bytes():
    """Resident memory of this process in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE
