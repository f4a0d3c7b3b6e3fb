"""Files to be broken: bytes damaged in the ways that disks, networks and strangers do."""

import io
import json
import struct
import zlib
from typing import Any

from hypothesis import strategies as st
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


@st.composite
def damaged(draw, raw: bytes, first: int = 0) -> bytes:
    """Bytes that were cut, flipped, set, doubled or left out, from byte `first` on."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(min(first, len(out)), len(out)))
        kind = draw(st.sampled_from(("cut", "flip", "set", "double", "drop", "number")))
        length = draw(st.integers(1, 40))
        if kind == "cut":
            del out[at:]
        elif kind == "flip" and at < len(out):
            out[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            out[at:at + length] = draw(st.binary(min_size=1, max_size=40))
        elif kind == "double":
            out[at:at] = out[at:at + length]
        elif kind == "drop":
            del out[at:at + length]
        elif kind == "number":
            lie = draw(st.sampled_from((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xFFFF, 0x10000)))
            out[at:at + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", lie)
    return bytes(out)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file, with the right checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*more: bytes, size: tuple[int, int] = (8, 8), after: bytes = b"") -> bytes:
    """A PNG file with more chunks before its pixels, or after them."""
    width, height = size
    rows = zlib.compress(b"".join(b"\0" + b"\x20\x80\xe0" * width for _ in range(height)))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG + head + b"".join(more) + chunk(b"IDAT", rows) + after + chunk(b"IEND", b"")


def rechecked(raw: bytes) -> bytes:
    """A damaged PNG file with its checksums put right, so that what lies behind them is reached."""
    out, at = bytearray(raw[:8]), 8
    while at + 8 <= len(raw):
        length = int.from_bytes(raw[at:at + 4], "big")
        name, data = raw[at + 4:at + 8], raw[at + 8:at + 8 + length]
        out += raw[at:at + 8] + data + struct.pack(">I", zlib.crc32(name + data))
        at += 12 + length
    return bytes(out)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_settings(text: str, kind: str = "PNG") -> bytes:
    """A picture that carries a text where `sage edit` stores its settings."""
    if kind == "PNG":
        return png(chunk(b"iTXt", b"sage\0\0\0\0\0" + text.encode("utf-8", "surrogatepass")))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + text.encode("utf-8", "surrogatepass")
    return encoded(Image.new("RGB", (8, 8)), kind, exif=exif)


# JSON as strangers write it: right and wrong types, numbers out of any range, texts of any length, nested without end.
NUMBERS = st.one_of(st.integers(), st.integers(-3, 3), st.floats(), st.sampled_from(
    (0, -1, 1e308, -1e308, 5e-324, 10**18, 2**31, 2**63, 2**64, 10**300, 0.5, float("nan"), float("inf"))))
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(
    ("", " ", "auto", "none", "\0", "\n", "\u202e", "..", "../../x", "/etc/passwd", "x" * 70_000, "\ud800",
     "\x1b[31m", "NaN", "1")))
VALUES = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
                      lambda inner: st.one_of(st.lists(inner, max_size=4),
                                              st.dictionaries(st.text(max_size=8), inner, max_size=4)), max_leaves=8)
DEPTHS = st.sampled_from((10, 49, 51, 200, 900, 970, 980, 985, 990, 1100, 5000, 20_000))


@st.composite
def hostile_json(draw, honest: dict[str, Any]) -> str:
    """The text of an object with some values changed, left out or added; now and then nested too deeply."""
    values = dict(honest)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(honest)), st.text(max_size=10)))
        if draw(st.integers(0, 4)):
            values[name] = draw(VALUES)
        else:
            values.pop(name, None)
    text = json.dumps(values, ensure_ascii=draw(st.booleans()))
    if not draw(st.integers(0, 9)):
        depth, name = draw(DEPTHS), draw(st.sampled_from(sorted(honest)))
        text = text[:-1] + ("," if values else "") + json.dumps(name) + ":" + "[" * depth + "]" * depth + "}"
    return text
