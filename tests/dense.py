"""Keys and values that lie in pages or in a cache, put one after another: calls of the plain function."""

import numpy as np


def of_pages(arguments):
    """A call of paged_attention as one of scaled_dot_product_attention: key (..., G, S, E), S the longest length."""
    given = dict(arguments)
    batch = np.shape(given["query"])[:-3]
    key, value = np.asarray(given.pop("key_pages")), np.asarray(given.pop("value_pages"))
    table, lengths = np.asarray(given.pop("block_table")), np.broadcast_to(given["kv_lengths"], batch)
    table = np.broadcast_to(table, (*batch, np.shape(table)[-1]))
    S, size = int(lengths.max(initial=0)), key.shape[1]
    j = np.arange(S)
    inside = j < lengths[..., None]
    page = np.where(inside, table[..., j // size], 0) if S else np.zeros((*batch, 0), int)

    def gathered(pages):
        rows = np.where(inside[..., None, None], pages[page, j % size], np.zeros((), pages.dtype))
        return np.ascontiguousarray(rows.swapaxes(-3, -2))

    return given | {"key": gathered(key), "value": gathered(value), "kv_lengths": lengths}


def of_cache(arguments):
    """The same of attention_with_cache. int8 times its scale is rounded to float32 unless query is float64."""
    given = dict(arguments)
    cache, layer = given.pop("cache"), given.pop("layer")
    view, lengths = cache.view(layer), cache.lengths(layer)

    def placed(rows, scale):
        if scale is not None:
            kind = np.float64 if np.asarray(given["query"]).dtype == np.float64 else np.float32
            rows = rows.astype(kind) * scale[..., None].astype(kind)
        whole = np.zeros((*rows.shape[:2], int(lengths.max()), rows.shape[-1]), rows.dtype)
        for b, positions in enumerate(view.position):
            whole[b][:, positions[positions >= 0]] = rows[b][:, positions >= 0]
        return whole

    if cache.window is not None:
        given.setdefault("window_size", (cache.window, -1))
    given.setdefault("is_causal", True)
    key, value = placed(view.key, view.key_scale), placed(view.value, view.value_scale)
    return given | {"key": key, "value": value, "kv_lengths": lengths}
