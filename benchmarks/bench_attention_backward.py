"""Gradients of attention: the backward pass over the shapes of models, one or two cores, a dense bias; of weights.

The backward pass is five products of 2 D operations for each visible score. Every library gets what its forward kept;
the forward itself runs outside the timing.
"""

import dataclasses
import math

import numpy as np
import peers
from cases import Attention
from harness import Row, Work

import attnpy

PRODUCTS = 5 / 2  # of the forward's operations


class Backward:
    """The arrays of one case: operands, what the forward gave, a gradient; the operations that the gradients take."""

    def __init__(self, case):
        rng = np.random.default_rng(3)
        self.case, self.operands, self.keywords = case, case.operands()[0], case.keywords()
        self.output, self.lse = attnpy.scaled_dot_product_attention(*self.operands, **self.keywords, return_lse=True)
        self.grad = rng.standard_normal(self.output.shape, np.float32).astype(self.output.dtype)
        self.visible, self.computed = (PRODUCTS * n for n in case.flops())

    def __call__(self, **more):
        return attnpy.scaled_dot_product_attention_backward(
            self.grad, *self.operands, self.output, self.lse, **self.keywords, **more
        )

    def work(self, ours, **more):
        return Work(
            ours=ours,
            flops=self.visible,
            computed=self.computed,
            dtype=self.case.compute,
            head_dim=self.case.D,
            **more,
        )

    def compared(self, wanted):
        """PyTorch's autograd of scaled_dot_product_attention; NumPy's formula."""
        calls = {}
        if "torch" in wanted:
            calls["torch"] = peers.prepared(peers.torch_attention_backward, self.case, [(*self.operands, self.grad)])
        if "numpy" in wanted and not self.case.window and self.case.H == self.case.G:
            calls["numpy"] = peers.prepared(peers.numpy_attention_backward, self.case, [(*self.operands, self.grad)])
        return calls


def backward(case, goal=None):
    """Fresh gradients of query, key and value for all, as a user calls it. Compared by the query's."""

    def prepare(wanted):
        made = Backward(case)
        tolerance = {"float64": 1e-5, "float32": 1e-3}[case.dtype]
        return made.work(lambda: made().query, peers=made.compared(wanted), tolerance=tolerance)

    return Row("scaled_dot_product_attention_backward", case.name, prepare, goal)


def two_cores(case, goal):
    """How much the second core brings."""

    def prepare(wanted):
        made = Backward(case)

        def single():
            with attnpy.num_threads(1):
                return made()

        return made.work(made, beside={"one core": single})

    return Row("scaled_dot_product_attention_backward", case.name + ", all cores beside one", prepare, goal)


def dense_bias(case, goal):
    """With the gradient of a bias (H, L, S), beside the same call without it."""

    def prepare(wanted):
        made = Backward(dataclasses.replace(case, biased=True))

        def ours():
            return made(needs=("query", "key", "value", "bias")).query

        return made.work(ours, beside={"without": lambda: made()}, peers=made.compared(wanted), tolerance=1e-3)

    name = f"{dataclasses.replace(case, biased=True).name}, gradient of the bias"
    return Row("scaled_dot_product_attention_backward", name, prepare, goal)


def by_distance(case, goal):
    """With the gradient of relative_bias, beside the same call without the bias."""

    def prepare(wanted):
        made, plain = Backward(case), Backward(dataclasses.replace(case, relative=0))

        def ours():
            return made(needs=("query", "key", "value", "relative_bias")).query

        return made.work(ours, beside={"plain": lambda: plain()})

    name = f"{case.name}, gradient of relative_bias"
    return Row("scaled_dot_product_attention_backward", name, prepare, goal)


def weights(case, rows=None):
    """Scores again, dS, and two products: three of 2 D operations."""

    def prepare(wanted):
        query, key, _ = case.operands()[0]
        count = rows or case.L
        chosen = None if rows is None else np.linspace(0, case.L - 1, rows).astype(int)
        shape = (case.B, case.H, count, case.S)
        grad = np.random.default_rng(3).standard_normal(shape, np.float32)

        scale = 1 / math.sqrt(case.D)

        def forward(query, key):
            taken = query if chosen is None else query[:, :, chosen]
            return ((taken * scale) @ key.mT).softmax(-1)

        return Work(
            ours=lambda: attnpy.attention_weights_backward(grad, query, key, rows=chosen).query,
            flops=1.5 * case.flops()[0] * count / case.L,
            head_dim=case.D,
            peers={"torch": peers.torch_backward(forward, [query, key], grad)} if "torch" in wanted else {},
            tolerance=1e-3,
        )

    name = case.name if rows is None else f"{case.name}, {rows} rows"
    return Row("attention_weights_backward", name, prepare)


def rows():
    yield backward(Attention(H=12, L=1024, causal=True), ("fma", 0.76))
    yield backward(Attention(H=8, L=4096), ("fma", 0.85))
    yield backward(Attention(H=8, L=4096, D=128), ("fma", 0.82))
    yield backward(Attention(B=8, H=12, L=128), ("fma", 0.65))
    yield backward(Attention(H=32, shared=8, L=1024, D=128, causal=True))
    yield two_cores(Attention(H=32, shared=8, L=1024, D=128, causal=True), ("one core", 1.85))
    yield two_cores(Attention(H=1, L=4096, causal=True), ("one core", 1.85))
    yield backward(Attention(H=1, L=4096, causal=True))
    yield backward(Attention(H=8, L=8192, causal=True, window=(255, 0)), ("fma", 0.55))
    yield backward(Attention(H=8, L=2048, dtype="float64"), ("fma", 0.70))
    yield backward(Attention(H=8, L=3000))
    yield dense_bias(Attention(H=8, L=1024), ("without", 1 / 1.3))
    yield by_distance(Attention(H=8, L=2048, relative=128), ("plain", 1 / 1.12))
    yield by_distance(Attention(H=8, L=2048, relative=2047), ("plain", 1 / 1.12))
    yield weights(Attention(H=12, L=512))
    yield weights(Attention(H=12, L=1024), 64)
