"""Softmax, log_softmax, logsumexp, their gradients: bound by memory, so measured beside copies and reads of their own
arrays."""

import numpy as np
import peers
from cases import stored
from harness import Row, Work

import attnpy

GOAL = ("memcpy", 0.90)


def named(shape, dtype, *words):
    return " ".join(("x".join(map(str, shape)), dtype, *words))


def scores(shape, dtype):
    return (4 * np.random.default_rng(1).standard_normal(shape, np.float32)).astype(stored(dtype))


def numpy_softmax(x, axis=-1):
    wide = x.astype(np.float32)
    wide -= wide.max(axis, keepdims=True)
    np.exp(wide, out=wide)
    wide /= wide.sum(axis, keepdims=True)
    return wide.astype(x.dtype, copy=False)


def numpy_log_softmax(x):
    y = x - x.max(-1, keepdims=True)
    y -= np.log(np.exp(y).sum(-1, keepdims=True))
    return y


def numpy_logsumexp(x, axis=-1):
    top = x.max(axis, keepdims=True)
    return np.squeeze(top + np.log(np.exp(x - top).sum(axis, keepdims=True)), axis)


def softmax(shape, dtype="float32", axis=-1, goal=GOAL):
    def prepare(wanted):
        x = scores(shape, dtype)
        out = np.empty_like(x)
        onnx = ("Softmax", {"axis": axis}, len(shape)) if dtype != "bfloat16" else None
        compared = peers.elementwise(
            x,
            wanted,
            torch=lambda t: t.softmax(axis),
            numpy=lambda x: numpy_softmax(x, axis),
            onnx=onnx,
            jax=jax_function("softmax", axis),
        )
        return Work(
            ours=lambda: attnpy.softmax(x, axis, out=out),
            bytes=2 * x.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers=compared,
            tolerance=1e-4 if dtype == "float32" else 1e-2,
        )

    return Row("softmax", named(shape, dtype, f"axis {axis}", "out="), prepare, goal)


def masked_softmax(shape):
    def prepare(wanted):
        x = scores(shape, "float32")
        keep = np.random.default_rng(2).random(shape) < 0.9
        out = np.empty_like(x)

        def numpy():
            return numpy_softmax(np.where(keep, x, np.float32(-np.inf)))

        return Work(
            ours=lambda: attnpy.softmax(x, where=keep, out=out),
            bytes=2 * x.nbytes + keep.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers={"numpy": numpy} if "numpy" in wanted else {},
            tolerance=1e-5,
        )

    return Row("softmax", named(shape, "float32", "where", "out="), prepare)


def log_softmax(shape):
    def prepare(wanted):
        x = scores(shape, "float32")
        out = np.empty_like(x)
        compared = peers.elementwise(
            x,
            wanted,
            torch=lambda t: t.log_softmax(-1),
            numpy=numpy_log_softmax,
            onnx=("LogSoftmax", {"axis": -1}, len(shape)),
            jax=jax_function("log_softmax", -1),
        )
        return Work(
            ours=lambda: attnpy.log_softmax(x, out=out),
            bytes=2 * x.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers=compared,
            tolerance=1e-4,
        )

    return Row("log_softmax", named(shape, "float32", "out="), prepare, GOAL)


def logsumexp(shape, axis=-1):
    def prepare(wanted):
        x = scores(shape, "float32")
        compared = peers.elementwise(
            x,
            wanted,
            torch=lambda t: t.logsumexp(axis),
            numpy=lambda x: numpy_logsumexp(x, axis),
            onnx=("ReduceLogSumExp", {"axes": [axis], "keepdims": 0}, len(shape) - 1),
            jax=jax_function("logsumexp", axis),
        )
        return Work(
            ours=lambda: attnpy.logsumexp(x, axis),
            bytes=x.nbytes,
            yardsticks=("read",),
            memory=[(x,)],
            peers=compared,
            tolerance=1e-4,
        )

    return Row("logsumexp", named(shape, "float32", f"axis {axis}"), prepare)


def numpy_softmax_backward(grad, output, axis):
    return output * (grad - (grad * output).sum(axis, keepdims=True))


def numpy_log_softmax_backward(grad, output, axis):
    return grad - np.exp(output) * grad.sum(axis, keepdims=True)


def numpy_logsumexp_backward(grad, x, output):
    return grad[..., None] * np.exp(x - output[..., None])


def softmax_backward(shape, dtype="float32", axis=-1, goal=GOAL):
    prepare = backward("softmax", numpy_softmax_backward, shape, dtype, axis)
    return Row("softmax_backward", named(shape, dtype, f"axis {axis}", "out="), prepare, goal)


def log_softmax_backward(shape):
    prepare = backward("log_softmax", numpy_log_softmax_backward, shape, "float32", -1)
    return Row("log_softmax_backward", named(shape, "float32", "out="), prepare, GOAL)


def backward(forward, formula, shape, dtype, axis):
    """Two arrays read, one written; beside PyTorch's autograd, whose forward runs outside."""

    def prepare(wanted):
        x, grad = (
            scores(shape, dtype),
            np.random.default_rng(2).standard_normal(shape, np.float32).astype(stored(dtype)),
        )
        output, out = getattr(attnpy, forward)(x, axis), np.empty_like(x)
        function = getattr(attnpy, f"{forward}_backward")
        compared = {"numpy": lambda: formula(grad, output, axis)} if "numpy" in wanted and dtype == "float32" else {}
        if "torch" in wanted:
            compared["torch"] = peers.torch_backward(lambda t: getattr(t, forward)(axis), [x], grad)
        return Work(
            ours=lambda: function(grad, output, axis, out=out),
            bytes=3 * x.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers=compared,
            tolerance=1e-3 if dtype == "float32" else 6e-2,
        )

    return prepare


def logsumexp_backward(shape):
    """One array read, one written."""

    def prepare(wanted):
        x, grad = scores(shape, "float32"), np.random.default_rng(2).standard_normal(shape[:-1], np.float32)
        output, out = attnpy.logsumexp(x), np.empty_like(x)
        compared = {"numpy": lambda: numpy_logsumexp_backward(grad, x, output)} if "numpy" in wanted else {}
        if "torch" in wanted:
            compared["torch"] = peers.torch_backward(lambda t: t.logsumexp(-1), [x], grad)
        return Work(
            ours=lambda: attnpy.logsumexp_backward(grad, x, output, out=out),
            bytes=2 * x.nbytes,
            yardsticks=("memcpy",),
            memory=[(x, np.empty_like(x))],
            peers=compared,
            tolerance=1e-4,
        )

    return Row("logsumexp_backward", named(shape, "float32", "axis -1", "out="), prepare, GOAL)


def jax_function(name, axis):
    def call(x):
        import jax

        return getattr(jax.nn, name)(x, axis)

    return call


def rows():
    yield softmax((4096, 4096))
    yield softmax((12, 512, 512))
    yield softmax((4096, 4096), "float16", goal=None)
    yield softmax((4096, 4096), "bfloat16", goal=None)
    yield softmax((4096, 4096), axis=0, goal=None)
    yield masked_softmax((4096, 4096))
    yield log_softmax((4096, 4096))
    yield logsumexp((4096, 4096))
    yield logsumexp((4096, 4096), axis=0)
    for shape in ((4096, 4096), (12, 512, 512)):
        yield softmax_backward(shape)
        yield log_softmax_backward(shape)
    yield softmax_backward((4096, 4096), "bfloat16", goal=None)
    yield softmax_backward((4096, 4096), axis=0, goal=None)
    yield logsumexp_backward((4096, 4096))
