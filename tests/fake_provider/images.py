"""Pictures on the wire: OpenAI's images API, and what of Gemini's generateContent is of pictures alone.

https://platform.openai.com/docs/api-reference/images/create, https://ai.google.dev/gemini-api/docs/image-generation
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from tests.fake_provider.pictures import MIME_TYPES, Wanted, picture
from tests.fake_provider.wire import GEMINI, Answer, Ask, Failure, Tokens, Wire, openai_error, row_text

# Tokens of a picture: OpenAI's of a square one by quality, and Gemini's of one of 1K.
QUALITIES = {"low": 272, "medium": 1056, "high": 4160}
OPENAI_TOKENS, GEMINI_TOKENS = QUALITIES["medium"], 1290

SAYS = "I can describe a picture, but not make one of this."
URL = "https://images.example.com/made.png"

MODERATED = Failure(
    400,
    "Your request was rejected by the safety system. safety_violations=[violence].",
    type="image_generation_user_error",
    code="moderation_blocked",
)
POLICY = Failure(
    400,
    "Your request was rejected as a result of our safety system. Your prompt may contain text that is not allowed.",
    code="content_policy_violation",
)

# Strike only requests for pictures. Each is what OpenAI does, and what Gemini does.
PICTURE = {
    "picture_moderated": "HTTP 400 moderation_blocked; the prompt is blocked: IMAGE_SAFETY",
    "picture_policy": "HTTP 400 content_policy_violation; finish reason IMAGE_PROHIBITED_CONTENT",
    "picture_unsafe": "HTTP 400 moderation_blocked; finish reason IMAGE_SAFETY",
    "picture_none": "no entry in the data; finish reason NO_IMAGE",
    "picture_text": "an entry with words and no picture; text instead of a picture",
    "picture_url": "an address instead of bytes, both",
    "picture_broken": "something that is not base64, both",
    "picture_is_none": "bytes that are no picture, both",
}
_REFUSED = {"picture_moderated": MODERATED, "picture_policy": POLICY, "picture_unsafe": MODERATED}
_BLANK = ("empty", "empty_cut_short", "picture_none", "blocked", "filtered", "refused")


class Images:
    """OpenAI's `POST /v1/images/generations`."""

    name = "images"

    def ask(self, model: str, body: dict[str, Any], key: str | None) -> Ask:
        prompt = body["prompt"]
        if not isinstance(prompt, str):
            raise TypeError("prompt must be a string")
        wanted = Wanted(body.get("size"), body.get("quality"), body.get("output_format"))
        picture("", wanted)  # raises what a wrong size or format deserves
        return Ask(self.name, body["model"], "", prompt, row_text(prompt), None, "text", body, key, picture=wanted)

    def answer(self, ask: Ask, answer: Answer, number: int) -> dict[str, Any]:
        assert ask.picture is not None
        data = [] if answer.content is None else [{"b64_json": answer.content}]
        text_tokens = answer.tokens.input
        return {
            "created": 1700000000,
            "background": "opaque",
            "output_format": ask.picture.format or "png",
            "quality": ask.picture.quality or "medium",
            "size": "x".join(map(str, ask.picture.pixels)),
            "data": data,
            "usage": {
                "input_tokens": answer.tokens.input,
                "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
                "output_tokens": answer.tokens.output,
                "output_tokens_details": {"text_tokens": 0, "image_tokens": answer.tokens.output},
                "total_tokens": answer.tokens.input + answer.tokens.output,
            },
        }

    def blocked(self, ask: Ask, tokens: Tokens, number: int) -> dict[str, Any]:
        return self.answer(ask, Answer(None, Tokens(tokens.input, 0)), number)

    def error(self, failure: Failure, message: str) -> dict[str, Any]:
        return openai_error(failure, message)

    def error_in_200(self, ask: Ask, tokens: Tokens, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "code": 502}, "usage": {"input_tokens": tokens.input, "output_tokens": 0}}


IMAGES = Images()


def picture_tokens(wire: Wire, ask: Ask, counted: Tokens) -> Tokens:
    """What a picture is billed: what its prompt was `counted`, and the picture's own tokens."""
    if wire is GEMINI:
        return Tokens(counted.input, GEMINI_TOKENS)
    return Tokens(counted.input, QUALITIES.get((ask.picture and ask.picture.quality) or "", OPENAI_TOKENS))


def picture_answer(wire: Wire, ask: Ask, fault: str, tokens: Tokens, size: int | None, number: int) -> dict[str, Any] | Failure:
    """The answer to a request for a picture, of `size` bytes where that is given; or the error that the fault means."""
    if wire is not GEMINI and fault in _REFUSED:
        return _REFUSED[fault]
    assert ask.picture is not None
    content = picture(ask.text, ask.picture, size)
    if fault == "picture_is_none":
        content = b"This is no picture at all."
    if fault == "cut_short":
        content = content[: len(content) // 2]
    encoded: str | None = "not / base64 !" if fault == "picture_broken" else base64.b64encode(content).decode()
    if fault in _BLANK or fault == "wrong_shape":
        encoded = None
    if wire is GEMINI:
        return _gemini(ask, fault, encoded, tokens, number)
    body = wire.answer(ask, Answer(encoded, tokens), number)
    if fault == "picture_text":
        body["data"] = [{"revised_prompt": SAYS}]
    elif fault == "picture_url":
        body["data"] = [{"url": URL}]
    elif fault == "wrong_shape":
        body["data"] = {"answer": 42}
    return body


_FINISHES = {
    "picture_policy": "IMAGE_PROHIBITED_CONTENT",
    "picture_unsafe": "IMAGE_SAFETY",
    "picture_none": "NO_IMAGE",
    "empty_cut_short": "MAX_TOKENS",
    "refused": "SAFETY",
    "filtered": "RECITATION",
}


def _gemini(ask: Ask, fault: str, encoded: str | None, tokens: Tokens, number: int) -> dict[str, Any]:
    assert ask.picture is not None
    if fault == "picture_moderated":
        blocked = GEMINI.blocked(ask, tokens, number)
        return {**blocked, "promptFeedback": {"blockReason": "IMAGE_SAFETY"}}
    mime_type = MIME_TYPES[ask.picture.format or "png"]
    parts: list[Mapping[str, Any]] = [{"text": "Here it is."}, {"inlineData": {"mimeType": mime_type, "data": encoded}}]
    other: dict[str, Callable[[], list[Mapping[str, Any]]]] = {
        "picture_text": lambda: [{"text": SAYS}],
        "picture_url": lambda: [{"fileData": {"mimeType": mime_type, "fileUri": URL}}],
        "wrong_shape": lambda: [{"text": '{"answer": 42}'}],
    }
    if fault in other:
        parts = other[fault]()
    body = GEMINI.answer(ask, Answer("", tokens), number)
    candidate = {"finishReason": _FINISHES.get(fault, "STOP"), "index": 0}
    if (fault not in _FINISHES and encoded is not None) or fault in other:
        candidate["content"] = {"parts": parts, "role": "model"}
    usage = body["usageMetadata"] | {
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens.input}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": tokens.output}],
    }
    return {**body, "candidates": [candidate], "usageMetadata": usage}
