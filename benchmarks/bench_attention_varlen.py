"""Packed sequences: a ragged batch beside an even one of the same work, beside a loop over its sequences and a padded
batch, and many very short sequences."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import peers
from harness import Row, Work

import attnpy


@dataclass(frozen=True)
class Ragged:
    """Sequences of `least` … `most` tokens, as many queries as keys."""

    sequences: int
    least: int
    most: int
    H: int = 8
    D: int = 64

    @property
    def name(self):
        return f"{self.sequences} sequences of {self.least}-{self.most}, H{self.H} D{self.D} float32"

    def starts(self):
        lengths = np.linspace(self.least, self.most, self.sequences).round().astype(int)
        return np.cumsum([0, *np.random.default_rng(1).permutation(lengths)])

    def operands(self, arrays=3):
        shape = int(self.starts()[-1]), self.H, self.D
        return np.random.default_rng(2).standard_normal((arrays, *shape), np.float32)

    def scores(self):
        return int((np.diff(self.starts()) ** 2).sum()) * self.H

    def even(self, arrays=3):
        """As many sequences of one length and about as many scores in all."""
        length = round((self.scores() / self.H / self.sequences) ** 0.5)
        x = np.random.default_rng(3).standard_normal((arrays, self.sequences, length, self.H, self.D), np.float32)
        return list(x.swapaxes(-2, -3))


def forward(case, goal=None):
    def prepare(wanted):
        packed, starts = case.operands(), case.starts()
        even = case.even()
        return Work(
            ours=lambda: attnpy.varlen_attention(*packed, starts, starts),
            flops=4 * case.scores() * case.D,
            head_dim=case.D,
            beside={"even batch": lambda: attnpy.scaled_dot_product_attention(*even)},
            peers=torch_peers(case, packed) if "torch" in wanted else {},
            tolerance=1e-3,
        )

    return Row("varlen_attention", case.name, prepare, goal)


def backward(case, goal=None):
    def prepare(wanted):
        *packed, gradient = case.operands(4)
        starts = case.starts()
        even = case.even(4)
        results = attnpy.varlen_attention(*packed, starts, starts, return_lse=True)
        even_results = attnpy.scaled_dot_product_attention(*even[:3], return_lse=True)
        return Work(
            ours=lambda: attnpy.varlen_attention_backward(gradient, *packed, *results, starts, starts).query,
            flops=10 * case.scores() * case.D,
            head_dim=case.D,
            beside={
                "even batch": lambda: attnpy.scaled_dot_product_attention_backward(even[3], *even[:3], *even_results)
            },
        )

    return Row("varlen_attention_backward", case.name, prepare, goal)


def loop(case):
    """Very short sequences: what the calls of a loop cost, which packing saves."""

    def prepare(wanted):
        packed, starts = case.operands(), case.starts()
        parts = [[x[a:b].swapaxes(0, 1) for x in packed] for a, b in pairwise(starts)]

        def one_by_one():
            for part in parts:
                attnpy.scaled_dot_product_attention(*part)

        return Work(
            ours=lambda: attnpy.varlen_attention(*packed, starts, starts),
            flops=4 * case.scores() * case.D,
            head_dim=case.D,
            yardsticks=(),
            beside={"loop of calls": one_by_one},
        )

    return Row("varlen_attention", case.name + ", beside a loop", prepare)


def torch_peers(case, packed):
    import torch

    starts = case.starts()
    tensors = [peers.tensor(x) for x in packed]
    attention = torch.nn.functional.scaled_dot_product_attention
    lengths = np.diff(starts)
    padded = [torch.zeros(case.sequences, case.H, int(lengths.max()), case.D) for _ in packed]
    for n, (a, b) in enumerate(pairwise(starts)):
        for whole, x in zip(padded, tensors, strict=True):
            whole[n, :, : b - a] = x[a:b].transpose(0, 1)
    mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]

    def one_by_one():
        output = torch.empty_like(tensors[0])
        with torch.inference_mode():
            for a, b in pairwise(starts):
                output[a:b] = attention(*(x[a:b].transpose(0, 1) for x in tensors)).transpose(0, 1)
        return output.numpy()

    def with_mask():
        with torch.inference_mode():
            output = attention(*padded, attn_mask=mask[:, None, None, :])
            return output.transpose(1, 2)[mask].numpy()

    return {"torch": one_by_one, "torch, padded": with_mask}


def rows():
    yield forward(Ragged(64, 10, 500), ("even batch", 0.9))
    yield backward(Ragged(64, 10, 500), ("even batch", 0.9))
    yield loop(Ragged(10000, 1, 5))
