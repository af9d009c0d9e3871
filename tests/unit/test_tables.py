"""Results as CSV come back to the letter, whatever is in a text."""

from __future__ import annotations

import csv
import io

import pytest

from ai_worker.models import ItemStatus, ReviewStatus
from ai_worker.output.tables import COLUMNS, Csv
from ai_worker.store.results import ItemResult


@pytest.mark.parametrize(
    "text", ["a\rb", "a\r", "\r", "a\nb", "a\r\nb", 'a "b", c', "a;b", "\u2028", "a\x85b", "żółw 🐢", "a\x1bb"]
)
def test_a_text_comes_back_to_the_letter(text: str) -> None:
    status, review = ItemStatus.PROCESSED, ReviewStatus(0)
    item = ItemResult(7, None, status, text, text, None, None, 1, 2, None, {}, review, None, None, None)
    written = "".join(Csv(iter([item, item]), raw=True))
    header, *rows = csv.reader(io.StringIO(written, newline=""), strict=True)
    assert tuple(header) == COLUMNS
    assert [(row[3], row[4]) for row in rows] == [(text, text)] * 2
    assert written.endswith("\n")
    assert "\r\n" not in written.replace(text, "")
