"""One text: finds the words in it, tells its language, and corrects what is wrong, leaving every other byte as it is."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ai_worker.providers._spelling import POLISH_LETTERS, Speller, speller

LanguageChoice = Literal["auto", "en", "pl"]

# Never looked into. Every repetition that may fail to find its end is bounded, or runs to the end of the text instead: a hostile
# text costs linear time.
_PROTECTED = r"""
    ```.*?(?:```|\Z) | ~~~.*?(?:~~~|\Z) | `[^`\n]{1,500}`                       # code
  | <(?P<tag>code|pre|script|style|kbd|samp|var|svg|math)\b.*?(?:</(?P=tag)>|\Z)  # elements that hold code
  | <!--.*?(?:-->|\Z) | </?[A-Za-z!?][^<>]{0,2000}> | &\#?\w{1,32};             # markup
  | \{\{[^\n]{0,200}?\}\} | \[\[[^\n]{0,200}?\]\] | [$\#]?\{[^{}\n]{0,200}\}    # placeholders: {{x}} [[x]] {x} ${x} #{x}
  | %\([^()\n]{0,100}\)[a-z] | %[-+0\#]*\d*(?:\.\d+)?l*[sdifuxXeEgGc@](?!\w) | %\w+%   # %(x)s %s %05.2f %x%
  | \]\([^()\s]{1,2000}\)                                                       # the target of a Markdown link
  | [A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s<>"]+ | www\.[^\s<>"]+ | mailto:[^\s<>"]+  # addresses
  | (?<!\w)[@\#$:][^\W\d]\w*:? | (?<!\S)--?[a-z][\w-]* | \\[A-Za-z]+            # @name #tag $x :x --option \x
  | [\w.+~-]*\w@[\w.-]+                                                         # e-mail addresses
  | [\w.~-]*(?:[/\\][\w.~-]+)+ | \w+(?:\.\w+)+ | \w+=\S+                        # paths, file names, e.g., x=y
  | \w+:\w+ | \w+\([\w, ]{0,100}\) | [^\W\d_]{1,8}\.(?=[,;:)])                          # refs:heads, f(x), abbr.,
  | [^\W\d_]+(?:[\u00ad\u200b-\u200d\u2060]+[^\W\d_]+)+                         # words with invisible characters within
  | [^\W_'’-]*[\d_][\w'’-]*                                                     # whatever holds a digit or an underscore
"""
_LETTERS = r"(?:[^\W\d_][\u0300-\u036f]*)+"
_TOKEN = re.compile(rf"(?P<protected>{_PROTECTED})|(?P<word>{_LETTERS}(?:['’-]{_LETTERS})*)", re.VERBOSE | re.DOTALL)

_SENTENCE_END = re.compile(r"[.!?…:;\n•*]")
_ONE_SPACE = re.compile(r"[ \t]+|\u00a0")
_ELONGATED = re.compile(r"(\w)\1\1", re.IGNORECASE)
_LONGEST_PHRASE = 4
_SAMPLE = 300  # words that decide on the language


@dataclass(frozen=True, slots=True)
class _Token:
    """A word, or what stands between two words."""

    text: str
    is_word: bool = False
    starts_sentence: bool = False

    @property
    def plain(self) -> str:
        """In lower case, composed, with a straight apostrophe: as tables and dictionaries write it."""
        return unicodedata.normalize("NFC", self.text).replace("’", "'").lower()

    @property
    def is_lower(self) -> bool:
        return self.text == self.text.lower()

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper() and self.text[1:] == self.text[1:].lower()


def proofread(text: str, language: LanguageChoice = "auto") -> str:
    """`text` with its spelling corrected; the same text when its language is neither English nor Polish, or cannot be told."""
    tokens = _tokens(text)
    words = [token for token in tokens if token.is_word]
    chosen = _language(words) if language == "auto" else speller(language)
    if chosen is None:
        return text
    return _without_doubled_words(_Proofreader(chosen, words).corrected(tokens), chosen.never_twice)


def _tokens(text: str) -> list[_Token]:
    tokens = []
    end = 0
    starts_sentence = True
    for match in _TOKEN.finditer(text):
        between = text[end : match.start()]
        if between:
            tokens.append(_Token(between))
            starts_sentence = starts_sentence or _SENTENCE_END.search(between) is not None
        is_word = match["word"] is not None
        tokens.append(_Token(match[0], is_word, starts_sentence))
        starts_sentence = not is_word and "\n" in match[0]
        end = match.end()
    if text[end:]:
        tokens.append(_Token(text[end:]))
    return tokens


def _language(words: list[_Token]) -> Speller | None:
    """The language that the words speak for; None if neither does clearly."""
    plain = [word.plain for word in words if word.is_lower or word.starts_sentence][:_SAMPLE]
    if not plain:
        return None
    english = speller("en")
    english_known = [word in english.common or english.knows(word) or (word,) in english.mistakes for word in plain]
    english_common = sum(word in english.common for word in plain)
    marked = sum(not POLISH_LETTERS.isdisjoint(word) for word in plain)
    if len(plain) >= 4 and not marked and sum(english_known) > 0.7 * len(plain) and english_common > 0.4 * len(plain):
        return english  # without loading the Polish dictionary

    polish = speller("pl")
    meant = [
        word if known or polish.knows(word) else polish.with_diacritics(word) or word
        for word, known in zip(plain, english_known, strict=True)
    ]
    polish_known = [polish.knows(word) or (word,) in polish.mistakes for word in meant]
    polish_common = sum(word in polish.common or (word,) in polish.mistakes for word in meant)
    english_score = sum(english_known) + 2 * english_common
    polish_score = sum(polish_known) + 2 * polish_common + 2 * marked
    if english_score == polish_score:
        return None
    # A text in another language always has some words that look like ours, but not our most frequent ones; English cannot do
    # without its articles and prepositions.
    if english_score > polish_score:
        winner, known, common, usual = english, english_known, english_common, 0.25
    else:
        winner, known, common, usual = polish, polish_known, polish_common, 0.1 if marked else 0.2
    if sum(known) < len(plain) / 2 or (len(plain) >= 6 and common < usual * len(plain)):
        return None
    return winner


class _Proofreader:
    """Corrects the words of one text in one language."""

    def __init__(self, language: Speller, words: list[_Token]) -> None:
        self._language = language
        plain = [word.plain for word in words]
        is_marked = any(not POLISH_LETTERS.isdisjoint(word) for word in plain)
        self._mistakes = language.mistakes if is_marked else language.mistakes | language.bare_mistakes
        self._names = {word.plain for word in words if word.is_capitalised and not word.starts_sentence}
        self._typographic = any("’" in word.text for word in words)
        if language.code == "pl":
            self._is_foreign: Callable[[str], bool] = self._is_english
        elif is_marked or sum(word in speller("pl").common and not language.knows(word) for word in set(plain)) > 1:
            self._is_foreign = speller("pl").knows  # Polish words quoted in an English text
        else:
            self._is_foreign = lambda _word: False

    def _is_english(self, word: str) -> bool:
        return len(word) > 2 and self._language.with_diacritics(word) is None and speller("en").knows(word)

    def corrected(self, tokens: list[_Token]) -> list[_Token]:
        result: list[_Token] = []
        at = 0
        while at < len(tokens):
            length, replacement = self._phrase(tokens, at) if tokens[at].is_word else (0, [])
            if length:
                result += replacement
                at += length
                continue
            follower = tokens[at + 2] if at + 2 < len(tokens) and _ONE_SPACE.fullmatch(tokens[at + 1].text) else None
            result.append(self._corrected_word(tokens[at], follower) if tokens[at].is_word else tokens[at])
            at += 1
        return result

    def _phrase(self, tokens: list[_Token], at: int) -> tuple[int, list[_Token]]:
        """How many tokens from `at` on are a known mistake, and what to write for them; (0, []) when they are none."""
        span = [tokens[at]]
        spans = [span]
        for space, word in zip(
            tokens[at + 1 :: 2][: _LONGEST_PHRASE - 1], tokens[at + 2 :: 2][: _LONGEST_PHRASE - 1], strict=False
        ):
            if not (_ONE_SPACE.fullmatch(space.text) and word.is_word and word.is_lower):
                break
            span = [*span, space, word]
            spans.append(span)
        for found in reversed(spans):
            meant = self._mistakes.get(tuple(token.plain for token in found[::2]))
            if meant is not None and self._applies(found, meant):
                return len(found), self._written_as(found, meant)
        return 0, []

    def _applies(self, found: list[_Token], meant: str) -> bool:
        first = found[0]
        if first.is_lower:
            return len(found) > 1 or not self._is_foreign(first.plain) or self._language.code == "pl"
        # In mid-sentence a single capitalised word is a name, but "Im" is not.
        return first.is_capitalised and (len(found) > 1 or first.starts_sentence or meant[0].isupper())

    def _written_as(self, found: list[_Token], meant: str) -> list[_Token]:
        """`meant` with the first letter's case, the apostrophes and, where the words are as many, the spaces of `found`."""
        words = meant.split()
        if found[0].is_capitalised:
            words[0] = words[0][0].upper() + words[0][1:]
        spaces = found[1::2] if len(words) == len(found[::2]) else [_Token(" ")] * (len(words) - 1)
        tokens = [_Token(self._apostrophes(words[0]), True, found[0].starts_sentence)]
        for space, word in zip(spaces, words[1:], strict=True):
            tokens += [space, _Token(self._apostrophes(word), True)]
        return tokens

    def _apostrophes(self, word: str) -> str:
        return word.replace("'", "’") if self._typographic else word

    def _corrected_word(self, token: _Token, follower: _Token | None) -> _Token:
        if self._language.code == "en" and token.text == "i" and follower is not None and follower.is_word:
            return _Token("I", True, token.starts_sentence)
        meant = self._meant(token, follower)
        if meant is None:
            return token
        if token.is_capitalised:
            meant = meant[0].upper() + meant[1:]
        return _Token(self._apostrophes(meant), True, token.starts_sentence)

    def _meant(self, token: _Token, follower: _Token | None) -> str | None:
        """What to write for a word that is wrong; None to leave it: it is right, a name, foreign, or nothing is near."""
        word = token.plain
        if not (token.is_lower or token.is_capitalised) or _ELONGATED.search(word) or self._is_right(token):
            return None
        if token.is_capitalised:
            follows_name = follower is not None and follower.is_word and not follower.is_lower
            if not token.starts_sentence or follows_name or word in self._names:
                return None
        if "-" in word:
            parts = [part if self._language.knows(part) else self._language.correction(part) for part in word.split("-")]
            return "-".join(part for part in parts if part) if all(parts) else None
        if "'" in word:
            return self._meant_with_apostrophe(word)
        meant = self._language.correction(word)
        # A capitalised unknown word may be a name even at the start of a sentence.
        if meant and token.is_capitalised and meant not in self._language.common and not self._language.is_homophone(word, meant):
            return None
        return meant

    def _is_right(self, token: _Token) -> bool:
        word = token.plain
        as_written = word.capitalize() if token.is_capitalised else word
        return not self._language.can_judge(word.replace("-", "")) or self._language.knows(as_written) or self._is_foreign(word)

    def _meant_with_apostrophe(self, word: str) -> str | None:
        if self._language.code == "pl":
            return None  # foreign names are declined with an apostrophe
        stem, apostrophe, ending = word.rpartition("'")
        if ending != "s" or self._language.knows(stem):
            return None
        meant = self._language.correction(stem)
        return f"{meant}{apostrophe}{ending}" if meant else None


def _without_doubled_words(tokens: list[_Token], never_twice: frozenset[str]) -> str:
    kept: list[_Token] = []
    for token in tokens:
        if (
            token.is_word
            and len(kept) > 1
            and token.is_lower
            and token.plain in never_twice
            and _ONE_SPACE.fullmatch(kept[-1].text)
        ):
            before = kept[-2]
            if before.is_word and before.plain == token.plain and not before.text.isupper():
                kept.pop()
                continue
        kept.append(token)
    return "".join(token.text for token in kept)
