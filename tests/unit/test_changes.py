"""The change report's numbers: what each change is called, and how much of a text counts as touched."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.changes import Changes, Kind, kinds_of, measure
from ai_worker.models import Completion, Item, Task, TaskStatus
from ai_worker.task_types import task_type
from ai_worker.text import count_words, diff, is_one_word, is_word, words

ANY_TEXT = st.text(st.sampled_from("ab ąłż Ab,.!-'\n1学校 "), max_size=60) | st.text(max_size=30)


def kinds(original: str, corrected: str) -> dict[str, int]:
    found: dict[str, int] = measure(original, corrected).as_json()["kinds"]
    return found


@pytest.mark.parametrize(
    ("original", "corrected", "expected"),
    [
        ("Poszłem do domu", "Poszedłem do domu", {"spelling": 1}),
        ("teh end", "the end", {"spelling": 1}),
        ("książki leżą", "książek leżą", {"spelling": 1}),
        ("Dzis jest ladnie", "Dziś jest ładnie", {"diacritics": 2}),
        ("ZOŁĆ", "Żółć", {"diacritics": 1}),
        ("ala ma kota", "Ala ma kota", {"capitalisation": 1}),
        ("Myślę że tak", "Myślę, że tak", {"punctuation": 1}),
        ("dont go", "don't go", {"punctuation": 1}),
        ("biało czerwona flaga", "biało-czerwona flaga", {"punctuation": 1}),
        ("„a” b", '"a" b', {"punctuation": 2}),
        ("a  b\tc", "a b\tc", {"spacing": 1}),
        ("wogóle nie", "w ogóle nie", {"spacing": 1}),
        ("na prawdę tak", "naprawdę tak", {"spacing": 1}),
        ("tak , nie", "tak, nie", {"spacing": 1}),
        ("jest źle", "są źle", {"reworded": 1}),
        ("rok 2024", "rok 2025", {"reworded": 1}),
        ("to dom", "to jest dom", {"word_added": 1}),
        ("to jest jest dom", "to jest dom", {"word_removed": 1}),
        ("ja się boję ciemności", "ja boję się ciemności", {"moved": 1}),
        ("the big dog ran", "a cat ran", {"reworded": 2, "word_removed": 1}),
        ("wogóle ale Ala", "w ogóle Ale, ala", {"spacing": 1, "capitalisation": 2, "punctuation": 1}),
        ("我去学校了", "我去了学校", {"moved": 1}),
        ("bez zmian", "bez zmian", {}),
    ],
)
def test_each_kind(original: str, corrected: str, expected: dict[str, int]) -> None:
    assert kinds(original, corrected) == expected


@pytest.mark.parametrize(
    ("original", "corrected", "words_", "changed", "added", "ratio"),
    [
        ("jeden dwa trzy cztery", "jeden dwa trzy cztery", 4, 0, 0, 0.0),
        ("jeden dwa trzy cztery", "Jeden dwa trzy cztery.", 4, 1, 0, 0.25),
        ("jeden dwa trzy", "jeden dwa trzy i cztery", 3, 0, 2, 0.4),
        ("jeden dwa", "", 2, 2, 0, 1.0),
        ("", "jeden dwa", 0, 0, 2, 1.0),
        ("na prawdę", "naprawdę", 2, 2, 0, 1.0),
        ("naprawdę", "na prawdę", 1, 1, 0, 1.0),
        ("a  ,b", "a, b", 2, 0, 0, 0.0),  # signs and blanks are no words
        ("...", "!", 0, 0, 0, 0.0),
    ],
)
def test_the_ratio(original: str, corrected: str, words_: int, changed: int, added: int, ratio: float) -> None:
    found = measure(original, corrected)
    assert (found.words, found.changed, found.added, found.ratio) == (words_, changed, added, ratio)


@given(ANY_TEXT, ANY_TEXT)
def test_the_numbers_fit_together(original: str, corrected: str) -> None:
    found = measure(original, corrected)
    assert found.words == sum(is_word(token) for token in words(original))
    assert 0 <= found.changed <= found.words
    assert 0 <= found.ratio <= 1
    # What is left of the original and what was added to it, split and joined words apart, is what the other text has.
    assert found.words - found.changed + found.added <= count_words(corrected)
    assert bool(found.kinds) == (original != corrected)
    assert min(found.kinds.values(), default=1) >= 1


@given(st.lists(st.text("abcąż", min_size=1, max_size=6), min_size=1, max_size=12), st.data())
def test_words_left_out_are_counted_one_by_one(all_words: list[str], data: st.DataObject) -> None:
    if any(a == b for a, b in pairwise(all_words)) or len({*all_words}) != len(all_words):
        return
    kept = [word for word in all_words if data.draw(st.booleans())]
    found = measure(" ".join(all_words), " ".join(kept))
    if kept:
        assert found.changed >= len(all_words) - len(kept)
        assert found.added == 0


@given(ANY_TEXT, ANY_TEXT)
def test_each_changed_span_has_its_kinds_or_moved_along_with_another(original: str, corrected: str) -> None:
    spans = diff(original, corrected)
    for span, changes in zip(spans, kinds_of(spans), strict=True):
        if not span.changed:
            assert changes == []
        elif not changes:  # the place that something was moved to
            assert span.old == "" or not any(map(is_word, words(span.old)))


@given(ANY_TEXT)
def test_one_word_is_what_words_makes_one_of(text: str) -> None:
    tokens = words(text)
    assert is_one_word(text) == (len(tokens) == 1 and is_word(tokens[0]))


LINES = [f"Wiersz numer {number} jest taki sam w obu tekstach, co do slowa.\n" for number in range(5_000)]


@pytest.mark.parametrize(
    ("original", "corrected"),
    [
        ("".join(LINES), "".join(LINES).replace("numer 7", "nr 7")),
        ("".join(LINES), "".join(LINES).upper()),
        ("".join(LINES), "".join(reversed(LINES))),
        ("".join(LINES), ""),
        ("x" * 2_000_000, "x" * 1_999_999 + "y"),
        (("abcdefghijklmnopqrstuvwxyz1234"[:26] + " ") * 11_000, ("badcfehgjilknmporqtsvuxwzy" + " ") * 11_000),
        ("b " + "a c " * 75_000, "c a " * 74_950 + "c"),
        ("." * 150_000, " ." * 150_000),
    ],
    ids=["few", "capitals", "reversed", "emptied", "one word", "swapped letters", "repetitive", "signs"],
)
def test_huge_texts_are_measured_in_bounded_time(original: str, corrected: str) -> None:
    started = time.process_time()
    found = measure(original, corrected)
    assert time.process_time() - started < 4  # tenths of a second on a quiet machine; minutes without the bounds
    assert found.words == count_words(original)


def test_few_changes_in_a_long_text_are_counted_one_by_one() -> None:
    lines = LINES.copy()
    lines[777] = lines[777].replace("slowa", "słowa")
    lines[2000] = lines[2000].replace("Wiersz", "wiersz")
    lines[4000] = "Zupełnie nowy. " + lines[4000]
    assert measure("".join(LINES), "".join(lines)) == Changes(
        12 * 5_000, 2, 2, {Kind.DIACRITICS: 1, Kind.CAPITALISATION: 1, Kind.WORD_ADDED: 2, Kind.PUNCTUATION: 1}
    )


def corrected(original: str, answer: str, **more: object) -> dict[str, object]:
    task = Task(1, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
    item = Item(1, task, original, {}, 1, 0, b"", "")
    text = json.dumps({"corrected_text": answer, "change_summary": "", **more})
    return dict(task_type("correction").parse(item, Completion(text)).data)


def test_a_correction_stores_the_counts_beside_the_answer() -> None:
    data = corrected("Poszłem do sklepu po chleb i maslo.", "Poszedłem do sklepu po chleb i masło.")
    assert data["changes"] == {
        "words": 7,
        "changed": 2,
        "added": 0,
        "ratio": 0.2857,
        "kinds": {"diacritics": 1, "spelling": 1},
    }
    assert data["corrected_text"] == "Poszedłem do sklepu po chleb i masło."


def test_an_untouched_text_is_counted_too() -> None:
    assert corrected("Bez zmian.", "Bez zmian.")["changes"] == {"words": 2, "changed": 0, "added": 0, "ratio": 0.0, "kinds": {}}
