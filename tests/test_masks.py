"""BlockMask: every constructor against its dense form, joining and cutting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masks import check, seeded

from attnpy import BlockMask, reference

SIZES = (0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 193)  # one to three tiles, and one less and more
PAIRS = [*zip(SIZES, SIZES), (1, 193), (64, 129), (65, 63), (127, 1), (193, 64), (130, 0)]


# --- constructors


def rules(L, S, rng):
    """(name of a constructor, its arguments): every option, for L queries and S keys."""
    sizes = {"query_length": L, "key_length": S}
    for offset in (None, 0, -3, 70, -S, S - L + 1, 2**60, -(2**60)):
        yield "causal", {**sizes, "offset": offset}
    for left, right in ((0, 0), (5, 3), (-1, 2), (70, -1), (-1, -1), (0, 200), (10**6, 10**6)):
        yield "sliding_window", {**sizes, "left": left, "right": right}
        yield "sliding_window", {**sizes, "left": left, "right": right, "offset": int(rng.integers(-90, 90))}
        for dilation in (2, 3, 64, 65, 1000):
            offset = int(rng.integers(-200, 200))
            yield "sliding_window", {**sizes, "left": left, "right": right, "dilation": dilation, "offset": offset}
    yield "lengths", {**sizes, "key_lengths": int(rng.integers(0, S + 1))}
    yield "lengths", {**sizes, "key_lengths": rng.integers(0, S + 1, (2, 3)).astype(np.uint16)}
    for n in (1, 3, 200):
        ids = np.sort(rng.integers(0, n, L)), np.sort(rng.integers(0, n, S))
        yield "documents", {"query_ids": ids[0], "key_ids": ids[1]}
        yield (
            "documents",
            {"query_ids": rng.permutation(ids[0])[None] - n, "key_ids": np.stack([*ids[1:], ids[1][::-1]]) - n},
        )
    yield "from_function", {"mask_mod": lambda b, h, q, k: (q + k) % 3 == b + h, **sizes, "batch": 2, "heads": 3}
    yield "from_function", {"mask_mod": lambda b, h, q, k: k * 2 >= q + 5 * h, **sizes, "heads": 2}
    yield "from_function", {"mask_mod": lambda b, h, q, k: q % 7 > b, **sizes, "batch": 2}
    yield "from_function", {"mask_mod": lambda b, h, q, k: np.True_, **sizes}


def square_rules(L, rng):
    """The same for constructors of L = S."""
    yield "documents", {"query_ids": rng.integers(-2, 2, (2, L)).astype(np.int8)}
    for prefix in (0, L, rng.integers(0, L + 1, 3)):
        yield "prefix", {"length": L, "prefix_length": prefix}
    some = rng.integers(-L, L, 3) if L else []
    for tokens in (some, [], rng.random(L) < 0.02, rng.random((2, L)) < 0.02):
        yield "global_tokens", {"length": L, "tokens": tokens}
        for window in (0, 10, 64, 500):
            yield "longformer", {"length": L, "window": window, "global_tokens": tokens}
    for block_size in (1, 10, 16, 64, 100):
        for others in ({}, {"num_random": 0, "window": 1}, {"num_global": 3, "window": 5}, {"num_random": 99}):
            yield "bigbird", {"length": L, "block_size": block_size, **others}


def compare(name, arguments):
    def seed():
        return {"rng": np.random.default_rng(5)} if name == "bigbird" else {}

    got = getattr(BlockMask, name)(**arguments, **seed())
    check(got, getattr(reference.BlockMask, name)(**arguments, **seed()), f"{name} {arguments}")


@pytest.mark.parametrize(("L", "S"), PAIRS)
def test_constructors(L, S):
    for name, arguments in rules(L, S, seeded("rules", L, S)):
        compare(name, arguments)


@pytest.mark.parametrize("L", SIZES)
def test_square_constructors(L):
    for name, arguments in square_rules(L, seeded("square", L)):
        compare(name, arguments)


@pytest.mark.parametrize(("L", "S"), PAIRS)
@pytest.mark.parametrize("block_size", [1, 2, 16, 32, 64, 128, 24, 100, (64, 32), (7, 200), (200, 7), 10**6])
def test_blocks(L, S, block_size):
    rng = seeded("blocks", L, S, block_size)
    tall, wide = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    for lead in ((), (2, 3)):
        blocks = rng.random((*lead, -(-L // tall), -(-S // wide))) < rng.choice([0.05, 0.5, 0.95])
        ends = np.cumsum(blocks.sum(-1)).reshape(*lead, -(-L // tall))
        starts = ends - blocks.sum(-1)
        indptr = np.concatenate([starts, ends[..., -1:]], axis=-1) if L else np.zeros((*lead, 1), int)
        indices = [rng.permutation(np.flatnonzero(blocks[row])) for row in np.ndindex(blocks.shape[:-1])]
        given = {"indices": np.concatenate([*indices, []]).astype(int), "indptr": indptr, "block_size": block_size}
        compare("from_blocks", {**given, "shape": (*lead, L, S)})


def test_blocks_as_scipy_has_them():
    """Places between the rows, unsorted and repeated numbers, unsigned types."""
    given = {"indices": np.array([9, 1, 0, 1, 2], np.uint8), "block_size": 40}
    mask = BlockMask.from_blocks(**{**given, "indices": [2, 1, 0, 1, 2]}, indptr=[1, 4, 4], shape=(80, 100))
    dense = np.zeros((80, 100), bool)
    dense[:40, :80] = True
    check(mask, dense)
    with pytest.raises(ValueError, match="indices holds 9"):
        BlockMask.from_blocks(**given, indptr=[1, 4, 4], shape=(80, 100))


def test_every_layout_of_a_dense_mask():
    dense = seeded("layouts").random((3, 2, 130, 200)) < 0.3
    for view in (
        dense.swapaxes(-1, -2),
        dense[:, :, ::-2, ::3],
        dense.swapaxes(0, 1),
        np.broadcast_to(dense[:1], dense.shape),
    ):
        check(BlockMask.from_dense(view), np.array(view))
    check(BlockMask.from_dense(dense[0, 0].tolist()), dense[0, 0])


densities = st.sampled_from([0.0, 0.001, 0.03, 0.5, 0.97, 0.999, 1.0])


@st.composite
def dense_masks(draw, lead=None, shape=None):
    """Random masks of every density, some of them by whole tiles, rows or columns."""
    lead = draw(st.sampled_from([(), (1,), (3,), (2, 3)])) if lead is None else lead
    shape = (draw(st.integers(0, 200)), draw(st.integers(0, 200))) if shape is None else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense = rng.random((*lead, *shape)) < draw(densities)
    for axis, size in ((-2, draw(st.sampled_from([1, 64]))), (-1, draw(st.sampled_from([1, 64])))):
        stretch = rng.random(-(-dense.shape[axis] // size)) < draw(densities)
        stretch = np.repeat(stretch, size)[: dense.shape[axis]]
        stretch = stretch[:, None] if axis == -2 else stretch
        dense = dense | stretch if draw(st.booleans()) else dense & ~stretch
    return dense


def test_offsets_have_no_bounds():
    for offset in (2**70, -(2**70)):
        seen = offset > 0
        check(BlockMask.causal(70, 80, offset), np.full((70, 80), seen))
        check(BlockMask.sliding_window(70, 80, -1, 2**80, offset=offset), np.full((70, 80), True))
        check(BlockMask.sliding_window(70, 80, 5, 5, offset=offset), np.full((70, 80), False))
        far = BlockMask.sliding_window(70, 80, -1, -1, dilation=7, offset=offset)
        assert far == BlockMask.sliding_window(70, 80, -1, -1, dilation=7, offset=offset % 7)


@given(dense_masks())
@settings(max_examples=150)
def test_random_masks(dense):
    check(BlockMask.from_dense(dense), dense)


# --- joining and cutting

LEADS = [((), ()), ((3,), ()), ((2, 1), (3,)), ((2, 3), (2, 3)), ((0,), (1,)), ((1, 3), (2, 1))]


@given(st.data())
@settings(max_examples=150)
def test_joined_masks(data):
    shape = data.draw(st.integers(0, 200)), data.draw(st.integers(0, 200))
    first, second = data.draw(st.sampled_from(LEADS))
    a, b = data.draw(dense_masks(first, shape)), data.draw(dense_masks(second, shape))
    one, other = BlockMask.from_dense(a), BlockMask.from_dense(b)
    check(one & other, a & b, "&")
    check(one | other, a | b, "|")
    check(other | one, a | b, "| the other way")
    check(~one, ~a, "~")
    assert ~~one == one and (one & ~one).density == 0
    assert ~(one & other) == ~one | ~other


def test_joined_masks_of_many_tiles():
    """More than one piece of tiles, dense and sparse."""
    wide = BlockMask.causal(64 * 600, 64 * 600) & BlockMask.sliding_window(64 * 600, 64 * 600, 64 * 300, 0)
    assert len(wide._indices) > 2 * 2**16
    assert wide == BlockMask.sliding_window(64 * 600, 64 * 600, 64 * 300, 0)
    assert wide & ~BlockMask.causal(64 * 600, 64 * 600, -1) == BlockMask.sliding_window(64 * 600, 64 * 600, 0, 0)
    long = BlockMask.sliding_window(10**6, 10**6, 100, 100)
    assert (long | BlockMask.sliding_window(10**6, 10**6, 0, 200)) == BlockMask.sliding_window(10**6, 10**6, 100, 200)
    assert wide[100:1000] == wide[64:1000][36:]


def test_masks_that_do_not_fit_together():
    a = BlockMask.causal(5, 7)
    for other in (BlockMask.causal(7, 5), BlockMask.causal(1, 7), BlockMask.causal(5, 1)):
        with pytest.raises(ValueError, match=r"shapes \(5, 7\) and \(\d, \d\) cannot be joined"):
            a & other
    with pytest.raises(ValueError, match="cannot be joined"):
        BlockMask.lengths(5, 7, [1, 2]) | BlockMask.lengths(5, 7, [1, 2, 3])
    for other in (np.ones((5, 7), bool), True, None, 3):
        for join in (lambda x, y: x & y, lambda x, y: x | y):
            with pytest.raises(TypeError):
                join(a, other)
            with pytest.raises(TypeError):
                join(other, a)


@given(st.data())
@settings(max_examples=200)
def test_rows_are_cut_like_arrays(data):
    dense = data.draw(dense_masks())
    mask = BlockMask.from_dense(dense)
    ends = st.none() | st.integers(-210, 210)
    steps = st.sampled_from([None, 1, 1, 1, 2, -1, -3, 65])
    rows = slice(data.draw(ends), data.draw(ends), data.draw(steps))
    check(mask[..., rows, :], dense[..., rows, :], rows)
    leading = [
        data.draw(st.sampled_from([slice(None), slice(0, 1), slice(None, None, -1), 0, -1])) for _ in dense.shape[:-2]
    ]
    leading.insert(data.draw(st.integers(0, len(leading))), None)
    index = (*leading, rows)
    check(mask[index], dense[index], index)


def test_other_indices():
    dense = seeded("index").random((2, 3, 70, 80)) < 0.4
    mask = BlockMask.from_dense(dense)
    every, some = slice(None), slice(3, 9)
    good = [1, (1, 2), (every, 0), ..., (..., every), (0, ...), (np.int8(1),), (None, 0), (every, every, some, every)]
    for index in [*good, (1, ..., some, slice(0, 80))]:
        check(mask[index], dense[index], index)
    bad = [(..., 5, every), (..., some), (..., [1, 2], every), (0, 0, 0), (0, 0, 0, 0), (..., ...), (5,), (..., None)]
    for index in [*bad, (0, 0, every, every, 0), ([0, 1],), True, "a", 1.0]:
        with pytest.raises((IndexError, TypeError)):
            mask[index]
