"""Files that unfold to far more than they are: refused, or read in bounded memory and time."""

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.hardening import bombs
from tests.hardening.files import chunk, encoded, png

ROOT = Path(__file__).resolve().parents[2]


def tiff(width: int, height: int, **tags: int) -> bytes:
    """A TIFF file that claims more than it holds."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 2**31 - 1}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + b"," + struct.pack(
        "<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 66, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(12)


def refused() -> dict[str, bytes | None]:
    large = zlib.compress(b"a" * 100_000_000)
    return {
        "text.png": png(chunk(b"zTXt", b"sage\0\0" + large)),
        "texts.png": png(*[chunk(b"zTXt", b"t%d\0\0" % i + zlib.compress(b"a" * 10**6)) for i in range(100)]),
        "itext.png": png(chunk(b"iTXt", b"sage\0\1\0\0\0" + large)),
        "after.png": png(after=chunk(b"zTXt", b"sage\0\0" + large)),
        "profile.png": png(chunk(b"iCCP", b"p\0\0" + large)),
        "pixels.gif": gif(65_535, 65_535), "pixels.bmp": bmp(60_000, 60_000), "line.bmp": bmp(49_000_000, 1),
        "pixels.tiff": tiff(60_000, 60_000), "strip.tiff": tiff(7000, 7000),
        "samples.tiff": tiff(7000, 7000, t277=60_000), "bits.tiff": tiff(7000, 7000, t258=65_535),
        "nothing.tiff": tiff(0, 0), "loop.tiff": b"II*\0\x08\0\0\0" * 9,
        "noise.png": np.random.default_rng(0).bytes(100_000), "sparse.png": None}


SOUND = ("chunks.png", "exif.png", "whole.png", "whole.jpg", "grey.png")


def large_but_sound() -> dict[str, bytes]:
    """Files of the names in `SOUND`."""
    entries = b"\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0" * 65_535
    return dict(zip(SOUND, (
        png(*[chunk(b"tEXt", b"k%d\0v" % i) for i in range(100_000)]),
        png(chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + entries)),
        encoded(Image.new("RGBA", (7000, 7000)), "PNG", compress_level=1),
        encoded(Image.new("CMYK", (7000, 7000)), "JPEG"),
        encoded(Image.fromarray(np.zeros((7000, 7000), np.uint16)), "PNG", compress_level=1)), strict=True))


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    for name, raw in (refused() | large_but_sound()).items():
        with (folder / name).open("wb") as file:
            file.write(png() if raw is None else raw)
            if raw is None:
                file.truncate(2**40)
    done = subprocess.run([sys.executable, "-m", "tests.hardening.bombs", folder], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def opened(ends):
    return {name.split()[0]: end for name, end in ends.items() if name.endswith(" open_picture")}


def test_bombs_are_refused(ends):
    found = {name: end for name, end in opened(ends).items() if name not in SOUND}
    assert len(found) == 16
    for name, (end, seconds, _) in found.items():
        assert end != "accepted" and "\n" not in end and seconds < 10, (name, end, seconds)


def test_what_is_only_large_is_read(ends):
    for name in SOUND:
        end, seconds, _ = opened(ends)[name]
        assert end == "accepted" and seconds < 30, (name, end, seconds)


def test_memory_stays_bounded(ends):
    most = max(memory for _, _, memory in ends.values())
    assert most < bombs.MEMORY >> 20
    for name, (end, _, _) in ends.items():
        assert "read_settings" not in name or "no settings" in end or "read" in end or "damaged" in end, (name, end)
