"""Pictures of attention weights and of positions, with matplotlib (extra ``attnpy[plot]``), loaded at first use."""

import numpy as np

__all__ = ["heatmap", "positions"]

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


def positions(
    scheme="sinusoidal",
    *,
    length=None,
    dim=128,
    num_heads=8,
    base=10000.0,
    num_buckets=32,
    max_distance=128,
    ax=None,
    cmap=None,
    fontsize=9,
):
    """Draw how a scheme tells positions apart: the pictures that papers show.

    Parameters
    ----------
    scheme : {"sinusoidal", "rotary", "t5", "alibi"}
        "sinusoidal": the encoding as an image, positions down, features across, all sines before all cosines.
        "rotary": the angle by which each pair of features is turned, as a fan of points for each of eight pairs, the
        fastest innermost; the colour is the position.
        "t5": the bucket of each distance, with keys on both sides and causal.
        "alibi": what is added to a score at each distance, one line a head.
    length : int, optional
        Positions, or the farthest distance. The defaults are 128, 16 for rotary, 1.25 `max_distance` for T5.
    dim : int, default 128
        Features of a sinusoidal encoding, or of a head that is turned.
    num_heads : int, default 8
        Heads of ALiBi.
    base : float, default 10000.0
        Of sinusoids and rotary angles.
    num_buckets, max_distance : int
        Of T5.
    ax : matplotlib Axes, optional
        Where to draw; the default is a new figure.
    cmap : str or Colormap, optional
        The default is "RdBu" for sinusoids, else "viridis".
    fontsize : float, default 9
        Size of the labels in points.

    Returns
    -------
    Axes
        The figure is ``ax.figure``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If `scheme` is none of these, or `length` or `dim` is less than 2.

    See Also
    --------
    attnpy.sinusoidal_encoding, attnpy.relative_position_bucket, attnpy.alibi_slopes

    Examples
    --------
    >>> import attnpy.plot
    >>> ax = attnpy.plot.positions("alibi", num_heads=4)
    >>> len(ax.lines)
    4
    """
    drawings = {"sinusoidal": _draw_sinusoids, "rotary": _draw_rotation, "t5": _draw_buckets, "alibi": _draw_slopes}
    if scheme not in drawings:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {', '.join(map(repr, drawings))}")
    if length is None:
        length = {"rotary": 16, "t5": max_distance * 5 // 4}.get(scheme, 128)
    if min(length, dim) < 2:
        raise ValueError(f"length is {length}, dim {dim}; both must be at least 2")
    plt = _pyplot()
    cell = ax
    if cell is None:
        _, cell = plt.subplots(layout="constrained", figsize=(5.2, 4.6 if scheme == "rotary" else 3.6))
    colours = plt.get_cmap(cmap or ("RdBu" if scheme == "sinusoidal" else "viridis"))
    drawings[scheme](
        cell, colours, length=length, dim=dim, num_heads=num_heads, base=base, buckets=(num_buckets, max_distance)
    )
    cell.tick_params(labelsize=fontsize)
    for label in (cell.xaxis.label, cell.yaxis.label, cell.title):
        label.set_fontsize(fontsize)
    if cell.get_legend_handles_labels()[1]:
        cell.legend(fontsize=fontsize - 1, frameon=False, loc="best")
    return cell


def _draw_sinusoids(cell, colours, *, length, dim, base, **_):
    import attnpy

    table = attnpy.sinusoidal_encoding(length, dim, base=base, layout="concatenated")
    image = cell.imshow(table, cmap=colours, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    cell.figure.colorbar(image, ax=cell, fraction=0.05, pad=0.02)
    cell.set(xlabel="feature: sines, then cosines", ylabel="position", title=f"sinusoids, dim {dim}")


def _draw_rotation(cell, colours, *, length, dim, base, **_):
    pairs = np.unique(np.linspace(0, dim // 2 - 1, 8).round().astype(int))
    position = np.arange(length)
    for ring, pair in enumerate(pairs, 1):
        angle = position * base ** (-2 * pair / dim)
        x, y = ring * np.cos(angle), ring * np.sin(angle)
        circle = np.linspace(0, 2 * np.pi, 200)
        cell.plot(ring * np.cos(circle), ring * np.sin(circle), color="0.85", linewidth=0.6, zorder=0)
        for i in position:
            cell.plot([0.86 * x[i], x[i]], [0.86 * y[i], y[i]], color=colours(i / (length - 1)), linewidth=1.2)
        cell.annotate(str(pair), (-ring, 0), ha="center", va="center", fontsize=7, color="0.4", backgroundcolor="w")
    low = cell.scatter([], [], c=[], cmap=colours, vmin=0, vmax=length - 1)
    cell.figure.colorbar(low, ax=cell, fraction=0.05, pad=0.02).set_label("position")
    cell.set(aspect="equal", title=f"rotary angles, pairs of {dim // 2}", xticks=[], yticks=[], frame_on=False)


def _draw_buckets(cell, colours, *, length, buckets, **_):
    import attnpy

    distance = np.arange(-length, length + 1)
    for causal, label in ((False, "keys on both sides"), (True, "causal")):
        bucket = attnpy.relative_position_bucket(distance, not causal, *buckets)
        shown = distance <= 0 if causal else slice(None)
        colour = colours(0.75 if causal else 0.1)
        cell.step(distance[shown], bucket[shown], where="mid", color=colour, linewidth=1.4, label=label)
    title = f"T5: {buckets[0]} buckets up to distance {buckets[1]}"
    cell.set(xlabel="key position - query position", ylabel="bucket", title=title)


def _draw_slopes(cell, colours, *, length, num_heads, **_):
    import attnpy

    slopes = np.asarray(attnpy.alibi_slopes(num_heads))
    distance = np.arange(length + 1)
    for head in range(num_heads):
        colour = colours(head / max(num_heads - 1, 1))
        label = f"head {head}, {slopes[head]:.3g}" if num_heads <= 8 else None
        cell.plot(-distance, -slopes[head] * distance, color=colour, linewidth=1.2, label=label)
    cell.set(xlabel="key position - query position", ylabel="added to the score", title=f"ALiBi, {num_heads} heads")


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
