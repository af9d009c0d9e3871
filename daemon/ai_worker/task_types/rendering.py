"""The user's part of a prompt: markers around what comes from rows, and all that a template may draw upon."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from ai_worker.errors import InvalidRequest
from ai_worker.models import Item, StepResult
from ai_worker.task_types.prompt_file import PromptStep
from ai_worker.task_types.templates import ENVIRONMENT, RenderError

_BACKGROUND_NAMES: Final = frozenset({"facts", "results", "reviewed"})


class _Markers(Iterator[str]):
    """Lines that no text can foresee, each used once. Drawn many at a time: asking the kernel takes longer than all else here.

    No generator: prompts are made in more than one thread.
    """

    def __init__(self) -> None:
        self._drawn: list[str] = []

    def __next__(self) -> str:
        try:
            return self._drawn.pop()
        except IndexError:
            digits = secrets.token_hex(4096)
            self._drawn.extend([f"<<<{digits[start : start + 16]}>>>" for start in range(16, len(digits), 16)])
            return f"<<<{digits[:16]}>>>"


_MARKERS: Iterator[str] = _Markers()


def marker_outside(text: str) -> str:
    """A line that is not in the text."""
    marker = next(_MARKERS)
    while marker in text:
        marker = next(_MARKERS)
    return marker


class Earlier(NamedTuple):
    """An earlier item of the same subject, as templates see it."""

    text: str
    result: str


def _drawn(names: Iterable[str], item: Item, earlier: Mapping[str, StepResult]) -> dict[str, Any]:
    """What a template uses beside the text: of the item, of what was drawn for it, and of the steps before."""
    background = item.background
    values = {
        "context": item.context,
        "facts": background.facts,
        "results": tuple([Earlier(*pair) for pair in background.results]),
        "reviewed": background.examples,
        "steps": earlier,
    }
    return {name: values[name] for name in sorted(names)}


def rendered(file: PromptStep, item: Item, earlier: Mapping[str, StepResult]) -> tuple[str, bytes | None]:
    """The user's part, and what stands for the drawn values in the fingerprint; None where nothing can.

    What a template has no place for of the item's background is put in front.
    """
    text = item.text_original
    in_front = dict.fromkeys(_BACKGROUND_NAMES, ()) | _drawn(_BACKGROUND_NAMES - file.drawn, item, earlier)
    drawn = _drawn(file.drawn, item, earlier)
    if any(in_front.values()):
        drawn["background"] = in_front
    try:
        known = json.dumps(drawn, ensure_ascii=False, default=dict)
    except (TypeError, ValueError, RecursionError):  # what a plug-in draws need not be JSON
        known = None
    marker = marker_outside(text if known is None else f"{text}\n{known}")
    try:
        user = file.render_user(text=text, marker=marker, **{name: drawn[name] for name in file.drawn})
        if "background" in drawn:
            user = ENVIRONMENT.get_template("_background.md").render(in_front, marker=marker) + user
    except RenderError as error:
        raise InvalidRequest(f"the item does not have what its prompt needs: {error}") from None
    # As long as it says, so that no end of it can be taken for the beginning of the text.
    content = None if known is None else known.encode("utf-8", "surrogatepass")
    return user, None if content is None else b"%d:%b" % (len(content), content)
