"""Calls of attention to pages and to caches."""

from typing import NamedTuple

import dense
import numpy as np
from calls import DTYPES, Call, named
from cases_rotary import rotary_tables

import attnpy


class Paged(NamedTuple):
    """Batch axes, query heads, key/value heads, queries, keys of the longest sequence, head sizes, keys a page."""

    batch: tuple
    H: int
    G: int
    L: int
    S: int
    E: int
    D: int
    page: int

    def __str__(self):
        batch = "x".join(map(str, self.batch)) or "-"
        return f"{batch}/H{self.H}G{self.G}L{self.L}S{self.S}E{self.E}D{self.D}P{self.page}"


# Pages smaller and larger than a block of 64 keys, multiples and not; decoding and prefill, one part of 1024 and two.
PAGED_SHAPES = [
    Paged((), 1, 1, 1, 1, 1, 1, 1),
    Paged((2, 3), 10, 5, 7, 11, 13, 17, 4),
    Paged((3,), 4, 2, 63, 130, 8, 5, 16),
    Paged((), 3, 1, 65, 129, 7, 16, 65),
    Paged((2,), 6, 2, 1, 131, 16, 32, 1),
    Paged((2,), 8, 1, 1, 1031, 32, 7, 64),
    Paged((), 3, 1, 1, 1500, 16, 24, 300),
    Paged((3,), 4, 2, 2, 67, 64, 64, 32),
    Paged((2,), 12, 2, 5, 1031, 9, 6, 100),
    Paged((0,), 2, 1, 3, 5, 7, 2, 2),
    Paged((2,), 2, 1, 0, 5, 7, 3, 2),
    Paged((2,), 2, 1, 3, 5, 7, 0, 2),
]
PAGED_HEAVY = [
    (Paged((2,), 4, 2, 257, 300, 64, 64, 16), "causal"),
    (Paged((), 2, 2, 193, 331, 33, 17, 7), "together"),
    (Paged((), 2, 1, 1, 9001, 32, 32, 16), "plain"),
]
OPTIONS = ("plain", "causal", "window", "offset", "softcap", "alibi", "sinks", "scale", "lengths", "together",
           "relative", "relative_rows", "rotary")  # fmt: skip
PAGED_OPTIONS = (*OPTIONS, "shared")
CACHE_OPTIONS = (
    *OPTIONS,
    "int8",
    "int8_window",
    "ring",
    "ring_sinks",
    "float16",
    "ragged",
    "ring_rotary",
    "int8_rotary",
)


def options_of(option, size, rng, real):
    batch, H, L, S = size.batch, size.H, size.L, size.S
    given = {}
    if option in ("causal", "together"):
        given["is_causal"] = True
    if option in ("window", "together", "int8_window"):
        given["window_size"] = (min(S, 70), 2)
    if option == "offset":
        given |= {"is_causal": True, "causal_offset": rng.integers(-3, S + 1, batch)}
    if option in ("softcap", "together"):
        given["softcap"] = 1.5
    if option in ("alibi", "together"):
        given["alibi_slopes"] = (rng.random(H) / 4).astype(real)
    if option in ("sinks", "together", "ring_sinks"):
        given["sinks"] = rng.normal(size=(*batch, H)).astype(real)
    if option.startswith("relative"):
        shape = (*batch, H, L, 13) if option == "relative_rows" else (H, 1, 2 * min(S, 90) + 1)
        given["relative_bias"] = rng.normal(size=shape).astype(real)
    if option == "scale":
        given["scale"] = -1.7
    if option.endswith("rotary"):
        given |= {"rotary": rotary_tables(S, size.E // 2, real), "rotary_interleaved": option == "ring_rotary"}
    if option in ("lengths", "together"):
        given["query_lengths"] = rng.integers(0, L + 1, batch)
    return given


def paged(hidden_of):
    """hidden_of: what is hidden in a call of scaled_dot_product_attention."""

    def make(size, dtype, option="plain", seed=0):
        rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
        batch, H, G, L, S, E, D, page = size
        lengths = np.asarray(rng.integers(min(L, S), S + 1, batch))
        if lengths.size:
            lengths.flat[-1] = S
        used = -(-lengths // page)
        pages = int(used.sum()) + 2
        most = int(used.max(initial=0)) + 1
        table = rng.integers(0, pages, (*batch, most))
        free = iter(rng.permutation(pages))
        for b in np.ndindex(batch):
            table[b][: used[b]] = [next(free) for _ in range(used[b])]
        if option == "shared" and used.size:
            table[..., : used.min()] = table.reshape(-1, most)[0, : used.min()]
        real, stored = np.float64 if dtype == "float64" else np.float32, DTYPES[dtype]
        arguments = {
            "query": rng.normal(size=(*batch, H, L, E)).astype(stored),
            "key_pages": rng.normal(size=(pages, page, G, E)).astype(stored),
            "value_pages": rng.normal(size=(pages, page, G, D)).astype(stored),
            "block_table": table,
            "kv_lengths": lengths,
            "return_lse": True,
            **options_of(option, size, rng, real),
        }
        return Call("paged_attention", arguments, named(size, dtype, option, seed), paged_hidden(arguments, hidden_of))

    return make


def paged_hidden(arguments, hidden_of):
    """Rows of pages that no query of any sequence sees."""
    plain = dense.of_pages(arguments)
    hidden = hidden_of(plain)
    unseen = np.ones(arguments["key_pages"].shape[:3], bool)
    size = unseen.shape[1]
    for b in np.ndindex(plain["kv_lengths"].shape):
        for j in range(int(plain["kv_lengths"][b])):
            page = arguments["block_table"][b][j // size]
            unseen[page, j % size] &= hidden["key"][(*b, slice(None), j, slice(None))].all(-1)
    places = {name: np.broadcast_to(unseen[..., None], arguments[name].shape) for name in ("key_pages", "value_pages")}
    return {"query": hidden["query"], **places}


class Cached(NamedTuple):
    """Sequences, query heads, key/value heads, queries, keys of the longest sequence, head sizes."""

    B: int
    H: int
    G: int
    L: int
    S: int
    E: int
    D: int

    @property
    def batch(self):
        return (self.B,)

    def __str__(self):
        return f"B{self.B}H{self.H}G{self.G}L{self.L}S{self.S}E{self.E}D{self.D}"


CACHED_SHAPES = [
    Cached(1, 1, 1, 1, 1, 1, 1),
    Cached(2, 10, 5, 7, 31, 13, 17),
    Cached(3, 4, 2, 63, 130, 8, 5),
    Cached(2, 6, 2, 1, 131, 16, 32),
    Cached(2, 8, 1, 1, 1031, 32, 64),
    Cached(1, 32, 8, 1, 300, 64, 64),
    Cached(2, 12, 2, 5, 1031, 9, 6),
    Cached(2, 2, 1, 65, 131, 64, 16),
]
CACHED_HEAVY = [
    (Cached(2, 4, 2, 257, 300, 64, 64), "causal"),
    (Cached(1, 8, 2, 1, 9001, 32, 32), "int8"),
    (Cached(2, 4, 1, 65, 331, 32, 16), "ring"),
]


def cached(size, dtype, option="plain", seed=0):
    rng = np.random.default_rng([seed, *map(ord, f"{size}{option}")])
    B, H, G, L, S, E, D = size
    real, stored = np.float64 if dtype == "float64" else np.float32, DTYPES[dtype]
    ring = {"window": S // 3} if option.startswith("ring") else {}
    kind = np.int8 if option.startswith("int8") else stored
    if option == "float16" and dtype != "bfloat16":
        kind = np.float16
    cache = attnpy.KVCache(2, B, G, S // 3 + max(L, 1) if ring else S + 2, E, value_head_dim=D, dtype=kind, **ring)
    lengths = rng.integers(L, S + 1, B) if option == "ragged" else np.full(B, S)
    for rows, counts in ((S - L, lengths - L), (L, None)):
        cache.append(1, *(rng.normal(size=(B, G, rows, n)) for n in (E, D)), counts)
    arguments = {
        "query": rng.normal(size=(B, H, L, E)).astype(stored),
        "cache": cache,
        "layer": 1,
        "return_lse": True,
        **options_of(option, size, rng, real),
    }
    return Call("attention_with_cache", arguments, named(size, dtype, option, seed))
