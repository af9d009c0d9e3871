"""How one part of the worker tells others of something without knowing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec

P = ParamSpec("P")


class Bell(Generic[P]):
    """Called, it calls all who listen, in the order in which they came.

    It is made before both sides. So those who ring it can be made before those who hear it, also where these need them.
    """

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: tuple[Callable[P, object], ...] = ()

    def reaches(self, *listeners: Callable[P, object]) -> None:
        """These hear it from now on."""
        self._listeners += listeners

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        for each in self._listeners:
            each(*args, **kwargs)
