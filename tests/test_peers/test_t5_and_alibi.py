"""ALiBi's slopes and T5's biases beside transformers."""

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 25, 32, 40])
def test_bloom(heads):
    """build_alibi_tensor gives slope times key position: as far as the softmax sees, minus slope times distance.

    It takes powers, up to that of `heads`, of a base in float32.
    """
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_allclose(attnpy.alibi_slopes(heads), theirs, rtol=(heads + 2) * 2**-24)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16, 25, 32, 40])
def test_mpt(heads):
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    theirs = build_mpt_alibi_tensor(heads, 9)[..., 0, :].reshape(heads, 9).numpy()
    ours = attnpy.alibi_bias(attnpy.alibi_slopes(heads).astype(np.float32), 1, 9)[:, 0]
    np.testing.assert_allclose(ours, theirs, rtol=3e-7)


def t5(**changes):
    config = transformers.T5Config(
        vocab_size=11, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=3, decoder_start_token_id=0, **changes
    )
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 256)])
def test_buckets_of_t5(bidirectional, num_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    x = np.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(torch.from_numpy(x), bidirectional, num_buckets, max_distance)
    got = attnpy.relative_position_bucket(x, bidirectional, num_buckets, max_distance)
    np.testing.assert_array_equal(got, theirs.numpy())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("length", [1, 7, 200])
def test_bias_of_t5(part, length):
    """compute_bias of a random model's first layer, at all pairs."""
    attention = getattr(t5(), part).block[0].layer[0].SelfAttention
    table = attention.relative_attention_bias.weight.detach().numpy()
    theirs = attention.compute_bias(length, length)[0].detach().numpy()
    bias = attnpy.t5_relative_bias(table, length, length, bidirectional=part == "encoder")
    K = bias.shape[-1] // 2
    distance = np.arange(length) - np.arange(length)[:, None]
    np.testing.assert_array_equal(bias[:, 0, np.clip(distance, -K, K) + K], theirs)


def test_gradient_of_the_table():
    attention = t5().encoder.block[0].layer[0].SelfAttention
    weight = attention.relative_attention_bias.weight
    gradient = torch.randn(3, 150, 150, generator=torch.Generator().manual_seed(0))
    (attention.compute_bias(150, 150)[0] * gradient).sum().backward()
    table = weight.detach().clone().requires_grad_()
    bias = attnpy.t5_relative_bias(table, 150, 150)
    K = bias.shape[-1] // 2
    distance = torch.arange(150) - torch.arange(150)[:, None]
    (bias[:, 0, distance.clip(-K, K) + K] * gradient).sum().backward()
    torch.testing.assert_close(table.grad, weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_attention_of_t5(part):
    """The first layer of a random model, all of it: projections, unscaled scores, the bias, the causal mask."""
    attention, length = getattr(t5(), part).block[0].layer[0].SelfAttention, 90
    hidden = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, length, length)
    if part == "decoder":
        mask += torch.full((length, length), -torch.inf).triu(1)
    with torch.no_grad():
        theirs = attention(hidden, mask=mask)[0]
        query, key, value = (
            project(hidden).unflatten(-1, (3, 4)).transpose(1, 2) for project in (attention.q, attention.k, attention.v)
        )
        table = attention.relative_attention_bias.weight
        bias = attnpy.t5_relative_bias(table, length, length, bidirectional=part == "encoder")
        ours = attnpy.scaled_dot_product_attention(
            query, key, value, scale=1.0, relative_bias=bias, is_causal=part == "decoder"
        )
        ours = attention.o(ours.transpose(1, 2).flatten(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [3, 8])
def test_attention_of_bloom(heads):
    """A random model's scores, whose ALiBi has no distances but the keys' positions: the softmax does not see it."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    query, key, value = torch.randn(3, 2, heads, 70, 8, generator=torch.Generator().manual_seed(0))
    alibi = build_alibi_tensor(torch.ones(2, 70), heads, torch.float32).reshape(2, heads, 1, 70)
    hidden = torch.full((70, 70), -torch.inf).triu(1)
    theirs = (query @ key.mT / 8**0.5 + alibi + hidden).softmax(-1) @ value
    ours = attnpy.scaled_dot_product_attention(
        query, key, value, is_causal=True, alibi_slopes=attnpy.alibi_slopes(heads)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
