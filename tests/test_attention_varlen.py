"""Packed sequences: each has the bits of a call of its own, none sees another, cumulative lengths are not trusted."""

import ml_dtypes
import numpy as np
import packed
import pytest
from cases import CASES
from numerics import same_bits

import attnpy

LENGTHS = {
    "mixed": ((3, 0, 64, 65, 1, 129, 5), (3, 7, 0, 66, 300, 129, 5)),
    "short": ((1, 2, 3, 4, 5) * 20, (5, 4, 3, 2, 1) * 20),
    "decode": ((1,) * 9, (1, 63, 64, 65, 1023, 1024, 1025, 2100, 2)),
    "one": ((257,), (257,)),
    "few and many": ((300, 1, 1), (1100, 1, 1030)),
}


def arrays(lengths, H=4, G=2, E=16, D=24, dtype=np.float32, past=(2, 3), seed=0):
    """query, key, value, cu_seqlens_q, cu_seqlens_k."""
    rng = np.random.default_rng(seed)
    starts = [np.cumsum([0, *x]) for x in lengths]
    T, S = (int(x[-1]) + n for x, n in zip(starts, past, strict=True))
    shapes = (T, H, E), (S, G, E), (S, G, D)
    return (*(rng.standard_normal(shape).astype(dtype) for shape in shapes), *starts)


def options(lengths, H, seed=1):
    rng, N = np.random.default_rng(seed), len(lengths[0])
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "offset": {"is_causal": True, "causal_offset": rng.integers(-4, 5, N)},
        "window": {"window_size": (20, 3), "softcap": 2.0},
        "slopes": {"alibi_slopes": rng.random((N, H)), "is_causal": True},
        "sinks": {"sinks": rng.standard_normal((N, H))},
        "scale": {"scale": -0.3, "sinks": rng.standard_normal(H), "alibi_slopes": rng.random(H)},
    }


OPTIONS = tuple(options(LENGTHS["one"], 1))


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_sequence_has_the_bits_of_a_call_of_its_own(lengths, option, heads):
    x = arrays(LENGTHS[lengths], *heads)
    given = dict(zip(("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k"), x, strict=True))
    given |= options(LENGTHS[lengths], heads[0])[option]
    output, lse = attnpy.varlen_attention(**given, return_lse=True)
    rng = np.random.default_rng(2)
    given |= {"output": output, "lse": lse, "grad_output": rng.standard_normal(output.shape).astype(np.float32),
              "grad_lse": rng.standard_normal(lse.shape)}  # fmt: skip
    gradients = attnpy.varlen_attention_backward(**given)
    for n, (rows, keys, own) in enumerate(packed.sequences(given)):
        note = f"{lengths} {option} sequence {n}"
        backward = {name: own.pop(name) for name in ("output", "lse", "grad_output", "grad_lse")}
        alone, lse_alone = attnpy.scaled_dot_product_attention(**own, return_lse=True)
        same_bits(packed.heads_first(output[rows]), alone, note)
        same_bits(lse[:, rows], lse_alone, f"{note}, lse")
        wanted = attnpy.scaled_dot_product_attention_backward(**own, **backward)
        for name, part in (("query", rows), ("key", keys), ("value", keys)):
            same_bits(packed.heads_first(getattr(gradients, name)[part]), getattr(wanted, name), f"{note}, d{name}")


def test_order_of_sequences_changes_nothing():
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 90, 23), rng.integers(0, 90, 23)
    query, key, value, starts, key_starts = arrays(lengths, past=(0, 0))
    order = rng.permutation(23)

    def turned(x, starts):
        return np.concatenate([x[starts[n] : starts[n + 1]] for n in order])

    output, lse = attnpy.varlen_attention(query, key, value, starts, key_starts, is_causal=True, return_lse=True)
    other, other_lse = attnpy.varlen_attention(
        turned(query, starts), turned(key, key_starts), turned(value, key_starts),
        np.cumsum([0, *lengths[0][order]]), np.cumsum([0, *lengths[1][order]]), is_causal=True, return_lse=True,
    )  # fmt: skip
    same_bits(other, turned(output, starts), "sequences in another order")
    same_bits(other_lse.T, turned(lse.T, starts), "lse of sequences in another order")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_no_sequence_sees_another(dtype, poison):
    """All but one sequence poisoned, rows and keys past the end too: that one keeps its bits."""
    lengths = (5, 40, 1, 70), (9, 40, 70, 3)
    x = arrays(lengths, dtype=dtype)
    grad = np.random.default_rng(5).standard_normal((len(x[0]), 4, 24)).astype(dtype)
    output, lse = attnpy.varlen_attention(*x, return_lse=True)
    gradients = attnpy.varlen_attention_backward(grad, *x[:3], output, lse, *x[3:])
    for n in range(4):
        rows, keys = slice(x[3][n], x[3][n + 1]), slice(x[4][n], x[4][n + 1])
        parts = [np.full_like(array, poison) for array in (*x[:3], grad, output)]
        for array, whole, part in zip(parts, (*x[:3], grad, output), (rows, keys, keys, rows, rows), strict=True):
            array[part] = whole[part]
        own_lse = np.full_like(lse, poison)
        own_lse[:, rows] = lse[:, rows]
        got, got_lse = attnpy.varlen_attention(*parts[:3], *x[3:], return_lse=True)
        same_bits(got[rows], output[rows], f"sequence {n} among {poison}")
        same_bits(got_lse[:, rows], lse[:, rows], f"lse of sequence {n} among {poison}")
        found = attnpy.varlen_attention_backward(parts[3], *parts[:3], parts[4], own_lse, *x[3:])
        for name, part in (("query", rows), ("key", keys), ("value", keys)):
            same_bits(getattr(found, name)[part], getattr(gradients, name)[part], f"d{name} {n} among {poison}")
            assert not np.any(np.asarray(getattr(found, name)[x[3 if name == "query" else 4][-1] :], np.float64))


@pytest.mark.parametrize("past", [(0, 0), (1, 0), (0, 1), (200, 3), (3, 200)])
def test_rows_past_the_end(past):
    """0 and -inf with sinks too, which rows of no sequence do not have; the gradients there are 0."""
    query, key, value, starts, key_starts = arrays(((3, 70), (4, 70)), past=past)
    sinks = np.arange(4.0)
    query[73:], key[74:], value[74:] = np.nan, np.nan, np.nan
    output, lse = attnpy.varlen_attention(query, key, value, starts, key_starts, sinks=sinks, return_lse=True)
    assert not output[73:].any() and (lse[:, 73:] == -np.inf).all() and np.isfinite(lse[:, :73]).all()
    gradients = attnpy.varlen_attention_backward(
        np.full_like(output, np.nan), query, key, value, output, lse, starts, key_starts, sinks=sinks
    )
    assert not gradients.query[73:].any() and not gradients.key[74:].any() and not gradients.value[74:].any()
    gradient = np.ones_like(output)
    gradient[73:] = np.nan
    found = attnpy.varlen_attention_backward(
        gradient, query, key, value, output, lse, starts, key_starts, sinks=sinks, needs=("sinks",)
    )
    assert np.isfinite(found.sinks).all() and found.sinks.all()


def test_no_sequences():
    query, key, value, starts, key_starts = arrays(((), ()))
    output, lse = attnpy.varlen_attention(query, key, value, starts, key_starts, return_lse=True)
    assert output.shape == (2, 4, 24) and not output.any() and (lse == -np.inf).all()
    sinks = np.ones(4)
    found = attnpy.varlen_attention_backward(
        output, query, key, value, output, lse, starts, key_starts, sinks=sinks, needs=("query", "key", "sinks")
    )
    assert not found.query.any() and not found.key.any() and not found.sinks.any()


def test_an_empty_sequence_is_seen_by_nobody():
    query, key, value, _, _ = arrays(((2, 2), (3, 3)), past=(0, 0))
    output, lse = attnpy.varlen_attention(query, key, value, [0, 2, 2, 4], [0, 0, 3, 6], return_lse=True)
    assert not output[:2].any() and (lse[:, :2] == -np.inf).all()
    same_bits(output[2:], attnpy.varlen_attention(query[2:], key[3:], value[3:], [0, 2], [0, 3]), "the third")


def test_dropout_counts_sequences_as_batch_elements():
    """A packed batch drops what a padded one does."""
    lengths = (3, 5, 4), (6, 2, 70)
    query, key, value, starts, key_starts = arrays(lengths, past=(0, 0))
    dropout = {"dropout_p": 0.4, "rng": attnpy.DropoutKey(7)}
    output = attnpy.varlen_attention(query, key, value, starts, key_starts, **dropout)
    padded = [np.zeros((3, x.shape[1], longest, x.shape[2]), x.dtype) for x, longest in
              ((query, 5), (key, 70), (value, 70))]  # fmt: skip
    for whole, x, begin in zip(padded, (query, key, value), (starts, key_starts, key_starts), strict=True):
        for n in range(3):
            whole[n, :, : begin[n + 1] - begin[n]] = packed.heads_first(x[begin[n] : begin[n + 1]])
    mask = attnpy.dropout_mask((3, 4, 5, 70), 0.4, dropout["rng"], dtype=bool)
    together = attnpy.scaled_dot_product_attention(*padded, query_lengths=lengths[0], kv_lengths=lengths[1], **dropout)
    for n in range(3):
        rows, keys = slice(starts[n], starts[n + 1]), slice(key_starts[n], key_starts[n + 1])
        weights = attnpy.attention_weights(packed.heads_first(query[rows]), packed.heads_first(key[keys]))
        weights = weights * mask[n, :, : lengths[0][n], : lengths[1][n]] / np.float32(0.6)
        wanted = weights @ np.repeat(packed.heads_first(value[keys]), 2, 0)
        np.testing.assert_allclose(packed.heads_first(output[rows]), wanted, atol=1e-5)
        np.testing.assert_allclose(packed.heads_first(output[rows]), together[n, :, : lengths[0][n]], atol=1e-5)


def test_gradients_by_central_differences():
    lengths = (3, 0, 5), (4, 2, 3)
    x = list(arrays(lengths, H=2, G=1, E=3, D=2, dtype=np.float64))
    given = {"sinks": np.array([[0.3, -0.2]] * 3), "alibi_slopes": np.array([0.2, 0.1]), "softcap": 1.2}
    rng = np.random.default_rng(9)
    output, lse = attnpy.varlen_attention(*x, **given, return_lse=True)
    weight, lse_weight = rng.standard_normal(output.shape), rng.standard_normal(lse.shape)
    names = ("query", "key", "value", "sinks", "alibi_slopes")
    found = attnpy.varlen_attention_backward(
        weight, *x[:3], output, lse, *x[3:], **given, grad_lse=lse_weight, needs=names
    )
    operands = dict(zip(names, (*x[:3], *(given[name] for name in names[3:])), strict=True))

    def loss(changed):
        moved, of = operands | changed, attnpy.varlen_attention
        options = {"softcap": 1.2, "sinks": moved["sinks"], "alibi_slopes": moved["alibi_slopes"], "return_lse": True}
        output, lse = of(moved["query"], moved["key"], moved["value"], *x[3:], **options)
        return (weight * output).sum() + (lse_weight * np.where(np.isfinite(lse), lse, 0)).sum()

    step = 1e-6
    for name, operand in operands.items():
        wanted = np.zeros(operand.shape)
        for at in np.ndindex(operand.shape):
            up, down = operand.copy(), operand.copy()
            up[at] += step
            down[at] -= step
            wanted[at] = (loss({name: up}) - loss({name: down})) / (2 * step)
        np.testing.assert_allclose(getattr(found, name), wanted, atol=2e-8, err_msg=name)


def test_gradients_that_all_sequences_share_are_sums():
    x = arrays(((3, 70, 5), (4, 70, 3)), dtype=np.float64)
    sinks, slopes = np.arange(4.0) / 3, np.arange(1.0, 5) / 9
    output, lse = attnpy.varlen_attention(*x, sinks=sinks, alibi_slopes=slopes, return_lse=True)
    gradient = np.random.default_rng(4).standard_normal(output.shape)

    def found(sinks, slopes):
        return attnpy.varlen_attention_backward(
            gradient, *x[:3], output, lse, *x[3:], sinks=sinks, alibi_slopes=slopes, needs=("sinks", "alibi_slopes")
        )

    shared, own = found(sinks, slopes), found(np.tile(sinks, (3, 1)), np.tile(slopes, (3, 1)))
    np.testing.assert_allclose(shared.sinks, own.sinks.sum(0), rtol=1e-12)
    np.testing.assert_allclose(shared.alibi_slopes, own.alibi_slopes.sum(0), rtol=1e-12)


def test_cumulative_lengths_of_every_integer_type():
    x = arrays(((3, 5), (4, 3)))
    wanted = attnpy.varlen_attention(*x)
    for kind in (np.int8, np.uint8, np.int32, np.uint64, ">i4"):
        same_bits(attnpy.varlen_attention(*x[:3], x[3].astype(kind), x[4].astype(kind)), wanted, str(kind))
    same_bits(attnpy.varlen_attention(*x[:3], x[3].tolist(), tuple(x[4].tolist())), wanted, "sequences of int")
    same_bits(attnpy.varlen_attention(*x[:3], x[3], x[4], 5, "any"), wanted, "maxima are not used")


def test_cumulative_lengths_may_change_during_the_call():
    """They are copied: a result written over them does not move the sequences."""
    x = arrays(((3, 5), (4, 3)), H=1, G=1, E=2, D=2, past=(0, 0), dtype=np.float64)
    wanted = attnpy.varlen_attention(*x)
    room = np.zeros(16)
    starts = room[:3].view(np.int64)
    starts[:] = x[3]
    same_bits(attnpy.varlen_attention(*x[:3], starts, x[4], out=room.reshape(8, 1, 2)), wanted, "out over cu_seqlens_q")


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["varlen_attention", "varlen_attention_backward"])
def test_threads_share_all_shapes(name, threads):
    """Also sequences that are cut finely because they are most of the work."""
    for shape in CASES[name].shapes:
        call = CASES[name].make(shape, "float32", "together")
        with attnpy.num_threads(1):
            wanted = call()
        with attnpy.num_threads(threads):
            for ours, theirs in zip(call(), wanted, strict=True):
                same_bits(ours, theirs, f"{name} {call.label}, {threads} threads")


def test_like_the_reference_where_rows_exceed_sequences():
    x = arrays(LENGTHS["mixed"], dtype=np.float64, past=(7, 9))
    np.testing.assert_allclose(attnpy.varlen_attention(*x), attnpy.reference.varlen_attention(*x), atol=1e-13)
