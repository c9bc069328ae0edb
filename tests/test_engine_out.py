"""out=: strides, overlaps, what is returned."""

import numpy as np
import pytest
from small import KEY, QUERY, VALUE, WANTED, Subclass, normal, same, sdpa

import attnpy


def test_out_is_returned():
    out = np.full_like(WANTED, np.nan)
    assert sdpa(QUERY, KEY, VALUE, out=out) is out
    same(out, WANTED)
    assert sdpa(QUERY, KEY, VALUE, out=(out,)) is out
    pair = (None, np.empty((2, 4, 6), np.float32))
    output, lse = sdpa(QUERY, KEY, VALUE, return_lse=True, out=pair)
    assert lse is pair[1]
    same(output, WANTED)
    subclass = np.empty_like(WANTED).view(Subclass)
    assert sdpa(QUERY, KEY, VALUE, out=subclass) is subclass
    scalar = np.empty((), np.float32)
    assert attnpy.logsumexp(QUERY, axis=None, out=scalar) is scalar
    assert isinstance(attnpy.logsumexp(QUERY, axis=None), np.float32) and attnpy.logsumexp(QUERY, axis=None) == scalar


def strided(shape, strides, offset=0, size=4000):
    """float32 elements `strides` elements apart."""
    return np.ndarray(shape, np.float32, np.zeros(size, np.float32), 4 * offset, tuple(4 * s for s in strides))


@pytest.mark.parametrize("strides", [(3, 2), (2, 3), (-3, 2), (100, -1), (1, 30), (7, 3), (5, 2)])
def test_out_of_interleaved_strides(strides):
    """No element meets another, though rows reach into one another: strides (3, 2) of (2, 3) lie at 0 2 4, 3 5 7."""
    out = strided((2, 3), strides, 200)
    assert len({i * strides[0] + j * strides[1] for i in range(2) for j in range(3)}) == 6
    same(np.ascontiguousarray(attnpy.softmax(QUERY[0, 0, :2, :3], out=out)), attnpy.softmax(QUERY[0, 0, :2, :3]))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 2), (0, 1)),
        ((3, 2), (1, 2)),
        ((3, 3), (2, 3)),
        ((2, 4), (3, -1)),
        ((4, 3, 2), (1, 2, 20)),
        ((2, 3), (4, 2)),
        ((5,), (0,)),
    ],
)
def test_out_that_overlaps_itself(shape, strides):
    places = [sum(i * s for i, s in zip(index, strides)) for index in np.ndindex(shape)]
    overlaps = len(set(places)) < len(places)
    out = strided(shape, strides, 200)
    if overlaps:
        with pytest.raises(ValueError, match="^out has shape .*; some of its elements share memory with one another$"):
            attnpy.softmax(normal(*shape), out=out)
    else:
        attnpy.softmax(normal(*shape), out=out)


def test_outs_that_share_an_element():
    buffer = np.zeros(400, np.float32)
    output = buffer[:288].reshape(2, 4, 6, 3, 2)[..., 0]
    between = buffer[1:289:2].reshape(2, 4, 6, 3)[..., 0]
    wanted = sdpa(QUERY, KEY, VALUE, return_lse=True)
    got = sdpa(QUERY, KEY, VALUE, return_lse=True, out=(output, between))
    for ours, theirs in zip(got, wanted):
        assert (ours == theirs).all()
    with pytest.raises(ValueError, match=r"^out\[1\] shares memory with what is given for output$"):
        sdpa(QUERY, KEY, VALUE, return_lse=True, out=(output, output[..., 0]))
    with pytest.raises(ValueError, match=r"^out\[1\] shares memory with what is given for output$"):
        attnpy.merge_attention(np.ones((2, 3, 4)), np.ones((2, 3)), out=((x := np.ones((3, 4))), x[:, 1]))


@pytest.mark.parametrize("shift", [-7, -1, 0, 1, 7])
def test_out_over_an_input(shift):
    size = QUERY.size
    buffer = np.zeros(size + 40, np.float32)
    query = buffer[20 : 20 + size].reshape(QUERY.shape)
    out = buffer[20 + shift : 20 + shift + WANTED.size].reshape(WANTED.shape)
    query[...] = QUERY
    assert sdpa(query, KEY, VALUE, out=out) is out
    same(out, WANTED)
    for over in ("attn_mask", "bias"):
        terms = normal(2, 4, 6, 7, seed=9)
        wanted = sdpa(QUERY, KEY, VALUE, **{over: terms})
        buffer = np.zeros(terms.size + 40, np.float32)
        term = buffer[20 : 20 + terms.size].reshape(terms.shape)
        term[...] = terms
        out = buffer[20 + shift : 20 + shift + wanted.size].reshape(wanted.shape)
        same(sdpa(QUERY, KEY, VALUE, **{over: term}, out=out), wanted)


@pytest.mark.parametrize("shift", [-3, 0, 1])
@pytest.mark.parametrize("function", [attnpy.softmax, attnpy.log_softmax])
def test_softmax_over_its_input(function, shift):
    x = normal(5, 33)
    for where in (None, normal(5, 33) > 0):
        for axis in (0, 1):
            wanted = function(x, axis, where=where)
            buffer = np.zeros(x.size + 20, np.float32)
            source, out = (buffer[k : k + x.size].reshape(x.shape) for k in (10, 10 + shift))
            source[...] = x
            same(function(source, axis, where=where, out=out), wanted)
    keep = np.zeros((5, 33), np.float32).view(bool).reshape(5, 33, 4)[..., 0]  # in the memory of out
    out = keep.base.view(np.float32).reshape(5, 33)
    keep[...] = normal(5, 33) > 0
    wanted = function(x, where=keep.copy())
    same(function(x, where=keep, out=out), wanted)
