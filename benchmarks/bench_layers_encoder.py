"""Multi-head attention beside the sum of its parts, and an encoder layer of BERT's size beside PyTorch's."""

import numpy as np
import peers
from harness import Row, Work

import attnpy
from attnpy import nn

D_MODEL, HEADS, HIDDEN = 768, 12, 3072  # BERT-base: Devlin et al. 2019, arXiv:1810.04805


def attention_flops(batch, length):
    """Of the heads: two products of 2 D operations for each score."""
    return 4 * batch * length * length * D_MODEL


def multi_head(batch, length, goal=None):
    """Parts: three projections, attention on views of them, one projection."""

    def prepare(wanted):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, length, D_MODEL), np.float32)
        layer = nn.MultiHeadAttention(D_MODEL, HEADS, rng=0)
        own = layer.parameters()

        def parts():
            heads = [
                attnpy.linear(x, own[f"{name}_weight"], own[f"{name}_bias"])
                .reshape(batch, length, HEADS, -1)
                .swapaxes(1, 2)
                for name in ("query", "key", "value")
            ]
            joined = np.empty((batch, length, HEADS, D_MODEL // HEADS), np.float32)
            attnpy.scaled_dot_product_attention(*heads, out=joined.swapaxes(1, 2))
            return attnpy.linear(joined.reshape(x.shape), own["output_weight"], own["output_bias"])

        def ours():
            return attnpy.multi_head_attention(x, x, x, **own, num_heads=HEADS)

        flops = 8 * batch * length * D_MODEL**2 + attention_flops(batch, length)
        compared = {"torch": torch_attention(layer, x)} if "torch" in wanted else {}
        return Work(ours=ours, flops=flops, computed=flops, beside={"its parts": parts}, peers=compared, tolerance=1e-3)

    return Row("multi_head_attention", f"B{batch} L{length} N{D_MODEL} H{HEADS} float32", prepare, goal)


def encoder_layer(batch, length, goal=None):
    def prepare(wanted):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, length, D_MODEL), np.float32)
        layer = nn.TransformerEncoderLayer(D_MODEL, HEADS, HIDDEN, activation="gelu", rng=0)
        products = 8 * D_MODEL**2 + 4 * D_MODEL * HIDDEN
        flops = batch * length * products + attention_flops(batch, length)
        compared = {}
        if "torch" in wanted:
            compared = {"torch": torch_layer(layer, x), "torch.compile": torch_layer(layer, x, compiled=True)}
        return Work(ours=lambda: layer(x), flops=flops, computed=flops, peers=compared, tolerance=1e-3)

    return Row("nn.TransformerEncoderLayer", f"BERT-base, B{batch} L{length} float32", prepare, goal)


def in_torch(layer):
    """Its parameters in the names of torch.nn.MultiheadAttention."""
    import torch

    own = layer.state_dict()
    state = {}
    for kind in ("weight", "bias"):
        state[f"in_proj_{kind}"] = np.concatenate([own[f"{name}_{kind}"] for name in ("query", "key", "value")])
        state[f"out_proj.{kind}"] = own[f"output_{kind}"]
    return {name: torch.from_numpy(array) for name, array in state.items()}


def torch_attention(layer, x):
    import torch

    theirs = torch.nn.MultiheadAttention(D_MODEL, HEADS, batch_first=True).eval()
    theirs.load_state_dict(in_torch(layer))
    x = peers.tensor(x)

    def call():
        with torch.inference_mode():
            return peers.as_numpy(theirs(x, x, x, need_weights=False)[0])

    return call


def torch_layer(layer, x, compiled=False):
    import torch

    theirs = torch.nn.TransformerEncoderLayer(
        D_MODEL, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True
    ).eval()
    state = {f"self_attn.{name}": value for name, value in in_torch(layer.self_attn).items()}
    for name, array in layer.state_dict().items():
        if not name.startswith("self_attn."):
            state[name.removeprefix("feed_forward.")] = torch.from_numpy(array)
    theirs.load_state_dict(state)
    run, x = torch.compile(theirs) if compiled else theirs, peers.tensor(x)

    def call():
        with torch.inference_mode():
            return peers.as_numpy(run(x))

    return call


def rows():
    yield multi_head(8, 128, ("its parts", 0.95))
    yield multi_head(1, 512, ("its parts", 0.95))
    yield encoder_layer(8, 128, ("fma", 0.75))
    yield encoder_layer(1, 512, ("fma", 0.75))
