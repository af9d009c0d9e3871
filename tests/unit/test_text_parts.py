"""Long texts in parts: nothing is lost, nothing too long, and cut where a reader would pause."""

from __future__ import annotations

import time
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_worker.text import estimate_tokens
from ai_worker.text_parts import fits, is_within_sign, parts_of

PLAIN = [
    "Ala ",
    "ma",
    " kota",
    ", ",
    ". ",
    "Nie. ",
    "!\n",
    "żółw",
    "中文。",
    "np. ",
    "3.14",
    "J. K. ",
    "„Co?” ",
    "… ",
    "a.pl/b?d=1.5 ",
]
ODD = ["\n\n", "\r\n", "\r", "\n", "  ", "\t", "e\u0301", "👩‍💻", "🇵🇱", "\ud83d", "\ude00", " \u0301"]
PIECES = st.sampled_from(PLAIN + ODD)
ANY_TEXT = st.one_of(st.text(max_size=3000), st.lists(PIECES, max_size=1500).map("".join))


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT, st.integers(min_value=1, max_value=400))
def test_joined_parts_are_the_text_and_none_is_too_long(text: str, tokens: int) -> None:
    parts = parts_of(text, tokens)
    assert "".join(parts) == text
    assert all(parts)
    assert all(fits(part, tokens) or len(part) == 1 for part in parts)
    if tokens >= 100:  # then no sign of these texts is longer than a part
        marks = [end for end in accumulate(map(len, parts)) if is_within_sign(text, end)]
        assert not marks or max(map(len, text.split())) > 50


@pytest.mark.parametrize(
    "text",
    [
        "Spotkał się z dr. Kowalskim, tj. ze swoim szefem. Potem wyszedł.",
        "Był to m.in. Jan Nowak oraz prof. Anna Zięba. Nikt inny nie przyszedł.",
        "W 1999 r. Polska weszła do NATO. To było dawno.",
        "Mieszka przy ul. Długiej 5 w Krakowie. Lubi to miasto.",
        "Liczba pi to około 3.14 i nic. Tyle wystarczy.",
        "Napisał to J. R. R. Tolkien wiele lat temu. Wszyscy to wiedzą.",
        "Zobacz https://example.com/a.b?c=1.5 i wróć. Czekamy na ciebie.",
        "On… nie wiedział, co powiedzieć. Milczał więc.",
        "„Co robisz?” zapytał ją cicho. Nie odpowiedziała.",
        "It is, e.g. Warsaw or Mr. Smith who wins. Nobody else does.",
        "Zobacz np. Kraków, tzn. Wawel. Jest piękny.",
        "Plan:\n1. Wstęp i omówienie celu. Reszta jest potem.",
    ],
)
def test_a_part_ends_with_its_sentence(text: str) -> None:
    """With room for all but the last word, the only place to end is the one real end of a sentence."""
    tokens = estimate_tokens(text) - 1
    first = text.rindex(". ") + 2
    assert parts_of(text + " " * 400, 10_000) == [text + " " * 400]
    long = text + " Słowo" * 200  # what follows is one sentence without an end
    assert parts_of(long, tokens)[0] == text[:first]


def test_paragraphs_come_before_sentences_and_sentences_before_words() -> None:
    sentence = "To jest zwykłe zdanie o niczym. "
    paragraphs = (sentence * 6).strip() + "\r\n\r\n" + (sentence * 6).strip() + "\n\n" + sentence * 20
    parts = parts_of(paragraphs, 85)
    assert parts[0].endswith("\r\n\r\n")
    assert parts[1].endswith("niczym.\n\n")
    assert all(part.endswith(". ") for part in parts[2:])
    assert parts_of("słowo " * 100, 20)[0] == "słowo " * 8
    assert {len(part) for part in parts_of("a" * 4000, 100)[:-2]} == {402}  # no place at all but between signs


def test_small_letters_throughout_still_end_at_sentences() -> None:
    text = "wszystko pisze malymi literami. nikt tego nie poprawia. " * 40
    assert all(part.endswith(". ") for part in parts_of(text, 100))


def test_the_last_two_parts_are_about_equally_long() -> None:
    text = "Zdanie jest tu dość krótkie. " * 120
    whole = estimate_tokens(text)
    first, last = parts_of(text, whole - 10)
    assert 0.4 < len(first) / len(text) < 0.65
    assert first + last == text


@pytest.mark.parametrize("sign", ["👩‍👩‍👧‍👦", "e\u0301\u0302\u0303", "🇵🇱", "👍🏽", "\r\n", "\ud83d\ude00", "각"])
def test_no_part_ends_within_a_sign(sign: str) -> None:
    for before in range(8):
        text = "x" * before + sign * 300
        parts = parts_of(text, 40)
        assert "".join(parts) == text
        assert not any(is_within_sign(text, end) for end in accumulate(map(len, parts)))


def test_a_sign_longer_than_a_part_is_cut_all_the_same() -> None:
    text = "a" + "\u0301" * 5000
    parts = parts_of(text, 100)
    assert "".join(parts) == text
    assert all(fits(part, 100) for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        "Wczoraj poszliśmy z dr. Nowakiem na spacer, np. do parku. Było miło! A jutro?\n" * 3850,
        "ż" * 300_000,
        "a" * 300_000,
        "." * 300_000,
        ". " * 150_000,
        "np. " * 75_000,
        " " * 300_000,
        "\n" * 300_000,
        "\r\n" * 150_000,
        ("\n" + " " * 99) * 3000,
        ".)" * 150_000,
        '."' + '"' * 300_000,
        "\u0301" * 300_000,
        "🇵🇱" * 150_000,
        "中文字" * 100_000,
        "a." * 150_000,
    ],
)
@pytest.mark.parametrize("tokens", [100, 3000])
def test_it_takes_linear_time(text: str, tokens: int) -> None:
    began = time.perf_counter()
    parts = parts_of(text, tokens)
    elapsed = time.perf_counter() - began
    assert "".join(parts) == text
    assert elapsed < 3, f"{elapsed:.2f} s"  # a few tenths, on a machine that is busy with other things
