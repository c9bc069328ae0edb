"""AdamW (Loshchilov, Hutter 2019, arXiv:1711.05101) for weights by name, and learning rates that rise and fall."""

import math

import numpy as np


class AdamW:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)
    + decay w): weights change in place, and only matrices decay."""

    def __init__(self, weights, decay=0.1, betas=(0.9, 0.99), epsilon=1e-8):
        self.weights, self.decay, self.betas, self.epsilon = weights, decay, betas, epsilon
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in weights.items()}
        self.steps = 0

    def step(self, gradients, rate):
        self.steps += 1
        (b1, b2), t = self.betas, self.steps
        for name, w in self.weights.items():
            g, (m, v) = gradients[name], self.moments[name]
            m *= b1
            m += (1 - b1) * g
            v *= b2
            v += (1 - b2) * (g * g)
            if w.ndim == 2:
                w *= 1 - rate * self.decay
            w -= rate / (1 - b1**t) * m / (np.sqrt(v / (1 - b2**t)) + self.epsilon)


def rate(step, steps, highest):
    """Rises over the first tenth of the steps, then falls to a tenth along a cosine."""
    warm = steps / 10
    fall = 0.55 + 0.45 * math.cos(math.pi * max(0.0, step - warm) / (steps - warm))
    return highest * min((step + 1) / warm, fall)


def flat(tree, prefix=""):
    """A tree of arrays as one dict with dotted names, as `Layer.state_dict` has it."""
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
