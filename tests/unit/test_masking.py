"""Task types that keep personal data in the house: what goes out for an item, and what comes back of it."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from ai_worker.changes import measure
from ai_worker.errors import BadAnswer, CannotMask, PersonalDataFound, UsageError
from ai_worker.models import (
    Background,
    Completion,
    Example,
    Item,
    PersonalData,
    Prompt,
    Result,
    Task,
    TaskStatus,
    Usage,
)
from ai_worker.task_types import fallback, is_new_version, is_simple, needs, splitting, stepped, task_type, task_type_of
from ai_worker.task_types.foreseen import foreseen
from ai_worker.task_types.masking import INSTRUCTION, Masking, names_of
from ai_worker.task_types.pack import pack_key, packed, unpacked
from ai_worker.task_types.prompt_file import PromptFile

EMAIL, PESEL, PHONE, IBAN = "jan.kowalski@poczta.pl", "44051401359", "+48 600 100 200", "PL61 1090 1014 0000 0712 1981 2874"
TEXT = f"Jan Kowalski ({EMAIL}, {PHONE}) prosi o pomoc. PESEL {PESEL}, konto {IBAN}, znowu {EMAIL}."
MASKED = "[[NAME_1]] ([[EMAIL_1]], [[PHONE_1]]) prosi o pomoc. PESEL [[PESEL_1]], konto [[IBAN_1]], znowu [[EMAIL_1]]."
VALUES = ("Kowalski", EMAIL, PESEL, PHONE, IBAN)

STEPS = """\
+++
version = 1
kind = "summary"
[[steps]]
name = "draft"
answer_field = "text"
[steps.schema]
type = "object"
additionalProperties = false
required = ["text"]
[steps.schema.properties.text]
type = "string"
[[steps]]
name = "final"
answer_field = "text"
[steps.schema]
type = "object"
additionalProperties = false
required = ["text"]
[steps.schema.properties.text]
type = "string"
+++
# Step draft
## System
Collect.
## User
{{ marker }}
{{ text }}
{{ marker }}
# Step final
## System
Sum up.
## User
{{ marker }}
{{ steps.draft.text }} {{ steps.draft.data | tojson }}
{{ marker }}
"""


@pytest.fixture
def masking(tmp_path: Path) -> Masking:
    names = tmp_path / "names.txt"
    names.write_text("# people\n\nJan Kowalski\nKowalskiego\n", encoding="utf-8")
    return Masking(names)


def an_item(name: str, text: str, mode: PersonalData = PersonalData.MASK, description: str = "", **parameters: Any) -> Item:
    task = Task(1, 1, name, description, parameters, 3, 0, TaskStatus.NEW, personal_data=mode)
    return Item(1, task, text, {}, 1, 0, b"token", "operation")


def sent(prompt: Prompt) -> str:
    return json.dumps(
        [prompt.system, prompt.user, prompt.text, dict(prompt.schema), dict(prompt.parameters)], default=dict, ensure_ascii=False
    )


def answer(**fields: Any) -> Completion:
    return Completion(json.dumps(fields), Usage(7, 5))


def test_values_go_out_as_placeholders_and_come_back_in_every_field(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    item = an_item("correction", TEXT)
    prompt = kind.prompt(item)
    assert MASKED in prompt.user
    assert prompt.system.endswith(INSTRUCTION)
    assert not any(value in sent(prompt) for value in VALUES)

    corrected = MASKED.replace("prosi o", "prosi bardzo o")
    result = kind.parse(item, answer(corrected_text=corrected, change_summary="[[NAME_1]]: dodano „bardzo”"))
    assert result.text_corrected == TEXT.replace("prosi o", "prosi bardzo o")
    assert result.change_summary == "Jan Kowalski: dodano „bardzo”"
    assert result.data["corrected_text"] == result.text_corrected
    assert result.data["changes"] == measure(TEXT, TEXT.replace("prosi o", "prosi bardzo o")).as_json(), "of the row's own text"


def test_all_that_may_be_drawn_into_a_prompt_is_masked(masking: Masking) -> None:
    kind = masking.of(task_type("reply"), PersonalData.MASK)
    item = an_item("reply", f"Piszę z {EMAIL}.", description=f"Podpisuj: biuro@firma.pl, zastępca {EMAIL}")
    item = item._replace(
        context={"messages": [{"role": "user", "text": f"mój PESEL to {PESEL}"}, {"role": "assistant", "text": "Dziękuję."}]},
        background=Background(
            ((f"telefon {PHONE}", f"zapisano {PHONE}"),),
            (f"konto {IBAN}",),
            (Example("do Kowalskiego", f"do {EMAIL}", True, f"popraw {PHONE}"),),
        ),
    )
    prompt = kind.prompt(item)
    assert not any(value in sent(prompt) for value in (*VALUES, "biuro@firma.pl", "Kowalskiego"))
    other = kind.prompt(item._replace(text_original="Zupełnie co innego.", background=Background()))
    assert other.system == prompt.system, "what the task itself has is numbered alike for all of its items"
    back = kind.parse(item, answer(reply="Piszę do [[EMAIL_2]] i [[EMAIL_1]], [[PESEL_1]]."))
    assert back.text_corrected == f"Piszę do {EMAIL} i biuro@firma.pl, {PESEL}."


def test_parameters_are_masked_where_they_are_words(masking: Masking) -> None:
    kind = masking.of(task_type("categorization"), PersonalData.MASK)
    item = an_item("categorization", "Kto to załatwi?", categories=[EMAIL, "inni"])
    prompt = kind.prompt(item)
    assert EMAIL not in sent(prompt)
    field = prompt.answer_field
    wanted = dict.fromkeys(prompt.schema["required"], "")
    assert kind.parse(item, answer(**{**wanted, field: "[[EMAIL_1]]"})).text_corrected == EMAIL


@pytest.mark.parametrize("given", ["lost", "made up", "changed"])
def test_an_answer_that_loses_or_makes_up_a_placeholder_is_none(masking: Masking, given: str) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    text = {
        "lost": MASKED.replace("[[NAME_1]]", "Klient"),
        "made up": f"{MASKED} [[EMAIL_2]]",
        "changed": MASKED.replace("NAME_1", "NAME_7"),
    }
    with pytest.raises(BadAnswer, match="personal_data") as raised:
        kind.parse(an_item("correction", TEXT), answer(corrected_text=text[given], change_summary=""))
    assert raised.value.usage == Usage(7, 5), "it is billed"
    assert not any(value in str(raised.value) for value in VALUES)


def test_a_summary_need_not_speak_of_every_value(masking: Masking) -> None:
    kind = masking.of(task_type("summary"), PersonalData.MASK)
    result = kind.parse(an_item("summary", TEXT), answer(summary="[[NAME_1]] prosi o pomoc."))
    assert result.text_corrected == "Jan Kowalski prosi o pomoc."


def test_what_looks_like_a_placeholder_in_the_row_comes_back_as_it_was(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    text = f"Szablon [[EMAIL_1]] oraz {EMAIL} i [[ name_3 ]]."
    item = an_item("correction", text)
    assert "Szablon [[TEXT_1]] oraz [[EMAIL_1]] i [[TEXT_2]]." in kind.prompt(item).user
    result = kind.parse(item, answer(corrected_text="Szablon [[TEXT_1]] oraz [[EMAIL_1]] i [[TEXT_2]]!", change_summary=""))
    assert result.text_corrected == text.replace("].", "]!")


def test_no_error_tells_a_value(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    with pytest.raises(BadAnswer) as raised:
        kind.parse(an_item("correction", TEXT), answer(corrected_text=[MASKED], change_summary=""))
    assert not any(value in str(raised.value) for value in VALUES)

    class Broken:
        name = "broken"

        def validate(self, task: Task) -> None: ...

        def prompt(self, item: Item) -> Prompt:
            return task_type("correction").prompt(item)

        def parse(self, item: Item, completion: Completion) -> Result:
            raise KeyError(f"{item.text_original}, {completion.text}")

    with pytest.raises(RuntimeError) as broken:
        masking.of(Broken(), PersonalData.MASK).parse(an_item("correction", TEXT), answer(x="[[EMAIL_1]]"))
    assert not any(value in str(broken.value) for value in VALUES)
    assert broken.value.__suppress_context__


def test_two_items_share_an_answer_where_their_values_are_the_same_too(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)

    def fingerprint(text: str) -> bytes | None:
        return kind.prompt(an_item("correction", text)).fingerprint

    one, same, other = fingerprint("Do a@x.pl"), fingerprint("Do a@x.pl"), fingerprint("Do b@x.pl")
    assert one == same
    assert one != other
    plain = an_item("correction", "Bez niczego.")
    assert kind.prompt(plain).fingerprint == task_type("correction").prompt(plain).fingerprint, "nothing is masked: the same work"
    assert fingerprint("Do [[EMAIL_1]]") not in {one, other}
    assert one != task_type("correction").prompt(an_item("correction", "Do [[EMAIL_1]]")).fingerprint


def test_items_of_a_pack_have_placeholders_of_their_own(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    items = [an_item("correction", f"Do {name}@x.pl i bez.") for name in "ab"]
    prompts = [kind.prompt(item) for item in items]
    assert len({pack_key(prompt) for prompt in prompts}) == 1
    whole = packed(prompts)
    assert "@x.pl" not in sent(whole)
    results = [{"item": number, "corrected_text": "Do [[EMAIL_1]] i bez!", "change_summary": ""} for number in (1, 2)]
    answers = unpacked(Completion(json.dumps({"results": results})), 2)
    assert [kind.parse(item, Completion(answers[place])).text_corrected for place, item in enumerate(items)] == [
        "Do a@x.pl i bez!",
        "Do b@x.pl i bez!",
    ]


def test_an_item_with_personal_data_is_not_sent_where_that_is_blocked(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.BLOCK)
    with pytest.raises(PersonalDataFound, match=r"EMAIL \(1\), IBAN \(1\), NAME \(1\), PESEL \(1\), PHONE \(1\)") as raised:
        kind.prompt(an_item("correction", TEXT, PersonalData.BLOCK))
    assert not any(value in str(raised.value) for value in VALUES)
    clean = an_item("correction", "Szablon [[EMAIL_1]].", PersonalData.BLOCK)
    assert kind.prompt(clean)._replace(user="") == task_type("correction").prompt(clean)._replace(user=""), "and else as ever"
    assert (
        kind.parse(clean, answer(corrected_text="Szablon [[EMAIL_1]]!", change_summary="")).text_corrected
        == "Szablon [[EMAIL_1]]!"
    )
    unsent = clean._replace(context={"e-mail": EMAIL})
    assert kind.prompt(unsent), "only what would be sent counts"


def test_a_picture_of_personal_data_is_refused(masking: Masking) -> None:
    kind = masking.of(task_type("image"), PersonalData.MASK)
    with pytest.raises(PersonalDataFound, match="picture"):
        kind.prompt(an_item("image", f"Wizytówka: {EMAIL}"))
    assert kind.prompt(an_item("image", "Wizytówka bez nazwiska")).image is not None


def test_steps_see_what_earlier_ones_found_with_placeholders(masking: Masking) -> None:
    kind = stepped(masking.of(task_type_of(PromptFile.parse("two", STEPS, "two.md")), PersonalData.MASK))
    assert kind is not None
    item = an_item("two", TEXT)
    first = kind.step_prompt(item, 1, {})
    done = kind.parse_step(item, 1, answer(text="Kontakt: [[EMAIL_1]], bank@y.pl"))
    assert done.text == f"Kontakt: {EMAIL}, bank@y.pl", "a step is stored with the values in it"
    second = kind.step_prompt(item, 2, {"draft": done})
    assert not any(value in sent(prompt) for value in VALUES for prompt in (first, second))
    assert "Kontakt: [[EMAIL_1]], bank@y.pl" in second.user, "what a model has found by itself is no secret of the row's"
    last = kind.parse_step(item, 2, answer(text="Gotowe: [[EMAIL_1]]"))
    assert kind.combined(item, {"draft": done, "final": last}).text_corrected == f"Gotowe: {EMAIL}"
    assert all(not any(value in sent(prompt) for value in VALUES) for _, prompt in foreseen(kind, item))


def test_no_part_of_a_long_text_ends_within_a_value(masking: Masking) -> None:
    inner = splitting(task_type("correction"))
    kind = splitting(masking.of(task_type("correction"), PersonalData.MASK))
    assert inner is not None
    assert kind is not None
    whole = f"{PHONE} {IBAN} " * 400
    item = an_item("correction", whole, part_tokens=100)
    parts = kind.split(item)
    assert "".join(parts) == whole
    assert len(parts) > 10
    assert any(not each.strip().startswith(("+48", "PL61")) for each in inner.split(item)), "else this would show nothing"
    for part in parts:
        assert "1" not in kind.step_prompt(item._replace(text_original=part), 1, {}).text.replace("_1", "")
    blocking = splitting(masking.of(task_type("correction"), PersonalData.BLOCK))
    assert blocking is not None
    with pytest.raises(PersonalDataFound):  # before the first part is sent
        blocking.split(item)


def test_a_masked_type_is_what_it_was_in_all_else(masking: Masking) -> None:
    for name in ("correction", "reply", "memory", "research", "custom", "image"):
        inner = task_type(name)
        kind = masking.of(inner, PersonalData.MASK)
        task = an_item(name, "x").task
        assert kind.name == inner.name
        assert is_new_version(kind) == is_new_version(inner)
        assert (stepped(kind) is None, splitting(kind) is None) == (stepped(inner) is None, splitting(inner) is None)
        assert needs(kind, task) == needs(inner, task)
        assert is_simple(kind, task) == is_simple(inner, task)
        assert masking.of(inner, PersonalData.MASK) is kind, "made once"


def test_a_fallback_is_asked_for_through_it(masking: Masking) -> None:
    class Spared(type(task_type("custom"))):  # type: ignore[misc]
        name = "custom"

        def fallback(self, item: Item, kind: str, message: str) -> Result:
            return Result(item.text_original, None, {})

    masked = masking.of(Spared(), PersonalData.MASK)
    assert fallback(masked, an_item("custom", TEXT), "bad_answer", "…") == Result(TEXT, None, {})
    assert fallback(masking.of(task_type("correction"), PersonalData.MASK), an_item("correction", TEXT), "x", "y") is None


def test_a_host_without_the_extra_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "stdnum":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CannotMask, match=r"ai-worker\[pii\]"):
        Masking().of(task_type("correction"), PersonalData.MASK)


def test_a_list_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotMask, match=r"names\.txt"):
        Masking(tmp_path / "names.txt").of(task_type("correction"), PersonalData.BLOCK)
    (tmp_path / "names.txt").write_bytes("Józef".encode("cp1250"))
    with pytest.raises(CannotMask, match="UTF-8"):
        names_of(tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no names"),
        ("# Jan\n\n", "has no names"),
        ("Jan\n600 100 200\n", "line 2, is no name"),
        ("\0\1Jan\0", "line 1, is no name"),
    ],
)
def test_a_list_without_names_is_told(tmp_path: Path, content: str, reason: str) -> None:
    """A list that somebody has named, and of which nothing would be found, must not pass for one."""
    path = tmp_path / "names.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CannotMask, match=f"AI_WORKER_PERSONAL_NAMES_FILE: .*names.txt.* {reason}"):
        Masking(path).of(task_type("correction"), PersonalData.MASK)


def test_a_batch_knows_whether_it_is_read_by_the_rules_it_was_written_by(tmp_path: Path) -> None:
    def mark(names: str, item: Item) -> str:
        (tmp_path / "names.txt").write_text(names, encoding="utf-8")
        kind: Any = Masking(tmp_path / "names.txt").of(task_type("correction"), PersonalData.MASK)
        return str(kind.mark(item))

    item = an_item("correction", TEXT)
    assert mark("Anna\nJan", item) == mark("Jan\n\nAnna", item)
    assert mark("Anna\nJan", item) != mark("Anna", item)
    assert mark("Anna", item) != mark("Anna", item._replace(claim_token=b"other")), "it tells nobody of the list"
    edited = [item._replace(text_original=f"{PHONE} {TEXT}"), item._replace(context={"a": EMAIL})]
    edited += [an_item("correction", TEXT, description=EMAIL), an_item("correction", TEXT, tone=EMAIL)]
    assert all(mark("Anna", each) != mark("Anna", item) for each in edited), "what is numbered otherwise now must not be mixed up"


def test_an_error_about_an_answer_names_placeholders_once(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    with pytest.raises(BadAnswer, match=r"check numbers: .*\[\[PESEL_1\]\]"):
        kind.parse(an_item("correction", TEXT), answer(corrected_text=MASKED.replace("[[PESEL_1]]", "…"), change_summary=""))


SHORTENED = """\
+++
version = 1
kind = "summary"
answer_field = "summary"
[schema]
type = "object"
additionalProperties = false
required = ["summary"]
[schema.properties.summary]
type = "string"
+++
# System
Sum up.
# User
{{ context.sender[:9] }}
{{ marker }}
{{ text }}
{{ marker }}
"""


def test_what_a_template_shortens_is_blocked_too(masking: Masking) -> None:
    """Of [[EMAIL_1]] nine characters are no placeholder any more; of a@b.pl they are the whole address."""
    item = an_item("short", "Dzień dobry.", PersonalData.BLOCK)._replace(context={"sender": "a@b.pl", "unread": EMAIL})
    kind = masking.of(task_type_of(PromptFile.parse("short", SHORTENED, "short.md")), PersonalData.BLOCK)
    with pytest.raises(PersonalDataFound, match=r"EMAIL \(1\)"):
        kind.prompt(item)
    assert kind.prompt(item._replace(context={"sender": "nobody", "unread": EMAIL})).user.startswith("nobody")


def test_an_answer_nested_beyond_reading_is_a_bad_one(masking: Masking) -> None:
    kind = masking.of(task_type("correction"), PersonalData.MASK)
    deep = '{"corrected_text": "[[EMAIL_1]]", "more": ' + "[" * 900 + "]" * 900 + "}"
    with pytest.raises(BadAnswer):
        kind.parse(an_item("correction", EMAIL), Completion(deep, Usage(7, 5)))


@pytest.mark.parametrize("error", [MemoryError, UsageError])
def test_errors_of_a_type_keep_their_kind(masking: Masking, error: type[Exception]) -> None:
    class Odd:
        name = "odd"

        def validate(self, task: Task) -> None: ...

        def prompt(self, item: Item) -> Prompt:
            raise AssertionError

        def parse(self, item: Item, completion: Completion) -> Result:
            raise error(f"about {item.text_original}")

    with pytest.raises(error) as caught:
        masking.of(Odd(), PersonalData.MASK).parse(an_item("odd", EMAIL), Completion("x", Usage()))
    assert error is MemoryError or str(caught.value) == "about [[EMAIL_1]]"
