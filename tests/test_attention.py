"""scaled_dot_product_attention: every option alone and in pairs, sizes, heads, batch axes, laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import OPTIONS, TYPES, check, operands, options_of, seed_of

import attnpy

# L, S, E, D, H, G. A block is 64 queries by 64 keys; heads share row blocks below 64 queries; few rows decode.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (3, 64, 8, 8, 4, 2),
    (63, 65, 17, 8, 4, 4),
    (64, 64, 64, 64, 2, 1),
    (65, 130, 8, 17, 3, 1),
    (130, 200, 64, 72, 2, 2),
    (200, 63, 72, 64, 4, 2),
    (1, 200, 64, 64, 8, 2),
    (3, 130, 17, 1, 6, 2),
    (200, 200, 128, 128, 2, 1),
    (64, 3, 1, 17, 4, 2),
    (63, 130, 128, 64, 6, 2),
    (1, 65, 17, 64, 4, 1),
]
PAIRS = list(itertools.combinations(OPTIONS, 2))


def check_options(names, sizes, dtype, batch=(2,)):
    L, S, E, D, H, G = sizes
    seed = seed_of(names, sizes, str(dtype))
    rng = np.random.default_rng(seed)
    options = options_of(names, rng, batch, H, L, S)
    if options is None:
        return
    arrays = operands(rng, dtype, batch=batch, H=H, G=G, L=L, S=S, E=E + (E == 1 and "rotary" in options), D=D)
    check(*arrays, note=f"{' with '.join(names)}, seed {seed}", **options)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_plain(sizes, dtype):
    check_options((), sizes, TYPES[dtype])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name):
    """float32 at every size, the other types at every third."""
    for n, sizes in enumerate(SIZES):
        check_options((name,), sizes, TYPES["float32"])
        check_options((name,), sizes, TYPES[("float64", "float16", "bfloat16")[n % 3]])


@pytest.mark.parametrize("pair", PAIRS, ids=" & ".join)
def test_every_pair_of_options(pair):
    first = PAIRS.index(pair)
    for n in range(3):
        dtype = TYPES[list(TYPES)[(first + n) % 4]]
        check_options(pair, SIZES[1 + (first + 5 * n) % (len(SIZES) - 1)], dtype)


@pytest.mark.parametrize("n", range(24))
def test_many_options_at_once(n):
    rng = np.random.default_rng(seed_of("many", n))
    names = [name for name in OPTIONS if rng.random() < 0.5 and "mask" not in name and "offset" not in name]
    names.append(str(rng.choice(["bool mask", "float mask", "mask of heads"])))
    if {"bias", "bias of keys"} <= set(names):
        names.remove("bias")
    if {"window", "left window"} <= set(names):
        names.remove("window")
    check_options(tuple(names), SIZES[n % len(SIZES)], TYPES[list(TYPES)[n % 4]])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_head_sizes(dtype):
    """E and D over 1 ... 70 apart from each other: no lane of a tail is left out or invented."""
    for L in (5, 1):
        for n in range(1, 71):
            seed = seed_of("sizes", dtype, L, n)
            rng = np.random.default_rng(seed)
            check(*operands(rng, TYPES[dtype], batch=(6,), H=2, G=1, L=L, S=67, E=n, D=71 - n), note=f"seed {seed}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lengths_around_blocks(dtype):
    edges = (1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129)
    for L, S in itertools.product(edges, edges):
        seed = seed_of("lengths", dtype, L, S)
        arrays = operands(np.random.default_rng(seed), TYPES[dtype], batch=(), H=2, G=1, L=L, S=S, E=5, D=3)
        check(*arrays, is_causal=(L + S) % 2 == 1, note=f"seed {seed}")


@pytest.mark.parametrize(
    "heads", [(1, 1), (2, 1), (3, 3), (4, 1), (5, 1), (6, 3), (8, 2), (32, 8), (12, 1), (71, 1)], ids=str
)
@pytest.mark.parametrize("L", [1, 2, 3, 9, 63, 64, 70])
def test_groups_of_heads(heads, L):
    H, G = heads
    for dtype in ("float32", "float16"):
        seed = seed_of("groups", heads, L, dtype)
        rng = np.random.default_rng(seed)
        arrays = operands(rng, TYPES[dtype], batch=(2,), H=H, G=G, L=L, S=70, E=8, D=8)
        check(*arrays, note=f"seed {seed}", sinks=rng.standard_normal(H), attn_mask=rng.random((H, L, 70)) < 0.8)


@pytest.mark.parametrize("L", [1, 3, 64, 70])
def test_the_output_tells_the_source_head(L):
    """Values filled with the number of their head: query head h reads head h // (H/G)."""
    for H, G in ((6, 3), (8, 2), (4, 4), (5, 1)):
        query, key, _ = operands(np.random.default_rng(1), np.float32, batch=(2,), H=H, G=G, L=L, S=70)
        value = np.broadcast_to(np.arange(G, dtype=np.float32)[:, None, None], (2, G, 70, 3))
        got = attnpy.scaled_dot_product_attention(query, key, value)
        wanted = np.broadcast_to((np.arange(H) // (H // G))[:, None, None], got.shape)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=f"H = {H}, G = {G}, L = {L}")


@pytest.mark.parametrize("L", [1, 9, 70])
def test_shared_heads_equal_repeated_ones(L):
    for dtype in TYPES.values():
        rng = np.random.default_rng(seed_of("repeat", L, str(dtype)))
        query, key, value = operands(rng, dtype, H=6, G=2, L=L, S=130)
        shared, lse = check(query, key, value, is_causal=True)
        check(query, key.repeat(3, axis=1), value.repeat(3, axis=1), is_causal=True)
        assert shared.shape == (2, 6, L, 8) and lse.shape == (2, 6, L)


@pytest.mark.parametrize(
    "heads", [(1, 2, 2), (3, 2, 2), (4, 3, 3), (4, 2, 4), (4, 4, 2), (4, 1, 2), (0, 1, 1)], ids=str
)
def test_heads_that_do_not_fit_are_refused(heads):
    H, G, other = heads
    query, key, value = (np.zeros((h, 3, 4), np.float32) for h in heads)
    if H == 0:
        assert attnpy.scaled_dot_product_attention(query, key, value).shape == (0, 3, 4)
        return
    with pytest.raises(ValueError, match=r"heads|axis -3"):
        attnpy.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("L", [1, 5, 65])
def test_batch_axes_broadcast(L):
    """Each operand with each pattern of missing, single and whole batch axes (2, 3)."""
    rng = np.random.default_rng(seed_of("batch", L))
    shapes = [(), (1,), (3,), (1, 3), (2, 1), (2, 3)]
    for n, (one, two, three) in enumerate(itertools.product(shapes, repeat=3)):
        if n % 5 and (one, two, three) != ((), (3,), (2, 1)):
            continue
        query, key, value = (
            rng.standard_normal((*batch, heads, length, 8)).astype(np.float32)
            for batch, heads, length in ((one, 4, L), (two, 2, 70), (three, 2, 70))
        )
        whole = np.broadcast_shapes(one, two, three)
        got, lse = check(query, key, value, note=f"batch axes {one}, {two}, {three}")
        assert got.shape == (*whole, 4, L, 8) and lse.shape == (*whole, 4, L)


def test_every_other_operand_broadcasts_too():
    rng = np.random.default_rng(6)
    query, key, value = operands(rng, np.float32, batch=(2, 3), H=4, G=2, L=5, S=70)
    for axes in ((), (1,), (3,), (2, 1), (2, 3), (1, 3)):
        check(
            query,
            key,
            value,
            note=f"axes {axes}",
            attn_mask=rng.random((*axes, 1, 5, 70)) < 0.8,
            bias=rng.standard_normal((*axes, 4, 1, 70)),
            alibi_slopes=rng.random((*axes, 4)),
            sinks=rng.standard_normal((*axes, 4)),
            causal_offset=rng.integers(-3, 70, axes),
            query_lengths=rng.integers(0, 6, axes),
            kv_lengths=rng.integers(0, 71, axes),
            is_causal=True,
        )


def test_operands_that_would_enlarge_the_batch_are_refused():
    query, key, value = operands(np.random.default_rng(0), np.float32, batch=(1,), H=4, L=5, S=7)
    wrong = {
        "attn_mask": np.ones((2, 4, 5, 7), bool),
        "bias": np.ones((2, 1, 1, 1)),
        "alibi_slopes": np.ones((2, 4)),
        "sinks": np.ones((2, 4)),
        "causal_offset": np.ones(2, int),
        "query_lengths": np.ones(2, int),
        "kv_lengths": np.ones(2, int),
    }
    for name, operand in wrong.items():
        with pytest.raises(ValueError, match=name):
            attnpy.scaled_dot_product_attention(query, key, value, **{name: operand})


def test_without_head_axes():
    rng = np.random.default_rng(7)
    query, key, value = (x[0] for x in operands(rng, np.float32, batch=(), H=1, L=5, S=70))
    got, lse = check(query, key, value, sinks=[0.5], alibi_slopes=[0.1], causal_offset=3, kv_lengths=50)
    assert got.shape == (5, 8) and lse.shape == (5,)
    check(query[None], key, value)
    check(np.stack([query, query]), key, value)
    check(np.stack([[query]] * 3), key, value[None])
    assert attnpy.attention_weights(query, key).shape == (5, 70)
    assert attnpy.attention_received(query, key).shape == (70,)


@pytest.mark.parametrize("dtype", TYPES)
def test_empty_axes(dtype):
    """Each size 0 in turn: the right empty shape; no keys: zeros and -inf."""
    sizes = {"B": 2, "H": 4, "L": 3, "S": 5, "E": 6, "D": 7}
    for name in sizes:
        B, H, L, S, E, D = ({**sizes, name: 0}).values()
        arrays = (np.ones(shape, TYPES[dtype]) for shape in ((B, H, L, E), (B, H, S, E), (B, H, S, D)))
        options = {"scale": 1.0} if E == 0 else {}
        got, lse = attnpy.scaled_dot_product_attention(*arrays, return_lse=True, **options)
        assert got.shape == (B, H, L, D) and lse.shape == (B, H, L), f"{name} = 0"
        if S == 0:
            assert (got == 0).all() and (lse == -np.inf).all()
        elif got.size:
            np.testing.assert_array_equal(got, 1, err_msg=f"{name} = 0")
    query, key, value = (np.ones((2, n, 6), TYPES[dtype]) for n in (3, 0, 0))
    got, lse = attnpy.scaled_dot_product_attention(query, key, value, sinks=[0.5, 2], return_lse=True)
    assert (got == 0).all() and (lse == np.array([[0.5], [2]])).all()


def test_no_head_size_needs_a_scale():
    query, key, value = np.zeros((3, 0)), np.zeros((5, 0)), np.arange(10.0).reshape(5, 2)
    with pytest.raises(ValueError, match="scale"):
        attnpy.scaled_dot_product_attention(query, key, value)
    np.testing.assert_allclose(attnpy.scaled_dot_product_attention(query, key, value, scale=1), [[4, 5]] * 3)


@pytest.mark.parametrize("types", list(itertools.product(TYPES, repeat=3)), ids=" ".join)
def test_mixed_types(types):
    """float64 anywhere: float64; else the query's type, when the others are as wide or narrower, or float32."""
    rng = np.random.default_rng(seed_of(types))
    shapes = operands(rng, np.float64, batch=(), H=2, G=1, L=3, S=9)
    arrays = [x.astype(TYPES[name]) for x, name in zip(shapes, types)]
    if {"float16", "bfloat16"} <= set(types):
        with pytest.raises(TypeError, match=r"key|value"):
            attnpy.scaled_dot_product_attention(*arrays)
        return
    got, lse = check(*arrays)
    wanted = max((TYPES[name] for name in types), key=lambda dtype: dtype.itemsize)
    assert got.dtype == wanted
    assert lse.dtype == (np.float64 if wanted == np.float64 else np.float32)


def test_integers_and_lists_compute_in_float64():
    query, key, value = [[1, 0], [2, 3]], np.array([[1, 2], [0, 1]], np.int8), [[True], [False]]
    got, lse = check(*map(np.asarray, (query, key, value)))
    assert got.dtype == lse.dtype == np.float64
    np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(query, key, value), got)
    mixed = attnpy.scaled_dot_product_attention(np.float32(query), key, np.float32(value))
    assert mixed.dtype == np.float64


@pytest.mark.parametrize("scale", [0, 0.0, -1.5, 1e-3, 7, np.float32(0.3), 1e-30])
def test_any_finite_scale(scale):
    for L in (1, 70):
        check(*operands(np.random.default_rng(8), np.float32, L=L, S=130), scale=scale, note=f"scale {scale}")


def test_numbers_that_are_refused():
    arrays = operands(np.random.default_rng(0), np.float32)
    for name, numbers in {
        "scale": (np.inf, -np.inf, np.nan),
        "softcap": (-1.0, np.nan, np.inf),
        "window_size": (-2, (-2, 0), (0, -2), (1, 2, 3), (1,)),
        "kv_lengths": (-1, 8, [1, 8], 2**62, -(2**62)),
        "query_lengths": (-1, 6, [6, 0], 2**62),
    }.items():
        for number in numbers:
            with pytest.raises(ValueError, match=name):
                attnpy.scaled_dot_product_attention(*arrays, **{name: number})
    for name, numbers in {
        "scale": ("1", [1.0], 1j),
        "softcap": ("1", [1.0], 1j),
        "window_size": ("ab", (1.5, 0), 1.0),
        "kv_lengths": (1.0, [1.0, 2.0], "2"),
        "query_lengths": (1.0, [1.0, 2.0], "2"),
        "causal_offset": (1.0, [1.0, 2.0], "2"),
    }.items():
        for number in numbers:
            with pytest.raises(TypeError, match=name):
                attnpy.scaled_dot_product_attention(*arrays, **{name: number})


@pytest.mark.parametrize("softcap", [None, 0, 0.0])
def test_no_softcap(softcap):
    arrays = operands(np.random.default_rng(9), np.float32)
    plain = attnpy.scaled_dot_product_attention(*arrays)
    np.testing.assert_array_equal(attnpy.scaled_dot_product_attention(*arrays, softcap=softcap), plain)


@pytest.mark.parametrize("softcap", [1e-3, 0.5, 20, 1e4, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softcaps(softcap, dtype):
    """From where every score is at the cap to where none feels it."""
    for L in (1, 70):
        query, key, value = operands(np.random.default_rng(10), TYPES[dtype], L=L, S=130, E=16)
        check(3 * query, 3 * key, value, softcap=softcap, note=f"softcap {softcap}")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 33, 63, 64, 65, 127, 129]),
    st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 17, 31, 33, 63, 64, 65, 127, 129, 257]),
    st.integers(1, 20),
)
def test_laws(seed, L, S, E):
    """Order of keys, shifts of all scores, constant values, keys of zero, and what comes after the last key."""
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, np.float64, batch=(), H=2, L=L, S=S, E=E)
    size = np.abs(query).sum(-1).max() * np.abs(key).max()
    unit = 2.0**-53 * (8 + 2 * (64 + S / 64) + 2 * (E + 3) * (size + 1)) * np.abs(value).max()
    attend = attnpy.scaled_dot_product_attention
    got = attend(query, key, value)
    order = rng.permutation(S)
    same = {
        "keys in another order": attend(query, key[:, order], value[:, order]),
        "scores shifted": attend(query, key, value, bias=np.full((L, 1), 0.75)),
        "a window of everything": attend(query, key, value, window_size=(L + S, L + S)),
        "hidden keys after the last": attend(
            query, np.pad(key, ((0, 0), (0, 7), (0, 0))), np.pad(value, ((0, 0), (0, 7), (0, 0))), kv_lengths=S
        ),
    }
    for law, again in same.items():
        note = f"{law}; L, S, E = {L, S, E}, seed {seed}"
        np.testing.assert_allclose(again, got, rtol=0, atol=2 * unit, err_msg=note)
    np.testing.assert_allclose(attend(query, key, np.full_like(value, 3)), 3, rtol=unit)
    mean = np.broadcast_to(value.mean(1, keepdims=True), got.shape)
    np.testing.assert_allclose(attend(query, 0 * key, value), mean, atol=unit)
