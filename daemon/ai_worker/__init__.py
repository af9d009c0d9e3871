"""AI Worker: a language model at work on the rows of a MySQL or MariaDB table."""

from importlib.metadata import version

__version__ = version("ai-worker")
