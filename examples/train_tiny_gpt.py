"""Trains a small GPT on Alice in Wonderland, character by character: attnpy, NumPy and autograd. `make train`."""

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import attnpy

try:
    import tiny_gpt
    from threadpoolctl import threadpool_limits
    from training import Text, progress, rate, save
except ModuleNotFoundError as error:
    sys.exit(f"train_tiny_gpt: {error}: run `make train`, which installs what is needed")

ROOT = Path(__file__).resolve().parent.parent
FIRST = 20  # steps that are run again, beside PyTorch


def main(arguments=None):
    options = parse(arguments)
    text = Text(options.text.read_text(encoding="utf-8"), tiny_gpt.Shape.length)
    shape = tiny_gpt.Shape(alphabet=len(text.alphabet))
    weights = tiny_gpt.initial_weights(shape, np.random.default_rng(options.seed))
    size = sum(array.size for array in weights.values())
    print(f"text     {options.text.name}: {len(text.ids):,} characters, {shape.alphabet} of them different")
    print(f"model    {shape.layers} layers of {shape.heads} heads, {size:,} weights in float32")
    print(
        f"batch    {options.batch} pieces of {shape.length} characters; {options.threads} threads; seed {options.seed}"
    )
    keep_freed_memory()
    # One thread for each part of the batch: faster than BLAS with several threads, whose waiting threads also spin.
    with threadpool_limits(1, "blas"), attnpy.num_threads(options.threads):
        trainer = tiny_gpt.Trainer(weights, shape, options.threads)
        losses, held_out = train(trainer, text, options)
        draw(losses, held_out, options.picture)
        if options.twin:
            compare(weights, shape, text, options, losses)
        print("sample")
        print(sample(trainer.weights, shape, text, options))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument(
        "--batch", type=int, default=16, help=f"pieces of text in a step, a multiple of {tiny_gpt.PARTS}"
    )
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=attnpy.get_num_threads(), help="the result does not depend on them"
    )
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "data" / "alice.txt")
    parser.add_argument(
        "--picture", type=Path, default=ROOT / "build" / "tiny_gpt.png", help="where to draw the losses"
    )
    parser.add_argument("--no-twin", dest="twin", action="store_false", help="do not compare with PyTorch")
    return parser.parse_args(arguments)


def keep_freed_memory():
    """Where the C library is glibc: give freed arrays to the next ones, not back to the system, whose pages would have
    to be fetched anew in each step; that saves a seventh of the time."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that every version takes


def train(trainer, text, options):
    """The loss of each step, and [(step, loss on the held-out text)]."""
    losses, held_out = [], []
    batches = text.batches(options.seed, options.batch)
    bar = progress(options.steps)
    for step in bar:
        losses.append(trainer.step(*next(batches), rate(step, options.steps, options.rate)))
        if step % 100 == 99 or step == options.steps - 1:
            held_out.append((step + 1, tiny_gpt.loss(trainer.weights, trainer.shape, *text.held_out_pieces())))
        now = f"loss {np.mean(losses[-20:]):.3f}" + (f", held out {held_out[-1][1]:.3f}" if held_out else "")
        bar.set_postfix_str(now, refresh=False)
    print(
        f"loss     {losses[0]:.4f} -> {np.mean(losses[-20:]):.4f} (mean of the last 20 steps), "
        f"held-out text {held_out[-1][1]:.4f} nats per character"
    )
    return losses, held_out


def draw(losses, held_out, picture):
    from matplotlib.figure import Figure

    span = min(20, len(losses))
    smooth = np.convolve(losses, np.full(span, 1 / span), "valid")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="each step")
    axes.plot(np.arange(len(smooth)) + span / 2, smooth, color="tab:blue", label=f"mean of {span} steps")
    axes.plot(*zip(*held_out), color="tab:orange", marker="o", markersize=4, label="held-out text")
    axes.set(xlabel="step", ylabel="nats per character", title="A character-level GPT learns Alice in Wonderland")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, picture, "curve")


def compare(weights, shape, text, options, losses):
    """The first steps once more, in turn with the same model in PyTorch."""
    try:
        import tiny_gpt_torch
    except ModuleNotFoundError as error:
        print(f"PyTorch  not compared: {error}; `make train-twin` installs it")
        return
    steps = min(FIRST, options.steps)
    trainers = {
        "attnpy": tiny_gpt.Trainer(weights, shape, options.threads),
        "PyTorch": tiny_gpt_torch.Trainer(weights, shape, options.threads),
    }
    found, seconds = ({name: [] for name in trainers} for _ in range(2))
    for step, batch in zip(range(steps), text.batches(options.seed, options.batch)):
        for name, trainer in trainers.items():
            time.sleep(0.02)  # let the other's threads go to sleep
            start = time.perf_counter()
            found[name].append(trainer.step(*batch, rate(step, options.steps, options.rate)))
            seconds[name].append(time.perf_counter() - start)
    again = "the same bits" if found["attnpy"] == losses[:steps] else "DIFFERENT bits"
    apart = max(abs(a - b) for a, b in zip(*found.values()))
    print(f"again    the first {steps} losses, from the same weights: {again}; at most {apart:.0e} from PyTorch's")
    for name in trainers:
        first = " ".join(f"{loss:.4f}" for loss in found[name][:5])
        print(
            f"{name:8} {1e3 * statistics.median(seconds[name]):.0f} ms per step (median of {steps}); losses {first} ..."
        )


def sample(weights, shape, text, options, start="Alice ", count=500):
    rng = np.random.default_rng(options.seed)
    ids = tiny_gpt.sample(weights, shape, text.numbers(start), count, rng)
    return "\n".join("    " + line for line in (start + text.spell(ids)).splitlines())


if __name__ == "__main__":
    main()
