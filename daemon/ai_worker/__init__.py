"""AI Worker: a language model at work on the rows of a MySQL or MariaDB table."""

__version__: str


def __getattr__(name: str) -> str:
    """`__version__`, from the package's metadata when somebody asks: to look into it takes a third of the time of a start."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("ai-worker")
