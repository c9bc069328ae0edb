"""Weights in safetensors files as NumPy arrays; the package safetensors (extra ``attnpy[models]``) does the work."""

from os import fspath

import numpy as np

__all__ = ["load_safetensors", "save_safetensors"]

WITHOUT_NUMPY = {"BF16": "bfloat16"}  # ml_dtypes has it


def load_safetensors(path):
    """Load the arrays of a safetensors file.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    dict of str to ndarray
        In the file's dtypes; bfloat16 is that of ml_dtypes.

    Raises
    ------
    ImportError
        If the safetensors package, or ml_dtypes where the file needs it, is not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is not a safetensors file, is cut off, or holds a type that NumPy has no name for. The message names the
        file, and the array where there is one.

    See Also
    --------
    save_safetensors, attnpy.nn.Layer.load_state_dict

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from attnpy import io
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     io.save_safetensors(f"{folder}/weights.safetensors", {"weight": np.eye(2)})
    ...     io.load_safetensors(f"{folder}/weights.safetensors")
    {'weight': array([[1., 0.],
           [0., 1.]])}
    """
    safetensors = _package(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: _tensor(file, name, path) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{fspath(path)}: {error}") from error


def save_safetensors(path, arrays, metadata=None):
    """Save arrays to a safetensors file.

    Parameters
    ----------
    path : str or path-like
        What stands there is replaced.
    arrays : mapping of str to array_like
        Any strides and byte orders; a layer's `state_dict()` for example.
    metadata : mapping of str to str, optional
        Kept in the file's header.

    Raises
    ------
    ImportError
        If the safetensors package is not installed.
    OSError
        If the file cannot be written.
    TypeError
        If an array has a dtype that the format lacks: complex128, strings, objects.

    See Also
    --------
    load_safetensors, attnpy.nn.Layer.state_dict

    Examples
    --------
    >>> from attnpy import io, nn
    >>> layer = nn.Linear(3, 2, rng=0)
    >>> io.save_safetensors("linear.safetensors", layer.state_dict())  # doctest: +SKIP
    """
    safetensors = _package(path)
    from safetensors.numpy import save_file

    ready = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        # The package writes what lies in memory from the first element on, whatever the strides.
        ready[name] = np.array(array, array.dtype.newbyteorder("="), order="C", copy=None)
    try:
        save_file(ready, path, metadata=None if metadata is None else dict(metadata))
    except safetensors.SafetensorError as error:
        kind = TypeError if "dtype" in str(error) else OSError
        raise kind(f"{fspath(path)}: {error}") from error


def _package(path):
    try:
        import safetensors
    except ModuleNotFoundError as error:
        raise ImportError(f"{fspath(path)}: needs the safetensors package: pip install 'attnpy[models]'") from error
    return safetensors


def _tensor(file, name, path):
    kind = file.get_slice(name).get_dtype()
    if kind in WITHOUT_NUMPY:
        try:
            import ml_dtypes  # noqa: F401, gives NumPy the types
        except ModuleNotFoundError as error:
            needed = f"{name} is {WITHOUT_NUMPY[kind]}, which needs the ml_dtypes package"
            raise ImportError(f"{fspath(path)}: {needed}: pip install 'attnpy[models]'") from error
    try:
        return file.get_tensor(name)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{fspath(path)}: {name} is of the type {kind}, which NumPy has no name for") from error
