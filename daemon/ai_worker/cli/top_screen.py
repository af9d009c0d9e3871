"""How `top` looks: three panes drawn by Rich, as wide and as high as there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ai_worker import formats
from ai_worker.cli.pace import HEADINGS, state
from ai_worker.cli.status import visible
from ai_worker.cli.top_look import Picture, Task, Worker
from ai_worker.models import TaskStatus

PANES: Final = ("tasks", "models", "workers")
KEYS: Final = "q quit  p pause  t m w or Tab: pane  arrows: scroll"
_STATES: Final = {"alive": "green", "draining": "yellow", "late": "yellow", "lost": "red"}
_STATUSES: Final = {
    TaskStatus.IN_PROGRESS: "cyan",
    TaskStatus.COMPLETED: "green",
    TaskStatus.ERROR: "red",
    TaskStatus.PAUSED: "yellow",
}
_QUEUES: Final = 3  # lines
_WIDE: Final = 110  # columns from which on there is room for more
_SPARKS: Final = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class View:
    """What the person at the terminal has chosen."""

    pane: str = PANES[0]
    is_paused: bool = False
    offsets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PANES, 0))
    trouble: str | None = None  # why there is nothing newer

    def press(self, key: str, sizes: dict[str, int]) -> bool:
        """What a key does; whether it is the one that ends it. `sizes` are the rows of the panes."""
        if key in {"q", "Q", "\x03", "\x1b"}:
            return True
        if key in {"p", "P", " "}:
            self.is_paused = not self.is_paused
        elif key in {"right", "left"}:
            step = 1 if key == "right" else -1
            self.pane = PANES[(PANES.index(self.pane) + step) % len(PANES)]
        elif key in {"up", "down"}:
            offset = self.offsets[self.pane] + (1 if key == "down" else -1)
            self.offsets[self.pane] = max(0, min(offset, sizes[self.pane] - 1))
        else:
            self.pane = next((pane for pane in PANES if pane[0] == key.lower()), self.pane)
        return False


def sizes(picture: Picture) -> dict[str, int]:
    """How many rows each pane has."""
    return {"tasks": len(picture.tasks), "models": len(picture.pace), "workers": len(picture.workers)}


def screen(picture: Picture, view: View, console: Console, *, height: int | None) -> RenderableType:
    """Everything; without a `height`, all rows of all panes."""
    width = console.width
    head = [_headline(picture, console), *_queues(picture)]
    stopped = [
        Text(f"{visible(each.name)} is stopped: {visible(each.reason)}", style="red", no_wrap=True, overflow="ellipsis")
        for each in picture.stopped[:2]
    ]
    rooms = _rooms(picture, view, None if height is None else height - len(head) - len(stopped) - 1)
    is_plain = not console.encoding.lower().startswith("utf")
    panes = {
        "tasks": _tasks(picture.tasks, width, is_plain),
        "models": _models(picture),
        "workers": _workers(picture.workers, width),
    }
    shown: list[RenderableType] = []
    for name, (headings, rows) in panes.items():
        is_chosen = height is not None and name == view.pane
        first = min(view.offsets[name], max(0, len(rows) - 1)) if height is not None else 0
        shown.append(_table(name, headings, rows[first : first + rooms[name]], is_chosen))
    foot = [] if height is None else [_foot(view)]
    return Group(*head, *stopped, *shown, *foot)


def _rooms(picture: Picture, view: View, height: int | None) -> dict[str, int]:
    """Rows for each pane: all, or the chosen one first and what is left to the others."""
    wanted = sizes(picture)
    if height is None:
        return wanted
    left = max(3, height - len(PANES))  # a line of headings each
    rooms = dict.fromkeys(PANES, 0)
    least = min(3, left // len(PANES))
    for pane in PANES:
        rooms[pane] = min(least, wanted[pane])
    left -= sum(rooms.values())
    for pane in sorted(PANES, key=lambda each: each != view.pane):
        more = min(left, wanted[pane] - rooms[pane])
        rooms[pane] += more
        left -= more
    return rooms


def _headline(picture: Picture, console: Console) -> Text:
    alive = sum(each.report.state in {"alive", "draining", "late"} for each in picture.workers)
    in_flight = sum(each.report.in_flight for each in picture.workers)
    parts = [
        f"ai-worker top  {picture.now:%H:%M:%S} UTC",
        f"{alive} {'worker' if alive == 1 else 'workers'}",
        f"{formats.number(in_flight)} in flight",
        f"{formats.number(picture.per_minute)} items/min",
    ]
    text = Text("  ".join(parts), style="bold", no_wrap=True, overflow="ellipsis")
    done = [work.processed + work.failed for work in picture.minutes[:-1]]
    room = console.width - len(text) - 2
    if room > 4 and any(done) and console.encoding.lower().startswith("utf"):
        most = max(done)
        text.append("  " + "".join(_SPARKS[value * 7 // most] for value in done[-room:]), style="cyan")
    return text


def _queues(picture: Picture) -> list[Text]:
    lines = []
    for queue in picture.queues[:_QUEUES]:
        about = "" if queue.is_exact else "~"
        text = f"queue {visible(queue.queue)}: {about}{formats.number(queue.pending)} waiting"
        if queue.oldest_seconds is not None:
            text += f", oldest {formats.duration(queue.oldest_seconds)}"
        for count, word in ((queue.in_progress, "in progress"), (queue.deferred, "deferred"), (queue.paused, "paused")):
            text += f", {formats.number(count)} {word}" if count else ""
        lines.append(Text(text, no_wrap=True, overflow="ellipsis"))
    if len(picture.queues) > _QUEUES:
        lines.append(Text(f"and {len(picture.queues) - _QUEUES} more queues: `ai-worker queue list`", style="dim"))
    return lines or [Text("no task is open", style="dim")]


Cells = list[Text]
Pane = tuple[Sequence[tuple[str, bool]], list[Cells]]
"""Headings, each with whether it is of numbers, and rows."""


def _tasks(tasks: Sequence[Task], width: int, is_plain: bool) -> Pane:
    is_wide = width >= _WIDE
    headings = [("TASK", True), ("STATUS", False), ("PROGRESS", False), ("DONE", True), ("OPEN", True), ("FAILED", True)]
    headings += [("RATE", True), ("ETA", True), *([("COST", True), ("TYPE", False), ("MODEL", False)] if is_wide else [])]
    rows = []
    for each in tasks:
        task = each.report
        total = each.done + task.open
        share = each.done / total if total and each.is_exact else None
        cells = [
            Text(str(task.id_task)),
            Text(task.status.name, style=_STATUSES.get(task.status, "")),
            Text(_bar(share, 20 if is_wide else 8, is_plain)),
            Text(formats.number(each.done)),
            Text(("" if each.is_exact else "> ") + formats.number(task.open)),
            Text(formats.number(task.records_failed), style="red" if task.records_failed else ""),
            Text("-" if each.rate is None else f"{each.rate:.1f}/s"),
            Text(formats.duration(each.eta)),
        ]
        if is_wide:
            cost = "-" if task.cost is None else formats.money(task.cost)
            cells += [Text(cost), Text(visible(task.task_type)), Text(visible(task.model))]
        rows.append(cells)
    return headings, rows


def _bar(share: float | None, cells: int, is_plain: bool) -> str:
    if share is None:
        return "?"
    full = int(share * cells)
    done, left = ("#", "-") if is_plain else ("█", "░")
    return f"{done * full}{left * (cells - full)} {int(share * 100):>3}%"


def _models(picture: Picture) -> Pane:
    headings = [(heading, number > 1) for number, heading in enumerate(HEADINGS)]
    stopped = {each.name for each in picture.models if state(each) != "ready"}
    rows = [[Text(visible("-" if cell is None else str(cell)), style="red" if row[0] in stopped else "") for cell in row]
            for row in picture.pace]  # fmt: skip
    return headings, rows


def _workers(workers: Sequence[Worker], width: int) -> Pane:
    headings = [("WORKER", True), ("STATE", False), ("HOST", False), ("PID", True), ("IN FLIGHT", True), ("DONE", True)]
    headings += [("RATE", True), ("BEAT", True), *([("VERSION", False), ("MODE", False)] if width >= _WIDE else [])]
    rows = []
    for each in workers:
        worker = each.report
        cells = [
            Text(str(worker.id_worker)),
            Text(worker.state, style=_STATES.get(worker.state, "")),
            Text(visible(worker.host)),
            Text(str(worker.pid)),
            Text(f"{worker.in_flight}/{worker.concurrency}"),
            Text(formats.number(worker.items_processed + worker.items_failed)),
            Text("-" if each.rate is None else f"{each.rate:.1f}/s"),
            Text(formats.duration(worker.silent_seconds)),
        ]
        if width >= _WIDE:
            cells += [Text(worker.version), Text(worker.mode)]
        rows.append(cells)
    return headings, rows


def _table(name: str, headings: Sequence[tuple[str, bool]], rows: Sequence[Cells], is_chosen: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, header_style="bold reverse" if is_chosen else "bold underline")
    for heading, is_number in headings:
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*row)
    if not rows:
        table.add_row(Text(f"no {name}", style="dim"))
    return table


def _foot(view: View) -> Text:
    if view.trouble:
        return Text(visible(view.trouble), style="bold red", no_wrap=True, overflow="ellipsis")
    return Text(("PAUSED  " if view.is_paused else "") + KEYS, style="dim", no_wrap=True, overflow="ellipsis")
