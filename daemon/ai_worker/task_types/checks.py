"""Checks of a model's answer against the text it was made from.

Each is a function of the original, the answer and parameters of its own; it returns nothing, or raises `CheckFailed` with the
reason in words. Which ones run for a task type stands in its prompt file. A failed check costs another paid attempt, so each
one lets pass what may be right: it looks for damage, not for style.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

from ai_worker.task_types.language import language_name, possible_languages
from ai_worker.text import estimate_tokens

MARKER: Final = re.compile(r"<<<[0-9a-f]{16}>>>")
"""The line that stands before and after a row's text in the prompt."""


class CheckFailed(Exception):
    """The answer failed a check; the message says why, `check` which one, where the raiser knows it."""

    def __init__(self, reason: str, check: str = "") -> None:
        super().__init__(reason)
        self.check = check


class Refused(CheckFailed):
    """The answer is the model's refusal, in place of a result."""


def not_empty(_original: str, answer: str) -> None:
    """There is something in the answer besides blanks."""
    if not answer.strip():
        raise CheckFailed("the answer is empty")


def no_marker(original: str, answer: str) -> None:
    """The lines that delimit the row's text in the prompt are not in the answer."""
    for found in MARKER.findall(answer):
        if found not in original:
            raise CheckFailed(f"the prompt's marker {found} is in the answer")


# How a model's refusal begins. The object belongs to each form: "Sorry, I can't answer the phone" is a sentence like any other.
_HELP = r"(?:assist|help)\b(?: you)?(?: with| in)? (?:this|that|your|the|correct|translat)"
_WORK = (
    r"(?:fulfil|comply|process|proofread|correct|translate|summari[sz]e|analy[sz]e|categori[sz]e|classify|provide|continue|engage|"
    r"generate|create|complete|discuss)\w*\b[^.\n]{0,60}?\b(?:request|text|content|translation|correction|conversation|instruction)"
)
_CANNOT = r"(?:i|we)(?: can't| cannot| can not| won't| must decline to|(?: am|'m| are|'re)? (?:unable|not able) to)"
_POMOC = (
    r"(?:pomóc|(?:spełnić|wykonać|zrealizować|przetworzyć|poprawić|przetłumaczyć|kontynuować)\b[^.\n]{0,40}?"
    r"\b(?:prośb|poleceni|tekst|treści|tego|rozmow))"
)
_REFUSAL = re.compile(
    "|".join(
        rf"\W{{0,3}}{form}"
        for form in (
            r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b",
            r"jako (?:ai|model językowy|sztuczna inteligencja|asystent ai)\b",
            r"als (?:ki|künstliche intelligenz|sprachmodell)\b",
            rf"(?:[^.\n]{{0,30}}\b(?:sorry|afraid|unfortunately|apologi[sz]e|regret)\b[^.\n]{{0,30}}?)?"
            rf"\b{_CANNOT} (?:{_HELP}|{_WORK})",
            rf"(?:[^.\n]{{0,20}}\b(?:przykro mi|przepraszam|niestety)\b[^.\n]{{0,20}}?)?"
            rf"\bnie (?:mogę|możemy|jestem w stanie)\b[^.\n]{{0,30}}?\b{_POMOC}",
        )
    )
)
# A text that itself speaks of what cannot be done, or of language models, may rightly become one that looks like a refusal.
_REGRET = re.compile(
    r"\b(?:can't|cant\b|cannot|can not|won't|unable|sorry|afraid|language model|ai\b|nie mog|nie możemy|nie jestem w stanie|"
    r"przykro|przeprasz|niestety|model językow|sztuczn\w+ inteligen|leider|kann\b|können|désol|peux|pouvons|siento|puedo|podemos|"
    r"posso|possiamo|dispiace|desculp|nemoh|nemů|nemôž|omlouv|líto|kan\b|kunnen|helaas|nu pot|ne mog|nem tud|"
    r"не мог|не мож|извин|вибач|жаль)|できません|申し訳|无法|不能|抱歉|無法|수 없"
)


def not_refusal(original: str, answer: str) -> None:
    """The answer is not "I'm sorry, but I can't help with that", unless the original says something of the kind."""
    if not _REFUSAL.match(_opening(answer)) or _REGRET.search(_opening(original)):
        return
    if not _shares_words(answer, original):  # "I cnat help you with taht" corrected has the original's words
        raise Refused(f"the model refused: {_quoted(answer)}")


def _opening(text: str) -> str:
    return text[:400].casefold().replace("’", "'")


def _shares_words(answer: str, original: str) -> bool:
    """At least half of the words that the answer begins with are the original's."""
    said, asked = set(re.findall(r"\w+", _opening(answer))), set(re.findall(r"\w+", _opening(original)))
    return 2 * len(said & asked) >= len(said) > 0


_PLACEHOLDER_SIGN = re.compile(r"[{%$_\[]")  # each of the forms below has one of them
_PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,80}\}\}"  # {{ user.name }}
    r"|\$\{\w[\w.]*\}"  # ${name}
    r"|(?<![A-Za-z])\{\w[\w.\[\]]*(?:![rsa])?(?::[^{}\s]*)?\}"  # {0}, {name}, {price:.2f}; not \emph{word}
    r"|(?<![\w%])%(?:\d+\$)?[-+#0]*\d*(?:\.\d+)?(?:ll|[hlL])?[sdfxX@](?!\w)"  # %s, %1$d; not 50%, nor %i: Polish "and"
    r"|%\(\w+\)[-+#0]*\d*(?:\.\d+)?[sdifuxXeEgGcr]"  # %(name)s
    r"|(?<![\w$])\$[A-Za-z_]\w+"  # $NAME
    r"|(?<!\S):[a-z]\w*_\w+"  # :user_name; a bare :word may be a colon in the wrong place
    r"|\[[A-Z]+(?:_[A-Z]+)*_\d+\]"  # [PERSON_1]
    r"|(?<!\w)__[A-Z0-9_]+__(?!\w)"
)


def placeholders(original: str, answer: str) -> None:
    """Every placeholder of a template is still there: {name}, {{ name }}, %s, %(count)d, $NAME, :user_name, [PERSON_1]."""
    if not _PLACEHOLDER_SIGN.search(original):
        return
    kept = _placeholders(answer)
    lost = [found for found in _placeholders(original) if found not in kept]
    if lost:
        raise CheckFailed(f"missing placeholder: {_listed(lost)}")


def _placeholders(text: str) -> dict[str, None]:
    return dict.fromkeys("".join(found.split()) for found in _PLACEHOLDER.findall(text))


# Hosts in lower case only: in "see example.com.Then" the next sentence is no part of the host.
_URL = re.compile(
    r"(?:https?://|ftp://|(?<![\w.])www\.)([a-z0-9-]+(?:\.[a-z0-9-]+)*(?::\d+)?)"
    r"((?:[/?#][^\s<>\"'“”„«»`|\\,;()\[\]{}*]*)?)",
    re.ASCII,
)
_EMAIL = re.compile(r"(?<![\w.+-])([\w.+-]{0,63}\w)@([\w-]+(?:\.[a-z0-9-]{2,})+)", re.ASCII)


def urls(original: str, answer: str) -> None:
    """Every web and e-mail address of the original is in the answer, character by character; blanks do not count."""
    if _has_address(original):
        squeezed = _squeezed(answer)
        for address in _addresses(original):
            if address.casefold() not in squeezed:
                raise CheckFailed(f"the address {_quoted(address)} is missing or changed")


def no_new_urls(original: str, answer: str) -> None:
    """No web or e-mail address has come in that the original does not have."""
    if _has_address(answer):
        squeezed = _squeezed(original)
        for match in _URL.finditer(answer):
            if match[1].removeprefix("www.") not in squeezed:
                raise CheckFailed(f"the address {_quoted(match[0])} is not in the original")
        for match in _EMAIL.finditer(answer):
            if not all(part.casefold() in squeezed for part in match.groups()):  # so "jan (at) firma.pl" may be put right
                raise CheckFailed(f"the address {_quoted(match[0])} is not in the original")


def _has_address(text: str) -> bool:
    return "@" in text or "://" in text or "www." in text


def _addresses(text: str) -> Iterable[str]:
    for match in _URL.finditer(text):
        yield match[0].rstrip(".:!?/'-_&#")
    for match in _EMAIL.finditer(text):
        yield match[0]


def _squeezed(text: str) -> str:
    return "".join(text.split()).casefold()


_NUMBER = re.compile(r"\d{1,3}(?:[.,'’ \u00a0\u2009\u202f]\d{3}){1,6}(?!\d)|\d+")
_ORDINAL = re.compile(r"(?:st|nd|rd|th|'?s|’s|e|er|º|ª)\b")


def numbers(original: str, answer: str) -> None:
    """No number was changed, however it is written: 1,000.5 or 1 000,5. One written out in words, or in Roman, may go or come.

    For texts that stay in their language: a number gone while another one has come is a change, and so is any of three or more
    digits gone or come.
    """
    if _digits(original) == _digits(answer):
        return
    before, after = Counter(_numbers(original)), Counter(_numbers(answer))
    lost, come = before - after, after - before
    gone = [number for number in lost if len(number) >= 3 and number not in after]
    new = [number for number in come if len(number) >= 3 and number not in before]
    if gone or new or (lost and come):
        raise CheckFailed(f"numbers changed: {_listed(lost) or 'none'} became {_listed(come) or 'none'}")


def numbers_translated(original: str, answer: str) -> None:
    """Every number of three or more significant digits is still there, whatever separators it has.

    For translations: small numbers turn into words, 5 pm into 17:00, the 19th century into XIX wiek, the 1990s into lata 90.
    """
    found = {
        number.rstrip("0")
        for match in _NUMBER.finditer(original)
        if not _ORDINAL.match(original, match.end())
        for number in _numbers(match[0])
    }
    digits = _digits(answer)
    gone = [number for number in found if len(number) >= 3 and number not in digits]
    if gone:
        raise CheckFailed(f"numbers are missing: {', '.join(sorted(gone))}")


def _digits(text: str) -> str:
    digits = "".join(re.findall(r"\d", text))
    return digits if digits.isascii() else "".join(str(int(digit)) for digit in digits)


def _numbers(text: str) -> Iterable[str]:
    for found in _NUMBER.findall(text):
        yield _digits(found).lstrip("0") or "0"


_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)(?:\s[^<>]*=[^<>]*|\s*/?)>")  # in "a <b and c> d" there is none
_FENCE = re.compile(r"^[ \t]{0,3}(?:```|~~~)", re.MULTILINE)


def markup(original: str, answer: str) -> None:
    """The tags and code fences of the original are all there, and no tags were added but the ends of ones left open."""
    if "<" in original:
        before, after = Counter(_TAG.findall(original)), Counter(_TAG.findall(answer))
        opened = Counter({tag: count for tag, count in after.items() if not tag[0]})
        if before - after or opened - before:
            tags = [f"<{slash}{name}>" for slash, name in [*(before - after), *(opened - before)]]
            raise CheckFailed(f"markup changed: {_listed(tags)}")
    fences = len(_FENCE.findall(original))
    if fences and fences != len(_FENCE.findall(answer)):
        raise CheckFailed("a code fence was lost or added")


def length_ratio(original: str, answer: str, minimum: float = 0.0, maximum: float = 0.0, slack: int = 40) -> None:
    """The answer is between `minimum` and `maximum` times as long as the original (0: no bound), give or take `slack` characters.

    Lengths are counted in tokens as the model sees them, so that Chinese and English can be compared.
    """
    before, after, allowed = estimate_tokens(original), estimate_tokens(answer), slack / 4
    if after < minimum * before - allowed:
        raise CheckFailed(f"the answer is too short: {len(answer)} characters for {len(original)}")
    if maximum and after > maximum * before + allowed:
        raise CheckFailed(f"the answer is too long: {len(answer)} characters for {len(original)}")


def language(original: str, answer: str, expected: str | None = None) -> None:
    """The answer is in the language `expected` (an ISO 639 code), or in the original's when None; only where both can be told."""
    if expected is None and _shares_words(answer, original):
        return
    actual = possible_languages(answer)
    if actual is None:
        return
    wanted = frozenset([expected]) if expected else possible_languages(original)
    if wanted and not wanted & actual:
        names = " or ".join(sorted(language_name(code) for code in wanted))
        raise CheckFailed(f"the answer is in {' or '.join(sorted(map(language_name, actual)))}, not in {names}")


def word_limit(_original: str, answer: str, maximum: int = 0) -> None:
    """The answer has at most `maximum` words, give or take a half and ten: models count badly."""
    count = len(answer.split())
    if maximum and count > 1.5 * maximum + 10:
        raise CheckFailed(f"the answer has {count} words; {maximum} were allowed")


# Advice on somebody's money, in English and Polish; not a report of what others advise, nor a denial.
_NOT = r"(?<!not )(?<!never )(?<!n't )(?<!nie )"
_ADVICE = re.compile(
    "|".join(
        (
            rf"\b(?:we|i) (?:strongly |would |highly )?{_NOT}(?:recommend|advise|suggest)\b[^.\n]{{0,40}}"
            r"\b(?:buy|sell|hold|invest|purchas|divest|avoid)",
            r"\b(?:you|investors|one) (?:should|must|ought to) (?:\w+ )?(?:buy|sell|hold|invest|purchase|divest)\b",
            r"\b(?:recommendation|verdict|rating|rekomendacja|werdykt|ocena):\W*(?:strong )?"
            r"(?:buy|sell|hold|kup|sprzedaj|trzymaj)\w*",
            rf"{_NOT}\b(?:rekomendujemy|rekomenduję|zalecamy|zalecam|polecamy|polecam|radzimy|radzę|doradzamy|doradzam)\b"
            r"[^.\n]{0,40}\b(?:kup|sprzeda|zainwest|inwest|nabyci|zakup|trzyma)",
            rf"{_NOT}\b(?:warto|należy|powinieneś|powinnaś|powinni państwo|powinien pan|powinna pani)\s+(?:\w+\s+)?"
            r"(?:kupić|sprzedać|zainwestować|nabyć)\b",
            rf"{_NOT}(?<!no )(?<!without )(?<!bez )\b(?:guaranteed (?:returns?|profits?|gains?)|gwarantowan\w+ zysk\w*)",
        )
    )
)


def no_advice(_original: str, answer: str) -> None:
    """Nobody is told to buy, to sell or to hold, and no gain is promised."""
    if found := _ADVICE.search(answer.casefold().replace("’", "'").replace("*", "")):
        raise CheckFailed(f"this is advice: {_quoted(found[0])}")


Check = Callable[..., None]

CHECKS: Final[dict[str, Check]] = {
    check.__name__: check
    for check in (
        not_empty, no_marker, not_refusal, placeholders, urls, no_new_urls, numbers, numbers_translated, markup, length_ratio,
        language, word_limit, no_advice,
    )
}  # fmt: skip
"""All checks by the name that a prompt file calls them by."""


def _listed(values: Iterable[Any], limit: int = 5) -> str:
    listed = [str(value) for value in values]
    return ", ".join(_clipped(value) for value in listed[:limit]) + (", …" if len(listed) > limit else "")


def _quoted(text: str) -> str:
    return f'"{_clipped(text.strip())}"'


def _clipped(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
