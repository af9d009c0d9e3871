"""API keys at rest: what is encrypted comes back, in its own row and with the right master key only."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_worker.errors import ConfigurationError
from ai_worker.keys import LONGEST_API_KEY, Keyring, generate_master_key
from ai_worker.models import Secret

MASTER = Secret(generate_master_key())
RING = Keyring(MASTER)
PANEL_VALUE = bytes.fromhex("53E61674DBCC997DD27BD802A2EB9F22")  # AES_ENCRYPT('a', 'k'), of MariaDB 10.11 and MySQL 9.7 alike


@given(st.text(min_size=1, max_size=300), st.integers(1, 2**32 - 1))
def test_a_key_comes_back(key: str, number: int) -> None:
    if not key.isprintable():  # lone surrogates cannot be encoded, and no key holds control characters
        return
    value = RING.encrypt(number, Secret(key))
    assert RING.decrypt(number, value).reveal() == key
    assert len(value) <= 2048
    assert RING.is_current(value)


def test_the_longest_key_fits_the_column() -> None:
    assert len(RING.encrypt(1, Secret("x" * LONGEST_API_KEY))) <= 2048


@pytest.mark.parametrize("key", ["", "x" * (LONGEST_API_KEY + 1)])
def test_unusable_keys_are_refused(key: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 1500 bytes"):
        RING.encrypt(1, Secret(key))


def test_equal_keys_look_different() -> None:
    assert RING.encrypt(1, Secret("sk-1")) != RING.encrypt(1, Secret("sk-1"))


def test_a_value_does_not_decrypt_in_another_row() -> None:
    value = RING.encrypt(1, Secret("sk-secret"))
    with pytest.raises(ConfigurationError, match="model 2 is damaged, or was copied from another row"):
        RING.decrypt(2, value)


@pytest.mark.parametrize("position", [8, 15, 20, -1])
def test_a_damaged_value_is_noticed(position: int) -> None:
    value = bytearray(RING.encrypt(1, Secret("sk-secret")))
    value[position] ^= 1
    with pytest.raises(ConfigurationError, match="damaged"):
        RING.decrypt(1, bytes(value))


def test_a_value_cut_short_is_noticed() -> None:
    with pytest.raises(ConfigurationError, match="cut short"):
        RING.decrypt(1, RING.encrypt(1, Secret("sk-secret"))[:30])


def test_another_master_key_is_told_from_damage() -> None:
    value = RING.encrypt(1, Secret("sk-secret"))
    with pytest.raises(ConfigurationError, match="another master key") as error:
        Keyring(Secret(generate_master_key())).decrypt(1, value)
    assert "sk-secret" not in str(error.value)
    assert MASTER.reveal() not in str(error.value)


def test_an_old_master_key_still_reads_and_never_writes() -> None:
    value = RING.encrypt(1, Secret("sk-secret"))
    new = Keyring(Secret(generate_master_key()), old_keys=[MASTER])
    assert new.decrypt(1, value).reveal() == "sk-secret"
    assert not new.is_current(value)
    assert new.is_current(new.encrypt(1, Secret("x")))


def test_without_a_master_key_nothing_works_and_the_message_says_what_to_do() -> None:
    empty = Keyring(None)
    assert not empty.has_master_key
    for attempt in (lambda: empty.encrypt(1, Secret("x")), lambda: empty.decrypt(1, RING.encrypt(1, Secret("x")))):
        with pytest.raises(ConfigurationError, match="ai-worker keygen"):
            attempt()


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(bytes(31)).decode(), "ą" * 44, "!" * 44])
def test_a_master_key_of_the_wrong_shape_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError, match="base64 of 32 bytes") as error:
        Keyring(Secret(key))
    assert not key or key not in str(error.value)


def test_a_panels_value_is_read() -> None:
    ring = Keyring(None, legacy_aes_key=Secret("hasło panelu, dłuższe niż szesnaście bajtów"))
    with pytest.raises(ConfigurationError, match="does not decrypt with AI_WORKER_LEGACY_AES_KEY"):
        ring.decrypt(1, bytes(16))
    assert Keyring(None, legacy_aes_key=Secret("k")).decrypt(1, PANEL_VALUE).reveal() == "a"


def test_a_panels_value_needs_the_panels_passphrase() -> None:
    with pytest.raises(ConfigurationError, match="AI_WORKER_LEGACY_AES_KEY to the panel's passphrase"):
        RING.decrypt(1, PANEL_VALUE)
    with pytest.raises(ConfigurationError, match="does not decrypt"):
        Keyring(None, legacy_aes_key=Secret("wrong")).decrypt(1, PANEL_VALUE)
    with pytest.raises(ConfigurationError, match="does not decrypt"):
        Keyring(None, legacy_aes_key=Secret("k")).decrypt(1, PANEL_VALUE[:-1])


def test_a_keyring_does_not_show_its_keys() -> None:
    assert MASTER.reveal() not in repr(RING)
    assert MASTER.reveal() not in repr(vars(RING))
