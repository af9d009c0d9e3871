"""All calls that an item will take, told before the first is made: for people who look, and for estimates."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ai_worker.models import Item, Prompt, Step, StepResult
from ai_worker.task_types import TaskType, stepped
from ai_worker.task_types.prompt_file import PromptFile
from ai_worker.task_types.templates import RenderError


def foreseen(kind: TaskType, item: Item) -> list[tuple[Step, Prompt]]:
    """The steps of an item with their prompts; in place of the answers that later ones read stands something of the right form.

    Raises as `TaskType.prompt` does.
    """
    by_steps = stepped(kind)
    steps = [Step(kind.name)] if by_steps is None else by_steps.steps(item.task)
    if by_steps is None or len(steps) == 1:
        return [(steps[0], kind.prompt(item))]
    made: list[tuple[Step, Prompt]] = []
    earlier: dict[str, StepResult] = {}
    for number, step in enumerate(steps, 1):
        prompt = by_steps.step_prompt(item, number, earlier)
        made.append((step, prompt))
        if number == len(steps):
            break
        answer = _stand_in(prompt.schema, f"{step.name}'s")
        text = answer.get(prompt.answer_field, "") if isinstance(answer, dict) else ""
        earlier[step.name] = StepResult(text if isinstance(text, str) else json.dumps(text), answer)
    return made


def try_out(file: PromptFile) -> None:
    """Renders a prompt for its first example, so that no item is the first to find out what is wrong with it.

    What is not there counts only in what an example has to say; parameters and steps before are not known here, and without an
    example neither is the context. Raises RenderError.
    """
    example = file.examples[0] if file.examples else None
    row = {
        "text": example.text if example else "text",
        "context": example.context if example else {},
        "marker": "<<<marker>>>",
        "facts": (),
        "results": (),
        "reviewed": (),
    }
    earlier: dict[str, StepResult] = {}
    for step in file.steps:
        _rendered(step.render_system, {"description": "", "parameters": {}, "examples": file.examples}, is_whole=False)
        _rendered(step.render_user, row | {"steps": earlier}, is_whole=example is not None and not earlier)
        answer = _stand_in(step.schema, f"{step.name}'s")
        text = answer[step.answer_field]
        earlier[step.name] = StepResult(text if isinstance(text, str) else json.dumps(text), answer)


def _rendered(render: Callable[..., str], values: dict[str, Any], *, is_whole: bool) -> None:
    try:
        render(**values)
    except RenderError as error:
        if is_whole or not error.is_lack:
            raise


def _stand_in(schema: Any, of: str) -> Any:
    """Something that fits a schema."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _stand_in(sub, f"{of} {name}") for name, sub in schema.get("properties", {}).items()}
        case "array":
            return [_stand_in(schema.get("items", {}), of)]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case _:
            return f"({of})"
