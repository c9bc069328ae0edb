"""BlockMask: how long it takes to make one of a long sequence, how much memory it holds, and attention through it."""

import time
import tracemalloc

import numpy as np
import peers
from harness import Row, Work

import attnpy
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


def attend(make, rule, heads=8, head_dim=64):
    """Attention of a long sequence; operations are those of all scores of visible tiles. PyTorch gets the dense mask,
    and its compiled flex attention the rule as a function of tensors."""

    def prepare(wanted):
        mask = make()
        length = mask.shape[-1]
        operands = np.random.default_rng(0).standard_normal((3, 1, heads, length, head_dim), np.float32)
        flops = 4 * heads * head_dim * 64**2 * len(mask._indices)
        others = {}
        if "torch" in wanted:
            others = {"torch": dense_attention(operands, mask), "flex": flex_attention(operands, rule())}
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*operands, mask),
            flops=flops, head_dim=head_dim, peers=others, tolerance=1e-4,
        )  # fmt: skip

    return prepare


def dense_attention(operands, mask):
    if mask.shape[-1] > 8192:
        return f"a dense mask of {mask.shape[-1]} would hold {mask.shape[-1] ** 2 / 1e9:.1f} GB"
    import torch

    dense = mask.to_dense() if isinstance(mask, BlockMask) else mask
    query, key, value, dense = map(peers.tensor, (*operands, dense))

    def call():
        with torch.inference_mode():
            return peers.as_numpy(torch.nn.functional.scaled_dot_product_attention(query, key, value, dense))

    return call


def flex_attention(operands, rule):
    """Compiled at the first call."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    length = operands.shape[-2]
    if length > 8192:
        return "its block mask is made of a dense one"
    query, key, value = map(peers.tensor, operands)
    blocks = create_block_mask(rule, None, None, length, length, device="cpu")
    compiled = torch.compile(flex_attention)

    def call():
        with torch.inference_mode():
            return peers.as_numpy(compiled(query, key, value, block_mask=blocks))

    return call


LONGFORMER_TOKENS = 16


def longformer(length):
    return BlockMask.longformer(length, 256, np.arange(LONGFORMER_TOKENS))


def longformer_rule():
    return lambda b, h, q, k: ((q - k).abs() <= 256) | (q < LONGFORMER_TOKENS) | (k < LONGFORMER_TOKENS)


def bigbird(length):
    return BlockMask.bigbird(length, rng=np.random.default_rng(0))


def bigbird_rule():
    import torch

    blocks = torch.from_numpy(bigbird(8192).to_dense()[::64, ::64].copy())
    return lambda b, h, q, k: blocks[q // 64, k // 64]


def flex(length):
    """PyTorch's block mask of the causal rule."""

    def call():
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device="cpu")

    return call


def dense_longformer(operands, window, tokens):
    """With a dense mask of the pattern, and the global rows once more by their own projections."""
    import torch

    local = dense_attention(operands[:3], BlockMask.longformer(operands.shape[-2], window, np.arange(tokens)))
    query, key, value = map(peers.tensor, operands[3:])

    def call():
        output = local()
        with torch.inference_mode():
            rows = torch.nn.functional.scaled_dot_product_attention(query[:, :, :tokens], key, value)
        output[:, :, :tokens] = peers.as_numpy(rows)
        return output

    return call


def longformer_attention(length, window, tokens):
    """Counts the tiles that a window and the global tokens need, and the rows of these tokens."""

    def prepare(wanted):
        rng = np.random.default_rng(1)
        operands = rng.standard_normal((6, 1, 8, length, 64), np.float32)
        chosen = np.arange(tokens)
        near = BlockMask.sliding_window(length, length, window, window)
        tiles = len(near._indices) + -(-length // 64) * -(-tokens // 64) + tokens * length / 64**2
        return Work(
            ours=lambda: attnpy.longformer_attention(*operands, window=window, global_tokens=chosen),
            flops=4 * 8 * 64 * 64**2 * tiles,
            peers={"torch": dense_longformer(operands, window, tokens)} if "torch" in wanted else {},
            tolerance=1e-4,
        )

    return Row(
        "longformer_attention", f"8 heads of {length}, {window} per side, {tokens} tokens", prepare, ("fma", 0.55)
    )


def window_of(length, times, share):
    """A long sequence beside shorter ones that together have as many queries: time grows with the length only. Outputs
    are given: fetching the pages of a fresh one would count for the long one alone, whose memory is not used again."""

    def prepare(wanted):
        rng = np.random.default_rng(2)
        long, short = (rng.standard_normal((3, 1, 8, n, 64), np.float32) for n in (length, length // times))
        options = {"is_causal": True, "window_size": (255, 0)}
        out, short_out = np.empty_like(long[0]), np.empty_like(short[0])

        def one_by_one():
            for _ in range(times):
                attnpy.scaled_dot_product_attention(*short, **options, out=short_out)

        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*long, **options, out=out),
            flops=4 * 8 * 64 * (256 * length - 256 * 255 // 2),
            beside={f"{times} of {length // times}": one_by_one},
        )

    case = f"H8 L{length} D64 causal, window (255, 0)"
    return Row("scaled_dot_product_attention", case, prepare, (f"{times} of {length // times}", share))


def masked(case, make, share, length=2048):
    """A mask beside none."""

    def prepare(wanted):
        operands, mask = np.random.default_rng(3).standard_normal((3, 1, 8, length, 64), np.float32), make(length)
        dense = mask.to_dense() if isinstance(mask, BlockMask) else mask
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*operands, mask),
            flops=4 * 8 * 64 * int(dense.sum()),
            beside={"no mask": lambda: attnpy.scaled_dot_product_attention(*operands)},
            peers={"torch": dense_attention(operands, dense)} if "torch" in wanted else {},
            tolerance=1e-3,
        )

    return Row("scaled_dot_product_attention", f"H8 L{length} D64 {case}", prepare, ("no mask", share))


def scattered(length):
    """Nine tenths are visible, in every tile."""
    return np.random.default_rng(4).random((length, length)) < 0.9


def half_the_tiles(length):
    """In every row of tiles, half of them, drawn at random."""
    tiles = np.tile(np.arange(length // 64) % 2 == 0, (length // 64, 1))
    return np.random.default_rng(5).permuted(tiles, axis=1).repeat(64, 0).repeat(64, 1)


def rows():
    yield longformer_attention(8192, 256, 16)
    yield window_of(65536, 8, 8 / 8.5)
    yield masked("dense bool mask, all visible", lambda n: np.ones((n, n), bool), 1 / 1.08)
    yield masked("dense bool mask, 90 % visible", scattered, 1 / 1.08)
    yield masked("dense bool mask, half of the tiles hidden", half_the_tiles, 1 / 0.6)
    yield masked("BlockMask, half of the tiles hidden", lambda n: BlockMask.from_dense(half_the_tiles(n)), 1 / 0.6)
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
    near = made(lambda: BlockMask.longformer(LONG, 256, tokens))
    yield Row("BlockMask.longformer", f"{square}, 256 per side, 16 tokens", near)
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
    longer = attend(lambda: longformer(8192), longformer_rule)
    yield Row("scaled_dot_product_attention", "H8 L8192 D64 Longformer, 256 per side", longer, ("fma", 0.55))
    drawn = attend(lambda: bigbird(8192), bigbird_rule)
    yield Row("scaled_dot_product_attention", "H8 L8192 D64 BigBird", drawn, ("fma", 0.55))
    longest = attend(lambda: longformer(65536), longformer_rule, heads=1)
    yield Row("scaled_dot_product_attention", "H1 L65536 D64 Longformer, 256 per side", longest)
