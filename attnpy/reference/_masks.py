"""The masks of attnpy.BlockMask as dense boolean arrays, place by place."""

import numpy as np


class BlockMask:
    """The constructors of `attnpy.BlockMask`; each returns the dense mask M (..., L, S): M_ij = query i sees key j.

    Query i stands at position i + offset, key j at position j; the default offset is S - L.
    """

    @staticmethod
    def from_dense(mask):
        """M = mask, (..., L, S)."""
        return np.array(mask, bool)

    @staticmethod
    def from_function(mask_mod, query_length, key_length, *, batch=None, heads=None):
        """M_bhij = mask_mod(b, h, i, j): (L, S), (heads, L, S), (batch, 1, L, S) or (batch, heads, L, S)."""
        shape = (1 if batch is None else batch, 1 if heads is None else heads, query_length, key_length)
        dense = np.broadcast_to(mask_mod(*np.indices(shape, sparse=True)), shape)
        if batch is None:
            dense = dense.reshape(shape[1:] if heads is not None else shape[2:])
        return dense.copy()

    @staticmethod
    def from_blocks(*, indices, indptr, block_size, shape):
        """M_ij = 1 where block j // wide is among indices[indptr[b] : indptr[b + 1]], b = i // tall: (..., L, S)."""
        *lead, L, S = shape
        tall, wide = block_size if isinstance(block_size, tuple | list) else (block_size, block_size)
        indices, indptr = np.asarray(indices, int), np.asarray(indptr, int)
        blocks = np.zeros((*lead, -(-L // tall), -(-S // wide)), bool)
        for *place, b in np.ndindex(blocks.shape[:-1]):
            start, stop = indptr[(*place, slice(b, b + 2))]
            blocks[(*place, b, indices[start:stop])] = True
        return blocks[..., np.arange(L)[:, None] // tall, np.arange(S) // wide]

    @staticmethod
    def causal(query_length, key_length, offset=None):
        """M_ij = j <= i + offset: (L, S)."""
        return _distance(query_length, key_length, offset) <= 0

    @staticmethod
    def sliding_window(query_length, key_length, left, right, *, dilation=1, offset=None):
        """M_ij = -left dilation <= j - i - offset <= right dilation and dilation divides j - i - offset: (L, S)."""
        distance = _distance(query_length, key_length, offset)
        reach = (left < 0) | (-left * dilation <= distance)
        reach &= (right < 0) | (distance <= right * dilation)
        return reach & (distance % dilation == 0)

    @staticmethod
    def global_tokens(length, tokens):
        """M_ij = i or j is a global token: (L, L) or (..., 1, L, L)."""
        chosen = _chosen(tokens, length)
        return _with_head_axis(chosen[..., :, None] | chosen[..., None, :])

    @staticmethod
    def longformer(length, window, global_tokens):
        """M_ij = |i - j| <= window, or i or j is a global token: (L, L) or (..., 1, L, L)."""
        near = BlockMask.sliding_window(length, length, window, window)
        return near | BlockMask.global_tokens(length, global_tokens)

    @staticmethod
    def bigbird(length, *, block_size=64, num_random=3, window=3, num_global=2, rng):
        """M_ij = block j // block_size is visible to block i // block_size: (L, L).

        The first ceil(num_global / 2) and the last floor(num_global / 2) blocks see all and are seen by all; the others
        see their window, and num_random of the blocks left over, all of them equally likely.
        """
        count = -(-length // block_size)
        everywhere = np.zeros(count, bool)
        everywhere[: -(-num_global // 2)] = True
        everywhere[max(count - num_global // 2, 0) :] = True
        blocks = everywhere[:, None] | everywhere
        for row in np.flatnonzero(~everywhere):
            blocks[row, max(row - window // 2, 0) : row + window // 2 + 1] = True
            free = np.flatnonzero(~blocks[row])
            if len(free):
                blocks[row, free[rng.choice(len(free), min(num_random, len(free)), replace=False)]] = True
        i = np.arange(length) // block_size
        return blocks[i[:, None], i]

    @staticmethod
    def documents(query_ids, key_ids=None):
        """M_ij = query_ids_i is key_ids_j: (L, S) or (..., 1, L, S)."""
        query_ids = np.asarray(query_ids)
        key_ids = query_ids if key_ids is None else np.asarray(key_ids)
        return _with_head_axis(query_ids[..., :, None] == key_ids[..., None, :])

    @staticmethod
    def prefix(length, prefix_length):
        """M_ij = j <= i or j < prefix_length: (L, L) or (..., 1, L, L)."""
        return BlockMask.causal(length, length) | BlockMask.lengths(length, length, prefix_length)

    @staticmethod
    def lengths(query_length, key_length, key_lengths):
        """M_ij = j < key_lengths: (L, S) or (..., 1, L, S)."""
        valid = np.arange(key_length) < np.asarray(key_lengths)[..., None]
        return _with_head_axis(np.repeat(valid[..., None, :], query_length, axis=-2))


def _distance(query_length, key_length, offset):
    """j - i - offset, (L, S)."""
    offset = key_length - query_length if offset is None else offset
    return np.arange(key_length) - np.arange(query_length)[:, None] - offset


def _chosen(tokens, length):
    """Positions or bools as bools, (..., length)."""
    tokens = np.asarray(tokens)
    if tokens.dtype == bool:
        return tokens
    chosen = np.zeros(length, bool)
    chosen[tokens.astype(int)] = True
    return chosen


def _with_head_axis(mask):
    """(..., L, S) of batch elements -> (..., 1, L, S)."""
    return mask[..., None, :, :] if mask.ndim > 2 else mask
