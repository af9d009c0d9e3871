"""Traces: whether any are wanted, and what a worker tells them where none are.

OpenTelemetry is asked for by its own variables, or by AI_WORKER_TRACES. A worker hands its verbs to a `Tracing` when it is put
together, and uses what it gets back: without traces that is the very same verb, which costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Literal, ParamSpec

from ai_worker.errors import ConfigurationError
from ai_worker.log import Event, Log
from ai_worker.models import Completion, Item, Outcome, Prompt
from ai_worker.store.committing import Committed
from ai_worker.worker.attempt import Attempt
from ai_worker.worker.endpoints import Endpoint

P = ParamSpec("P")

Wanted = Literal["auto", "on", "off"]
Outcomes = Callable[[Item], Coroutine[Any, Any, Outcome]]
Call = Callable[[Attempt, Endpoint, Prompt], Coroutine[Any, Any, Completion]]
Store = Callable[[Sequence[Outcome], Sequence[int]], Committed]

FLUSH_SECONDS: Final = 3.0  # at the most, at the worker's end: for spans that have not been sent yet

# Any of these set means that somebody wants traces, see https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
_ASKING: Final = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_INSTALL: Final = "pip install 'ai-worker[otel]'"


class TracesUnavailableError(Exception):
    """They are asked for and cannot be had, for the reason that it names."""


class Tracing:
    """No traces: each verb is given back as it is. The traces there may be are `spans.Spans`."""

    def attempts(self, outcome: Outcomes) -> Outcomes:
        """What takes an item through its attempt."""
        return outcome

    def calls(self, call: Call) -> Call:
        """What sends one prompt to a model."""
        return call

    def claims(self, take: Callable[P, list[Item]]) -> Callable[P, list[Item]]:
        """What takes items out of the database, in a thread."""
        return take

    def commits(self, store: Store) -> Store:
        """What stores outcomes in the database, in a thread."""
        return store

    def close(self, seconds: float) -> None:
        """Sends what has not been sent yet, for so long at the most. Raises nothing."""


OFF: Final = Tracing()


def begin(wanted: Wanted, database: str, log: Log) -> Tracing:
    """The traces of this process, `OFF` where nobody wants any.

    Parameters
    ----------
    wanted: the setting AI_WORKER_TRACES. "auto" goes by OpenTelemetry's variables, and takes it that a worker without traces is
        better than none: what is missing for them is only logged. With "on" it raises ConfigurationError.
    database: the name of the database, for the spans about it.
    """
    if wanted == "off" or _is_true("OTEL_SDK_DISABLED") or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return OFF
    if wanted == "auto" and not any(map(os.environ.get, _ASKING)):
        return OFF
    try:
        from ai_worker.worker import spans

        return spans.started(database)
    except ImportError as error:
        problem = f"OpenTelemetry is not installed ({error}): {_INSTALL}"
    except TracesUnavailableError as error:
        problem = str(error)
    if wanted == "on":
        raise ConfigurationError(f"AI_WORKER_TRACES is on, and there can be no traces: {problem}")
    log(Event.NO_TRACES, message=problem)
    return OFF


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() == "true"
