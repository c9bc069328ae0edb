"""What embedding, cross_entropy and their gradients must be, and how far off: see bounds.py."""

import math

import numpy as np
import oracle
from bounds_tools import LANES, finite, oracle_errs
from numerics import Expected, tiny, unit, wider

import attnpy


def embedding(arguments):
    return [Expected("y", attnpy.reference.embedding(**arguments), 0.0)]


def embedding_backward(arguments):
    """64 terms at a time."""
    g = np.asarray(arguments["grad_output"])
    compute = oracle.compute_type(g)
    size = attnpy.reference.embedding_backward(np.abs(g.astype(np.float64)), *list(arguments.values())[1:])
    times = np.bincount(np.ravel(arguments["indices"]), minlength=arguments["num_embeddings"])[:, None]
    exact = np.zeros(size.shape, wider(compute))
    np.add.at(exact, np.asarray(arguments["indices"], np.intp), g.astype(wider(compute)))
    return [Expected("gradient", exact, unit(compute) * (64 + times / 64) * size * oracle_errs(compute))]


class _Loss:
    """A call in `real`: scores, softmax, which rows count, the sums of the tests' bounds."""

    def __init__(self, arguments, real):
        import attnpy._core

        x, t = np.asarray(arguments["logits"]), np.asarray(arguments["targets"])
        self.compute = oracle.compute_type(x)
        self.counts = t != arguments.get("ignore_index", -100)
        self.V = x.shape[-1]
        self.x = np.where(self.counts[..., None], x.astype(real), real(0))
        self.at = np.arange(self.V) == t[..., None]
        self.smoothing = real(arguments.get("label_smoothing", 0.0))
        self.reduction = arguments.get("reduction", "mean")
        self.top = self.x.max(-1, keepdims=True, initial=-np.inf)
        e = np.exp(self.x - self.top)
        total = e.sum(-1, keepdims=True)
        self.p, self.log = e / total, np.log(total)[..., 0]
        lanes = LANES[attnpy._core.isa] // self.compute.itemsize
        self.steps = 76 + self.V / (64 * lanes) + 8 * self.V // 16384
        self.rows = max(1, int(self.counts.sum()))

    def losses(self):
        right = (self.x * self.at).sum(-1)
        mean = self.x.sum(-1) / self.x.dtype.type(self.V)
        loss = (self.top[..., 0] - ((1 - self.smoothing) * right + self.smoothing * mean)) + self.log
        size = np.abs(self.top[..., 0]) + np.abs(right)
        size = size + self.smoothing * (1 + self.steps) * np.abs(self.x).mean(-1)
        return np.where(self.counts, loss, 0), np.where(self.counts, size, 0)


def cross_entropy(arguments):
    compute = _Loss(arguments, np.float64).compute
    exact = _Loss(arguments, wider(compute))
    loss, size = exact.losses()
    u = unit(compute) * oracle_errs(compute)
    cap = u * (exact.steps * exact.counts + 4 * size + 2 * np.abs(loss)).astype(np.float64)
    if exact.reduction == "none":
        return [Expected("loss", loss, cap)]
    chain = 66 + math.prod(loss.shape) / 64
    cap = cap.sum() + u * chain * float(np.abs(loss).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        total = loss.sum() / loss.dtype.type(exact.counts.sum() if exact.reduction == "mean" else 1)
    share = exact.rows if exact.reduction == "mean" else 1
    return [Expected("loss", np.asarray(total), cap / share + 2 * u * np.nan_to_num(abs(float(total))))]


def cross_entropy_backward(arguments):
    compute = _Loss(arguments, np.float64).compute
    exact = _Loss(arguments, wider(compute))
    g = oracle.in_type(wider(compute), compute, arguments["grad_output"])
    g = g[..., None] if exact.reduction == "none" else g / exact.rows if exact.reduction == "mean" else g
    counts, u = exact.counts[..., None], unit(compute) * oracle_errs(compute)
    wanted = g * (exact.p - (1 - exact.smoothing) * exact.at - exact.smoothing / exact.V)
    wanted = np.where(counts, wanted, 0)
    share = (exact.steps + 4 + finite(exact.x - exact.top)) * exact.p + 3 * (exact.at + exact.smoothing / exact.V)
    with np.errstate(invalid="ignore"):  # what is stored beside rows that do not count
        cap = np.where(counts, u * np.abs(g) * share + 2 * u * np.abs(wanted), 0).astype(np.float64)
        floor = np.where(counts, max(u * tiny(compute), 2.0**-1074) * 4 * (1 + np.abs(g)), 0)
    return [Expected("gradient", wanted, cap, floor=floor.astype(np.float64))]
