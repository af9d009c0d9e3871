"""The fake provider's batches, as the vendors' own clients see them: what runs, what is lost, what is paid."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from google import genai
from google.genai import errors, types

from tests.fake_provider import BatchSettings, FakeProvider, Rule, correct, tokens_for
from tests.fake_provider.sdk import gemini_client, openai_client

TEXTS = [f"wiersz {number}" for number in range(6)]


@pytest.fixture(scope="module")
def running() -> Iterator[FakeProvider]:
    with FakeProvider(batches=BatchSettings(seconds=0.05)) as fake:
        yield fake


@pytest.fixture
def fake(running: FakeProvider) -> FakeProvider:
    running.reset()
    return running


@pytest.fixture
def client(fake: FakeProvider) -> Iterator[openai.OpenAI]:
    with openai_client(fake) as one:
        yield one


@pytest.fixture
def gemini(fake: FakeProvider) -> Iterator[genai.Client]:
    one = gemini_client(fake)
    yield one
    one.close()


def lines(texts: list[str], **changes: Any) -> bytes:
    rows = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-x", "messages": [{"role": "user", "content": text}]},
            **changes,
        }
        for number, text in enumerate(texts)
    ]
    return "\n".join(json.dumps(row) for row in rows).encode()


def upload(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("work.jsonl", content), purpose="batch").id


def create(client: openai.OpenAI, content: bytes | None = None, **changes: Any) -> openai.types.Batch:
    arguments: dict[str, Any] = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": {"key": "k1"}}
    return client.batches.create(
        input_file_id=upload(client, lines(TEXTS) if content is None else content), **arguments | changes
    )


def reached(fake: FakeProvider, status: str, number: int = 0) -> None:
    assert fake.wait_until(lambda: len(fake.batches.created) > number and fake.batches.created[number].status == status), [
        batch.status for batch in fake.batches.created
    ]


def results(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in client.files.content(file).text.splitlines()]


# -- OpenAI ------------------------------------------------------------------------------------------------------------


def test_a_batch_of_openai_runs_through_its_states_and_answers_each_row_once(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.set_batches(hold=True)
    made = create(client)
    assert (made.status, made.metadata, made.output_file_id, made.endpoint) == (
        "validating",
        {"key": "k1"},
        None,
        "/v1/chat/completions",
    )
    reached(fake, "in_progress")
    running = client.batches.retrieve(made.id)
    assert running.request_counts is not None
    assert (running.status, running.request_counts.total, running.request_counts.completed) == ("in_progress", 6, 0)
    assert fake.batches.release() == 1
    reached(fake, "completed")
    done = client.batches.retrieve(made.id)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 6, 0)
    assert done.error_file_id is None
    assert done.model == "gpt-x"
    answers = results(client, done.output_file_id)
    assert sorted(one["custom_id"] for one in answers) == [f"row-{number}" for number in range(6)]
    assert [one["custom_id"] for one in answers] != [f"row-{number}" for number in range(6)]  # unordered
    for one in answers:
        text = TEXTS[int(one["custom_id"][4:])]
        assert (one["error"], one["response"]["status_code"]) == (None, 200)
        said = one["response"]["body"]["choices"][0]["message"]["content"]
        assert json.loads(said) == {"text": correct(text)}
    assert done.usage is not None
    assert done.usage.input_tokens == sum(tokens_for(text).input for text in TEXTS)
    counts = fake.counts()
    assert counts["batch_rows"] == dict.fromkeys(TEXTS, 1)
    assert counts["requests"] == 0  # rows are not calls
    assert fake.texts()["wiersz 0"] == {"requests": 0, "rows": 1, "paid": 1}
    assert [(one["status"], one["metadata"], one["good"]) for one in counts["batches"]] == [("completed", {"key": "k1"}, 6)]


def test_responses_run_in_batches_too(fake: FakeProvider, client: openai.OpenAI) -> None:
    content = lines(["raz"], url="/v1/responses", body={"model": "gpt-x", "input": "raz"})
    made = create(client, content, endpoint="/v1/responses")
    reached(fake, "completed")
    (one,) = results(client, client.batches.retrieve(made.id).output_file_id)
    assert one["response"]["body"]["object"] == "response"


def test_a_row_fails_alone_as_the_script_says(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(
        Rule("400", contains="wiersz 2"), Rule("refused", contains="wiersz 3"), Rule("500", contains="wiersz 4", at="row")
    )
    made = create(client)
    reached(fake, "completed")
    done = client.batches.retrieve(made.id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (4, 2)
    bad = {one["custom_id"]: one["response"]["status_code"] for one in results(client, done.error_file_id)}
    assert bad == {"row-2": 400, "row-4": 500}
    assert fake.batches.rows_per_text == dict.fromkeys(["wiersz 0", "wiersz 1", "wiersz 3", "wiersz 5"], 1)
    messages: Any = [{"role": "user", "content": "wiersz 4"}]
    assert client.chat.completions.create(model="gpt-x", messages=messages).choices  # at="row" spares single calls


def test_an_expired_batch_keeps_and_bills_the_rows_that_were_done(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.set_batches(expire_after=2)
    made = create(client)
    reached(fake, "expired")
    expired = client.batches.retrieve(made.id)
    assert [one["custom_id"] for one in sorted(results(client, expired.output_file_id), key=str)] == ["row-0", "row-1"]
    undone = results(client, expired.error_file_id)
    assert {one["error"]["code"] for one in undone} == {"batch_expired"}
    assert sorted(one["custom_id"] for one in undone) == ["row-2", "row-3", "row-4", "row-5"]
    assert fake.batches.rows_per_text == {"wiersz 0": 1, "wiersz 1": 1}
    create(client)
    reached(fake, "completed", 1)  # one batch expires, the next does not


def test_a_cancelled_batch_keeps_what_was_done(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.set_batches(hold=True, hold_after=3)
    made = create(client)
    assert fake.wait_until(lambda: fake.batches.created[0].good == 3)
    assert client.batches.cancel(made.id).status == "cancelling"
    reached(fake, "cancelled")
    cancelled = client.batches.retrieve(made.id)
    assert len(results(client, cancelled.output_file_id)) == 3
    assert {one["error"]["code"] for one in results(client, cancelled.error_file_id)} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'cancelled'"):
        client.batches.cancel(made.id)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"{not json", "invalid_json_line"),
        (b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}', "missing_required_parameter"),
        (lines(TEXTS, custom_id="same"), "duplicate_custom_id"),
        (lines(TEXTS, url="/v1/responses"), "invalid_url"),
        (lines(TEXTS) + b"\n" + lines(["x"], custom_id="x", body={"model": "other", "messages": []}), "mismatched_model"),
    ],
)
def test_a_batch_fails_whole_when_its_file_is_wrong(fake: FakeProvider, client: openai.OpenAI, content: bytes, code: str) -> None:
    made = create(client, content)
    reached(fake, "failed")
    failed = client.batches.retrieve(made.id)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert {one.code for one in failed.errors.data} == {code}
    assert (failed.output_file_id, failed.error_file_id, fake.batches.rows_done) == (None, None, 0)


def test_a_batch_fails_whole_when_the_script_says_so(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("batch_invalid", at="create", times=1))
    create(client)
    reached(fake, "failed")
    create(client)
    reached(fake, "completed", 1)


def test_batches_are_listed_newest_first_by_pages(fake: FakeProvider, client: openai.OpenAI) -> None:
    made = [create(client, metadata={"key": f"k{number}"}).id for number in range(5)]
    page = client.batches.list(limit=2)
    assert ([one.id for one in page.data], page.has_more) == ([made[4], made[3]], True)
    assert [one.id for one in client.batches.list(limit=2)] == made[::-1]  # the client turns the pages
    assert [one.metadata for one in client.batches.list(after=made[1])] == [{"key": "k0"}]
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.batches.list(limit=101)


def test_what_is_not_allowed_is_refused_and_makes_no_batch(fake: FakeProvider, client: openai.OpenAI) -> None:
    for wrong in (
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {str(number): "v" for number in range(17)}},
    ):
        with pytest.raises(openai.BadRequestError):
            create(client, **wrong)
    with pytest.raises(openai.NotFoundError, match="No such File object: file-none"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"a"), purpose="vision")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    assert fake.batches.created == []


def test_files_are_kept_listed_and_deleted(fake: FakeProvider, client: openai.OpenAI) -> None:
    first, second = upload(client, b"one\n"), upload(client, b"two, more\n")
    assert client.files.content(first).read() == b"one\n"
    assert [(one.id, one.bytes, one.filename) for one in client.files.list(purpose="batch", order="asc")] == [
        (first, 4, "work.jsonl"),
        (second, 10, "work.jsonl"),
    ]
    assert [one.id for one in client.files.list(limit=1)] == [second, first]
    assert client.files.delete(first).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(first)
    assert [one["id"] for one in fake.files] == [second]
    assert fake.counts()["batch_requests"] == {"upload": 2, "results": 2, "list": 3, "delete": 1}


def test_the_same_idempotency_key_gives_the_same_batch_again(fake: FakeProvider, client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "ours-1"}
    first, again = create(client, extra_headers=headers), create(client, extra_headers=headers)
    assert (again.id, len(fake.batches.created)) == (first.id, 1)
    fake.set_batches(idempotency=False)
    assert create(client, extra_headers=headers).id != first.id


def test_a_lost_answer_leaves_the_file_and_the_batch_behind(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("lost", at="upload", contains="work", times=1), Rule("lost", at="create", contains='"k1"', times=1))
    with pytest.raises(openai.APIConnectionError):
        upload(client, lines(TEXTS))
    assert len(fake.files) == 1
    with pytest.raises(openai.APIConnectionError):
        create(client)
    (found,) = client.batches.list()
    assert found.metadata == {"key": "k1"}
    reached(fake, "completed")
    assert fake.batches.rows_per_text == dict.fromkeys(TEXTS, 1)
    assert fake.per_fault == {"lost": 2}


def test_an_http_error_leaves_nothing_behind(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("503", at="upload", times=1), Rule("429_quota", at="create", times=1), Rule("500", at="poll", times=1))
    with pytest.raises(openai.InternalServerError):
        upload(client, lines(TEXTS))
    assert fake.files == []
    with pytest.raises(openai.RateLimitError):
        create(client)
    assert fake.batches.created == []
    made = create(client)
    with pytest.raises(openai.InternalServerError):
        client.batches.retrieve(made.id)
    assert client.batches.retrieve(made.id).id == made.id


def test_a_late_answer_is_late_but_the_batch_is_there_at_once(fake: FakeProvider, client: openai.OpenAI) -> None:
    fake.script(Rule("slow", at="create", delay_ms=5000))
    with pytest.raises(openai.APITimeoutError):
        create(client, timeout=httpx2.Timeout(0.3))
    assert len(fake.batches.created) == 1


# -- Gemini ------------------------------------------------------------------------------------------------------------


def inlined(texts: list[str]) -> list[types.InlinedRequest]:
    config = types.GenerateContentConfig(system_instruction="Popraw.", temperature=0.2)
    content = [types.Content(role="user", parts=[types.Part(text=text)]) for text in texts]
    return [
        types.InlinedRequest(contents=[one], config=config, metadata={"key": f"row-{number}"})
        for number, one in enumerate(content)
    ]


def create_gemini(gemini: genai.Client, name: str = "k1", texts: list[str] = TEXTS) -> types.BatchJob:
    return gemini.batches.create(model="gemini-x", src=inlined(texts), config={"display_name": name})


def answers(job: types.BatchJob) -> list[types.InlinedResponse]:
    assert job.dest is not None
    assert job.dest.inlined_responses is not None
    return job.dest.inlined_responses


def test_a_batch_of_gemini_runs_through_its_states_and_answers_in_order(fake: FakeProvider, gemini: genai.Client) -> None:
    fake.set_batches(hold=True)
    made = create_gemini(gemini)
    assert (made.state, made.display_name) == (types.JobState.JOB_STATE_PENDING, "k1")
    assert made.name is not None
    reached(fake, "in_progress")
    assert gemini.batches.get(name=made.name).state == types.JobState.JOB_STATE_RUNNING
    fake.batches.release()
    reached(fake, "completed")
    done = gemini.batches.get(name=made.name)
    assert (done.state, done.done) == (types.JobState.JOB_STATE_SUCCEEDED, True)
    assert [one.metadata for one in answers(done)] == [{"key": f"row-{number}"} for number in range(6)]
    for text, one in zip(TEXTS, answers(done), strict=True):
        assert one.response is not None
        assert json.loads(one.response.text or "") == {"text": correct(text)}
        assert one.response.usage_metadata is not None
        assert one.response.usage_metadata.prompt_token_count == tokens_for(text).input
    assert fake.batches.rows_per_text == dict.fromkeys(TEXTS, 1)
    (counted,) = fake.counts()["batches"]
    assert (counted["vendor"], counted["displayName"], counted["status"]) == ("gemini", "k1", "completed")


def test_rows_of_gemini_fail_alone_and_metadata_may_be_left_out(fake: FakeProvider, gemini: genai.Client) -> None:
    fake.set_batches(gemini_metadata=False)
    fake.script(Rule("500", contains="wiersz 1"))
    made = create_gemini(gemini)
    reached(fake, "completed")
    said = answers(gemini.batches.get(name=made.name or ""))
    assert [one.metadata for one in said] == [None] * 6
    assert [bool(one.response) for one in said] == [True, False, True, True, True, True]
    assert said[1].error is not None
    assert said[1].error.code == 13


@pytest.mark.parametrize(("keeps", "paid"), [(False, {}), (True, {"wiersz 0": 1, "wiersz 1": 1})])
def test_an_expired_batch_of_gemini_has_no_results_or_some(
    fake: FakeProvider, gemini: genai.Client, keeps: bool, paid: dict[str, int]
) -> None:
    fake.set_batches(expire_after=2, gemini_keeps=keeps)
    made = create_gemini(gemini)
    reached(fake, "expired")
    expired = gemini.batches.get(name=made.name or "")
    assert expired.state == types.JobState.JOB_STATE_EXPIRED
    assert fake.batches.rows_per_text == paid
    if keeps:
        assert [bool(one.response) for one in answers(expired)] == [True, True, False, False, False, False]
    else:
        assert expired.dest is None


def test_a_batch_of_gemini_is_cancelled(fake: FakeProvider, gemini: genai.Client) -> None:
    fake.set_batches(hold=True)
    made = create_gemini(gemini)
    reached(fake, "in_progress")
    gemini.batches.cancel(name=made.name or "")
    reached(fake, "cancelled")
    cancelled = gemini.batches.get(name=made.name or "")
    assert cancelled.state == types.JobState.JOB_STATE_CANCELLED
    assert [one.error.code if one.error else None for one in answers(cancelled)] == [1] * 6
    with pytest.raises(errors.ClientError):
        gemini.batches.cancel(name=made.name or "")


def test_batches_of_gemini_are_listed_by_pages_and_deleted(fake: FakeProvider, gemini: genai.Client) -> None:
    for number in range(5):
        create_gemini(gemini, f"k{number}", TEXTS[:1])
    listed = list(gemini.batches.list(config={"page_size": 2}))
    assert [one.display_name for one in listed] == ["k4", "k3", "k2", "k1", "k0"]
    gemini.batches.delete(name=listed[0].name or "")
    with pytest.raises(errors.ClientError, match="NOT_FOUND"):
        gemini.batches.get(name=listed[0].name or "")
    assert len(fake.counts()["batches"]) == 5  # it was created all the same


def test_gemini_loses_answers_and_fails_batches_as_the_script_says(fake: FakeProvider, gemini: genai.Client) -> None:
    fake.script(Rule("lost", at="create", contains="k1", times=1), Rule("batch_invalid", at="create", contains="k2"))
    with pytest.raises(httpx2.RemoteProtocolError):
        create_gemini(gemini)
    (found,) = gemini.batches.list()
    assert found.display_name == "k1"
    made = create_gemini(gemini, "k2")
    reached(fake, "failed", 1)
    assert gemini.batches.get(name=made.name or "").state == types.JobState.JOB_STATE_FAILED
    with pytest.raises(errors.ClientError, match="exceeds the limit"):
        create_gemini(gemini, "big", ["x" * 21 * 1024 * 1024])


# -- control -----------------------------------------------------------------------------------------------------------


def http(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as response:  # noqa: S310 -- our own loopback server
        return json.load(response)


def test_batches_are_controlled_over_http(fake: FakeProvider, client: openai.OpenAI) -> None:
    assert http(f"{fake.url}/_batches", {"hold": True})["settings"] == {
        "seconds": 0.05,
        "hold": True,
        "hold_after": 0,
        "expire_after": None,
        "expire_times": 1,
        "idempotency": True,
        "gemini_metadata": True,
        "gemini_keeps": False,
    }
    with pytest.raises(urllib.error.HTTPError, match="400"):
        http(f"{fake.url}/_batches", {"no such": 1})
    create(client)
    reached(fake, "in_progress")
    assert http(f"{fake.url}/_batches/release", {}) == {"released": 1}
    reached(fake, "completed")
    told = http(f"{fake.url}/_batches")
    assert (told["batch_rows_done"], told["batch_tokens"]["input"], len(told["files"])) == (6, 6 * 12, 1)
    http(f"{fake.url}/_reset", {})
    told = http(f"{fake.url}/_batches")
    assert (told["batches"], told["files"], told["settings"]["hold"]) == ([], [], False)


@pytest.mark.parametrize(
    ("fault", "at"), [("500", "nowhere"), ("lost", "call"), ("html", "create"), ("batch_invalid", "upload"), ("418", "poll")]
)
def test_a_rule_that_makes_no_sense_there_is_refused(fault: str, at: str) -> None:
    with pytest.raises(ValueError, match="unknown"):
        Rule(fault, at=at)
