"""Cases of attention: sizes and options, from which the names, the arrays and the operations of a row are computed."""

from dataclasses import dataclass

import numpy as np

import attnpy


@dataclass(frozen=True)
class Attention:
    """A case: its sizes (G key/value heads, H by default; S keys, L by default) and what is asked for. The row's
    name is computed from it."""

    H: int
    L: int
    D: int = 64
    B: int = 1
    keys: int | None = None
    shared: int | None = None
    dtype: str = "float32"
    causal: bool = False
    window: tuple | None = None
    softcap: float = 0.0
    alibi: bool = False
    relative: int = 0
    biased: bool = False
    masked: bool = False
    dropout: bool = False

    @property
    def S(self):
        return self.keys or self.L

    @property
    def G(self):
        return self.shared or self.H

    @property
    def compute(self):
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def name(self):
        heads = f"{self.H}" if self.H == self.G else f"{self.H}:{self.G}"
        words = [f"B{self.B} H{heads} L{self.L} S{self.S} D{self.D} {self.dtype}"]
        words += [f"window({self.window[0]},{self.window[1]})"] if self.window else []
        words += [f"softcap({self.softcap:g})"] if self.softcap else []
        words += [f"relative_bias({2 * self.relative + 1})"] if self.relative else []
        words += [word for word in ("causal", "alibi", "biased", "masked", "dropout") if getattr(self, word)]
        return " ".join(words)

    def operands(self, sets=1):
        """Query, key, value; further sets repeat the numbers in memory of their own."""
        rng = np.random.default_rng(1)
        shapes = [(self.B, self.H, self.L, self.D)] + 2 * [(self.B, self.G, self.S, self.D)]
        first = [rng.standard_normal(shape, np.float32).astype(stored(self.dtype)) for shape in shapes]
        return [first] + [[first[0], first[1].copy(), first[2].copy()] for _ in range(1, sets)]

    def keywords(self):
        """What attnpy is asked for."""
        rng = np.random.default_rng(2)
        keywords = {"is_causal": True} if self.causal else {}
        keywords |= {"window_size": self.window} if self.window else {}
        keywords |= {"softcap": self.softcap} if self.softcap else {}
        keywords |= {"alibi_slopes": self.slopes()} if self.alibi else {}
        keywords |= {"relative_bias": self.table()} if self.relative else {}
        keywords |= {"bias": rng.standard_normal((self.H, self.L, self.S), np.float32)} if self.biased else {}
        keywords |= {"attn_mask": rng.random((self.L, self.S)) < 0.9} if self.masked else {}
        keywords |= {"dropout_p": 0.1, "rng": attnpy.dropout_key(rng)} if self.dropout else {}
        return keywords

    def slopes(self):
        return np.float32(2) ** (-8 * np.arange(1, self.H + 1, dtype=np.float32) / self.H)

    def table(self):
        """A row for each head, of distances from -K to K."""
        return np.random.default_rng(3).standard_normal((self.H, 1, 2 * self.relative + 1), np.float32)

    def dense(self):
        """The same as a bool mask (L, S) and an additive bias (H, L, S) for libraries that have no more; None where
        there is nothing."""
        keywords, mask = self.keywords(), None
        if self.causal or self.window or self.masked:
            keys = np.arange(self.S)
            low, high = self.ranges()
            mask = (keys >= low[:, None]) & (keys < high[:, None]) & keywords.get("attn_mask", True)
        bias = keywords.get("bias")
        behind = np.arange(self.L)[:, None] + self.S - self.L - np.arange(self.S)
        if self.alibi:
            bias = -self.slopes()[:, None, None] * np.abs(behind).astype(np.float32) + (0 if bias is None else bias)
        if self.relative:
            column = np.clip(-behind, -self.relative, self.relative) + self.relative
            bias = self.table()[:, 0, column] + (0 if bias is None else bias)
        return mask, bias

    def ranges(self):
        """First visible key, and one past the last, of every query."""
        position = np.arange(self.L) + self.S - self.L
        low, high = np.zeros(self.L, int), np.full(self.L, self.S)
        if self.causal:
            high = np.minimum(high, position + 1)
        if self.window and self.window[0] >= 0:
            low = np.maximum(low, position - self.window[0])
        if self.window and self.window[1] >= 0:
            high = np.minimum(high, position + self.window[1] + 1)
        return low, np.maximum(high, low)

    def flops(self):
        """Of the visible scores, and of the 64-row blocks that hold them: two products of 2 D operations for each."""
        low, high = self.ranges()
        visible = int(self.keywords()["attn_mask"].sum()) if self.masked else int((high - low).sum())
        first = range(0, self.L, 64)
        blocks = sum(int(high[i : i + 64].max() - low[i : i + 64].min()) * min(64, self.L - i) for i in first)
        each = 4 * self.B * self.H * self.D
        return each * visible, each * blocks


def stored(dtype):
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    return np.dtype(dtype)
