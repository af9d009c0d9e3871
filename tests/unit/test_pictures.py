"""What the bytes of a picture tell of it, and what becomes of bytes that lie."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ai_worker import pictures
from ai_worker.errors import BadAnswer
from ai_worker.models import File
from tests.fake_provider.pictures import MIME_TYPES, Wanted, picture


def drawn(kind: str, size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    """A picture as Pillow writes it, whose writers are not ours."""
    written = io.BytesIO()
    Image.new(mode, size, 100).save(written, kind, **options)
    return written.getvalue()


WRITTEN = {
    "png": (drawn("PNG", (30, 20)), "image/png"),
    "jpeg": (drawn("JPEG", (30, 20)), "image/jpeg"),
    "progressive jpeg": (drawn("JPEG", (30, 20), progressive=True), "image/jpeg"),
    "jpeg with a comment": (drawn("JPEG", (30, 20), comment=b"x" * 1000), "image/jpeg"),
    "gif": (drawn("GIF", (30, 20), "P"), "image/gif"),
    "webp": (drawn("WEBP", (30, 20)), "image/webp"),
    "lossless webp": (drawn("WEBP", (30, 20), lossless=True), "image/webp"),
    "webp with metadata": (drawn("WEBP", (30, 20), exif=b"Exif\0\0x"), "image/webp"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_kind_and_size_are_read_from_the_header(name: str) -> None:
    content, mime_type = WRITTEN[name]
    (file,) = pictures.completed([File(content, "application/octet-stream")])
    assert (file.mime_type, file.width, file.height) == (mime_type, 30, 20)
    assert file.sha256 == hashlib.sha256(content).digest()
    assert file.thumbnail is not None
    with Image.open(io.BytesIO(file.thumbnail)) as small:
        assert small.size == (30, 20)


@pytest.mark.parametrize("kind", list(MIME_TYPES))
def test_a_thumbnail_is_small(kind: str) -> None:
    (file,) = pictures.completed([File(picture("kot", Wanted(size="2000x1000", format=kind)), "image/png")])
    assert (file.mime_type, file.width, file.height) == (MIME_TYPES[kind], 2000, 1000)
    assert file.thumbnail is not None
    assert len(file.thumbnail) < 10_000
    with Image.open(io.BytesIO(file.thumbnail)) as small:
        assert small.size == (256, 128)


def test_a_transparent_picture_stays_so() -> None:
    (file,) = pictures.completed([File(drawn("PNG", (8, 8), "RGBA"), "image/png")])
    assert file.thumbnail is not None
    with Image.open(io.BytesIO(file.thumbnail)) as small:
        assert small.mode == "RGBA"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "image/png"),
        (b"", "video/mp4"),
        (b"<html>", "image/png"),
        (b"<html>", "image/jpeg; charset=binary"),
        (b"<html>", "text/html"),
        (b"<html>", ""),
        (b"<html>", "image/../../x"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, says: str) -> None:
    with pytest.raises(BadAnswer) as caught:
        pictures.completed([File(content, says)])
    assert caught.value.code == "not_a_picture"


def test_of_other_kinds_the_provider_is_believed() -> None:
    (file,) = pictures.completed([File(b"\0\0\0 ftypavif", "image/AVIF")])
    assert (file.mime_type, file.width, file.thumbnail) == ("image/avif", None, None)


def test_a_small_file_that_claims_to_be_a_huge_picture_is_not_decoded() -> None:
    bomb = bytearray(drawn("PNG", (8, 8)))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (file,) = pictures.completed([File(bytes(bomb), "image/png")])
    assert (file.width, file.height, file.thumbnail) == (60_000, 60_000, None)


def test_a_damaged_picture_is_stored_without_a_thumbnail() -> None:
    half = drawn("JPEG", (300, 300), quality=95)[:400]
    (file,) = pictures.completed([File(half, "image/jpeg")])
    assert (file.mime_type, file.thumbnail) == ("image/jpeg", None)


def test_without_pillow_there_are_no_thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_pillow", lambda: None)
    (file,) = pictures.completed([File(WRITTEN["png"][0], "image/png")])
    assert (file.width, file.thumbnail) == (30, None)


@given(st.sampled_from([content for content, _ in WRITTEN.values()]), st.integers(0, 60), st.binary(max_size=30))
def test_no_header_breaks_the_reader(content: bytes, cut: int, more: bytes) -> None:
    broken = content[:cut] + more
    found = pictures.pixels(broken)
    assert found is None or min(found) > 0


@pytest.mark.parametrize(
    ("size", "pixels", "said"),
    [
        (1_234_567, (1024, 768), "image/png 1024×768, 1.2 MB"),
        (1_234, (8, 8), "image/png 8×8, 1 kB"),
        (7, (None, None), "image/png, 1 kB"),
    ],
)
def test_a_picture_in_a_few_words(size: int, pixels: tuple[Any, Any], said: str) -> None:
    assert pictures.line("image/png", size, *pixels) == said
