"""`ai-worker prompt` on real servers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_worker.cli import main
from tests.conftest import Sql
from tests.integration.test_prompt_library import SHOUT, version
from tests.integration.worker_runs import add_model, add_task, task_of
from tests.unit.test_prompt_steps import STEPS


@pytest.fixture(autouse=True)
def _settings(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AI_WORKER_DB_URL", database_url)
    monkeypatch.setenv("AI_WORKER_LOG_LEVEL", "error")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """`told("prompt", "list")`: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def write(name: str, source: str) -> str:
    Path(name).write_text(source, encoding="utf-8")
    return name


def test_a_pushed_prompt_is_listed_shown_and_used_by_new_tasks(told: Any, sql: Sql) -> None:
    assert told("prompt", "push", write("shout.md", SHOUT), "--by", "Ala") == (
        0,
        "shout, version 1: pushed; new tasks of the type shout use it\n",
        "",
    )
    assert told("prompt", "push", "shout.md")[1] == "shout, version 1: is in the library already\n"
    add_model(sql, None, "echo", "e")
    Path("rows.txt").write_text("Ala ma kota.\n", encoding="utf-8")
    code, out, _ = told("submit", "rows.txt", "--type", "shout", "--json")
    assert code == 0
    id_task = json.loads(out)["id_task"]
    (row,) = sql("SELECT * FROM prompt WHERE name = 'shout'")
    assert task_of(sql, id_task)["id_prompt"] == row["id_prompt"]
    assert (row["created_by"], row["origin"], row["source"]) == ("Ala", "pushed", SHOUT)

    told("prompt", "push", write("shout.md", version(2)))
    told_again = told("prompt", "push", write("shout.md", SHOUT))[1]
    assert told_again == "shout, version 1: is in the library already, but new tasks use version 2\n"
    listed = {each["name"]: each for each in json.loads(told("prompt", "list", "--json")[1])}
    assert (listed["shout"]["version"], listed["shout"]["origin"], listed["correction"]["origin"]) == (2, "pushed", "shipped")
    assert told("prompt", "list", "--all")[1].count("shout ") == 2
    assert "[system]\nShout 2 times. \n[user]\n" in told("prompt", "show", "shout")[1]
    assert "[system]\nShout. \n[user]\n" in told("prompt", "show", "shout", "--task", str(id_task))[1]
    assert "[system]\nShout. \n" in told("prompt", "show", "shout", "--version", "1")[1]
    assert told("prompt", "show", "shout", "--source")[1] == version(2)
    assert told("prompt", "retire", "shout")[1] == "shout, version 2 (pushed): retired; new tasks use version 1 (pushed)\n"
    assert "[system]\nShout. \n" in told("prompt", "show", "shout")[1]
    assert told("run", "--dry-run", "--task", str(id_task))[1].startswith(f"--- task {id_task}")


def test_a_task_type_of_ones_own_goes_with_its_last_prompt(told: Any, sql: Sql) -> None:
    told("prompt", "push", write("shuot.md", SHOUT))  # a slip, say
    assert told("prompt", "retire", "shuot")[1] == (
        "shuot, version 1 (pushed): retired; there can be no new tasks of the type shuot\n"
    )
    assert "shuot" not in told("prompt", "list")[1]
    assert told("prompt", "retire", "shuot")[0] == 2
    assert sql("SELECT is_active FROM prompt WHERE name = 'shuot'") == [{"is_active": 0}]
    assert told("prompt", "push", "shuot.md")[1].startswith("shuot, version 1: pushed")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("{{ text }}", "{{ txt }}", "shout.md, line 16: unknown name 'txt'; known ones: "),
        ("{{ text }}", "{% if %}", "shout.md, line 16: "),
        ('kind = "summary"', 'kind = "sumary"', "shout.md: kind: unknown task type 'sumary'; known ones: "),
        ("version = 1", "version = ", "shout.md, line 2: the front matter is not TOML: "),
        ("{{ text }}", "{{ text.__class__ }}", "shout.md, line 16: SecurityError: "),
        ("{{ text }}", "\n{{ text + 1 }}", "shout.md, line 17: TypeError: "),
    ],
)
def test_a_broken_template_is_refused_with_the_line_and_nothing_is_pushed(
    told: Any, sql: Sql, old: str, new: str, error: str
) -> None:
    write("good.md", SHOUT)
    code, out, err = told("prompt", "push", "good.md", write("shout.md", SHOUT.replace(old, new)))
    assert (code, out) == (2, "")
    assert err.startswith(f"ai-worker: {error}")
    assert sql("SELECT * FROM prompt") == []


def test_a_changed_file_needs_a_new_version(told: Any) -> None:
    told("prompt", "push", write("shout.md", SHOUT))
    for more in ([], ["--dry-run"]):
        code, _, err = told("prompt", "push", write("shout.md", SHOUT.replace("Shout", "Cry")), *more)
        assert code == 2
        assert "shout: version 1 is pushed already, with other content: write `version = 2` into the file" in err
    assert told("prompt", "push", write("shout.md", version(2)), "--dry-run")[1] == (
        "shout, version 2: is right, and would be pushed\n"
    )
    assert told("prompt", "show", "shout", "--version", "2")[0] == 2


def test_show_renders_every_step_with_stand_ins_for_earlier_answers(told: Any) -> None:
    code, out, _ = told("prompt", "show", write("minutes.md", STEPS), "--description", "Krótko.", "--json")
    assert code == 0
    shown = json.loads(out)
    assert (shown["name"], shown["version"], shown["kind"]) == ("minutes", 3, "summary")
    draft, final = shown["steps"]
    assert (draft["name"], draft["model"], draft["system"]) == ("draft", "cheap", "Collect points. Krótko.")
    assert "\nAla ma kota.\n" in draft["user"]
    assert final["user"].endswith('["(draft\'s points)"]')
    assert list(final["schema"]["properties"]) == ["summary"]
    assert "--- step 2 of 2: final\n" in told("prompt", "show", "minutes.md")[1]


def test_show_takes_the_row_of_an_item_and_the_words_of_its_task(told: Any, sql: Sql) -> None:
    task = add_task(
        sql, add_model(sql, None, "echo", "e"), ["Ala ma kota."], task_type="translation", parameters='{"target_language": "de"}'
    )
    (item,) = sql("SELECT id_task_item FROM task_item WHERE id_task = %s", [task])
    out = told("prompt", "show", "translation", "--item", str(item["id_task_item"]))[1]
    assert "into German" in out
    assert "Popraw tekst." in out
    assert "\nAla ma kota.\n" in out
    code, _, err = told("prompt", "show", "translation", "--text", "Ala")
    assert (code, "target_language" in err) == (2, True)
    assert "into French" in told("prompt", "show", "translation", "--text", "Ala", "--param", "target_language=fr")[1]
    assert told("prompt", "show", "translation", "--item", "999")[2] == "ai-worker: there is no item 999\n"
    assert told("prompt", "show", "correction", "--task", str(task))[0] == 2


def test_every_shipped_prompt_can_be_shown(told: Any) -> None:
    needed = {"translation": ["target_language=pl"], "categorization": ['categories=["a", "b"]']}
    for each in json.loads(told("prompt", "list", "--json")[1]):
        parameters = [part for pair in needed.get(each["name"], []) for part in ("--param", pair)]
        code, out, err = told("prompt", "show", each["name"], "--description", "Krótko.", *parameters)
        assert (code, err) == (0, ""), each["name"]
        assert "[system]" in out


def test_the_folders_prompts_are_listed_before_anybody_knows_them(told: Any, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("team").mkdir()
    write("team/shout.md", SHOUT)
    write("team/broken.md", SHOUT.replace("version = 1", ""))
    monkeypatch.setenv("AI_WORKER_PROMPT_FOLDER", "team")
    code, out, err = told("prompt", "list")
    assert code == 0
    assert "shout" in out
    assert "not known to others yet" in out
    assert err.startswith("left out: team/broken.md, line ")
    assert sql("SELECT * FROM prompt") == []
    add_model(sql, None, "echo", "e")
    write("rows.txt", "Ala ma kota.\n")
    assert told("submit", "rows.txt", "--type", "shout", "--dry-run")[0] == 0
    code, _, err = told("submit", "rows.txt", "--type", "broken")
    assert code == 78
    assert "team/broken.md, line " in err
    code, _, err = told("submit", "rows.txt", "--type", "shuot")
    assert (code, "known ones: " in err, "shout" in err) == (2, True, True)
