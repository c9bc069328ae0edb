"""`core`: the compiled module attnpy._core, or what stands in for it where it cannot be loaded."""


class _Missing:
    """Raises the reason at the first use, so that attnpy.reference works without a compiler."""

    def __init__(self, cause):
        self.cause = cause.with_traceback(None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"attnpy's compiled module attnpy._core cannot be loaded: {self.cause} (attnpy.reference works without it)"
        ) from self.cause


try:
    import attnpy._core

    core = attnpy._core
except ImportError as error:
    core = _Missing(error)
