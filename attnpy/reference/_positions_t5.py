"""T5's relative position biases."""

import numpy as np


def relative_position_bucket(relative_position, bidirectional=True, num_buckets=32, max_distance=128):
    """One bucket for each of the distances 0 … m - 1, then buckets whose widths grow geometrically: (...) -> (...).

    Bucket m + k begins where (n - m) ln(d / m) / ln(max_distance / m) reaches k = 1, 2 …: at the first d with
    d^(n-m) >= max_distance^k m^(n-m-k), which whole numbers decide exactly.
    """
    n = num_buckets // 2 if bidirectional else num_buckets  # buckets of one direction
    m = n // 2
    buckets = [_bucket(int(x), bidirectional, n, m, max_distance) for x in np.ravel(relative_position)]
    return np.array(buckets, np.int64).reshape(np.shape(relative_position))


def _bucket(x, bidirectional, n, m, max_distance):
    after = n if bidirectional and x > 0 else 0
    d = abs(x) if bidirectional else max(-x, 0)
    if d < m:
        return after + d
    k = 0
    while k < n - m - 1 and d ** (n - m) >= max_distance ** (k + 1) * m ** (n - m - k - 1):
        k += 1
    return after + m + k


def t5_relative_bias(table, query_length, key_length, *, offset=None, bidirectional=True, max_distance=128):
    """bias_h0c = table_bh with b = bucket(c - K): (num_buckets, H) -> (H, 1, 2 K + 1).

    K: distances beyond it are in the bucket of K, or do not occur.
    """
    buckets = _columns(np.shape(table)[0], query_length, key_length, offset, bidirectional, max_distance)
    return np.asarray(table, np.float64)[buckets].T[:, None, :]


def t5_relative_bias_backward(
    grad_output, table, query_length, key_length, *, offset=None, bidirectional=True, max_distance=128
):
    """dtable_bh = sum of dbias_h0c over the columns c of bucket b: (H, 1, 2 K + 1) -> (num_buckets, H)."""
    buckets = _columns(np.shape(table)[0], query_length, key_length, offset, bidirectional, max_distance)
    grad_table = np.zeros(np.shape(table))
    np.add.at(grad_table, buckets, np.asarray(grad_output, np.float64)[:, 0, :].T)
    return grad_table


def _columns(num_buckets, query_length, key_length, offset, bidirectional, max_distance):
    """The buckets of -K … K."""
    offset = key_length - query_length if offset is None else offset
    distances = [0]
    if query_length and key_length:
        distances += [-(query_length - 1) - offset, key_length - 1 - offset]
    if not bidirectional:  # all keys after the query are in bucket 0
        distances = [min(d, 0) for d in distances]
    K = max(abs(d) for d in distances)
    last = relative_position_bucket(-K, bidirectional, num_buckets, max_distance)
    while K > 0 and relative_position_bucket(1 - K, bidirectional, num_buckets, max_distance) == last:
        K -= 1  # the one before is in the same bucket
    return relative_position_bucket(np.arange(-K, K + 1), bidirectional, num_buckets, max_distance)
