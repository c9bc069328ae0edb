"""A small GPT over characters: attnpy's attention, NumPy for the rest, derivatives by autograd.

Letters: B sequences of L characters, T = B L, H heads of D numbers, C = H D channels, V characters in the alphabet.
Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2), here without biases;
Hendrycks, Gimpel 2016, arXiv:1606.08415 (GELU); Ba et al. 2016, arXiv:1607.06450 (layer normalization).
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import autograd.numpy as np
from autograd import value_and_grad
from autograd.extend import defvjp, primitive
from training import AdamW

import attnpy

EPSILON = 1e-5  # of the layer norms
PARTS = 2  # of a batch, computed at the same time; fixed, so that no sum depends on the number of threads


@dataclass(frozen=True)
class Shape:
    alphabet: int
    layers: int = 2
    heads: int = 4
    channels: int = 128
    length: int = 128  # how many characters the model sees at most


def initial_weights(shape, rng, dtype=np.float32):
    """name -> array. Matrices are stored (in, out). Those whose results are added to x start at zero: at first each
    layer lets everything pass."""
    C = shape.channels
    weights = {
        "characters": rng.normal(0, 0.02, (shape.alphabet, C)),
        "positions": rng.normal(0, 0.02, (shape.length, C)),
    }
    for layer in range(shape.layers):
        for name in ("query", "key", "value"):
            weights[f"{layer} {name}"] = rng.normal(0, 1 / math.sqrt(C), (C, C))
        weights[f"{layer} mix"] = np.zeros((C, C))
        weights[f"{layer} widen"] = rng.normal(0, 1 / math.sqrt(C), (C, 4 * C))
        weights[f"{layer} narrow"] = np.zeros((4 * C, C))
        weights |= {f"{layer} attention gain": np.ones(C), f"{layer} feed-forward gain": np.ones(C)}
    weights["last gain"] = np.ones(C)
    return {name: array.astype(dtype) for name, array in weights.items()}


def loss(weights, shape, ids, targets):
    """The mean of -log(probability of the character that follows), in nats: ids and targets (B, L)."""
    logits = forward(weights, shape, ids)
    of_targets = np.sum(logits * one_hot(targets, shape.alphabet, logits.dtype), axis=-1)
    return np.sum(attnpy.logsumexp(logits, axis=-1) - of_targets) / targets.size  # autograd's np.mean goes to float64


def forward(weights, shape, ids):
    """The logits (T, V) of the character that follows each one: ids (B, L)."""
    w = weights
    B, L = ids.shape
    characters = w["characters"]
    embedded = one_hot(ids, shape.alphabet, characters.dtype) @ characters
    x = np.reshape(np.reshape(embedded, (B, L, -1)) + w["positions"][:L], (B * L, -1))
    for layer in range(shape.layers):
        x = x + attention(w, layer, normalize(x) * w[f"{layer} attention gain"], (B, L, shape.heads, -1))
        x = x + feed_forward(w, layer, normalize(x) * w[f"{layer} feed-forward gain"])
    return normalize(x) * w["last gain"] @ characters.T


def one_hot(ids, alphabet, dtype):
    """(B, L) -> (T, V), so that `one_hot @ table` looks rows up, and its derivative adds rows up."""
    return np.eye(alphabet, dtype=dtype)[ids.ravel()]


def attention(w, layer, x, heads):
    query, key, value = (
        np.swapaxes(np.reshape(x @ w[f"{layer} {name}"], heads), 1, 2)  # (T, C) -> (B, H, L, D), a view
        for name in ("query", "key", "value")
    )
    mixed = attnpy.scaled_dot_product_attention(query, key, value, is_causal=True)
    return np.reshape(np.swapaxes(mixed, 1, 2), x.shape) @ w[f"{layer} mix"]


def feed_forward(w, layer, x):
    return gelu(x @ w[f"{layer} widen"]) @ w[f"{layer} narrow"]


# --- Two functions whose derivatives are worth writing down: left to autograd they take twice as long.


@primitive
def normalize(x):
    """y = (x - mean(x)) / s with s = sqrt(var(x) + epsilon), over the channels."""
    centred, deviation = centred_and_deviation(x)
    return centred / deviation


def centred_and_deviation(x):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred, np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)


def normalize_vjp(y, x):
    """dx = (dy - mean(dy) - y mean(y dy)) / s"""

    def vjp(dy):
        _, deviation = centred_and_deviation(x)
        return (dy - np.mean(dy, axis=-1, keepdims=True) - y * np.mean(y * dy, axis=-1, keepdims=True)) / deviation

    return vjp


def gelu(x):
    return x * normal(x)


GELU_A = math.sqrt(2 / math.pi)
GELU_B = 0.044715 * GELU_A


@primitive
def normal(x):
    """p = (1 + tanh(a x + b x^3)) / 2, close to the normal distribution function."""
    p = x * x  # here the arrays are widest: one buffer, no temporaries
    p *= GELU_B
    p += GELU_A
    p *= x
    np.tanh(p, out=p)
    p += 1
    p *= 0.5
    return p


def normal_vjp(p, x):
    """dx = dp 2 p (1 - p) (a + 3 b x^2)"""

    def vjp(dp):
        dx = x * x
        dx *= 6 * GELU_B
        dx += 2 * GELU_A
        dx *= p
        dx *= 1 - p
        dx *= dp
        return dx

    return vjp


defvjp(normalize, normalize_vjp)
defvjp(normal, normal_vjp)


class Trainer:
    """Weights that learn: step() changes them in place."""

    def __init__(self, weights, shape, threads=PARTS):
        self.weights, self.shape = {name: array.copy() for name, array in weights.items()}, shape
        self.optimizer = AdamW(self.weights)
        self.pool = ThreadPoolExecutor(threads)

    def step(self, ids, targets, rate):
        """The loss of the batch before the step."""
        loss, gradients = self.loss_and_gradients(ids, targets)
        self.optimizer.step(gradients, rate)
        return loss

    def loss_and_gradients(self, ids, targets):
        """The means over the parts of the batch, each of which a thread computes from end to end.

        NumPy's loops, its matrix products and attnpy let the other thread run meanwhile. autograd counts traces in a
        global variable. That is safe here, since values of two threads never meet and the interpreter's lock lets each
        count be finished; a Python without that lock would need threads=1.
        """
        parts = zip(np.split(ids, PARTS), np.split(targets, PARTS))
        results = list(self.pool.map(lambda part: value_and_grad(loss)(self.weights, self.shape, *part), parts))
        losses, gradients = zip(*results)
        return sum(losses) / PARTS, {name: sum(part[name] for part in gradients) / PARTS for name in self.weights}


def sample(weights, shape, start, count, rng, temperature=0.5):
    """The ids `start`, continued by `count` more, each drawn from the model's softmax."""
    ids = list(start)
    for _ in range(count):
        seen = np.array([ids[-shape.length :]])
        logits = forward(weights, shape, seen)[-1]
        ids.append(int(rng.choice(shape.alphabet, p=attnpy.softmax(logits.astype(float) / temperature))))
    return ids[len(start) :]
