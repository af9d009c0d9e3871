"""The commands of docs/http-api.md are run as they stand, and answer what the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Sql
from tests.integration.webs import serving
from tests.marks import ON_ONE_SERVER
from tests.servers import Programs

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"

pytestmark = ON_ONE_SERVER


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_commands_of_the_page_run_as_they_stand(programs: Programs, database_url: str, sql: Sql) -> None:
    sql("ALTER TABLE task AUTO_INCREMENT = 7")  # the ids that the page names
    sql("ALTER TABLE task_item AUTO_INCREMENT = 15")
    sql("INSERT INTO ai_model (name, provider) VALUES ('gpt', 'echo')")
    first, second = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    made, serve = first.splitlines()
    token = programs.run(*shlex.split(made, comments=True)[1:]).stdout.strip()
    assert shlex.split(serve, comments=True) == ["ai-worker", "web"]  # which is what `serving` does, on another port
    commands = [each for each in second.replace("\\\n", "").splitlines() if each.startswith("curl ")]
    expected = re.findall(r"^# (.*)$", second, re.M)
    answers = []
    with serving(database_url) as web:
        for command in commands:
            script = command.replace("http://127.0.0.1:8080", web.base)
            ended = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script],
                env={"TOKEN": token},
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
            )
            answers.append(json.loads(ended.stdout))
            # A worker does them while the next command is typed.
            sql("UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'Poszedłem do domu.'")
    submitted, listed, waited, reviewed = answers
    assert [submitted] == [json.loads(each) for each in expected]
    assert [each["external_key"] for each in listed["items"]] == [None, "a-7"]
    assert (waited["id_task_item"], waited["text_corrected"]) == (15, "Poszedłem do domu.")
    assert (reviewed["id_task_item"], reviewed["review"]) == (15, "ACCEPTED")
