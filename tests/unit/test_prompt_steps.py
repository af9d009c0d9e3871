"""Prompt files beyond one plain call: steps, examples, model parameters, and all that a template can draw upon."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ai_worker.errors import BadAnswer, ConfigurationError, InvalidRequest, UsageError
from ai_worker.models import NO_BACKGROUND, NOTHING, Background, Completion, Example, Item, StepResult, Task, TaskStatus
from ai_worker.task_types import is_simple, stepped, task_type, task_type_names, task_type_of
from ai_worker.task_types.base import PromptedTaskType
from ai_worker.task_types.builtin import Summary
from ai_worker.task_types.prompt_file import PromptFile
from tests.plugin_example.ai_worker_shout import Shouting
from tests.unit.test_prompts import GOOD

STEPS = """\
+++
version = 3
kind = "summary"

[model]
temperature = 0.5
max_output_tokens = 900

[[steps]]
name = "draft"
model = "cheap"
temperature = 0
answer_field = "points"
[steps.schema]
type = "object"
additionalProperties = false
required = ["points"]
[steps.schema.properties.points]
type = "array"
items = { type = "string" }

[[steps]]
name = "final"
top_p = 0.9
answer_field = "summary"
[steps.checks]
not_empty = true
[steps.schema]
type = "object"
additionalProperties = false
required = ["summary"]
[steps.schema.properties.summary]
type = "string"

[[examples]]
text = "Ala ma kota."
context = { author = "Ala" }
answer = { summary = "Kot." }
+++

# Step draft

## System
Collect points. {{ description }}
## User
{{ marker }}
{{ text }}
{{ marker }}

# Step final
## System
Sum up.{% for example in examples %} {{ example.text }} {{ example.answer | tojson }}{% endfor %}

## User
{{ marker }}
{{ text }}
{{ marker }} {{ steps.draft.data.points | tojson }}
"""
DRAWING = GOOD.replace("{{ parameters.x }}", "")


def an_item(
    text: str = "Tekst", context: Mapping[str, Any] = NOTHING, background: Background = NO_BACKGROUND, **given: Any
) -> Item:
    task = Task(1, 1, "mine", "", given, 3, 0, TaskStatus.NEW)
    return Item(1, task, text, context, 1, 0, b"", "", background=background)


def kind_of(source: str) -> PromptedTaskType:
    return Summary(PromptFile.parse("mine", source, "mine.md"))


def drawing(user: str) -> PromptedTaskType:
    return kind_of(DRAWING.replace("{{ marker }} {{ text }}", user))


def test_steps_have_their_own_models_schemas_and_parameters() -> None:
    file = PromptFile.parse("mine", STEPS, "mine.md")
    assert [(step.name, step.model, step.answer_field) for step in file.steps] == [
        ("draft", "cheap", "points"),
        ("final", None, "summary"),
    ]
    assert [(step.temperature, step.top_p, step.max_output_tokens) for step in file.steps] == [(0, None, 900), (0.5, 0.9, 900)]
    assert [list(step.checks) for step in file.steps] == [[], ["not_empty"]]
    assert (file.version, file.kind, file.answer_field) == (3, "summary", "summary")
    assert file.examples[0].text == "Ala ma kota."
    assert (file.examples[0].context, file.examples[0].answer) == ({"author": "Ala"}, {"summary": "Kot."})


def test_later_steps_read_what_earlier_ones_have_brought() -> None:
    kind, item = kind_of(STEPS), an_item("Ala ma kota i psa.")
    assert [step.name for step in kind.steps(item.task)] == ["draft", "final"]
    first = kind.step_prompt(item, 1, {})
    assert (first.temperature, first.max_output_tokens, list(first.schema["properties"])) == (0, 900, ["points"])
    assert kind.prompt(item).fingerprint == first.fingerprint
    draft = kind.parse_step(item, 1, Completion('{"points": ["kot", "żółw"]}'))
    assert draft == StepResult('["kot", "żółw"]', {"points": ["kot", "żółw"]})
    second = kind.step_prompt(item, 2, {"draft": draft})
    assert second.system == 'Sum up. Ala ma kota. {"summary": "Kot."}'
    assert second.user.endswith(' ["kot", "żółw"]')
    assert (second.temperature, second.top_p, second.answer_field) == (0.5, 0.9, "summary")
    final = kind.parse_step(item, 2, Completion('{"summary": "Zwierzęta."}'))
    result = kind.combined(item, {"draft": draft, "final": final})
    assert (result.text_corrected, result.change_summary) == ("Zwierzęta.", "5 words → 1 words")
    assert result.data == {"draft": {"points": ["kot", "żółw"]}, "final": {"summary": "Zwierzęta."}}


def test_each_step_is_checked_as_its_own_table_says() -> None:
    kind, item = kind_of(STEPS), an_item()
    with pytest.raises(BadAnswer, match="check schema: points"):
        kind.parse_step(item, 1, Completion('{"points": "kot"}'))
    with pytest.raises(BadAnswer, match="check not_empty"):
        kind.parse_step(item, 2, Completion('{"summary": " "}'))
    with pytest.raises(ConfigurationError, match="has 2 steps"):
        kind.parse(item, Completion('{"summary": "Kot."}'))


def test_only_items_of_one_call_are_simple() -> None:
    task = an_item().task
    assert is_simple(task_type("summary"), task)
    assert not is_simple(kind_of(STEPS), task)
    assert is_simple(Shouting(), task)
    assert stepped(Shouting()) is None
    assert stepped(kind_of(STEPS)) is not None


def test_a_later_steps_fingerprint_is_of_what_it_reads() -> None:
    kind, item = kind_of(STEPS), an_item()

    def of(*points: str) -> bytes | None:
        return kind.step_prompt(item, 2, {"draft": StepResult("", {"points": list(points)})}).fingerprint

    assert of("kot") == of("kot")
    assert None not in (of("kot"), of("pies"))
    assert len({of("kot"), of("pies"), kind.step_prompt(item, 1, {}).fingerprint}) == 3


BACKGROUND = Background((("pytanie", "odpowiedź"),), ("lubi kawę",), (Example("zły", "dobry", is_accepted=True),))


@pytest.mark.parametrize(
    ("user", "one", "other", "expected"),
    [
        ("{{ context.author }} {{ context | tojson }}", {"context": {"author": "Zoë"}}, {"context": {"author": "Ala"}}, None),
        (
            "{% for fact in facts %}- {{ fact }}{% endfor %}",
            Background(facts=("lubi kawę",)),
            Background(facts=("nie",)),
            "- lubi kawę",
        ),
        (
            "{% for earlier in results %}{{ earlier.text }} → {{ earlier.result }}{% endfor %}",
            Background((("pytanie", "odpowiedź"),)),
            Background((("pytanie", "inna"),)),
            "pytanie → odpowiedź",
        ),
        (
            "{% for one in reviewed if one.is_accepted %}{{ one.text }} → {{ one.answer }}{% endfor %}",
            Background(examples=(Example("zły", "dobry", is_accepted=True),)),
            Background(examples=(Example("zły", "dobry", is_accepted=False),)),
            "zły → dobry",
        ),
    ],
)
def test_user_templates_draw_upon_the_item_and_its_background(user: str, one: Any, other: Any, expected: str | None) -> None:
    items = [an_item(**each) if isinstance(each, dict) else an_item(background=each) for each in (one, other)]
    prompts = [drawing(user).prompt(item) for item in items]
    assert prompts[0].user == (expected or 'Zoë {"author": "Zoë"}')
    # The cache must not take an answer to another background for this one, and one to the same it may.
    assert prompts[0].fingerprint == drawing(user).prompt(items[0]).fingerprint != prompts[1].fingerprint
    assert prompts[0].fingerprint is not None


def test_what_a_template_does_not_use_does_not_count() -> None:
    kind = drawing("{{ marker }} {{ text }} {{ facts | length }}")
    one, other = an_item(context={"a": 1}, background=BACKGROUND), an_item(context={"a": 2}, background=BACKGROUND)
    assert kind.prompt(one).fingerprint == kind.prompt(other).fingerprint


def test_drawn_values_and_the_text_cannot_be_taken_for_one_another() -> None:
    kind = drawing("{{ text }} {{ facts }}")
    one = kind.prompt(an_item("b", background=Background(facts=("a",)))).fingerprint
    assert one != kind.prompt(an_item('b"]}b', background=Background(facts=("a",)))).fingerprint


def test_no_marker_is_in_anything_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    foreseen, free = "<<<0123456789abcdef>>>", "<<<fedcba9876543210>>>"
    monkeypatch.setattr("ai_worker.task_types.rendering._MARKERS", iter([foreseen, free]))
    item = an_item("tekst", background=Background(facts=(f"zła\n{foreseen}\nrada",)))
    assert drawing("{{ marker }} {{ text }} {{ facts }}").prompt(item).user.startswith(free)


def test_an_item_without_what_its_prompt_needs_is_told_so_with_the_line() -> None:
    kind = drawing("\n{{ text }}\n{{ context.author }}")
    with pytest.raises(InvalidRequest, match=r"its prompt needs: mine\.md, line 18: nothing is there under the name 'author'; `"):
        kind.prompt(an_item())


def test_a_task_without_what_its_prompt_needs_is_refused_with_the_line() -> None:
    with pytest.raises(UsageError, match=r"task type mine: mine\.md, line 14: .*'x'"):
        kind_of(GOOD).validate(an_item().task)
    kind_of(GOOD).validate(an_item(x=1).task)


def test_a_prompt_of_a_new_name_behaves_as_its_kind_says() -> None:
    kind = task_type_of(PromptFile.parse("minutes", STEPS, "minutes.md"))
    assert isinstance(kind, Summary)
    assert kind.name == "minutes"
    assert kind.step_prompt(an_item(), 1, {}).task_type == "summary"
    with pytest.raises(ConfigurationError, match=r"mine\.md: kind: unknown task type 'sumary'"):
        task_type_of(PromptFile.parse("mine", STEPS.replace('"summary"\n\n', '"sumary"\n\n'), "mine.md"))
    with pytest.raises(ConfigurationError, match=r"a prompt cannot be called 'Mine!'"):
        PromptFile.parse("Mine!", STEPS, "Mine!.md")


PARAMETERS = {"translation": {"target_language": "pl"}, "categorization": {"categories": ["Ala ma kota"]}}


@pytest.mark.parametrize("kind", sorted(set(task_type_names()) - {"image"}))
def test_each_kind_reads_an_answer_of_other_properties(kind: str) -> None:
    """Or says at push that it cannot: not once for each item, after paying for it."""
    source = GOOD.replace("{{ parameters.x }}", "").replace("version = 1", f'version = 1\nkind = "{kind}"')
    answer: Any = "Ala ma kota"
    texts = 'type = "array"\nitems = { type = "string" }'
    if kind == "memory":
        with pytest.raises(ConfigurationError, match=r"^mine\.md, line 11: 'out' must be a list of texts .* kind 'memory'"):
            task_type_of(PromptFile.parse("mine", source, "mine.md"))
        answer, source = [answer], source.replace('type = "string"', texts)
    elif kind != "custom":
        with pytest.raises(ConfigurationError, match=rf"^mine\.md, line 11: 'out' must be a text .* kind '{kind}'"):
            task_type_of(PromptFile.parse("mine", source.replace('type = "string"', texts), "mine.md"))
    made = task_type_of(PromptFile.parse("mine", source, "mine.md"))
    task = Task(1, 1, "mine", "opis", PARAMETERS.get(kind, {}), 3, 0, TaskStatus.NEW)
    made.validate(task)
    result = made.parse(replace_task(an_item(), task), Completion(json.dumps({"out": answer})))
    assert result.text_corrected == "Ala ma kota"


def test_what_a_kind_reads_beside_the_answer_is_a_text() -> None:
    beside = '["out", "open_question"]\n[schema.properties.open_question]\ntype = "integer"'
    source = GOOD.replace("version = 1", 'version = 1\nkind = "reply"').replace('["out"]', beside)
    with pytest.raises(ConfigurationError, match=r"^mine\.md, line 11: 'open_question' must be a text"):
        task_type_of(PromptFile.parse("mine", source, "mine.md"))


def replace_task(item: Item, task: Task) -> Item:
    return item._replace(task=task, text_original="Ala ma kota")


def test_a_prompt_called_as_a_task_type_takes_its_place() -> None:
    own = task_type_of(PromptFile.parse("summary", GOOD, "summary.md"))
    assert isinstance(own, Summary)
    assert own.prompt(an_item(x=7)).system == " 7"


@pytest.mark.parametrize(
    ("old", "new", "at", "error"),
    [
        ("version = 3", "version = 0", "version", "version must be"),
        ("temperature = 0.5", "temperature = 3", "temperature = 3", "temperature must be from 0 to 2"),
        ("max_output_tokens = 900", "max_tokens = 900", "max_tokens", "unknown key 'max_tokens'"),
        ("top_p = 0.9", "top_p = 1.5", "top_p", "top_p must be from 0 to 1"),
        ("top_p = 0.9", "topp = 0.9", "topp", "unknown key 'topp'"),
        ("top_p = 0.9", "max_output_tokens = 0", "max_output_tokens = 0", "max_output_tokens must be at least 1"),
        ('name = "final"', 'name = "draft"\ntop_k = 1', "top_k", "unknown key 'top_k'"),
        ('name = "final"', 'name = "draft" # 2', 'name = "draft" # 2', "there are two steps 'draft'"),
        ('name = "final"', 'name = "items"', 'name = "items"', "a step cannot be called 'items'"),
        ('name = "final"\n', "# no name\n", "# no name", "the front matter needs 'name'"),
        ('answer_field = "summary"', 'answer_field = "x"', 'answer_field = "x"', "answer_field 'x' is none"),
        ('answer_field = "points"\n', "", '[[steps]]\nname = "draft"', "the front matter needs 'answer_field'"),
        ("not_empty = true", "not_emtpy = true", "not_emtpy", "unknown check"),
        ('required = ["summary"]', "required = []", "required = []", r"\[schema\] must list"),
        ('"Kot."', "7", "answer = {", "the example's answer does not fit the schema: 7"),
        ('text = "Ala ma kota."', "text = 7", "text = 7", "the front matter needs 'text'"),
        ("[model]", 'answer_field = "x"\n[model]', 'answer_field = "x"', "'answer_field' belongs into each of the steps"),
        ("# Step final", "# Step last", "# Step last", "there is no step 'last' in the front matter; there are: draft, final"),
        ("# Step draft\n", "\n", "\n\n\n## System\nCollect", "each step needs one section"),
        ("## System\nSum", "# System\nSum", "# System\nSum", "no line '## System'"),
        ("## User\n{{ marker }}\n{{ text }}\n{{ marker }}\n\n# Step", "# Step", "Collect", "no line '## User'"),
        ("# Step draft\n", "# Step draft\nwords\n", "words", "there is text outside"),
        ("{{ text }}\n{{ marker }} {{", "{{ text }}\n{{ nothing }} {{", "{{ nothing", "unknown name 'nothing'"),
        ("steps.draft", "steps.final", "{{ marker }} {{ steps", "unknown step 'final'; those before this one: draft"),
        ("{{ text }}\n{{ marker }}\n\n", "{{ steps.final.text }}\n\n", "{{ steps.final", "unknown step 'final'; there is none"),
        ("Sum up.", '{% include "correction.md" %}', "{% include", "there is no 'correction.md' to include"),
        ("Sum up.", "{% include description %}", "{% include", "there is no None to include"),
        ("Sum up.", "{% if %}", "{% if", ""),
    ],
)
def test_mistakes_are_named_with_their_line(old: str, new: str, at: str, error: str) -> None:
    assert old in STEPS
    source = STEPS.replace(old, new, 1)
    line = 1 + source[: source.index(at)].count("\n")
    with pytest.raises(ConfigurationError, match=rf"^mine\.md, line {line}: {error}"):
        PromptFile.parse("mine", source, "mine.md")


def test_steps_go_by_name_in_one_step_files_only_where_there_are_any() -> None:
    with pytest.raises(ConfigurationError, match=r"line 16: unknown name 'steps'"):
        PromptFile.parse("mine", GOOD.replace("{{ text }}", "{{ steps.a.text }}"), "mine.md")


def test_json_in_prompts_is_readable() -> None:
    user = drawing("{{ context | tojson }}").prompt(an_item(context={"a": "<ż & 'b'>"})).user
    assert user == json.dumps({"a": "<ż & 'b'>"}, ensure_ascii=False)


def test_the_prompts_in_the_documentation_are_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    sources = re.findall(r"```\n(\+\+\+\n.*?)```", text, re.DOTALL)
    minutes, report = (PromptFile.parse("mine", source, "mine.md") for source in sources)
    assert minutes.examples[0].answer["decisions"] == ["The release is on Friday."]
    assert [step.name for step in report.steps] == ["outline", "report"]
    for file in (minutes, report):
        kind = stepped(task_type_of(file))
        assert kind is not None
        item = an_item("Ala: tak.", {"team": "web"})
        item = item._replace(task=replace(item.task, description="Krótko."))
        systems = [kind.step_prompt(item, 1, {}).system]
        if len(file.steps) > 1:
            systems.append(kind.step_prompt(item, 2, {"outline": StepResult("", {"points": ["a"]})}).system)
        assert any("Krótko." in system for system in systems)
