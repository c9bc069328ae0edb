"""Attention and its derivative along a direction, in one call."""

import numpy as np
import peers
from cases import Attention
from harness import Row, Work

import attnpy


def rows():
    yield jvp(Attention(H=8, L=2048))
    yield jvp(Attention(H=12, L=1024, causal=True))
    yield jvp(Attention(H=8, L=2048, dtype="float64"))


def jvp(case):
    """Three times the products of the forward: dq . k, q . dk and sums of dv and of ds v beside it. Fresh outputs."""

    def prepare(wanted):
        operands = case.operands()[0]
        direction = [x[..., ::-1, :].copy() for x in operands]
        keywords, (visible, computed) = case.keywords(), case.flops()
        found = {}
        if case.dtype == "float32":
            found = {"torch": torch_jvp, "numpy": numpy_jvp, "jax": jax_jvp}
        return Work(
            ours=lambda: attnpy.scaled_dot_product_attention_jvp(*operands, *direction, **keywords)[1],
            flops=3 * visible,
            computed=3 * computed,
            dtype=case.compute,
            head_dim=case.D,
            beside={"forward": lambda: attnpy.scaled_dot_product_attention(*operands, **keywords)},
            peers={name: make(case, operands, direction) for name, make in found.items() if name in wanted},
            tolerance=1e-3,
        )

    return Row("scaled_dot_product_attention_jvp", case.name, prepare)


def torch_jvp(case, operands, direction):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    operands, direction = tuple(map(peers.tensor, operands)), tuple(map(peers.tensor, direction))

    def forward(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=case.causal)

    def call():
        with sdpa_kernel(SDPBackend.MATH):  # the only one that has a forward mode
            return torch.func.jvp(forward, operands, direction)[1].numpy()

    return call


def jax_jvp(case, operands, direction):
    import jax
    import jax.numpy as jnp

    def forward(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=case.causal)

    run = jax.jit(lambda operands, direction: jax.jvp(forward, operands, direction))
    given = [tuple(jnp.asarray(x.swapaxes(1, 2).copy()) for x in arrays) for arrays in (operands, direction)]
    return lambda: run(*given)[1].block_until_ready().swapaxes(1, 2)


def numpy_jvp(case, operands, direction):
    """What NumPy users write: the weights, then the chain rule."""
    (query, key, value), (dq, dk, dv) = operands, direction
    scale, mask = np.float32(case.D**-0.5), case.dense()[0]

    def call():
        weights = (query * scale) @ key.swapaxes(-1, -2)
        if mask is not None:
            np.copyto(weights, -np.inf, where=~mask)
        weights -= weights.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
        moved = (dq * scale) @ key.swapaxes(-1, -2) + (query * scale) @ dk.swapaxes(-1, -2)
        moved -= (weights * moved).sum(-1, keepdims=True)
        moved *= weights
        return weights @ dv + moved @ value

    return call
