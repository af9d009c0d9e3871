"""What makes two prompts the same work, so that the answer of one may serve for the other."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ai_worker.models import Item, Task, TaskStatus
from ai_worker.task_types import task_type
from ai_worker.task_types.base import PromptedTaskType
from ai_worker.task_types.builtin import Correction
from ai_worker.task_types.prompt_file import PromptFile
from tests.plugin_example.ai_worker_shout import Shouting
from tests.unit.test_prompts import GOOD, PARAMETERS


def an_item(name: str, text: str, description: str = "", **parameters: Any) -> Item:
    return Item(1, Task(1, 1, name, description, parameters, 3, 0, TaskStatus.NEW), text, {}, 1, 0, b"", "")


def fingerprint(name: str, text: str, description: str = "", **parameters: Any) -> bytes:
    given = task_type(name).prompt(an_item(name, text, description, **{**PARAMETERS[name], **parameters})).fingerprint
    assert given is not None
    assert len(given) == 32
    return given


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_same_text_of_the_same_work_has_the_same_fingerprint(name: str) -> None:
    assert fingerprint(name, "Ala ma kota") == fingerprint(name, "Ala ma kota")  # of two tasks, with two random markers
    assert task_type(name) is not (fresh := type(task_type(name))())  # as another process makes it
    item = an_item(name, "Ala ma kota", **PARAMETERS[name])
    assert fresh.prompt(item).fingerprint == task_type(name).prompt(item).fingerprint


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
@example("Kot", "kot")
@example("kot", "kot ")
@example("a b", "a\u00a0b")
@example("a\nb", "a\r\nb")
@example("é", unicodedata.normalize("NFD", "é"))
@example("ﬁ", "fi")
@example("a\0b", "ab")
@example("\ud800", "\ufffd")
def test_texts_that_differ_in_anything_have_different_ones(one: str, other: str) -> None:
    assert (fingerprint("correction", one) == fingerprint("correction", other)) == (one == other)


def test_whatever_else_determines_the_answer_is_in_it() -> None:
    text = "Ala ma kota"
    different = [
        fingerprint("correction", text),
        fingerprint("correction", text, "Opisy produktów"),
        fingerprint("correction", text, language="pl"),
        fingerprint("correction", text, explain=False),
        fingerprint("correction", text, mask=True),  # a parameter that belongs to another part of the program
        fingerprint("translation", text),
        fingerprint("translation", text, target_language="de"),
        fingerprint("translation", text, glossary={"kot": "cat"}),
        fingerprint("summary", text),
        fingerprint("summary", text, max_words=61),
        fingerprint("categorization", text),
        fingerprint("categorization", text, fallback="Inne"),
        fingerprint("analysis", text),
    ]
    assert len(set(different)) == len(different)


def test_the_description_and_the_text_cannot_be_taken_for_one_another() -> None:
    assert fingerprint("correction", "b", "a") != fingerprint("correction", "ab", "")


def test_the_order_in_which_parameters_are_given_does_not_matter() -> None:
    one = fingerprint("correction", "tekst", language="pl", style="prosty")
    assert one == fingerprint("correction", "tekst", style="prosty", language="pl")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", "version = 1\ntemperature = 0.5"),
        ("not_empty = true", "not_empty = true\nlength_ratio = { maximum = 2.0 }"),
        ('type = "string"', 'type = "string"\ndescription = "All of it."'),
        ("{{ parameters.x }}", "{{ parameters.x }}."),
        ("{{ marker }} {{ text }}", "{{ marker }}\n{{ text }}"),
    ],
)
def test_every_part_of_a_prompt_file_counts(old: str, new: str) -> None:
    assert old in GOOD
    one, other = PromptFile.parse("mine", GOOD, "mine.md"), PromptFile.parse("mine", GOOD.replace(old, new), "mine.md")
    assert one.digest != other.digest


def test_what_a_prompt_file_takes_in_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    included = {"_outer.md": 'outer {% include "_inner.md" %}', "_inner.md": "inner"}
    monkeypatch.setattr("ai_worker.task_types.templates.snippet", included.get)
    monkeypatch.setattr("ai_worker.task_types.prompt_file.snippet", included.get)
    source = GOOD.replace("{{ marker }} {{ text }}", '{{ marker }} {{ text }} {% include "_outer.md" %}')
    before = PromptFile.parse("mine", source, "mine.md").digest
    assert PromptFile.parse("mine", source, "mine.md").digest == before
    included["_inner.md"] = "changed"
    assert PromptFile.parse("mine", source, "mine.md").digest != before


def test_a_type_that_changes_the_schema_or_the_checks_changes_the_fingerprint() -> None:
    class Longer(Correction):
        def check_parameters(self, settings: Any) -> Any:
            return {"length_ratio": {"maximum": 3.0}}

    class Richer(Correction):
        def schema(self, settings: Any) -> Any:
            properties = {**self.file.schema["properties"], "tone": {"type": "string"}}
            return {**self.file.schema, "properties": properties, "required": list(properties)}

    types: list[PromptedTaskType] = [Correction(), Longer(), Richer()]
    item = an_item("correction", "tekst")
    assert len({kind.prompt(item).fingerprint for kind in types}) == 3


def test_a_type_that_makes_its_own_prompt_has_none() -> None:
    assert Shouting().prompt(an_item("shouting", "tekst")).fingerprint is None
