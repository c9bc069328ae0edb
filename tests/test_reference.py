"""attnpy.reference against loops over single numbers, for every option and every pair of options."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from attnpy import DropoutKey, reference

UNIT = 2.0**-53
B, H, G, L, S, E, D = 2, 4, 2, 3, 5, 2, 3


def operands(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, H, L, E)), rng.normal(size=(B, G, S, E)), rng.normal(size=(B, G, S, D))


def options():
    rng = np.random.default_rng(1)
    boolean = rng.random((B, 1, L, S)) < 0.6
    boolean[1, 0, 1] = False
    floating = np.where(rng.random((H, L, S)) < 0.3, -np.inf, rng.normal(size=(H, L, S)))
    floating[2, 0] = -np.inf
    return {
        "boolean": {"attn_mask": boolean},
        "floating": {"attn_mask": floating},
        "is_causal": {"is_causal": True},
        "scale": {"scale": -0.7},
        "bias": {"bias": np.where(rng.random((B, 1, 1, S)) < 0.2, -np.inf, rng.normal(size=(B, 1, 1, S)))},
        "causal_offset": {"causal_offset": np.array([-2, 3])},
        "window": {"window_size": (1, 0)},
        "window right": {"window_size": (-1, 1)},
        "window left": {"window_size": (0, -1)},
        "window int": {"window_size": 1},
        "softcap": {"softcap": 0.5},
        "alibi": {"alibi_slopes": rng.random(H)},
        "sinks": {"sinks": rng.normal(size=(B, H))},
        "query_lengths": {"query_lengths": np.array([3, 2])},
        "kv_lengths": {"kv_lengths": np.array([0, 4])},
        "dropout": {"dropout_p": 0.4, "rng": DropoutKey(2**100 + 5)},
    }


OPTIONS = options()
CASES = {name: OPTIONS[name] for name in OPTIONS} | {
    f"{one}, {other}": OPTIONS[one] | OPTIONS[other]
    for one, other in itertools.combinations(OPTIONS, 2)
    if not OPTIONS[one].keys() & OPTIONS[other].keys()
}
CASES["none"] = {}
CASES["cache"] = {"kv_lengths": np.array([3, 4]), "is_causal": True}
CASES["cache, causal_offset"] = {"kv_lengths": np.array([2, 4]), "causal_offset": np.array([1, 0]), "is_causal": True}
CASES["all"] = {key: x for name in OPTIONS if "window " not in name for key, x in OPTIONS[name].items()}


def refused(case):
    positional = case.keys() & {"is_causal", "window_size", "alibi_slopes"}
    padded = "kv_lengths" in case and min(case["kv_lengths"]) < L
    return padded and positional and not case.keys() & {"query_lengths", "causal_offset"}


def loops(query, key, value, case):
    """Attention number by number: output, lse, weights, and what the accuracy rule needs: S_i, A_i."""
    o = SimpleNamespace(
        **dict.fromkeys(["attn_mask", "bias", "causal_offset", "window_size", "softcap"]), is_causal=False
    )
    o.__dict__.update(dict.fromkeys(["alibi_slopes", "sinks", "query_lengths", "kv_lengths", "scale"]), **case)
    masks = {
        x: np.broadcast_to(getattr(o, x), (B, H, L, S)) for x in ("attn_mask", "bias") if getattr(o, x) is not None
    }
    out, lse, weights = np.zeros((B, H, L, D)), np.full((B, H, L), -np.inf), np.zeros((B, H, L, S))
    size, spread = np.zeros((B, H, L)), np.zeros((B, H, L, D))
    dropped = (
        reference.dropout_mask((B, H, L, S), o.dropout_p, o.rng, dtype=float)
        if "rng" in case
        else np.ones((B, H, L, S))
    )
    for b, h, i in np.ndindex(B, H, L):
        queries = L if o.query_lengths is None else int(o.query_lengths[b])
        keys = S if o.kv_lengths is None else int(o.kv_lengths[b])
        offset = keys - queries if o.causal_offset is None else int(o.causal_offset[b])
        left, right = (o.window_size,) * 2 if isinstance(o.window_size, int) else o.window_size or (-1, -1)
        if i >= queries:
            continue
        scores = {}
        for j in range(keys):
            seen = not o.is_causal or j <= i + offset
            seen = seen and (left < 0 or j >= i + offset - left) and (right < 0 or j <= i + offset + right)
            products = [
                (1 / math.sqrt(E) if o.scale is None else o.scale) * query[b, h, i, d] * key[b, h // (H // G), j, d]
                for d in range(E)
            ]
            score, magnitude = sum(products), sum(map(abs, products))
            if o.softcap:
                score = o.softcap * math.tanh(score / o.softcap)
            for mask in masks.values():
                if mask.dtype == bool:
                    seen = seen and bool(mask[b, h, i, j])
                else:
                    seen = seen and mask[b, h, i, j] != -math.inf
                    score, magnitude = score + mask[b, h, i, j], magnitude + abs(mask[b, h, i, j])
            if o.alibi_slopes is not None:
                score -= o.alibi_slopes[h] * abs(i + offset - j)
                magnitude += o.alibi_slopes[h] * abs(i + offset - j)
            if seen:
                scores[j] = score
                size[b, h, i] = max(size[b, h, i], magnitude)
        terms = [*scores.values()] + ([] if o.sinks is None else [o.sinks[b, h]])
        if terms:
            lse[b, h, i] = math.log(math.fsum(map(math.exp, terms)))
        for j, score in scores.items():
            weights[b, h, i, j] = math.exp(score - lse[b, h, i])
            for d in range(D):
                part = weights[b, h, i, j] * dropped[b, h, i, j] * value[b, h // (H // G), j, d]
                out[b, h, i, d] += part
                spread[b, h, i, d] += abs(part)
    return SimpleNamespace(output=out, lse=lse, weights=weights, size=size, spread=spread)


def assert_within(got, wanted, cap):
    """The accuracy rule for float64 (see tests/numerics.py): element by element."""
    assert got.shape == wanted.shape and got.dtype == np.float64
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(wanted))
    with np.errstate(invalid="ignore"):
        assert np.all((np.abs(got - wanted) <= cap) | np.isneginf(wanted))


@pytest.mark.parametrize("name", CASES)
def test_equals_loops_over_single_numbers(name):
    query, key, value = operands()
    case = dict(CASES[name])
    if refused(case):
        with pytest.raises(ValueError, match="pass query_lengths for a padded batch, or causal_offset"):
            reference.scaled_dot_product_attention(query, key, value, **case)
        return
    wanted = loops(query, key, value, case)
    factor = UNIT * (8 + 2 * 65 + 2 * (E + 3) * wanted.size)
    output, lse = reference.scaled_dot_product_attention(query, key, value, **case, return_lse=True, enable_gqa=True)
    assert_within(output, wanted.output, factor[..., None] * wanted.spread)
    assert_within(lse, wanted.lse, factor + UNIT * np.abs(wanted.lse))
    case = {key: x for key, x in case.items() if key not in ("rng", "dropout_p")}
    weights = reference.attention_weights(query, key, **case)
    assert_within(weights, wanted.weights, factor[..., None] * wanted.weights)
    assert_within(
        reference.attention_received(query, key, **case),
        wanted.weights.sum(-2),
        (factor[..., None] * wanted.weights).sum(-2) + L * UNIT * wanted.weights.sum(-2),
    )
    rows = [2, -3, 2]
    np.testing.assert_array_equal(reference.attention_weights(query, key, **case, rows=rows), weights[..., rows, :])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.parametrize(
    "name", ["boolean", "floating", "bias", "is_causal, causal_offset", "window", "query_lengths, kv_lengths", "all"]
)
def test_hidden_elements_never_matter(name, poison):
    """Each hidden (query, key) pair's mask, each key that nobody sees and each query that sees nothing are poisoned."""
    query, key, value = operands()
    case = dict(CASES[name])
    wanted = reference.scaled_dot_product_attention(query, key, value, **case, return_lse=True)
    shown = {k: x for k, x in case.items() if k not in ("rng", "dropout_p")}
    hidden = reference.attention_weights(query, key, **shown) == 0
    alone = hidden.reshape(B, G, H // G, L, S).all((2, 3))
    key, value = (np.where(alone[..., None], poison, x) for x in (key, value))
    query = np.where(hidden.all(-1, keepdims=True), poison, query)
    if "query_lengths" in case and "bias" not in case:
        case["bias"] = np.where(hidden, poison, 0.0)
    got = reference.scaled_dot_product_attention(query, key, value, **case, return_lse=True)
    assert alone.any() or hidden.all(-1).any()
    for g, w in zip(got, wanted):
        np.testing.assert_array_equal(g, w)


def test_a_key_hidden_from_some_rows_poisons_only_the_others():
    query, key, value = (np.random.default_rng(2).normal(size=(3, 6, 4)) for _ in range(3))
    value[1, 4, 2] = np.nan
    wanted = reference.scaled_dot_product_attention(query, key, np.nan_to_num(value), is_causal=True)
    got = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    wanted[1, 4:, 2] = np.nan
    np.testing.assert_array_equal(got, wanted)
    key[0, 5, 0] = np.inf
    got = reference.attention_weights(np.abs(query), key, is_causal=True)
    assert np.isnan(got[0, 5]).all() and not np.isnan(got[0, :5]).any() and not np.isnan(got[1:]).any()


def test_hidden_keys_of_a_row_that_is_nan_weigh_nothing():
    query, key = np.full((2, 3), np.nan), np.ones((4, 3))
    got = reference.attention_weights(query, key, [True, True, False, True])
    np.testing.assert_array_equal(got, [[np.nan, np.nan, 0, np.nan]] * 2)


def test_visible_scores_of_minus_infinity_weigh_nothing():
    query, key, value = np.ones((1, 2)), np.array([[-np.inf, 0], [1.0, 2]]), np.ones((2, 2))
    np.testing.assert_array_equal(reference.attention_weights(query, key), [[0, 1]])
    key[1, 1] = -np.inf
    output, lse = reference.scaled_dot_product_attention(query, key, value, return_lse=True)
    np.testing.assert_array_equal(output, [[0, 0]])
    assert lse == [-np.inf]


def test_scores_and_sinks_do_not_overflow():
    one, value = np.ones((1, 1, 1)), np.ones((1, 1, 1))
    for scale, sink in ((1000, 1000), (-1000, -1000), (1000, -1000), (-1000, 1000)):
        output, lse = reference.scaled_dot_product_attention(
            one, one, value, scale=scale, sinks=[sink], return_lse=True
        )
        share, higher = {0: (0.5, math.log(2)), 2000: (1, 0), -2000: (0, 0)}[scale - sink]
        assert output == [[[share]]] and lse == [[max(scale, sink) + higher]]


def test_visible_infinite_values_pass_through():
    query, key, value = np.zeros((2, 3)), np.zeros((4, 3)), np.ones((4, 2))
    value[1] = np.inf, -np.inf
    value[3] = np.inf, np.inf
    np.testing.assert_array_equal(reference.scaled_dot_product_attention(query, key, value), [[np.inf, np.nan]] * 2)
    seen = [[True, True, True, False]]
    got = reference.scaled_dot_product_attention(query, key, value, seen)
    np.testing.assert_array_equal(got, [[np.inf, -np.inf]] * 2)


REFUSED = {
    "attn_mask is int64; it must be bool or float": (TypeError, {"attn_mask": np.ones((L, S), int)}),
    "attn_mask is a MaskedArray": (TypeError, {"attn_mask": np.ma.ones((L, S))}),
    "bias is complex128": (TypeError, {"bias": np.ones((L, S), complex)}),
    "query_lengths must lie between 0 and 3": (ValueError, {"query_lengths": 4}),
    "kv_lengths must lie between 0 and 5": (ValueError, {"kv_lengths": [-1, 2]}),
    "kv_lengths is float64; it must be integers": (TypeError, {"kv_lengths": 2.0}),
    "causal_offset is float64": (TypeError, {"causal_offset": 0.5}),
    "window_size is": (ValueError, {"window_size": (-2, 0)}),
    "softcap is -1": (ValueError, {"softcap": -1}),
    "softcap is nan": (ValueError, {"softcap": math.nan}),
    "softcap is inf": (ValueError, {"softcap": math.inf}),
    "scale is nan": (ValueError, {"scale": math.nan}),
    "dropout_p is 1": (ValueError, {"dropout_p": 1}),
    "rng is int; dropout needs": (TypeError, {"dropout_p": 0.5, "rng": 1}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses(message):
    error, case = REFUSED[message]
    with pytest.raises(error, match=message):
        reference.scaled_dot_product_attention(*operands(), **case)


def test_refuses_operands_that_do_not_fit():
    query, key, value = operands()
    with pytest.raises(ValueError, match=r"query has 4 heads; those of key \(3\)"):
        reference.scaled_dot_product_attention(query, np.ones((3, S, E)), np.ones((3, S, D)))
    with pytest.raises(ValueError, match=r"those of key \(2\) and value \(1\) must divide it"):
        reference.scaled_dot_product_attention(query, key, value[:, :1])
    with pytest.raises(ValueError, match="at least two axes"):
        reference.attention_weights(query[0, 0, 0], key)
    for rows, error in (([3], ValueError), ([-4], ValueError), ([[0]], ValueError), ([0.0], TypeError)):
        with pytest.raises(error, match="rows"):
            reference.attention_weights(query, key, rows=rows)
    assert reference.attention_weights(query, key, rows=[]).shape == (B, H, 0, S)
    with pytest.raises(ValueError, match="scale: heads of size 0 need an explicit one"):
        reference.attention_weights(query[..., :0], key[..., :0])
    with pytest.raises(TypeError, match="key is a Generator; it must be a DropoutKey"):
        reference.dropout_mask((2, 2), 0.5, np.random.default_rng(), dtype=bool)
    with pytest.raises(ValueError, match="dropout_p is 1.5"):
        reference.dropout_mask((2, 2), 1.5, DropoutKey(1), dtype=bool)
