"""The fake provider is what other tests believe: what it counts and when it strikes is tested here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fake_provider import FakeProvider, Rule, correct
from tests.fake_provider.wire import row_text


def http(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 -- our own loopback server
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 -- the same
        return json.load(response)


def chat(url: str, text: str) -> Any:
    user = f"Oto tekst:\n<<<00112233445566aa>>>\n{text}\n<<<00112233445566aa>>>\n"
    return http(f"{url}/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": user}]})


def strikes(rule: Rule, texts: list[str]) -> str:
    """Which of the requests with these texts were struck, as a row of x and dots."""
    seen = []
    with FakeProvider() as fake:
        fake.script(rule)
        for text in texts:
            try:
                chat(fake.url, text)
            except urllib.error.HTTPError as error:
                error.close()
                seen.append("x")
            else:
                seen.append(".")
        assert fake.counts()["per_fault"] == ({rule.fault: seen.count("x")} if "x" in seen else {})
    return "".join(seen)


@pytest.mark.parametrize(
    ("rule", "struck"),
    [
        (Rule("500"), "xxxxxx"),
        (Rule("500", times=2), "xx...."),
        (Rule("500", share=0.5), ".x.x.x"),
        (Rule("500", contains="4"), "....x."),
        (Rule("500", share=0), "......"),
    ],
)
def test_a_rule_strikes_whom_it_names(rule: Rule, struck: str) -> None:
    assert strikes(rule, [f"wiersz {n}" for n in range(6)]) == struck


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fault '418'"):
        Rule("418")


@pytest.mark.parametrize(
    "text", ["Zażółć", "dwa\nwiersze\n", "", "<<<ffffffffffffffff>>>\nobcy znacznik", "a <<<00112233445566aa>>> b"]
)
def test_the_row_text_stands_between_the_markers(text: str) -> None:
    marker = "<<<00112233445566aa>>>"
    assert row_text(f"Popraw tekst między {marker} a {marker}:\n{marker}\n{text}\n{marker}\nDziękuję.") == text


def test_without_markers_the_whole_message_is_the_row_text() -> None:
    assert row_text("cały tekst") == "cały tekst"


def test_a_thousand_requests_in_flight() -> None:
    async def ask_all(url: str) -> None:
        async def ask(session: aiohttp.ClientSession, number: int) -> None:
            body = {"model": "m", "messages": [{"role": "user", "content": f"wiersz {number}"}]}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                assert json.loads((await response.json())["choices"][0]["message"]["content"])["text"] == correct(
                    f"wiersz {number}"
                )

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(ask(session, number) for number in range(1000)))

    with FakeProvider(gather=1000) as fake:
        asyncio.run(ask_all(fake.openai_url))
        counts = fake.counts()
    assert counts["peak_in_flight"] == 1000
    assert (counts["requests"], counts["answered"], counts["in_flight"], counts["distinct_texts"]) == (1000, 1000, 0, 1000)


@contextlib.contextmanager
def started(*options: str) -> Iterator[str]:
    """The URL of a fake provider in a process of its own."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fake_provider", "--port", "0", *options]
    with subprocess.Popen(command, cwd=root, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.terminate()
        assert running.wait(10) == 0


@pytest.fixture
def process() -> Iterator[str]:
    with started("--latency-ms", "1") as url:
        yield url


def test_the_command_line_sets_limits_batches_and_how_tokens_are_counted() -> None:
    limits = "--requests-per-minute 6 --tokens-per-minute 500 --max-in-flight 3 --limit-count bucket --limit-burst 0.5"
    more = "--limit-seconds 30 --limit-per model --limit-charge input --no-limit-headers --no-retry-after"
    with started(*limits.split(), *more.split(), "--count", "prompt", "--batch-seconds", "3", "--batch-hold") as url:
        assert http(f"{url}/_limits") == {
            "requests_per_minute": 6.0,
            "tokens_per_minute": 500.0,
            "max_in_flight": 3,
            "count": "bucket",
            "seconds": 30.0,
            "burst": 0.5,
            "per": "model",
            "charge": "input",
            "headers": False,
            "retry_after": False,
        }
        settings = http(f"{url}/_batches")["settings"]
        assert (settings["seconds"], settings["hold"]) == (3.0, True)
        assert chat(url, "raz")["usage"]["prompt_tokens"] == 16  # 61 characters


def test_as_a_process_it_is_controlled_over_http(process: str) -> None:
    assert http(f"{process}/_script", [{"fault": "429", "contains": "zły", "times": 1}]) == {"rules": 1}
    for _ in range(2):
        chat(process, "dobry")
    with pytest.raises(urllib.error.HTTPError, match="429"):
        chat(process, "zły")
    chat(process, "zły")
    counts = http(f"{process}/_counts")
    assert (counts["requests"], counts["answered"], counts["distinct_texts"]) == (4, 4, 2)
    assert counts["per_text"] == {"dobry": 2, "zły": 2}
    assert [one["fault"] for one in http(f"{process}/_requests")] == [None, None, "429", None]
    with pytest.raises(urllib.error.HTTPError, match="400"):
        http(f"{process}/_script", [{"fault": "no such"}])
    http(f"{process}/_reset", {})
    assert http(f"{process}/_counts")["requests"] == 0
