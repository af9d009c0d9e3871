"""Both vendors' batches over the real SDKs: handed in, found again, asked about, read, cancelled, forgotten; what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from ai_worker import errors
from ai_worker.errors import ProviderError
from ai_worker.models import Completion, Lane, Prompt, Usage
from ai_worker.providers import BATCH_UNKNOWN, BatchProvider, BatchState, ProviderConfig
from ai_worker.providers.gemini import GeminiProvider
from ai_worker.providers.openai import OpenAIProvider
from tests.fake_provider import BatchSettings, FakeProvider, Rule, correct
from tests.fake_provider.samples import KEY, prompt, secret, whole_traceback

T = TypeVar("T")

TEXTS = ("pierwszy wiersz", "drugi\u2028wiersz\x85z pułapką", "trzeci wiersz 🦊")
VENDORS = ("chat", "responses", "gemini")


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.05)) as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


def made(fake: FakeProvider, vendor: str, **options: Any) -> BatchProvider:
    if vendor == "gemini":
        return GeminiProvider(ProviderConfig("m", "gemini-x", fake.gemini_url, secret(), options))
    return OpenAIProvider(ProviderConfig("m", "gpt-x", fake.openai_url, secret(), {"api": vendor, **options}))


def using(provider: BatchProvider, work: Callable[[BatchProvider], Awaitable[T]]) -> T:
    async def run() -> T:
        try:
            return await work(provider)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def rows(*texts: str) -> list[tuple[str, Prompt]]:
    return [(str(number), prompt(text, lane=Lane.BATCH)) for number, text in enumerate(texts or TEXTS, 1)]


async def ended(provider: BatchProvider, batch: str) -> BatchState:
    async with asyncio.timeout(10):
        while not (state := await provider.batch_state(batch)).ended:  # noqa: ASYNC110 -- the vendors have nothing but polling
            await asyncio.sleep(0.01)
    return state


async def results(provider: BatchProvider, batch: str) -> dict[str, Completion | ProviderError]:
    return {row: answer async for row, answer in provider.batch_results(batch)}


async def whole_way(provider: BatchProvider) -> tuple[BatchState, dict[str, Completion | ProviderError]]:
    batch = await provider.submit_batch("key-1", rows())
    return await ended(provider, batch), await results(provider, batch)


def failing(provider: BatchProvider, work: Callable[[BatchProvider], Awaitable[Any]]) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        using(provider, work)
    assert KEY not in whole_traceback(caught.value)
    return caught.value


@pytest.mark.parametrize("vendor", VENDORS)
def test_each_row_comes_back_under_its_id(fake: FakeProvider, vendor: str) -> None:
    state, found = using(made(fake, vendor), whole_way)
    assert (state.ended, state.done, state.failed, state.total) == (True, 3, 0, 3)
    assert state.status in ("completed", "SUCCEEDED")
    assert set(found) == {"1", "2", "3"}
    for row, text in zip("123", TEXTS, strict=True):
        answer = found[row]
        assert isinstance(answer, Completion)
        assert json.loads(answer.text)["corrected"] == correct(text)
        assert answer.lane is Lane.BATCH
        assert answer.usage.tokens_input > 0
        assert answer.finish == "stop"
    assert fake.counts()["batch_rows"] == dict.fromkeys(TEXTS, 1)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_row_is_asked_as_a_single_call_would_be(fake: FakeProvider, vendor: str) -> None:
    options = {"max_output_tokens": "500", "structured": "json_object"}
    using(made(fake, vendor, **options), lambda provider: provider.submit_batch("key-1", rows()))
    asked = fake.batches.created[0].rows[0].ask
    using(made(fake, vendor, **options), lambda provider: provider.complete(prompt(TEXTS[0])))
    assert asked is not None
    single = fake.requests[-1].body
    assert asked.body == single if vendor != "gemini" else single.items() >= asked.body.items()
    assert "fit this JSON schema" in asked.system


def test_a_batch_has_no_service_tier(fake: FakeProvider) -> None:
    """OpenAI refuses batches that name one: "Flex is not available for this model"."""
    provider = made(fake, "chat", flex="on", extra_body={"service_tier": "flex", "seed": 7})
    using(provider, lambda each: each.submit_batch("key-1", rows()))
    asked = fake.batches.created[0].rows[0].ask
    assert asked is not None
    assert (asked.body.get("service_tier"), asked.body["seed"]) == (None, 7)


def test_geminis_extra_body_does_not_spoil_the_request_around_the_requests(fake: FakeProvider) -> None:
    state, found = using(made(fake, "gemini", extra_body={"serviceTier": "flex"}), whole_way)
    assert (state.status, len(found)) == ("SUCCEEDED", 3)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_batch_is_found_by_its_key(fake: FakeProvider, vendor: str) -> None:
    async def work(provider: BatchProvider) -> None:
        assert await provider.find_batch("key-3") is None
        made = [await provider.submit_batch(f"key-{number}", rows()) for number in range(1, 6)]
        found = [await provider.find_batch(f"key-{number}") for number in range(1, 7)]
        assert found == [*made, None]

    using(made(fake, vendor), work)
    ours = {one["filename"] for one in fake.files if one["purpose"] == "batch"}
    assert ours == (set() if vendor == "gemini" else {f"ai-worker-key-{number}.jsonl" for number in range(1, 6)})


def test_ours_is_found_behind_many_others(fake: FakeProvider) -> None:
    async def work(provider: BatchProvider) -> None:
        ours = await provider.submit_batch("ours", rows("a"))
        for number in range(101):
            await provider.submit_batch(f"other-{number}", rows("b"))
        assert await provider.find_batch("ours") == ours

    using(made(fake, "chat"), work)
    using(made(fake, "gemini"), work)


def test_batches_of_other_days_are_not_paged_through(fake: FakeProvider) -> None:
    async def work(provider: BatchProvider) -> None:
        await provider.submit_batch("ours", rows("a"))
        fake.batches.created[-1].at["validating"] -= 3 * 86_400
        assert await provider.find_batch("ours") is None

    using(made(fake, "chat"), work)
    using(made(fake, "gemini"), work)


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("at", ["upload", "create"])
def test_a_submission_without_an_answer_is_found_afterwards(fake: FakeProvider, vendor: str, at: str) -> None:
    if (vendor, at) == ("gemini", "upload"):
        at = "create"
    fake.script(Rule("lost", at=at, times=1))

    async def work(provider: BatchProvider) -> str | None:
        with pytest.raises(errors.NetworkFailed):
            await provider.submit_batch("key-1", rows())
        return await provider.find_batch("key-1")

    found = using(made(fake, vendor), work)
    assert (found is None) is (at == "upload")
    assert len(fake.batches.created) == (0 if at == "upload" else 1)  # and neither the SDK nor we sent it again


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("401", errors.AccessDenied), ("429_quota", errors.QuotaExhausted), ("429", errors.RateLimited), ("500", errors.Overloaded)],
)
@pytest.mark.parametrize("at", ["create", "poll", "list"])
def test_errors_around_a_batch_are_sorted(fake: FakeProvider, vendor: str, fault: str, kind: type, at: str) -> None:
    async def work(provider: BatchProvider) -> None:
        if at == "create":
            await provider.submit_batch("key-1", rows())
        elif at == "list":
            await provider.find_batch("key-1")
        else:
            await provider.batch_state(await provider.submit_batch("key-1", rows()))

    fake.script(Rule(fault, at=at, echo_key=True))
    assert type(failing(made(fake, vendor), work)) is kind


def test_a_server_that_knows_idempotency_keys_makes_one_batch_of_a_key(fake: FakeProvider) -> None:
    async def work(provider: BatchProvider) -> set[str]:
        return {await provider.submit_batch(key, rows()) for key in ("key-1", "key-1", "key-2")}

    assert len(using(made(fake, "chat"), work)) == len(fake.batches.created) == 2


def test_a_file_whose_batch_was_refused_is_deleted(fake: FakeProvider) -> None:
    fake.script(Rule("401", at="create", times=1))
    failing(made(fake, "chat"), lambda provider: provider.submit_batch("key-1", rows()))
    assert fake.files == []


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_the_server_does_not_know_does_not_stop_the_model(fake: FakeProvider, vendor: str) -> None:
    unknown = "batches/no-such" if vendor == "gemini" else "batch_no_such"
    for work in (
        lambda provider: provider.batch_state(unknown),
        lambda provider: results(provider, unknown),
        lambda provider: provider.cancel_batch(unknown),
    ):
        error = failing(made(fake, vendor), work)
        assert (type(error), error.code) == (errors.InvalidRequest, BATCH_UNKNOWN)
    using(made(fake, vendor), lambda provider: provider.forget_batch(unknown))


def test_a_server_without_a_batch_api(fake: FakeProvider) -> None:
    config = ProviderConfig("m", "gpt-x", f"{fake.url}/nowhere", secret())
    error = failing(OpenAIProvider(config), lambda provider: provider.submit_batch("key-1", rows()))
    assert (type(error), error.code) == (errors.InvalidRequest, BATCH_UNKNOWN)


def test_geminis_model_may_be_the_one_that_is_not_known(fake: FakeProvider) -> None:
    fake.script(Rule("404", at="create"))
    assert type(failing(made(fake, "gemini"), lambda each: each.submit_batch("key-1", rows()))) is errors.ModelUnknown


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_batch_that_fails_as_a_whole_says_why_and_has_no_results(fake: FakeProvider, vendor: str) -> None:
    fake.script(Rule("batch_invalid", at="create"))
    state, found = using(made(fake, vendor), whole_way)
    assert state.status.lower() == "failed"
    assert found == {}
    if vendor != "gemini":  # whose SDK leaves the reason out
        assert state.message == "invalid_json_line: This line is not parseable as valid JSON."


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("400_content_filter", errors.ContentRefused),
        ("400_context_length", errors.InputTooLong),
        ("500", errors.Overloaded),
        ("refused", errors.ContentRefused),
        ("empty", errors.BadAnswer),
    ],
)
def test_a_rows_error_is_sorted_as_a_single_calls(fake: FakeProvider, vendor: str, fault: str, kind: type) -> None:
    fake.script(Rule(fault, contains="trzeci"))
    _, found = using(made(fake, vendor), whole_way)
    error = found["3"]
    assert type(error) is kind
    assert isinstance(error, ProviderError)
    assert error.__context__ is None
    assert isinstance(found["1"], Completion)
    assert (error.usage != Usage()) is (fault in ("refused", "empty"))


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_answer_cut_short_says_so_and_usage_is_told_apart(fake: FakeProvider, vendor: str) -> None:
    fake.script(Rule("cut_short", contains="pierwszy"), Rule("answer", contains="trzeci", tokens=[120, 80, 64, 50]))
    _, found = using(made(fake, vendor), whole_way)
    first = found["1"]
    assert isinstance(first, Completion)
    assert first.finish == "length"
    assert found["3"].usage == Usage(120, 80, 64, 50)


@pytest.mark.parametrize("vendor", ["chat", "responses"])
def test_rows_of_a_server_that_takes_less_are_left_to_be_sent_singly(fake: FakeProvider, vendor: str) -> None:
    fake.script(Rule("no_json_schema"))
    state, found = using(made(fake, vendor), whole_way)
    assert (state.failed, found) == (3, {})


@pytest.mark.parametrize("vendor", VENDORS)
def test_rows_not_done_are_left_out(fake: FakeProvider, vendor: str) -> None:
    fake.set_batches(expire_after=1, gemini_keeps=True)
    state, found = using(made(fake, vendor), whole_way)
    assert state.status.lower() == "expired"
    assert set(found) == {"1"}


def test_what_gemini_lost_of_an_expired_batch_is_left_out(fake: FakeProvider) -> None:
    fake.set_batches(expire_after=1)
    state, found = using(made(fake, "gemini"), whole_way)
    assert (state.status, found) == ("EXPIRED", {})


def test_rows_of_gemini_without_our_ids_are_left_out(fake: FakeProvider) -> None:
    fake.set_batches(gemini_metadata=False)
    state, found = using(made(fake, "gemini"), whole_way)
    assert (state.done, found) == (3, {})


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_was_done_before_the_cancelling_is_kept(fake: FakeProvider, vendor: str) -> None:
    async def work(provider: BatchProvider) -> tuple[BatchState, dict[str, Any]]:
        batch = await provider.submit_batch("key-1", rows())
        await asyncio.to_thread(fake.wait_until, lambda: fake.batches.created[0].good == 1)
        running = await provider.batch_state(batch)
        assert not running.ended
        await provider.cancel_batch(batch)
        state = await ended(provider, batch)
        await provider.cancel_batch(batch)  # once more, when it has ended
        return state, await results(provider, batch)

    fake.set_batches(hold=True, hold_after=1)
    state, found = using(made(fake, vendor), work)
    assert state.status.lower() == "cancelled"
    assert set(found) == {"1"}


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_forgotten_batch_leaves_nothing_behind(fake: FakeProvider, vendor: str) -> None:
    async def work(provider: BatchProvider) -> None:
        batch = await provider.submit_batch("key-1", rows())
        await ended(provider, batch)
        assert len(await results(provider, batch)) == 3
        assert (len(fake.files), len(fake.batches.all)) == ((0, 1) if vendor == "gemini" else (2, 1))
        await provider.forget_batch(batch)
        await provider.forget_batch(batch)
        assert (fake.files, len(fake.batches.all)) == ([], 0 if vendor == "gemini" else 1)

    using(made(fake, vendor), work)


@pytest.mark.parametrize("vendor", VENDORS)
def test_one_broken_text_does_not_spoil_the_others(fake: FakeProvider, vendor: str) -> None:
    async def work(provider: BatchProvider) -> dict[str, Any]:
        batch = await provider.submit_batch("key-1", rows("dobry", "z\ud800y", "też dobry"))
        await ended(provider, batch)
        return await results(provider, batch)

    assert set(using(made(fake, vendor), work)) == {"1", "3"}
    error = failing(made(fake, vendor), lambda provider: provider.submit_batch("key-2", rows("z\ud800y")))
    assert type(error) is errors.InvalidRequest


@pytest.mark.parametrize("vendor", ["chat", "gemini"])
def test_too_much_is_refused_before_anything_is_sent(fake: FakeProvider, vendor: str) -> None:
    provider = made(fake, vendor)
    many = rows("x") * (provider.batch_limits.rows + 1)
    error = failing(provider, lambda each: each.submit_batch("key-1", many))
    assert (type(error), error.code) == (errors.InvalidRequest, "batch_too_large")
    assert fake.counts()["batch_requests"] == {}


def test_the_loop_goes_on_while_a_batch_is_made_and_read(fake: FakeProvider) -> None:
    """A loop that stands still for long loses its worker's lease."""

    async def work(provider: BatchProvider) -> float:
        loop, worst, stop = asyncio.get_running_loop(), 0.0, False

        async def watch() -> None:
            nonlocal worst
            while not stop:
                began = loop.time()
                await asyncio.sleep(0.01)
                worst = max(worst, loop.time() - began)

        watching = asyncio.create_task(watch())
        batch = await provider.submit_batch("key-1", rows(*(f"wiersz {number}" for number in range(1500))))
        await ended(provider, batch)
        assert len(await results(provider, batch)) == 1500
        stop = True
        await watching
        return worst

    assert using(made(fake, "gemini"), work) < 1.0
    assert using(made(fake, "chat"), work) < 1.0


def test_both_take_batches() -> None:
    for provider in (
        OpenAIProvider(ProviderConfig("m", "gpt-x", None, secret())),
        GeminiProvider(ProviderConfig("m", "gemini-x", None, secret())),
    ):
        assert isinstance(provider, BatchProvider)
