"""A small vision transformer reads handwritten digits, and shows where it looks: attnpy.nn, autograd. `make digits`."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import attnpy
from attnpy import nn

try:
    import autograd
    import autograd.numpy as anp
    from sklearn.datasets import load_digits
    from threadpoolctl import threadpool_limits
    from training import AdamW, flat, progress, rate, save
except ModuleNotFoundError as error:
    sys.exit(f"digits_vit: {error}: run `make digits`, which installs what is needed")

ROOT = Path(__file__).resolve().parent.parent
SIDE, PATCH = 8, 2  # pixels
TOKENS = (SIDE // PATCH) ** 2
WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 3, 128
FIRST = 20  # steps that are run again, beside PyTorch


class VisionTransformer(nn.Layer):
    """Patches and a class token, learned positions, an encoder, and a linear map of the class token's last state.

    Source: Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929, equations 1 to 4.
    """

    def __init__(self, rng):
        rng = np.random.default_rng(rng)
        self.patches = nn.Linear(PATCH**2, WIDTH, rng=rng)
        self.class_token = rng.normal(0, 0.02, (1, 1, WIDTH)).astype(np.float32)
        self.positions = rng.normal(0, 0.02, (1 + TOKENS, WIDTH)).astype(np.float32)
        self.encoder = nn.TransformerEncoder(
            [
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, HIDDEN, dropout=0.1, activation="gelu", norm_first=True, rng=rng
                )
                for _ in range(LAYERS)
            ],
            nn.LayerNorm(WIDTH),
        )
        self.head = nn.Linear(WIDTH, 10, rng=rng)

    def __call__(self, images, *, parameters=None, rng=None):
        """Images (B, 8, 8) -> scores of the ten digits (B, 10)."""
        own = self.given(parameters)
        x = self.encoder(self.embedded(images, own), parameters=own["encoder"], rng=rng)
        return self.head(x[:, 0], parameters=own["head"])

    def embedded(self, images, own):
        rows = SIDE // PATCH
        patches = images.reshape(-1, rows, PATCH, rows, PATCH).swapaxes(2, 3).reshape(-1, TOKENS, PATCH**2)
        x = self.patches(patches, parameters=own["patches"])
        token = own["class_token"] + np.zeros((len(images), 1, 1), np.float32)
        return anp.concatenate([token, x], axis=1) + own["positions"]

    def rollout(self, image):
        """How much of each patch the class token holds at the end: (4, 4), with sum 1.

        Source: Abnar, Zuidema 2020, "Quantifying attention flow in transformers", arXiv:2005.00928: the product of the
        layers' weights, mean over heads, half of each being the residual connection.
        """
        x = self.embedded(image[None], self.parameters())
        flow = np.eye(1 + TOKENS)
        for layer in self.encoder.layers:
            _, weights = layer.self_attn(layer.norm1(x), need_weights=True)
            flow = (weights[0].mean(0) + np.eye(1 + TOKENS)) / 2 @ flow
            x = layer(x)
        patches = flow[0, 1:].reshape(SIDE // PATCH, SIDE // PATCH)
        return patches / patches.sum()


def images_and_digits(seed):
    """((train images, digits), (test images, digits)): images (n, 8, 8) between 0 and 1; a fifth is for the test."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images, targets = (digits.images[order] / 16).astype(np.float32), digits.target[order]
    split = len(order) * 4 // 5
    return (images[:split], targets[:split]), (images[split:], targets[split:])


def moved(images, rng):
    """Each image shifted by up to one pixel in both directions."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    starts = rng.integers(0, 3, (len(images), 2))
    return np.stack([image[r : r + SIDE, c : c + SIDE] for image, (r, c) in zip(wide, starts)])


def batches(images, digits, seed, size):
    rng = np.random.default_rng(seed)
    while True:
        chosen = rng.integers(0, len(images), size)
        yield moved(images[chosen], rng), digits[chosen]


def loss(parameters, model, images, digits, rng=None):
    return attnpy.cross_entropy(model(images, parameters=parameters, rng=rng), digits, label_smoothing=0.05)


class Trainer:
    """step() changes the model's weights in place and returns the loss before it."""

    def __init__(self, model):
        self.model, self.optimizer = model, AdamW(model.state_dict(), decay=0.05)
        self.loss_and_gradients = autograd.value_and_grad(loss)

    def step(self, images, digits, rate, rng=None):
        value, gradients = self.loss_and_gradients(self.model.parameters(), self.model, images, digits, rng)
        self.optimizer.step(flat(gradients), rate)
        return float(value)


def train(model, images, digits, options):
    trainer, rng, losses = Trainer(model), np.random.default_rng(options.seed), []
    bar = progress(options.steps)
    for step, batch in zip(bar, batches(images, digits, options.seed, options.batch)):
        losses.append(trainer.step(*batch, rate(step, options.steps, options.rate), rng))
        bar.set_postfix_str(f"loss {np.mean(losses[-20:]):.3f}", refresh=False)
    return losses


def compare(images, digits, options):
    """The first steps without dropout, in turn with the same model in PyTorch."""
    try:
        import digits_vit_torch
    except ModuleNotFoundError as error:
        print(f"PyTorch  not compared: {error}; `make digits-twin` installs it")
        return
    model = VisionTransformer(options.seed)
    trainers = {"attnpy": Trainer(model), "PyTorch": digits_vit_torch.Trainer(model)}
    found, seconds = ({name: [] for name in trainers} for _ in range(2))
    for _, batch in zip(range(FIRST), batches(images, digits, options.seed, options.batch)):
        for name, trainer in trainers.items():
            time.sleep(0.02)  # let the other's threads go to sleep
            start = time.perf_counter()
            found[name].append(trainer.step(*batch, options.rate / 10))
            seconds[name].append(time.perf_counter() - start)
    apart = max(abs(a - b) for a, b in zip(*found.values()))
    print(f"twin     the first {FIRST} losses are at most {apart:.0e} from PyTorch's")
    for name, times in seconds.items():
        print(f"{name:8} {1e3 * statistics.median(times):.1f} ms per step (median of {FIRST})")


def draw(model, images, digits, losses, picture):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2))
    axes = left.subplots()
    axes.plot(losses, color="tab:blue", linewidth=0.8)
    axes.set(xlabel="step", ylabel="cross entropy in nats", title="What is learned")
    axes.grid(alpha=0.3)
    guesses = model(images[:10]).argmax(-1)
    for cell, image, digit, guess in zip(right.subplots(2, 5).flat, images, digits, guesses):
        cell.imshow(image, cmap="gray_r")
        shade = {"cmap": "Reds", "alpha": 0.55, "interpolation": "bilinear"}
        cell.imshow(model.rollout(image), extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5), **shade)
        cell.set_title(f"{digit} read as {guess}", fontsize=9)
        cell.axis("off")
    right.suptitle("Where the class token's content comes from (attention rollout)")
    save(figure, picture)


def main(arguments=None):
    options = parse(arguments)
    (images, digits), (test_images, test_digits) = images_and_digits(options.seed)
    model = VisionTransformer(options.seed)
    count = sum(array.size for array in model.state_dict().values())
    print(f"data     {len(images)} images of {SIDE}x{SIDE} pixels to learn from, {len(test_images)} to be tested on")
    print(f"model    {LAYERS} layers of {HEADS} heads over {TOKENS} patches, {count:,} weights in float32")
    with threadpool_limits(1, "blas"):
        start = time.perf_counter()
        losses = train(model, images, digits, options)
        seconds = time.perf_counter() - start
        print(f"trained  {options.steps} steps in {seconds:.0f} s, {1e3 * seconds / options.steps:.1f} ms each")
        right = np.mean(model(test_images).argmax(-1) == test_digits)
        print(f"test     {100 * right:.1f} % of {len(test_digits)} digits read right")
        draw(model, test_images, test_digits, losses, options.picture)
        if options.twin:
            compare(images, digits, options)
    return float(right)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="the highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, default=ROOT / "build" / "digits_vit.png")
    parser.add_argument("--no-twin", dest="twin", action="store_false", help="do not compare with PyTorch")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
