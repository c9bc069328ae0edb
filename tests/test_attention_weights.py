"""attention_weights, attention_received, merge_attention."""

import itertools

import numpy as np
import pytest
from inputs import OPTIONS, TYPES, check, check_call, operands, options_of, seed_of

import attnpy

INF, NAN = np.inf, np.nan
SIZES = [
    (1, 1, 1, 1, 1),
    (3, 64, 8, 4, 2),
    (63, 65, 17, 4, 4),
    (65, 130, 8, 3, 1),
    (130, 200, 64, 2, 2),
    (1, 200, 64, 8, 2),
]
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}
WITHOUT_DROPOUT = [name for name in OPTIONS if name != "dropout"]


def check_weights(query, key, *, note="", **options):
    arguments = {"query": query, "key": key, **options}
    return check_call("attention_weights", arguments, note), check_call("attention_received", arguments, note)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["nothing", *WITHOUT_DROPOUT])
def test_every_option(name, dtype):
    for L, S, E, H, G in SIZES:
        seed = seed_of(name, dtype, L, S)
        rng = np.random.default_rng(seed)
        options = {} if name == "nothing" else options_of((name,), rng, (2,), H, L, S)
        query, key, _ = operands(rng, TYPES[dtype], H=H, G=G, L=L, S=S, E=E + (E == 1 and "rotary" in options))
        weights, received = check_weights(query, key, note=f"{name}, seed {seed}", **options)
        assert weights.shape == (2, H, L, S) and received.shape == (2, H, S)
        assert weights.dtype == received.dtype == TYPES[dtype]


@pytest.mark.parametrize("pair", list(itertools.combinations(WITHOUT_DROPOUT, 2)), ids=" & ".join)
def test_every_pair_of_options(pair):
    seed = seed_of(pair)
    rng = np.random.default_rng(seed)
    L, S, E, H, G = SIZES[seed % len(SIZES)]
    options = options_of(pair, rng, (2,), H, L, S)
    if options is None:
        return
    query, key, _ = operands(
        rng, TYPES[list(TYPES)[seed % 4]], H=H, G=G, L=L, S=S, E=E + (E == 1 and "rotary" in options)
    )
    check_weights(query, key, note=f"{' with '.join(pair)}, seed {seed}", **options)


ROWS = [
    [0],
    [-1],
    [5, 3, 5],
    [-1, 0, -65, 64],
    list(range(65)),
    list(range(64, -1, -1)),
    [7] * 70,
    [],
    np.arange(0, 65, 9),
]


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{len(rows)} rows")
@pytest.mark.parametrize("dtype", TYPES)
def test_rows_have_the_bits_of_the_full_call(rows, dtype):
    rng = np.random.default_rng(seed_of("rows", dtype))
    query, key, _ = operands(rng, TYPES[dtype], batch=(2,), H=4, G=2, L=65, S=130, E=17)
    many = {
        "is_causal": True,
        "window_size": (40, -1),
        "attn_mask": rng.random((4, 65, 130)) < 0.7,
        "bias": rng.standard_normal((2, 1, 65, 1)),
        "alibi_slopes": rng.random(4),
        "sinks": rng.standard_normal(4),
        "query_lengths": [65, 30],
        "kv_lengths": [100, 130],
        "softcap": 3.0,
    }
    for options in ({}, {"is_causal": True}, many):
        whole = attnpy.attention_weights(query, key, **options)
        got = attnpy.attention_weights(query, key, rows=rows, **options)
        assert got.shape == (2, 4, len(rows), 130) and got.dtype == TYPES[dtype]
        np.testing.assert_array_equal(got, whole[:, :, np.asarray(rows, np.intp)], err_msg=f"rows {rows}")


@pytest.mark.parametrize("S", [5000, 9000])
def test_rows_where_scores_are_computed_twice(S):
    """More keys than scores are kept for: the full call, rows of it, and a few rows alone."""
    for dtype in ("float32", "float64"):
        query, key, _ = operands(np.random.default_rng(1), TYPES[dtype], batch=(), H=2, G=1, L=70, S=S)
        whole, _ = check_weights(query, key, is_causal=True)
        for rows in ([69], [3, -3, 3, 0], range(70)):
            got = attnpy.attention_weights(query, key, is_causal=True, rows=rows)
            np.testing.assert_array_equal(got, whole[:, list(rows)], err_msg=f"rows {rows}")


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "uint64", ">i4"])
def test_rows_of_any_integer_type(kind):
    query, key, _ = operands(np.random.default_rng(2), np.float32, batch=())
    rows = np.array([4, 0, 2], kind)
    whole = attnpy.attention_weights(query, key)
    np.testing.assert_array_equal(attnpy.attention_weights(query, key, rows=rows), whole[:, [4, 0, 2]])
    np.testing.assert_array_equal(
        attnpy.attention_weights(query, key, rows=np.repeat(rows, 2)[::-2]), whole[:, [2, 0, 4]]
    )


def test_rows_that_are_refused():
    query, key, _ = operands(np.random.default_rng(2), np.float32)
    for rows in ([5], [-6], [0, 2**62], [0, -(2**62)]):
        with pytest.raises(ValueError, match="rows"):
            attnpy.attention_weights(query, key, rows=rows)
    for rows in ([1.0], ["1"], [True, False, True, False, True], [None]):
        with pytest.raises(TypeError, match="rows"):
            attnpy.attention_weights(query, key, rows=rows)
    for rows in ([[0, 1]], 0):
        with pytest.raises(ValueError, match="rows"):
            attnpy.attention_weights(query, key, rows=rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("L", [1, 9, 70])
def test_rows_sum_to_one(L, dtype):
    rng = np.random.default_rng(seed_of(L, dtype))
    query, key, value = operands(rng, TYPES[dtype], L=L, S=200)
    seen = rng.random((L, 200)) < 0.2
    seen[0] = False
    bound = 200 * float(np.finfo(TYPES[dtype]).eps)
    weights = attnpy.attention_weights(query, key, seen)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to(seen.any(1), weights.shape[:-1]), rtol=0, atol=bound)
    assert (weights[:, :, ~seen] == 0).all()
    sinks = rng.standard_normal(4)
    weights = attnpy.attention_weights(query, key, seen, sinks=sinks)
    _, lse = check(query, key, value, attn_mask=seen, sinks=sinks)
    np.testing.assert_allclose(weights.sum(-1), 1 - np.exp(sinks[:, None] - lse), rtol=0, atol=bound)


@pytest.mark.parametrize("L", [1, 3, 70])
def test_weights_times_values_are_the_output(L):
    rng = np.random.default_rng(seed_of("output", L))
    query, key, value = operands(rng, np.float64, H=4, G=2, L=L, S=200)
    for options in ({}, {"is_causal": True, "softcap": 2.0}, {"attn_mask": rng.random((L, 200)) < 0.1}):
        output = attnpy.scaled_dot_product_attention(query, key, value, **options)
        weights = attnpy.attention_weights(query, key, **options)
        np.testing.assert_allclose(weights @ value.repeat(2, axis=1), output, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_received_is_the_column_sum(dtype):
    """Over the valid query rows, which sum to the number of rows that see a key."""
    query, key, _ = operands(np.random.default_rng(3), TYPES[dtype], batch=(3,), L=150, S=100)
    lengths = np.array([150, 60, 0])
    received = attnpy.attention_received(query, key, query_lengths=lengths, is_causal=True, causal_offset=-20)
    weights = attnpy.attention_weights(query, key, query_lengths=lengths, is_causal=True, causal_offset=-20)
    tolerance = 100 * float(np.finfo(TYPES[dtype]).eps)
    np.testing.assert_allclose(received.astype(float), weights.astype(float).sum(-2), rtol=tolerance, atol=tolerance)
    rows = np.broadcast_to(np.clip(lengths - 20, 0, None)[:, None], (3, 4))
    np.testing.assert_allclose(received.astype(float).sum(-1), rows, rtol=tolerance)


def test_weights_below_the_normal_range_are_zero():
    """2^-126 of the row's largest (float64: 2^-1022) is kept, less is exactly 0, on every path."""
    for dtype, last in ((np.float32, 126), (np.float64, 1022)):
        steps = np.array([0, 1, last - 1, last + 1, last + 3, 3 * last]) * -np.log(2)
        for L in (1, 5, 70):
            zeros = np.zeros((1, L, 4), dtype), np.zeros((1, 6, 4), dtype)
            got = attnpy.attention_weights(*zeros, bias=steps)
            np.testing.assert_array_equal(got[0] > 0, np.broadcast_to([True, True, True, False, False, False], (L, 6)))


def test_many_keys_received():
    query, key, _ = operands(np.random.default_rng(4), np.float32, batch=(), H=2, G=1, L=3, S=10_000, E=4)
    check_weights(query, key)
    query, key, _ = operands(np.random.default_rng(4), np.float32, batch=(), H=2, G=1, L=5000, S=70, E=4)
    check_weights(query, key, is_causal=True)


def split_call(query, key, value, edges, **options):
    parts = [slice(*edge) for edge in itertools.pairwise(edges)]
    calls = [
        attnpy.scaled_dot_product_attention(query, key[..., p, :], value[..., p, :], return_lse=True, **options)
        for p in parts
    ]
    return [output for output, _ in calls], [lse for _, lse in calls]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("L", [1, 5, 70])
def test_parts_merge_to_the_whole(L, dtype):
    query, key, value = operands(np.random.default_rng(seed_of(L, dtype)), TYPES[dtype], H=4, G=2, L=L, S=200, D=9)
    whole, whole_lse = check(query, key, value)
    for edges in ((0, 200), (0, 1, 200), (0, 64, 128, 200), (0, 50, 50, 120, 200), range(0, 201, 10)):
        outputs, lses = split_call(query, key, value, edges)
        output, lse = attnpy.merge_attention(outputs, lses)
        stacked = attnpy.merge_attention(np.stack(outputs), np.stack(lses))
        np.testing.assert_array_equal(stacked[0], output)
        np.testing.assert_array_equal(stacked[1], lse)
        assert output.shape == whole.shape and output.dtype == TYPES[dtype] and lse.dtype == whole_lse.dtype
        check_call("merge_attention", {"outputs": outputs, "lses": lses}, f"parts {list(edges)}")
        unit = max(64 * 2.0**-53 if dtype == "float64" else 64 * 2.0**-24, 4 * EPSILON[dtype])
        np.testing.assert_allclose(output.astype(float), whole.astype(float), rtol=0, atol=unit)


def test_parts_without_keys_are_ignored():
    """Whatever their outputs hold; where all parts are such, 0 and -inf."""
    rng = np.random.default_rng(5)
    outputs, lses = rng.standard_normal((3, 2, 4, 5)), rng.standard_normal((3, 2, 4))
    lses[0], lses[1, 0], lses[:, 1, 3] = -INF, -INF, -INF
    clean = attnpy.merge_attention(np.where(lses[..., None] == -INF, 0, outputs), lses)
    for poison in (NAN, INF, -INF):
        output, lse = attnpy.merge_attention(np.where(lses[..., None] == -INF, poison, outputs), lses)
        np.testing.assert_array_equal(output, clean[0])
        np.testing.assert_array_equal(lse, clean[1])
    assert (output[1, 3] == 0).all() and lse[1, 3] == -INF
    np.testing.assert_array_equal(output[0, 0], outputs[2, 0, 0])


def test_far_parts_merge():
    """Log-sum-exps of any size: the larger wins, equals share; NaN stays in its row."""
    ones = np.ones((1, 4, 1))
    lses = np.array([[[1e30, -1e30, 700, NAN]], [[0, -1e30, 700, 0]]])
    output, lse = attnpy.merge_attention([ones, 3 * ones], lses)
    np.testing.assert_array_equal(output[0, :3, 0], [1, 2, 2])
    np.testing.assert_allclose(lse[0, :3], [1e30, -1e30, 700 + np.log(2)])
    assert np.isnan(output[0, 3, 0]) and np.isnan(lse[0, 3])


def test_sinks_go_to_one_part():
    query, key, value = operands(np.random.default_rng(6), np.float64, S=200)
    sinks = np.array([0.0, 1, 5, -3])
    whole, whole_lse = check(query, key, value, sinks=sinks)
    first = split_call(query, key, value, (0, 77), sinks=sinks)
    rest = split_call(query, key, value, (77, 150, 200))
    output, lse = attnpy.merge_attention(first[0] + rest[0], first[1] + rest[1])
    np.testing.assert_allclose(output, whole, rtol=0, atol=1e-14)
    np.testing.assert_allclose(lse, whole_lse, rtol=0, atol=1e-14)


def test_parts_that_are_refused():
    outputs, lses = np.zeros((2, 3, 4, 5), np.float32), np.zeros((2, 3, 4), np.float32)
    shapes = [
        (outputs[:0], lses[:0]),
        ([], []),
        (outputs, lses[:1]),
        (outputs, lses[:, :2]),
        (outputs[..., 0, :], lses),
    ]
    for wrong in (*shapes, ([outputs[0], outputs[1, :2]], lses)):
        with pytest.raises(ValueError, match=r"outputs|lses"):
            attnpy.merge_attention(*wrong)
    for wrong in ((outputs.astype(complex), lses), (outputs, lses.astype(complex)), (np.ma.array(outputs), lses)):
        with pytest.raises(TypeError, match=r"outputs|lses"):
            attnpy.merge_attention(*wrong)
