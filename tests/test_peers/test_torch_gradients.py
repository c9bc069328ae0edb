"""Beside PyTorch's autograd, in float64: of the plain formula under every option, and of its own attention."""

import math

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")

FORMULA = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": "bool"},
    "float mask": {"attn_mask": "float"},
    "bias": {"bias": "float"},
    "softcap": {"softcap": 0.9},
    "scale": {"scale": -0.4},
    "sinks": {"sinks": "head"},
    "alibi": {"alibi_slopes": "head"},
    "window": {"window_size": (20, 5)},
    "grad of lse": {"grad_lse": True},
    "dropout": {"dropout_p": 0.3, "rng": attnpy.DropoutKey(3)},
    "all": {
        "is_causal": True, "attn_mask": "float", "bias": "float", "softcap": 2.0, "sinks": "head",
        "alibi_slopes": "head", "dropout_p": 0.2, "rng": attnpy.DropoutKey(4), "grad_lse": True,
    },
}  # fmt: skip
SIZES = [(4, 4, 5, 7, 6, 3), (4, 2, 70, 131, 8, 5), (6, 2, 1, 70, 16, 16), (3, 1, 130, 66, 5, 9)]


def formula(query, key, value, o):
    """The plain formula in tensors: output and log-sum-exp."""
    H, L, S = query.shape[1], query.shape[2], key.shape[2]
    key, value = (x.repeat_interleave(H // x.shape[1], 1) for x in (key, value))
    scale = o.get("scale", 1 / math.sqrt(query.shape[3]))
    score = scale * query @ key.transpose(-1, -2)
    if "softcap" in o:
        score = o["softcap"] * torch.tanh(score / o["softcap"])
    distance = torch.arange(L)[:, None] + (S - L) - torch.arange(S)
    seen = torch.ones(L, S, dtype=torch.bool)
    if o.get("is_causal"):
        seen &= distance >= 0
    if "window_size" in o:
        left, right = o["window_size"]
        seen &= (distance <= left) & (distance >= -right)
    for name in ("bias", "attn_mask"):
        if name in o and o[name].dtype != torch.bool:
            score = score + o[name]
        elif name in o:
            seen = seen & o[name]
    if "alibi_slopes" in o:
        score = score - o["alibi_slopes"][:, None, None] * distance.abs()
    score = torch.where(seen, score, -torch.inf)
    if "sinks" in o:
        score = torch.cat([score, o["sinks"][:, None, None].expand(*score.shape[:-1], 1)], -1)
    lse = torch.logsumexp(score, -1)
    weights = torch.exp(score - lse[..., None])[..., :S]
    if "dropout_p" in o:
        mask = attnpy.dropout_mask(tuple(weights.shape), o["dropout_p"], o["rng"], dtype=np.float64)
        weights = weights * torch.from_numpy(mask)
    return weights @ value, lse


def assert_close(got, wanted, name, terms):
    """Sums of `terms` numbers about 1 in size: a tenth of what the accuracy rule would let two results be apart."""
    size = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=16 * (64 + terms) * 2.0**-52 * size, err_msg=name)


@pytest.mark.parametrize("option", FORMULA)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_plain_formula(sizes, option):
    H, G, L, S, E, D = sizes
    rng = np.random.default_rng(SIZES.index(sizes))
    given = dict(FORMULA[option])
    with_lse = given.pop("grad_lse", False)
    made = {"head": lambda: rng.random(H), "float": lambda: rng.normal(size=(H, L, S)),
            "bool": lambda: (rng.random((2, 1, L, S)) < 0.7) | (np.arange(S) == 0)}  # fmt: skip
    options = {name: made[x]() if isinstance(x, str) else x for name, x in given.items()}
    if L > S and options.keys() & {"is_causal", "window_size"}:  # rows that see nothing are NaN in theirs
        options["sinks"] = rng.random(H)
    operands = {"query": rng.normal(size=(2, H, L, E)), "key": rng.normal(size=(2, G, S, E)),
                "value": rng.normal(size=(2, G, S, D))}  # fmt: skip
    tensors = {
        name: torch.from_numpy(x).requires_grad_(x.dtype != bool) if isinstance(x, np.ndarray) else x
        for name, x in {**operands, **options}.items()
    }
    arrays = (tensors.pop(name) for name in ("query", "key", "value"))
    leaves = dict(zip(("query", "key", "value"), arrays))
    output, lse = formula(*leaves.values(), tensors)
    leaves |= {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    grad_output, grad_lse = rng.normal(size=output.shape), rng.normal(size=lse.shape)
    loss = (torch.from_numpy(grad_output) * output).sum()
    if with_lse:
        loss = loss + (torch.from_numpy(grad_lse) * lse).sum()
    wanted = dict(zip(leaves, torch.autograd.grad(loss, leaves.values())))
    ours, our_lse = attnpy.scaled_dot_product_attention(**operands, **options, return_lse=True)
    got = attnpy.scaled_dot_product_attention_backward(
        grad_output, **operands, output=ours, lse=our_lse, **options, grad_lse=grad_lse if with_lse else None,
        needs=tuple(leaves),
    )  # fmt: skip
    for name, gradient in wanted.items():
        terms = {"query": S, "alibi_slopes": 2 * L * S * S, "sinks": 2 * L}.get(name, L * H // G)
        assert_close(getattr(got, name), gradient.numpy(), f"{option} {sizes} {name}", terms)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_their_own_attention(sizes):
    """scaled_dot_product_attention of PyTorch, as it chooses to compute it, with enable_gqa."""
    H, G, L, S, E, D = sizes
    rng = np.random.default_rng(9)
    operands = [rng.normal(size=shape) for shape in ((2, H, L, E), (2, G, S, E), (2, G, S, D))]
    seen = (rng.random((L, S)) < 0.7) | (np.arange(S) == 0)
    tensors = [torch.from_numpy(x).requires_grad_() for x in operands]
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, torch.from_numpy(seen), enable_gqa=True)
    grad_output = rng.normal(size=theirs.shape)
    wanted = torch.autograd.grad(theirs, tensors, torch.from_numpy(grad_output))
    output, lse = attnpy.scaled_dot_product_attention(*operands, seen, return_lse=True)
    got = attnpy.scaled_dot_product_attention_backward(grad_output, *operands, output, lse, attn_mask=seen)
    for name, gradient in zip(("query", "key", "value"), wanted):
        assert_close(getattr(got, name), gradient.numpy(), name, max(S, L * H // G))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_weights(sizes):
    H, G, L, S, E, _ = sizes
    rng = np.random.default_rng(10)
    operands = [rng.normal(size=shape) for shape in ((2, H, L, E), (2, G, S, E))]
    tensors = [torch.from_numpy(x).requires_grad_() for x in operands]
    key = tensors[1].repeat_interleave(H // G, 1)
    weights = torch.softmax(tensors[0] @ key.transpose(-1, -2) / math.sqrt(E), -1)
    grad_weights = rng.normal(size=weights.shape)
    wanted = torch.autograd.grad(weights, tensors, torch.from_numpy(grad_weights))
    got = attnpy.attention_weights_backward(grad_weights, *operands)
    for name, gradient in zip(("query", "key"), wanted):
        assert_close(getattr(got, name), gradient.numpy(), name, max(S, L * H // G))
    rows = rng.integers(0, L, 2 * L)
    several = rng.normal(size=(2, H, 2 * L, S))
    added = np.zeros(grad_weights.shape)
    np.add.at(added, (..., rows, slice(None)), several)
    wanted = attnpy.attention_weights_backward(added, *operands)
    got = attnpy.attention_weights_backward(several, *operands, rows=rows)
    for name in ("query", "key"):
        assert_close(getattr(got, name), getattr(wanted, name), name, max(S, L * H // G))


def test_float32_errors_are_no_larger():
    """Against float64, both from their own forward: the largest errors of 12 cases are at most twice PyTorch's."""
    worst = np.zeros((2, 3))
    for seed in range(4):
        for L, S in ((9, 130), (130, 130), (66, 500)):
            rng = np.random.default_rng(seed)
            operands = [rng.standard_normal((2, 4, n, 64), np.float32) for n in (L, S, S)]
            grad_output = rng.standard_normal((2, 4, L, 64), np.float32)

            def theirs(dtype, operands=operands, grad_output=grad_output):
                tensors = [torch.from_numpy(x).to(dtype).requires_grad_() for x in operands]
                output = torch.nn.functional.scaled_dot_product_attention(*tensors)
                found = torch.autograd.grad(output, tensors, torch.from_numpy(grad_output).to(dtype))
                return [x.numpy().astype(np.float64) for x in found]

            exact, single = theirs(torch.float64), theirs(torch.float32)
            output, lse = attnpy.scaled_dot_product_attention(*operands, return_lse=True)
            ours = attnpy.scaled_dot_product_attention_backward(grad_output, *operands, output, lse)[:3]
            for n, both in enumerate((ours, single)):
                errors = [np.abs(x - y).max() for x, y in zip(both, exact)]
                worst[n] = np.maximum(worst[n], errors)
    assert (worst[0] <= 2 * worst[1]).all(), worst
