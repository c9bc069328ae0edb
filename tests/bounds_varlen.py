"""Bounds of functions on packed sequences: those of each sequence, put together."""

import functools
import math

import bounds
import numpy as np
import packed
from numerics import Expected


def varlen_attention(arguments):
    """Rows of no sequence: exactly 0 and -inf."""
    H, D = np.shape(arguments["query"])[1], np.shape(arguments["value"])[2]
    T = len(arguments["query"])
    parts = [(rows, keys, bounds.scaled_dot_product_attention(own)) for rows, keys, own in packed.sequences(arguments)]
    results = [_joined("output", (T, H, D), parts, 0, 0.0)]
    if arguments.get("return_lse"):
        results.append(_joined("lse", (H, T), parts, 1, -np.inf))
    return results


def varlen_attention_backward(arguments):
    parts = [
        (rows, keys, bounds.scaled_dot_product_attention_backward(own))
        for rows, keys, own in packed.sequences(arguments)
    ]
    fields = [
        name
        for name in ("query", "key", "value", "sinks", "alibi_slopes", "relative_bias")
        if name in arguments["needs"]
    ]
    results = []
    for n, name in enumerate(fields):
        shape = np.shape(arguments[name])
        by_sequence = name in packed.PER_SEQUENCE or (name == "relative_bias" and shape[-2] == 1)
        if not by_sequence:
            results.append(_joined(name, shape, parts, n, 0.0))
        elif len(shape) == (3 if name == "relative_bias" else 1):
            results.append(_summed(name, shape, parts, n))
        else:
            results.append(_stacked(name, shape, parts, n))
    return results


def _joined(name, shape, parts, which, outside):
    """One result of all sequences; `outside` where there is none."""

    def join(find, fill=0.0):
        found = [find(results[which]) for *_, results in parts]
        if any(x is None for x in found):
            return None
        whole = np.full(shape, fill, np.result_type(np.float64, *(np.asarray(x).dtype for x in found)))
        for (rows, keys, results), x in zip(parts, found, strict=True):
            packed.put(whole, name, rows, keys, np.broadcast_to(x, results[which].wanted.shape))
        return whole

    return _expected(name, join, lambda find: join(find, outside), max, [x[which] for *_, x in parts])


def _stacked(name, shape, parts, which):
    """Gradients (N, H) of what each sequence has its own of."""

    def join(find):
        found = [find(results[which]) for *_, results in parts]
        return (
            None if any(x is None for x in found) else np.reshape([np.broadcast_to(x, shape[1:]) for x in found], shape)
        )

    return _expected(name, join, join, max, [x[which] for *_, x in parts])


def _summed(name, shape, parts, which):
    """Gradients (H,) of what all sequences share. The sums of their row blocks are one chain: n additions are off by
    n u of the sum of |terms|, of which a sequence's own bound holds 64 u or more.
    """

    def join(find):
        found = [find(results[which]) for *_, results in parts]
        return (
            None if any(x is None for x in found) else sum((np.broadcast_to(x, shape) for x in found), np.zeros(shape))
        )

    blocks = sum(math.ceil((rows.stop - rows.start) / 64) for rows, *_ in parts)
    expected = _expected(name, join, join, sum, [x[which] for *_, x in parts])
    return expected._replace(cap=expected.cap * (1 + blocks / 64))


def _expected(name, join, join_wanted, join_slack, each):
    return Expected(
        name,
        join_wanted(lambda x: x.wanted),
        join(lambda x: x.cap),
        join_wanted(lambda x: x.plain) if each else None,
        join_slack([x.slack for x in each] or [0.0]),
        functools.partial(_again, join_wanted) if all(x.again for x in each) else None,
        join(lambda x: x.floor),
    )


def _again(join, rng):
    return join(lambda x: x.again(rng))
