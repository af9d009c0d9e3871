"""Words, differences and sizes of texts: what the task types, the command line and the web pages all need.

Nothing here knows of tasks or models. `clean`, `estimate_tokens` and `count_words` stand on the path of every item and are linear
at C speed.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import repeat
from typing import NamedTuple

# Combining marks are no word characters to `re`, yet part of a word: decomposed Latin and Greek, Cyrillic, Hebrew, Arabic, the
# scripts of India, Thai and Lao.
_MARKS = "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece"
# Chinese and Japanese put no blanks between words: there, a character is the unit, or a whole sentence would be one change.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_LETTER = rf"[^\W{_IDEOGRAPHS}]"
_WORD = rf"[{_IDEOGRAPHS}]|{_LETTER}+(?:[{_MARKS}]+{_LETTER}*|['’-]{_LETTER}+)*"  # don't, biało-czerwony
_WORDS = re.compile(_WORD)
# The same for a text without any of those, in half the time.
_UNUSUAL = re.compile(f"[{_MARKS}{_IDEOGRAPHS}]")
_USUAL_WORDS = re.compile(r"\w++(?:['’-]\w++)*+")
_TOKEN = re.compile(
    rf"{_WORD}"
    r"|\s+"
    r"|[^\w\s](?:[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]|\u200d[^\w\s])*"  # an emoji with its modifiers is one sign
)
_SENTENCE_END = re.compile(r"(?<=[.!?]\s)|(?<=\n)")

# SequenceMatcher looks at every pair of equal tokens, and again in what remains. Up to here that takes some ten milliseconds;
# beyond, sentences are compared first.
_PAIRS_AT_MOST = 200_000
_CHARACTERS_AT_MOST = 500_000  # of both texts: merely taking longer ones apart into words would be felt

_RED, _GREEN, _RESET = "\x1b[31;9m", "\x1b[32m", "\x1b[0m"
# Control characters but tab and newline: a row's text must not steer the terminal it is shown on.
_CONTROL_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROL_PICTURES |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")


class Span(NamedTuple):
    """A stretch of two texts: the same in both, or `old` replaced by `new` (either may be empty)."""

    old: str
    new: str

    @property
    def changed(self) -> bool:
        return self.old != self.new


def clean(text: str) -> str:
    """The text as a utf8mb4 column and a JSON column can hold it: NUL removed, lone surrogates made U+FFFD."""
    if "\0" in text:
        text = text.replace("\0", "")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def estimate_tokens(text: str) -> int:
    """Roughly how many tokens a model counts for `text`; at least 1.

    English takes about four characters a token. Polish takes about three, as each letter with a diacritic breaks a common piece
    apart: one token more for each of them gives that. Other scripts are judged by their UTF-8 length: some two characters a
    token in Cyrillic or Greek, about one in Chinese or Japanese. Rather too high than too low: budgets are checked with it.
    """
    length = len(text)
    tokens = length / 4
    if not text.isascii():
        extra = len(text.encode("utf-8", "replace")) - length
        tokens += min(extra, max(0.3 * length, 0.27 * extra))
    return max(1, round(tokens))


def words(text: str) -> list[str]:
    """Words, runs of blanks and single signs, in order; joined again they are the text."""
    return _TOKEN.findall(text)


def is_word(token: str) -> bool:
    """Whether one of the tokens of `words` is a word, as opposed to a run of blanks or a sign."""
    return token[0].isalnum() or token[0] == "_"


def is_one_word(text: str) -> bool:
    """Whether `words` makes one word of the text."""
    return _WORDS.fullmatch(text) is not None


def count_words(text: str) -> int:
    """How many of the tokens of `words` are words."""
    return len((_WORDS if _UNUSUAL.search(text) else _USUAL_WORDS).findall(text))


def diff(original: str, corrected: str) -> list[Span]:
    """What `corrected` changes in `original`, word by word; the olds joined are `original`, the news `corrected`.

    Bounded in time: very long or very repetitive texts are compared sentence by sentence first, and what is still too much
    becomes one change. Neighbouring spans may both be unchanged.
    """
    if original == corrected:
        return [Span(original, corrected)] if original else []
    if len(original) + len(corrected) <= _CHARACTERS_AT_MOST:
        old, new = words(original), words(corrected)
        if _pairs(old, new) <= _PAIRS_AT_MOST:
            return list(_joined(_compare(old, new)))
    return list(_joined(_compare_long(_SENTENCE_END.split(original), _SENTENCE_END.split(corrected))))


def _compare_long(old: Sequence[str], new: Sequence[str]) -> Iterator[Span]:
    """Sentences first, then words within the sentences that differ, as far as the time allows."""
    left = _PAIRS_AT_MOST
    head, tail = _common_ends(old, new)
    yield from (Span(text, text) for text in old[:head])
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    blocks: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(middle_old), 0, len(middle_new))]
    if _pairs(middle_old, middle_new) <= left:
        blocks = SequenceMatcher(None, middle_old, middle_new, autojunk=False).get_opcodes()
    for _, i1, i2, j1, j2 in blocks:
        span = Span("".join(middle_old[i1:i2]), "".join(middle_new[j1:j2]))
        small = span.changed and len(span.old) + len(span.new) <= _CHARACTERS_AT_MOST
        finer = (words(span.old), words(span.new)) if small else ([], [])
        cost = _pairs(*finer)
        if small and cost <= left:
            left -= cost
            yield from _compare(*finer)
        else:
            yield span
    yield from (Span(text, text) for text in old[len(old) - tail :])


def _compare(old: Sequence[str], new: Sequence[str]) -> Iterator[Span]:
    """Matches the words alone: two texts are not alike for both having blanks. The blanks follow their words."""
    head, tail = _common_ends(old, new)
    yield Span("".join(old[:head]), "".join(new[:head]))
    old_words, old_blanks = apart(old[head : len(old) - tail])
    new_words, new_blanks = apart(new[head : len(new) - tail])
    yield Span(old_blanks[0], new_blanks[0])
    for operation, i1, i2, j1, j2 in SequenceMatcher(None, old_words, new_words, autojunk=False).get_opcodes():
        if operation == "equal" or i2 - i1 == j2 - j1:  # as many words for as many words: each for its own
            for i, j in zip(range(i1, i2), range(j1, j2), strict=True):
                yield Span(old_words[i], new_words[j])
                yield Span(old_blanks[i + 1], new_blanks[j + 1])
        else:
            yield Span(_together(old_words, old_blanks, i1, i2), _together(new_words, new_blanks, j1, j2))
    yield Span("".join(old[len(old) - tail :]), "".join(new[len(new) - tail :]))


def apart(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words and signs among the tokens of `words`, and the blanks around them: one before the first and one after each."""
    only_words: list[str] = []
    blanks = [""]
    for token in tokens:
        if token.isspace():
            blanks[-1] = token
        else:
            only_words.append(token)
            blanks.append("")
    return only_words, blanks


def _together(only_words: Sequence[str], blanks: Sequence[str], start: int, end: int) -> str:
    return "".join(f"{only_words[i]}{blanks[i + 1]}" for i in range(start, end))


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Neighbours of a kind made one, empty spans left out, and the blanks that both sides of a change end in taken out of it."""
    old: list[str] = []  # of the spans put by: either all the same in both texts, or a change
    new: list[str] = []
    same = True
    for span in spans:
        if span.changed is same and (span.old or span.new):
            yield from _settled("".join(old), "".join(new))
            old, new, same = [], [], not span.changed
        old.append(span.old)
        new.append(span.new)
    yield from _settled("".join(old), "".join(new))


def _settled(old: str, new: str) -> Iterator[Span]:
    blank = old[len(old.rstrip()) :]
    if old != new and blank and new.endswith(blank):
        yield Span(old[: -len(blank)], new[: -len(blank)])
        yield Span(blank, blank)
    elif old or new:
        yield Span(old, new)


def _common_ends(a: Sequence[str], b: Sequence[str]) -> tuple[int, int]:
    """How many elements are the same at the start, and how many of the others at the end."""
    shorter = min(len(a), len(b))
    head = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    tail = next((i for i in range(shorter - head) if a[-1 - i] != b[-1 - i]), shorter - head)
    return head, tail


def _pairs(old: Sequence[str], new: Sequence[str]) -> int:
    """How many pairs of equal tokens there are: the work that the matcher would have."""
    counts = Counter(new)
    return sum(count * counts[token] for token, count in Counter(old).items() if not token.isspace())


def change_summary(original: str, corrected: str, limit: int = 500) -> str:
    """The changes in one line of at most about `limit` characters: `2 changes: "teh" → "the"; removed ","`."""
    return summary_of(diff(original, corrected), limit)


def summary_of(spans: Iterable[Span], limit: int = 500) -> str:
    """The same for a caller who has the differences already."""
    changes = [span for span in spans if span.changed]
    if not changes:
        return "No changes"
    summary = f"{len(changes)} change{'s' if len(changes) > 1 else ''}: "
    for number, (old, new) in enumerate(changes):
        if not new:
            part = f"removed {_quoted(old)}"
        elif not old:
            part = f"added {_quoted(new)}"
        else:
            part = f"{_quoted(old)} → {_quoted(new)}"
        if number and len(summary) + len(part) > limit:
            return f"{summary}and {len(changes) - number} more"
        summary += f"{part}; "
    return summary[:-2]


def _quoted(text: str, limit: int = 60) -> str:
    text = text.replace("\r\n", "⏎").replace("\n", "⏎")
    return f'"{text}"' if len(text) <= limit else f'"{text[: limit - 1]}…"'


def html_diff(spans: Iterable[Span], titles: Iterable[str] | None = None) -> tuple[str, str]:
    """Both texts as HTML, escaped: what went away in <del> in the first, what came in <ins> in the second.

    `spans` are those of `diff`; of the `titles`, one for each, a changed span's says in the marks what the change is.
    """
    old: list[str] = []
    new: list[str] = []
    for span, title in zip(spans, titles or repeat(""), strict=False):
        before, after = html.escape(span.old), html.escape(span.new)
        if span.changed:
            told = f' title="{html.escape(title)}"' if title else ""
            before, after = before and f"<del{told}>{before}</del>", after and f"<ins{told}>{after}</ins>"
        old.append(before)
        new.append(after)
    return "".join(old), "".join(new)


def harmless(text: str) -> str:
    """The text with its control characters, but tab and newline, shown as pictures (␛): it cannot steer a terminal."""
    return text.translate(_CONTROL_PICTURES)


def terminal_diff(original: str, corrected: str, color: bool) -> str:
    """One text with the changes in it: red and struck out / green, or `[-old-]{+new+}` as git's word diff has it.

    Control characters of the texts are shown as pictures (␛), never sent to the terminal.
    """
    out = ""
    for span in diff(original, corrected):
        old, new = harmless(span.old), harmless(span.new)
        if not span.changed:
            out += new
        elif color:
            out += (old and f"{_RED}{old}{_RESET}") + (new and f"{_GREEN}{new}{_RESET}")
        else:
            out += (old and f"[-{old}-]") + (new and f"{{+{new}+}}")
    return out
