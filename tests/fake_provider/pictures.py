"""Pictures without a model: valid PNG, JPEG and WebP, the same for the same prompt, and as large as a test wants them.

What is drawn is one colour, taken from the prompt; what makes a picture large is noise in a part of the file that viewers pass
over. Written after the formats' specifications: PNG 3rd edition, ITU T.81 (JPEG), RFC 9649 (WebP).
"""

from __future__ import annotations

import hashlib
import random
import re
import struct
import zlib
from dataclasses import dataclass

MIME_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
SIDES = {"1K": 1024, "2K": 2048, "4K": 4096}
DEFAULT_SIDE = 1024
_BYTES = re.compile(r"\bpicture of (\d+) bytes\b")


@dataclass(frozen=True)
class Wanted:
    """What a request wants: `size` is `1024x1024`, `auto` or a ratio such as `16:9`; `resolution` 1K, 2K or 4K."""

    size: str | None = None
    quality: str | None = None
    format: str | None = None
    resolution: str | None = None

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height. Raises ValueError for a size that is none."""
        if self.size in (None, "auto"):
            side = SIDES[self.resolution or "1K"]
            return side, side
        assert self.size is not None
        if found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size):
            return int(found[1]), int(found[2])
        if found := re.fullmatch(r"(\d{1,2}):(\d{1,2})", self.size):
            across, down = int(found[1]), int(found[2])
            side = SIDES[self.resolution or "1K"]
            return (side, side * down // across) if across > down else (side * across // down, side)
        raise ValueError(f"size {self.size!r}")


def picture(text: str, wanted: Wanted, size: int | None = None) -> bytes:
    """The picture for a prompt. `size` in bytes; else as the prompt says (`picture of 8388608 bytes`), else as it comes out.

    Raises ValueError for a size, a format or a number of bytes that cannot be.
    """
    if (wanted.format or "png") not in MIME_TYPES:
        raise ValueError(f"output_format {wanted.format!r}")
    said = _BYTES.search(text)
    size = int(said[1]) if said else size
    seed = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    draw = {"png": _png, "jpeg": _jpeg, "webp": _webp}[wanted.format or "png"]
    width, height = wanted.pixels
    if not size:
        return draw(width, height, seed, b"")
    bare = len(draw(width, height, seed, bytes(1))) - 1
    padding = size - bare
    if padding < 1:
        raise ValueError(f"a picture of {size} bytes; the least is {bare + 1}")
    for _ in range(3):  # a JPEG's comments have heads of their own, in proportion
        whole = draw(width, height, seed, random.Random(seed).randbytes(padding))  # noqa: S311 -- noise
        if len(whole) == size:
            return whole
        padding -= len(whole) - size
    raise ValueError(f"a {wanted.format} of {size} bytes")  # WebP's chunks are even


def _png(width: int, height: int, seed: bytes, noise: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + bytes(-(-width // 8))  # of one bit each, the palette's first colour
    head = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), chunk(b"PLTE", seed[:3] + b"\xff\xff\xff")]
    chunks += [chunk(b"noIs", noise)] if noise else []
    chunks += [chunk(b"IDAT", zlib.compress(row * height, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# The usual Huffman tables for brightness (T.81, K.3), as far as they are needed: differences of DC, and the end of a block.
_DC = bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]) + bytes(range(12))
_DC_CODES = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110", "1111110", "11111110", "111111110")
_AC = bytes([1] + [0] * 15) + b"\0"  # one code, `0`: end of block


def _jpeg(width: int, height: int, seed: bytes, noise: bytes) -> bytes:
    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    level = seed[0] * 8 - 1024 or 8  # of the one brightness, as the first block's DC; the others differ by nothing
    bits = abs(level).bit_length()
    value = level if level > 0 else level + (1 << bits) - 1
    blocks = -(-width // 8) * -(-height // 8)
    stream = f"{_DC_CODES[bits]}{value:0{bits}b}0" + (_DC_CODES[0] + "0") * (blocks - 1)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8).replace(b"\xff", b"\xff\0")
    comments = b"".join(segment(0xFE, noise[start : start + 65_000]) for start in range(0, len(noise), 65_000))
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            comments,
            segment(0xDB, b"\0" + bytes([1] * 64)),
            segment(0xC0, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
            segment(0xC4, b"\x00" + _DC),
            segment(0xC4, b"\x10" + _AC),
            segment(0xDA, bytes([1, 1, 0, 0, 63, 0])),
            scan,
            b"\xff\xd9",
        ]
    )


def _webp(width: int, height: int, seed: bytes, noise: bytes) -> bytes:
    """Lossless: five prefix codes of one symbol each, so that no pixel takes a bit."""
    bits = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    for symbol in (seed[1], seed[0], seed[2], 255):  # green, red, blue, alpha
        bits += [(1, 1), (0, 1), (1, 1), (symbol, 8)]
    bits += [(1, 1), (0, 1), (0, 1), (0, 1)]  # of distances, which there are none
    packed = length = 0
    for value, count in bits:
        packed |= value << length
        length += count
    content = b"\x2f" + packed.to_bytes(-(-length // 8), "little")
    chunks = _riff(b"VP8L", content) + (_riff(b"NOIS", noise) if noise else b"")
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _riff(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
