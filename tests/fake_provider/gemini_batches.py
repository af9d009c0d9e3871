"""Gemini's batches of inlined requests, after its API reference: a batch is an operation, whose metadata tell its state."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.fake_provider.batches import Batch, Row
from tests.fake_provider.control import Desk, invalid, not_found
from tests.fake_provider.faults import Rule
from tests.fake_provider.wire import GEMINI, Ask

MOST_BYTES = 20 * 1024 * 1024  # of a request; more has to go through a file
_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
_STATES = {
    "validating": "BATCH_STATE_PENDING",
    "in_progress": "BATCH_STATE_RUNNING",
    "cancelling": "BATCH_STATE_RUNNING",
    "finalizing": "BATCH_STATE_RUNNING",
    "completed": "BATCH_STATE_SUCCEEDED",
    "failed": "BATCH_STATE_FAILED",
    "expired": "BATCH_STATE_EXPIRED",
    "cancelled": "BATCH_STATE_CANCELLED",
}
# google.rpc.Code
_CODES = {"INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8}
_CODES |= {"ABORTED": 10, "INTERNAL": 13, "UNAVAILABLE": 14, "UNAUTHENTICATED": 16}
_UNDONE = {"expired": (4, "The batch expired before this request was executed."), "cancelled": (1, "The batch was cancelled.")}


class GeminiBatches:
    """The routes for batches under /v1beta; /v1 belongs to OpenAI's of the same name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[web.RouteDef]:
        version = r"/{version:v1(?:alpha|beta)}"
        return [
            web.post(version + "/models/{model}:batchGenerateContent", self._create),
            web.get(version + "/batches", self._list),
            web.get(version + "/batches/{id}", self._get),
            web.delete(version + "/batches/{id}", self._delete),
            web.post(version + "/batches/{id}:cancel", self._cancel),
        ]

    async def _create(self, request: web.Request) -> web.StreamResponse:
        content, key = await request.read(), request.headers.get("x-goog-api-key")
        asked = json.loads(content).get("batch") or {}
        name = asked.get("displayName") or ""

        def act(rule: Rule | None) -> dict[str, Any]:
            if len(content) > MOST_BYTES:
                raise invalid(f"Request payload size exceeds the limit: {MOST_BYTES} bytes.")
            requests = ((asked.get("inputConfig") or {}).get("requests") or {}).get("requests")
            if not name or not requests:
                raise invalid("Invalid value at 'batch': display_name and input_config.requests are required.")
            model = request.match_info["model"]
            rows = [Row(None, _ask(model, one, key), one.get("metadata")) for one in requests]
            batch = Batch(self._desk.batches.new_id("batches/"), GEMINI, rows, {"displayName": name, "model": f"models/{model}"})
            if rule and rule.fault == "batch_invalid":
                batch.problems.append({"code": 3, "message": "The batch could not be validated."})
            self._desk.batches.add(batch)
            return self._told(batch)

        return await self._desk.handle(request, GEMINI, "create", name, act)

    def _batch(self, request: web.Request) -> Batch:
        batch = self._desk.batches.all.get(f"batches/{request.match_info['id']}")
        if batch is None or batch.wire is not GEMINI:
            raise not_found(f"batches/{request.match_info['id']}", "name")
        return batch

    async def _get(self, request: web.Request) -> web.StreamResponse:
        return await self._desk.handle(
            request, GEMINI, "poll", request.match_info["id"], lambda _: self._told(self._batch(request))
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            newest = self._desk.batches.newest_first(wire_is_gemini=True)
            try:
                start, size = int(request.query.get("pageToken") or 0), int(request.query.get("pageSize") or 50)
            except ValueError:
                raise invalid("Invalid page token or size.") from None
            page = {"operations": [self._told(batch, results=False) for batch in newest[start : start + size]]}
            more = len(newest) > start + size
            return {**page, "nextPageToken": str(start + size)} if more else page

        return await self._desk.handle(request, GEMINI, "list", "", act)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            batch = self._batch(request)
            if batch.ended:
                raise invalid("The batch has ended already.")
            batch.cancelling = True
            return {}

        return await self._desk.handle(request, GEMINI, "cancel", request.match_info["id"], act)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        def act(rule: Rule | None) -> dict[str, Any]:
            del self._desk.batches.all[self._batch(request).id]
            return {}

        return await self._desk.handle(request, GEMINI, "delete", request.match_info["id"], act)

    def _told(self, batch: Batch, *, results: bool = True) -> dict[str, Any]:
        """The operation; with its results once it has ended."""
        stats = {
            "requestCount": len(batch.rows),
            "successfulRequestCount": batch.good,
            "failedRequestCount": batch.bad,
            "pendingRequestCount": 0 if batch.ended else len(batch.rows) - batch.good - batch.bad,
        }
        metadata: dict[str, Any] = {
            "@type": f"{_TYPE}GenerateContentBatch",
            "name": batch.id,
            **batch.about,
            "createTime": _time(batch.at["validating"]),
            "updateTime": _time(max(batch.at.values())),
            "batchStats": {name: str(number) for name, number in stats.items() if number},  # 64-bit numbers, zeros left out
            "state": _STATES[batch.status],
        }
        operation: dict[str, Any] = {"name": batch.id, "metadata": metadata}
        if not batch.ended:
            return operation
        metadata["endTime"] = _time(batch.at[batch.status])
        operation["done"] = True
        if batch.status == "failed":
            return {**operation, "error": batch.problems[0]}
        lost = batch.status == "expired" and not self._desk.batches.settings.gemini_keeps
        if results and not lost:
            output = {"inlinedResponses": {"inlinedResponses": [self._result(batch, row) for row in batch.rows]}}
            metadata["output"] = output
            operation["response"] = {"@type": f"{_TYPE}GenerateContentBatchOutput", **output}
        return operation

    def _result(self, batch: Batch, row: Row) -> dict[str, Any]:
        kept = self._desk.batches.settings.gemini_metadata and row.metadata
        about = {"metadata": row.metadata} if kept else {}
        if row.reply is None:
            code, message = _UNDONE[batch.status]
            return {**about, "error": {"code": code, "message": message}}
        body = json.loads(row.reply.text)
        if row.good:
            return {**about, "response": body}
        error = body["error"]
        return {**about, "error": {"code": _CODES.get(error["status"], 2), "message": error["message"]}}


def _ask(model: str, one: dict[str, Any], key: str | None) -> Ask | None:
    try:
        return GEMINI.ask(model, one["request"], key)
    except (ValueError, KeyError, TypeError):
        return None


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
