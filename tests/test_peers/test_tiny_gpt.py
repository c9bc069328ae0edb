"""The example that trains beside its twin in PyTorch: gradients, and the losses of the first steps."""

import numpy as np
import pytest
from example import EXAMPLES, imported
from threadpoolctl import threadpool_limits

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def modules():
    return imported("train_tiny_gpt"), imported("tiny_gpt_torch")


@pytest.fixture(scope="module")
def start(modules):
    """The text, the shape, and weights in float64 that float32 holds exactly; none starts at 0."""
    script, _ = modules
    text = script.Text((EXAMPLES / "data" / "alice.txt").read_text(encoding="utf-8"), 64)
    shape = script.tiny_gpt.Shape(alphabet=len(text.alphabet), channels=64, length=64)
    rng = np.random.default_rng(0)
    weights = script.tiny_gpt.initial_weights(shape, rng)
    noise = {name: 0.1 * rng.standard_normal(array.shape).astype(np.float32) for name, array in weights.items()}
    return text, shape, {name: (weights[name] + noise[name]).astype(np.float64) for name in weights}


def cast(weights, dtype):
    return {name: array.astype(dtype) for name, array in weights.items()}


def twin_gradients(twin, weights, shape, batch):
    trainer = twin.Trainer(weights, shape, 1)
    twin.loss(trainer.weights, shape, *map(torch.from_numpy, batch)).backward()
    return {name: w.grad.numpy() for name, w in trainer.weights.items()}


def test_gradients(modules, start):
    script, twin = modules
    text, shape, weights = start
    batch = next(text.batches(0, 4))
    with threadpool_limits(1, "blas"):
        exact, ours = (
            script.tiny_gpt.Trainer(cast(weights, dtype), shape).loss_and_gradients(*batch)[1]
            for dtype in (np.float64, np.float32)
        )
    also_exact = twin_gradients(twin, weights, shape, batch)
    theirs = twin_gradients(twin, cast(weights, np.float32), shape, batch)
    for name in weights:
        size = np.linalg.norm(exact[name])
        assert np.linalg.norm(also_exact[name] - exact[name]) <= 64 * np.finfo(np.float64).eps * size, name
        error, peer_error = (np.linalg.norm(x[name] - exact[name]) for x in (ours, theirs))
        assert error <= 2 * peer_error + 4 * np.finfo(np.float32).eps * size, f"{name}: {error}, PyTorch {peer_error}"


def losses(trainer, text, steps=12):
    with threadpool_limits(1, "blas"):
        return np.array([trainer.step(*batch, 3e-3) for _, batch in zip(range(steps), text.batches(0, 4))], np.float64)


def test_first_losses(modules, start):
    """Each is a mean of many logarithms, whose roundings average out: a few units in the last place remain."""
    script, twin = modules
    text, shape, weights = start
    exact = losses(script.tiny_gpt.Trainer(weights, shape), text)
    assert exact[-1] < exact[0] - 0.5
    also_exact = losses(twin.Trainer(weights, shape, 1), text)
    assert (abs(also_exact - exact) <= 16 * np.finfo(np.float64).eps * exact).all(), also_exact - exact
    ours = losses(script.tiny_gpt.Trainer(cast(weights, np.float32), shape), text)
    theirs = losses(twin.Trainer(cast(weights, np.float32), shape, 1), text)
    allowed = 2 * abs(theirs - exact).max() + 4 * np.finfo(np.float32).eps * exact
    assert (abs(ours - exact) <= allowed).all(), f"{ours - exact}, PyTorch {theirs - exact}"
