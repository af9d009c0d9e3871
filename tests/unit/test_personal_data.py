"""What is found in texts, and that what is put in its place leads back to it."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stdnum import luhn
from stdnum.pl import nip, pesel, regon

from ai_worker.personal_data import Detector, Kind, moved_out
from ai_worker.placeholders import Placeholders

NAMES = ["Jan Kowalski", "Jana Kowalskiego", "Kowalski", "Józef", "O'Brien", "Żółć-Gęślicka"]
DETECTOR = Detector(NAMES)

FOUND = [
    (Kind.EMAIL, "jan.kowalski+sklep@poczta.example.com.pl"),
    (Kind.EMAIL, "józef@żółw.pl"),
    (Kind.EMAIL, "jan\u200b.k@\u00adpoczta.pl"),
    (Kind.PESEL, "44051401359"),
    (Kind.PESEL, "440514-01359"),
    (Kind.PESEL, "4405\u200b1401359"),
    (Kind.PESEL, "٤٤٠٥١٤٠١٣٥٩"),
    (Kind.NIP, "8567346215"),
    (Kind.NIP, "856-734-62-15"),
    (Kind.NIP, "856 73 46 215"),
    (Kind.REGON, "192598184"),
    (Kind.REGON, "192 598 184"),
    (Kind.REGON, "12345678512347"),
    (Kind.IBAN, "PL61109010140000071219812874"),
    (Kind.IBAN, "PL61 1090 1014 0000 0712 1981 2874"),
    (Kind.IBAN, "61 1090 1014 0000 0712 1981 2874"),
    (Kind.IBAN, "GB82 WEST 1234 5698 7654 32"),
    (Kind.IBAN, "de89\u00a03704\u00a00044\u00a00532\u00a00130\u00a000"),
    (Kind.CARD, "4111111111111111"),
    (Kind.CARD, "4111 1111 1111 1111"),
    (Kind.CARD, "5500-0000-0000-0004"),
    (Kind.CARD, "3782 822463 10005"),
    (Kind.PHONE, "+48 600 100 200"),
    (Kind.PHONE, "+48600100200"),
    (Kind.PHONE, "0048 600 100 200"),
    (Kind.PHONE, "600-100-200"),
    (Kind.PHONE, "600\u00a0100\u00a0200"),
    (Kind.PHONE, "22 123 45 67"),
    (Kind.PHONE, "+1 (212) 555-0100"),
    (Kind.PHONE, "+49 30 901820"),
    (Kind.NAME, "Jan Kowalski"),
    (Kind.NAME, "JANA   KOWALSKIEGO"),
    (Kind.NAME, "józef"),
    (Kind.NAME, "Jo\u0301zef"),
    (Kind.NAME, "Kowal\u00adski"),
    (Kind.NAME, "O’Brien"),
    (Kind.NAME, "Żółć – Gęślicka"),
]
AROUND = ["{}", "Oto {} i tyle.", "({})", "dane:{};", "»{}«", "a, {}, b", "{}\n{}", "<b>{}</b>", "\t{}!", '"{}"']


@pytest.mark.parametrize(("kind", "value"), FOUND)
@pytest.mark.parametrize("around", AROUND)
def test_what_has_a_form_of_its_own_or_a_place_in_the_list_is_found_whole(kind: Kind, value: str, around: str) -> None:
    text = around.replace("{}", value)
    found = DETECTOR.find(text)
    assert [(each.kind, text[each.start : each.end]) for each in found] == [(kind, value)] * around.count("{}")


@pytest.mark.parametrize(
    "text",
    [
        "44051401358 ma złą cyfrę kontrolną",
        "Spotkanie 2026-11-23 o 03:14:04, faktura 12/2026 na 1 234,50 zł",
        "wersja 3.11.2, port 127.0.0.1:3306, kod 00-950",
        "PL61 1090 1014 0000 0712 1981 2875",
        "ceny 10.00 25.00 13.00 44.00, razem 0.001 234 i 1.002 345 6",
        "4111 1111 1111 1112",
        "Janowski i Kowalskich, Janina",
        "jan@localhost",
        "id a1b2c3d4e5f6, 1234567",
        "[[FIGURE_1]] i [EMAIL_1]",
        "",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert DETECTOR.find(text) == []


def test_numbers_side_by_side_are_each_found() -> None:
    text = "600 100 200 44051401359 8567346215, 4111 1111 1111 1111 12/27"
    masked = Placeholders(DETECTOR).masked(text)
    assert masked == "[[PHONE_1]] [[PESEL_1]] [[NIP_1]], [[CARD_1]] 12/27"


@pytest.mark.parametrize("text", ["1. 0048 600 100 200", "nr 2 0048600100200", "3 (0044 20 7946 0958)"])
def test_a_country_code_after_another_number_begins_one(text: str) -> None:
    (found,) = DETECTOR.find(text)
    assert found.kind is Kind.PHONE
    assert text[found.start : found.end] == text[text.index("00") :].rstrip(")")


def test_no_piece_is_left_of_what_overlaps() -> None:
    text = "jan.kowalski.44051401359@poczta.pl"
    assert [(each.kind, text[each.start : each.end]) for each in DETECTOR.find(text)] == [(Kind.EMAIL, text)]


@given(st.integers(0, 2**64))
def test_any_valid_number_is_found(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 -- test data

    def digits(count: int) -> str:
        return "".join([rng.choice("0123456789") for _ in range(count)])

    birth = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{digits(4)}"
    tax, office = f"{rng.randrange(1, 10)}{digits(8)}", digits(8)
    card = f"4{digits(14)}"
    values = [birth + pesel.calc_check_digit(birth), office + regon.calc_check_digit(office), card + luhn.calc_check_digit(card)]
    values += [tax + check for check in "0123456789" if nip.is_valid(tax + check)]
    rng.shuffle(values)
    masked = Placeholders(DETECTOR).masked(" i ".join(values))
    assert not any(value in masked for value in values), masked


def test_equal_values_have_equal_numbers_and_others_the_next() -> None:
    placeholders = Placeholders(DETECTOR)
    assert placeholders.masked("a@x.pl, b@x.pl, a@x.pl") == "[[EMAIL_1]], [[EMAIL_2]], [[EMAIL_1]]"
    assert placeholders.masked("c@x.pl, b@x.pl") == "[[EMAIL_3]], [[EMAIL_2]]"


PIECES = st.lists(
    st.sampled_from([value for _, value in FOUND]) | st.sampled_from(["[[EMAIL_1]]", "[[ email\\_2 ]]", "[[", "]]"]) | st.text()
)


@given(PIECES, st.sampled_from([" ", "\n", ", ", ""]))
def test_whatever_is_masked_comes_back(pieces: list[str], between: str) -> None:
    text = between.join(pieces)
    placeholders = Placeholders(DETECTOR)
    masked = placeholders.masked(text)
    unknown: set[str] = set()
    assert placeholders.restored(masked, unknown) == text
    assert not unknown
    assert Placeholders(DETECTOR).masked(text) == masked


def test_values_stand_for_themselves_in_json_of_any_depth() -> None:
    context = {
        "kontakt": {"e-mail": "a@x.pl", "telefony": [600100200, "600 100 200"]},
        "a@x.pl": True,
        "cena": 12.5,
        "brak": None,
    }
    placeholders = Placeholders(DETECTOR)
    masked = placeholders.masked_all(context)
    assert masked == {
        "kontakt": {"e-mail": "[[EMAIL_1]]", "telefony": ["[[PHONE_1]]", "[[PHONE_2]]"]},
        "[[EMAIL_1]]": True,
        "cena": 12.5,
        "brak": None,
    }
    back = placeholders.restored(masked, set())
    assert back == {
        "kontakt": {"e-mail": "a@x.pl", "telefony": ["600100200", "600 100 200"]},
        "a@x.pl": True,
        "cena": 12.5,
        "brak": None,
    }


def test_a_placeholder_is_known_as_a_model_may_write_it_and_one_made_up_is_told() -> None:
    placeholders = Placeholders(DETECTOR)
    placeholders.masked("a@x.pl")
    unknown: set[str] = set()
    assert placeholders.restored("[[email_1]] [[ EMAIL_1 ]] [[EMAIL\\_1]] [[EMAIL_01]] [[NAME_1]]", unknown) == (
        "a@x.pl a@x.pl a@x.pl a@x.pl [[NAME_1]]"
    )
    assert unknown == {"[[NAME_1]]"}


def test_known_values_are_masked_wherever_they_stand_and_others_are_left() -> None:
    placeholders = Placeholders(DETECTOR)
    placeholders.masked("Kowalski, kowalski@x.pl")
    assert placeholders.known_masked({"a": ["Kowalskiemu", "kowalski@x.pl", "bank@y.pl"]}) == {
        "a": ["[[NAME_1]]emu", "[[EMAIL_1]]", "bank@y.pl"]
    }


def test_no_cut_is_left_within_what_was_found() -> None:
    text = "Do 600 100 200 albo do 600 200 300."
    found = DETECTOR.find(text)
    assert [text[:cut] for cut in moved_out([2, 5, 8, 30], found)] == ["Do", "Do 600 100 200", text[:-1]]


@pytest.mark.parametrize(
    "piece", ["1", "1 ", "22 ", "a.", "a@", "b.", "[[", "PL11 ", "1\u200b", "+1", "(1)", "Jan ", "Jan Kowalski", "\u200b", "- "]
)
def test_no_text_takes_more_than_its_length_deserves(piece: str) -> None:
    """Twice as long a text may take about twice as long: a search that goes back over what it has read would take four times."""

    def seconds(length: int) -> float:
        text = "a@" + piece * (length // len(piece))
        began = time.process_time()
        DETECTOR.find(text)
        return time.process_time() - began

    seconds(1_000)
    assert min(seconds(100_000) for _ in range(2)) < 20 * max(0.01, min(seconds(12_500) for _ in range(3)))
