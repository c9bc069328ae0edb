"""The cross entropy of class scores, and its gradient. Rows whose target is ignored count as 0."""

import numpy as np


def cross_entropy(logits, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """loss_i = log sum_j exp(x_ij) - (1 - s) x_it - s / V sum_j x_ij, t = targets_i: (..., V), (..., ) -> ()."""
    x, target, counts = _rows(logits, targets, ignore_index)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        top = x.max(-1, keepdims=True, initial=-np.inf)
        lse = top + np.log(np.exp(x - top).sum(-1, keepdims=True))
        loss = lse[..., 0] - (1 - label_smoothing) * np.where(target, x, 0.0).sum(-1)
        if label_smoothing:
            loss = loss - label_smoothing * x.sum(-1) / max(x.shape[-1], 1)
        loss = np.where(counts, loss, 0.0)
        if reduction == "none":
            return loss
        return loss.sum() / (np.float64(counts.sum()) if reduction == "mean" else 1.0)


def cross_entropy_backward(
    grad_output, logits, targets, *, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):  # fmt: skip
    """dx_ij = g_i (p_ij - (1 - s) [j = t_i] - s / V), p the softmax: (...), (..., V), (..., ) -> (..., V)."""
    x, target, counts = _rows(logits, targets, ignore_index)
    g = np.asarray(grad_output, np.float64)
    g = g[..., None] if reduction == "none" else g / max(counts.sum(), 1) if reduction == "mean" else g
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
        p = e / e.sum(-1, keepdims=True)
        grad = g * (p - (1 - label_smoothing) * target - label_smoothing / max(x.shape[-1], 1))
    return np.where(counts[..., None], grad, 0.0)


def _rows(logits, targets, ignore_index):
    """The scores, 0 in rows that do not count; where each row's target is; which rows count."""
    x, t = np.asarray(logits, np.float64), np.asarray(targets)
    counts = t != ignore_index
    return np.where(counts[..., None], x, 0.0), np.arange(x.shape[-1]) == t[..., None], counts
