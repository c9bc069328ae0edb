"""Laws that need no oracle: two ways to compute the same thing agree, each within its own bound."""

import itertools

import bounds
import numpy as np
import pytest
from calls import Call
from cases import CASES, Size
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import allowed_besides, errors, same_bits

import attnpy

FORWARD = CASES["scaled_dot_product_attention"].make
WEIGHTS = CASES["attention_weights"].make
EXAMPLES = settings(max_examples=60)


@st.composite
def sizes(draw, least=0, batch=((), (2,), (3, 1))):
    """Lengths on both sides of a block, heads in groups."""
    lengths = st.one_of(st.integers(least, 9), st.sampled_from((31, 63, 64, 65, 66, 127, 129, 131)))
    G = draw(st.integers(1, 3))
    H = G * draw(st.sampled_from((1, 2, 4)))
    E, D = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return Size(draw(st.sampled_from(batch)), H, G, draw(lengths), draw(lengths), E, D)


def types():
    return st.sampled_from(("float32", "float64", "float16", "bfloat16"))


def options(*names):
    return st.sampled_from(
        names
        or (
            "plain",
            "causal",
            "window",
            "mask",
            "float_mask",
            "bias",
            "softcap",
            "alibi",
            "sinks",
            "lengths",
            "together",
        )
    )


def seeds():
    return st.integers(0, 10**6)


def caps(call, got):
    """How far each result may be from the exact one, the rounding to a half type included."""
    for what, result in zip(getattr(bounds, call.function)(call.arguments), got, strict=True):
        yield np.asarray(what.cap + allowed_besides(np.asarray(result), what), np.float64)


def agree(got, got_caps, other, other_caps, label):
    for n, results in enumerate(zip(got, got_caps, other, other_caps, strict=True)):
        ours, cap, theirs, more = results
        ours, theirs = (
            np.asarray(x, np.float64 if np.asarray(x).dtype.itemsize < 8 else np.longdouble) for x in (ours, theirs)
        )
        apart, allowed = errors(ours, theirs), np.broadcast_to(cap + more, ours.shape)
        late = ~(apart <= allowed)
        assert not late.any(), (
            f"{label}, result {n}: {late.sum()} elements apart; "
            f"the worst by {apart[late].max():.3g}, allowed {allowed[late].max():.3g}"
        )


def calls_agree(call, other, label):
    got, theirs = call(), other()
    agree(got, caps(call, got), theirs, caps(other, theirs), f"{call.function} {call.label} {label}")


@EXAMPLES
@given(sizes(), types(), options(), seeds())
def test_rows_of_weights_sum_to_1(size, dtype, option, seed):
    """To 1, or 0 without visible keys; with sinks to 1 - exp(sink - lse), which the bounds' own weights know."""
    call = WEIGHTS(size, dtype, option, seed)
    got = call()
    (what,) = bounds.attention_weights(call.arguments)
    (cap,) = caps(call, got)
    sums, wanted = got[0].astype(np.longdouble).sum(-1), np.asarray(what.wanted, np.longdouble).sum(-1)
    if "sinks" not in call.arguments:
        assert np.all((np.abs(wanted - 1) < 1e-9) | (wanted == 0)), call.label
    assert np.all(np.abs(sums - wanted) <= np.broadcast_to(cap, got[0].shape).sum(-1)), call.label


@EXAMPLES
@given(sizes(least=1), types(), options(), seeds(), st.floats(-8, 8, width=16))
def test_a_constant_value_comes_out(size, dtype, option, seed, constant):
    call = FORWARD(size, dtype, option, seed)
    call = call.changed(value=np.full_like(call.arguments["value"], constant))
    got = call()
    (cap, _), lse = caps(call, got), got[1]
    if "sinks" not in call.arguments:
        wanted = np.where(lse == -np.inf, 0, constant)[..., None].astype(np.float64)
        assert np.all(np.abs(got[0].astype(np.float64) - wanted) <= cap), call.label


@EXAMPLES
@given(sizes(), types(), options("plain", "mask", "float_mask", "bias", "softcap", "sinks"), seeds())
def test_keys_may_be_permuted(size, dtype, option, seed):
    call = FORWARD(size, dtype, option, seed)
    order = np.random.default_rng(seed).permutation(size.S)
    changes = {name: call.arguments[name][..., order, :] for name in ("key", "value")}
    changes |= {name: call.arguments[name][..., order] for name in ("attn_mask", "bias") if name in call.arguments}
    calls_agree(call, call.changed(**changes), "keys permuted")


@EXAMPLES
@given(sizes(), types(), options("plain", "causal", "mask", "lengths"), seeds(), st.floats(-50, 50, width=16))
def test_a_shift_of_all_scores_moves_only_the_lse(size, dtype, option, seed, shift):
    call = FORWARD(size, dtype, option, seed)
    moved = call.changed(bias=np.full((1, 1), shift, np.float64 if dtype == "float64" else np.float32))
    got, theirs = call(), moved()
    back = (theirs[0], theirs[1].astype(np.float64) - shift)
    agree(got, caps(call, got), back, caps(moved, theirs), f"{call.label} shift {shift}")


@EXAMPLES
@given(
    sizes(least=1),
    types(),
    options("causal", "window_causal"),
    seeds(),
    st.integers(0, 200),
    st.sampled_from((np.nan, np.inf, 1e30)),
)
def test_a_causal_row_ignores_the_future(size, dtype, option, seed, row, poison):
    call = FORWARD(size, dtype, option, seed)
    row %= size.L
    future = max(0, row + size.S - size.L + 1)
    changes = {name: call.arguments[name].copy() for name in ("key", "value")}
    with np.errstate(over="ignore"):
        for x in changes.values():
            x[..., future:, :] = x.dtype.type(poison)
    for ours, theirs, axis in zip(call(**changes), call(), (-2, -1), strict=True):
        upto = (..., slice(row + 1), slice(None))[: 3 if axis == -2 else 2]
        same_bits(ours[upto], theirs[upto], f"{call.label}: rows to {row}, {poison} from key {future} on")


@EXAMPLES
@given(sizes(), types(), options("plain", "mask", "lengths"), seeds())
def test_a_wide_window_is_none(size, dtype, option, seed):
    call = FORWARD(size, dtype, option, seed)
    most = size.L + size.S
    calls_agree(call, call.changed(window_size=(most, most)), "a window over everything")
    calls_agree(call, call.changed(window_size=(-1, -1)), "an open window")


@EXAMPLES
@given(sizes(), types(), seeds())
def test_causal_by_any_means(size, dtype, seed):
    call = FORWARD(size, dtype, "plain", seed)
    seen = np.tril(np.ones((size.L, size.S), bool), size.S - size.L)
    real = np.float64 if dtype == "float64" else np.float32
    causal = call.changed(is_causal=True)
    hidden = np.where(seen, 0, -np.inf).astype(real)
    for changes in (
        {"attn_mask": seen},
        {"attn_mask": hidden},
        {"bias": hidden},
        {"window_size": (-1, 0)},
        {"attn_mask": seen, "is_causal": True},
    ):
        calls_agree(causal, call.changed(**changes), f"causal by {list(changes)}")


@EXAMPLES
@given(sizes(least=2), types(), options("plain", "mask", "bias"), seeds(), st.lists(st.integers(0, 131), max_size=4))
def test_parts_merge_into_the_whole(size, dtype, option, seed, cuts):
    call = FORWARD(size, "float32" if dtype == "bfloat16" else dtype, option, seed)
    ends = sorted({0, size.S, *(cut % size.S for cut in cuts)})
    parts = []
    for first, end in itertools.pairwise(ends):
        changes = {name: call.arguments[name][..., first:end, :] for name in ("key", "value")}
        changes |= {
            name: call.arguments[name][..., first:end] for name in ("attn_mask", "bias") if name in call.arguments
        }
        parts.append(call.changed(**changes))
    got = [part() for part in parts]
    merged = Call("merge_attention", {"outputs": [x for x, _ in got], "lses": [x for _, x in got]}, call.label)
    whole, joined = call(), merged()
    # The shares of the parts add up to 1: the output is off by no more than the worst part is, and the errors of the
    # log-sum-exps move the shares.
    off = [list(caps(part, result)) for part, result in zip(parts, got, strict=True)]
    largest = np.max([np.abs(np.asarray(x, np.float64)) for x, _ in got], axis=0, initial=0)
    lse_off = np.max(
        [
            np.broadcast_to(np.where(np.isfinite(lse), cap[1], 0), lse.shape)
            for cap, (_, lse) in zip(off, got, strict=True)
        ],
        axis=0,
    )
    output_off = np.max([np.broadcast_to(cap[0], x.shape) for cap, (x, _) in zip(off, got, strict=True)], axis=0)
    own = list(caps(merged, joined))
    more = [own[0] + output_off + 4 * lse_off[..., None] * largest, own[1] + lse_off]
    agree(whole, caps(call, whole), joined, more, f"{call.label} cut at {ends}")


@EXAMPLES
@given(sizes(), types(), options(), seeds())
def test_shared_heads_are_repeated_heads(size, dtype, option, seed):
    """Each head of a group by itself. Bits differ where the kernels for few and for many heads do."""
    call = FORWARD(size, dtype, option, seed)
    changes = {name: np.repeat(call.arguments[name], size.H // size.G, -3) for name in ("key", "value")}
    calls_agree(call, call.changed(**changes), "keys and values repeated")


@EXAMPLES
@given(sizes(least=1), types(), options("causal", "window_causal", "alibi", "sinks"), seeds())
def test_decoding_is_a_row_of_prefill(size, dtype, option, seed):
    size = size._replace(L=size.S)
    call = FORWARD(size, dtype, option, seed).changed(is_causal=True)
    got = call()
    off = list(caps(call, got))
    for t in {0, size.S // 2, size.S - 1}:
        past = {name: call.arguments[name][..., : t + 1, :] for name in ("key", "value")}
        step = call.changed(f"step {t}", query=call.arguments["query"][..., t : t + 1, :], **past)
        one = step()
        row = [got[0][..., t : t + 1, :], got[1][..., t : t + 1]]
        row_off = [
            np.broadcast_to(off[0], got[0].shape)[..., t : t + 1, :],
            np.broadcast_to(off[1], got[1].shape)[..., t : t + 1],
        ]
        agree(row, row_off, one, caps(step, one), f"{call.label} step {t}")


@EXAMPLES
@given(sizes(), types(), options("plain", "causal", "mask", "lengths", "sinks"), seeds())
def test_powers_of_two_change_no_bit(size, dtype, option, seed):
    call = FORWARD(size, dtype, option, seed)
    scaled = call(query=call.arguments["query"] * call.arguments["query"].dtype.type(2), scale=0.25)
    for ours, theirs in zip(scaled, call(scale=0.5), strict=True):
        same_bits(ours, theirs, f"{call.label}: the query doubled, the scale halved")
    if dtype in ("float32", "float64"):
        same_bits(call(value=call.arguments["value"] * 2)[0], call()[0] * 2, f"{call.label}: the value doubled")


@EXAMPLES
@given(sizes(), types(), options(), seeds())
def test_received_is_the_sum_of_the_weights(size, dtype, option, seed):
    call = WEIGHTS(size, dtype, option, seed)
    received = Call("attention_received", call.arguments, call.label)
    weights, got = call(), received()
    (cap,) = caps(call, weights)
    cap = np.broadcast_to(cap, weights[0].shape).sum(-2)
    agree(got, caps(received, got), [weights[0].astype(np.longdouble).sum(-2)], [cap], call.label)


@EXAMPLES
@given(sizes(), types(), st.floats(0.01, 0.95), seeds())
def test_dropout_multiplies_the_weights(size, dtype, p, seed):
    key = attnpy.DropoutKey(seed)
    call = FORWARD(size, dtype, "plain", seed).changed(dropout_p=p, rng=key)
    got = call()
    mask = attnpy.dropout_mask((*size.batch, size.H, size.L, size.S), p, key, dtype=np.float64)
    weights = WEIGHTS(size, "float64", "plain", seed).changed(
        query=call.arguments["query"].astype(np.float64), key=call.arguments["key"].astype(np.float64)
    )()
    value = np.repeat(call.arguments["value"].astype(np.float64), size.H // size.G, -3)
    (cap, _) = caps(call, got)
    assert np.all(np.abs((weights[0] * mask) @ value - got[0].astype(np.float64)) <= 1.01 * cap + 1e-13), call.label


# --- softmax


@st.composite
def scores(draw):
    shape = draw(st.sampled_from(((1,), (5,), (3, 64), (2, 3, 65), (4, 1031))))
    kind = draw(types())
    spread = draw(st.sampled_from((0.01, 1.0, 20.0)))
    return CASES["softmax"].make(shape, kind, "plain", draw(seeds())).changed(f"spread {spread}"), spread


def softmax_of(call, spread, function, **changes):
    x = call.arguments["x"] * call.arguments["x"].dtype.type(spread)
    return Call(function, {"x": x, **changes}, f"{function} {call.label}")


@EXAMPLES
@given(scores())
def test_softmax_sums_to_1(case):
    call = softmax_of(*case, "softmax")
    got = call()
    (cap,) = caps(call, got)
    assert np.all(
        np.abs(got[0].astype(np.longdouble).sum(-1) - 1) <= np.broadcast_to(cap, got[0].shape).sum(-1) + 1e-15
    ), call.label


@EXAMPLES
@given(scores())
def test_log_softmax_is_its_logarithm(case):
    call, logs, total = (softmax_of(*case, name) for name in ("softmax", "log_softmax", "logsumexp"))
    y, z, lse = call()[0].astype(np.float64), logs(), total(keepdims=True)
    (cap,), (log_cap,), (lse_cap,) = caps(call, call()), caps(logs, z), caps(total, lse)
    assert np.all(np.abs(np.exp(z[0].astype(np.float64)) - y) <= cap + np.expm1(log_cap) * (y + cap) + 1e-300), (
        call.label
    )
    x = call.arguments["x"].astype(np.float64)
    assert np.all(
        np.abs(z[0].astype(np.float64) - (x - lse[0].astype(np.float64)))
        <= log_cap + lse_cap[..., None] + 1e-15 * np.abs(x)
    ), call.label


@EXAMPLES
@given(scores(), st.integers(0, 1031))
def test_logsumexp_of_parts(case, cut):
    call = softmax_of(*case, "logsumexp")
    x = call.arguments["x"]
    cut %= x.shape[-1] + 1
    parts = [call.changed(x=part) for part in (x[..., :cut], x[..., cut:])]
    whole, sides = call(), [part() for part in parts]
    joined = np.logaddexp(*(np.asarray(side[0], np.float64) for side in sides))
    off = np.max(
        [
            np.where(np.isfinite(np.asarray(side[0], np.float64)), cap, 0)
            for part, side in zip(parts, sides, strict=True)
            for cap in caps(part, side)
        ],
        axis=0,
    )
    agree(whole, caps(call, whole), [joined], [off + 4e-16 * (1 + np.abs(joined))], f"{call.label} cut at {cut}")


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_axes_are_only_moved(function):
    """Over any axes: as over the last one of an array where they are the last."""
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    call = getattr(attnpy, function)
    for axis in range(3):
        moved = np.moveaxis(x, axis, -1)
        wanted = call(np.ascontiguousarray(moved))
        got = call(x, axis)
        same_bits(got if function == "logsumexp" else np.moveaxis(got, axis, -1), wanted, f"{function} axis {axis}")
    flat = call(x.reshape(3, 20))
    both = call(x, (1, 2))
    same_bits(both if function == "logsumexp" else both.reshape(3, 20), flat, f"{function} axes 1 and 2")
