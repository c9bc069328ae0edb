"""Activations, norms, embeddings and cross entropy beside PyTorch and ONNX Runtime, on the same inputs."""

import numpy as np
import pytest

import attnpy

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")
X = np.random.default_rng(1).standard_normal((3, 5, 12))
G = np.random.default_rng(2).standard_normal((3, 5, 12))
ROW, BIAS = np.random.default_rng(3).standard_normal((2, 12))


def close(got, wanted):
    """float64: a few roundings of numbers of size 1, which PyTorch does in another order."""
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-13)


def of_torch(function, *arrays):
    """The result, and the gradients by the arrays where that of the result is G, cut to its shape."""
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    result = function(*tensors)
    grad = G[..., : result.shape[-1]] if result.ndim else np.float64(1.5)
    result.backward(torch.tensor(grad))
    return result.detach().numpy(), [t.grad.numpy() for t in tensors], grad


ACTIVATIONS = [
    (attnpy.gelu, attnpy.gelu_backward, F.gelu, {}),
    (attnpy.gelu, attnpy.gelu_backward, F.gelu, {"approximate": "tanh"}),
    (attnpy.silu, attnpy.silu_backward, F.silu, {}),
    (attnpy.relu, attnpy.relu_backward, F.relu, {}),
]


@pytest.mark.parametrize(("ours", "backward", "theirs", "options"), ACTIVATIONS)
def test_activations(ours, backward, theirs, options):
    y, (grad_x,), grad = of_torch(lambda x: theirs(x, **options), X)
    close(ours(X, **options), y)
    close(backward(grad, X, **options), grad_x)


@pytest.mark.parametrize(("ours", "backward", "opened"), [
    (attnpy.swiglu, attnpy.swiglu_backward, F.silu),
    (attnpy.geglu, attnpy.geglu_backward, F.gelu),
])  # fmt: skip
def test_gates(ours, backward, opened):
    y, (grad_x,), grad = of_torch(lambda x: opened(x[..., :6]) * x[..., 6:], X)
    close(ours(X), y)
    close(backward(grad, X), grad_x)
    y, grads, grad = of_torch(lambda x, gate: x * opened(gate), X, G)
    close(ours(X, G), y)
    for mine, their in zip(backward(grad, X, G), grads, strict=True):
        close(mine, their)


def test_norms():
    y, grads, grad = of_torch(lambda x, w, b: F.layer_norm(x, (12,), w, b, 1e-3), X, ROW, BIAS)
    close(attnpy.layer_norm(X, ROW, BIAS, eps=1e-3), y)
    for mine, their in zip(attnpy.layer_norm_backward(grad, X, ROW, eps=1e-3), grads, strict=True):
        close(mine, their)
    y, grads, grad = of_torch(lambda x, w: F.rms_norm(x, (12,), w, 1e-3), X, ROW)
    close(attnpy.rms_norm(X, ROW, eps=1e-3), y)
    for mine, their in zip(attnpy.rms_norm_backward(grad, X, ROW, eps=1e-3), grads, strict=True):
        close(mine, their)
    y, grads, grad = of_torch(lambda x: F.layer_norm(x, (5, 12)), X)
    close(attnpy.layer_norm(X, axis=(1, 2)), y)
    close(attnpy.layer_norm_backward(grad, X, axis=(1, 2))[0], grads[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy(reduction, smoothing):
    logits, targets = X.reshape(15, 12), np.arange(15) % 12
    targets[3] = -100
    given = {"label_smoothing": smoothing, "reduction": reduction}
    t = torch.tensor(logits, requires_grad=True)
    loss = F.cross_entropy(t, torch.tensor(targets), **given)
    grad = np.arange(15.0) if reduction == "none" else np.float64(1.5)
    loss.backward(torch.tensor(grad))
    close(attnpy.cross_entropy(logits, targets, **given), loss.detach().numpy())
    close(attnpy.cross_entropy_backward(grad, logits, targets, **given), t.grad.numpy())


def test_embedding():
    table, indices = X.reshape(15, 12), np.array([[0, 14, 3], [3, 3, 7]])
    t = torch.tensor(table, requires_grad=True)
    y = F.embedding(torch.tensor(indices), t)
    grad = np.random.default_rng(4).standard_normal(y.shape)
    y.backward(torch.tensor(grad))
    np.testing.assert_array_equal(attnpy.embedding(indices, table), y.detach().numpy())
    close(attnpy.embedding_backward(grad, indices, 15), t.grad.numpy())


def onnx(operator, opset, attributes, *arrays):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    names = [f"x{n}" for n in range(len(arrays))]
    node = helper.make_node(operator, names, ["y"], **attributes)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n, x in zip(names, arrays, strict=True)]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


def test_onnx():
    """float32: some roundings of numbers of size 10 at most."""
    x, row, bias = (a.astype(np.float32) for a in (X, ROW, BIAS))
    tolerance = {"rtol": 0, "atol": 64 * 2.0**-24}
    for axis in (-1, 1):
        rows = (row, bias) if axis == -1 else (np.stack([row] * 5), np.stack([bias] * 5))
        axes = -1 if axis == -1 else (1, 2)
        wanted = onnx("LayerNormalization", 17, {"axis": axis, "epsilon": 1e-3}, x, *rows)
        np.testing.assert_allclose(attnpy.layer_norm(x, *rows, axis=axes, eps=1e-3), wanted, **tolerance)
        wanted = onnx("RMSNormalization", 23, {"axis": axis, "epsilon": 1e-3}, x, rows[0])
        np.testing.assert_allclose(attnpy.rms_norm(x, rows[0], axis=axes, eps=1e-3), wanted, **tolerance)
    for approximate in ("none", "tanh"):
        wanted = onnx("Gelu", 20, {"approximate": approximate}, x)
        np.testing.assert_allclose(attnpy.gelu(x, approximate=approximate), wanted, **tolerance)
    np.testing.assert_allclose(attnpy.silu(x), x * onnx("Sigmoid", 13, {}, x), **tolerance)
