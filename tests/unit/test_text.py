"""Word-level differences, and what makes texts storable and countable."""

from __future__ import annotations

import html
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.text import (
    Span,
    change_summary,
    clean,
    count_words,
    diff,
    estimate_tokens,
    html_diff,
    is_word,
    terminal_diff,
    words,
)

SENTENCES = st.lists(
    st.sampled_from(["ala ", "ma", " kota", ",", ". ", "żółw", "\n", "\r\n", "  ", "中文", "e\u0301", "👩‍💻"])
).map("".join)
ANY_TEXT = st.one_of(st.text(), SENTENCES)


@given(ANY_TEXT)
def test_words_lose_nothing(text: str) -> None:
    assert "".join(words(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't stop", ["don't", " ", "stop"]),
        ("biało-czerwony, żółć!", ["biało-czerwony", ",", " ", "żółć", "!"]),
        ("cafe\u0301 x", ["cafe\u0301", " ", "x"]),
        ("日本 ok", ["日", "本", " ", "ok"]),
        ("👩‍💻👍🏽", ["👩‍💻", "👍🏽"]),
        ("हिन्दी", ["हिन्दी"]),
    ],
)
def test_words_are_what_a_reader_calls_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(ANY_TEXT, ANY_TEXT)
def test_a_diff_holds_both_texts(original: str, corrected: str) -> None:
    spans = diff(original, corrected)
    assert "".join(span.old for span in spans) == original
    assert "".join(span.new for span in spans) == corrected
    assert all(span.old or span.new for span in spans)
    assert any(span.changed for span in spans) == (original != corrected)


@given(st.text(alphabet=st.one_of(st.sampled_from("aż_9-'’ .\u0301\u05b0\u0e31我ア🙂\u200d"), st.characters())))
def test_words_are_counted_as_they_are_told_apart(text: str) -> None:
    assert count_words(text) == len([token for token in words(text) if is_word(token)])


def test_each_word_is_a_change_of_its_own() -> None:
    assert diff("Poszłem do sklepu wogóle po chleb", "Poszedłem do sklepu w ogóle po chleb") == [
        Span("Poszłem", "Poszedłem"),
        Span(" do sklepu ", " do sklepu "),
        Span("wogóle", "w ogóle"),
        Span(" po chleb", " po chleb"),
    ]


def test_a_comma_put_in_is_no_change_of_the_words_around_it() -> None:
    assert [span for span in diff("Myślę że tak", "Myślę, że tak") if span.changed] == [Span("", ",")]


def test_blanks_are_compared_too() -> None:
    assert [span for span in diff("a  b\tc", "a b\tc") if span.changed] == [Span("  ", " ")]


@pytest.mark.parametrize(
    ("original", "corrected"),
    [
        ("b " + "a c " * 100_000, "c a " * 99_950 + "c"),
        ("a " * 440, "c " + "a " * 430),
        ("x" * 2_000_000, "x" * 1_999_999 + "y"),
        ("To jest zdanie, ktore ma blad. " * 20_000, "To jest zdanie, które ma błąd. " * 20_000),
    ],
    ids=["repetitive", "one word", "no blanks", "long"],
)
def test_huge_texts_take_no_seconds(original: str, corrected: str) -> None:
    started = time.process_time()
    spans = diff(original, corrected)
    assert time.process_time() - started < 3  # hundredths of a second on a quiet machine; minutes without the bounds
    assert "".join(span.old for span in spans) == original
    assert "".join(span.new for span in spans) == corrected


def test_a_long_text_still_shows_words() -> None:
    lines = [f"Wiersz numer {number} jest taki sam w obu tekstach.\n" for number in range(20_000)]
    original = "".join(lines)
    lines[777] = "Wiersz numer 777 jest inny w obu tekstach.\n"
    lines[15_000] += "I jeszcze jeden.\n"
    assert [span for span in diff(original, "".join(lines)) if span.changed] == [
        Span("taki sam", "inny"),
        Span("", "I jeszcze jeden.\n"),
    ]


def test_the_summary_counts_and_quotes() -> None:
    assert change_summary("I recieve teh letter", "I receive the letter") == '2 changes: "recieve" → "receive"; "teh" → "the"'
    assert change_summary("tak , nie", "tak, nie!") == '2 changes: removed " "; added "!"'
    assert change_summary("bez zmian", "bez zmian") == "No changes"


@given(ANY_TEXT, ANY_TEXT)
def test_the_summary_is_one_bounded_line(original: str, corrected: str) -> None:
    summary = change_summary(original, corrected, limit=200)
    assert "\n" not in summary
    assert len(summary) < 200 + 200


def test_a_long_summary_says_how_much_it_leaves_out() -> None:
    original = " ".join(f"slowo{number} i" for number in range(100))
    summary = change_summary(original, original.replace("slowo", "słowo"), limit=100)
    assert summary.startswith('100 changes: "slowo0" → "słowo0"; ')
    assert (quoted := summary.count("→")) < 100
    assert summary.endswith(f"and {100 - quoted} more")


@given(ANY_TEXT, ANY_TEXT)
def test_the_html_shows_both_texts_and_nothing_of_theirs_is_markup(original: str, corrected: str) -> None:
    old, new = html_diff(diff(original, corrected))
    assert html.unescape(old.replace("<del>", "").replace("</del>", "")) == html.unescape(html.escape(original))
    assert html.unescape(new.replace("<ins>", "").replace("</ins>", "")) == html.unescape(html.escape(corrected))
    assert not re.search(r"<(?!/?(del|ins)>)", old + new)


def test_html_is_escaped_inside_and_outside_of_changes() -> None:
    assert html_diff(diff("<b>x</b> teh", "<b>x</b> the")) == (
        "&lt;b&gt;x&lt;/b&gt; <del>teh</del>",
        "&lt;b&gt;x&lt;/b&gt; <ins>the</ins>",
    )


def test_html_marks_say_what_they_are() -> None:
    spans = diff("teh end", "the end")
    assert html_diff(spans, ['<"spelling">', "nothing"]) == (
        '<del title="&lt;&quot;spelling&quot;&gt;">teh</del> end',
        '<ins title="&lt;&quot;spelling&quot;&gt;">the</ins> end',
    )


def test_the_terminal_shows_changes_with_and_without_colour() -> None:
    assert terminal_diff("I teh end", "I the end, now", color=False) == "I [-teh-]{+the+} end{+, now+}"
    assert terminal_diff("teh end", "the end", color=True) == "\x1b[31;9mteh\x1b[0m\x1b[32mthe\x1b[0m end"


@given(st.text(), st.text())
def test_the_texts_cannot_steer_the_terminal(original: str, corrected: str) -> None:
    shown = terminal_diff(original + "\x1b[2J", corrected + "\x9b2J", color=False)
    assert not [sign for sign in shown if (sign < " " and sign not in "\t\n") or "\x7f" <= sign < "\xa0"]


@given(st.text(st.characters(exclude_categories=())))
def test_a_cleaned_text_can_be_stored(text: str) -> None:
    cleaned = clean(text)
    assert "\0" not in cleaned
    assert json.loads(json.dumps(cleaned, ensure_ascii=False).encode()) == cleaned
    assert clean(cleaned) == cleaned


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
def test_cleaning_leaves_good_text_alone(text: str) -> None:
    assert clean(text) == text


def test_surrogates_are_joined_where_they_are_a_pair() -> None:
    assert clean("\ud83d\ude00 \ud83d żółw \x00!") == "😀 \ufffd żółw !"


@given(st.text(st.characters(exclude_categories=())))
def test_the_estimate_is_at_least_one(text: str) -> None:
    assert estimate_tokens(text) >= 1


def test_the_estimate_knows_scripts() -> None:
    english = estimate_tokens("The children went to school in the morning and came back late.")
    polish = estimate_tokens("Dzieci poszły rano do szkoły i wróciły do domu późnym wieczorem.")
    russian = estimate_tokens("Дети утром пошли в школу и вернулись домой поздним вечером дня.")
    chinese = estimate_tokens("孩子们早上去上学了晚上很晚才回家。" * 4)
    assert 14 <= english < polish < russian < chinese <= 68
