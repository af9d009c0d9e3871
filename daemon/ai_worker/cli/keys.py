"""`keygen` and `rekey`: the master key, and changing over to a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ai_worker.cli import context
from ai_worker.config import PREFIX
from ai_worker.errors import ConfigurationError, UsageError
from ai_worker.models import Secret

if TYPE_CHECKING:
    from ai_worker.keys import Keyring


@click.command()
def keygen() -> None:
    """Print a new master key.

    It encrypts the API keys in the database. Give it to every host, by AI_WORKER_MASTER_KEY, AI_WORKER_MASTER_KEY_FILE or a
    systemd credential, and keep a copy: without it the API keys cannot be read.

    \b
    ( umask 077; ai-worker keygen > /etc/ai-worker/master-key )
    """
    from ai_worker.keys import generate_master_key

    click.echo(generate_master_key())


@click.command()
@click.option(
    "--old-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the master key used so far; AI_WORKER_MASTER_KEY_OLD does as well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the number of keys as JSON.")
def rekey(old_key_file: Path | None, as_json: bool) -> None:
    """Encrypt all API keys anew, with the present master key.

    Reads what earlier master keys encrypted, and what a panel wrote with AES_ENCRYPT (AI_WORKER_LEGACY_AES_KEY). All keys are
    changed in one transaction: if one cannot be read, none is touched.

    To change over without a pause: set the new key as AI_WORKER_MASTER_KEY and the old one as AI_WORKER_MASTER_KEY_OLD on
    every host, restart the workers, run this command, then take AI_WORKER_MASTER_KEY_OLD away.
    """
    from ai_worker.store.models import Models

    settings = context.settings()
    ring = context.keyring(settings, [Secret(read_secret(old_key_file))] if old_key_file else [])
    if not ring.has_master_key:
        raise ConfigurationError(f"set the new master key first, as {PREFIX}MASTER_KEY or {PREFIX}MASTER_KEY_FILE")
    with context.database(settings) as db:
        count = Models(db).rekey(lambda number, value: _anew(ring, number, value))
    if as_json:
        context.emit_json({"rekeyed": count})
    else:
        click.echo(f"{count} {'key' if count == 1 else 'keys'} encrypted anew.")


def _anew(ring: Keyring, number: int, value: bytes) -> bytes | None:
    """The value under the present key, None when it is so already. Opened in any case: a damaged key never counts as done."""
    api_key = ring.decrypt(number, value)
    return None if ring.is_current(value) else ring.encrypt(number, api_key)


def read_secret(path: Path) -> str:
    """A secret from a file, without the line end that editors put there. Raises UsageError when there is none in it."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not text:
        raise UsageError(f"{path} is empty")
    return text
