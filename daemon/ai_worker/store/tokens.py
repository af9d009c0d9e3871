"""Tokens: who may use the web, and for what. The database knows their hashes alone."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from ai_worker.db import Database, Row, Transaction
from ai_worker.errors import UsageError

LONGEST_NAME: Final = 100  # characters of api_token.name
PREFIX: Final = "aiw_"  # so that a token is known for one in a log, a diff or a search for leaked secrets
SESSION_SECONDS: Final = 12 * 3600  # a working day; a stolen cookie is of no use on the next one


class Scope(StrEnum):
    """What a token is good for. RUN and REVIEW include READ; ADMIN includes all."""

    READ = "read"
    RUN = "run"
    REVIEW = "review"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. `name` is the token's, and the reviewer's of what is reviewed with it."""

    id_api_token: int
    name: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether this is within the token's scopes."""
        return scope in self.scopes or Scope.ADMIN in self.scopes or (scope is Scope.READ and bool(self.scopes))


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A token as people see it. Times are in UTC without a zone."""

    name: str
    scopes: tuple[Scope, ...]
    created_at: datetime
    expire_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    is_expired: bool

    @property
    def is_valid(self) -> bool:
        """Whether it still opens anything."""
        return self.revoked_at is None and not self.is_expired


class Tokens:
    """Tokens, and the sessions of browsers that logged in with them."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, name: str, scopes: Collection[Scope], seconds: int | None = None) -> str:
        """Makes a token, valid for `seconds` or for ever, and returns it: nobody can find it out later.

        Raises UsageError for a name that is taken, empty or too long, and for no scope at all.
        """
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
            raise UsageError(f"the token's name {name!r} must have 1 to {LONGEST_NAME} printable characters and no blank ends")
        if not scopes:
            raise UsageError(f"a token needs a scope: {', '.join(Scope)}")
        token = PREFIX + secrets.token_urlsafe(32)
        values = {"name": name, "token_hash": digest(token), "scopes": ",".join(sorted(scopes)), "seconds": seconds}

        def work(tx: Transaction) -> bool:
            taken = next((row for row in tx.query("tokens") if row["name"] == name), None)
            if taken is not None:
                # By ourselves, where the answer to the first COMMIT was lost: the token in hand is the one that is stored.
                return tx.in_doubt and bool(tx.query("token_of_hash", {"token_hash": values["token_hash"]}))
            tx.execute("insert_token", values)
            return True

        if not self._db.transaction(work):
            raise UsageError(f"there is a token {name!r} already, or was; take another name")
        return token

    def all(self) -> list[TokenReport]:
        """All tokens, revoked ones too, the oldest first."""
        return [_report(row) for row in self._db.query("tokens")]

    def revoke(self, name: str) -> None:
        """Ends a token at once, everywhere, and the sessions with it. Raises UsageError where there is none that is valid."""
        if not self._db.execute("revoke_token", {"name": name}):
            raise UsageError(f"no token {name!r} that could be revoked; `ai-worker token list` names all")

    # ----- for the web

    def principal(self, token: str) -> Principal | None:
        """Whose token this is; None where nobody's, or no longer."""
        return self._principal(self._db.query("token_of_hash", {"token_hash": digest(token)}))

    def log_in(self, principal: Principal) -> str:
        """Begins a session for SESSION_SECONDS and returns its secret, which goes into a cookie."""
        session = secrets.token_urlsafe(32)
        self._db.execute("delete_old_sessions")
        self._db.transaction(
            lambda tx: tx.execute(
                "insert_session",
                {"session_hash": digest(session), "id_api_token": principal.id_api_token, "seconds": SESSION_SECONDS},
            )
        )
        return session

    def session(self, session: str) -> Principal | None:
        """Whose session this is; None where nobody's, or no longer."""
        return self._principal(self._db.query("token_of_session", {"session_hash": digest(session)}))

    def log_out(self, session: str) -> None:
        """Ends a session; twice does no harm."""
        self._db.execute("delete_session", {"session_hash": digest(session)})

    def _principal(self, rows: list[Row]) -> Principal | None:
        if not rows:
            return None
        row = rows[0]
        if row["is_stale"]:
            self._db.execute("note_token_used", {"id_api_token": row["id_api_token"]})
        return Principal(row["id_api_token"], row["name"], frozenset(_scopes(row)))


def digest(secret: str) -> bytes:
    """What the database keeps of a token or a session. One round is enough for 256 random bits: there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _scopes(row: Row) -> tuple[Scope, ...]:
    return tuple(Scope(scope) for scope in row["scopes"].split(",") if scope)


def _report(row: Row) -> TokenReport:
    return TokenReport(
        name=row["name"],
        scopes=_scopes(row),
        created_at=row["created_at"],
        expire_at=row["expire_at"],
        last_used_at=row["last_used_at"],
        revoked_at=row["revoked_at"],
        is_expired=bool(row["is_expired"]),
    )
