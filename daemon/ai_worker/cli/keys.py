"""`keygen` and `rekey`: the master key, and changing over to a new one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ai_worker.cli import context
from ai_worker.cli.secrecy import keep_memory_private
from ai_worker.config import PREFIX, encoding_of
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

    keep_memory_private()
    click.echo(generate_master_key())


@click.command()
@click.option(
    "--old-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the master key used so far; AI_WORKER_MASTER_KEY_OLD does as well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the number of keys as JSON.")
def rekey(old_key_file: Path | None, as_json: bool) -> None:
    """Encrypt all API keys anew, with the present master key, and the secrets of groups' callbacks.

    Reads what earlier master keys encrypted, and what a panel wrote with AES_ENCRYPT (AI_WORKER_LEGACY_AES_KEY). All keys are
    changed in one transaction, and all secrets in another: if one cannot be read, none of its kind is touched.

    To change over without a pause: set the new key as AI_WORKER_MASTER_KEY and the old one as AI_WORKER_MASTER_KEY_OLD on
    every host, restart the workers, run this command, then take AI_WORKER_MASTER_KEY_OLD away.
    """
    from ai_worker.store.groups import Groups
    from ai_worker.store.models import Models

    settings = context.settings()
    ring = context.keyring(settings, [Secret(read_secret(old_key_file))] if old_key_file else [])
    if not ring.has_master_key:
        raise ConfigurationError(f"set the new master key first, as {PREFIX}MASTER_KEY or {PREFIX}MASTER_KEY_FILE")
    with context.database(settings) as db:
        models = Models(db)
        names = {each.id_ai_model: each.name for each in models.all()}
        seen: set[int] = set()  # no counter, for a transaction that meets a conflict is run again

        def seal(number: int, value: bytes) -> bytes | None:
            seen.add(number)
            return _anew(ring, number, value, names.get(number, str(number)))

        def seal_group(number: int, value: bytes) -> bytes | None:
            seen.add(-number)
            secret = ring.decrypt_group(number, value, str(number))
            return None if ring.is_current(value) else ring.encrypt_group(number, secret)

        count = models.rekey(seal) + Groups(db).rekey(seal_group)
    if as_json:
        context.emit_json({"rekeyed": count})
    elif not seen:
        click.echo("There is no key to encrypt.")
    elif not count:
        click.echo("1 key is current already." if len(seen) == 1 else f"{len(seen)} keys are current already.")
    else:
        click.echo(f"{count} {'key' if count == 1 else 'keys'} encrypted anew.")


def _anew(ring: Keyring, number: int, value: bytes, name: str) -> bytes | None:
    """The value under the present key, None when it is so already. Opened in any case: a damaged key never counts as done."""
    from ai_worker.keys import UnknownMasterKey

    try:
        api_key = ring.decrypt(number, value, name)
    except UnknownMasterKey:
        raise ConfigurationError(
            f"the API key of model {name} was encrypted with a master key that is neither the current one nor given. Give that "
            f"one by --old-key-file or {PREFIX}MASTER_KEY_OLD; if it is lost, set the API key anew with `ai-worker model set`"
        ) from None
    return None if ring.is_current(value) else ring.encrypt(number, api_key)


def read_secret(path: Path) -> str:
    """A secret from a file, without the line end that editors put there. Raises UsageError when there is none in it."""
    try:
        text = path.read_text(encoding=encoding_of(path)).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not text:
        raise UsageError(f"{path} is empty")
    return text
