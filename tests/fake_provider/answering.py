"""What a request is answered: by the script, or correctly and deterministically. Knows nothing of sockets or waiting, so that a
batch's rows are answered as single calls are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.fake_provider.faults import CONDITIONAL, FAILURES, FLEX, PACK, Rule
from tests.fake_provider.filling import filled
from tests.fake_provider.images import picture_answer, picture_tokens
from tests.fake_provider.packs import ID, packed_schema, spoil
from tests.fake_provider.tokens import Count, correct
from tests.fake_provider.wire import GEMINI, Answer, Ask, Failure, Tokens, Wire, gemini_tier

HTML = "<html><head><title>Bad Gateway</title></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>"

TEXT_SCHEMA: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}

# How the outer settings of an answer follow from a fault's name.
_FINISH = {"refused": "refused", "filtered": "filtered", "cut_short": "length", "empty_cut_short": "length"}


def answer_json(ask: Ask) -> str:
    """JSON for the schema that was asked for, with the worked text wherever a text stands; see `filling`."""
    return json.dumps(filled(ask.wanted or TEXT_SCHEMA, ask.text, correct(ask.text)), ensure_ascii=False)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. `tokens` is what is billed, None for nothing; `ends` is how the connection does:
    whole | dropped (half of the body, then a reset) | hangs (never answered)."""

    status: int
    text: str
    tokens: Tokens | None = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    ends: str = "whole"


def failed(wire: Wire, failure: Failure, message: str | None = None) -> Reply:
    """The HTTP error in the vendor's words; `message` instead of its own."""
    google = wire is GEMINI
    message = message or (failure.google_message if google else None) or failure.message
    status = (failure.google_code if google else None) or failure.status
    return Reply(status, json.dumps(wire.error(failure, message), ensure_ascii=False), headers=failure.headers)


class Answering:
    """answer: turns a request for one text into the content of a correct answer. count: what it is billed.

    `picture_bytes` is how large pictures are; None: as they come out. What a prompt says (`picture of 5000 bytes`) goes first.
    """

    def __init__(self, answer: Callable[[Ask], str], count: Count) -> None:
        self._answer = answer
        self._count = count
        self.picture_bytes: int | None = None

    def reply(self, wire: Wire, ask: Ask, rule: Rule | None, number: int) -> Reply:
        """The answer that the rule asks for, None for a correct one. `number` becomes part of its id."""
        rule = rule or Rule("answer")
        reply = self._reply(wire, ask, rule, number)
        if wire is GEMINI and reply.status == 200:
            return replace(reply, headers={**reply.headers, "x-gemini-service-tier": gemini_tier(ask.tier)})
        return reply

    def _reply(self, wire: Wire, ask: Ask, rule: Rule, number: int) -> Reply:
        fault = rule.fault
        failure = FAILURES.get(fault) or CONDITIONAL.get(fault) or FLEX.get(fault)
        if failure:
            message = (failure.google_message if wire is GEMINI else None) or failure.message
            return failed(wire, failure, _with_key(message, ask, rule))
        if fault in ("html", "502_html"):
            page = _with_key(HTML, ask, rule)
            return Reply(502 if fault == "502_html" else 200, page, content_type="text/html")
        if fault == "no_answer_in_it":
            return _json({"object": "something else", "note": _with_key("nothing here", ask, rule)})
        if fault == "not_an_object":
            return _json(["an", "array"])
        if ask.picture and fault != "error_in_200":
            return self._picture(wire, ask, rule, number)
        content = self._content(ask, rule)
        tokens = Tokens(*rule.tokens) if rule.tokens else self._count(ask, content or "")
        if fault == "blocked":
            return _json(wire.blocked(ask, tokens, number), Tokens(tokens.input, 0))
        if fault == "error_in_200":
            message = _with_key("The upstream server is overloaded.", ask, rule)
            return _json(wire.error_in_200(ask, tokens, message), Tokens(tokens.input, 0))
        return _spoilt(_json(wire.answer(ask, Answer(content, tokens, _FINISH.get(fault, "stop")), number), tokens), fault)

    def _picture(self, wire: Wire, ask: Ask, rule: Rule, number: int) -> Reply:
        tokens = Tokens(*rule.tokens) if rule.tokens else picture_tokens(wire, ask, self._count(ask, ""))
        made = picture_answer(wire, ask, rule.fault, tokens, self.picture_bytes, number)
        if isinstance(made, Failure):
            return failed(wire, made, _with_key(made.message, ask, rule))
        return _spoilt(_json(made, tokens), rule.fault)

    def _content(self, ask: Ask, rule: Rule) -> str | None:
        if rule.fault in ("empty", "empty_cut_short"):
            return "" if rule.fault == "empty" else None
        packed = packed_schema(ask.wanted) if ask.items else None
        if rule.content and not (packed and (rule.fault in PACK or rule.contains is not None)):
            return rule.content
        if rule.fault == "wrong_shape":
            return json.dumps({"answer": 42})
        content = self._pack(ask, rule, *packed) if packed else self._answer(ask)
        return content[: len(content) // 2] if rule.fault == "cut_short" else content

    def _pack(self, ask: Ask, rule: Rule, name: str, schema: dict[str, Any]) -> str:
        """Each text of a pack answered as it would be alone."""
        elements: list[dict[str, Any]] = []
        struck = len(ask.items) - 1
        for number, (item, text) in enumerate(ask.items):
            hit = rule.contains is not None and rule.contains in text
            struck = number if hit else struck
            given = rule.content if hit and rule.fault == "answer" else None
            single = replace(ask, text=text, schema=schema, items=())
            elements.append({ID: item, **json.loads(given or self._answer(single))})
        if rule.fault in PACK:
            spoil(rule.fault, elements, struck, rule.content)
        return json.dumps({name: elements}, ensure_ascii=False)


def _spoilt(whole: Reply, fault: str) -> Reply:
    """The reply with what the fault does to its bytes or its connection."""
    if fault in ("broken_json", "500_broken_json"):
        half = whole.text[: len(whole.text) // 2]
        return Reply(500, half) if fault == "500_broken_json" else replace(whole, text=half)
    return replace(whole, ends={"drop": "dropped", "hang": "hangs"}.get(fault, "whole"))


def _json(body: Any, tokens: Tokens | None = None) -> Reply:
    return Reply(200, json.dumps(body, ensure_ascii=False), tokens)


def _with_key(message: str, ask: Ask, rule: Rule) -> str:
    return f"{message} (Authorization: Bearer {ask.key}, url /v1/x?key={ask.key})" if rule.echo_key else message
