"""BlockMask: how long it takes to make one of a long sequence, and how much memory it holds."""

import time
import tracemalloc

import numpy as np
from harness import Row, Work

from attnpy import BlockMask

LONG = 65536


def made(make, compared=None):
    """Milliseconds of a constructor."""

    def prepare(wanted):
        others = {peer: milliseconds(call) for peer, call in (compared or {}).items() if peer in wanted}
        return Work(figure=milliseconds(make), unit="ms", peers=others)

    return prepare


def milliseconds(call):
    def figure():
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    return figure


def memory(make):
    """Megabytes at the highest point while it is made, of which the mask itself is what remains."""

    def megabytes():
        make()
        tracemalloc.start()
        kept = make()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert kept.nbytes <= peak
        return peak / 1e6

    return lambda wanted: Work(figure=megabytes, unit="MB", samples=1)


def flex(length):
    """PyTorch's block mask of the causal rule."""

    def call():
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cpu")

    return call


def rows():
    rng = np.random.default_rng(0)
    square = f"{LONG} x {LONG}"

    def causal():
        return BlockMask.causal(LONG, LONG)

    yield Row("BlockMask.causal", square, made(causal), ("ms", 20))
    yield Row("BlockMask.causal", f"peak memory, {square}", memory(causal), ("MB", 20))
    compared = {"torch": flex(4096)}
    yield Row("BlockMask.causal", "4096 x 4096", made(lambda: BlockMask.causal(4096, 4096), compared))
    window = made(lambda: BlockMask.sliding_window(LONG, LONG, 255, 0))
    yield Row("BlockMask.sliding_window", f"{square}, (255, 0)", window, ("ms", 5))
    tokens = np.arange(16) * (LONG // 16)
    few = made(lambda: BlockMask.global_tokens(LONG, tokens))
    yield Row("BlockMask.global_tokens", f"{square}, 16 tokens", few)
    longformer = made(lambda: BlockMask.longformer(LONG, 256, tokens))
    yield Row("BlockMask.longformer", f"{square}, 256 per side, 16 tokens", longformer)
    yield Row("BlockMask.bigbird", square, made(lambda: BlockMask.bigbird(LONG, rng=rng)))
    documents = np.sort(rng.integers(0, 128, LONG))
    yield Row("BlockMask.documents", f"{square}, 128 documents", made(lambda: BlockMask.documents(documents)))
    yield Row("BlockMask.prefix", f"{square}, 1000 keys", made(lambda: BlockMask.prefix(LONG, 1000)))
    lengths = made(lambda: BlockMask.lengths(LONG, LONG, [1000, 60000]))
    yield Row("BlockMask.lengths", f"{square}, batch of 2", lengths)
    blocks = {"indptr": np.arange(LONG // 32 + 1) * 8, "indices": rng.integers(0, LONG // 32, LONG // 32 * 8)}
    bsr = made(lambda: BlockMask.from_blocks(**blocks, block_size=32, shape=(LONG, LONG)))
    yield Row("BlockMask.from_blocks", f"{square}, 8 blocks of 32 a row", bsr)
    dense = np.tri(4096, dtype=bool)
    yield Row("BlockMask.from_dense", "4096 x 4096", made(lambda: BlockMask.from_dense(dense)))
    rule = made(lambda: BlockMask.from_function(lambda b, h, q, k: q >= k, 4096, 4096), compared)
    yield Row("BlockMask.from_function", "4096 x 4096", rule)
