"""Which items the log tells of, what it says of the others, and that it can be set up anew while it is written."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from ai_worker import log
from ai_worker.config import load_settings
from ai_worker.errors import ConfigurationError
from ai_worker.log import Event, Log

SetUp = Callable[..., Callable[[], list[dict[str, Any]]]]


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:], level = before
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    log._state = log._State()


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """Sets the log up, and gives what then reads its lines."""

    def to(level: str = "info", sample: float = 1) -> Callable[[], list[dict[str, Any]]]:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure(level, "json", sample)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    return to


@pytest.mark.parametrize("step", [1, 2, 10, 100, 1000], ids=lambda step: f"every {step}. number")
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_items_are_chosen_evenly_by_their_number(set_up: SetUp, share: float, step: int) -> None:
    set_up(sample=share)
    kept = [number for number in range(7_000_000, 7_000_000 + 20_000 * step, step) if Log.keeps(number)]
    assert len(kept) / 20_000 == pytest.approx(share, rel=0.15, abs=0.0005)


def test_more_items_are_chosen_as_the_share_grows(set_up: SetUp) -> None:
    """So that a sample at another share, or of another worker, tells of the same items."""
    set_up(sample=0.01)
    few = {number for number in range(10_000) if Log.keeps(number)}
    set_up(sample=0.1)
    assert few < {number for number in range(10_000) if Log.keeps(number)}


def test_all_or_none_is_all_or_none(set_up: SetUp) -> None:
    set_up(sample=1)
    assert Log.keeps_all()
    assert all(map(Log.keeps, range(10_000)))
    set_up(sample=0)
    assert not Log.keeps_all()
    assert not any(map(Log.keeps, range(10_000)))


def test_what_is_not_written_at_all_is_chosen_by_nobody(set_up: SetUp) -> None:
    """A worker need not make lines that are below its level."""
    set_up("warning", 1)
    assert not Log.keeps_all()
    assert not Log.keeps(1)


def test_it_tells_what_it_left_out_now_and_then(set_up: SetUp) -> None:
    read = set_up(sample=0.5)
    worker = Log(worker=7)
    worker.each(Event.DONE, [{"item": 1}], left_out=3)
    worker.each(Event.DONE, [], left_out=2)
    worker.each(Event.FETCH, [], left_out=1)
    worker.tell_left_out()  # that is not yet due
    worker.tell_left_out(every=0)
    worker.tell_left_out(every=0)  # nothing since
    done, told = read()
    assert (done["event"], done["item"]) == ("DONE", 1)
    assert {name: told[name] for name in ("event", "worker", "share", "done", "fetch")} == {
        "event": "LEFT_OUT",
        "worker": 7,
        "share": 0.5,
        "done": 5,
        "fetch": 1,
    }


def test_below_the_level_nothing_was_left_out(set_up: SetUp) -> None:
    read = set_up("warning", 0)
    Log().each(Event.DONE, [], left_out=3)
    log.configure("info", "json", 0)
    Log().tell_left_out(every=0)
    assert read() == []


def test_warnings_and_errors_are_always_written(set_up: SetUp) -> None:
    read = set_up(sample=0)
    Log()(Event.RETRY, item=1)
    Log()(Event.ERROR, item=1)
    Log()(Event.START)
    assert [line["event"] for line in read()] == ["RETRY", "ERROR", "START"]


def test_setting_it_up_anew_loses_no_line_and_tears_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    stop = threading.Event()
    written = [0, 0, 0]

    def write(thread: int) -> None:
        library = logging.getLogger(f"library.{thread}")
        while not stop.is_set():
            Log(thread=thread)(Event.RETRY, number=written[thread], text="x" * 500)
            library.warning("number %d", written[thread])
            written[thread] += 1

    with path.open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure("info", "json")
        threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for number in range(300):
            log.configure(("debug", "info", "warning")[number % 3], "json", (number % 2) / 2)
        stop.set()
        for thread in threads:
            thread.join()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert min(written) > 0
    for thread, count in enumerate(written):
        own = [line["number"] for line in lines if line.get("thread") == thread]
        of_library = [line["message"] for line in lines if line.get("logger") == f"library.{thread}"]
        assert own == list(range(count))
        assert of_library == [f"number {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("written", "share"), [("1", 1), ("0", 0), ("0.01", 0.01), ("1/100", 0.01), ("1 / 4", 0.25), ("2/2", 1), ("", 1)]
)
def test_a_share_may_be_written_as_a_fraction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, share: float
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_LOG_SAMPLE", written)
    assert load_settings().log_sample == share


@pytest.mark.parametrize("written", ["2", "-0.1", "1/0", "3/2", "a/b", "1/2/3", "nan", "few"])
def test_what_is_no_share_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_LOG_SAMPLE", written)
    with pytest.raises(ConfigurationError, match=r"AI_WORKER_LOG_SAMPLE is .* must be the share of items"):
        load_settings()
