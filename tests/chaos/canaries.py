"""Rows with personal data in them that exists nowhere else, and a wire-tap that hears all that a provider is sent."""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from stdnum import luhn
from stdnum.pl import nip, pesel, regon

from tests.integration.proxy import Proxy

_SYLLABLES = [first + second for first in "bcdfghjkłmnprsśtwzż" for second in "aeiouyó"]


class Tap(Proxy):
    """Passes bytes on, and keeps what clients send, connection by connection."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._heard: dict[int, list[bytes]] = defaultdict(list)
        super().__init__(target)

    def _rule_for(self, data: bytes) -> None:
        self._heard[threading.get_ident()].append(data)  # one thread for each connection

    @property
    def heard(self) -> list[bytes]:
        """What has been sent, by connection; threads' ids come again, which joins one connection to the end of another."""
        return [b"".join(pieces) for pieces in list(self._heard.values())]


@dataclass(frozen=True)
class Person:
    """Eight values of a person nobody knows; `names` are the forms of the name that the list has."""

    values: tuple[str, ...]
    names: tuple[str, str]
    number: int

    @property
    def text(self) -> str:
        """A row about the person, with all of it."""
        e_mail, phone, person, tax, office, account, card, name, inflected = self.values
        return (
            f"{name} prosi spowrotem o kontakt: {e_mail} lub {phone}. PESEL {person}, NIP {tax}, REGON {office}, konto {account},"
            f" karta {card}. Sprawa nr {self.number}, {inflected}, pisać na {e_mail}!"
        )


def people(rng: random.Random, count: int) -> list[Person]:
    """So many, no two with a value in common."""
    return [_person(rng, number) for number in range(count)]


def _person(rng: random.Random, number: int) -> Person:
    def digits(length: int) -> str:
        return "".join(rng.choices("0123456789", k=length))

    name = "".join(rng.choices(_SYLLABLES, k=5)).capitalize() + "ski"
    birth = f"{rng.randrange(100):02}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}{number % 10_000:04}"
    tax = next(each for each in iter(lambda: digits(10), None) if each[0] != "0" and nip.is_valid(each))
    office, card, account = digits(8), f"4{digits(14)}", digits(24)
    check = 98 - int(f"{account}252100") % 97
    values = (
        f"{name.casefold()}.{number}@poczta.example.pl",
        f"+48 6{number % 100:02} {digits(3)} {digits(3)}",
        birth + pesel.calc_check_digit(birth),
        tax if number % 2 else f"{tax[:3]}-{tax[3:6]}-{tax[6:8]}-{tax[8:]}",
        office + regon.calc_check_digit(office),
        f"PL{check:02}{account}",
        _in_fours(card + luhn.calc_check_digit(card)),
        name,
        f"{name}ego",
    )
    return Person(values, (name, f"{name}ego"), number)


def _in_fours(number: str) -> str:
    return " ".join(number[start : start + 4] for start in range(0, len(number), 4))


def found_in(haystacks: dict[str, bytes], persons: list[Person]) -> list[str]:
    """Where a value stands as it is, in JSON with escapes, or without its blanks: for people to read."""
    needles: dict[bytes, str] = {}
    for person in persons:
        for value in person.values:
            for form in (value, json.dumps(value)[1:-1], value.replace(" ", ""), value.replace("-", ""), value.casefold()):
                needles[form.encode()] = value
    found = []
    for place, hay in haystacks.items():
        found += [f"{place}: {value!r}" for needle, value in needles.items() if needle in hay]
    return found


def as_bytes(rows: list[dict[str, Any]]) -> bytes:
    """All columns of some rows, whatever they hold."""
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row.values())
