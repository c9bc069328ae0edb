"""Attention with vectors of distances, and its gradients, in any floating type."""

import math
from typing import NamedTuple

import numpy as np
from oracle import ADDITIVE, compute_type, in_type, sizes, visible_keys
from oracle_backward import contract, log_sum_exp, of_shared, summed_to

TABLES = {"shaw": ("key_table", "value_table"), "xl": ("position_keys",)}


class Pairs(NamedTuple):
    """Every pair of a query row and a key, (..., H, L, S), and what belongs to rows, keys and vectors."""

    content: np.ndarray  # q + u
    position: np.ndarray  # q + v
    key: np.ndarray
    value: np.ndarray
    vectors: np.ndarray
    value_vectors: np.ndarray | None
    number: np.ndarray  # of the vector that a pair meets; 0 where not visible
    visible: np.ndarray
    weights: np.ndarray
    lse: np.ndarray  # (..., H, L, 1)
    scale: float
    reach: np.ndarray  # (..., H, L, 1)


def pairs(real, arguments, rng=None, lse=None):
    """`lse`: what is given; else it is made."""
    batch, H, _, L, S, _ = sizes(**arguments)
    stored = compute_type(*(np.asarray(arguments[x]) for x in ("query", "key", "value")))

    def operand(name, core):
        x = in_type(real, stored, arguments[name])
        if name in ("key", "value", "query"):
            x = x[None] if x.ndim == 2 else x
            x = np.repeat(x, H // max(x.shape[-3], 1), -3)
        return np.broadcast_to(x, (*batch, H, *x.shape[x.ndim - core :]))

    query, key, value = (operand(name, 2) for name in ("query", "key", "value"))
    clips = "key_table" in arguments
    vectors = operand("key_table" if clips else "position_keys", 2)
    value_vectors = operand("value_table", 2) if arguments.get("value_table") is not None else None
    biases = [
        operand(x, 1)[..., None, :] if arguments.get(x) is not None else real(0)
        for x in ("content_bias", "position_bias")
    ]
    visible = visible_keys(arguments)
    number = numbers(arguments, visible, vectors.shape[-2], clips)
    scale = arguments.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    with np.errstate(all="ignore"):
        content, position = (query + x for x in biases)
        sizes_of = [np.abs(query) + np.abs(x) for x in biases]
        score = contract(real(scale) * content, key.swapaxes(-1, -2), rng)
        size = abs(scale) * (sizes_of[0] @ np.abs(key).swapaxes(-1, -2)).astype(np.float64)
        if vectors.shape[-2]:
            products = contract(real(scale) * position, vectors.swapaxes(-1, -2), rng)
            score = score + np.take_along_axis(products, number, -1)
            products = abs(scale) * (sizes_of[1] @ np.abs(vectors).swapaxes(-1, -2)).astype(np.float64)
            size = size + np.take_along_axis(products, number, -1)
        for name in ADDITIVE:
            x = arguments.get(name)
            if x is not None and np.asarray(x).dtype != bool:
                term = np.broadcast_to(in_type(real, stored, x), visible.shape)
                score, size = score + term, size + np.abs(term).astype(np.float64)
        if lse is None:
            lse = log_sum_exp(np.where(visible, score, real(-np.inf)), real(-np.inf))
        else:
            lse = np.broadcast_to(in_type(real, stored, lse), (*batch, H, L))[..., None]
        weights = np.where(visible & (lse != -np.inf), np.exp(score - lse), real(0))
    reach = np.where(weights.astype(np.float64) > 0, size, 0.0).max(-1, initial=0.0, keepdims=True)
    return Pairs(content, position, key, value, vectors, value_vectors, number, visible, weights, lse, scale, reach)


def numbers(arguments, visible, vectors, clips):
    batch, _, _, L, S, _ = sizes(**arguments)

    def given(name, default):
        x = arguments.get(name)
        return np.broadcast_to(default if x is None else x, batch)[..., None, None, None]

    offset = given("kv_lengths", S) - given("query_lengths", L)
    if arguments.get("causal_offset") is not None:
        offset = given("causal_offset", 0)
    ahead = np.arange(S) - np.arange(L)[:, None] - offset
    number = np.clip(ahead + (vectors // 2 if clips else S - 1), 0, max(vectors - 1, 0))
    return np.where(visible, number, 0)


def by_vector(p, x, rng=None):
    """Sums of x over the keys that meet a vector, (..., H, L, vectors)."""
    sums = np.zeros((*x.shape[:-1], p.vectors.shape[-2]), x.dtype)
    x, number = np.where(p.visible, x, 0), p.number
    if rng is not None:
        order = rng.permutation(x.shape[-1])
        x, number = x[..., order], number[..., order]
    np.add.at(sums, (*np.indices(x.shape, sparse=True)[:-1], number), x)
    return sums


def output(p, rng=None):
    found = contract(p.weights, p.value, rng)
    return found if p.value_vectors is None else found + contract(by_vector(p, p.weights, rng), p.value_vectors, rng)


def excess(p, arguments, rng=None):
    """dP - delta and dO, and of dP and delta the magnitudes."""
    real = p.weights.dtype.type
    stored = compute_type(*(np.asarray(arguments[x]) for x in ("query", "key", "value")))
    shape = (*p.visible.shape[:-1], p.value.shape[-1])
    sees = p.visible.any(-1, keepdims=True)
    grad, out = (
        np.where(sees, np.broadcast_to(in_type(real, stored, arguments[name]), shape), real(0))
        for name in ("grad_output", "output")
    )
    grad_lse = real(0)
    if arguments.get("grad_lse") is not None:
        grad_lse = np.broadcast_to(in_type(real, stored, arguments["grad_lse"]), shape[:-1])[..., None]
        grad_lse = np.where(sees, grad_lse, real(0))
    delta = (grad * out).sum(-1, keepdims=True) - grad_lse
    size = (np.abs(grad * out).sum(-1, keepdims=True) + np.abs(grad_lse)).astype(np.float64)
    found = contract(grad, p.value.swapaxes(-1, -2), rng)
    parts = (np.abs(grad) @ np.abs(p.value).swapaxes(-1, -2)).astype(np.float64)
    if p.value_vectors is not None:
        products = contract(grad, p.value_vectors.swapaxes(-1, -2), rng)
        found = found + np.take_along_axis(products, p.number, -1)
        products = (np.abs(grad) @ np.abs(p.value_vectors).swapaxes(-1, -2)).astype(np.float64)
        parts = parts + np.take_along_axis(products, p.number, -1)
    return np.where(p.visible, found - delta, real(0)), grad, np.where(p.visible, parts + size, 0.0)


def gradients(p, arguments, weights, score, grad_output, rng=None):
    """The last sums, field by field, of P and dS, or of their errors where `p` holds magnitudes."""
    scale = weights.dtype.type(p.scale)
    made = {
        "query": lambda: scale * (contract(score, p.key, rng) + contract(by_vector(p, score, rng), p.vectors, rng)),
        "key": lambda: of_shared(scale * contract(score.swapaxes(-1, -2), p.content, rng), arguments["key"]),
        "value": lambda: of_shared(contract(weights.swapaxes(-1, -2), grad_output, rng), arguments["value"]),
        "attn_mask": lambda: score,
        "bias": lambda: score,
        "key_table": lambda: scale * contract(by_vector(p, score, rng).swapaxes(-1, -2), p.position, rng),
        "value_table": lambda: contract(by_vector(p, weights, rng).swapaxes(-1, -2), grad_output, rng),
        "position_keys": lambda: scale * contract(by_vector(p, score, rng).swapaxes(-1, -2), p.position, rng),
        "content_bias": lambda: scale * contract(score, p.key, rng).sum(-2),
        "position_bias": lambda: scale * contract(by_vector(p, score, rng), p.vectors, rng).sum(-2),
    }
    return {
        name: summed_to(make(), np.shape(arguments[name])) for name, make in made.items() if name in arguments["needs"]
    }
