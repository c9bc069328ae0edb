"""What the object BlockMask promises: immutable, equal, small, drawn; and what BigBird draws."""

import copy
import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from masks import check_form, seeded

import attnpy
from attnpy import BlockMask


def test_masks_cannot_be_changed():
    mask = BlockMask.causal(100, 100)
    for name in ("shape", "_bits", "other"):
        with pytest.raises(AttributeError):
            setattr(mask, name, 1)
    with pytest.raises(AttributeError):
        del mask.shape
    for array in mask._core_arrays[1:]:
        with pytest.raises(ValueError):
            array.setflags(write=True)
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, bytes)
    dense = np.ones((3, 3), bool)
    made = BlockMask.from_dense(dense)
    dense[:] = False
    made.to_dense()[:] = False
    assert made.density == 1


def test_equality():
    mask = BlockMask.sliding_window(100, 100, 3, 3)
    assert mask != BlockMask.sliding_window(100, 100, 3, 2) and mask != BlockMask.sliding_window(101, 101, 3, 3)
    assert mask != mask[None] and mask != mask.to_dense().tolist() and mask != 1
    assert len({mask, ~~mask, BlockMask.from_dense(mask.to_dense()), mask[None]}) == 2


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (2, 0, 3, 4), (2, 70, 130)])
def test_copies(shape):
    mask = BlockMask.from_dense(seeded("copies", shape).random(shape) < 0.4)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(mask, protocol))
        assert other == mask
        check_form(other)
        assert all(isinstance(x.base, bytes) for x in other._core_arrays[1:])
    assert copy.copy(mask) == copy.deepcopy(mask) == mask


def test_equal_tiles_share_a_pattern():
    assert len(BlockMask.causal(6400, 6400)._bits) == 1
    assert len(BlockMask.sliding_window(64000, 64000, 255, 0)._bits) == 2
    assert len(BlockMask.sliding_window(64000, 64000, 500, 0, dilation=4)._bits) < 10
    assert len(BlockMask.from_dense(np.tile(np.eye(64, dtype=bool), (3, 5)))._bits) == 1


def test_patterns_with_equal_hashes(monkeypatch):
    """Patterns are told apart by themselves where their hashes are equal."""
    from attnpy import _masks_tiles

    dense = seeded("hashes").random((130, 200)) < 0.5
    wanted = BlockMask.from_dense(dense)
    unique, calls = np.unique, []

    def all_equal(x, **options):
        calls.append(x.ndim)
        return unique(np.zeros_like(x) if x.ndim == 1 and x.dtype == np.uint64 else x, **options)

    monkeypatch.setattr(_masks_tiles.np, "unique", all_equal)
    mask = BlockMask.from_dense(dense)
    again = BlockMask.from_dense(dense) | BlockMask.from_dense(np.zeros_like(dense))
    monkeypatch.undo()
    assert 2 in calls
    np.testing.assert_array_equal(mask.to_dense(), dense)
    assert mask == again and mask.density == wanted.density


def queries_of(step):
    """64 queries, of which every step-th sees all."""
    return BlockMask.from_dense(np.broadcast_to(np.arange(64)[:, None] % step == 0, (64, 64)))


PICTURES = {
    "████████████████": (BlockMask.causal(1000, 1000), 15),
    "██▓░····": (BlockMask.causal(1000, 1000), 1),
    "█·█·█···": (BlockMask.sliding_window(8, 8, 2, 2, dilation=2), 0),
    "░░░░░░░░": (queries_of(4), 5),
    "▒▒▒▒▒▒▒▒": (queries_of(2), 5),
    "▓▓▓▓▓▓▓▓": (~queries_of(4), 5),
    "██▓░·····": (BlockMask.causal(65536, 65536), 1),
}


@pytest.mark.parametrize("wanted", PICTURES)
def test_pictures(wanted):
    mask, row = PICTURES[wanted]
    lines = repr(mask).splitlines()
    assert lines[1 + row].startswith(wanted)
    assert len(lines) <= 33 and all(len(line) <= 32 for line in lines[1:])


@pytest.mark.parametrize("shape", [*itertools.product((1, 31, 33, 64, 2049, 5000), repeat=2), (1, 10**7), (10**7, 1)])
def test_pictures_fit(shape):
    head, *lines = repr(BlockMask.sliding_window(*shape, 3, 3)).splitlines()
    assert head.startswith(f"BlockMask, shape {shape}, ")
    assert (
        1 <= len(lines) <= 32 and {len(line) for line in lines} <= set(range(1, 33)) and len(set(map(len, lines))) == 1
    )
    for text in (repr(BlockMask.causal(0, shape[1])), repr(BlockMask.causal(shape[0], 0)[None][:0])):
        assert "\n" not in text


def test_the_picture_of_many():
    text = repr(BlockMask.lengths(2, 4, [1, 3]))
    assert text == "BlockMask, shape (2, 1, 2, 4), 50 % visible, 2 tiles; the first of 2:\n█···\n█···"


def test_plots():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mask = BlockMask.causal(200, 300)
    drawn = mask.plot().get_images()[0].get_array()
    np.testing.assert_array_equal(drawn, np.add.reduceat(mask.to_dense(), np.arange(0, 300, 2), axis=1) / 2)
    ax = BlockMask.causal(65536, 65536).plot(titles="causal")
    share = ax.get_images()[0].get_array()
    assert share.shape == (256, 256) and share[5, 4] == 1 and share[4, 5] == 0 and 0.5 < share[3, 3] < 0.51
    assert ax.get_title() == "causal"
    labels = [int(label.get_text()) for label in ax.get_yticklabels()]
    assert labels[0] == 0 and labels[1] == 256 * ax.get_yticks()[1]
    grid = BlockMask.lengths(5, 5, [1, 2, 3]).plot(max_columns=2)
    assert grid.shape == (2, 2) and grid[0, 1].get_title() == "(1, 0)"
    with pytest.raises(ValueError, match="nothing to draw"):
        BlockMask.causal(0, 3).plot()
    pyplot.close("all")


# --- memory


def peak(make):
    make()
    tracemalloc.start()
    made = make()
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest, made


def test_long_masks_take_the_memory_of_their_tiles():
    length, rng = 65536, seeded("long")
    highest, causal = peak(lambda: BlockMask.causal(length, length))
    assert highest < 20e6 and causal.nbytes < 5e6
    assert causal.density == (length + 1) / 2 / length
    ids = np.sort(rng.integers(0, 300, length))
    for make in (
        lambda: BlockMask.sliding_window(length, length, 255, 0),
        lambda: BlockMask.longformer(length, 256, np.arange(16) * 4000),
        lambda: BlockMask.bigbird(length, rng=np.random.default_rng(0)),
        lambda: BlockMask.documents(ids),
    ):
        highest, mask = peak(make)
        assert highest < 64e6 and mask.nbytes < 2e6, (highest, mask.nbytes)
    assert BlockMask.prefix(length, 1000).nbytes < 5e6


def test_functions_are_asked_strip_by_strip():
    asked = []

    def rule(b, h, q, k):
        assert q.shape[1] == k.shape[0] == 1 and b.shape == h.shape == (1, 1)
        assert {x.dtype for x in (b, h, q, k)} == {np.dtype(np.int64)}
        asked.append(q.size * k.size)
        return k - q < 5

    highest, mask = peak(lambda: BlockMask.from_function(rule, 3000, 5000))
    assert mask == BlockMask.sliding_window(3000, 5000, -1, 4, offset=0)
    assert max(asked) <= 2**22 and sum(asked) == 2 * 3000 * 5000 and highest < 64e6
    asked.clear()
    mask = BlockMask.from_function(rule, 3, 100_001)
    assert mask == BlockMask.sliding_window(3, 100_001, -1, 4, offset=0) and sum(asked) == 300_003


def test_errors_of_a_function_come_through():
    def rule(b, h, q, k):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        BlockMask.from_function(rule, 3, 3)


# --- BigBird


def test_bigbird_draws_what_it_says():
    """Global blocks, windows, and for every other block so many more, each equally often."""
    count, drawn = 40, np.zeros((40, 40), int)
    rng = seeded("bigbird")
    fixed = BlockMask.bigbird(count, block_size=1, num_random=0, rng=rng).to_dense()
    for _ in range(400):
        blocks = BlockMask.bigbird(count, block_size=1, rng=rng).to_dense()
        assert (blocks | ~fixed).all()
        assert ((blocks & ~fixed).sum(1)[1:-1] == 3).all() and (blocks[[0, -1]] == 1).all()
        drawn += blocks & ~fixed
    free = ~fixed
    expected = 400 * 3 / free.sum(1)[1:-1, None]
    score = (drawn[1:-1] - expected) / np.sqrt(expected)
    assert np.abs(score[free[1:-1]]).max() < 5  # five standard deviations, 1400 places
    i, j = np.indices((count, count))
    everywhere = (i % 39 == 0) | (j % 39 == 0)
    np.testing.assert_array_equal(fixed, everywhere | (abs(i - j) <= 1))


def test_bigbird_is_a_function_of_the_generator():
    masks = [BlockMask.bigbird(1000, block_size=10, rng=np.random.default_rng(n)) for n in (1, 1, 2)]
    assert masks[0] == masks[1] != masks[2]


def test_public_places():
    assert attnpy.BlockMask is BlockMask and "BlockMask" in dir(attnpy)
    with pytest.raises(TypeError, match="from_dense"):
        BlockMask()
