"""Secrets at rest: encrypted with a master key that the database never sees, and bound to their row.

A value of ours in `ai_model.api_key_encrypted`, or `task_group.secret_encrypted`, is

    AW1 | key id (4 bytes) | nonce (12 bytes) | AES-256-GCM ciphertext and tag (16 bytes)

The key id is the beginning of the master key's SHA-256: it tells "encrypted with another key" from "damaged". The associated
data names the row, so that a value copied to another model's row (whose base_url may be an attacker's) does not decrypt there.

Anything else in the models' column is taken for what a panel wrote by MySQL's or MariaDB's `AES_ENCRYPT(key, passphrase)` in its
default mode: AES-128-ECB, PKCS#7 padding, the passphrase XOR-folded into 16 bytes. Such values are read, never written;
`ai-worker rekey` turns them into ours. Other values of `block_encryption_mode` are not read.
Source: https://dev.mysql.com/doc/refman/9.0/en/encryption-functions.html#function_aes-encrypt
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.padding import PKCS7

from ai_worker.errors import ConfigurationError
from ai_worker.models import Secret

MAGIC: Final = b"AW1"
KEY_BYTES: Final = 32
LONGEST_API_KEY: Final = 1500  # bytes of UTF-8: fits the column, VARBINARY(2048), with room to spare

_KEY_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 4, 12, 16
_HEADER_BYTES = len(MAGIC) + _KEY_ID_BYTES + _NONCE_BYTES


def generate_master_key() -> str:
    """A new master key, as AI_WORKER_MASTER_KEY takes it: base64 of 32 random bytes."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode("ascii")


class UnknownMasterKey(ConfigurationError):
    """A value was encrypted with a master key that is not at hand."""


class Keyring:
    """Encrypts with the current master key; decrypts with that one, earlier ones, and a panel's passphrase.

    Parameters
    ----------
    master_key: base64 of 32 bytes, None where none is set; then only values of a panel can be read.
    old_keys: master keys of the past, for `rekey`.
    legacy_aes_key: the passphrase with which a panel called AES_ENCRYPT.

    Raises ConfigurationError when a key is not base64 of 32 bytes.
    """

    def __init__(self, master_key: Secret | None, old_keys: Sequence[Secret] = (), legacy_aes_key: Secret | None = None) -> None:
        current = [] if master_key is None else [_decoded(master_key, "the master key (AI_WORKER_MASTER_KEY)")]
        past = [_decoded(key, "the old master key") for key in old_keys]
        self._current = current[0] if current else None
        self._by_id = {_key_id(key): key for key in (*past, *current)}
        self._legacy = None if legacy_aes_key is None else _folded(legacy_aes_key.reveal().encode())

    @property
    def has_master_key(self) -> bool:
        """Whether keys can be encrypted, and read when they are ours."""
        return self._current is not None

    def encrypt(self, id_ai_model: int, api_key: Secret) -> bytes:
        """The value for `api_key_encrypted` of this row. Raises ConfigurationError without a master key."""
        return self._seal(_bound_to(id_ai_model), api_key, "an API key")

    def encrypt_group(self, id_task_group: int, secret: Secret) -> bytes:
        """The same for `task_group.secret_encrypted`."""
        return self._seal(_bound_to_group(id_task_group), secret, "a callback's secret")

    def _seal(self, place: bytes, secret: Secret, what: str) -> bytes:
        if self._current is None:
            raise _no_master_key()
        plain = secret.reveal().encode()
        if not 0 < len(plain) <= LONGEST_API_KEY:
            raise ConfigurationError(f"{what} must have 1 to {LONGEST_API_KEY} bytes; this one has {len(plain)}")
        nonce = os.urandom(_NONCE_BYTES)
        return MAGIC + _key_id(self._current) + nonce + AESGCM(self._current).encrypt(nonce, plain, place)

    def decrypt(self, id_ai_model: int, value: bytes, name: str | None = None) -> Secret:
        """The API key in a row's `api_key_encrypted`.

        `name` is the model's, for messages; without it they give its number.
        Raises ConfigurationError saying why it cannot be had, and what to do: UnknownMasterKey where another one encrypted it.
        """
        called = str(id_ai_model) if name is None else name
        if not value.startswith(MAGIC):
            return self._decrypt_legacy(value, called)
        what = f"the API key of model {called}"
        return self._open(_bound_to(id_ai_model), value, what, "Set it anew with `ai-worker model set`")

    def decrypt_group(self, id_task_group: int, value: bytes, name: str) -> Secret:
        """The secret in a group's `secret_encrypted`; `name` is the group's. Raises as `decrypt` does."""
        what = f"the secret of group {name}"
        return self._open(_bound_to_group(id_task_group), value, what, "Make the group anew with `ai-worker group add`")

    def _open(self, place: bytes, value: bytes, what: str, remedy: str) -> Secret:
        if len(value) < _HEADER_BYTES + _TAG_BYTES:
            raise _unreadable(what, "is cut short", remedy)
        key = self._by_id.get(value[len(MAGIC) : len(MAGIC) + _KEY_ID_BYTES])
        if key is None:
            if self._current is None:
                raise _no_master_key()
            raise UnknownMasterKey(
                f"{what} was encrypted with another master key. Set AI_WORKER_MASTER_KEY to that "
                "one; to change over to a new one, run `ai-worker rekey`"
            )
        nonce = value[_HEADER_BYTES - _NONCE_BYTES : _HEADER_BYTES]
        try:
            plain = AESGCM(key).decrypt(nonce, value[_HEADER_BYTES:], place)
        except InvalidTag:
            plain = None
        if plain is None:
            raise _unreadable(what, "is damaged, or was copied from another row", remedy)
        return Secret(plain.decode())

    def is_current(self, value: bytes) -> bool:
        """Whether a value was encrypted by the current master key (and not by an earlier one, or by a panel)."""
        return self._current is not None and value.startswith(MAGIC + _key_id(self._current))

    def _decrypt_legacy(self, value: bytes, called: str) -> Secret:
        if self._legacy is None:
            raise ConfigurationError(
                f"the API key of model {called} was not encrypted by AI Worker. If a panel wrote it with AES_ENCRYPT, "
                "set AI_WORKER_LEGACY_AES_KEY to the panel's passphrase; otherwise set it anew with `ai-worker model set`"
            )
        plain = _aes_decrypt(self._legacy, value)
        if plain is None:
            remedy = "Set it anew with `ai-worker model set`"
            raise _unreadable(f"the API key of model {called}", "does not decrypt with AI_WORKER_LEGACY_AES_KEY", remedy)
        return Secret(plain)


def _aes_decrypt(key: bytes, value: bytes) -> str | None:
    """AES_DECRYPT as MySQL does it; None when the value, or what comes out, cannot be right."""
    if not value or len(value) % 16:
        return None
    decryptor = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305 -- the format of the existing values
    unpadder = PKCS7(128).unpadder()
    try:
        plain = unpadder.update(decryptor.update(value) + decryptor.finalize()) + unpadder.finalize()
        text = plain.decode()
    except ValueError:  # wrong padding, or not UTF-8
        return None
    # ECB has no integrity: a wrong passphrase passes the padding once in 256. An API key travels in a header: printable ASCII.
    return text if text and text.isascii() and text.isprintable() else None


def _folded(passphrase: bytes) -> bytes:
    """MySQL's way to 16 bytes of key: the passphrase is XORed over itself."""
    key = bytearray(16)
    for index, byte in enumerate(passphrase):
        key[index % 16] ^= byte
    return bytes(key)


def _decoded(key: Secret, what: str) -> bytes:
    try:
        decoded = base64.b64decode(key.reveal().strip(), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != KEY_BYTES:
        raise ConfigurationError(f"{what} is not base64 of {KEY_BYTES} bytes; `ai-worker keygen` prints one that is")
    return decoded


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[:_KEY_ID_BYTES]


def _bound_to(id_ai_model: int) -> bytes:
    return f"ai_model:{id_ai_model}:api_key_encrypted".encode("ascii")


def _bound_to_group(id_task_group: int) -> bytes:
    return f"task_group:{id_task_group}:secret_encrypted".encode("ascii")


def _no_master_key() -> ConfigurationError:
    return ConfigurationError(
        "no master key is set. Make one with `ai-worker keygen` and set AI_WORKER_MASTER_KEY or AI_WORKER_MASTER_KEY_FILE "
        "on every host; keep a copy: without it, the API keys in the database cannot be read"
    )


def _unreadable(what: str, why: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"{what} {why}. {remedy}")
