"""Attention: forward over the shapes of models, its options, decoding, weights, merging, dropout."""

import math

import numpy as np
import peers
from cases import Attention, stored
from harness import Row, Work

import attnpy

CACHES = 1e9  # bytes that decoding rotates over


def tolerance(case):
    return None if case.dropout else {"float64": 1e-5, "float32": 1e-3, "float16": 1e-2, "bfloat16": 6e-2}[case.dtype]


def forward(case, goal=None):
    """Fresh outputs for all, as a user calls it."""

    def prepare(wanted):
        operands, keywords = case.operands(), case.keywords()
        visible, computed = case.flops()
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*operands[0], **keywords),
            flops=visible,
            computed=computed,
            dtype=case.compute,
            head_dim=case.D,
            peers=peers.attention(case, operands, wanted),
            tolerance=tolerance(case),
        )

    return Row("scaled_dot_product_attention", case.name, prepare, goal)


def one_core(case, goal):
    """The kernel beside its own inner loops: everything around them costs the difference."""

    def prepare(wanted):
        query, key, value = case.operands()[0]
        keywords, out = case.keywords(), np.empty_like(query)

        def ours():
            with attnpy.num_threads(1):
                return attnpy.scaled_dot_product_attention(query, key, value, **keywords, out=out)

        visible, computed = case.flops()
        return Work(ours=ours, flops=visible, computed=computed, dtype=case.compute, head_dim=case.D, threads=1)

    return Row("scaled_dot_product_attention", case.name + ", one core", prepare, goal)


def two_cores(case, goal):
    """How much the second core brings."""

    def prepare(wanted):
        query, key, value = case.operands()[0]
        keywords, out = case.keywords(), np.empty_like(query)

        def ours():
            return attnpy.scaled_dot_product_attention(query, key, value, **keywords, out=out)

        def single():
            with attnpy.num_threads(1):
                return ours()

        visible, computed = case.flops()
        return Work(ours=ours, flops=visible, computed=computed, head_dim=case.D, beside={"one core": single})

    return Row("scaled_dot_product_attention", case.name + ", all cores beside one", prepare, goal)


def half(case, goal):
    """A storage type beside float32 on the same numbers."""

    def prepare(wanted):
        operands = case.operands()
        wide = [x.astype(np.float32) for x in operands[0]]
        visible, computed = case.flops()
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*operands[0]),
            flops=visible,
            computed=computed,
            head_dim=case.D,
            beside={"float32": lambda: attnpy.scaled_dot_product_attention(*wide)},
            peers=peers.attention(case, operands, wanted),
            tolerance=tolerance(case),
        )

    return Row("scaled_dot_product_attention", case.name, prepare, goal)


def by_distance(case, goal):
    """ALiBi or relative_bias beside the same call without; others add a dense bias."""

    def prepare(wanted):
        operands, keywords = case.operands(), case.keywords()
        without = {name: x for name, x in keywords.items() if name not in ("alibi_slopes", "relative_bias")}
        visible, computed = case.flops()
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(*operands[0], **keywords),
            flops=visible,
            computed=computed,
            head_dim=case.D,
            beside={"plain": lambda: attnpy.scaled_dot_product_attention(*operands[0], **without)},
            peers=peers.attention(case, operands, wanted),
            tolerance=tolerance(case),
        )

    return Row("scaled_dot_product_attention", case.name, prepare, goal)


def rotary(case, goal):
    """With rotary tables beside the same call without, and beside turning queries and keys first."""

    def prepare(wanted):
        (query, key, value), keywords = case.operands()[0], case.keywords()
        tables = [
            x.astype(np.float32) for x in attnpy.rotary_tables(np.arange(case.S), *attnpy.rotary_frequencies(case.D))
        ]
        visible, computed = case.flops()

        def turned_first():
            turned = (attnpy.rotary_embedding(x, *tables) for x in (query, key))
            return attnpy.scaled_dot_product_attention(*turned, value, **keywords)

        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention(query, key, value, **keywords, rotary=tables),
            flops=visible,
            computed=computed,
            head_dim=case.D,
            beside={
                "plain": lambda: attnpy.scaled_dot_product_attention(query, key, value, **keywords),
                "turned first": turned_first,
            },
        )

    return Row("scaled_dot_product_attention", f"{case.name} rotary", prepare, goal)


def decode(case, goal):
    """One query over caches that are cold: each call takes the next of a gigabyte of them."""

    def prepare(wanted):
        size = 2 * case.B * case.G * case.S * case.D * stored(case.dtype).itemsize
        operands = case.operands(math.ceil(CACHES / size))
        return Work(
            ours=[lambda arrays=arrays: attnpy.scaled_dot_product_attention(*arrays) for arrays in operands],
            bytes=size,
            yardsticks=("read",),
            memory=[arrays[1:] for arrays in operands],
            peers=peers.attention(case, operands, wanted),
            tolerance=tolerance(case),
        )

    return Row("scaled_dot_product_attention", case.name + ", cold", prepare, goal)


def paged(case, page, goal):
    """The same with keys and values in pages, in the order of a shuffled table."""

    def prepare(wanted):
        count = case.S // page
        size = 2 * case.B * case.G * case.S * case.D * stored(case.dtype).itemsize
        rng = np.random.default_rng(6)
        query = rng.standard_normal((case.B, case.H, case.L, case.D), np.float32).astype(stored(case.dtype))
        shape = (case.B * count, page, case.G, case.D)
        first = [rng.standard_normal(shape, np.float32).astype(query.dtype) for _ in range(2)]
        pages = [first, *([x.copy() for x in first] for _ in range(math.ceil(CACHES / size) - 1))]
        table = rng.permutation(case.B * count).reshape(case.B, count)
        lengths = np.full(case.B, case.S)
        return Work(
            ours=[lambda pair=pair: attnpy.paged_attention(query, *pair, table, lengths) for pair in pages],
            bytes=size,
            yardsticks=("read",),
            memory=pages,
        )

    return Row("paged_attention", f"{case.name}, pages of {page}, cold", prepare, goal)


def cached(case, goal):
    """One step over a cache of int8, or of another type."""

    def prepare(wanted):
        rng = np.random.default_rng(7)
        query = rng.standard_normal((case.B, case.H, case.L, case.D), np.float32)
        caches = [attnpy.KVCache(1, case.B, case.G, case.S, case.D, dtype=stored(case.dtype))]
        size = caches[0].nbytes
        rows = rng.standard_normal((2, case.B, case.G, case.S, case.D), np.float32)
        caches += [
            attnpy.KVCache(1, case.B, case.G, case.S, case.D, dtype=stored(case.dtype))
            for _ in range(math.ceil(CACHES / size) - 1)
        ]
        for cache in caches:
            cache.append(0, *rows)
        return Work(
            ours=[lambda cache=cache: attnpy.attention_with_cache(query, cache, 0) for cache in caches],
            bytes=size,
            yardsticks=("read",),
            memory=[cache.view(0)[:2] for cache in caches],
        )

    return Row("attention_with_cache", f"{case.name}, cold", prepare, goal)


def rows():
    for size, share in ((32, 0.95), (64, 0.96), (128, 0.95), (256, 0.94)):
        yield one_core(Attention(H=1, L=2048, D=size), ("tile", share))
    for case in (Attention(H=8, L=2048), Attention(H=1, L=4096, causal=True)):
        yield two_cores(case, ("one core", 1.9))
    for size, share in ((32, 0.78), (64, 0.86), (128, 0.88), (256, 0.90)):
        yield forward(Attention(H=8, L=2048, D=size), ("fma", share))
    yield forward(Attention(H=12, L=1024, causal=True), ("fma", 0.78))
    yield forward(Attention(H=8, L=4096, causal=True), ("fma", 0.83))
    yield forward(Attention(H=1, L=4096, causal=True), ("fma", 0.78))
    yield forward(Attention(H=32, shared=8, L=2048, D=128, causal=True), ("fma", 0.85))
    yield forward(Attention(B=8, H=12, L=128), ("fma", 0.75))
    yield forward(Attention(H=12, L=512), ("fma", 0.80))
    yield forward(Attention(H=8, L=8192, causal=True, window=(255, 0)), ("fma", 0.60))
    yield forward(Attention(H=8, L=2048, dtype="float64"), ("fma", 0.75))
    yield half(Attention(H=8, L=2048, dtype="float16"), ("float32", 0.95))
    yield half(Attention(H=8, L=2048, dtype="bfloat16"), ("float32", 0.95))
    for dtype, share in (("float32", 0.92), ("float16", 0.86), ("bfloat16", 0.86)):
        yield decode(Attention(H=32, shared=8, L=1, keys=8192, D=128, dtype=dtype), ("read", share))
    for page, share in ((16, 0.80), (256, 0.86)):
        yield paged(Attention(H=32, shared=8, L=1, keys=8192, D=128), page, ("read", share))
    yield cached(Attention(H=32, shared=8, L=1, keys=8192, D=128, dtype="int8"), ("read", 0.75))
    for option in (
        {"masked": True},
        {"biased": True},
        {"softcap": 30.0},
        {"alibi": True, "causal": True},
        {"dropout": True},
    ):
        yield forward(Attention(H=8, L=1024, **option))
    yield by_distance(Attention(H=8, L=2048, alibi=True, causal=True), ("plain", 1 / 1.06))
    yield by_distance(Attention(H=8, L=2048, alibi=True), ("plain", 1 / 1.06))
    yield by_distance(Attention(H=8, L=2048, relative=128), ("plain", 1 / 1.12))
    yield by_distance(Attention(H=8, L=2048, relative=128, causal=True), ("plain", 1 / 1.12))
    yield by_distance(Attention(H=8, L=2048, relative=2047), ("plain", 1 / 1.12))
    yield rotary(Attention(H=8, L=2048), ("plain", 1 / 1.05))
    yield rotary(Attention(H=8, L=2048, causal=True), ("plain", 1 / 1.05))
    yield rotary(Attention(H=32, shared=8, L=2048, D=128), ("plain", 1 / 1.05))
    yield weights(Attention(H=12, L=512))
    yield weights_of_rows(Attention(H=12, L=1024), 64)
    yield received(Attention(H=12, L=1024, causal=True))
    yield merge(Attention(H=8, L=2048), 2)
    yield merge_backward(Attention(H=8, L=2048), 2)
    yield dropout(Attention(H=8, L=1024))


def weights(case):
    def prepare(wanted):
        query, key, _ = case.operands()[0]
        out = np.empty((case.B, case.H, case.L, case.S), np.float32)
        return Work(
            ours=lambda: attnpy.attention_weights(query, key, out=out),
            flops=case.flops()[0] / 2,
            head_dim=case.D,
            peers=weights_peers(query, key, wanted),
            tolerance=1e-5,
        )

    return Row("attention_weights", case.name, prepare)


def weights_of_rows(case, count):
    def prepare(wanted):
        query, key, _ = case.operands()[0]
        chosen = np.linspace(0, case.L - 1, count).astype(int)
        out = np.empty((case.B, case.H, count, case.S), np.float32)
        return Work(
            ours=lambda: attnpy.attention_weights(query, key, rows=chosen, out=out),
            flops=case.flops()[0] / 2 * count / case.L,
            head_dim=case.D,
            peers=weights_peers(np.ascontiguousarray(query[:, :, chosen]), key, wanted),
            tolerance=1e-5,
        )

    return Row("attention_weights", f"{case.name}, {count} rows", prepare)


def weights_peers(query, key, wanted):
    scale = 1 / math.sqrt(query.shape[-1])

    def numpy():
        scores = (query * np.float32(scale)) @ key.swapaxes(-1, -2)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        return scores

    calls = {"numpy": numpy} if "numpy" in wanted else {}
    if "torch" in wanted:
        import torch

        q, k = peers.tensor(query), peers.tensor(key)

        def torch_weights():
            with torch.inference_mode():
                return torch.softmax((q * scale) @ k.mT, -1).numpy()

        calls["torch"] = torch_weights
    return calls


def received(case):
    """Counts each score once, though sums without storing them need the scores twice."""

    def prepare(wanted):
        query, key, _ = case.operands()[0]
        visible, computed = case.flops()
        mask = case.dense()[0]

        def numpy():
            scores = (query * np.float32(1 / math.sqrt(case.D))) @ key.swapaxes(-1, -2)
            np.copyto(scores, -np.inf, where=~mask)
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            return scores.sum(-2)

        return Work(
            ours=lambda: attnpy.attention_received(query, key, is_causal=case.causal),
            flops=visible / 2,
            computed=computed,
            head_dim=case.D,
            peers={"numpy": numpy} if "numpy" in wanted else {},
            tolerance=1e-3,
        )

    return Row("attention_received", case.name, prepare)


def merge(case, parts):
    def prepare(wanted):
        rng = np.random.default_rng(3)
        outputs = rng.standard_normal((parts, case.B, case.H, case.L, case.D), np.float32)
        lses = rng.standard_normal((parts, case.B, case.H, case.L), np.float32)
        out = (np.empty_like(outputs[0]), np.empty_like(lses[0]))

        def numpy():
            weights = np.exp(lses - np.logaddexp.reduce(lses))
            return (weights[..., None] * outputs).sum(0)

        half_way = outputs.size // 2
        return Work(
            ours=lambda: attnpy.merge_attention(outputs, lses, out=out)[0],
            bytes=outputs.nbytes + lses.nbytes + out[0].nbytes + out[1].nbytes,
            yardsticks=("memcpy",),
            memory=[(outputs.reshape(-1)[:half_way], np.empty(half_way, np.float32))],
            peers={"numpy": numpy} if "numpy" in wanted else {},
            tolerance=1e-4,
        )

    return Row("merge_attention", f"{parts} parts of {case.name}", prepare)


def merge_backward(case, parts):
    """dO, O and the parts are read, their gradients written."""

    def prepare(wanted):
        rng = np.random.default_rng(3)
        outputs = rng.standard_normal((parts, case.B, case.H, case.L, case.D), np.float32)
        lses = rng.standard_normal((parts, case.B, case.H, case.L), np.float32)
        output, lse = attnpy.merge_attention(outputs, lses)
        grad, out = rng.standard_normal(output.shape, np.float32), (np.empty_like(outputs), np.empty_like(lses))

        def numpy():
            share = np.exp(lses - lse)[..., None]
            return share * grad, share[..., 0] * (grad * (outputs - output)).sum(-1)

        return Work(
            ours=lambda: attnpy.merge_attention_backward(grad, outputs, lses, output, lse, out=out)[0],
            bytes=2 * (outputs.nbytes + lses.nbytes + grad.nbytes) + lse.nbytes,
            yardsticks=("memcpy",),
            memory=[(outputs, np.empty_like(outputs))],
            peers={"numpy": lambda: numpy()[0]} if "numpy" in wanted else {},
            tolerance=1e-4,
        )

    return Row("merge_attention_backward", f"{parts} parts of {case.name}", prepare)


def dropout(case):
    def prepare(wanted):
        shape = (case.B, case.H, case.L, case.S)
        key = attnpy.dropout_key(np.random.default_rng(4))
        generator = np.random.default_rng(5)

        def numpy():
            return (generator.random(shape, np.float32) >= 0.1) * np.float32(1 / 0.9)

        return Work(
            ours=lambda: attnpy.dropout_mask(shape, 0.1, key, dtype=np.float32),
            bytes=4 * math.prod(shape),
            yardsticks=(),
            peers={"numpy": numpy} if "numpy" in wanted else {},
        )

    return Row("dropout_mask", f"B{case.B} H{case.H} L{case.L} S{case.S} float32", prepare)
