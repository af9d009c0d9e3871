"""Checks of answers: what they must catch, and, as a false alarm throws away a paid answer, what they must let pass."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.task_types.checks import CHECKS, CheckFailed, Refused
from ai_worker.task_types.language import language_code, language_name, language_tag, possible_languages
from ai_worker.task_types.prompt_file import PromptFile

MARKER = "<<<0123456789abcdef>>>"

FRAGMENTS = [
    "Ala ma kota", " ", "\n", "\r\n", "1 234,50 zł", "2024-05-01", "{name}", "{{ user }}", "%s", "%(n)d", "100%", "$HOME", "http://a.pl/x?y=1",
    "jan@firma.pl", "<b>", "</b>", "<br/>", "```", "żółw", "I'm sorry, I can't help you.", "Jako model językowy", MARKER,
    "٣٤٥",
    "これは日本語です", "Это русский текст", "x" * 50, "www.onet.pl,tam", "[PERSON_1]", ":user_name", "\x00",
]  # fmt: skip


def fails(name: str, original: str, answer: str, **parameters: object) -> bool:
    try:
        CHECKS[name](original, answer, **parameters)
    except CheckFailed:
        return True
    return False


@given(st.one_of(st.text(min_size=1), st.lists(st.sampled_from(FRAGMENTS), min_size=1).map("".join)).filter(str.strip))
def test_an_unchanged_text_passes_every_check_of_a_correction(text: str) -> None:
    for check in PromptFile.load("correction").last.checks.values():
        check(text, text)


CORRECTIONS = [  # as a good model corrects them; none of these may be thrown away
    ("I recieve 3 apples", "I receive 3 apples."),
    ("kupilem 2 jablka za 10,50zl", "Kupiłem 2 jabłka za 10,50 zł."),
    ("w 21 wieku wszystko mozliwe", "W XXI wieku wszystko możliwe."),
    ("o godz 7:5 byl juz w domu", "O godz. 7:05 był już w domu."),
    ("lata 90-te byly fajne", "Lata 90. były fajne."),
    ("Kosztuje 1000 zl", "Kosztuje 1 000 zł."),
    ("I have 1,000 reasons and 5 childs", "I have 1000 reasons and five children."),
    ("termin 1.05.2020r", "Termin: 01.05.2020 r."),
    ("patrz http://example.com.Tam jest wszystko", "Patrz http://example.com. Tam jest wszystko."),
    ("patrz www.onet.pl,tam jest wszystko", "Patrz www.onet.pl, tam jest wszystko."),
    ("pisz na jan@firma.pl.Prosze", "Pisz na jan@firma.pl. Proszę."),
    ("jan (at) firma.pl", "jan@firma.pl"),
    ("wejdz na htp://strona.pl", "Wejdź na http://strona.pl"),
    ("Witam :mam pytanie", "Witam: mam pytanie"),
    ("rabat 50% dla kazdego", "Rabat 50% dla każdego"),
    ("wzrost o 5 %i wiecej", "Wzrost o 5% i więcej"),
    (r"to jest \emph{wazne} slowo", r"To jest \emph{ważne} słowo"),
    ("<p>jest <b>zle", "<p>Jest <b>źle</b></p>"),
    ("a<b i c>d", "a < b i c > d"),
    ("Im sory, but I cnat help you with taht", "I'm sorry, but I can't help you with that."),
    ("Niestety nie moge ci w tym pomuc", "Niestety, nie mogę ci w tym pomóc."),
    ("przepraszam ze tak puzno ale nie moge dzis przyjsc", "Przepraszam, że tak późno, ale nie mogę dziś przyjść."),
    ("as an ai researcher i likes it", "As an AI researcher, I like it."),
    ("ok", "OK"),
    ("nie wiem nie wiem nie wiem", "Nie wiem."),
    ("Kupilem iPhone 15 Pro Max Blue Titanium 256GB", "Kupiłem iPhone'a 15 Pro Max Blue Titanium 256 GB."),
    ("The Łódź Kaliska station are near Włókniarzy street", "The Łódź Kaliska station is near Włókniarzy Street."),
    ("m2 kosztuje 5 zl", "m² kosztuje 5 zł"),
    ("Hello {name} , you has %d messages", "Hello {name}, you have %d messages"),
    ("Hello {{name}}", "Hello, {{ name }}"),
]


@pytest.mark.parametrize(("original", "answer"), CORRECTIONS)
def test_good_corrections_pass(original: str, answer: str) -> None:
    for check in PromptFile.load("correction").last.checks.values():
        check(original, answer)


TRANSLATIONS = [  # with the language of the answer
    ("The meeting is at 5:30 pm on 3 May 2024", "Spotkanie jest o 17:30 w dniu 3 maja 2024 roku", "pl"),
    ("The 1990s and the 19th century were good", "Lata 90. i XIX wiek były dobre", "pl"),
    ("Zapłacił 1 500 000,50 zł", "He paid PLN 1,500,000.50", "en"),
    ("1.5 million people, 12,000 cars", "1,5 mln ludzi, 12 tys. samochodów", "pl"),
    ("It costs 1,250 dollars", "价格是1250美元,请您付款吧谢谢", "zh"),
    ("Call +48 600 700 800", "Zadzwoń: +48 600-700-800", "pl"),
    ("Sorry, I can't answer the phone", "Przepraszam, nie mogę odebrać telefonu", "pl"),
    ("Přijdu zítra, teď to nejde", "I can't come today, I'll come tomorrow", "en"),
    ("Je mi líto, ale s tím vám nemohu pomoci", "I'm sorry, but I can't help you with that", "en"),
    ("Samsung Galaxy S21 128GB Phantom Gray", "Samsung Galaxy S21 128GB Phantom Gray", "pl"),
    ("<p>Hello <b>world</b></p>", "<p>Witaj, <b>świecie</b></p>", "pl"),
    ("Hello {name}, see https://a.com/x?b=1.", "Cześć, {name}! Zobacz https://a.com/x?b=1", "pl"),
    ("OK", "Dobrze", "pl"),
    ("The hotel was fine but a bit far away from the beach", "酒店很好,但离海滩有点远,下次还会再来的", "zh"),
    ("Ich habe das nicht gewusst und er auch nicht", "Toho jsem si nebyl vědom a on také ne", "cs"),
]


@pytest.mark.parametrize(("original", "answer", "target"), TRANSLATIONS)
def test_good_translations_pass(original: str, answer: str, target: str) -> None:
    for name, check in PromptFile.load("translation").last.checks.items():
        check(original, answer, **({"expected": target} if name == "language" else {}))


@pytest.mark.parametrize(
    ("name", "original", "answer"),
    [
        ("not_empty", "tekst", " \n"),
        ("no_marker", "tekst", f"{MARKER}\ntekst"),
        ("not_refusal", "how to pick a lock", "I'm sorry, but I can't assist with that request."),
        ("not_refusal", "how to pick a lock", "I’m sorry, but I can’t help with that."),
        ("not_refusal", "how to pick a lock", "I cannot process this content."),
        ("not_refusal", "how to pick a lock", "Unfortunately, I'm unable to translate this text."),
        ("not_refusal", "how to pick a lock", "As an AI language model, I do not have opinions."),
        ("not_refusal", "jak otworzyc zamek", "Przykro mi, ale nie mogę w tym pomóc."),
        ("not_refusal", "jak otworzyc zamek", "Niestety nie mogę poprawić tego tekstu."),
        ("not_refusal", "jak otworzyc zamek", "Jako model językowy nie mam zdania."),
        ("placeholders", "Hello {name}", "Hello {imię}"),
        ("placeholders", "Hello {{ user.name }}", "Hello"),
        ("placeholders", "You have %(count)d files", "Masz %(liczba)d plików"),
        ("placeholders", "Saved to %s.", "Zapisano."),
        ("placeholders", "Set $HOME now", "Set $DOM now"),
        ("placeholders", "Set ${path}", "Set path"),
        ("placeholders", "Dear [PERSON_1]", "Dear Jan"),
        ("placeholders", "witaj :user_name", "witaj użytkowniku"),
        ("urls", "see https://a.com/Path?x=1", "see https://a.com/path2?x=1"),
        ("urls", "write to jan@firma.pl", "write to jan@firma.com"),
        ("no_new_urls", "see the page", "see https://evil.example/?q=1"),
        ("no_new_urls", "see the page", "write to me@evil.example"),
        ("numbers", "I have 3 apples", "I have 4 apples"),
        ("numbers", "in 1592 he sailed", "in 1492 he sailed"),
        ("numbers", "3 and 3", "3 and 4"),
        ("numbers", "it costs 1,500", "it costs 1,600"),
        ("numbers", "born in 1970", "born then"),
        ("numbers", "rok ٣٤٥", "rok 346"),
        ("numbers_translated", "in 1592 he sailed", "w 1492 roku popłynął"),
        ("numbers_translated", "it costs 1,234.50", "kosztuje 1 324,50"),
        ("markup", "<p>a <b>b</b></p>", "<p>a b</p>"),
        ("markup", "<p>a</p>", "<p>a</p><script>x</script>"),
        ("markup", "x\n```py\na=1\n```\n", "x\na=1\n"),
        (
            "language",
            "To jest bardzo dobry pomysł, nie wiem co o tym myśleć",
            "This is a very good idea and I do not know what it is",
        ),
        ("language", "Это обычный русский текст", "To jest zwykły tekst po rosyjsku, ale nie do końca"),
    ],
)
def test_damage_is_caught(name: str, original: str, answer: str) -> None:
    assert fails(name, original, answer)


def test_a_refusal_is_told_from_other_failures() -> None:
    with pytest.raises(Refused, match="can't assist"):
        CHECKS["not_refusal"]("tekst", "I'm sorry, but I can't assist with that.")


def test_the_length_is_bounded_on_both_sides_with_slack_for_short_texts() -> None:
    bounds = {"minimum": 0.6, "maximum": 1.6, "slack": 40}
    assert fails("length_ratio", "słowo " * 100, "słowo " * 30, **bounds)
    assert fails("length_ratio", "słowo " * 100, "słowo " * 200, **bounds)
    assert not fails("length_ratio", "OK", "W porządku, dziękuję", **bounds)
    assert not fails("length_ratio", "słowo " * 100, "słowo " * 80, **bounds)
    assert not fails("length_ratio", "word " * 100, "", slack=0)


def test_the_word_limit_is_generous() -> None:
    assert not fails("word_limit", "x", "słowo " * 85, maximum=50)
    assert fails("word_limit", "x", "słowo " * 86, maximum=50)
    assert not fails("word_limit", "x", "słowo " * 1000)


def test_an_untranslated_text_is_caught() -> None:
    text = "The dog is in the house and it will not go out"
    assert fails("language", text, text, expected="pl")
    assert not fails("language", text, text, expected="en")
    assert not fails("language", text, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("To jest bardzo dobry pomysl i nie wiem co z tym", {"pl"}),
        ("The dog is in the house and it will not go out", {"en"}),
        ("Der Hund ist nicht in dem Haus und er will essen", {"de"}),
        ("Это обычный русский текст о погоде", {"ru"}),
        ("Це звичайний український текст і більше нічого", {"uk"}),
        ("こんにちは、私は学生です。", {"ja"}),
        ("안녕하세요 저는 학생입니다", {"ko"}),
    ],
)
def test_languages_are_told(text: str, expected: set[str]) -> None:
    assert possible_languages(text) == expected


@pytest.mark.parametrize(
    "text", ["", "ok", "Hello", "thx", "SKU-4432 Samsung Galaxy S21 128GB Black", "Lorem ipsum dolor sit amet elit", "12345"]
)
def test_what_cannot_be_told_is_not_guessed(text: str) -> None:
    assert possible_languages(text) is None


def test_languages_have_codes_tags_and_names() -> None:
    assert [language_code(given) for given in ("pl", "pl-PL", "pt_BR", "Polish", "polski", "cmn", "xx", "Klingon")] == [
        "pl", "pl", "pt", "pl", "pl", "cmn", None, None,
    ]  # fmt: skip
    assert [language_tag(given) for given in ("Polish", "pt_BR", " EN ", "Klingon")] == ["pl", "pt-BR", "en", "Klingon"]
    assert [language_name(given) for given in ("pl", "pt_BR", "polski", "Klingon")] == [
        "Polish", "Portuguese (pt-BR)", "Polish", "Klingon",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "piece", ["a@", "1.123", "{a", "%", "__", "<a ", "www.", "https://a.", "$a", "[A_", "x", "I'm sorry ", "1 "]
)
def test_no_text_makes_a_check_slow(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.process_time()
    for check in CHECKS.values():
        try:
            check(text, f"{text}!")
        except CheckFailed:
            continue
    assert time.process_time() - started < 3  # linear: some tenths of a second
