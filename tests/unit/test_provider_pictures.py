"""Pictures through both vendors' SDKs: what is asked for, what comes back, what it costs, and every way in which none does."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from ai_worker import errors, prices
from ai_worker.models import Completion, ImageRequest, Model, Prompt, Usage
from ai_worker.providers import Provider, ProviderConfig, makes_pictures
from ai_worker.providers._images import gemini_request
from ai_worker.providers.echo import EchoProvider
from ai_worker.providers.gemini import GeminiProvider
from ai_worker.providers.offline import OfflineProvider
from ai_worker.providers.openai import OpenAIProvider
from tests.fake_provider import FakeProvider, Rule
from tests.fake_provider.asking import ask
from tests.fake_provider.images import PICTURE, SAYS
from tests.fake_provider.pictures import Wanted, picture
from tests.fake_provider.samples import KEY, prompt, secret, whole_traceback

pytest_plugins = ["tests.fake_provider.asking"]

VENDORS = {"openai": OpenAIProvider, "gemini": GeminiProvider}
TEXT = "Kot w butach, akwarela"


def config(vendor: str, fake: FakeProvider, **changes: Any) -> ProviderConfig:
    url = fake.openai_url if vendor == "openai" else fake.gemini_url
    fields: dict[str, Any] = {"name": "m", "model": "img", "base_url": url, "api_key": secret(), "request_timeout": 20.0}
    return ProviderConfig(**(fields | changes))


def drawn(text: str = TEXT, **asked: Any) -> Prompt:
    return prompt(text, system="", user=text, image=ImageRequest(**asked))


def asked(vendor: str, fake: FakeProvider, one: Prompt, **changes: Any) -> Completion:
    return ask(VENDORS[vendor], config(vendor, fake, **changes), one)[0]


def refused(vendor: str, fake: FakeProvider) -> errors.ProviderError:
    with pytest.raises(errors.ProviderError) as caught:
        asked(vendor, fake, drawn())
    return caught.value


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("size", [None, 8 << 20])
def test_the_bytes_come_through(fake: FakeProvider, vendor: str, size: int | None) -> None:
    fake.set_pictures(size)
    completion = asked(vendor, fake, drawn())
    (file,) = completion.files
    assert file.content == picture(TEXT, Wanted(), size)
    assert file.mime_type == "image/png"
    image = 1056 if vendor == "openai" else 1290
    assert completion.usage == Usage(14, image, tokens_image=image)
    assert fake.asked() == [{"text": TEXT, "schema_name": None, "model": "img", "is_picture": True, "status": 200}]


def test_openai_is_told_what_was_asked_for_and_nothing_else(fake: FakeProvider) -> None:
    options = {"extra_body": {"background": "transparent"}, "temperature": 0.5, "max_output_tokens": 9}
    (file,) = asked("openai", fake, drawn(size="1536x1024", quality="high", format="jpeg"), options=options).files
    assert file.content == picture(TEXT, Wanted("1536x1024", "high", "jpeg"))
    assert file.mime_type == "image/jpeg"
    assert fake.requests[-1].body == {
        "model": "img", "prompt": TEXT, "n": 1, "size": "1536x1024", "quality": "high", "output_format": "jpeg",
        "background": "transparent",
    }  # fmt: skip
    asked("openai", fake, drawn(size="9:16"))
    assert fake.requests[-1].body == {"model": "img", "prompt": TEXT, "n": 1, "size": "1024x1536"}


def test_gemini_is_told_ratio_and_resolution(fake: FakeProvider) -> None:
    completion = asked("gemini", fake, drawn(size="16:9", quality="2K"), options={"safety": "off", "temperature": "0.5"})
    assert completion.files[0].content == picture(TEXT, Wanted("16:9", resolution="2K"))
    body = fake.requests[-1].body
    assert body["generationConfig"] == {
        "responseModalities": ["IMAGE"],
        "imageConfig": {"aspectRatio": "16:9", "imageSize": "2K"},
        "temperature": 0.5,
    }
    assert len(body["safetySettings"]) == 4
    assert completion.text == "Here it is."


@pytest.mark.parametrize(
    ("size", "quality", "expected"),
    [
        (None, None, (None, None)),
        ("auto", "high", (None, None)),
        ("1024x1024", "high", ("1:1", None)),
        ("1536x1024", None, ("3:2", None)),
        ("1000x1600", None, ("2:3", "2K")),
        ("4096x4096", None, ("1:1", "4K")),
        ("4:5", "4K", ("4:5", "4K")),
        ("1920x1080", None, ("16:9", "2K")),
    ],
)
def test_gemini_gets_what_comes_nearest(size: str | None, quality: str | None, expected: tuple[Any, Any]) -> None:
    assert gemini_request(ImageRequest(size, quality)) == expected


def test_instructions_and_text_are_one_prompt(fake: FakeProvider) -> None:
    one = prompt(TEXT, system="In the style of a woodcut.", user=TEXT, image=ImageRequest())
    for vendor in VENDORS:
        asked(vendor, fake, one)
    said = [fake.requests[0].body["prompt"], fake.requests[1].body["contents"][0]["parts"][0]["text"]]
    assert said == [f"In the style of a woodcut.\n\n{TEXT}"] * 2


IMAGE = Usage(14, 1056, tokens_image=1056)
DRAWN = Usage(14, 1290, tokens_image=1290)
NONE_OF_IT: dict[str, dict[str, tuple[type[errors.ProviderError], str, Usage | None]]] = {
    "openai": {
        "picture_moderated": (errors.ContentRefused, "moderation_blocked", Usage()),
        "picture_policy": (errors.ContentRefused, "content_policy_violation", Usage()),
        "picture_unsafe": (errors.ContentRefused, "moderation_blocked", Usage()),
        "picture_none": (errors.BadAnswer, "no_picture", IMAGE),
        "picture_text": (errors.BadAnswer, "no_picture", IMAGE),
        "picture_url": (errors.ModelStopped, "url", IMAGE),
        "picture_broken": (errors.BadAnswer, "not_base64", IMAGE),
    },
    "gemini": {
        "picture_moderated": (errors.ContentRefused, "IMAGE_SAFETY", None),
        "picture_policy": (errors.ContentRefused, "IMAGE_PROHIBITED_CONTENT", DRAWN),
        "picture_unsafe": (errors.ContentRefused, "IMAGE_SAFETY", DRAWN),
        "picture_none": (errors.BadAnswer, "NO_IMAGE", DRAWN),
        "picture_text": (errors.BadAnswer, "no_picture", DRAWN),
        "picture_url": (errors.ModelStopped, "url", DRAWN),
        "picture_broken": (errors.BadAnswer, "not_base64", DRAWN),
    },
}
EVERY = {  # what strikes text as well
    "401": errors.AccessDenied,
    "404": errors.ModelUnknown,
    "429": errors.RateLimited,
    "429_quota": errors.QuotaExhausted,
    "400_option": errors.ModelStopped,
    "503": errors.Overloaded,
    "drop": errors.NetworkFailed,
    "html": errors.BadAnswer,
    "broken_json": errors.BadAnswer,
    "no_answer_in_it": errors.BadAnswer,
    "not_an_object": errors.BadAnswer,
    "wrong_shape": errors.BadAnswer,
    "empty": errors.BadAnswer,
    "empty_cut_short": errors.BadAnswer,
    "error_in_200": errors.Overloaded,
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_way_to_no_picture_is_sorted(fake: FakeProvider, vendor: str) -> None:
    table = NONE_OF_IT[vendor]
    assert set(table) == set(PICTURE) - {"picture_is_none"}  # which is told from the bytes, behind the provider
    for fault, (kind, code, usage) in table.items():
        fake.script(Rule(fault))
        error = refused(vendor, fake)
        assert (type(error), error.code) == (kind, code), fault
        assert usage is None or error.usage == usage, fault


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_strikes_texts_strikes_pictures_the_same(fake: FakeProvider, vendor: str) -> None:
    for fault, kind in EVERY.items():
        fake.script(Rule(fault, echo_key=True))
        error = refused(vendor, fake)
        assert type(error) is kind, (fault, error)
        assert KEY not in whole_traceback(error)


@pytest.mark.parametrize("vendor", VENDORS)
def test_words_instead_of_a_picture_are_told(fake: FakeProvider, vendor: str) -> None:
    fake.script(Rule("picture_text"))
    assert SAYS in str(refused(vendor, fake))


def test_a_size_that_is_none_is_the_items_fault(fake: FakeProvider) -> None:
    for vendor, size in (("openai", "wide"), ("gemini", "wide"), ("openai", "0:1"), ("gemini", "0x0")):
        with pytest.raises(errors.InvalidRequest):
            asked(vendor, fake, drawn(size=size))


@pytest.mark.parametrize("kind", [EchoProvider, OfflineProvider])
def test_those_without_a_model_make_no_pictures(kind: type[Provider]) -> None:
    with pytest.raises(errors.InvalidRequest, match="makes no pictures"):
        ask(kind, ProviderConfig("m"), drawn())
    assert [makes_pictures(name) for name in ("openai", "gemini", "offline", "echo")] == [True, True, False, False]


def cost(model: str, usage: Usage, provider: str = "openai", **columns: Any) -> Decimal | None:
    return prices.cost(Model(1, "m", provider, model, **columns), usage)


@pytest.mark.parametrize(
    ("provider", "model", "per_million"),
    [("openai", "gpt-image-2", 30), ("openai", "gpt-image-1.5", 32), ("gemini", "gemini-2.5-flash-image", 30)],
)
def test_the_tokens_of_a_picture_have_the_price_of_pictures(provider: str, model: str, per_million: int) -> None:
    assert cost(model, Usage(0, 1000, tokens_image=1000), provider) == Decimal(per_million) / 1000


def test_words_beside_a_picture_have_the_price_of_words() -> None:
    # 200 of the 1,200 are words, at 10 USD per million; pictures are at 32, and the prompt is at 5.
    assert cost("gpt-image-1.5", Usage(100, 1200, tokens_image=1000)) == Decimal("0.0345")


def test_a_price_of_ones_own_is_that_of_all_tokens() -> None:
    own = {"price_input": Decimal(1), "price_output": Decimal(7)}
    assert cost("gpt-image-1.5", Usage(0, 1000, tokens_image=1000), **own) == Decimal("0.007")
    assert cost("gpt-image-1.5", Usage(0, 1000, tokens_image=1000), price_input=Decimal(1)) == Decimal("0.032")


def test_what_nobody_knows_is_not_priced() -> None:
    assert cost("no-such-image-model", Usage(0, 1000, tokens_image=1000)) is None
