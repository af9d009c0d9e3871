"""Sends the callbacks of groups that have ended: HTTP POST, signed by the Standard Webhooks specification.

    webhook-id: msg_…             the same at each try
    webhook-timestamp: seconds    of this try
    webhook-signature: v1,BASE64(HMAC-SHA256(secret, "ID.TIMESTAMP.BODY"))

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

Nothing of an answer is kept but its status, and no URL or secret is ever logged: receivers put tokens into both.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from ai_worker import __version__
from ai_worker.errors import ConfigurationError, DatabaseError
from ai_worker.log import ERROR, Event
from ai_worker.models import Secret
from ai_worker.store.callbacks import Callback, Callbacks
from ai_worker.worker.lease import Lease

if TYPE_CHECKING:  # it takes a fifth of a second, which a worker begins without
    import aiohttp

TIMEOUT_SECONDS: Final = 10.0  # for everything, from the name's look-up to the answer's status
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 -- what stands before a secret


class Courier:
    """Used in the loop. `in_thread` runs a verb in a thread for the database."""

    def __init__(
        self,
        callbacks: Callbacks,
        in_thread: Callable[..., Awaitable[Any]],
        open_secret: Callable[[int, bytes, str], Secret] | None,
        lease: Lease,
    ) -> None:
        self._callbacks = callbacks
        self._in_thread = in_thread
        self._open_secret = open_secret
        self._lease = lease
        self._due = asyncio.Event()
        self._sending = asyncio.Lock()

    def wake(self) -> None:
        """There is something to be sent."""
        self._due.set()

    async def run(self) -> None:
        """Sends what is due whenever woken, for ever. What goes wrong here never stops the worker: it falls due again."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self._send_all()
            except DatabaseError:
                pass  # said by whoever lost the connection; what was sent without being recorded is sent again
            except Exception as error:  # noqa: BLE001 -- a defect must not end all callbacks: log it and go on
                self._lease.log(Event.LIBRARY, level=ERROR, exc_info=error, logger="callbacks", message=type(error).__name__)

    async def last_round(self, keep_time: Callable[[], object]) -> None:
        """Before a `run` ends: groups that it has completed are told of now, not by whoever comes next."""
        with contextlib.suppress(DatabaseError, TimeoutError):
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                await self._in_thread(keep_time)
                await self._send_all()

    async def settle(self) -> None:
        """Before a worker ends: what is just being sent is recorded, so that nobody sends it again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT_SECONDS), self._sending:
                pass

    async def _send_all(self) -> None:
        async with self._sending:
            while taken := await self._in_thread(self._callbacks.take):
                import aiohttp

                timeout, jar = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS), aiohttp.DummyCookieJar()
                async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar, trust_env=True) as session:
                    ends = await asyncio.gather(*(self._deliver(session, each) for each in taken), return_exceptions=True)
                for error in filter(None, ends):  # not before the others have been sent, too
                    raise error

    async def _deliver(self, session: aiohttp.ClientSession, callback: Callback) -> None:
        status, reason = await self._post(session, callback)
        fields: dict[str, Any] = {"group": callback.group, "call": callback.attempts, "status": status}
        if reason is None:
            await self._in_thread(self._callbacks.delivered, callback, status)
            self._lease.log(Event.CALLBACK_DELIVERED, **fields)
        elif (delay := await self._in_thread(self._callbacks.missed, callback, status, reason)) is not None:
            self._lease.log(Event.CALLBACK_MISSED, **fields, message=reason, delay=round(delay, 1))
        else:
            self._lease.log(Event.CALLBACK_GIVEN_UP, **fields, message=reason)

    async def _post(self, session: aiohttp.ClientSession, callback: Callback) -> tuple[int | None, str | None]:
        """The status of the answer, if there was one, and why it does not count, if it does not."""
        import aiohttp

        body = callback.body.encode()
        try:
            headers = self._headers(callback, body)
            async with session.post(callback.url, data=body, headers=headers, allow_redirects=False) as answer:
                accepted = 200 <= answer.status < 300
                return answer.status, None if accepted else f"the receiver answered {answer.status}"
        except ConfigurationError as error:
            return None, str(error)
        except TimeoutError:
            return None, f"no answer within {TIMEOUT_SECONDS:.0f} s"
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):
            return None, "its URL cannot be used"
        except aiohttp.ClientConnectorError as error:
            return None, f"no connection: {error.strerror or type(error).__name__}"
        except (aiohttp.ClientError, OSError) as error:
            return None, f"no answer: {type(error).__name__}"

    def _headers(self, callback: Callback, body: bytes) -> dict[str, str]:
        headers = {
            "content-type": "application/json; charset=utf-8",
            "user-agent": f"ai-worker/{__version__}",
            "webhook-id": callback.message_id,
            "webhook-timestamp": str(callback.now),
        }
        if callback.secret_encrypted is not None:
            if self._open_secret is None:
                raise ConfigurationError("this worker has no keys to read its secret with")
            secret = self._open_secret(callback.id_task_group, callback.secret_encrypted, callback.group)
            headers["webhook-signature"] = signature(secret, callback.message_id, callback.now, body)
        return headers


def signature(secret: Secret, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`. What follows `whsec_` in a secret is base64; any other secret is taken as it is."""
    text = secret.reveal()
    key = text.encode()
    if text.startswith(SECRET_PREFIX):
        with contextlib.suppress(binascii.Error, ValueError):
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode('ascii')}"
