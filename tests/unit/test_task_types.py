"""The built-in task types: parameters, and from a completion to what is stored."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.errors import BadAnswer, ContentRefused, UsageError
from ai_worker.models import Completion, Item, Result, Task, TaskStatus, Usage
from ai_worker.task_types import task_type, task_type_names

USAGE = Usage(11, 7)
ORIGINAL = "Poszłem do sklepu wogóle po chleb"
CORRECTED = "Poszedłem do sklepu w ogóle po chleb"


def a_task(name: str, **parameters: Any) -> Task:
    return Task(1, 1, name, "", parameters, 3, 0, TaskStatus.NEW)


def an_item(text: str, task: Task) -> Item:
    return Item(1, task, text, {}, 1, 0, b"", uuid.uuid4())


def parsed(name: str, original: str, answer: dict[str, Any] | str, **parameters: Any) -> Result:
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return task_type(name).parse(an_item(original, a_task(name, **parameters)), Completion(text, USAGE))


def corrected(original: str, answer: str, summary: str = "") -> Result:
    return parsed("correction", original, {"corrected_text": answer, "change_summary": summary})


def test_the_built_in_types_are_registered() -> None:
    assert {"analysis", "categorization", "correction", "summary", "translation"} <= set(task_type_names())
    with pytest.raises(UsageError, match=r"unknown task type 'corection'; known ones: .*correction"):
        task_type("corection")


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_a_correction_stores_the_text_and_the_models_summary() -> None:
    result = corrected(ORIGINAL, CORRECTED, "Poprawiono\n czasownik.")
    assert result.text_corrected == CORRECTED
    assert result.change_summary == "Poprawiono czasownik."
    assert result.data["corrected_text"] == CORRECTED


def test_a_correction_without_a_summary_gets_one_from_the_texts() -> None:
    assert corrected(ORIGINAL, CORRECTED).change_summary == '2 changes: "Poszłem" → "Poszedłem"; "wogóle" → "w ogóle"'


def test_changes_that_were_not_made_are_not_told() -> None:
    assert corrected(CORRECTED, CORRECTED, "Poprawiono przecinki.").change_summary == "No changes"


@given(st.text().filter(str.strip))
def test_an_unchanged_text_is_stored_as_it_is(text: str) -> None:
    assert corrected(text, text).text_corrected == text.replace("\0", "")


def test_a_translation_stores_the_text_and_the_languages() -> None:
    answer = {"source_language": "pl", "translation": "The dog is in the house"}
    assert parsed("translation", "Pies jest w domu", answer, target_language="English").change_summary == "Polish → English"
    assert parsed("translation", "Pies jest w domu", answer, target_language="en").text_corrected == "The dog is in the house"
    unknown = {"source_language": "", "translation": "The dog is in the house"}
    assert parsed("translation", "Pies jest w domu", unknown, target_language="en-GB").change_summary == "→ English (en-GB)"


def test_an_analysis_stores_the_text_and_the_conclusion() -> None:
    result = parsed("analysis", "Nie działa!", {"analysis": "Autor się skarży.", "conclusion": "Skarga.\n"})
    assert (result.text_corrected, result.change_summary) == ("Autor się skarży.", "Skarga.")


@pytest.mark.parametrize("spelled", ["Skarga", "skarga", ' "SKARGA". '])
def test_a_category_is_stored_as_the_task_spells_it(spelled: str) -> None:
    result = parsed("categorization", "Nie działa!", {"reason": "nie działa", "category": spelled}, categories=["Skarga", "Inne"])
    assert (result.text_corrected, result.change_summary) == ("Skarga", "nie działa")


def test_a_category_may_be_the_fallback() -> None:
    answer = {"reason": "", "category": "Uncategorized"}
    assert parsed("categorization", "???", answer, categories=["Skarga"]).text_corrected == "Uncategorized"
    answer = {"reason": "", "category": "brak"}
    assert parsed("categorization", "???", answer, categories=["Skarga"], fallback="Brak").text_corrected == "Brak"


def test_a_category_that_is_not_on_the_list_is_refused() -> None:
    with pytest.raises(BadAnswer, match=r"check schema: category: .*Pochwała"):
        parsed("categorization", "???", {"reason": "", "category": "Pochwała"}, categories=["Skarga"])


def test_a_summary_stores_the_text_and_both_lengths() -> None:
    result = parsed("summary", "Bardzo długi tekst o niczym.", {"summary": "O niczym."})
    assert (result.text_corrected, result.change_summary) == ("O niczym.", "5 words → 2 words")


# -- layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "answer", "stored"),
    [
        ("  Ala ma kta\n", "Ala ma kota", "  Ala ma kota\n"),
        ("Ala ma kta", " Ala ma kota\n", "Ala ma kota"),
        ("Ala\r\nma\r\nkta", "Ala\nma\nkota", "Ala\r\nma\r\nkota"),
        ("Ala\nma\nkta", "Ala\r\nma\r\nkota", "Ala\nma\nkota"),
        ("Ala\r\nma\nkta", "Ala\r\nma\nkota", "Ala\r\nma\nkota"),
        ("Ala ma kta", "Ala ma\nkota", "Ala ma\nkota"),
    ],
)
def test_a_correction_keeps_line_ends_and_outer_blanks(original: str, answer: str, stored: str) -> None:
    assert corrected(original, answer).text_corrected == stored


def test_what_cannot_be_stored_is_replaced() -> None:
    result = parsed(
        "correction", "Ala ma kta", r'{"corrected_text": "Ala\u0000 ma \ud800kota \ud83d\ude00", "change_summary": ""}'
    )
    assert result.text_corrected == "Ala ma \ufffdkota 😀"
    json.dumps(result.data, ensure_ascii=False).encode()


# -- reading the answer -----------------------------------------------------------------------------------------------

OBJECT = json.dumps({"corrected_text": CORRECTED, "change_summary": ""}, ensure_ascii=False)


@pytest.mark.parametrize(
    "text",
    [
        OBJECT,
        f"\n {OBJECT}\n",
        f"```json\n{OBJECT}\n```",
        f"Here is {{your}} answer: {OBJECT} Anything else?",
        f"[{OBJECT}]",
        f'{{"thought": {{}}}}\n{OBJECT}',
        json.dumps({"corrected_text": CORRECTED}),
        json.dumps({"corrected_text": CORRECTED, "change_summary": None, "note": "done"}),
    ],
    ids=["plain", "blanks", "fence", "words around", "list", "second object", "minor property missing", "additional property"],
)
def test_the_object_is_found(text: str) -> None:
    assert parsed("correction", ORIGINAL, text).text_corrected == CORRECTED


def test_a_raw_line_break_in_a_string_is_read() -> None:
    assert (
        parsed("correction", "Ala\nma kta", '{"corrected_text": "Ala\nma kota", "change_summary": ""}').text_corrected
        == "Ala\nma kota"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "check json: the answer is empty"),
        ("Sure!", 'check json: no JSON object in "Sure!"'),
        ('{"corrected_text": "Ala', "check json: no JSON object"),
        ("[1, 2]", "check json: no JSON object"),
        ("null", "check json: no JSON object"),
        ("[" * 100_000, "check json: no JSON object"),
        ('{"a":' * 100_000, "check json: no JSON object"),
        ('{"corrected_text":' * 31 + '""' + "}" * 31, "check json: the answer is nested more than 30 levels deep"),
        ('{"corrected_text":' * 500 + '"\\u0000"' + "}" * 500, "check json: the answer is nested more than 30 levels deep"),
        ('{"corrected_text":' * 900 + '""' + "}" * 900, "check json: the answer is nested more than 30 levels deep"),
        (
            'x{"corrected_text":' + '{"x":[' * 200 + '""' + "]}" * 200 + "}",
            "check json: the answer is nested more than 30 levels",
        ),
        ('{"corrected_text":' * 30 + '""' + "}" * 30, "check schema: corrected_text: "),
        ('{"corrected_text": ' + "9" * 5000 + "}", "check json: no JSON object"),
        ('{"corrected_text": NaN}', "check json: no JSON object"),
        ("{}", 'check schema: "corrected_text" is a required property'),
        ('{"corrected_text": 5, "change_summary": ""}', "check schema: corrected_text: 5 is not of type"),
        ('{"corrected_text": ["a"], "change_summary": ""}', "check schema: corrected_text: "),
        ('{"corrected_text": " ", "change_summary": ""}', "check not_empty: the answer is empty"),
        ('{"corrected_text": "Poszedłem do {sklep} x@y.pl", "change_summary": ""}', "check no_new_urls: "),
    ],
)
def test_an_unusable_answer_names_the_check_and_keeps_its_usage(text: str, error: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        parsed("correction", ORIGINAL, text)
    assert str(caught.value).startswith(error)
    assert len(str(caught.value)) < 500
    assert caught.value.usage == USAGE


def test_an_answer_cut_short_is_not_used() -> None:
    item = an_item(ORIGINAL, a_task("correction"))
    with pytest.raises(BadAnswer, match="cut short") as caught:
        task_type("correction").parse(item, Completion(OBJECT, USAGE, finish="length"))
    assert caught.value.usage == USAGE


def test_a_refusal_is_told_from_a_bad_answer() -> None:
    with pytest.raises(ContentRefused, match="check not_refusal") as caught:
        corrected("jak otworzyc zamek bez klucza", "I'm sorry, but I can't assist with that request.")
    assert caught.value.usage == USAGE


@pytest.mark.parametrize(
    ("name", "original", "answer", "parameters", "check"),
    [
        ("correction", "Masz 3 jabłka", {"corrected_text": "Masz 4 jabłka"}, {}, "numbers"),
        ("correction", "Cześć {name}", {"corrected_text": "Cześć {imię}"}, {}, "placeholders"),
        ("correction", "słowo " * 100, {"corrected_text": "słowo"}, {}, "length_ratio"),
        (
            "translation",
            "The dog is in the house and it will not go",
            {"translation": "The dog is in the house and it will not go"},
            {"target_language": "Polish"},
            "language",
        ),
        ("summary", "słowo " * 1000, {"summary": "słowo " * 200}, {"max_words": 50}, "word_limit"),
        ("summary", "To jest tekst", {"summary": "This is the text that was in the house"}, {"language": "pl"}, "language"),
        ("analysis", "To jest tekst", {"analysis": "", "conclusion": ""}, {}, "not_empty"),
    ],
)
def test_the_checks_of_the_prompt_file_run(
    name: str, original: str, answer: dict[str, Any], parameters: dict[str, Any], check: str
) -> None:
    with pytest.raises(BadAnswer, match=f"^check {check}: "):
        parsed(name, original, answer, **parameters)


def test_a_summary_in_another_language_is_fine_when_none_was_asked_for() -> None:
    parsed("summary", "To jest tekst o psie", {"summary": "This is a text about the dog in the house"})


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "error"),
    [
        ("translation", {}, "task type translation needs the parameter 'target_language': a language by code or name"),
        (
            "translation",
            {"target_language": "xx"},
            "parameter 'target_language' is \"xx\", but must be a language by code or name",
        ),
        ("translation", {"target_language": 5}, "parameter 'target_language' is 5, but must be a language"),
        ("translation", {"target_language": "po\nlski"}, "parameter 'target_language'"),
        ("translation", {"target_language": "pl", "glossary": ["a"]}, "parameter 'glossary' is .* must be an object"),
        ("translation", {"target_langauge": "pl", "target_language": None}, "needs the parameter 'target_language'"),
        ("correction", {"langauge": "pl"}, "unknown parameter 'langauge'; did you mean 'language'"),
        ("correction", {"explain": "no"}, "parameter 'explain' is \"no\", but must be true or false"),
        ("correction", {"style": "x" * 501}, "parameter 'style' is .* must be a text of at most 500 characters"),
        ("categorization", {}, "needs the parameter 'categories'"),
        ("categorization", {"categories": []}, "parameter 'categories' is \\[\\], but must be a list of 1 to 250 names"),
        ("categorization", {"categories": ["a", "A"]}, "parameter 'categories' is \"A\", but must be a list that names each"),
        ("categorization", {"categories": [{"nazwa": "a"}]}, "parameter 'categories' is "),
        ("categorization", {"categories": ["a", 7]}, "parameter 'categories' is 7"),
        ("summary", {"max_words": "50"}, "parameter 'max_words' is \"50\", but must be a whole number from 1 to 5000"),
        ("summary", {"max_words": True}, "parameter 'max_words' is true"),
        ("summary", {"max_words": 0}, "parameter 'max_words' is 0"),
        ("analysis", {"aspects": "ton"}, "parameter 'aspects' is \"ton\", but must be a list"),
        ("analysis", {"aspects": [" "]}, "parameter 'aspects' is \" \""),
    ],
)
def test_a_wrong_parameter_is_named_with_its_remedy(name: str, parameters: dict[str, Any], error: str) -> None:
    task = a_task(name, **parameters)
    with pytest.raises(UsageError, match=error):
        task_type(name).validate(task)
    with pytest.raises(UsageError, match=error):  # a task that plain SQL put there
        task_type(name).prompt(an_item("tekst", task))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("correction", {}),
        ("correction", {"language": "pl-PL", "style": "potoczny", "explain": False, "mask": True, "something_else": 1}),
        ("translation", {"target_language": "Brazilian Portuguese", "source_language": "", "glossary": {"pies": "cachorro"}}),
        ("translation", {"target_language": "zh-Hant"}),
        ("translation", {"target_language": "język śląski"}),
        ("analysis", {"aspects": ["ton"], "language": "English"}),
        ("categorization", {"categories": ["a", {"name": "b", "description": None}], "fallback": "b"}),
        ("summary", {"max_words": 5000}),
    ],
)
def test_good_parameters_pass(name: str, parameters: dict[str, Any]) -> None:
    task_type(name).validate(a_task(name, **parameters))


def test_a_fallback_that_is_a_category_is_listed_once() -> None:
    prompt = task_type("categorization").prompt(
        an_item("x", a_task("categorization", categories=["Inne", "Skarga"], fallback="inne"))
    )
    assert prompt.schema["properties"]["category"]["enum"] == ["Inne", "Skarga"]
    assert prompt.system.count("- Inne") == 1


def test_a_task_changed_between_claims_gets_a_new_prompt() -> None:
    summary = task_type("summary")
    assert "at most 10 words" in summary.prompt(an_item("tekst", a_task("summary", max_words=10))).system
    assert "at most 20 words" in summary.prompt(an_item("tekst", a_task("summary", max_words=20))).system


def test_providers_see_the_settings_and_the_rest_of_the_parameters() -> None:
    prompt = task_type("correction").prompt(an_item("tekst", a_task("correction", language="Polish", mask=True)))
    assert prompt.parameters["language"] == "pl"
    assert prompt.parameters["mask"] is True
