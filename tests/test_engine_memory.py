"""Empty, enormous and far-apart operands; memory that cannot be had; references."""

import gc
import mmap
import sys

import numpy as np
import pytest
import refusals
import refusals_softmax
from small import BFLOAT16, KEY, QUERY, VALUE, WANTED, normal, operands, same, sdpa

import attnpy
from attnpy import _core

# --- empty, large, far apart


@pytest.mark.parametrize("empty", [(), *"BHLSED", "HLS", "BHLSED"])
def test_empty_axes(empty):
    sizes = {"B": 2, "H": 4, "L": 6, "S": 7, "E": 5, "D": 3} | dict.fromkeys(empty, 0)
    B, H, L, S, E, D = sizes.values()
    G = 2 if H else 0
    query, key, value = operands((B,), H, G, L, S, E, D)
    output, lse = sdpa(query, key, value, scale=1, return_lse=True)
    assert output.shape == (B, H, L, D) and lse.shape == (B, H, L)
    weights = attnpy.attention_weights(query, key, scale=1, rows=[0, -1] if L else [])
    assert weights.shape == (B, H, min(L, 2), S)
    received = attnpy.attention_received(query, key, scale=1)
    assert received.shape == (B, H, S)
    if not S:
        assert not output.any() and (lse == -np.inf).all()
    if not L:
        assert not received.any()
    if not E and S:
        assert np.allclose(weights, 1 / S)


def test_no_key_value_heads_for_some_query_heads():
    with pytest.raises(ValueError, match="query has 4 heads and key 0"):
        sdpa(QUERY, KEY[:, :0], VALUE[:, :0])


def enormous(*shape, dtype=np.float32):
    return np.broadcast_to(np.zeros((), dtype), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: sdpa(enormous(2**20, 1, 2**20, 4), enormous(2**20, 1, 1, 3, 4), enormous(1, 3, 4)),
        lambda: sdpa(enormous(2**40, 4), enormous(3, 4), enormous(3, 2**20)),
        lambda: sdpa(enormous(4, 2**58), enormous(3, 2**58), enormous(3, 4)),
        lambda: sdpa(enormous(4, 4), enormous(3, 4), enormous(3, 2**58)),
        lambda: sdpa(enormous(2**30, 4), enormous(2**30, 4), enormous(2**30, 4)[:, :0], return_lse=True),
        lambda: attnpy.attention_weights(enormous(2**36, 1), enormous(2**36, 1)),
        lambda: attnpy.attention_received(enormous(2**30, 4), enormous(2**58, 4)),
        lambda: attnpy.dropout_mask((2**40, 2**40), 0.5, attnpy.DropoutKey(1), dtype=bool),
        lambda: attnpy.softmax(enormous(2**45)),
        lambda: attnpy.merge_attention(
            [enormous(2**40, 1, 2, 4), enormous(2**40, 2, 4)], [enormous(2**40, 1, 2), enormous(2**40, 2)]
        ),
    ],
)
def test_too_large(call):
    with pytest.raises(MemoryError):
        call()
    same(sdpa(QUERY, KEY, VALUE), WANTED)


def test_offsets_beyond_32_bits():
    """Rows that lie gigabytes apart, few of their pages touched."""
    size = 9 << 30
    memory = np.frombuffer(
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)), np.float32
    )
    pitch = (3 << 30) // 4

    def apart(array, axis, start):
        """The array with 3 GB between the elements of an axis."""
        n = array.shape[axis]
        rest = np.moveaxis(array, axis, 0)
        view = np.lib.stride_tricks.as_strided(memory[start:], rest.shape, (pitch * 4, *np.empty_like(rest[0]).strides))
        view[...] = rest
        assert n <= 3
        return np.moveaxis(view, 0, axis)

    query, key, value = operands((2,), 2, 2, 3, 3, 5, 3)
    mask, bias = normal(2, 2, 3, 3) > -1, normal(2, 2, 3, 3, seed=4)
    wanted = sdpa(query, key, value, mask, bias=bias, return_lse=True)
    for axis in range(3):
        far = [apart(x, axis, 4096 * n) for n, x in enumerate((query, key, value, bias))]
        out = apart(np.zeros_like(wanted[0]), axis, 4096 * 8)
        got = sdpa(*far[:3], mask, bias=far[3], return_lse=True, out=(out, None))
        same(np.ascontiguousarray(got[0]), wanted[0])
        same(got[1], wanted[1])
        same(attnpy.softmax(far[0]), attnpy.softmax(query))
        same(attnpy.softmax(far[0], axis=axis), attnpy.softmax(query, axis=axis))
    backwards = [apart(x, 1, 4096 * n)[:, ::-1] for n, x in enumerate((query, key, value))]
    same(sdpa(*backwards), sdpa(*(x[:, ::-1].copy() for x in (query, key, value))))


# --- memory


def big_operands():
    return operands((1,), 2, 1, 70, 1500, 16, 16)


SCRATCH_CALLS = {
    "attention": lambda: sdpa(*big_operands(), is_causal=True),
    "decoding in parts": lambda: sdpa(*operands((1,), 2, 1, 1, 5000, 16, 16), return_lse=True),
    "weights": lambda: attnpy.attention_weights(*big_operands()[:2]),
    "received": lambda: attnpy.attention_received(*big_operands()[:2]),
    "dropout": lambda: attnpy.dropout_mask((2, 3, 5), 0.5, attnpy.DropoutKey(1), dtype=np.float32),
    "softmax": lambda: attnpy.softmax(normal(30, 50), axis=0),
    "softmax backward": lambda: attnpy.softmax_backward(normal(30, 50), normal(30, 50), axis=0),
    "merge backward": lambda: attnpy.merge_attention_backward(
        normal(2, 5, 4), normal(3, 2, 5, 4), normal(3, 2, 5), normal(2, 5, 4), normal(2, 5)
    ),
    "merge": lambda: attnpy.merge_attention(normal(3, 2, 5, 4), normal(3, 2, 5)),
}


def results(got):
    return got if isinstance(got, tuple) else (got,)


@pytest.mark.parametrize("name", SCRATCH_CALLS)
def test_no_memory_for_scratch(name):
    """Each allocation of a call fails in turn: MemoryError, and the next call is right."""
    call = SCRATCH_CALLS[name]
    wanted = results(call())
    failures = 0
    for takes in range(50):
        _core.debug_fail_scratch(takes)
        try:
            call()
        except MemoryError:
            failures += 1
        else:
            break
        finally:
            _core.debug_fail_scratch(-1)
        for ours, theirs in zip(results(call()), wanted):
            same(ours, theirs)
    assert failures == takes < 50
    if name in ("attention", "decoding in parts", "weights", "received"):
        assert failures > 0


def blocks_after(action, times=200):
    """How many more of Python's memory blocks are in use after that many calls."""
    for _ in range(20):
        action()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(times):
        action()
    gc.collect()
    return sys.getallocatedblocks() - before


def failing(function, refusal):
    def action():
        try:
            refusals.attempt(function, refusal.change)
        except refusal.error:
            return
        raise AssertionError(refusal.why)

    return action


REFUSED = {
    "scaled_dot_product_attention": refusals.FORWARD,
    "attention_weights": refusals.WEIGHTS,
    "merge_attention": refusals.MERGE,
    "merge_attention_backward": refusals.MERGE_BACKWARD,
    "dropout_mask": refusals.DROPOUT_MASK,
    "softmax": refusals_softmax.SOFTMAX,
    "logsumexp": refusals_softmax.LOGSUMEXP,
    "softmax_backward": refusals_softmax.SOFTMAX_BACKWARD,
    "logsumexp_backward": refusals_softmax.LOGSUMEXP_BACKWARD,
}


@pytest.mark.parametrize("function", REFUSED)
def test_errors_keep_nothing(function):
    for refusal in REFUSED[function]:
        grown = blocks_after(failing(function, refusal), 50)
        assert grown < 25, f"{refusal.why}: 50 calls keep {grown} blocks"


def held(objects):
    return [sys.getrefcount(x) for x in objects]


def test_references_are_given_back():
    bias, mask, lengths = normal(6, 7), np.ones((6, 7), bool), np.array([7, 6])
    out, lse = np.empty_like(WANTED), np.empty((2, 4, 6), np.float32)
    sinks, parts = np.ones(4), [WANTED, WANTED]
    halves = [x.astype(BFLOAT16) for x in (QUERY, KEY, VALUE)]
    ints = [x.astype(int) for x in (QUERY, KEY, VALUE)]
    objects = [
        QUERY,
        KEY,
        VALUE,
        bias,
        mask,
        lengths,
        out,
        lse,
        sinks,
        WANTED,
        BFLOAT16,
        np.dtype(np.float32),
        np.dtype(np.float64),
        np.dtype(np.int64),
        *halves,
        *ints,
    ]

    def calls():
        sdpa(QUERY, KEY, VALUE, mask, bias=bias, kv_lengths=lengths, sinks=sinks, return_lse=True, out=(out, lse))
        sdpa(out[..., ::-1], KEY[..., :3], VALUE, out=out)
        sdpa(*halves)
        sdpa(*ints, kv_lengths=[7, 6], causal_offset=2)
        sdpa(QUERY.tolist(), KEY.tolist(), VALUE.tolist())
        attnpy.attention_weights(QUERY, KEY, rows=[1, 2])
        attnpy.attention_received(QUERY, KEY)
        attnpy.merge_attention(parts, [lse, lse.astype(float)])
        attnpy.merge_attention([halves[0], halves[0]], [lse.tolist()] * 2)
        attnpy.softmax(QUERY, where=QUERY > 0, out=np.empty_like(QUERY))
        attnpy.logsumexp(QUERY, axis=(0, 1, 2, 3))
        attnpy.dropout_mask((3, 4), 0.5, attnpy.DropoutKey(1), dtype=BFLOAT16)

    calls()
    before = held(objects)
    assert blocks_after(calls, 50) < 25
    assert held(objects) == before


def test_results_own_their_memory():
    output, lse = sdpa(QUERY, KEY, VALUE, return_lse=True)
    for array in (output, lse, attnpy.softmax(QUERY), attnpy.logsumexp(QUERY)):
        assert array.flags.owndata and array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        assert sys.getrefcount(array) <= 4
