"""How many threads attnpy uses, and what was built and chosen."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ._native import core as _core


def get_num_threads() -> int:
    """The number of threads that a call may use.

    Returns
    -------
    int

    See Also
    --------
    set_num_threads, num_threads

    Notes
    -----
    At first it is the environment's ``ATTNPY_NUM_THREADS``, else ``OMP_NUM_THREADS``, but not more than the CPUs that
    the process may use (affinity and container quota). Results do not depend on it, not in a single bit.

    threadpoolctl can limit it too, as user_api "attnpy", or together with all other libraries. Where it is imported
    after attnpy, it knows attnpy from the next call of a function about threads; ``attnpy.get_num_threads()`` will do.

    Examples
    --------
    >>> import attnpy
    >>> attnpy.get_num_threads() >= 1
    True
    """
    _meet_threadpoolctl()
    return _core.get_num_threads()


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads that a call may use, for the whole process.

    Parameters
    ----------
    num_threads : int
        1 … 1024. 1 computes in the calling thread only.

    Raises
    ------
    TypeError
        If `num_threads` is not an integer.
    ValueError
        If it is out of range.

    See Also
    --------
    get_num_threads, num_threads

    Examples
    --------
    >>> import attnpy
    >>> attnpy.set_num_threads(attnpy.get_num_threads())
    """
    _meet_threadpoolctl()
    _core.set_num_threads(num_threads)


class num_threads:
    """Context in which calls may use `num_threads` threads; afterwards the former number holds again.

    Parameters
    ----------
    num_threads : int
        1 … 1024. It holds for the whole process, other Python threads included.

    Raises
    ------
    TypeError
        If `num_threads` is not an integer; on entering.
    ValueError
        If it is out of range; on entering.

    See Also
    --------
    get_num_threads, set_num_threads

    Notes
    -----
    Contexts may be nested, and one may be entered several times. Leaving by an exception restores the number too.

    Examples
    --------
    >>> import attnpy
    >>> with attnpy.num_threads(1):
    ...     attnpy.get_num_threads()
    1
    """

    def __init__(self, num_threads: int) -> None:
        self._wanted = num_threads
        self._former: list[int] = []

    def __enter__(self) -> num_threads:
        former = get_num_threads()
        set_num_threads(self._wanted)
        self._former.append(former)
        return self

    def __exit__(self, *error: object) -> None:
        set_num_threads(self._former.pop())


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show which attnpy is running: version, CPU level, threads, compiler, NumPy.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print a text, or return the same facts as a dict.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        If `mode` is neither of the two.

    See Also
    --------
    get_num_threads, numpy.show_config

    Notes
    -----
    The level is chosen when attnpy is imported; the environment's ``ATTNPY_ISA`` (baseline, avx2, avx512) forces one.
    Where the compiled module cannot be loaded, this function says why.

    Examples
    --------
    >>> import attnpy
    >>> sorted(attnpy.show_config(mode="dicts"))[:3]
    ['attnpy', 'compiler', 'cpu']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}; it must be 'stdout' or 'dicts'")
    from . import __version__

    facts: dict[str, Any] = {"attnpy": __version__, "python": sys.version.split()[0], "numpy": np.__version__}
    try:
        facts |= _core.config() | {"threads": get_num_threads()}
    except ImportError as error:
        facts["compiled module"] = str(error.__cause__)
    if mode == "dicts":
        return facts
    width = max(map(len, facts))
    print("\n".join(f"{name:{width}}  {fact}" for name, fact in facts.items()))
    return None


_known_to_threadpoolctl = False


def _meet_threadpoolctl() -> None:
    """Registers attnpy with threadpoolctl once that is loaded. To load it here would double the cost of our import."""
    global _known_to_threadpoolctl
    if _known_to_threadpoolctl or "threadpoolctl" not in sys.modules:
        return
    import ctypes

    import threadpoolctl

    class Controller(threadpoolctl.LibController):
        """Finds the thread controls in the compiled module, by the symbols that it exports."""

        user_api = internal_api = "attnpy"
        filename_prefixes = ("_core",)
        check_symbols = ("attnpy_get_num_threads", "attnpy_set_num_threads", "attnpy_get_version")

        def get_num_threads(self):
            return self.dynlib.attnpy_get_num_threads()

        def set_num_threads(self, num_threads):
            self.dynlib.attnpy_set_num_threads(num_threads)

        def get_version(self):
            version = getattr(self.dynlib, "attnpy_get_version", None)
            if version is None:
                return None
            version.restype = ctypes.c_char_p
            return version().decode()

    _known_to_threadpoolctl = True
    threadpoolctl.register(Controller)


_meet_threadpoolctl()
