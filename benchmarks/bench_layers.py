"""Activations, norms, embeddings, cross entropy, and their gradients: bound by memory, so measured beside copies of
their own arrays."""

import math
from dataclasses import replace

import numpy as np
import peers
from cases import stored
from harness import Row, Work

import attnpy

GOAL = ("memcpy", 0.90)


def named(shape, dtype, *words):
    return " ".join(("x".join(map(str, shape)), dtype, *words))


def numbers(shape, dtype="float32", seed=1):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(stored(dtype))


def measured(ours, moved, arrays, compared, wanted, dtype):
    return Work(
        ours=ours,
        bytes=moved,
        yardsticks=("memcpy",),
        memory=arrays,
        peers={name: call for name, call in compared.items() if name in wanted},
        tolerance=1e-4 if dtype == "float32" else 4e-2,
    )


def torch_call(function, *arrays):
    """function(torch.nn.functional, tensors) without gradients."""
    tensors = [peers.tensor(x) for x in arrays]

    def call():
        import torch

        with torch.inference_mode():
            return peers.as_numpy(function(torch.nn.functional, *tensors))

    return call


def numpy_norm(x, weight, bias=None):
    centred = x - x.mean(-1, keepdims=True) if bias is not None else x
    y = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(1e-5)) * weight
    return y if bias is None else y + bias


def layer_norm(shape, dtype="float32", goal=GOAL):
    def prepare(wanted):
        x, out = numbers(shape, dtype), numbers(shape, dtype)
        weight, bias = 1 + numbers(shape[-1:], seed=2) / 8, numbers(shape[-1:], seed=3)
        row = [peers.tensor(v.astype(x.dtype)) for v in (weight, bias)] if "torch" in wanted else []
        compared = {"torch": torch_call(lambda F, t: F.layer_norm(t, shape[-1:], *row), x)} if row else {}
        if dtype == "float32":
            compared["numpy"] = lambda: numpy_norm(x, weight, bias)
        moved, arrays = 2 * x.nbytes, [(x, out.copy())]
        return measured(lambda: attnpy.layer_norm(x, weight, bias, out=out), moved, arrays, compared, wanted, dtype)

    return Row("layer_norm", named(shape, dtype, "out="), prepare, goal)


def rms_norm(shape, dtype="float32"):
    def prepare(wanted):
        x, out, weight = numbers(shape, dtype), numbers(shape, dtype), 1 + numbers(shape[-1:], seed=2) / 8
        compared = {"numpy": lambda: numpy_norm(x, weight)}
        if "torch" in wanted:
            row = peers.tensor(weight)
            compared["torch"] = torch_call(lambda F, t: F.rms_norm(t, shape[-1:], row, 1e-5), x)
        moved, arrays = 2 * x.nbytes, [(x, out.copy())]
        return measured(lambda: attnpy.rms_norm(x, weight, out=out), moved, arrays, compared, wanted, dtype)

    return Row("rms_norm", named(shape, dtype, "out="), prepare, GOAL)


def layer_norm_backward(shape):
    """Two arrays read, one written."""
    prepare = norm_backward(shape, attnpy.layer_norm_backward, lambda F, t, w: F.layer_norm(t, shape[-1:], w), 3)
    return Row("layer_norm_backward", named(shape, "float32", "out="), prepare)


def rms_norm_backward(shape):
    prepare = norm_backward(shape, attnpy.rms_norm_backward, lambda F, t, w: F.rms_norm(t, shape[-1:], w, 1e-5), 2)
    return Row("rms_norm_backward", named(shape, "float32", "out="), prepare)


def norm_backward(shape, function, forward, results):
    def prepare(wanted):
        x, grad, out = (numbers(shape, seed=seed) for seed in (1, 2, 3))
        weight = 1 + numbers(shape[-1:], seed=4) / 8
        places = (out, *[None] * (results - 1))
        compared = {}
        if "torch" in wanted:
            import torch

            compared["torch"] = peers.torch_backward(
                lambda t, w: forward(torch.nn.functional, t, w), [x, weight], grad
            )  # fmt: skip
        moved, arrays = 3 * x.nbytes, [(x, out.copy())]
        return measured(
            lambda: function(grad, x, weight, out=places)[0], moved, arrays, compared, wanted, "float32"
        )  # fmt: skip

    return prepare


def numpy_gelu(x, approximate="tanh"):
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def numpy_silu(x):
    return x / (1 + np.exp(-x))


def numpy_relu(x):
    return np.maximum(x, 0)


def gelu(shape, dtype="float32", approximate="none", goal=GOAL):
    formula = numpy_gelu if approximate == "tanh" else None
    return activation("gelu", shape, dtype, goal, formula, approximate=approximate)


def silu(shape):
    return activation("silu", shape, "float32", GOAL, numpy_silu)


def relu(shape):
    return activation("relu", shape, "float32", GOAL, numpy_relu)


def activation(name, shape, dtype, goal, formula, **options):
    def prepare(wanted):
        x, out = numbers(shape, dtype), numbers(shape, dtype)
        compared = {"numpy": lambda: formula(x)} if formula and dtype == "float32" else {}
        if "torch" in wanted:
            compared["torch"] = torch_call(lambda F, t: getattr(F, name)(t, **options), x)
        function = getattr(attnpy, name)
        moved, arrays = 2 * x.nbytes, [(x, out.copy())]
        return measured(lambda: function(x, **options, out=out), moved, arrays, compared, wanted, dtype)

    rows = {"gelu": lambda *rest: Row("gelu", *rest), "silu": lambda *rest: Row("silu", *rest)}
    row = rows.get(name, lambda *rest: Row("relu", *rest))
    return row(named(shape, dtype, *options.values(), "out="), prepare, goal)


def gelu_backward(shape):
    return Row("gelu_backward", named(shape, "float32", "out="), activation_backward("gelu", shape), GOAL)


def silu_backward(shape):
    return Row("silu_backward", named(shape, "float32", "out="), activation_backward("silu", shape), GOAL)


def relu_backward(shape):
    return Row("relu_backward", named(shape, "float32", "out="), activation_backward("relu", shape), GOAL)


def activation_backward(name, shape):
    def prepare(wanted):
        x, grad, out = (numbers(shape, seed=seed) for seed in (1, 2, 3))
        function, compared = getattr(attnpy, f"{name}_backward"), {}
        if "torch" in wanted:
            import torch

            compared["torch"] = peers.torch_backward(getattr(torch.nn.functional, name), [x], grad)
        moved, arrays = 3 * x.nbytes, [(x, out.copy())]
        return measured(lambda: function(grad, x, out=out), moved, arrays, compared, wanted, "float32")

    return prepare


def swiglu(shape):
    """Of one array: the gate and what it opens, as one projection gives them."""
    return Row("swiglu", named(shape, "float32", "halves", "out="), gated("swiglu", shape, "silu", numpy_silu), GOAL)


def geglu(shape):
    return Row("geglu", named(shape, "float32", "halves", "out="), gated("geglu", shape, "gelu", None), GOAL)


def gated(name, shape, opened, formula):
    def prepare(wanted):
        x, out, half = numbers((*shape[:-1], 2 * shape[-1])), numbers(shape), shape[-1]
        compared = {"numpy": lambda: formula(x[..., :half]) * x[..., half:]} if formula else {}
        if "torch" in wanted:
            compared["torch"] = torch_call(lambda F, t: getattr(F, opened)(t[..., :half]) * t[..., half:], x)
        function = getattr(attnpy, name)
        moved, arrays = 3 * out.nbytes, [(x, x.copy())]
        return measured(lambda: function(x, out=out), moved, arrays, compared, wanted, "float32")

    return prepare


def swiglu_backward(shape):
    return Row("swiglu_backward", named(shape, "float32", "halves", "out="), gated_backward("swiglu", shape, "silu"))


def geglu_backward(shape):
    return Row("geglu_backward", named(shape, "float32", "halves", "out="), gated_backward("geglu", shape, "gelu"))


def gated_backward(name, shape, opened):
    def prepare(wanted):
        x, grad, half = numbers((*shape[:-1], 2 * shape[-1])), numbers(shape, seed=2), shape[-1]
        out, function, compared = x.copy(), getattr(attnpy, f"{name}_backward"), {}
        if "torch" in wanted:
            import torch

            f = getattr(torch.nn.functional, opened)
            compared["torch"] = peers.torch_backward(lambda t: f(t[..., :half]) * t[..., half:], [x], grad)
        moved, arrays = 5 * grad.nbytes, [(x, x.copy())]
        return measured(lambda: function(grad, x, out=out), moved, arrays, compared, wanted, "float32")

    return prepare


def embedding(V, D, count):
    def prepare(wanted):
        table, indices = numbers((V, D)), np.random.default_rng(2).integers(0, V, count)
        out = np.empty((count, D), np.float32)
        compared = {"numpy": lambda: table.take(indices, 0)}
        if "torch" in wanted:
            compared["torch"] = torch_call(lambda F, t, i: F.embedding(i, t), table, indices)
        moved, arrays = 2 * out.nbytes, [(out, out.copy())]
        return measured(lambda: attnpy.embedding(indices, table, out=out), moved, arrays, compared, wanted, "float32")

    return Row("embedding", f"{count} of {V}x{D} float32 out=", prepare)


def embedding_backward(V, D, count):
    def prepare(wanted):
        grad, indices = numbers((count, D)), np.random.default_rng(2).integers(0, V, count)
        out = np.empty((V, D), np.float32)

        def numpy():
            out[...] = 0
            np.add.at(out, indices, grad)
            return out

        moved, arrays = grad.nbytes + out.nbytes, [(grad, grad.copy())]
        given = np.empty_like(out)
        return measured(
            lambda: attnpy.embedding_backward(grad, indices, V, out=given), moved, arrays, {"numpy": numpy}, wanted,
            "float32",
        )  # fmt: skip

    return Row("embedding_backward", f"{count} of {V}x{D} float32 out=", prepare)


def cross_entropy(rows, V):
    def prepare(wanted):
        logits, targets = numbers((rows, V)), np.random.default_rng(2).integers(0, V, rows)
        compared = {}
        if "torch" in wanted:
            compared["torch"] = torch_call(lambda F, x, t: F.cross_entropy(x, t), logits, targets)
        work = measured(
            lambda: attnpy.cross_entropy(logits, targets), logits.nbytes, [(logits,)], compared, wanted, "float32"
        )  # fmt: skip
        return replace(work, yardsticks=("read",))

    return Row("cross_entropy", named((rows, V), "float32"), prepare)


def cross_entropy_backward(rows, V):
    def prepare(wanted):
        logits, targets = numbers((rows, V)), np.random.default_rng(2).integers(0, V, rows)
        out, one = np.empty_like(logits), np.float32(1)
        compared = {}
        if "torch" in wanted:
            import torch

            there = torch.from_numpy(targets)
            compared["torch"] = peers.torch_backward(
                lambda x: torch.nn.functional.cross_entropy(x, there), [logits], np.ones((), np.float32)
            )
        moved, arrays = 2 * logits.nbytes, [(logits, logits.copy())]
        return measured(
            lambda: attnpy.cross_entropy_backward(one, logits, targets, out=out), moved, arrays, compared, wanted,
            "float32",
        )  # fmt: skip

    return Row("cross_entropy_backward", named((rows, V), "float32", "out="), prepare)


def rows():
    tokens = (8192, 1024)
    yield layer_norm(tokens)
    yield layer_norm((1024, 768))
    yield layer_norm(tokens, "float16", goal=None)
    yield rms_norm(tokens)
    yield layer_norm_backward(tokens)
    yield rms_norm_backward(tokens)
    yield gelu(tokens)
    yield gelu(tokens, approximate="tanh")
    yield gelu(tokens, "bfloat16", goal=None)
    yield silu(tokens)
    yield relu(tokens)
    yield gelu_backward(tokens)
    yield silu_backward(tokens)
    yield relu_backward(tokens)
    yield swiglu((4096, 2048))
    yield geglu((4096, 2048))
    yield swiglu_backward((4096, 2048))
    yield geglu_backward((4096, 2048))
    yield embedding(50257, 768, 8192)
    yield embedding_backward(50257, 768, 8192)
    yield cross_entropy(1024, 50257)
    yield cross_entropy_backward(1024, 50257)
