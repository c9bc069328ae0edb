"""Attention with vectors of distances beside plain attention, and beside the papers' formulas in PyTorch."""

import math

import numpy as np
from harness import Row, Work

import attnpy

SIZES = "H8 L1024 S1024 D64 float32"


def rows():
    for causal in (False, True):
        case = SIZES + " causal" * causal
        yield Row("relative_attention_xl", case, xl(causal, False), ("plain", 0.55))
        yield Row("relative_attention_shaw", case + " K16", shaw(causal, False))
    yield Row("relative_attention_xl_backward", SIZES, xl(False, True))
    yield Row("relative_attention_shaw_backward", SIZES + " K16", shaw(False, True))


def operands(H, L, D, vectors):
    rng = np.random.default_rng(0)
    query, key, value, grad = rng.standard_normal((4, 1, H, L, D), np.float32)
    return query, key, value, grad, rng.standard_normal((H, vectors, D), np.float32)


def work(call, plain, causal, H, L, D, products, others):
    operations = products * 2 * D * H * (L * (L + 1) / 2 if causal else L * L)
    return Work(
        ours=call, flops=operations, computed=operations, head_dim=D, beside={"plain": plain}, peers=others,
        tolerance=2e-3,
    )  # fmt: skip


def xl(causal, backward, H=8, L=1024, D=64):
    """Operations of plain attention, so that the share of it is what the positions cost."""

    def prepare(wanted):
        query, key, value, grad, table = operands(H, L, D, L if causal else 2 * L - 1)
        biases = np.random.default_rng(1).standard_normal((2, H, D)).astype(np.float32)
        given, options = (query, key, value, table, *biases), {"is_causal": causal}
        others = {}
        if "torch" in wanted and not backward:
            others["torch"] = xlnet(given, causal)
        return work(*_calls("xl", given, options, grad, backward), causal, H, L, D, 5 if backward else 2, others)

    return prepare


def shaw(causal, backward, H=8, L=1024, D=64, K=16):
    def prepare(wanted):
        query, key, value, grad, table = operands(H, L, D, 2 * K + 1)
        given, options = (query, key, value, table[0], table[1]), {"is_causal": causal}
        others = {}
        if "torch" in wanted and not backward:
            others["torch"] = shaws(given, causal)
        return work(*_calls("shaw", given, options, grad, backward), causal, H, L, D, 5 if backward else 2, others)

    return prepare


def _calls(which, given, options, grad, backward):
    """Ours, and plain attention."""
    forward = getattr(attnpy, f"relative_attention_{which}")
    query, key, value = given[:3]
    if not backward:
        return (
            lambda: forward(*given, **options),
            lambda: attnpy.scaled_dot_product_attention(query, key, value, **options),
        )
    kept = forward(*given, **options, return_lse=True)
    plain = attnpy.scaled_dot_product_attention(query, key, value, **options, return_lse=True)
    gradients = getattr(attnpy, f"relative_attention_{which}_backward")
    needs = (
        "query",
        "key",
        "value",
        *(("position_keys", "content_bias", "position_bias") if which == "xl" else ("key_table", "value_table")),
    )
    return (
        lambda: gradients(grad, *given, *kept, **options, needs=needs).query,
        lambda: attnpy.scaled_dot_product_attention_backward(grad, query, key, value, *plain, **options),
    )


def xlnet(given, causal):
    """transformers' XLNetRelativeAttention.rel_attn_core, its rel_shift included."""
    import torch

    query, key, value, table, u, v = map(torch.from_numpy, given)
    L, S, D = query.shape[-2], key.shape[-2], query.shape[-1]
    hidden = torch.ones(L, S, dtype=torch.bool).triu(1)
    if causal:  # rows for distances below 0 stand where the shift leaves junk
        table = torch.cat([table, table.new_zeros(table.shape[0], L - 1, D)], 1)

    def call():
        with torch.inference_mode():
            ac = (query + u[:, None]) @ key.mT
            bd = (query + v[:, None]) @ table.mT  # row t is distance S - 1 - t: (B, H, L, S + L - 1)
            bd = torch.nn.functional.pad(bd, (1, 0))
            lead = bd.shape[:2]
            bd = bd.reshape(*lead, S + L, L)[..., 1:, :].reshape(*lead, L, S + L - 1)[..., :S]
            score = (ac + bd) / math.sqrt(D)
            if causal:
                score = score.masked_fill(hidden, -torch.inf)
            return (score.softmax(-1) @ value).numpy()

    return call


def shaws(given, causal):
    """Equations 3 and 4 with gathered tables, as tensor2tensor has them."""
    import torch

    query, key, value, key_table, value_table = map(torch.from_numpy, given)
    L, K, D = query.shape[-2], key_table.shape[0] // 2, query.shape[-1]
    place = (torch.arange(L) - torch.arange(L)[:, None]).clamp(-K, K) + K
    hidden = torch.ones(L, L, dtype=torch.bool).triu(1)

    def call():
        with torch.inference_mode():
            far = query @ key_table.mT
            score = (query @ key.mT + far.gather(-1, place.expand(*far.shape[:-1], L))) / math.sqrt(D)
            if causal:
                score = score.masked_fill(hidden, -torch.inf)
            weights = score.softmax(-1)
            sums = torch.zeros_like(far).scatter_add_(-1, place.expand(weights.shape), weights)
            return (weights @ value + sums @ value_table).numpy()

    return call
