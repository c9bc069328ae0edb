"""Pictures of attention weights, with matplotlib (the extra ``attnpy[plot]``), which is imported at the first call."""

import numpy as np

__all__ = ["heatmap"]

_LONGEST_LABEL = 14  # characters; longer tokens end in an ellipsis
_INCHES = 1 / 72  # font sizes are in points


def heatmap(
    weights,
    query_tokens=None,
    key_tokens=None,
    *,
    head=None,
    titles=None,
    ax=None,
    cmap="Blues",
    vmin=None,
    vmax=None,
    annotate=None,
    max_columns=4,
    fontsize=9,
):
    """Draw attention weights as a heat map: queries down, keys across.

    One head gives one picture, several heads give a grid of pictures that share one colour scale.

    Letters: H heads, L queries, S keys.

    Parameters
    ----------
    weights : (L, S) or (H, L, S) array_like
        Weights, as `attnpy.attention_weights` returns them; further leading axes must have length 1. NaN is drawn grey.
    query_tokens : sequence of L str, optional
        Labels of the rows; the default is their positions.
    key_tokens : sequence of S str, optional
        Labels of the columns; the default is `query_tokens` where L = S, else their positions.
    head : int, optional
        Draw this head only, as one picture; negative numbers count from the end.
    titles : str or sequence of H str, optional
        Titles of the pictures. The default is "head 0", "head 1", … for a grid and none for one head.
    ax : matplotlib Axes, or array of at least H of them, optional
        Where to draw; the default is a new figure of fitting size.
    cmap : str or Colormap, default "Blues"
    vmin, vmax : float, optional
        Ends of the colour scale. The defaults are the largest weight drawn and 0, or the smallest if that is negative.
    annotate : bool, optional
        Write each weight into its cell. The default is to do so for one head where the numbers fit.
    max_columns : int, default 4
        Pictures in one row of a grid.
    fontsize : float, default 9
        Size of the labels in points. Labels that would overlap at this size are thinned out evenly.

    Returns
    -------
    Axes, or (rows, columns) ndarray of Axes
        One Axes for one head, an array for a grid; the unused cells of its last row are invisible.
        The figure is ``ax.figure``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the number of axes, tokens, titles or Axes does not fit `weights`.
    IndexError
        If `head` is out of range.

    See Also
    --------
    attnpy.attention_weights

    Examples
    --------
    >>> import numpy as np, attnpy.plot
    >>> ax = attnpy.plot.heatmap(np.eye(3), ["the", "robot", "ate"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['the', 'robot', 'ate']
    """
    plt = _pyplot()
    heads, single = _heads(weights, head)
    titles = _titles(titles, len(heads), single)
    query_tokens = _tokens("query_tokens", query_tokens, heads.shape[1])
    if key_tokens is None and query_tokens is not None and heads.shape[1] == heads.shape[2]:
        key_tokens = query_tokens
    key_tokens = _tokens("key_tokens", key_tokens, heads.shape[2])
    axes = _axes(plt, ax, heads.shape, single, max_columns, query_tokens, key_tokens, fontsize)
    scale = _colour_scale(heads, vmin, vmax)

    columns = axes.shape[1]
    for picture, (cell, weight) in enumerate(zip(axes.flat, heads)):
        image = cell.imshow(weight, cmap=_grey_where_bad(plt, cmap), aspect="auto", interpolation="nearest", **scale)
        cell.set_title(titles[picture], fontsize=fontsize + 1, parse_math=False)
        cell.tick_params(length=2, labelsize=fontsize)
    for cell in axes.flat[len(heads) :]:
        cell.set_visible(False)
    used = list(axes.flat[: len(heads)])
    used[0].figure.colorbar(image, ax=used, fraction=0.05, pad=0.02, aspect=30).ax.tick_params(labelsize=fontsize)

    _settle_layout(used, columns if ax is None else 1, query_tokens, key_tokens, heads.shape, fontsize)
    for cell, weight in zip(used, heads):
        if annotate or (annotate is None and single and _numbers_fit(cell, weight.shape, fontsize)):
            _write_numbers(cell, weight, fontsize)
    return used[0] if single else axes


def _pyplot():
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("attnpy.plot needs matplotlib: pip install 'attnpy[plot]'") from error
    return plt


def _heads(weights, head):
    """The heads to draw, (H, L, S), and whether they are one picture."""
    weights = np.asarray(weights).astype(np.float64)
    if weights.ndim < 2 or any(length != 1 for length in weights.shape[:-3]) or 0 in weights.shape:
        raise ValueError(
            f"weights has shape {weights.shape}; wanted (L, S) or (H, L, S), not empty: choose one batch element"
        )
    single = weights.ndim == 2 or head is not None
    heads = weights.reshape(-1, *weights.shape[-2:])
    if head is not None:
        if not -len(heads) <= head < len(heads):
            raise IndexError(f"head is {head}; weights has {len(heads)} heads")
        heads = heads[head][None]
    return heads, single


def _titles(titles, count, single):
    if titles is None:
        return [""] if single else [f"head {h}" for h in range(count)]
    titles = [titles] if isinstance(titles, str) else list(titles)
    if len(titles) != count:
        raise ValueError(f"titles has {len(titles)} entries; wanted one for each of {count} heads")
    return titles


def _tokens(name, tokens, length):
    if tokens is None:
        return None
    tokens = [str(token) for token in tokens]
    if len(tokens) != length:
        raise ValueError(f"{name} has {len(tokens)} entries; weights wants {length}")
    return [token if len(token) <= _LONGEST_LABEL else token[: _LONGEST_LABEL - 1] + "…" for token in tokens]


def _colour_scale(heads, vmin, vmax):
    finite = heads[np.isfinite(heads)]
    low = min(0.0, finite.min(initial=0.0)) if vmin is None else vmin
    high = finite.max(initial=low) if vmax is None else vmax
    return {"vmin": low, "vmax": high if high > low else low + 1.0}


def _grey_where_bad(plt, cmap):
    return plt.get_cmap(cmap).with_extremes(bad="0.8")


def _axes(plt, ax, shape, single, max_columns, query_tokens, key_tokens, fontsize):
    """A 2-D array of Axes for H pictures: the given ones, or those of a new figure."""
    count, length, keys = shape
    if ax is not None:
        given = np.atleast_1d(np.asarray(ax, dtype=object))
        if given.size < count:
            raise ValueError(f"ax holds {given.size} Axes; wanted {count}, one for each head")
        return given if given.ndim == 2 else given.reshape(1, -1)
    if max_columns < 1:
        raise ValueError(f"max_columns is {max_columns}; wanted at least 1")
    columns = min(count, max_columns)
    rows = -(-count // columns)
    largest = 8.0 if single else 3.2
    cell = min(3.6 * fontsize * _INCHES, largest / max(keys, length))
    width, height = max(keys * cell, 2.0), max(length * cell, 1.0)
    left, bottom = (_longest(tokens) * 0.65 * fontsize * _INCHES + 0.5 for tokens in (query_tokens, key_tokens))
    _, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(columns * width + left + 0.9, rows * (height + 0.3) + bottom),
    )
    return axes


def _longest(tokens):
    return 4 if tokens is None else max(map(len, tokens))


def _settle_layout(used, columns, query_tokens, key_tokens, shape, fontsize):
    """Labels, thinned to what the size of the pictures allows; that size depends on the labels, hence two rounds."""
    count, length, keys = shape
    for _ in range(2):
        for picture, cell in enumerate(used):
            leftmost, lowest = picture % columns == 0, picture + columns >= count
            _label_rows(cell, query_tokens, length, fontsize, leftmost)
            _label_columns(cell, key_tokens, keys, fontsize, lowest)
        used[0].figure.draw_without_rendering()


def _label_rows(cell, tokens, length, fontsize, shown):
    height = _size(cell)[1]
    places = _thinned(length, height, 1.3 * fontsize * _INCHES)
    cell.set_yticks(places, _texts(tokens, places) if shown else [""] * len(places), parse_math=False)
    cell.set_ylabel("query" if shown else "", fontsize=fontsize)


def _label_columns(cell, tokens, keys, fontsize, shown):
    width = _size(cell)[0]
    places = _thinned(keys, width, 1.3 * fontsize * _INCHES)
    texts = _texts(tokens, places)
    widest = max(map(len, texts)) * 0.7 * fontsize * _INCHES
    room = width / keys * (places[1] if len(places) > 1 else 1)
    angle = 0 if widest <= room else 45 if 2 * fontsize * _INCHES <= room else 90
    turned = (
        {"rotation": angle, "rotation_mode": "anchor", "ha": "right", "va": "top" if angle < 90 else "center"}
        if angle
        else {}
    )
    cell.set_xticks(places, texts if shown else [""] * len(places), parse_math=False, **turned)
    cell.set_xlabel("key" if shown else "", fontsize=fontsize)


def _size(cell):
    """Width and height in inches."""
    box = cell.get_window_extent()
    return box.width / cell.figure.dpi, box.height / cell.figure.dpi


def _thinned(count, inches, least):
    """Every n-th position, with n of 1, 2, 5, 10, … the first that leaves `least` inches to each label."""
    step = next(n * 10**power for power in range(19) for n in (1, 2, 5) if inches / count * n * 10**power >= least)
    return list(range(0, count, step))


def _texts(tokens, places):
    return [str(place) if tokens is None else tokens[place] for place in places]


def _numbers_fit(cell, shape, fontsize):
    width, height = _size(cell)
    letter = fontsize * _INCHES
    return width / shape[1] >= 2.6 * letter and height / shape[0] >= 1.6 * letter


def _write_numbers(cell, weight, fontsize):
    image = cell.get_images()[0]
    for i, j in np.ndindex(weight.shape):
        red, green, blue, _ = image.cmap(image.norm(weight[i, j]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        cell.text(
            j,
            i,
            f"{weight[i, j]:.2f}",
            ha="center",
            va="center",
            fontsize=fontsize - 1,
            color="white" if dark else "black",
        )
