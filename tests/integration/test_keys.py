"""Keys that a panel wrote with AES_ENCRYPT, asked of the servers themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ai_worker.keys import Keyring
from ai_worker.models import Secret


@pytest.mark.parametrize("passphrase", ["k", "exactly16bytes!!", "hasło panelu, dłuższe niż szesnaście bajtów", "x" * 48])
@pytest.mark.parametrize("key", ["a", "sk-proj-abc_DEF-0123456789", "y" * 16, "z" * 500])
def test_what_aes_encrypt_wrote_is_read(sql: Callable[..., list[dict[str, Any]]], passphrase: str, key: str) -> None:
    value = sql("SELECT AES_ENCRYPT(%s, %s) AS value", (key, passphrase))[0]["value"]
    assert Keyring(None, legacy_aes_key=Secret(passphrase)).decrypt(7, value).reveal() == key
