"""longformer_attention beside Hugging Face's LongformerSelfAttention."""

import numpy as np
import pytest
import torch
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

import attnpy


def heads(layer, x, projection, number):
    """(B, L, N) → (B, H, L, D), float32."""
    y = getattr(layer, projection)(x)
    return y.reshape(*x.shape[:2], number, -1).transpose(1, 2).numpy()


@pytest.mark.parametrize("tokens", [[0], [0, 5, 100], []])
@pytest.mark.parametrize("window", [4, 32])
def test_longformer_self_attention(tokens, window):
    torch.manual_seed(7)
    batch, length, heads_number, size = 2, 128, 4, 64
    config = LongformerConfig(hidden_size=size, num_attention_heads=heads_number, attention_window=[2 * window])
    layer = LongformerSelfAttention(config, layer_id=0).eval()
    x = torch.randn(batch, length, size)
    mask = torch.zeros(batch, length)  # 0: local, > 0: global, < 0: padding
    mask[:, tokens] = 10000.0
    with torch.no_grad():
        wanted = layer(
            x, attention_mask=mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0,
            is_global_attn=bool(tokens),
        )[0].numpy()  # fmt: skip
        operands = [
            heads(layer, x, f"{name}{kind}", heads_number)
            for kind in ("", "_global")
            for name in ("query", "key", "value")
        ]
    got = attnpy.longformer_attention(*operands, window=window, global_tokens=np.array(tokens, int))
    np.testing.assert_allclose(got.swapaxes(1, 2).reshape(wanted.shape), wanted, rtol=0, atol=2e-5)
