"""What the examples that train have in common: a text, AdamW, learning rates that rise and fall, a bar, a picture."""

import math
import shutil
import sys

import numpy as np
from tqdm import tqdm


class Text:
    """A text in numbers; its last tenth is held out."""

    def __init__(self, text, length):
        self.alphabet = sorted(set(text))
        self.ids = self.numbers(text)
        self.length = length
        self.seen, self.held_out = np.split(self.ids, [len(text) * 9 // 10])

    def numbers(self, text):
        return np.array([self.alphabet.index(character) for character in text])

    def spell(self, ids):
        return "".join(self.alphabet[number] for number in ids)

    def batches(self, seed, count):
        """For ever: `count` random pieces of the text, and for each of their characters the one that follows."""
        rng = np.random.default_rng(seed)
        while True:
            starts = rng.integers(0, len(self.seen) - self.length, (count, 1))
            pieces = self.seen[starts + np.arange(self.length + 1)]
            yield pieces[:, :-1], pieces[:, 1:]

    def held_out_pieces(self, length=None, longest=None):
        """The held-out text in pieces of `length`; as much of it as pieces of the longest length would read."""
        length = length or self.length
        longest = longest or length
        end = (len(self.held_out) - 1) // longest * longest
        return self.held_out[:end].reshape(-1, length), self.held_out[1 : end + 1].reshape(-1, length)


class AdamW:
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w -= rate (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)
    + decay w): weights change in place, and only matrices decay. Loshchilov, Hutter 2019, arXiv:1711.05101."""

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


def progress(steps, title=""):
    """Counts the steps on standard output, where set_postfix_str adds what is to be seen."""
    return tqdm(
        range(steps),
        desc=title,
        unit="step",
        bar_format="{desc}{n:>4}/{total} |{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}",
        ncols=min(100, shutil.get_terminal_size().columns),
        mininterval=0.1 if sys.stdout.isatty() else 10,
        file=sys.stdout,
    )


def save(figure, picture, what="picture"):
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(f"{what:8} {picture}")
