"""What any BlockMask must be, the one form of its dense array as kernels rely on it; and masks for tests."""

import zlib

import numpy as np

from attnpy import BlockMask


def seeded(*parts):
    return np.random.default_rng(zlib.crc32(repr(parts).encode()))


def check(mask, dense, note=""):
    """The mask shows what the array shows, and is the one mask that does."""
    assert mask.shape == dense.shape, note
    got = mask.to_dense()
    assert got.dtype == bool and got.flags.writeable
    np.testing.assert_array_equal(got, dense, err_msg=str(note))
    same = BlockMask.from_dense(dense)
    assert mask == same and hash(mask) == hash(same), f"{note}: another form"
    assert mask.density == (dense.mean() if dense.size else 0), note
    check_form(mask)


def check_form(mask):
    """What kernels rely on."""
    shape, indptr, indices, pattern, bits = mask._core_arrays
    *lead, L, S = shape
    R = -(-L // 64)
    assert shape == mask.shape and indptr.shape == (np.prod(lead, dtype=int), R + 1)
    assert [x.dtype for x in (indptr, indices, pattern, bits)] == [np.int64, np.int32, np.int32, np.uint64]
    assert len(indices) == len(pattern) and bits.shape[1:] == (64,)
    assert (np.diff(indptr.ravel()) >= 0).all() and (
        not indptr.size or (indptr.flat[0], indptr.flat[-1]) == (0, len(indices))
    )
    rows = np.repeat(np.arange(indptr[:, 1:].size), np.diff(indptr, axis=1).ravel())
    assert (np.diff(rows * 2**32 + indices) > 0).all() and (indices >= 0).all() and (indices < -(-S // 64)).all()
    assert (pattern >= -1).all() and set(pattern[pattern >= 0]) == set(range(len(bits)))
    assert len({row.tobytes() for row in bits}) == len(bits), "equal tiles share a pattern"
    assert bits.any(1).all()
    if S % 64:
        last = pattern[(indices == S // 64) & (pattern >= 0)]
        assert not (bits[last] >> np.uint64(S % 64)).any(), "bits past S are 0"
    if L % 64:
        last = pattern[(rows % R == R - 1) & (pattern >= 0)] if len(rows) else pattern
        assert not bits[last, L % 64 :].any(), "rows past L are 0"


def of_tiles(rng, lead, L, S):
    """Tiles that are empty, full or random, and a first row that sees nothing, (*lead, L, S)."""
    kind = rng.integers(0, 3, (*lead, -(-L // 64), -(-S // 64))).repeat(64, -2).repeat(64, -1)[..., :L, :S]
    dense = (kind == 1) | ((kind == 2) & (rng.random((*lead, L, S)) < 0.6))
    dense[..., :1, :] &= L == 1
    return dense
