"""`review`: see what a model made of the items of a task, and say what is to be kept of it."""

from __future__ import annotations

import getpass
import re
import sys
from pathlib import Path

import click

from ai_worker import formats
from ai_worker.cli import context
from ai_worker.errors import UsageError
from ai_worker.models import ReviewStatus
from ai_worker.store.reviews import LONGEST_NAME, Review, Reviewed, Reviews, Span
from ai_worker.text import harmless, terminal_diff

_ONLY = {"unreviewed": ReviewStatus.UNREVIEWED, "accepted": ReviewStatus.ACCEPTED, "rejected": ReviewStatus.REJECTED, "all": None}
_VERDICTS = {"accept": ReviewStatus.ACCEPTED, "reject": ReviewStatus.REJECTED, "reset": ReviewStatus.UNREVIEWED}
_LARGEST_ID = 2**63 - 1


@click.command()
@click.argument("id_task", metavar="ID", type=int)
@click.argument("items", metavar="[ITEM", required=False)
@click.argument("verdict", metavar="accept|reject|reset]", type=click.Choice(list(_VERDICTS)), required=False)
@click.option("--text", help="Accept the item with this text instead of the model's.")
@click.option("--text-file", metavar="FILE", help="The same from a file in UTF-8, `-` for standard input.")
@click.option("--note", help="Why; kept with the review.")
@click.option("--by", metavar="NAME", help="Who reviews.  [default: the user of this machine]")
@click.option("--only", type=click.Choice(list(_ONLY)), help="The list: which items.  [default: unreviewed]")
@click.option("--after", type=click.IntRange(0), default=0, metavar="ITEM", help="The list: go on behind this item.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The list: so many at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def review(
    id_task: int,
    items: str | None,
    verdict: str | None,
    text: str | None,
    text_file: str | None,
    note: str | None,
    by: str | None,
    only: str | None,
    after: int,
    limit: int,
    as_json: bool,
) -> None:
    """List what waits for review, or review it.

    \b
    ai-worker review 7                            what waits, with the changes
    ai-worker review 7 --only accepted --json     what was accepted
    ai-worker review 7 15 accept                  keep what the model made of item 15
    ai-worker review 7 15 accept --text 'Cześć'   keep this instead
    ai-worker review 7 5,8-12 reject --note tone  several items: ids, and spans of ids
    ai-worker review 7 all accept                 all that nobody has reviewed yet
    ai-worker review 7 15 reset                   take a review back

    Only PROCESSED items can be reviewed, as often as you like; the latest review counts, and task_item_review keeps all of them.
    `ai-worker export` writes accepted items back to the table that they were imported from.
    """
    if items is None:
        if given := [
            name for name, value in (("--text", text), ("--text-file", text_file), ("--note", note)) if value is not None
        ]:
            raise UsageError(f"{given[0]} needs an item and what is said of it, as in `ai-worker review {id_task} 15 accept`")
        _list(id_task, only or "unreviewed", after, limit, as_json=as_json)
        return
    if verdict is None:
        which = "15" if items in _VERDICTS else items
        raise UsageError(f"say which item, and what of it: `ai-worker review {id_task} {which} accept`, reject or reset")
    if only is not None:
        raise UsageError("--only is for the list; `all` means those that nobody has reviewed yet")
    if text is not None and text_file is not None:
        raise UsageError("--text and --text-file: give one of them")
    if items == "all" and verdict == "reset":
        raise UsageError("`all` means those that nobody has reviewed yet; say which reviews to take back: 15 or 5,8-12")
    spans = None if items == "all" else _spans(items)
    with context.database() as db:
        reviews = Reviews(db)
        if text_file is not None:
            text = _edited(reviews, spans, _read(text_file))
        said = Review(_VERDICTS[verdict], named(by), text, note)
        count = reviews.review_rest(id_task, said) if spans is None else reviews.review(spans, said, id_task=id_task)
    if as_json:
        context.emit_json({"id_task": id_task, "review": said.verdict.name, "items": count, "by": said.by})
    else:
        done = {"accept": "accepted", "reject": "rejected", "reset": "back to unreviewed"}[verdict]
        click.echo(f"task {id_task}: {'1 item' if count == 1 else f'{formats.number(count)} items'} {done}")


def named(by: str | None) -> str:
    """Who does it, for the record: as given, else `user`. Raises UsageError, before anything is done, for what has no room."""
    if by is not None and len(by) > LONGEST_NAME:
        raise UsageError(f"--by is longer than {LONGEST_NAME} characters")
    return by or user()


def user() -> str:
    """Who is at the keyboard, as the machine has it; for the record of what was done."""
    try:
        return getpass.getuser()[:LONGEST_NAME] or "unknown"
    except (OSError, KeyError, ImportError):  # a user id without a name, as in containers; what is raised depends on the version
        return "unknown"


def _list(id_task: int, only: str, after: int, limit: int, *, as_json: bool) -> None:
    with context.database() as db:
        page = Reviews(db).items(id_task, _ONLY[only], after=after, limit=limit + 1)
    shown = page[:limit]
    following = shown[-1].id_task_item if len(page) > limit else None
    if as_json:
        context.emit_json({"id_task": id_task, "items": [_values(each) for each in shown], "next": following})
        return
    for each in shown:
        key = "" if each.external_key is None else f" ({harmless(each.external_key)})"
        said = "" if each.review is ReviewStatus.UNREVIEWED else f"  {each.review.name} by {harmless(each.reviewed_by or '?')}"
        click.echo(click.style(f"item {each.id_task_item}{key}{said}", bold=True))
        result = each.text_corrected if each.text_reviewed is None else each.text_reviewed
        if result is None:
            click.echo(f"{harmless(each.text_original)}\n(no text)\n")
        else:
            color = sys.stdout.isatty()
            click.echo(f"{terminal_diff(each.text_original, result, color)}\n", color=color)
    if not shown:
        click.echo(f"task {id_task}: no {'processed' if only == 'all' else only} items{' behind this one' if after else ''}")
    elif following:
        click.echo(f"more: ai-worker review {id_task} --only {only} --after {following}")


def _values(item: Reviewed) -> dict[str, object]:
    return {
        "id_task_item": item.id_task_item,
        "external_key": item.external_key,
        "text_original": item.text_original,
        "text_corrected": item.text_corrected,
        "change_summary": item.change_summary,
        "review": item.review.name,
        "text_reviewed": item.text_reviewed,
        "reviewed_by": item.reviewed_by,
        "reviewed_at": item.reviewed_at,
    }


def _spans(text: str) -> list[Span]:
    """`5,8-12` as spans, without those that lie in one before."""
    spans: list[Span] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,19})\s*(?:-\s*([0-9]{1,19})\s*)?", part)
        if match is None:
            raise UsageError(f"{text!r} names no items; write 15, 5,8-12 or all")
        first = int(match[1])
        last = int(match[2] or first)
        if not 0 < first <= last <= _LARGEST_ID:
            raise UsageError(f"{part.strip()!r} is no span of items; the first one must be 1 or more and stand first")
        spans.append(Span(first, last))
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and span.first <= joined[-1].last:
            joined[-1] = Span(joined[-1].first, max(joined[-1].last, span.last))
        else:
            joined.append(span)
    return joined


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not UTF-8 text") from None


def _edited(reviews: Reviews, spans: list[Span] | None, text: str) -> str:
    """The text of a file without the line end that an editor puts at its end, unless the item's own text ends in one too."""
    if spans is None or len(spans) != 1 or spans[0].first != spans[0].last:
        raise UsageError("a text goes to one item")
    if reviews.item(spans[0].first).text_original.endswith("\n"):
        return text
    return text.removesuffix("\n").removesuffix("\r")
