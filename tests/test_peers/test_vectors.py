"""Attention with vectors of distances beside XLNet of transformers, and the equations of its papers in PyTorch."""

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, theirs, **tolerance):
    torch.testing.assert_close(torch.as_tensor(np.asarray(ours)), theirs, **tolerance)


def xlnet(**changes):
    """A tiny model with random weights in every place, the biases of queries and segments included."""
    config = transformers.XLNetConfig(
        vocab_size=31, d_model=24, n_layer=2, n_head=3, d_inner=16, dropout=0.0, summary_last_dropout=0.0, **changes
    )
    torch.manual_seed(0)
    model = transformers.XLNetModel(config).double().eval()
    for n, parameter in enumerate(model.parameters()):
        parameter.data = random(*parameter.shape, seed=n) / 4
    encoding = model.relative_positional_encoding  # in float32 whatever the model is in
    model.relative_positional_encoding = lambda *arguments, **options: encoding(*arguments, **options).double()
    return model


def core(self, q_head, k_head_h, v_head_h, k_head_r, seg_mat=None, attn_mask=None, output_attentions=False):
    """XLNetRelativeAttention.rel_attn_core made of relative_attention_xl. Arrays there are (rows, batch, heads, size).

    Its row t is distance S - t: the first one is never met. Models that only look back have no rows for the future.
    """
    query, key, value, rows = (x.permute(1, 2, 0, 3) for x in (q_head, k_head_h, v_head_h, k_head_r))
    options = {"is_causal": rows.shape[-2] == key.shape[-2] + 1}
    if seg_mat is not None:
        of_segment = torch.einsum("bnid,snd->bnis", query + self.r_s_bias[:, None], self.seg_embed)
        options["bias"] = self.scale * torch.einsum("ijbs,bnis->bnij", seg_mat, of_segment)
    if attn_mask is not None:
        options["attn_mask"] = (attn_mask == 0).permute(2, 3, 0, 1)
    output = attnpy.relative_attention_xl(
        query, key, value, rows[..., 1:, :], self.r_w_bias, self.r_r_bias, scale=self.scale, **options
    )
    return output.permute(2, 0, 1, 3)


@pytest.mark.parametrize(
    ("attn_type", "given"),
    [("bi", given) for given in ("plain", "memory", "segments", "permutation", "clamped")]
    + [("uni", "plain"), ("uni", "memory")],
)
def test_xlnet(attn_type, given, monkeypatch):
    """All of a random model, in float64, with the one core and with the other: content and query stream, 70 tokens."""
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    model, length = xlnet(attn_type=attn_type, mem_len=50, clamp_len=9 if given == "clamped" else -1), 70
    tokens = torch.randint(31, (2, length), generator=torch.Generator().manual_seed(1))
    options = {}
    if given == "memory":
        options["mems"] = [random(50, 2, 24, seed=n) for n in range(2)]
    if given == "segments":
        options["token_type_ids"] = (torch.arange(length) > 40).long().expand(2, -1)
    if given == "permutation":
        order = torch.randperm(length, generator=torch.Generator().manual_seed(2))
        options["perm_mask"] = (order[:, None] <= order).double().expand(2, -1, -1).clone()
        options["perm_mask"][:, :, order.argmin()] = 0  # all see one token at least
        options["target_mapping"] = torch.eye(length, dtype=torch.float64)[60:].expand(2, -1, -1)
    with torch.no_grad():
        theirs = model(tokens, **options).last_hidden_state
        monkeypatch.setattr(XLNetRelativeAttention, "rel_attn_core", core)
        ours = model(tokens, **options).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_gradients_of_xlnet(monkeypatch):
    """Of all weights of the model, those of rows of distances and of the two biases among them."""
    from transformers.models.xlnet.modeling_xlnet import XLNetRelativeAttention

    tokens = torch.randint(31, (2, 70), generator=torch.Generator().manual_seed(1))
    found = []
    for swap in (False, True):
        if swap:
            monkeypatch.setattr(XLNetRelativeAttention, "rel_attn_core", core)
        model = xlnet()
        (model(tokens).last_hidden_state * random(2, 70, 24)).sum().backward()
        found.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
    assert {"layer.0.rel_attn.r", "layer.1.rel_attn.r_w_bias", "layer.1.rel_attn.r_r_bias"} <= found[0].keys()
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def shifted(x):
    """Transformer-XL's _rel_shift, of (..., L, S): a column of zeros is flattened away."""
    L, S = x.shape[-2:]
    padded = torch.cat([torch.zeros_like(x[..., :1]), x], -1)
    return padded.reshape(*x.shape[:-2], S + 1, L)[..., 1:, :].reshape(x.shape)


@pytest.mark.parametrize(("L", "memory"), [(1, 130), (5, 0), (70, 0), (70, 90)])
def test_transformer_xl(L, memory):
    """Equation of section 3.3 as the authors compute it: the memory is not causal, and rows of distances descend.

    With gradients of all operands, the memory's keys among them.
    """
    S, sizes = L + memory, (("query", L), ("key", L + memory), ("value", L + memory))
    given = {name: random(2, 4, n, 8, seed=i).requires_grad_() for i, (name, n) in enumerate(sizes)}
    given |= {"position_keys": random(4, S, 8, seed=3).requires_grad_()}
    given |= {
        name: random(4, 8, seed=i + 4).requires_grad_() for i, name in enumerate(["content_bias", "position_bias"])
    }
    query, key, value, rows, u, v = given.values()
    content = (query + u[:, None]) @ key.mT
    position = shifted((query + v[:, None]) @ rows.mT)
    future = torch.ones(L, S, dtype=torch.bool).triu(1 + memory)
    theirs = ((content + position) / 8**0.5).masked_fill(future, -torch.inf).softmax(-1) @ value
    gradient = random(2, 4, L, 8, seed=6)
    wanted = torch.autograd.grad((theirs * gradient).sum(), list(given.values()))
    arrays = {name: x.detach().numpy() for name, x in given.items()}
    ours, lse = attnpy.relative_attention_xl(**arrays, is_causal=True, return_lse=True)
    close(ours, theirs.detach())
    found = attnpy.relative_attention_xl_backward(
        gradient.numpy(), **arrays, output=ours, lse=lse, is_causal=True, needs=tuple(arrays)
    )
    for name, x in zip(arrays, wanted, strict=True):
        close(getattr(found, name), x, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("with_values", [False, True])
@pytest.mark.parametrize(("L", "S", "K"), [(1, 1, 0), (5, 7, 2), (70, 70, 16), (70, 130, 100)])
def test_shaw(L, S, K, with_values, causal):
    """Equations 3 and 4 with a_ij as an array (L, S, E), and autograd's gradients of all operands."""
    given = {name: random(2, 4, n, 8, seed=i).requires_grad_()
             for i, (name, n) in enumerate((("query", L), ("key", S), ("value", S)))}  # fmt: skip
    names = ("key_table", "value_table") if with_values else ("key_table",)
    given |= {name: random(2 * K + 1, 8, seed=i + 3).requires_grad_() for i, name in enumerate(names)}
    query, key, value = (given[name] for name in ("query", "key", "value"))
    distance = torch.arange(S) - torch.arange(L)[:, None] - (S - L)
    of_pair = distance.clip(-K, K) + K
    score = (query[..., None, :] * (key[:, :, None] + given["key_table"][of_pair])).sum(-1) / 8**0.5
    weights = score.masked_fill(distance > 0, -torch.inf).softmax(-1) if causal else score.softmax(-1)
    values = value[:, :, None] + (given["value_table"][of_pair] if with_values else 0)
    theirs = (weights[..., None] * values).sum(-2)
    gradient = random(2, 4, L, 8, seed=5)
    wanted = torch.autograd.grad((theirs * gradient).sum(), list(given.values()))
    arrays = {name: x.detach().numpy() for name, x in given.items()}
    ours, lse = attnpy.relative_attention_shaw(**arrays, is_causal=causal, return_lse=True)
    close(ours, theirs.detach())
    found = attnpy.relative_attention_shaw_backward(
        gradient.numpy(),
        **({"value_table": None} | arrays),
        output=ours,
        lse=lse,
        is_causal=causal,
        needs=tuple(arrays),
    )
    for name, x in zip(arrays, wanted, strict=True):
        close(getattr(found, name), x, rtol=1e-9, atol=1e-11)
