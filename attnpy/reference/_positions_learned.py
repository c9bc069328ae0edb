"""Learned tables of positions."""

import numpy as np


def add_positions(x, table, offset=0):
    """y_bi = x_bi + table_b(offset_b + i): (..., L, D), (..., N, D) -> (..., L, D)."""
    x, rows = np.asarray(x, np.float64), _rows(offset, np.shape(x))
    table = np.broadcast_to(np.asarray(table, np.float64), (*x.shape[:-2], *np.shape(table)[-2:]))
    return x + np.take_along_axis(table, rows[..., None], -2)


def add_positions_backward(grad_output, table, offset=0):
    """dt_n = the sum of dy_b,(n - offset_b), what the row's tokens got: (..., L, D), (..., N, D) -> (..., N, D)."""
    grad_output, rows = np.asarray(grad_output, np.float64), _rows(offset, np.shape(grad_output))
    shape = (*grad_output.shape[:-2], *np.shape(table)[-2:])
    gradient = np.zeros(shape)
    np.put_along_axis(gradient, np.broadcast_to(rows[..., None], grad_output.shape), grad_output, -2)
    gradient = gradient.sum(tuple(range(gradient.ndim - np.ndim(table))))
    shared = tuple(axis for axis in range(gradient.ndim - 2) if np.shape(table)[axis] == 1)
    return gradient.sum(shared, keepdims=True)


def interpolate_positions(table, length):
    """y = W table, W the weights of linear interpolation: (..., N, D) -> (..., length, D)."""
    return _weights(np.shape(table)[-2], length, _linear) @ np.asarray(table, np.float64)


def interpolate_positions_backward(grad_output, length):
    """dtable = W^T dy: (..., M, D) -> (..., length, D)."""
    return _weights(length, np.shape(grad_output)[-2], _linear).T @ np.asarray(grad_output, np.float64)


def interpolate_positions_2d(table, from_grid, to_grid, *, num_prefix_tokens=0):
    """y_vu = sum_ab W_va W'_ub t_ab, cubic weights; prefix tokens stay: (..., N, D) -> (..., M, D)."""
    along = [_weights(m, n, _cubic) for m, n in zip(from_grid, to_grid, strict=True)]
    return _on_grid(table, from_grid, *along, num_prefix_tokens)


def interpolate_positions_2d_backward(grad_output, from_grid, to_grid, *, num_prefix_tokens=0):
    """dt_ab = sum_vu W_va W'_ub dy_vu, the weights transposed: (..., M, D) -> (..., N, D)."""
    along = [_weights(m, n, _cubic).T for m, n in zip(from_grid, to_grid, strict=True)]
    return _on_grid(grad_output, to_grid, *along, num_prefix_tokens)


def _rows(offset, shape):
    """(..., L): the row of the table that each token takes."""
    offset = np.asarray(offset)
    return np.broadcast_to(offset[..., None] + np.arange(shape[-2]), shape[:-1])


def _weights(m, n, kernel):
    """(n, m): what each of n points takes of each of m. Point o of n lies at (o + 1/2) m/n - 1/2."""
    w = np.zeros((n, m))
    for o in range(n if m else 0):  # from no point nothing is made
        at = (o + 0.5) * (m / n) - 0.5
        for point, weight in kernel(at):
            w[o, min(max(point, 0), m - 1)] += weight  # beyond the ends: the end
    return w


def _linear(at):
    at = max(at, 0.0)
    below = int(np.floor(at))
    return [(below, 1 - (at - below)), (below + 1, at - below)]


def _cubic(at, a=-0.75):
    """Keys' kernel at four neighbours."""
    below = int(np.floor(at))
    found = []
    for point in range(below - 1, below + 3):
        d = abs(at - point)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        found.append((point, near if d <= 1 else far if d < 2 else 0.0))
    return found


def _on_grid(x, grid, along_rows, along_columns, prefix):
    x = np.asarray(x, np.float64)
    kept, patches = x[..., :prefix, :], x[..., prefix:, :]
    patches = patches.reshape(*x.shape[:-2], *grid, x.shape[-1])
    made = np.einsum("va,ub,...abd->...vud", along_rows, along_columns, patches)
    return np.concatenate([kept, made.reshape(*x.shape[:-2], -1, x.shape[-1])], -2)
