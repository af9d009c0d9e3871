"""Asking for a picture: what the vendors share, and each one's words for a size.

OpenAI knows widths and heights (https://platform.openai.com/docs/api-reference/images/create), Gemini ratios and three
resolutions (https://ai.google.dev/gemini-api/docs/image-generation). A request in the other's words gets what comes nearest.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ai_worker.errors import BadAnswer, InvalidRequest, ModelStopped
from ai_worker.models import File, ImageRequest, Prompt, Usage
from ai_worker.providers._failures import Secrets, clean

PICTURE_TIMEOUT: Final = 300.0  # seconds at least; OpenAI: "complex prompts may take up to 2 minutes", and busy servers longer
NO_PICTURE: Final = "no_picture"  # code of an answer that could be read and has no picture in it

_OPENAI_SIZES: Final = ((1024, 1024), (1536, 1024), (1024, 1536))
_GEMINI_RATIOS: Final = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
_GEMINI_RESOLUTIONS: Final = ("1K", "2K", "4K")


def no_pictures(provider: str) -> InvalidRequest:
    """For providers that are not models."""
    return InvalidRequest(f"the provider {provider!r} makes no pictures; use a model of the provider 'openai' or 'gemini'")


def whole_prompt(prompt: Prompt) -> str:
    """System and user message in one: image models take a single text."""
    return f"{prompt.system}\n\n{prompt.user}" if prompt.system.strip() else prompt.user


def openai_request(model: str, prompt: Prompt, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `POST /images/generations`. What is not asked for is left to the server."""
    image = prompt.image or ImageRequest()
    size = image.size
    if size is not None and ":" in size:
        across, down = _sides(size)
        size = "{}x{}".format(*min(_OPENAI_SIZES, key=lambda one: _distance(one, (across, down))))
    asked = {"size": size, "quality": image.quality, "output_format": image.format}
    body = {"model": model, "prompt": whole_prompt(prompt), "n": 1}
    return body | {name: value for name, value in asked.items() if value is not None} | dict(extra)


def gemini_request(image: ImageRequest) -> tuple[str | None, str | None]:
    """Aspect ratio and resolution, each None where it is left to the model. A quality of 1K, 2K or 4K is the resolution; others
    mean nothing there, nor does a format."""
    quality = (image.quality or "").upper()
    resolution = quality if quality in _GEMINI_RESOLUTIONS else None
    if image.size is None or image.size == "auto":
        return None, resolution
    across, down = _sides(image.size)
    ratio = min(_GEMINI_RATIOS, key=lambda one: _distance(_sides(one), (across, down)))
    if resolution is None and "x" in image.size and across * down > 1536 * 1024:
        resolution = "2K" if across * down <= 2048 * 2048 else "4K"
    return ratio, resolution


def openai_picture(body: Mapping[str, Any], secrets: Secrets, usage: Usage, asked: str | None) -> tuple[File, str]:
    """The picture in an answer of the images API, and what the model made of the prompt, if it says so.

    Raises BadAnswer, and ModelStopped where the server sends addresses.
    """
    data = body.get("data")
    entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    words = entry.get("revised_prompt")
    words = words if isinstance(words, str) else ""
    if encoded := entry.get("b64_json"):
        kind = body.get("output_format")
        return decoded(encoded, f"image/{kind if isinstance(kind, str) else asked or 'png'}", usage), words
    if entry.get("url") is not None:
        raise ModelStopped(
            "the server sends an address instead of the picture, and addresses are not fetched; where it takes that parameter,"
            ' set the model\'s option extra_body={"response_format": "b64_json"}',
            usage=usage,
            code="url",
        )
    what = f": {clean(words, secrets)}" if words else ""
    raise BadAnswer(f"there is no picture in the answer{what}", usage=usage, code=NO_PICTURE)


def decoded(encoded: object, mime_type: str, usage: Usage) -> File:
    """The file in base64. Raises BadAnswer where it is not that."""
    try:
        content = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    except (binascii.Error, ValueError) as error:
        raise BadAnswer(f"the picture is not valid base64: {error}", usage=usage, code="not_base64") from None
    if not content:
        raise BadAnswer("the picture is empty", usage=usage, code=NO_PICTURE)
    return File(content, mime_type)


def _sides(size: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[x:](\d{1,5})", size)
    if found is None or not int(found[1]) or not int(found[2]):
        raise InvalidRequest(f"a picture's size is a width and a height (1024x1024) or a ratio (16:9), not {size!r}")
    return int(found[1]), int(found[2])


def _distance(one: tuple[int, int], other: tuple[int, int]) -> float:
    """How much two shapes differ, whichever is the wider."""
    return abs(math.log(one[0] / one[1] * other[1] / other[0]))
