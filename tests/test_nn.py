"""Layers: the tree of parameters, pure calls, caches, dropout, what is refused."""

import autograd
import numpy as np
import pytest

import attnpy
from attnpy import nn

RNG = np.random.default_rng(0)
SMALL = {"d_model": 16, "num_heads": 2, "dim_feedforward": 24}


def features(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(**SMALL, **({"rng": 0} | options))


def transformer(**options):
    shape = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    return nn.Transformer(**SMALL, **shape, **({"source_vocabulary": 11, "target_vocabulary": 13, "rng": 0} | options))


LAYERS = {
    "Linear": (lambda: nn.Linear(16, 5, rng=0), 1),
    "LayerNorm": (lambda: nn.LayerNorm(16), 1),
    "RMSNorm": (lambda: nn.RMSNorm((3, 16)), 1),
    "FeedForward": (lambda: nn.FeedForward(16, 24, activation="gelu", rng=0), 1),
    "FeedForward, gated": (lambda: nn.FeedForward(16, 24, activation="swiglu", rng=0), 1),
    "MultiHeadAttention": (lambda: nn.MultiHeadAttention(16, 4, num_kv_heads=2, rng=0), 1),
    "CrossAttention": (lambda: nn.CrossAttention(16, 4, rng=0), 2),
    "TransformerEncoderLayer": (encoder_layer, 1),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(**SMALL, rng=0), 2),
    "TransformerEncoder": (lambda: nn.TransformerEncoder([encoder_layer(), encoder_layer()], nn.LayerNorm(16)), 1),
    "Transformer": (lambda: transformer(source_vocabulary=None, target_vocabulary=None), 2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_call_is_a_pure_function_of_its_parameters(name):
    make, arguments = LAYERS[name]
    layer, x = make(), [features(2, 3, 16) for _ in range(arguments)]
    before = {key: array.copy() for key, array in layer.state_dict().items()}
    result = layer(*x)
    np.testing.assert_array_equal(layer(*x, parameters=layer.parameters()), result)
    other = make().parameters()
    for array in arrays_of(other):
        array *= 1.5
    changed = layer(*x, parameters=other)
    assert changed.shape == result.shape and not np.allclose(changed, result)
    np.testing.assert_array_equal(layer(*x), result)
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)


def arrays_of(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from arrays_of(value)
        else:
            yield value


@pytest.mark.parametrize("name", LAYERS)
def test_state_dicts_come_back(name):
    layer, other = LAYERS[name][0](), LAYERS[name][0]()
    for array in other.state_dict().values():
        array[...] = 7
    assert other.load_state_dict(layer.state_dict()) is other
    for key, array in layer.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[key], array, err_msg=key)
        assert not np.shares_memory(other.state_dict()[key], array)


def test_names():
    names = list(nn.TransformerDecoder([nn.TransformerDecoderLayer(**SMALL, rng=0)], nn.LayerNorm(16)).state_dict())
    assert names[:4] == [f"layers.0.self_attn.{name}_weight" for name in ("query", "key", "value", "output")]
    assert "layers.0.feed_forward.linear2.bias" in names and names[-2:] == ["norm.weight", "norm.bias"]
    assert "bias" not in nn.Linear(3, 2, bias=False).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bias"), "lacks 'bias'"),
        (lambda s: s.update(more=np.ones(3)), "it has 'more', which the layer has not"),
        (lambda s: s.update(weight=np.ones((3, 2))), r"'weight'\] has shape \(3, 2\); it must have \(2, 3\)"),
    ],
)
def test_state_dicts_are_strict(change, message):
    layer = nn.Linear(3, 2, rng=0)
    before, state = layer.weight.copy(), {key: 2 * x for key, x in layer.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        layer.load_state_dict(state)
    np.testing.assert_array_equal(layer.weight, before)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="keys 'bias', 'weight'; it has 'weight'"):
        nn.Linear(3, 2)(features(3), parameters={"weight": features(2, 3)})


def test_complex_values_are_refused():
    with pytest.raises(TypeError, match="weight"):
        nn.Linear(3, 2, bias=False).load_state_dict({"weight": np.ones((2, 3), complex)})


def test_repr_tells_shapes_and_counts():
    text = repr(transformer())
    assert "source_embedding: Embedding()" in text and "float32 (11, 16)" in text
    assert f"{sum(x.size for x in transformer().state_dict().values()):,} parameters" in text.splitlines()[0]
    assert "<table>" in nn.Linear(3, 2)._repr_html_() and "float32 (2, 3)" in nn.Linear(3, 2)._repr_html_()


# --- options reach the kernels


def test_masks_and_lengths():
    layer, x = encoder_layer(), features(2, 6, 16)
    plain = layer(x, kv_lengths=[4, 6], query_lengths=[4, 6])
    masked = layer(x, attn_mask=(np.arange(6) < np.array([[4], [6]]))[:, None, None, :])
    np.testing.assert_allclose(plain[0, :4], masked[0, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain[1], masked[1], rtol=1e-4, atol=1e-5)
    spoiled = x.copy()
    spoiled[0, 5] = 100
    np.testing.assert_array_equal(layer(spoiled, is_causal=True)[0, :5], layer(x, is_causal=True)[0, :5])


def test_weights():
    layer, x = nn.MultiHeadAttention(16, 4, num_kv_heads=2, rng=0), features(2, 5, 16)
    output, weights = layer(x, need_weights=True, is_causal=True)
    np.testing.assert_array_equal(output, layer(x, is_causal=True))
    assert weights.shape == (2, 4, 5, 5) and not np.triu(weights, 1).any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_a_zero_key():
    layer = nn.MultiHeadAttention(16, 4, add_zero_attn=True, rng=0)
    _, weights = layer(features(5, 16), need_weights=True)
    assert (weights.sum(-1) < 1).all()


# --- dropout


def test_dropout_needs_a_generator_and_is_reproducible():
    model, source, target = transformer(dropout=0.3), RNG.integers(0, 11, (2, 7)), RNG.integers(0, 13, (2, 5))
    plain = model(source, target)
    np.testing.assert_array_equal(model(source, target), plain)
    first, second = (model(source, target, rng=np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, plain)
    assert not np.allclose(first, model(source, target, rng=np.random.default_rng(2)))


def test_dropout_keeps_the_mean():
    dropped = nn.Dropout(0.4)(np.ones((1000, 100), np.float32), rng=np.random.default_rng(0))
    assert abs(dropped.mean() - 1) < 0.01 and abs((dropped == 0).mean() - 0.4) < 0.01
    assert nn.Dropout(0.4)(np.ones(7, np.float32), rng=np.random.default_rng(0)).shape == (7,)


# --- caches


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoding_with_caches_equals_the_causal_pass(norm_first):
    model = transformer(norm_first=norm_first)
    source, target = RNG.integers(0, 11, (2, 7)), RNG.integers(0, 13, (2, 9))
    memory = model.encode(source)
    whole = model.decode(target, memory)
    cache, memory_cache = (attnpy.KVCache(2, 2, 2, length, 8, dtype=np.float32) for length in (9, 7))
    parts = [
        model.decode(target[:, a:b], memory if a == 0 else None, cache=cache, memory_cache=memory_cache)
        for a, b in ((0, 3), (3, 4), (4, 5), (5, 9))
    ]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [4, 6, 1]])
def test_generating_is_greedy(lengths):
    model, source = transformer(), RNG.integers(0, 11, (3, 6))
    options = {"source_options": {"kv_lengths": lengths}, "memory_options": {"kv_lengths": lengths}}
    tokens = model.generate(source, 1, 8, **options)
    assert tokens.shape == (3, 8) and (tokens[:, 0] == 1).all()
    scores = model(source, tokens, **options)
    np.testing.assert_array_equal(scores[:, :-1].argmax(-1), tokens[:, 1:])


# --- gradients of a whole model


@pytest.mark.parametrize("norm_first", [False, True])
def test_autograd_differentiates_a_whole_model(norm_first):
    model = transformer(norm_first=norm_first, dtype=np.float64, activation="gelu")
    source, target = RNG.integers(0, 11, (2, 5)), RNG.integers(0, 13, (2, 4))
    weights = RNG.standard_normal((2, 4, 13))

    def loss(tree):
        return (model(source, target, parameters=tree, rng=np.random.default_rng(5)) * weights).sum()

    tree = model.parameters()
    gradient = autograd.grad(loss)(tree)
    for name, array, of in named(tree, gradient):
        direction = RNG.standard_normal(array.shape)
        kept = array.copy()
        values = []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            values.append(loss(tree))
        array[...] = kept
        numeric = (values[0] - values[1]) / 2e-6
        assert abs(numeric - (of * direction).sum()) < 1e-5 * (1 + abs(numeric)), name


def named(tree, other, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from named(value, other[name], f"{prefix}{name}.")
        else:
            yield prefix + name, value, other[name]


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.MultiHeadAttention(10, 3), "num_heads is 3; it must divide embed_dim, which is 10"),
        (lambda: nn.MultiHeadAttention(12, 6, num_kv_heads=4), "num_kv_heads is 4; it must divide"),
        (lambda: nn.Dropout(1.0), r"p is 1.0; it must lie in \[0, 1\)"),
        (lambda: nn.FeedForward(3, 4, activation="step"), "activation is 'step'"),
        (lambda: nn.Transformer(8, 2, source_vocabulary=3), "must be given together"),
        (lambda: nn.MultiHeadAttention.from_torch_state_dict({"bias_k": np.ones(3)}, 1), "add_bias_kv"),
        (lambda: nn.MultiHeadAttention.from_torch_state_dict({}, 1), "nothing for query_weight"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
