"""Beside the Attention operator of ONNX (versions 23 and 24), as ONNX Runtime computes it on the CPU."""

import functools

import numpy as np
import pytest

import attnpy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

INF, NAN = np.inf, np.nan
SIZES = [(1, 130, 64), (3, 70, 8), (5, 7, 16), (64, 64, 64), (66, 130, 17), (130, 66, 32)]


def value_info(name, dtype, shape=None):
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


@functools.cache
def session(names, types, shapes, version, attributes):
    """A model of one node; names are its inputs, "" where one is left out."""
    outputs = ["output", "present_key", "present_value"][: 3 if "past_key" in names else 1]
    node = onnx.helper.make_node("Attention", names, outputs, **dict(attributes))
    inputs = [value_info(*given) for given in zip((name for name in names if name), types, shapes)]
    graph = onnx.helper.make_graph([node], "attention", inputs, [value_info(name, types[0]) for name in outputs])
    opset = [onnx.helper.make_opsetid("", version)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def theirs(query, key, value, attn_mask=None, *, past=(None, None), lengths=None, version=23, **attributes):
    given = dict(
        zip(
            ("q", "k", "v", "mask", "past_key", "past_value", "lengths"), (query, key, value, attn_mask, *past, lengths)
        )
    )
    names = [name if x is not None else "" for name, x in given.items()]
    while not names[-1]:
        names.pop()
    feeds = {name: np.ascontiguousarray(x) for name, x in given.items() if x is not None}
    types, shapes = tuple(x.dtype.name for x in feeds.values()), tuple(x.shape for x in feeds.values())
    run = session(tuple(names), types, shapes, version, tuple(sorted(attributes.items()))).run
    return run(None, feeds)[0]


def operands(seed, L, S, E, *, batch=2, H=4, G=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = (batch, H, L, E), (batch, G, S, E), (batch, G, S, E)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def assert_close(got, wanted, note="", unit=2.0**-24):
    """Unit variance, small sizes: a tenth of what the accuracy rule would let two results be apart."""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=256 * unit, err_msg=str(note))


@pytest.mark.parametrize("version", [23, 24])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scores(sizes, version):
    arrays = operands(1, *sizes)
    for ours, attributes in (
        ({}, {}),
        ({"scale": 0.3}, {"scale": 0.3}),
        ({"softcap": 0.8}, {"softcap": 0.8}),
        ({"is_causal": True, "causal_offset": 0}, {"is_causal": 1}),
        ({"is_causal": True, "causal_offset": 0, "softcap": 2.0}, {"is_causal": 1, "softcap": 2.0}),
    ):
        got = attnpy.scaled_dot_product_attention(*arrays, **ours)
        assert_close(got, theirs(*arrays, version=version, **attributes), f"{sizes}, {attributes}")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masks(sizes):
    """bool and float, every number of axes from the right, with and without the causal rule and a softcap."""
    L, S, _ = sizes
    arrays = operands(2, *sizes)
    rng = np.random.default_rng(3)
    seen = rng.random((2, 4, L, S)) < 0.7
    seen[..., 0] = True
    added = np.where(seen, rng.standard_normal(seen.shape), -INF).astype(np.float32)
    for mask in (seen, seen[0], seen[0, 0], seen[:, :1], added, added[0], added[0, 0]):
        for ours, attributes in (
            ({}, {}),
            ({"is_causal": True, "causal_offset": 0}, {"is_causal": 1}),
            ({"softcap": 0.5}, {"softcap": 0.5}),
        ):
            got = attnpy.scaled_dot_product_attention(*arrays, mask, **ours)
            wanted = theirs(*arrays, mask, **attributes)
            assert_close(got, wanted, f"{sizes}, {mask.dtype} mask {mask.shape}, {attributes}")


@pytest.mark.parametrize("heads", [(4, 2), (8, 1), (6, 3)], ids=str)
def test_grouped_queries(heads):
    H, G = heads
    for L, S in ((1, 130), (5, 70), (70, 130)):
        arrays = operands(4, L, S, 16, H=H, G=G)
        assert_close(attnpy.scaled_dot_product_attention(*arrays), theirs(*arrays), f"{heads}, L = {L}")


def test_a_row_without_keys_is_zero_in_both():
    arrays = operands(5, 5, 7, 8)
    seen = np.ones((5, 7), bool)
    seen[2] = False
    for mask in (seen, np.where(seen, 0.5, -INF).astype(np.float32)):
        got, wanted = attnpy.scaled_dot_product_attention(*arrays, mask), theirs(*arrays, mask)
        assert (got[:, :, 2] == 0).all() and (wanted[:, :, 2] == 0).all()
        assert_close(got, wanted)


@pytest.mark.parametrize("L", [1, 5])
def test_a_cache_moves_the_queries_to_its_end(L):
    """With past keys their causal rule is ours: the last query stands at the last key."""
    query, key, value = operands(6, L, L, 16)
    _, *past = operands(7, L, 70, 16)
    whole = [np.concatenate(parts, axis=2) for parts in zip(past, (key, value))]
    wanted = theirs(query, key, value, past=tuple(past), is_causal=1)
    assert_close(attnpy.scaled_dot_product_attention(query, *whole, is_causal=True), wanted)


def test_lengths():
    """nonpad_kv_seqlen counts the new tokens too; query 0 stands at length - L."""
    L, S = 5, 70
    arrays = operands(8, L, S, 16, batch=3)
    lengths = np.array([70, 3, 33])
    got = attnpy.scaled_dot_product_attention(*arrays, kv_lengths=lengths)
    assert_close(got, theirs(*arrays, lengths=lengths, version=24))
    got = attnpy.scaled_dot_product_attention(*arrays, kv_lengths=lengths, is_causal=True, causal_offset=lengths - L)
    assert_close(got, theirs(*arrays, lengths=lengths, version=24, is_causal=1))
    assert (got[1, :, :2] == 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_types(dtype):
    """Their float64 is computed in float32 in part; their float16 rounds more often: against float64, we are nearer."""
    arrays = operands(9, 66, 130, 64, dtype=dtype)
    exact = attnpy.scaled_dot_product_attention(*(x.astype(np.float64) for x in arrays))
    got = attnpy.scaled_dot_product_attention(*arrays)
    wanted = theirs(*arrays)
    assert got.dtype == dtype and wanted.dtype == dtype
    assert np.abs(got - exact).max() <= np.abs(wanted - exact).max()
    assert_close(got, wanted, unit=2.0**-24 if dtype == np.float64 else 2.0**-15)


def test_differs_causal_from_the_bottom_right():
    """By design: without a cache they align the first query with the first key."""
    arrays = operands(10, 5, 7, 8)
    ours, wanted = attnpy.scaled_dot_product_attention(*arrays, is_causal=True), theirs(*arrays, is_causal=1)
    assert np.abs(ours - wanted).max() > 0.1
    assert_close(attnpy.scaled_dot_product_attention(*arrays, None, 0.0, True, causal_offset=0), wanted)


def test_differs_hidden_nan_does_not_leak():
    """By design: 0 times NaN is NaN in ONNX Runtime, nothing in attnpy."""
    query, key, value = operands(11, 5, 7, 8)
    value[:, :, 6] = NAN
    seen = np.broadcast_to(np.arange(7) < 6, (5, 7))
    assert np.isnan(theirs(query, key, value, seen)).all()
    ours = attnpy.scaled_dot_product_attention(query, key, value, seen)
    assert_close(ours, theirs(query, key[:, :, :6], value[:, :, :6]))
