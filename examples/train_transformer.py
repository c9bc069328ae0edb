"""The Transformer of 2017 learns to sort digits and to reverse words: attnpy.nn, autograd. `make train-transformer`."""

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
    from training import AdamW, flat, progress, rate, save
except ModuleNotFoundError as error:
    sys.exit(f"train_transformer: {error}: run `make train-transformer`, which installs what is needed")

ROOT = Path(__file__).resolve().parent.parent
PADDING, START, END, SORT, REVERSE = range(5)
DIGITS = {digit: 5 + i for i, digit in enumerate("0123456789")}
LETTERS = {letter: 15 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
SYMBOLS = DIGITS | LETTERS
LONGEST = 12  # symbols of a word or of a sequence of digits


class Task:
    """What to do with a text, and texts that are never trained on."""

    def __init__(self, name, number, function, draw, held_out):
        self.name, self.number, self.function, self.draw, self.held_out = name, number, function, draw, held_out


def tasks(seed):
    rng = np.random.default_rng(seed)
    words = sorted(set("".join(c if c.islower() else " " for c in book().lower()).split()))
    words = [word for word in words if 3 <= len(word) <= LONGEST]
    rng.shuffle(words)
    kept, held_out = words[500:], words[:500]

    def digits(rng):
        return "".join(rng.choice(list(DIGITS), rng.integers(3, LONGEST + 1)))

    unseen = {digits(rng) for _ in range(500)}

    def unlike_held_out(rng):
        while (text := digits(rng)) in unseen:
            pass
        return text

    return [
        Task("sort digits", SORT, lambda text: "".join(sorted(text)), unlike_held_out, sorted(unseen)),
        Task("reverse words", REVERSE, lambda text: text[::-1], lambda rng: kept[rng.integers(len(kept))], held_out),
    ]


def book():
    return (ROOT / "examples" / "data" / "alice.txt").read_text(encoding="utf-8").replace("’", " ")


def encoded(pairs):
    """Sources (B, LONGEST + 1), the task in front, their lengths, and targets (B, LONGEST + 2) from START to END."""
    sources = np.full((len(pairs), LONGEST + 1), PADDING)
    targets = np.full((len(pairs), LONGEST + 2), PADDING)
    for row, (task, text) in enumerate(pairs):
        sources[row, : len(text) + 1] = [task.number, *(SYMBOLS[c] for c in text)]
        targets[row, : len(text) + 2] = [START, *(SYMBOLS[c] for c in task.function(text)), END]
    return sources, np.array([len(text) + 1 for _, text in pairs]), targets


def options_of(lengths):
    """What is padding is seen by nobody."""
    return {
        "source_options": {"kv_lengths": lengths, "query_lengths": lengths},
        "memory_options": {"kv_lengths": lengths},
    }


def loss(parameters, model, sources, lengths, targets, rng=None):
    """The mean of -log(probability of the right next symbol), in nats."""
    logits = model(sources, targets[:, :-1], parameters=parameters, rng=rng, **options_of(lengths))
    return attnpy.cross_entropy(logits, targets[:, 1:], ignore_index=PADDING)


def train(model, work, options):
    rng = np.random.default_rng(options.seed)
    optimizer = AdamW(model.state_dict(), decay=0.01, betas=(0.9, 0.98))
    loss_and_gradients = autograd.value_and_grad(loss)
    bar = progress(options.steps)
    losses = []
    for step in bar:
        pairs = [(task, task.draw(rng)) for task in work for _ in range(options.batch // len(work))]
        value, gradients = loss_and_gradients(model.parameters(), model, *encoded(pairs), rng=rng)
        optimizer.step(flat(gradients), rate(step, options.steps, options.rate))
        losses.append(float(value))
        bar.set_postfix_str(f"loss {np.mean(losses[-20:]):.4f}", refresh=False)
    return losses


def answers(model, task, texts):
    """What the model makes of them, symbol by symbol, each the likeliest."""
    spelt = {number: symbol for symbol, number in SYMBOLS.items()}
    sources, lengths, _ = encoded([(task, text) for text in texts])
    tokens = model.generate(sources, START, LONGEST + 2, **options_of(lengths))
    found = []
    for row in tokens:
        ends = np.flatnonzero(row == END)
        found.append("".join(spelt.get(t, "?") for t in row[1 : ends[0] if len(ends) else None]))
    return found


def main(arguments=None):
    options = parse(arguments)
    work = tasks(options.seed)
    vocabulary = 15 + len(LETTERS)
    model = nn.Transformer(
        64, 4, 2, 2, 256, source_vocabulary=vocabulary, target_vocabulary=vocabulary, dropout=options.dropout,
        norm_first=True, rng=options.seed,
    )  # fmt: skip
    print(f"model    2 + 2 layers of 4 heads, {sum(x.size for x in model.state_dict().values()):,} weights in float32")
    print(f"batch    {options.batch} texts of up to {LONGEST} symbols; seed {options.seed}")
    start = time.perf_counter()
    with threadpool_limits(1, "blas"):
        losses = train(model, work, options)
    seconds = time.perf_counter() - start
    print(f"trained  {options.steps} steps in {seconds:.0f} s, {1e3 * seconds / options.steps:.1f} ms each")
    shares = {task.name: report(model, task) for task in work}
    draw(model, work, losses, options.picture)
    return shares


def report(model, task):
    found = answers(model, task, task.held_out)
    right = [answer == task.function(text) for text, answer in zip(task.held_out, found)]
    print(f"{task.name:13} {100 * np.mean(right):.1f} % of {len(right)} texts it has never seen, exactly")
    for text, answer in list(zip(task.held_out, found))[:3]:
        print(f"    {text} -> {answer}")
    wrong = [(text, answer) for text, answer, ok in zip(task.held_out, found, right) if not ok]
    for text, answer in wrong[:2]:
        print(f"    wrong: {text} -> {answer}, not {task.function(text)}")
    return float(np.mean(right))


def draw(model, work, losses, picture):
    """The losses, and where the last decoder layer looks while it answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    curve, *maps = figure.subplots(1, 1 + len(work))
    curve.semilogy(losses, color="tab:blue", linewidth=0.8)
    curve.set(xlabel="step", ylabel="nats per symbol", title="What is learned")
    curve.grid(alpha=0.3)
    for axes, task in zip(maps, work):
        text = max(task.held_out[:20], key=len)
        weights, rows, columns = looks(model, task, text)
        attnpy.plot.heatmap(weights, rows, columns, ax=axes, annotate=False, titles=f"{task.name}: {text}")
    save(figure, picture)


def looks(model, task, text):
    """Weights of the last layer's attention to the memory, mean over heads, and the symbols of its rows and columns."""
    sources, lengths, targets = encoded([(task, text)])
    memory = model.encode(sources, **options_of(lengths)["source_options"])
    x = model.embed(targets[:, : len(text) + 1], "target")
    *layers, last = model.decoder.layers
    for layer in layers:
        x = layer(x, memory, memory_options={"kv_lengths": lengths})
    x = x + last.self_attn(last.norm1(x), is_causal=True)
    _, weights = last.cross_attn(last.norm2(x), memory, kv_lengths=lengths, need_weights=True)
    mean = weights[0].mean(0)[:, : len(text) + 1]
    return mean, [*task.function(text), "end"], [task.name.split()[0], *text]


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64, help="texts in a step, half of them of each task")
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=ROOT / "build" / "transformer.png")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
