"""Reads a provider's `options`: strings from `--option KEY=VALUE`, or JSON values from the table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ai_worker.errors import ConfigurationError


class Options:
    """The options of one model. Each reader raises ConfigurationError naming model, option and what is allowed.

    Parameters
    ----------
    model: the model's name here (`ProviderConfig.name`), for messages.
    given: the options as configured.
    known: all names that this provider understands; any other name is an error, so that a misspelt option is not silently
        without effect.
    """

    def __init__(self, model: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self._model = model
        self._given = given
        for name in given:
            if name not in known:
                raise ConfigurationError(f"model {model!r}: unknown option {name!r}; known ones: {', '.join(known)}")

    def _wrong(self, name: str, expected: str) -> ConfigurationError:
        return ConfigurationError(f"model {self._model!r}: option {name!r} must be {expected}, not {self._given[name]!r}")

    def text(self, name: str, default: str | None = None) -> str | None:
        """A non-empty string."""
        value = self._given.get(name, default)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise self._wrong(name, "a text")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed words, by default the first."""
        value = self._given.get(name, allowed[0])
        if value not in allowed:
            raise self._wrong(name, f"one of {', '.join(allowed)}")
        return str(value)

    def number(self, name: str, minimum: float, maximum: float = math.inf) -> float | None:
        """A number within bounds; None when not given."""
        bounds = f"of at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        return self._bounded(name, minimum, maximum, f"a number {bounds}")

    def integer(self, name: str, minimum: int) -> int | None:
        """A whole number of at least `minimum`; None when not given."""
        expected = f"a whole number of at least {minimum}"
        number = self._bounded(name, minimum, math.inf, expected)
        if number is None:
            return None
        if number != int(number):
            raise self._wrong(name, expected)
        return int(number)

    def _bounded(self, name: str, minimum: float, maximum: float, expected: str) -> float | None:
        value = self._given.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise self._wrong(name, expected) from None
        if isinstance(value, bool) or not math.isfinite(number) or not minimum <= number <= maximum:
            raise self._wrong(name, expected)
        return number

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object, given as such or as its text; empty when not given. A complaint does not show it: it may hold a key."""
        value = self._given.get(name, {})
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                value = None
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"model {self._model!r}: option {name!r} must be a JSON object")
        return dict(value)

    def headers(self, name: str) -> dict[str, str]:
        """HTTP headers, as a JSON object of texts; names in lower case. A complaint does not show them: one may be a key."""
        found = {header.lower(): value for header, value in self.mapping(name).items()}
        for header, value in found.items():
            if not isinstance(value, str) or not (header + value).isascii() or not (header + value).isprintable():
                raise ConfigurationError(
                    f"model {self._model!r}: option {name!r} must be a JSON object of header names and printable ASCII texts"
                )
        return found
