"""The twin of tiny_gpt.py in PyTorch: weights of the same names, the same equations, PyTorch's functions."""

import torch
from torch.nn import functional


def loss(weights, shape, ids, targets):
    return functional.cross_entropy(forward(weights, shape, ids).flatten(0, 1), targets.flatten())


def forward(w, shape, ids):
    """The logits (B, L, V) of the character that follows each one: ids (B, L)."""
    x = functional.embedding(ids, w["characters"]) + w["positions"][: ids.shape[1]]
    for layer in range(shape.layers):
        x = x + attention(w, layer, normalize(x, w[f"{layer} attention gain"]), shape.heads)
        x = x + feed_forward(w, layer, normalize(x, w[f"{layer} feed-forward gain"]))
    return normalize(x, w["last gain"]) @ w["characters"].T


def attention(w, layer, x, heads):
    query, key, value = (
        (x @ w[f"{layer} {name}"]).unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("query", "key", "value")
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ w[f"{layer} mix"]


def feed_forward(w, layer, x):
    return functional.gelu(x @ w[f"{layer} widen"], approximate="tanh") @ w[f"{layer} narrow"]


def normalize(x, gain):
    return functional.layer_norm(x, gain.shape, gain)


class Trainer:
    """As tiny_gpt.Trainer."""

    def __init__(self, weights, shape, threads):
        torch.set_num_threads(threads)
        self.weights = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
        self.shape = shape
        matrices = [w for w in self.weights.values() if w.ndim == 2]
        gains = [w for w in self.weights.values() if w.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)

    def step(self, ids, targets, rate):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        of_batch = loss(self.weights, self.shape, torch.from_numpy(ids), torch.from_numpy(targets))
        of_batch.backward()
        self.optimizer.step()
        return of_batch.item()
