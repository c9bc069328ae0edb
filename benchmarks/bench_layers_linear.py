"""The linear layer: packed and plain weights, many rows and few, beside NumPy's product and PyTorch's linear."""

import numpy as np
import peers
from cases import stored
from harness import Row, Work

import attnpy


def operands(rows, inputs, outputs, dtype, sets=1):
    """x, and weights and biases of so many layers."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, inputs), np.float32).astype(stored(dtype))
    weight = (rng.standard_normal((outputs, inputs), np.float32) / inputs**0.5).astype(stored(dtype))
    bias = rng.standard_normal(outputs, np.float32).astype(stored(dtype))
    return x, [weight.copy() for _ in range(sets)], bias


def torch_linear(x, weight, bias, activation=None):
    import torch

    x, weight, bias = peers.tensor(x), peers.tensor(weight), peers.tensor(bias)
    functions = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}

    def call():
        with torch.inference_mode():
            y = torch.nn.functional.linear(x, weight, bias)
            return peers.as_numpy(functions[activation](y) if activation else y)

    return call


def linear(rows, inputs, outputs, dtype="float32", storage=None, activation=None, layers=1, goal=None):
    """storage: what the weights are packed as; None: they are plain. Several layers are taken in turn, each cold."""
    words = ["plain" if storage is None else f"packed {storage}", *([activation] if activation else [])]
    words += [f"{layers} layers"] if layers > 1 else []

    def prepare(wanted):
        x, weights, bias = operands(rows, inputs, outputs, dtype, layers)
        taken = [w if storage is None else attnpy.PackedWeight(w, storage) for w in weights]
        out = np.empty((rows, outputs), x.dtype)
        compared = {}
        if "numpy" in wanted and dtype in ("float32", "float64") and not activation:
            compared["numpy"] = [lambda w=w: np.add(x @ w.T, bias) for w in weights]
        if "torch" in wanted:
            compared["torch"] = [torch_linear(x, w, bias, activation) for w in weights]
        few = rows <= 8
        return Work(
            ours=[lambda w=w: attnpy.linear(x, w, bias, activation=activation, out=out) for w in taken],
            flops=0 if few else 2 * rows * inputs * outputs,
            computed=2 * rows * inputs * outputs,
            bytes=taken[0].nbytes if few else 0,
            dtype="float64" if dtype == "float64" else "float32",
            yardsticks=("read",) if few else ("fma",),
            memory=[(w._core_panels[1] if storage else w,) for w in taken] if few else (),
            peers=compared,
            tolerance=None
            if storage == "int8"
            else 1e-3
            if dtype == "float32"
            else 5e-2
            if dtype != "float64"
            else 1e-9,
        )

    return Row("linear", " ".join((f"{rows}x{inputs}->{outputs} {dtype}", *words)), prepare, goal)


def packing(inputs, outputs, storage):
    def prepare(wanted):
        _, (weight,), _ = operands(1, inputs, outputs, "float32")
        return Work(
            ours=lambda: attnpy.PackedWeight(weight, storage).nbytes,
            bytes=2 * weight.nbytes,
            yardsticks=("memcpy",),
            memory=[(weight, np.empty_like(weight))],
        )

    return Row("PackedWeight", f"{inputs}->{outputs} {storage}", prepare)


def backward(rows, inputs, outputs, activation=None):
    """Two products, three with an activation; PyTorch keeps z and its forward runs outside."""

    def prepare(wanted):
        x, (weight,), bias = operands(rows, inputs, outputs, "float32")
        grad = np.random.default_rng(2).standard_normal((rows, outputs), np.float32)
        kept = attnpy.linear(x, weight, bias) if activation else None
        compared = {}
        if "numpy" in wanted and not activation:
            compared["numpy"] = lambda: (grad @ weight, grad.T @ x)[0]
        if "torch" in wanted:
            import torch

            def forward(x, weight):
                y = torch.nn.functional.linear(x, weight, peers.tensor(bias))
                return torch.nn.functional.gelu(y) if activation else y

            compared["torch"] = peers.torch_backward(forward, [x, weight], grad)
        return Work(
            ours=lambda: attnpy.linear_backward(grad, x, weight, bias, activation=activation, preactivation=kept).x,
            flops=4 * rows * inputs * outputs,
            yardsticks=("fma",),
            peers=compared,
            tolerance=1e-2,
        )

    words = [f"{rows}x{inputs}->{outputs} float32", *([activation, "z kept"] if activation else [])]
    return Row("linear_backward", " ".join(words), prepare)


def rows():
    yield linear(128, 384, 1536, storage="float32", goal=("fma", 0.85))
    yield linear(1024, 384, 1536, storage="float32", goal=("fma", 0.88))
    for count in (128, 1024):
        yield linear(count, 384, 1536)
    yield linear(512, 768, 3072, storage="float32")
    yield linear(512, 768, 3072, storage="float32", activation="gelu")
    yield linear(1024, 1536, 384, storage="float32")
    yield linear(1024, 384, 1536, "float64", storage="float64")
    yield linear(1024, 384, 1536, "float16", storage="float16")
    yield linear(1024, 384, 1536, "bfloat16", storage="bfloat16")
    yield linear(1024, 384, 1536, storage="int8")
    for count in (1, 8):
        yield linear(count, 384, 1536, storage="float32", goal=("read", 0.85))
        yield linear(count, 384, 1536)
        yield linear(count, 768, 3072, storage="float32", layers=24, goal=("read", 0.85))
        yield linear(count, 768, 3072, layers=24)
    yield linear(1, 768, 3072, storage="float16", layers=24)
    yield linear(1, 768, 3072, storage="int8", layers=24)
    yield packing(768, 3072, "float32")
    yield packing(768, 3072, "int8")
    yield backward(1024, 384, 1536)
    yield backward(512, 768, 3072, "gelu")
