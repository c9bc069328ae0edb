"""Rows of a table by their numbers, and the gradient of the table."""

import numpy as np


def embedding(indices, table):
    """y_i = table_v, v = indices_i: (..., ), (V, D) -> (..., D)."""
    return np.asarray(table, np.float64)[np.asarray(indices, np.intp)]


def embedding_backward(grad_output, indices, num_embeddings):
    """dtable_v = sum_i g_i over indices_i = v: (..., D), (..., ) -> (V, D)."""
    g, indices = np.asarray(grad_output, np.float64), np.asarray(indices, np.intp)
    grad = np.zeros((num_embeddings, g.shape[-1]))
    np.add.at(grad, indices, g)
    return grad
