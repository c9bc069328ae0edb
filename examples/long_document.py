"""A book through one layer of Longformer's attention, and where its words looked: `make long-document`.

Nothing is trained. A word is the mean of random vectors of its letter groups, to which its position is added; queries
and keys share a random projection. So words look at words that are spelt alike, and rather at those near them.
"""

import argparse
import collections
import re
import resource
import sys
import time
import zlib
from pathlib import Path

import numpy as np

import attnpy
from attnpy import BlockMask

ROOT = Path(__file__).resolve().parent.parent
WINDOW, GLOBAL = 256, 16  # words seen on each side; the first words see all and are seen by all
HEADS, HEAD_DIM = 8, 64
CHANNELS = HEADS * HEAD_DIM
BUCKETS = 2**14  # of letter groups
NEARNESS = 0.5  # length of a position's vector beside a word's of 1
SHARPNESS = 8.0  # score of a word with itself, on average over the projections
COMPARED = 1024  # queries whose attention to all keys is timed


def main(arguments=None):
    options = parse(arguments)
    words = spelt(options.text.read_text(encoding="utf-8"))[: options.length]
    length, tokens = len(words), np.arange(GLOBAL)
    if length <= GLOBAL:
        sys.exit(f"long_document: {options.text.name} has {length} words; more than {GLOBAL} are needed")
    layer = Layer(np.random.default_rng(options.seed), embed(words, options.seed))
    print(f"text     {options.text.name}: {length:,} words, {len({w.lower() for w in words}):,} of them different")

    before, start = peak_memory(), time.perf_counter()
    output = layer.attend(tokens)
    seconds, grown = time.perf_counter() - start, peak_memory() - before
    mask = BlockMask.longformer(length, WINDOW, tokens)
    visible, dense = mask.density, HEADS * length**2 * output.itemsize
    print(f"layer    {HEADS} heads of {HEAD_DIM}, float32, {attnpy.get_num_threads()} threads")
    print(f"mask     {WINDOW} words on each side, {GLOBAL} global ones: {100 * visible:.2g} % of {length:,}² scores")
    print(f"memory   {grown / 1e6:,.0f} MB more in attention, the output of {output.nbytes / 1e6:,.0f} MB included;")
    print(f"         {peak_memory() / 1e6:,.0f} MB in all; the dense scores would take {dense / 1e9:,.1f} GB")
    print(f"time     {seconds:.2f} s in attention; without a mask {layer.seconds_to_all():.0f} s, judged by a part")
    result = layer.finish(output)
    assert np.isfinite(result).all()
    rows = np.unique(np.linspace(0, length - 1, 16).astype(int))
    print(f"checked  {len(rows)} of the rows by the formula in float64: at most {layer.error(output, rows):.0e} apart")

    first, middle = place(words, options.word, 0.0), place(words, options.word, 0.5)
    looked = [(at, layer.look(at, mask)) for at in (first, middle)]
    books = [(n, words[n + 1]) for n in range(length - 1) if words[n] == "Book"]
    for at, weights in looked:
        describe(words, books, at, weights)
    draw(words, books, mask, looked, options.picture)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=65536, help="words, from the beginning")
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "data" / "paradise_lost.txt")
    parser.add_argument("--word", default="fruit", help="whose view is drawn, where it first stands and half-way on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=ROOT / "build" / "long_document.png", help="where to draw")
    return parser.parse_args(arguments)


def spelt(text):
    return re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", text)


def place(words, word, share):
    """Where the word stands: the first time (share 0), or after this share of the times."""
    places = [n for n, other in enumerate(words) if other.lower() == word.lower()]
    if not places:
        sys.exit(f"long_document: there is no {word!r} in the {len(words)} words")
    return places[int(share * len(places))]


def embed(words, seed):
    """(L, C): for each word the mean of the vectors of its groups of 3 to 5 letters and of the word itself, as fastText
    has it, at length 1; and sines and cosines of the position."""
    table = np.random.default_rng(seed).standard_normal((BUCKETS, CHANNELS), np.float32)
    numbers = {word: n for n, word in enumerate(dict.fromkeys(word.lower() for word in words))}
    vectors = np.stack([table[groups(word)].mean(0) for word in numbers])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    x = vectors[[numbers[word.lower()] for word in words]]
    frequencies = 1e4 ** (-np.arange(0, CHANNELS, 2) / CHANNELS)
    for start in range(0, len(words), 1024):  # no array of all angles
        angles = np.arange(start, min(start + 1024, len(words)))[:, None] * frequencies
        waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        x[start : start + 1024] += waves * (NEARNESS / np.sqrt(CHANNELS / 2))
    return x


def groups(word):
    """Numbers of the letter groups of <word>."""
    marked = f"<{word}>"
    parts = {marked, *(marked[n : n + size] for size in (3, 4, 5) for n in range(len(marked) - size + 1))}
    return [zlib.crc32(part.encode()) % BUCKETS for part in sorted(parts)]


class Layer:
    """One layer with random weights: projections for all words and others for the global ones, attention, and a
    projection that is added to what came in."""

    def __init__(self, rng, x):
        self.x = x
        sharp = np.float32((SHARPNESS / np.sqrt(HEAD_DIM)) ** 0.5)
        weights = rng.standard_normal((5, CHANNELS, CHANNELS), np.float32)
        weights[[0, 2]] *= sharp
        weights[[1, 3, 4]] /= np.float32(np.sqrt(CHANNELS))
        self.seen, self.value, self.global_seen, self.global_value = (self.heads(x @ w) for w in weights[:4])
        self.joining = weights[4]

    @staticmethod
    def heads(x):
        """(L, C) -> (H, L, D), a view."""
        return x.reshape(len(x), HEADS, HEAD_DIM).swapaxes(0, 1)

    def attend(self, tokens):
        """(H, L, D); queries are the keys."""
        return attnpy.longformer_attention(
            self.seen, self.seen, self.value, self.global_seen, self.global_seen, self.global_value,
            window=WINDOW, global_tokens=tokens,
        )  # fmt: skip

    def finish(self, output):
        """(L, C), each row with mean 0 and variance 1."""
        y = self.x + output.swapaxes(0, 1).reshape(self.x.shape) @ self.joining
        y -= y.mean(1, keepdims=True)
        y /= y.std(1, keepdims=True)
        return y

    def seconds_to_all(self):
        """Of attention without a mask, from some of the queries."""
        queries = self.seen[:, :COMPARED]
        start = time.perf_counter()
        attnpy.scaled_dot_product_attention(queries, self.seen, self.value)
        return (time.perf_counter() - start) * self.seen.shape[1] / queries.shape[1]

    def error(self, output, rows):
        """Largest difference of these rows from the formula, with a dense mask of them."""
        places = np.arange(len(self.x))
        near = (np.abs(rows[:, None] - places) <= WINDOW) | (places < GLOBAL)
        largest = 0.0
        for head in range(HEADS):
            local = reference(self.seen[head], self.value[head], rows, near)
            of_all = reference(self.global_seen[head], self.global_value[head], rows, True)
            exact = np.where(rows[:, None] < GLOBAL, of_all, local)
            largest = max(largest, np.abs(output[head, rows] - exact).max())
        return largest

    def look(self, at, mask):
        """How the attention of a word is spread over the text, (L,), on average over the heads."""
        seen, mask = (self.global_seen, None) if at < GLOBAL else (self.seen, mask)
        return attnpy.attention_weights(seen, seen, mask, rows=[at])[:, 0].mean(0)


def reference(seen, value, rows, mask):
    return attnpy.reference.scaled_dot_product_attention(
        *(a.astype(np.float64)[None] for a in (seen[rows], seen, value)), mask
    )[0]


def peak_memory():
    """Bytes: the most that was resident in this process so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def book_of(books, at):
    names = [name for start, name in books if start <= at]
    return f"Book {names[-1]}" if names else "before the first Book"


def describe(words, books, at, weights):
    """The words, and the Books, that got most of the attention."""
    kind, context = "global" if at < GLOBAL else "local", " ".join(words[max(0, at - 5) : at + 6])
    print(f"looked   {words[at]!r}, word {at:,}, {kind}, {book_of(books, at)}: … {context} …")
    by_word, by_book = collections.Counter(), collections.Counter()
    for n, weight in enumerate(weights.tolist()):
        by_word[words[n].lower()] += weight
        by_book[book_of(books, n)] += weight
    for found in (by_word, by_book):
        best = [f"{name} {100 * weight:.1f} %" for name, weight in found.most_common(6) if weight >= 5e-4]
        print("         " + ", ".join(best))


def draw(words, books, mask, looked, picture):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=(1.3, 1))
    corner = min(2048, len(words))
    mask.plot(ax=axes[0, 0], titles=f"share of visible keys, {len(words):,} words")
    near = BlockMask.longformer(corner, WINDOW, np.arange(GLOBAL))
    near.plot(ax=axes[0, 1], titles=f"the same of the first {corner:,}")
    for ax, (at, weights) in zip(axes[1], looked):
        view(ax, words, books, at, weights)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    print(f"picture  {picture}")


def view(ax, words, books, at, weights):
    """Attention along the text: all of it for a global word, the window for another."""
    low, high = (0, len(words)) if at < GLOBAL else (max(0, at - WINDOW), min(len(words), at + WINDOW + 1))
    ax.vlines(np.arange(low, high), 0, 100 * weights[low:high], color="tab:blue", linewidth=0.8)
    labelled = []
    for n in low + np.argsort(weights[low:high])[::-1][:20]:
        if all(abs(n - other) > 0.12 * (high - low) for other in labelled) and weights[n] > 0.01 * weights.max():
            ax.text(n, 100 * weights[n], words[n], fontsize=8, ha="center", va="bottom")
            labelled.append(n)
    if at < GLOBAL:
        for start, name in books:
            ax.axvline(start, color="0.8", linewidth=0.8, zorder=0)
            ax.text(start, 0.98, f" {name}", fontsize=8, color="0.4", va="top", transform=ax.get_xaxis_transform())
    else:
        ax.axvline(at, color="tab:orange", linewidth=0.8, zorder=0)
    kind = "sees all" if at < GLOBAL else f"sees {WINDOW} words on each side"
    ax.set(xlabel="word", ylabel="% of the attention", title=f"{words[at]!r}, word {at:,}, {kind}: where it looked")
    ax.title.set_fontsize(10)
    ax.margins(x=0.01)
    ax.set_ylim(0, 115 * weights.max())


if __name__ == "__main__":
    main()
