"""linear and its gradients beside torch.nn.functional.linear, and through PyTorch's and autograd's recording."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import torch
from numerics import same_bits

import attnpy

ACTIVATIONS = {
    None: lambda z: z,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    "silu": torch.nn.functional.silu,
}


def operands(dtype=np.float64, M=(2, 7), K=31, N=19, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((*M, K), (N, K), (N,), (*M, N))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_values_and_gradients(activation):
    """float64 against float64: 1e-12 of sums of 31 terms of unit variance."""
    arrays = operands()
    x, w, b, r = tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    wanted = ACTIVATIONS[activation](torch.nn.functional.linear(x, w, b)) + r
    got = attnpy.linear(*arrays[:3], activation=activation, residual=arrays[3])
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-12, atol=1e-12)
    g = np.random.default_rng(1).standard_normal(got.shape)
    wanted = torch.autograd.grad(wanted, tensors, torch.from_numpy(g))
    found = attnpy.linear_backward(g, *arrays[:3], activation=activation, needs=("x", "weight", "bias"))
    for ours, theirs in zip(found, wanted):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("residual", ["whole", "row", "column", "one"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_recorded_by_torch(activation, residual):
    arrays = operands()
    arrays[3] = {
        "whole": arrays[3],
        "row": arrays[3][0, 0],
        "column": arrays[3][..., :1],
        "one": arrays[3][:1, :1, :1],
    }[residual]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    ours = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    g = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 7, 19)))
    wanted = ACTIVATIONS[activation](torch.nn.functional.linear(*theirs[:3])) + theirs[3]
    got = attnpy.linear(*ours[:3], activation=activation, residual=ours[3])
    assert isinstance(got, torch.Tensor)
    for a, b in zip(torch.autograd.grad(got, ours, g), torch.autograd.grad(wanted, theirs, g)):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-11, atol=1e-11)


def test_packed_weights_are_constants():
    x, w, b, _ = operands(np.float32)
    packed = attnpy.PackedWeight(w)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    y = attnpy.linear(tensor, packed, b, activation="silu")
    same_bits(y.detach().numpy(), attnpy.linear(x, w, b, activation="silu"), "packed, of a tensor")
    (gradient,) = torch.autograd.grad(y.sum(), tensor)
    ones = np.ones(y.shape, np.float32)
    wanted = attnpy.linear_backward(ones, x, w, b, activation="silu", needs=("x",)).x
    same_bits(gradient.numpy(), wanted, "gradient through packed weights")


def test_recorded_by_autograd():
    x, w, b, r = operands()

    def loss(x, w, b, r):
        return anp.sum(attnpy.linear(x, w, b, activation="gelu_tanh", residual=r) ** 2)

    y = attnpy.linear(x, w, b, activation="gelu_tanh", residual=r)
    found = autograd.grad(loss, argnum=(0, 1, 2, 3))(x, w, b, r)
    wanted = attnpy.linear_backward(2 * y, x, w, b, activation="gelu_tanh", needs=("x", "weight", "bias"))
    for ours, theirs in zip(found, (*wanted, 2 * y)):
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision():
    """bfloat16 tensors: one rounding of a float32 result, which PyTorch's own may miss by a unit."""
    x, w, b, _ = (torch.from_numpy(a).to(torch.bfloat16) for a in operands(np.float32))
    got = attnpy.linear(x, w, b)
    wanted = torch.nn.functional.linear(x.double(), w.double(), b.double())
    assert got.dtype is torch.bfloat16
    apart = (got.double() - wanted).abs()
    assert bool((apart <= 2.0**-8 * wanted.abs() + 2.0**-20 * (x.double().abs() @ w.double().abs().T)).all())
