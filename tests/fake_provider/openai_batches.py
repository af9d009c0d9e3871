"""OpenAI's files and batches, after its API reference."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from aiohttp import BodyPartReader, web

from tests.fake_provider.batches import Batch, Row
from tests.fake_provider.control import Denied, Desk, invalid, not_found
from tests.fake_provider.faults import Rule
from tests.fake_provider.wire import CHAT, RESPONSES, Failure, Wire

ENDPOINTS: dict[str, Wire] = {"/v1/chat/completions": CHAT, "/v1/responses": RESPONSES}
MOST_ROWS, MOST_BYTES = 50_000, 200 * 1024 * 1024  # of one batch
WINDOW = 24 * 3600

_UNDONE = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


class OpenAIBatches:
    """The routes under /v1/files and /v1/batches."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.reset()

    def reset(self) -> None:
        self._files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._by_idempotency_key: dict[str, str] = {}

    @property
    def files(self) -> list[dict[str, Any]]:
        """The files there are, oldest first."""
        return [about for about, _ in self._files.values()]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/files", self._upload),
            web.get("/v1/files", self._list_files),
            web.get("/v1/files/{id}", self._file),
            web.get("/v1/files/{id}/content", self._content),
            web.delete("/v1/files/{id}", self._delete_file),
            web.post("/v1/batches", self._create),
            web.get("/v1/batches", self._list_batches),
            web.get("/v1/batches/{id}", self._retrieve),
            web.post("/v1/batches/{id}/cancel", self._cancel),
        ]

    # -- files -------------------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        fields: dict[str, bytes] = {}
        filename = "file"
        async for part in await request.multipart():
            if isinstance(part, BodyPartReader) and part.name:
                fields[part.name] = bytes(await part.read())
                filename = part.filename or filename
        content = fields.get("file")

        def act(rule: Rule | None) -> dict[str, Any]:
            if content is None or "purpose" not in fields:
                raise invalid("'file' and 'purpose' are required", "file" if content is None else "purpose")
            purpose = fields["purpose"].decode()
            if purpose != "batch":
                raise invalid(f"{purpose!r} is not one of ['batch'] - 'purpose'", "purpose")
            if len(content) > MOST_BYTES:
                raise Denied(Failure(413, "File is too large. Maximum size is 200 MB.", param="file"))
            return self._keep(filename, "batch", content)

        return await self._desk.handle(request, CHAT, "upload", filename, act)

    def _keep(self, filename: str, purpose: str, content: bytes) -> dict[str, Any]:
        about: dict[str, Any] = {
            "id": self._desk.batches.new_id("file-"),
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 30 * 24 * 3600,
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
        }
        self._files[about["id"]] = (about, content)
        return about

    def _known(self, file: str) -> tuple[dict[str, Any], bytes]:
        if file not in self._files:
            raise not_found(f"File object: {file}", "id")
        return self._files[file]

    async def _list_files(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            files = self.files if request.query.get("order") == "asc" else self.files[::-1]
            purpose = request.query.get("purpose")
            return _page(request, [one for one in files if purpose in (None, one["purpose"])], 10_000, 10_000)

        return await self._desk.handle(request, CHAT, "list", "", act)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["id"]
        return await self._desk.handle(request, CHAT, "poll", file, lambda _: self._known(file)[0])

    async def _content(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["id"]
        return await self._desk.handle(request, CHAT, "results", file, lambda _: self._known(file)[1])

    async def _delete_file(self, request: web.Request) -> web.StreamResponse:
        file = request.match_info["id"]

        def act(rule: Rule | None) -> dict[str, Any]:
            self._known(file)
            del self._files[file]
            return {"id": file, "object": "file", "deleted": True}

        return await self._desk.handle(request, CHAT, "delete", file, act)

    # -- batches -----------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        key = request.headers.get("Idempotency-Key")
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")

        def act(rule: Rule | None) -> dict[str, Any]:
            batches = self._desk.batches
            if key is not None and batches.settings.idempotency and key in self._by_idempotency_key:
                return self._told(batches.all[self._by_idempotency_key[key]])
            batch = self._made(asked, bearer)
            if rule and rule.fault == "batch_invalid":
                batch.problems.append(_problem("invalid_json_line", "This line is not parseable as valid JSON.", 1))
            batches.add(batch)
            if key is not None:
                self._by_idempotency_key[key] = batch.id
            return self._told(batch)

        return await self._desk.handle(request, CHAT, "create", json.dumps(asked.get("metadata"), ensure_ascii=False), act)

    def _made(self, asked: dict[str, Any], key: str) -> Batch:
        endpoint, metadata = asked.get("endpoint"), asked.get("metadata") or {}
        if endpoint not in ENDPOINTS:
            raise invalid(f"Invalid value: {endpoint!r}. Supported values are: {', '.join(ENDPOINTS)}.", "endpoint")
        if asked.get("completion_window") != "24h":
            raise invalid("Invalid value for 'completion_window': only '24h' is supported.", "completion_window")
        short = all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in metadata.items())
        if len(metadata) > 16 or not short:
            raise invalid("Invalid 'metadata': at most 16 pairs of at most 64 and 512 characters.", "metadata")
        content = self._known(asked.get("input_file_id", ""))[1]
        rows, problems = _read(content, endpoint, key)
        about = {"metadata": metadata or None, "endpoint": endpoint, "input_file_id": asked["input_file_id"]}
        return Batch(self._desk.batches.new_id("batch_"), ENDPOINTS[endpoint], rows, about, problems)

    def _batch(self, request: web.Request) -> Batch:
        batch = self._desk.batches.all.get(request.match_info["id"])
        if batch is None or batch.wire not in ENDPOINTS.values():
            raise not_found(f"batch: {request.match_info['id']}", "id")
        return batch

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        return await self._desk.handle(
            request, CHAT, "poll", request.match_info["id"], lambda _: self._told(self._batch(request))
        )

    async def _list_batches(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            newest = self._desk.batches.newest_first(wire_is_gemini=False)
            return _page(request, [self._told(batch) for batch in newest], 20, 100)

        return await self._desk.handle(request, CHAT, "list", "", act)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            batch = self._batch(request)
            if batch.ended:
                raise Denied(Failure(409, f"Cannot cancel a batch with status '{batch.status}'.", google_status="ABORTED"))
            batch.cancelling = True
            if batch.status in ("validating", "in_progress"):
                batch.enter("cancelling")
            return self._told(batch)

        return await self._desk.handle(request, CHAT, "cancel", request.match_info["id"], act)

    def _told(self, batch: Batch) -> dict[str, Any]:
        """The batch object; makes the output files of one that has ended."""
        if batch.ended and batch.status != "failed" and "output_file_id" not in batch.about:
            self._write_results(batch)
        at = {status: int(moment) for status, moment in batch.at.items()}
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        good, tokens = batch.good, batch.tokens
        model = next((row.ask.model for row in batch.rows if row.ask), None)
        return {
            "id": batch.id,
            "object": "batch",
            "model": model,
            "errors": {"object": "list", "data": batch.problems} if batch.status == "failed" else None,
            "completion_window": "24h",
            "status": batch.status,
            "output_file_id": None,
            "error_file_id": None,
            **batch.about,
            "created_at": at["validating"],
            "expires_at": at["validating"] + WINDOW,
            **{f"{name}_at": at.get(name) for name in names},
            "request_counts": {
                "total": 0 if batch.status in ("validating", "failed") else len(batch.rows),
                "completed": good,
                "failed": len(batch.rows) - good if batch.status == "expired" else batch.bad,
            },
            "usage": {
                "input_tokens": tokens.input,
                "input_tokens_details": {"cached_tokens": tokens.cached},
                "output_tokens": tokens.output,
                "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
                "total_tokens": tokens.input + tokens.output,
            },
        }

    def _write_results(self, batch: Batch) -> None:
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for number, row in enumerate(batch.rows):
            line: dict[str, Any] = {"id": f"batch_req_{batch.id[6:]}_{number}", "custom_id": row.key}
            if row.reply is None:
                code, message = _UNDONE[batch.status]
                bad.append({**line, "response": None, "error": {"code": code, "message": message}})
                continue
            body = json.loads(row.reply.text)
            response = {"status_code": row.reply.status, "request_id": f"req_{number}", "body": body}
            (good if row.good else bad).append({**line, "response": response, "error": None})
        shuffle = random.Random(batch.id).shuffle  # noqa: S311 -- out of order on purpose
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            shuffle(lines)
            content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode("utf-8", "surrogatepass")
            kept = self._keep(f"{batch.id}_{name[:-8]}.jsonl", "batch_output", content) if lines else None
            batch.about[name] = kept and kept["id"]


def _problem(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def _read(content: bytes, endpoint: str, key: str) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows of an input file, and what its validation finds wrong with it."""
    rows: list[Row] = []
    problems: list[dict[str, Any]] = []
    wire, seen, models = ENDPOINTS[endpoint], set(), set()
    for number, line in enumerate((line for line in content.split(b"\n") if line.strip()), 1):
        try:
            asked = json.loads(line)
            custom_id, method, url, body = asked["custom_id"], asked["method"], asked["url"], asked["body"]
        except (ValueError, KeyError, TypeError) as error:
            missing = isinstance(error, KeyError)
            code = "missing_required_parameter" if missing else "invalid_json_line"
            message = f"Missing required parameter: {error}." if missing else "This line is not parseable as valid JSON."
            problems.append(_problem(code, message, number))
            continue
        if custom_id in seen:
            message = f"The custom_id {custom_id!r} for this request is a duplicate of another request."
            problems.append(_problem("duplicate_custom_id", message, number, "custom_id"))
        if url != endpoint or method != "POST":
            message = "The URL provided for this request does not match the batch endpoint."
            problems.append(_problem("invalid_url", message, number, "url"))
        seen.add(custom_id)
        models.add(body.get("model"))
        try:
            rows.append(Row(custom_id, wire.ask("", body, key)))
        except (ValueError, KeyError, TypeError):
            rows.append(Row(custom_id, None))
    if len(models) > 1:
        problems.append(_problem("mismatched_model", "Each batch must contain requests for a single model.", None, "body.model"))
    if not rows and not problems:
        problems.append(_problem("empty_file", "The input file is empty.", None))
    if len(rows) > MOST_ROWS:
        problems.append(_problem("too_many_tasks", f"The batch has more than {MOST_ROWS} requests.", None))
    return rows, problems


def _page(request: web.Request, things: list[dict[str, Any]], usual: int, most: int) -> dict[str, Any]:
    """A page of a list, by OpenAI's cursors `limit` and `after`."""
    try:
        limit = int(request.query.get("limit", usual))
    except ValueError:
        limit = 0
    if not 1 <= limit <= most:
        raise invalid(f"Invalid 'limit': must be between 1 and {most}.", "limit")
    if after := request.query.get("after"):
        ids = [one["id"] for one in things]
        if after not in ids:
            raise not_found(f"object: {after}", "after")
        things = things[ids.index(after) + 1 :]
    page = things[:limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(things) > limit}
