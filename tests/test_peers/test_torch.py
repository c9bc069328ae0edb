"""Beside PyTorch: its math backend in float64 and float32, FlexAttention, and where the two differ by design."""

import itertools
import warnings

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
functional = torch.nn.functional

INF, NAN = np.inf, np.nan
SIZES = [
    (1, 1, 8, 8),
    (1, 130, 64, 64),
    (3, 70, 8, 17),
    (5, 7, 16, 16),
    (64, 64, 64, 64),
    (66, 130, 17, 33),
    (130, 66, 32, 32),
    (1, 2500, 64, 64),
]


def operands(seed, L, S, E, D, *, batch=(2,), H=4, G=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (*batch, H, L, E), (*batch, G, S, E), (*batch, G, S, D)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def math_backend(query, key, value, attn_mask=None, **options):
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in (query, key, value)]
    mask = None if attn_mask is None else torch.from_numpy(np.ascontiguousarray(attn_mask))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return functional.scaled_dot_product_attention(*tensors, attn_mask=mask, **options).numpy()


def assert_close(got, wanted, note="", dtype=np.float64):
    """Unit variance, small sizes: a tenth of what the accuracy rule would let two results be apart."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=128 * np.finfo(dtype).eps, err_msg=str(note))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_math_backend(sizes, dtype):
    arrays = operands(1, *sizes, dtype=dtype)
    L, S = sizes[:2]
    rng = np.random.default_rng(2)
    seen = rng.random((2, 1, L, S)) < 0.7
    seen[..., 0] = True
    bias = np.where(rng.random((4, L, S)) < 0.8, rng.standard_normal((4, L, S)), -INF).astype(dtype)
    bias[..., -1] = 0.5
    for mask in (None, seen, seen[0, 0], bias, bias[:1], seen[..., :1, :], bias[0, 0]):
        for scale in (None, 0.3, -1.0):
            got = attnpy.scaled_dot_product_attention(*arrays, mask, scale=scale)
            wanted = math_backend(*arrays, mask, scale=scale)
            shape = None if mask is None else mask.shape
            assert_close(got, wanted, f"sizes {sizes}, mask {shape}, scale {scale}", dtype)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_causal_from_the_top_left(sizes):
    """PyTorch aligns the first query with the first key: causal_offset=0. For L = S both mean the same."""
    arrays = operands(3, *sizes)
    wanted = math_backend(*arrays, is_causal=True)
    assert_close(attnpy.scaled_dot_product_attention(*arrays, None, 0.0, True, causal_offset=0), wanted, sizes)
    L, S = sizes[:2]
    ours = attnpy.scaled_dot_product_attention(*arrays, is_causal=True)
    if L == S:
        assert_close(ours, wanted, sizes)
    else:
        assert np.abs(ours - wanted).max() > 0.01, "by design: ours aligns the last query with the last key"
    from torch.nn.attention.bias import causal_lower_right

    if L <= S:
        tensors = map(torch.from_numpy, arrays)
        theirs = functional.scaled_dot_product_attention(*tensors, attn_mask=causal_lower_right(L, S)).numpy()
        assert_close(ours, theirs, sizes)


@pytest.mark.parametrize("heads", [(4, 2), (8, 1), (6, 3), (12, 4)], ids=str)
def test_grouped_queries(heads):
    H, G = heads
    for L, S in ((1, 130), (5, 70), (70, 130)):
        arrays = operands(4, L, S, 16, 24, H=H, G=G)
        ours = attnpy.scaled_dot_product_attention(*arrays, enable_gqa=True)
        assert_close(ours, math_backend(*arrays, enable_gqa=True), f"{heads}, L = {L}")


def test_batch_axes():
    for batch in ((), (3,), (2, 3), (2, 1, 3)):
        arrays = operands(5, 7, 70, 8, 8, batch=batch)
        assert_close(attnpy.scaled_dot_product_attention(*arrays), math_backend(*arrays), f"batch {batch}")


def test_a_row_without_keys_is_zero_in_both():
    arrays = operands(6, 5, 7, 8, 8)
    seen = np.ones((5, 7), bool)
    seen[2] = False
    ours, theirs = attnpy.scaled_dot_product_attention(*arrays, seen), math_backend(*arrays, seen)
    assert (ours[:, :, 2] == 0).all() and (theirs[:, :, 2] == 0).all()
    assert_close(ours, theirs)


def test_padding_as_lengths():
    arrays = operands(7, 5, 70, 8, 8, batch=(3,))
    lengths = np.array([70, 1, 33])
    seen = (np.arange(70) < lengths[:, None])[:, None, None, :]
    assert_close(attnpy.scaled_dot_product_attention(*arrays, kv_lengths=lengths), math_backend(*arrays, seen))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(dtype):
    """Against float64 our largest error is no larger than theirs."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = [x.astype(half) for x in operands(8, 66, 130, 64, 64)]
    exact = math_backend(*(x.astype(np.float64) for x in arrays))
    tensors = [torch.from_numpy(x.astype(np.float32)).to(getattr(torch, dtype)) for x in arrays]
    theirs = functional.scaled_dot_product_attention(*tensors).float().numpy()
    ours = attnpy.scaled_dot_product_attention(*arrays).astype(np.float64)
    assert np.abs(ours - exact).max() <= np.abs(theirs - exact).max()
    assert_close(ours, exact, dtype, half if dtype == "float16" else np.float16)


def test_float32_errors_are_no_larger():
    """Against float64: the largest error of 20 cases is at most twice that of PyTorch."""
    worst = {"ours": 0.0, "theirs": 0.0}
    for seed, (L, S) in itertools.product(range(5), ((1, 700), (9, 130), (130, 130), (66, 700))):
        arrays = operands(seed, L, S, 64, 64, dtype=np.float32)
        exact = math_backend(*(x.astype(np.float64) for x in arrays))
        tensors = map(torch.from_numpy, arrays)
        theirs = functional.scaled_dot_product_attention(*tensors).numpy()
        ours = attnpy.scaled_dot_product_attention(*arrays)
        worst["theirs"] = max(worst["theirs"], np.abs(theirs - exact).max())
        worst["ours"] = max(worst["ours"], np.abs(ours - exact).max())
    assert worst["ours"] <= 2 * worst["theirs"], worst


def flex(query, key, value, score_mod=None, **options):
    from torch.nn.attention import flex_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        tensors = [torch.from_numpy(x) for x in (query, key, value)]
        output, lse = flex_attention.flex_attention(*tensors, score_mod=score_mod, return_lse=True, **options)
    return output.numpy(), lse.numpy()


@pytest.mark.parametrize("name", ["plain", "causal", "softcap", "alibi", "window", "softcap, alibi, causal", "sink"])
def test_flex_attention(name):
    """Score modifications written out: the output and the natural log-sum-exp."""
    L, S = 60, 70
    arrays = operands(9, L, S, 16, 16)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
    offset = S - L

    def softcap(score, b, h, q, k):
        return 0.8 * torch.tanh(score / 0.8)

    def alibi(score, b, h, q, k):
        return score - slopes[h] * (q + offset - k).abs()

    def causal(score, b, h, q, k):
        return torch.where(k <= q + offset, score, -INF)

    def window(score, b, h, q, k):
        return torch.where((k >= q + offset - 9) & (k <= q + offset + 4), score, -INF)

    def all_three(score, *place):
        return causal(alibi(softcap(score, *place), *place), *place)

    ours = {
        "plain": {},
        "causal": {"is_causal": True},
        "softcap": {"softcap": 0.8},
        "alibi": {"alibi_slopes": slopes.numpy()},
        "window": {"window_size": (9, 4)},
        "softcap, alibi, causal": {"softcap": 0.8, "alibi_slopes": slopes.numpy(), "is_causal": True},
        "sink": {"sinks": [0.0] * 4},
    }[name]
    mods = {"causal": causal, "softcap": softcap, "alibi": alibi, "window": window, "softcap, alibi, causal": all_three}
    output, lse = attnpy.scaled_dot_product_attention(*arrays, return_lse=True, **ours)
    theirs, their_lse = flex(*arrays, mods.get(name))
    if name == "sink":  # a sink rescales: O exp(lse) is the sum without it
        assert_close(output, theirs * np.exp(their_lse - lse)[..., None], name)
        assert_close(lse, np.logaddexp(their_lse, 0), name)
        return
    assert_close(output, theirs, name)
    assert_close(lse, their_lse, name)


def test_a_zero_sink_is_their_zero_attention():
    """MultiheadAttention(add_zero_attn=True) appends a key and a value of zeros: a sink of 0."""
    arrays = operands(10, 5, 7, 8, 8)
    padded = [np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0))) for x in arrays[1:]]
    assert_close(attnpy.scaled_dot_product_attention(*arrays, sinks=np.zeros(4)), math_backend(arrays[0], *padded))


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention(need_weights):
    """Their layer, with our attention between its projections. Its masks say True = ignore, ours True = attend."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64).eval()
    x, memory = torch.randn(2, 5, 32, dtype=torch.float64), torch.randn(2, 7, 32, dtype=torch.float64)
    ignore = torch.rand(5, 7) < 0.3
    with torch.no_grad():
        theirs, their_weights = layer(
            x, memory, memory, attn_mask=ignore, need_weights=need_weights, average_attn_weights=False
        )
        q, k, v = (
            functional.linear(y, w, b).unflatten(-1, (4, 8)).transpose(1, 2).numpy()
            for y, w, b in zip((x, memory, memory), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3))
        )
        ours = torch.from_numpy(attnpy.scaled_dot_product_attention(q, k, v, ~ignore.numpy()))
        ours = layer.out_proj(ours.transpose(1, 2).flatten(2))
    assert_close(ours.numpy(), theirs.numpy())
    if need_weights:
        assert_close(attnpy.attention_weights(q, k, ~ignore.numpy()), their_weights.numpy())


def test_differs_a_layer_that_needs_weights_makes_nan():
    """By design: where a row sees no key we give 0, their layer NaN (pytorch#160064)."""
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64).eval()
    x = torch.ones(1, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        _, theirs = layer(x, x, x, key_padding_mask=torch.ones(1, 3, dtype=torch.bool))
    assert torch.isnan(theirs).all()
    ours = attnpy.attention_weights(np.ones((1, 2, 3, 4)), np.ones((1, 2, 3, 4)), kv_lengths=0)
    assert (ours == 0).all()


def test_differs_hidden_nan_does_not_leak():
    """By design: 0 times NaN is NaN in PyTorch (pytorch#101967), nothing in attnpy."""
    query, key, value = operands(11, 5, 7, 8, 8)
    value[:, :, 6] = NAN
    seen = np.arange(7) < 6
    assert np.isnan(math_backend(query, key, value, np.broadcast_to(seen, (5, 7)))).all()
    ours = attnpy.scaled_dot_product_attention(query, key, value, seen)
    assert_close(ours, math_backend(query, key[:, :, :6], value[:, :, :6]))


def test_differs_causal_may_meet_a_mask():
    """By design: PyTorch refuses the two together, attnpy takes both."""
    arrays = operands(12, 7, 7, 8, 8)
    seen = np.random.default_rng(12).random((7, 7)) < 0.7
    seen[:, 0] = True
    with pytest.raises(RuntimeError, match="is_causal"):
        math_backend(*arrays, seen, is_causal=True)
    ours = attnpy.scaled_dot_product_attention(*arrays, seen, is_causal=True)
    assert_close(ours, math_backend(*arrays, seen & np.tri(7, dtype=bool)))


def test_differs_zeros_and_ones_warn():
    """Both add a float mask of zeros and ones; attnpy says so."""
    arrays = operands(13, 5, 7, 8, 8)
    mask = np.float64(np.random.default_rng(13).random((5, 7)) < 0.5)
    with pytest.warns(UserWarning, match="attn_mask"):
        ours = attnpy.scaled_dot_product_attention(*arrays, mask)
    assert_close(ours, math_backend(*arrays, mask))


def test_differs_integer_masks_are_refused_by_both():
    arrays = operands(14, 5, 7, 8, 8)
    mask = np.ones((5, 7), np.int64)
    with pytest.raises(RuntimeError, match="attn_mask"):
        math_backend(*arrays, mask)
    with pytest.raises(TypeError, match="attn_mask"):
        attnpy.scaled_dot_product_attention(*arrays, mask)


def test_softmax_family():
    x = np.random.default_rng(15).standard_normal((3, 5, 67)) * 20
    tensor = torch.from_numpy(x)
    for axis in (-1, 0, 1):
        assert_close(attnpy.softmax(x, axis), torch.softmax(tensor, axis).numpy())
        assert_close(attnpy.log_softmax(x, axis), torch.log_softmax(tensor, axis).numpy())
        assert_close(attnpy.logsumexp(x, axis), torch.logsumexp(tensor, axis).numpy())
    assert_close(attnpy.logsumexp(x, (0, 2)), torch.logsumexp(tensor, (0, 2)).numpy())


def test_differs_softmax_of_nothing():
    """By design: where nothing is left, 0 and -inf; PyTorch's softmax of -inf alone is NaN."""
    nothing = np.full((2, 3), -INF)
    assert torch.isnan(torch.softmax(torch.from_numpy(nothing), -1)).all()
    assert (attnpy.softmax(nothing) == 0).all() and (attnpy.logsumexp(nothing) == -INF).all()
