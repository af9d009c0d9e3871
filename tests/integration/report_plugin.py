"""A task type of four steps, installed as any other package would be: for the test's own process and for those it starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_worker.task_types import task_type

_MODULE = '''
from ai_worker.task_types.builtin import Summary
from ai_worker.task_types.prompt_file import PromptFile

STEPS = ("outline", "draft", "critique", "final")

STEP = """[[steps]]
name = "NAME"
answer_field = "summary"
[steps.schema]
type = "object"
additionalProperties = false
required = ["summary"]
[steps.schema.properties.summary]
type = "string"
"""

PART = """# Step NAME
## System
This is step NAME. VERSION
## User
{{ marker }}
{{ text }}
{{ marker }}
EARLIER
"""

def source(version):
    front = "+++\\nversion = 1\\n" + "".join(STEP.replace("NAME", name) for name in STEPS) + "+++\\n"
    parts = []
    for number, name in enumerate(STEPS):
        earlier = "".join(f"Earlier {each}: {{{{ steps.{each}.text }}}}\\n" for each in STEPS[:number])
        parts.append(PART.replace("NAME", name).replace("EARLIER", earlier).replace("VERSION", version))
    return front + "".join(parts)

class Report(Summary):
    name = "report"
    version = "one"
    def __init__(self, file=None):
        super().__init__(file or PromptFile.parse("report", source(self.version), "report.md"))

class Changed(Report):
    version = "two"
'''


@pytest.fixture
def report_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the package; programs that are started in it find it, too."""
    (tmp_path / "report_plugin.py").write_text(_MODULE, encoding="utf-8")
    metadata = tmp_path / "report_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: report-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[ai_worker.task_types]\nreport = report_plugin:Report")
    monkeypatch.syspath_prepend(str(tmp_path))
    task_type.cache_clear()
    yield tmp_path
    task_type.cache_clear()
