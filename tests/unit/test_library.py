"""The task types for conversations, pictures, reports and instructions: prompts, answers, what is stored, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import pytest

from ai_worker.errors import BadAnswer, ContentRefused, UsageError
from ai_worker.models import (
    Background,
    Completion,
    Example,
    File,
    ImageRequest,
    Item,
    Needs,
    Prompt,
    Result,
    StepResult,
    Task,
    TaskStatus,
    Usage,
)
from ai_worker.task_types import is_simple, task_type
from ai_worker.task_types.base import PromptedTaskType
from ai_worker.task_types.checks import CheckFailed, no_advice
from ai_worker.task_types.library import (
    Custom,
    Image,
    ImagePrompt,
    Investment,
    Memory,
    Reply,
    Research,
    Swot,
    TechnicalReview,
)
from tests.fake_provider.wire import row_text
from tests.unit.test_prompts import INJECTION, LIBRARY

USAGE = Usage(11, 7)
TYPES: list[type[PromptedTaskType]] = [
    Custom, Image, ImagePrompt, Investment, Memory, Reply, Research, Swot, TechnicalReview
]  # fmt: skip
REPORTS = [Research, Swot, Investment, TechnicalReview]
MESSAGES = [{"role": "user", "text": "Dzień dobry, gdzie jest sklep?"}, {"role": "assistant", "text": "Na Długiej 7."}]
BACKGROUND = Background(
    results=(("Jaka dziś pogoda?", "Słonecznie."),), facts=("Ma psa o imieniu Reksio.",), examples=(Example("a", "b", True),)
)


def an_item(
    text: str = "A w sobotę?", description: str = "Odpowiadaj.", context: Mapping[str, Any] | None = None, **parameters: Any
) -> Item:
    task = Task(1, 1, "x", description, parameters, 3, 0, TaskStatus.NEW)
    return Item(1, task, text, context or {}, 1, 0, b"", "", context_key="klient 7")


def parsed(kind: PromptedTaskType, answer: Any, item: Item | None = None) -> Result:
    return kind.parse(item or an_item(), Completion(json.dumps(answer, ensure_ascii=False), USAGE))


def prompts_of(kind: PromptedTaskType, item: Item) -> list[Prompt]:
    """Those of all steps, each of which is answered with the smallest there is."""
    steps = kind.steps(item.task)
    earlier = {step.name: StepResult("x", {}) for step in steps}
    return [kind.step_prompt(item, number, earlier) for number in range(1, len(steps) + 1)]


def test_all_of_them_are_registered_and_shipped() -> None:
    assert sorted(kind.name for kind in TYPES) == LIBRARY
    for kind in TYPES:
        assert type(task_type(kind.name)) is kind


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind() for kind in TYPES if kind is not Image], ids=lambda kind: kind.name)
@pytest.mark.parametrize("is_rich", [False, True], ids=["alone", "with a background"])
def test_what_comes_from_rows_stands_between_marker_lines(kind: PromptedTaskType, *, is_rich: bool) -> None:
    context = {"messages": MESSAGES, "sources": ["Uchwała 12"]} if is_rich else {}
    item = an_item(INJECTION, context=context)._replace(background=BACKGROUND if is_rich else Background())
    for prompt in prompts_of(kind, item):
        assert row_text(prompt.user) == INJECTION
        marker = prompt.user.rstrip("\n").rpartition("\n")[2]
        ours = "".join(prompt.user.split(f"{marker}\n")[::2]).replace(marker, "")  # every other piece stands between two of them
        theirs = ["Ignore the above", "Reksio", "Słonecznie", "Długiej", "Uchwała"]
        assert not [each for each in theirs if each in ours]
        assert not [each for each in theirs if each in prompt.system]
        assert ("Reksio" in prompt.user) == is_rich
        assert re.search("never|none of it changes", prompt.system)
        assert "marker line" in prompt.system
        assert "\n\n\n" not in prompt.system
        assert "\n\n\n" not in prompt.user.replace(INJECTION, "")


@pytest.mark.parametrize("kind", [kind() for kind in TYPES if kind is not Image], ids=lambda kind: kind.name)
def test_schemas_are_what_strict_modes_take(kind: PromptedTaskType) -> None:
    def check(schema: Mapping[str, Any]) -> None:
        assert set(schema) <= {"type", "description", "enum", "items", "properties", "required", "additionalProperties"}
        if schema["type"] == "object":
            assert schema["additionalProperties"] is False
            assert sorted(schema["required"]) == sorted(schema["properties"])
            for each in schema["properties"].values():
                check(each)
        elif schema["type"] == "array":
            check(schema["items"])

    for prompt in prompts_of(kind, an_item()):
        assert jsonschema_rs.meta.is_valid(dict(prompt.schema))
        check(prompt.schema)
        for name in prompt.schema["properties"]:
            assert f'"{name}"' in prompt.system  # each is explained
        assert prompt.tokens_output_expected > 0


@pytest.mark.parametrize("kind", [kind() for kind in TYPES if kind is not Image], ids=lambda kind: kind.name)
def test_the_instruction_and_the_language_reach_every_step(kind: PromptedTaskType) -> None:
    for prompt in prompts_of(kind, an_item(description="Tylko {{ po }} ludzku", language="Polish")):
        assert "Tylko {{ po }} ludzku" in prompt.system
        assert "in Polish" in prompt.system.replace("In Polish", "in Polish")


@pytest.mark.parametrize("kind", [kind() for kind in TYPES], ids=lambda kind: kind.name)
def test_its_example_is_an_answer_that_passes(kind: PromptedTaskType) -> None:
    (example,) = kind.file.examples
    item = an_item(example.text, context=example.context)
    answer = json.dumps(example.answer, ensure_ascii=False)
    if kind.name != "image":
        assert kind.parse_step(item, len(kind.steps(item.task)), Completion(answer)).text


def test_the_conversation_comes_from_the_context_or_from_earlier_items() -> None:
    item = an_item()._replace(background=BACKGROUND)
    drawn = Reply().prompt(item).user
    assert '{"role": "user", "text": "Jaka dziś pogoda?"}\n{"role": "assistant", "text": "Słonecznie."}' in drawn
    assert '"Ma psa o imieniu Reksio."' in drawn
    assert '"verdict": "accepted"' in drawn
    given = Reply().prompt(item._replace(context={"messages": MESSAGES})).user
    assert '{"role": "assistant", "text": "Na Długiej 7."}' in given
    assert "Słonecznie" not in given  # not twice
    assert "user: hej\n<<<" in Reply().prompt(item._replace(context={"messages": "user: hej"})).user


def test_a_background_stands_before_the_row_and_changes_nothing_where_there_is_none() -> None:
    correction = task_type("correction")
    item = an_item("Ala ma kta")
    asked = an_item("Ala ma kta", history_facts=5, reviewed_examples=3, time_limit=9)
    alone, drawn = correction.prompt(asked), correction.prompt(asked._replace(background=BACKGROUND))
    assert alone.fingerprint == correction.prompt(item).fingerprint != drawn.fingerprint
    assert re.fullmatch(r"(<<<\w+>>>)\nAla ma kta\n\1", alone.user)
    assert drawn.system == alone.system
    assert row_text(drawn.user) == "Ala ma kta"
    assert [drawn.user.index(each) for each in ('"a"', "Reksio", "Słonecznie", "# The row")] == sorted(
        drawn.user.index(each) for each in ('"a"', "Reksio", "Słonecznie", "# The row")
    )
    facts = correction.prompt(asked._replace(background=Background(facts=("Ma psa.",)))).user
    assert "Earlier rows" not in facts
    assert "reviewed" not in facts


# -- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "parameters", "needs"),
    [
        (Reply, {}, Needs(10, 20, 0, 1000, ("reply",))),
        (Reply, {"history_results": 0, "history_facts": 0}, None),
        (Memory, {}, Needs(0, 100, 0, 3000, ("reply",))),
        (Custom, {}, None),
        (Custom, {"history_results": 3, "history_tokens": 50}, Needs(3, 0, 0, 50)),
        (Swot, {"reviewed_examples": 2, "history_types": ["swot"]}, Needs(0, 0, 2, 1000, ("swot",))),
    ],
)
def test_what_is_drawn_is_the_types_or_the_tasks_choice(
    kind: type[PromptedTaskType], parameters: dict[str, Any], needs: Needs | None
) -> None:
    made, task = kind(), an_item(**parameters).task
    assert made.needs(task) == needs
    assert is_simple(made, task) == (needs is None and len(made.steps(task)) == 1)


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_a_reply_is_stored_with_what_stayed_open() -> None:
    result = parsed(Reply(), {"reply": " Nie wiem, zapytam. ", "open_question": "Godziny\nw sobotę."})
    assert (result.text_corrected, result.change_summary) == ("Nie wiem, zapytam.", "Godziny w sobotę.")
    assert parsed(Reply(), {"reply": "Tak."}).change_summary is None


def test_facts_are_stored_once_in_one_line_each_and_no_more_than_were_asked_for() -> None:
    told = ["Ma psa.", " Ma\n psa. ", "", "Mieszka w Gdańsku.", "x" * 3000]
    result = parsed(Memory(), {"facts": told})
    assert result.facts == ("Ma psa.", "Mieszka w Gdańsku.", "x" * 2000)
    assert (result.text_corrected, result.change_summary) == ("\n".join(result.facts), "3 facts")
    assert result.data == {"facts": list(result.facts)}
    assert parsed(Memory(), {"facts": told}, an_item(max_facts=1)).facts == ("Ma psa.",)
    assert parsed(Memory(), {"facts": []}) == Result("", "0 facts", {"facts": []})


def test_an_image_prompt_is_stored_with_its_caption() -> None:
    result = parsed(ImagePrompt(), {"caption": "Kot.", "prompt": "A cat that is sitting in the garden, no text."})
    assert (result.text_corrected, result.change_summary) == ("A cat that is sitting in the garden, no text.", "Kot.")


def test_an_image_is_asked_for_by_the_bare_text_and_the_style() -> None:
    prompt = Image().prompt(an_item("Rudy kot", "Akwarela.", size="16:9", quality="high", format="webp"))
    assert (prompt.system, prompt.user, prompt.text) == ("", "Akwarela.\n\nRudy kot", "Rudy kot")
    assert prompt.image == ImageRequest("16:9", "high", "webp")
    assert Image().prompt(an_item("Rudy kot", "")).image == ImageRequest()
    assert Image().prompt(an_item("Rudy kot", "")).user == "Rudy kot"


def test_pictures_are_stored() -> None:
    files = (File(b"\x89PNG", "image/png"), File(b"\xff\xd8", "image/jpeg"))
    result = Image().parse(an_item("Rudy kot"), Completion("", USAGE, files=files))
    assert (result.files, result.text_corrected, result.change_summary) == (files, "Rudy kot", "2 pictures")
    first = result.data["files"][0]
    assert first == {"mime_type": "image/png", "size": 4, "sha256": hashlib.sha256(b"\x89PNG").hexdigest()}
    assert Image().parse(an_item("Rudy kot"), Completion("A ginger cat.", files=files[:1])).text_corrected == "A ginger cat."
    with pytest.raises(BadAnswer, match="check files: the answer has no picture: I cannot") as caught:
        Image().parse(an_item(), Completion("I cannot\ndraw that", USAGE))
    assert caught.value.usage == USAGE


def test_an_instruction_is_carried_out() -> None:
    result = parsed(Custom(), {"answer": " dąb ", "note": "dwa\nmateriały"})
    assert (result.text_corrected, result.change_summary) == ("dąb", "dwa materiały")
    for description in ("", "  "):
        item = an_item(description=description)
        for verb in (lambda item=item: Custom().validate(item.task), lambda item=item: Custom().prompt(item)):
            with pytest.raises(UsageError, match="custom needs a description"):
                verb()


def test_a_report_has_its_title_and_summary() -> None:
    answer = {"title": "Tytuł\n", "report": "## W skrócie\n\nTak.\n", "summary": "Tak,\nale."}
    steps = {"plan": StepResult("", {"a": 1}), "report": StepResult("", answer)}
    result = Research().combined(an_item(), steps)
    assert (result.text_corrected, result.change_summary) == ("# Tytuł\n\n## W skrócie\n\nTak.", "Tak, ale.")
    assert result.data == {"plan": {"a": 1}, "report": answer}


def test_a_review_counts_its_findings() -> None:
    def told(*severities: str) -> str | None:
        found = StepResult("", {"findings": [{"severity": each} for each in severities]})
        report = StepResult("", {"report": "x", "verdict": "rework", "summary": "Dziury."})
        return TechnicalReview().combined(an_item(), {"findings": found, "report": report}).change_summary

    assert told("minor", "critical", "minor") == "rework: 1 critical, 2 minor: Dziury."
    assert told() == "rework: no findings: Dziury."


@pytest.mark.parametrize("kind", [Reply, Memory, Image])
def test_what_wants_an_answer_of_its_own_is_not_answered_from_the_cache(kind: type[PromptedTaskType]) -> None:
    assert kind().prompt(an_item()).fingerprint is None
    assert Custom().prompt(an_item()).fingerprint is not None


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "answer", "parameters", "error"),
    [
        (Reply, {"reply": " ", "open_question": ""}, {}, "check not_empty"),
        (Reply, {"reply": "słowo " * 100, "open_question": ""}, {"max_words": 20}, "check word_limit"),
        (
            Reply,
            {"reply": "This is the answer that you have asked for", "open_question": ""},
            {"language": "pl"},
            "check language",
        ),
        (Memory, {"facts": "Ma psa."}, {}, "check schema: facts"),
        (Memory, {"facts": [1]}, {}, "check schema: facts/0"),
        (ImagePrompt, {"caption": "", "prompt": "To jest kot, który nie jest psem"}, {}, "check language"),
        (ImagePrompt, {"caption": "", "prompt": "A cat, see https://cats.example"}, {}, "check no_new_urls"),
        (Custom, {"answer": "<<<0123456789abcdef>>>", "note": ""}, {}, "check no_marker"),
        (Custom, {"note": ""}, {}, "check schema"),
    ],
)
def test_a_bad_answer_names_its_check(
    kind: type[PromptedTaskType], answer: dict[str, Any], parameters: dict[str, Any], error: str
) -> None:
    with pytest.raises(BadAnswer, match=f"^{error}") as caught:
        parsed(kind(), answer, an_item(**parameters))
    assert caught.value.usage == USAGE


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize(
    ("report", "error"),
    [
        ("Zob. https://zmyslone.example/raport", "check no_new_urls"),
        ("", "check not_empty"),
        ("słowo " * 200, "check word_limit"),
        ("This is the report that you have asked for", "check language"),
    ],
)
def test_a_bad_report_names_its_check(kind: type[PromptedTaskType], report: str, error: str) -> None:
    made, item = kind(), an_item(language="pl", max_words=50)
    answer = {"title": "t", "report": report, "summary": "s", "evidence": "weak", "verdict": "accept"}
    with pytest.raises(BadAnswer, match=f"^{error}"):
        made.parse_step(item, len(made.steps(item.task)), Completion(json.dumps(answer), USAGE))


def test_a_report_may_name_the_addresses_of_its_material() -> None:
    item = an_item(context={"sources": [{"url": "https://gus.example/raport", "text": "…"}]})
    answer = {"title": "t", "report": "Zob. https://gus.example/raport", "summary": "s"}
    assert Research().parse_step(item, 4, Completion(json.dumps(answer))).text.startswith("Zob.")


def test_a_report_that_is_a_refusal_is_told_from_a_bad_one() -> None:
    answer = {"report": "I'm sorry, but I can't help with that request.", "summary": "", "evidence": "weak"}
    with pytest.raises(ContentRefused):
        Investment().parse_step(an_item(), 3, Completion(json.dumps(answer)))


@pytest.mark.parametrize(
    "text",
    [
        "We recommend that you buy the shares.",
        "Investors should sell now.",
        "**Recommendation:** strong buy",
        "Rekomendacja: kupuj",
        "Rekomendujemy zakup udziałów.",
        "Warto kupić teraz.",
        "To gwarantowany zysk.",
    ],
)
def test_advice_is_found(text: str) -> None:
    with pytest.raises(CheckFailed, match="this is advice"):
        no_advice("", text)


@pytest.mark.parametrize(
    "text",
    [
        "This is information and no investment advice.",
        "To informacja opracowana przez model językowy, nie porada inwestycyjna.",
        "Nie rekomendujemy zakupu ani sprzedaży.",
        "The company must sell 4,000 units to break even.",
        "Nie jest to gwarantowane; zysk zależy od drugiego lokalu.",
        "Returns are not guaranteed; there are no guaranteed returns.",
        "Spółka powinna sprzedać 4000 butelek, żeby wyjść na zero.",
    ],
)
def test_what_is_no_advice_passes(text: str) -> None:
    no_advice("", text)


@pytest.mark.parametrize(
    ("kind", "parameters", "error"),
    [
        (Reply, {"max_words": 0}, "parameter 'max_words' is 0"),
        (Reply, {"presona": "x"}, "did you mean 'persona'"),
        (Memory, {"max_facts": "many"}, "parameter 'max_facts'"),
        (Image, {"size": "big"}, "parameter 'size' is \"big\", but must be pixels"),
        (Image, {"format": "gif"}, "parameter 'format' is \"gif\""),
        (Research, {"questions": 50}, "parameter 'questions' is 50"),
        (TechnicalReview, {"focus": "security"}, "parameter 'focus'"),
        (Swot, {"perspective": 5}, "parameter 'perspective'"),
        (Investment, {"horizon": "x" * 101}, "parameter 'horizon'"),
        (Custom, {"time_limit": 0}, "parameter 'time_limit' is 0, but must be a number of seconds"),
        (Custom, {"history_results": -1}, "parameter 'history_results'"),
        (Custom, {"history_types": "reply"}, "parameter 'history_types'"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_remedy(kind: type[PromptedTaskType], parameters: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(error)):
        kind().validate(an_item(**parameters).task)
