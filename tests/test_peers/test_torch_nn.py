"""attnpy.nn beside torch.nn on the same random weights: outputs, masks, gradients."""

import autograd
import numpy as np
import pytest
import torch

from attnpy import nn

RNG = np.random.default_rng(0)


def features(*shape):
    return RNG.standard_normal(shape)


def close(got, wanted, what):
    wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else wanted
    size = max(np.abs(wanted).max(), 1e-3)  # gradients of key biases are 0 but for rounding
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10 * size, err_msg=what)


def randomised(module):
    """Its biases and norms too, in float64, without dropout."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 10, "vdim": 6}, {"add_zero_attn": True}])
def test_multihead_attention(bias, sizes):
    theirs = randomised(torch.nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, **sizes))
    zero = {"add_zero_attn": True} if "add_zero_attn" in sizes else {}
    ours = nn.MultiHeadAttention.from_torch_state_dict(theirs.state_dict(), 3, **zero)
    query, key, value = features(2, 5, 12), features(2, 7, sizes.get("kdim", 12)), features(2, 7, sizes.get("vdim", 12))
    hidden = RNG.random((5, 7)) < 0.4
    hidden[:, 0] = False
    padding = np.arange(7) >= np.array([[5], [7]])
    tensors = [torch.from_numpy(x) for x in (query, key, value)]
    for mask, past in ((None, None), (hidden, None), (None, padding), (hidden, padding)):
        wanted, weights = theirs(
            *tensors, attn_mask=None if mask is None else torch.from_numpy(mask),
            key_padding_mask=None if past is None else torch.from_numpy(past), average_attn_weights=False,
        )  # fmt: skip
        seen = np.ones((2, 1, 5, 7), bool)
        seen &= True if mask is None else ~mask
        seen &= True if past is None else ~past[:, None, None, :]
        got, ours_weights = ours(query, key, value, attn_mask=seen, need_weights=True)
        close(got, wanted, "output")
        close(ours_weights, weights[..., :7], "weights")


def test_multihead_attention_float_mask():
    theirs = randomised(torch.nn.MultiheadAttention(12, 3, batch_first=True))
    ours = nn.MultiHeadAttention.from_torch_state_dict(theirs.state_dict(), 3)
    x, mask = features(2, 5, 12), features(5, 5)
    wanted, _ = theirs(*[torch.from_numpy(x)] * 3, attn_mask=torch.from_numpy(mask), need_weights=False)
    close(ours(x, attn_mask=mask), wanted, "output")


OPTIONS = [
    {"norm_first": norm_first, "activation": activation, "bias": bias, "layer_norm_eps": eps}
    for norm_first, activation, bias, eps in (
        (False, "relu", True, 1e-5),
        (True, "gelu", True, 1e-3),
        (False, "gelu", False, 1e-5),
        (True, "relu", False, 1e-5),
    )
]


def ours_of(cls, theirs, options, heads=3):
    given = {name: value for name, value in options.items() if name != "bias"}
    return cls.from_torch_state_dict(theirs.state_dict(), heads, dropout=0.0, **given)


def gradients_agree(ours, theirs, call, x, result):
    """Of a random linear function of the output, in the inputs and in all parameters that have the same names."""
    weights = features(*result.shape)
    tensors = [torch.from_numpy(a).requires_grad_() for a in x]
    theirs.zero_grad()
    (call(theirs, *tensors) * torch.from_numpy(weights)).sum().backward()
    tree = ours.parameters()

    def loss(tree, *x):
        return (call(ours, *x, parameters=tree) * weights).sum()

    of_tree, *of_x = autograd.grad(loss, tuple(range(len(x) + 1)))(tree, *x)
    for got, tensor in zip(of_x, tensors, strict=True):
        close(got, tensor.grad, "input")
    wanted = ours.__class__.from_torch_state_dict(
        {name: p.grad for name, p in theirs.named_parameters()}, 3, dropout=0.0
    )
    for name, got in flat(of_tree):
        close(got, wanted.state_dict()[name], name)


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_encoder_layer(options):
    theirs = randomised(torch.nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True, **options))
    ours, x = ours_of(nn.TransformerEncoderLayer, theirs, options), features(2, 5, 12)
    padding = np.arange(5) >= np.array([[3], [5]])
    wanted = theirs.train()(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(padding))
    close(ours(x, attn_mask=~padding[:, None, None, :]), wanted, "padded")
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    close(ours(x, is_causal=True), theirs(torch.from_numpy(x), src_mask=causal), "causal")

    def call(layer, x, **more):
        return layer(x, **more)

    gradients_agree(ours, theirs, call, [x], call(ours, x))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_decoder_layer(options):
    theirs = randomised(torch.nn.TransformerDecoderLayer(12, 3, 20, dropout=0.0, batch_first=True, **options)).train()
    ours, x, memory = ours_of(nn.TransformerDecoderLayer, theirs, options), features(2, 5, 12), features(2, 7, 12)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    padding = np.arange(7) >= np.array([[4], [7]])
    tensors = torch.from_numpy(x), torch.from_numpy(memory)
    wanted = theirs(*tensors, tgt_mask=causal, memory_key_padding_mask=torch.from_numpy(padding))
    close(ours(x, memory, memory_options={"attn_mask": ~padding[:, None, None, :]}), wanted, "padded memory")

    def call(layer, x, memory, **more):
        if layer is ours:
            return layer(x, memory, is_causal=False, **more)
        return layer(x, memory)

    gradients_agree(ours, theirs, call, [x, memory], call(ours, x, memory))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # of a fast path that is not looked at here
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_transformer(options):
    theirs = randomised(torch.nn.Transformer(12, 3, 2, 3, 20, dropout=0.0, batch_first=True, **options)).train()
    ours, source, target = ours_of(nn.Transformer, theirs, options), features(2, 6, 12), features(2, 5, 12)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)

    def call(model, source, target, **more):
        return model(source, target, **more) if model is ours else model(source, target, tgt_mask=causal)

    wanted = call(theirs, torch.from_numpy(source), torch.from_numpy(target))
    close(call(ours, source, target), wanted, "output")
    gradients_agree(ours, theirs, call, [source, target], wanted)
