"""Position schemes on texts longer than those they learned from: attnpy.nn and autograd. `make length-extrapolation`.

The same small causal Transformer learns the characters of Alice in Wonderland five times, from pieces of 64 characters,
with sinusoidal, learned, rotary, ALiBi and T5 positions. Then it reads pieces of 64, 128 and 256 characters of the
held-out text. Press et al. 2022 (arXiv:2108.12409) claim that sinusoids do not extrapolate, rotary positions little,
T5's bias better, and ALiBi best.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import attnpy
from attnpy import nn

try:
    import autograd
    from threadpoolctl import threadpool_limits
    from training import AdamW, Text, flat, progress, rate, save
except ModuleNotFoundError as error:
    sys.exit(f"length_extrapolation: {error}: run `make length-extrapolation`, which installs what is needed")

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEADS, LAYERS, HIDDEN = 96, 4, 2, 256
LENGTH, FACTORS = 64, (1, 2, 4)
LONGEST = LENGTH * FACTORS[-1]
SCHEMES = ("sinusoidal", "learned", "rotary", "ALiBi", "T5")
BUCKETS, MOST = 32, 128  # of T5: distances from 128 on share the last bucket
ROTARY = attnpy.rotary_tables(np.arange(LONGEST), attnpy.rotary_frequencies(WIDTH // HEADS)[0])
SINUSOIDS = attnpy.sinusoidal_encoding(LONGEST, WIDTH, dtype=np.float32)
SLOPES = attnpy.alibi_slopes(HEADS)


class Model(nn.Layer):
    """A causal Transformer over characters with one of the position schemes."""

    def __init__(self, scheme, alphabet, rng):
        rng = np.random.default_rng(rng)
        self.scheme = scheme
        self.characters = nn.Embedding(alphabet, WIDTH, rng=rng)
        self.layers = [
            nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, activation="gelu", norm_first=True, dropout=0.0, rng=rng)
            for _ in range(LAYERS)
        ]
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, alphabet, rng=rng)
        if scheme == "learned":
            self.positions = rng.normal(0, 0.02, (LONGEST, WIDTH)).astype(np.float32)
        if scheme == "T5":
            self.distances = np.zeros((BUCKETS, HEADS), np.float32)

    def __call__(self, ids, *, parameters=None):
        """Characters (B, L) -> scores of the one that follows each (B, L, alphabet)."""
        own, length = self.given(parameters), ids.shape[-1]
        x = self.characters(ids, parameters=own["characters"])
        options = {}
        if self.scheme == "sinusoidal":
            x = x + SINUSOIDS[:length]
        elif self.scheme == "learned":
            x = x + own["positions"][:length]
        elif self.scheme == "rotary":
            options["rotary"] = ROTARY
        elif self.scheme == "ALiBi":
            options["alibi_slopes"] = SLOPES
        else:
            table = own["distances"]
            options["relative_bias"] = attnpy.t5_relative_bias(
                table, length, length, bidirectional=False, max_distance=MOST
            )
        for i, layer in enumerate(self.layers):
            x = layer(x, is_causal=True, parameters=own["layers"][str(i)], **options)
        return self.output(self.norm(x, parameters=own["norm"]), parameters=own["output"])


def book():
    return Text((ROOT / "examples" / "data" / "alice.txt").read_text(encoding="utf-8"), LENGTH)


def loss(parameters, model, ids, targets):
    return attnpy.cross_entropy(model(ids, parameters=parameters), targets)


def train(model, text, options):
    optimizer = AdamW(model.state_dict(), decay=0.05)
    loss_and_gradients = autograd.value_and_grad(loss)
    bar = progress(options.steps, model.scheme)
    losses = []
    for step, batch in zip(bar, text.batches(options.seed, options.batch)):
        value, gradients = loss_and_gradients(model.parameters(), model, *batch)
        optimizer.step(flat(gradients), rate(step, options.steps, options.rate))
        losses.append(float(value))
        bar.set_postfix_str(f"loss {np.mean(losses[-20:]):.3f}", refresh=False)


def by_position(model, text, length):
    """The mean loss at each position of pieces of the held-out text, in nats per character."""
    ids, targets = text.held_out_pieces(length, LONGEST)
    parts = zip(np.array_split(ids, 8), np.array_split(targets, 8))
    losses = [attnpy.cross_entropy(model(i), t, reduction="none") for i, t in parts]
    return np.concatenate(losses).astype(float).mean(0)


def table(found):
    print(f"\nnats per character of held-out text, pieces of {' / '.join(str(LENGTH * f) for f in FACTORS)} characters")
    print(f"{'':12}" + "".join(f"{f}x".rjust(9) for f in FACTORS) + f"{FACTORS[-1]}x - 1x".rjust(12))
    for scheme, losses in found.items():
        means = [losses[factor].mean() for factor in FACTORS]
        print(f"{scheme:12}" + "".join(f"{mean:9.3f}" for mean in means) + f"{means[-1] - means[0]:+12.3f}")


def draw(found, picture):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for scheme, losses in found.items():
        curve = losses[FACTORS[-1]].reshape(-1, 8).mean(-1)
        axes.plot(np.arange(len(curve)) * 8 + 4, curve, label=scheme)
    axes.axvline(LENGTH, color="black", linestyle=":", linewidth=1)
    axes.annotate("trained up to here", (LENGTH, axes.get_ylim()[1]), xytext=(4, -12), textcoords="offset points")
    axes.set(xlabel="position in the text", ylabel="nats per character", title="Longer than in training")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, picture)


def main(arguments=None):
    options = parse(arguments)
    text, found, start = book(), {}, time.perf_counter()
    with threadpool_limits(1, "blas"):
        for scheme in SCHEMES:
            model = Model(scheme, len(text.alphabet), options.seed)
            train(model, text, options)
            found[scheme] = {factor: by_position(model, text, LENGTH * factor) for factor in FACTORS}
    table(found)
    print(f"trained and measured in {time.perf_counter() - start:.0f} s")
    draw(found, options.picture)
    return found


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32, help="pieces of text in a step")
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=ROOT / "build" / "length_extrapolation.png")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
