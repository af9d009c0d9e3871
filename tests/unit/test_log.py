"""The log: one line per event, in order, bounded, without secrets, and cheap."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from ai_worker import log
from ai_worker.log import Event, Log, of_item
from ai_worker.models import Item, Secret, Task, TaskStatus
from ai_worker.redaction import LONGEST_VALUE

SECRETS = [
    "sk-proj-abcDEF_0123456789",
    "AIzaSyA1234567890abcdefghijklmnop",
    "aiw_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4",
    "Authorization: Bearer eyJhbGciOi.J9-abc",
    "mysql://user:geheim@db/ai_worker",
    "https://h/v1?key=abc123&x=1",
    "password=geheim",
    "api_key=geheim",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:], level = before
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()
    log._state = log._State()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lines(level)` sets the log up; `lines.read()` gives what was written since."""
    stream = io.StringIO()

    class Lines:
        def __call__(self, level: str = "debug", format: str = "json") -> None:
            monkeypatch.setattr(sys, "stderr", stream)  # not before the test runs: pytest puts its own there
            log.configure(level, format)  # type: ignore[arg-type]  # plain words for its Literals

        def read(self) -> list[dict[str, Any]]:
            return [json.loads(line) for line in stream.getvalue().splitlines()]

        text = property(lambda _: stream.getvalue())

    return Lines()


def an_item() -> Item:
    task = Task(5, 1, "correction", "", {}, 3, 0, TaskStatus.IN_PROGRESS)
    return Item(77, task, "Zażółć", {}, 2, 0, b"x" * 16, uuid.UUID(int=1))


def test_a_line_begins_with_time_level_and_event_and_carries_the_item(lines: Any) -> None:
    lines()
    Log(worker=7).bind(host="ż").__call__(Event.DONE, **of_item(an_item(), "gpt"), tokens_input=3)
    (line,) = lines.read()
    assert list(line)[:3] == ["time", "level", "event"]
    assert line["time"].endswith("Z")
    assert abs(time.time() - _seconds(line["time"])) < 5
    del line["time"]
    assert line == {
        "level": "info",
        "event": "DONE",
        "worker": 7,
        "host": "ż",
        "task": 5,
        "item": 77,
        "attempt": 2,
        "operation_uuid": str(uuid.UUID(int=1)),
        "model": "gpt",
        "tokens_input": 3,
    }
    assert "ż" in lines.text  # readable, not \u escapes


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_the_users_stages_are_events_of_ours_at_their_levels() -> None:
    stages = {name: logging.getLevelName(Event[name].level) for name in ("START", "FETCH", "PROMPT", "RESULT", "DONE", "ERROR")}
    assert stages == {"START": "INFO", "FETCH": "INFO", "PROMPT": "DEBUG", "RESULT": "DEBUG", "DONE": "INFO", "ERROR": "ERROR"}


def test_every_event_says_what_it_is() -> None:
    for event in Event:
        assert event.says
        assert event.fields
        assert event.level in (log.DEBUG, log.INFO, log.WARNING, log.ERROR)


@pytest.mark.parametrize(("level", "written"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 1)])
def test_lower_levels_are_not_written(lines: Any, level: str, written: int) -> None:
    lines(level)
    for event in (Event.PROMPT, Event.DONE, Event.ERROR):
        Log()(event)
    assert len(lines.read()) == written
    assert Log.enabled(log.DEBUG) is (level == "debug")


def test_an_error_may_be_a_warning(lines: Any) -> None:
    lines("warning")
    Log()(Event.ERROR, level=log.WARNING, kind="overloaded")
    assert [line["level"] for line in lines.read()] == ["warning"]
    log.configure("error", "json")
    Log()(Event.ERROR, level=log.WARNING)
    assert len(lines.read()) == 1


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("secret", SECRETS)
def test_what_looks_like_a_secret_is_hidden_wherever_it_stands(lines: Any, format: str, secret: str) -> None:
    lines(format=format)
    hidden = secret.removeprefix("Authorization: Bearer ").removeprefix("mysql://user:").removesuffix("@db/ai_worker")
    hidden = hidden.split("=")[-1] if "=" in hidden and not hidden.startswith("http") else hidden
    hidden = "abc123" if secret.startswith("http") else hidden
    Log()(Event.ERROR, message=f'before "{secret}" after', nested={"deep": {"list": [secret]}})
    Log()(Event.ERROR, exc_info=RuntimeError(secret))
    structlog.get_logger().error("a plug-in", detail=secret)
    logging.getLogger("sdk").error("said %s", secret)
    assert lines.text.count("***") >= 5
    assert hidden not in lines.text
    assert "before" in lines.text
    assert "after" in lines.text
    assert "RuntimeError" in lines.text


@pytest.mark.parametrize(
    "name", ["api_key", "apikey", "password", "db_password", "Authorization", "master_key", "secret", "token"]
)
def test_what_a_name_gives_away_is_hidden(lines: Any, name: str) -> None:
    lines()
    Log()(Event.ERROR, **{name: "x1"}, options={"headers": {name: "x2"}})
    (line,) = lines.read()
    assert line[name] == "***"
    assert line["options"] == {"headers": {name: "***"}}


def test_token_counts_are_no_secrets(lines: Any) -> None:
    lines()
    Log()(Event.DONE, tokens_input=1, tokens_output=2, task="a", key_count=3)
    (line,) = lines.read()
    assert (line["tokens_input"], line["tokens_output"], line["key_count"]) == (1, 2, 3)


def test_secret_values_do_not_show(lines: Any) -> None:
    lines()
    Log()(Event.ERROR, a=Secret("geheim"), b=SecretStr("geheim"), c=[Secret("geheim")])
    assert lines.read()
    assert "geheim" not in lines.text


def test_the_log_is_no_copy_of_the_rows(lines: Any) -> None:
    lines()
    Log()(Event.PROMPT, prompt="ą" * 1_000_000)
    (line,) = lines.read()
    assert line["prompt"].startswith("ą" * LONGEST_VALUE)
    assert line["prompt"].endswith("… (+998000 characters)")
    assert len(line["prompt"]) < LONGEST_VALUE + 50


def test_a_line_is_a_line_whatever_is_in_it(lines: Any) -> None:
    lines()
    Log()(Event.PROMPT, prompt='a\nb\r\n"c"\x00\ud800\u2028🐝')
    Log()(Event.DONE)
    assert lines.text.count("\n") == 2


def test_lone_surrogates_do_not_stop_a_byte_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure("debug", "json")
        Log()(Event.PROMPT, prompt="a\udc80b ż")
    assert json.loads((tmp_path / "log").read_text(encoding="utf-8"))["event"] == "PROMPT"


def test_a_log_that_cannot_be_written_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure("debug", "json")
    os.close(reader)
    Log()(Event.DONE)
    with pytest.raises(BrokenPipeError):
        stream.close()  # the pipe really is broken, and what was written really went there
    Log()(Event.DONE)  # closed by now


def test_libraries_come_out_in_the_same_shape(lines: Any) -> None:
    lines("info")
    logging.getLogger("httpx2").info("HTTP Request: one for each row")
    logging.getLogger("asyncio").warning("slow %s", "callback")
    logging.getLogger("broken").error("one %s", *("two", "three"))
    first, second = lines.text.splitlines()
    assert json.loads(first) | {"time": ""} == {
        "time": "",
        "level": "warning",
        "event": "LIBRARY",
        "logger": "asyncio",
        "message": "slow callback",
    }
    assert json.loads(second)["message"] == "one %s"
    assert json.loads(second)["level"] == "error"


def test_a_terminal_gets_readable_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    log.configure("info", "auto")
    Log(worker=7)(Event.DONE, text="gęś")
    assert "[info     ] DONE" in stream.getvalue()
    assert "text='gęś'" in stream.getvalue() or "text=gęś" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_anything_else_gets_json(lines: Any) -> None:
    lines("info", "auto")
    Log()(Event.DONE)
    assert lines.read()[0]["event"] == "DONE"


def test_the_journal_gets_priorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.configure("debug", "auto")
        for event in (Event.PROMPT, Event.DONE, Event.RETRY, Event.ERROR):
            Log()(event)
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # another stream than this one
        log.configure("debug", "auto")
        Log()(Event.DONE)
    prefixes = [line.partition("{")[0] for line in (tmp_path / "journal").read_text().splitlines()]
    assert prefixes == ["<7>", "<6>", "<4>", "<3>", ""]


def test_nothing_is_written_before_it_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    Log()(Event.ERROR, message="x")
    assert capsys.readouterr() == ("", "")


def test_logging_is_cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DONE is written for each item, thousands a second. The bounds are ten times what a quiet machine takes."""
    with (tmp_path / "log").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log.configure("info", "json")
        write = Log(worker=7)
        fields = of_item(an_item(), "gpt")

        def microseconds(event: Event) -> float:
            began = time.process_time()
            for _ in range(2000):
                write(event, **fields, tokens_input=812, tokens_output=300, cost="0.0004", latency_ms=812)
            return (time.process_time() - began) / 2000 * 1e6

        assert min(microseconds(Event.PROMPT) for _ in range(3)) < 10
        assert min(microseconds(Event.DONE) for _ in range(3)) < 110
