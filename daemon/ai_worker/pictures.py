"""What the bytes of a picture say of it: its kind, its size, its checksum; and a thumbnail, where Pillow is installed.

Kinds are told by the formats' own signatures, never by what a server calls them. Nothing is decoded but for a thumbnail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from io import BytesIO
from types import ModuleType
from typing import Any, Final

from ai_worker.errors import BadAnswer
from ai_worker.models import File

THUMBNAIL_SIDE: Final = 256  # pixels of the longer side
THUMBNAIL_BYTES: Final = 200_000
PIXELS_AT_MOST: Final = 80_000_000  # of a picture that is decoded: a small file can claim to be a huge picture

EXTENSIONS: Final[Mapping[str, str]] = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
# What a provider may say of bytes that are none of these: `video/mp4`, `image/avif`.
_SANE = re.compile(r"(image|audio|video|application)/[A-Za-z0-9][A-Za-z0-9.+-]{0,80}")
# JPEG frames, whose headers hold the size: ITU T.81, table B.1, without DHT (C4), JPG (C8) and DAC (CC).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def completed(files: Iterable[File]) -> tuple[File, ...]:
    """The files with their true MIME types, sizes, checksums and thumbnails. Slow for large ones: call it in a thread.

    Raises BadAnswer for a file that is empty, or that is no picture although it says so, or says nothing.
    """
    return tuple(file if file.sha256 is not None else _completed(file) for file in files)


def described(file: File) -> dict[str, Any]:
    """What is told of a file in results: mime_type, size in bytes, sha256 in hexadecimal, width and height in pixels."""
    return {
        "mime_type": file.mime_type,
        "size": len(file.content),
        "sha256": (file.sha256 or hashlib.sha256(file.content).digest()).hex(),
        "width": file.width,
        "height": file.height,
    }


def line(mime_type: str, size: int, width: int | None, height: int | None) -> str:
    """A file in a few words: `image/png 1024×1024, 1.2 MB`."""
    pixels = f" {width}×{height}" if width and height else ""
    return f"{mime_type}{pixels}, " + (f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1000))} kB")


def mime_type(content: bytes) -> str | None:
    """The kind of picture that the bytes are, None when they are none that is known here."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    if content[:6] in (b"GIF87a", b"GIF89a"):
        return "image/gif"
    return None


def pixels(content: bytes) -> tuple[int, int] | None:
    """Width and height as the picture's header names them; None where it does not."""
    sizes = None
    match mime_type(content):
        case "image/png" if content[12:16] == b"IHDR" and len(content) >= 24:
            sizes = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        case "image/gif" if len(content) >= 10:
            sizes = int.from_bytes(content[6:8], "little"), int.from_bytes(content[8:10], "little")
        case "image/webp":
            sizes = _webp_pixels(content)
        case "image/jpeg":
            sizes = _jpeg_pixels(content)
    return sizes if sizes and all(0 < side < 2**31 for side in sizes) else None


def _completed(file: File) -> File:
    content = bytes(file.content)
    kind = mime_type(content)
    if kind is None:
        said = file.mime_type.split(";")[0].strip().lower()
        if not content or said in EXTENSIONS or not _SANE.fullmatch(said):
            what = f"says that it is {said!r}, and is not" if said and content else "is nothing that is known here"
            raise BadAnswer(f"the file that came back ({len(content)} bytes) {what}", code="not_a_picture")
        kind = said
    width, height = pixels(content) or (None, None)
    return File(content, kind, width, height, hashlib.sha256(content).digest(), _thumbnail(content, width, height))


def _webp_pixels(content: bytes) -> tuple[int, int] | None:
    """RFC 9649: of the first chunk, `VP8X` (extended), `VP8L` (lossless) or `VP8 ` (lossy)."""
    head = content[20:30]
    if len(head) < 10:
        return None
    match content[12:16]:
        case b"VP8X":
            return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
        case _:
            return None


def _jpeg_pixels(content: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill bytes before a marker
            at += 1
        elif marker in _FRAMES:
            return int.from_bytes(content[at + 7 : at + 9]), int.from_bytes(content[at + 5 : at + 7])
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return None


@cache
def _pillow() -> ModuleType | None:
    """Pillow's `Image`, of the extra `images`; None where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        return None
    return Image


def _thumbnail(content: bytes, width: int | None, height: int | None) -> bytes | None:
    """A small WebP, or PNG where Pillow cannot write WebP; None where there is no Pillow, or the picture is not to be decoded."""
    image = _pillow()
    if image is None or not width or not height or width * height > PIXELS_AT_MOST:
        return None
    try:
        with image.open(BytesIO(content), formats=("PNG", "JPEG", "WEBP", "GIF")) as opened:
            if opened.size[0] * opened.size[1] > PIXELS_AT_MOST:  # the decoder reads the header for itself
                return None
            opened.draft("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE))  # a JPEG is decoded at a fraction of its size
            small = opened.convert("RGBA" if "A" in opened.getbands() or "transparency" in opened.info else "RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        for kind in ("WEBP", "PNG"):
            written = BytesIO()
            try:
                small.save(written, kind)
            except (KeyError, OSError):  # this Pillow has no such writer
                continue
            if written.tell() <= THUMBNAIL_BYTES:
                return written.getvalue()
    except Exception:  # noqa: BLE001 -- a picture that cannot be decoded is stored all the same, without a thumbnail
        return None
    return None
