"""The fake provider's pictures and its answers to any schema: what other tests believe is tested here."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
from google.genai import types
from PIL import Image

from tests.fake_provider import FakeProvider, Limits, Rule, correct
from tests.fake_provider.filling import filled
from tests.fake_provider.images import PICTURE
from tests.fake_provider.pictures import MIME_TYPES, Wanted, picture
from tests.fake_provider.sdk import gemini_client, openai_client
from tests.fake_provider.wire import row_text
from tests.unit.test_fake_provider import http


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider() as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


@pytest.mark.parametrize("kind", list(MIME_TYPES))
@pytest.mark.parametrize("size", [None, 200_000, 8 << 20])
def test_pictures_are_what_they_say(kind: str, size: int | None) -> None:
    made = picture("Zażółć", Wanted(size="320x200", format=kind), size)
    with Image.open(io.BytesIO(made)) as opened:
        opened.load()
        assert (opened.format, opened.size) == (kind.upper(), (320, 200))
    assert size is None or len(made) == size
    assert made == picture("Zażółć", Wanted(size="320x200", format=kind), size)
    assert made != picture("Zażółć!", Wanted(size="320x200", format=kind), size)


def generate(fake: FakeProvider, prompt: str = "kot", **more: Any) -> Any:
    with openai_client(fake) as client:
        return client.images.generate(model="gpt-image-2", prompt=prompt, **more)


def test_openai_makes_the_picture_that_was_asked_for(fake: FakeProvider) -> None:
    answer = generate(fake, size="1536x1024", quality="high", output_format="jpeg")
    made = base64.b64decode(answer.data[0].b64_json)
    assert made == picture("kot", Wanted("1536x1024", "high", "jpeg"))
    assert (answer.size, answer.quality, answer.output_format) == ("1536x1024", "high", "jpeg")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (11, 4160, 4171)


def test_gemini_makes_the_picture_that_was_asked_for(fake: FakeProvider) -> None:
    config = types.GenerateContentConfig(
        response_modalities=["IMAGE"], image_config=types.ImageConfig(aspect_ratio="16:9", image_size="2K")
    )
    client = gemini_client(fake)
    answer = client.models.generate_content(model="gemini-x-image", contents="kot", config=config)
    client.close()
    found = [part.inline_data for part in answer.parts or [] if part.inline_data]
    assert [(one.mime_type, one.data) for one in found] == [("image/png", picture("kot", Wanted("16:9", resolution="2K")))]
    usage = answer.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.candidates_token_count) == (11, 1290)


def test_a_test_chooses_how_large_pictures_are(fake: FakeProvider) -> None:
    said = generate(fake, "kot, a picture of 50000 bytes")
    assert len(base64.b64decode(said.data[0].b64_json)) == 50_000
    assert http(f"{fake.url}/_pictures", {"bytes": 70_000}) == {"bytes": 70_000}
    assert len(base64.b64decode(generate(fake).data[0].b64_json)) == 70_000


@pytest.mark.parametrize("wrong", [{"size": "wide"}, {"output_format": "bmp"}])
def test_a_picture_that_cannot_be_is_refused(fake: FakeProvider, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(wrong.values()))):
        generate(fake, **wrong)


def test_limits_and_faults_strike_pictures_too(fake: FakeProvider) -> None:
    fake.limit(Limits(requests_per_minute=1))
    generate(fake)
    with pytest.raises(openai.RateLimitError):
        generate(fake)
    fake.limit(Limits())
    fake.script(Rule("500"))
    with pytest.raises(openai.InternalServerError):
        generate(fake)


@pytest.mark.parametrize("fault", list(PICTURE))
def test_faults_of_pictures_strike_only_pictures(fake: FakeProvider, fault: str) -> None:
    fake.script(Rule(fault))
    with openai_client(fake) as client:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "kot"}])
    assert fake.counts()["per_fault"] == {}
    if fault in ("picture_moderated", "picture_policy", "picture_unsafe"):
        with pytest.raises(openai.BadRequestError, match="safety system"):
            generate(fake)
    else:
        assert [one.b64_json for one in generate(fake).data] != [base64.b64encode(picture("kot", Wanted())).decode()]
    assert fake.counts()["per_fault"] == {fault: 1}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["title", "note", "facts", "risk", "share", "count", "kind", "tags", "parts", "maybe"],
    "properties": {
        "title": {"type": "string"},
        "note": {"type": "string", "description": "Remarks; empty when there are none."},
        "facts": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "risk": {"type": "integer", "minimum": 1, "maximum": 5},
        "share": {"type": "number", "minimum": 0, "maximum": 1},
        "count": {"type": "integer", "minimum": 7},
        "kind": {"type": "string", "enum": ["Food", "Rent"]},
        "tags": {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": True},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "minItems": 1, "maxItems": 1},
        "maybe": {"type": ["string", "null"]},
    },
    "$defs": {
        "part": {
            "type": "object",
            "required": ["name", "words"],
            "properties": {"name": {"type": "string", "maxLength": 12}, "words": {"type": "array", "items": {"type": "string"}}},
        }
    },
}


def test_any_schema_is_answered_with_something_that_tells_whose_it_is() -> None:
    text = "Rent for March, flat 4"
    answer = filled(SCHEMA, text, correct(text))
    jsonschema_rs.validator_for(SCHEMA).validate(answer)
    assert answer == {
        "title": correct(text),
        "note": "",
        "facts": [f"facts 1: {text}", f"facts 2: {text}"],
        "risk": 4,
        "share": 0.75,
        "count": 7,
        "kind": "Rent",
        "tags": ["x", "y", "z"],
        "parts": [{"name": "parts 1 name", "words": [f"parts 1 words 1: {text}", f"parts 1 words 2: {text}"]}],
        "maybe": None,
    }


def test_which_step_was_asked_for_is_on_record(fake: FakeProvider) -> None:
    schema = {"type": "object", "properties": {"outline": {"type": "string"}}, "required": ["outline"]}
    with openai_client(fake) as client:
        for name in ("research_outline", "research_report"):
            described: Any = {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "temat"}], response_format=described)
    generate(fake)
    asked = http(f"{fake.url}/_asked")
    assert [(one["schema_name"], one["is_picture"], one["text"]) for one in asked] == [
        ("research_outline", False, "temat"),
        ("research_report", False, "temat"),
        (None, True, "kot"),
    ]
    assert json.dumps(asked) == json.dumps(fake.asked())


def test_what_stands_beside_the_text_is_not_the_text() -> None:
    mark = "<<<00112233445566aa>>>"
    assert row_text(f"Earlier:\n{mark}\ndawniej\n{mark}\n\nThe text:\n{mark}\nteraz\n\n{mark}\n") == "teraz\n"
