"""Pictures as people have them: every hazard gives the right pixels or one clear PictureError."""

import io
import os
import stat
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from sage import pictures
from sage.errors import NumericsError, PictureError, SettingsError

few = settings(derandomize=True, max_examples=25, deadline=None)
ORIENTATION = 0x0112


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height))
    for i, colour in enumerate(("red", "lime", "blue", "white")):
        image.paste(colour, (i % 2 * width // 2, i // 2 * height // 2, (i % 2 + 1) * width // 2,
                             (i // 2 + 1) * height // 2))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


# ---- reading


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "tiff", "gif", "avif"])
def test_formats(tmp_path, kind):
    image = pictures.open_picture(save(quarters(), tmp_path / f"p.{kind}"))
    assert image.mode == "RGB" and image.size == (32, 16)
    assert image.info == {}
    assert np.abs(pixels(image)[4, 4] - (255, 0, 0)).max() < 40 and np.abs(pixels(image)[12, 28] - 255).max() < 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation):
    turned = {1: (), 2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,),
              4: (Image.Transpose.FLIP_TOP_BOTTOM,), 5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,),
              7: (Image.Transpose.TRANSVERSE,), 8: (Image.Transpose.ROTATE_270,)}[orientation]
    stored = quarters()
    for step in turned:  # what a camera held that way would store
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = pictures.open_picture(save(stored, tmp_path / "p.png", exif=exif))
    assert np.array_equal(pixels(image), pixels(quarters()))
    assert np.array_equal(pixels(pictures.normalise(image)), pixels(quarters()))


def test_broken_exif_is_ignored(tmp_path):
    path = save(quarters(), tmp_path / "p.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x12\x01" * 7)
    assert pictures.open_picture(path).size == (32, 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_transparent_is_white_and_opaque_stays(mode):
    image = quarters().convert("RGBA")
    image.putalpha(Image.composite(Image.new("L", (32, 16), 255), Image.new("L", (32, 16), 0),
                                   Image.linear_gradient("L").resize((32, 16)).point(lambda v: 255 * (v > 127))))
    image = image.convert({"La": "LA", "PA": "P"}.get(mode, mode)) if mode != "PA" else _pa(image)
    image = image.convert("La") if mode == "La" else image
    out = pixels(pictures.normalise(image))
    assert (out[0] == 255).all()  # clear above: white, whatever colour hides there
    grey = mode in ("LA", "La")
    assert np.abs(out[-1, 0] - ((29, 29, 29) if grey else (0, 0, 255))).max() <= 2


def _pa(image: Image.Image) -> Image.Image:
    out = image.convert("RGB").convert("P").convert("PA")
    out.putalpha(image.getchannel("A"))
    return out


def test_half_transparent_is_half_white():
    out = pixels(pictures.normalise(Image.new("RGBA", (4, 4), (0, 100, 200, 128))))
    assert np.abs(out[0, 0] - (127, 177, 227)).max() <= 1


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 0)
    out = pixels(pictures.open_picture(save(image, tmp_path / "p.png", transparency=0)))
    assert out[0, 0].tolist() == [255] * 3 and out[3, 3].tolist() == [200, 100, 50]


def test_grey_with_a_clear_value(tmp_path):
    out = pixels(pictures.open_picture(save(Image.new("L", (4, 4), 7), tmp_path / "p.png", transparency=7)))
    assert (out == 255).all()


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 257, 40000, 65535]], dtype=np.uint16)
    for name in ("p.png", "p.tiff"):
        out = pixels(pictures.open_picture(save(Image.fromarray(values), tmp_path / name)))
        assert out[0, :, 0].tolist() == [0, 1, 156, 255]
    assert pixels(pictures.normalise(Image.fromarray(values.astype(np.int32))))[0, 2, 1] == 156
    big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert pixels(pictures.normalise(big))[0, :, 2].tolist() == [0, 1, 156, 255]


def test_numbers_without_a_range_are_refused(tmp_path):
    for values in (np.ones((4, 4), np.float32), np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32)):
        with pytest.raises(PictureError, match="8 or 16 bits"):
            pictures.open_picture(save(Image.fromarray(values), tmp_path / "p.tiff"))


def test_cmyk_one_bit_and_odd_modes(tmp_path):
    path = save(quarters().convert("CMYK"), tmp_path / "p.jpg", quality=95)
    assert np.abs(pixels(pictures.open_picture(path))[4, 4] - (255, 0, 0)).max() < 20
    path = save(quarters().convert("1"), tmp_path / "p.png")
    assert set(np.unique(pixels(pictures.open_picture(path)))) <= {0, 255}
    for mode in ("YCbCr", "HSV"):
        assert np.abs(pixels(pictures.normalise(quarters().convert(mode)))[4, 4] - (255, 0, 0)).max() <= 4


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for name in ("p.gif", "p.webp", "p.png", "p.tiff"):
        path = save(frames[0], tmp_path / name, save_all=True, append_images=frames[1:])
        assert np.abs(pixels(pictures.open_picture(path))[0, 0] - (255, 0, 0)).max() < 10


def test_a_profile_is_converted_to_srgb(tmp_path):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, lab, b"rubbish"):  # nothing to do, does not fit, unreadable
        image = pictures.open_picture(save(quarters(), tmp_path / "p.png", icc_profile=profile))
        assert np.array_equal(pixels(image), pixels(quarters())) and "icc_profile" not in image.info


def test_display_p3_gets_more_vivid(tmp_path):
    path = save(Image.new("RGB", (4, 4), (200, 100, 100)), tmp_path / "p.png", icc_profile=_display_p3())
    red, green, _ = pixels(pictures.open_picture(path))[0, 0]
    assert 205 <= red <= 220 and 88 <= green <= 98


def _display_p3() -> bytes:
    """A minimal v2 matrix profile with the D50-adapted primaries of Display P3 and a gamma of 2.2."""
    def number(x: float) -> bytes:
        return struct.pack(">i", round(x * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(number, values))

    text = b"P3\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 79,
            b"wtpt": xyz(0.9642, 1.0, 0.8249), b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
            b"gXYZ": xyz(0.2920, 0.6922, 0.0419), b"bXYZ": xyz(0.1571, 0.0666, 0.7841)}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I4xI4s4s4s12x4s20x", 128 + len(table) + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ",
                       b"acsp") + number(0.9642) + number(1.0) + number(0.8249)
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_a_file_cut_short_is_refused(tmp_path, kind):
    whole = save(noise(64, 64), tmp_path / f"p.{kind}").read_bytes()
    for share in (0.02, 0.5, 0.9):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(PictureError) as caught:
            pictures.open_picture(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_heic_picture_that_cannot_be_read_says_what_it_needs(tmp_path, monkeypatch):
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(PictureError, match=r"which needs pillow-heif: pip install 'sage-edit\[heif\]'"):
        pictures.open_picture(path)
    path.write_bytes(b"neither")
    with pytest.raises(PictureError, match="is no picture of a kind that is read here"):
        pictures.open_picture(path)


def test_a_heic_picture_is_read_upright_and_a_damaged_one_told(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed")
    picture = Image.new("RGB", (96, 64), (200, 30, 30))
    picture.paste((30, 30, 200), (48, 0, 96, 64))  # red on the left, blue on the right
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright: to be turned by a quarter
    path, jpeg = tmp_path / "IMG_0001.HEIC", tmp_path / "IMG_0001.jpg"
    heif.from_pillow(picture).save(path, exif=turned.tobytes(), quality=95)
    picture.save(jpeg, exif=turned, quality=95)
    read, same = pictures.open_picture(path), pictures.open_picture(jpeg)
    assert read.size == same.size == (64, 96) and read.mode == "RGB"
    assert np.abs(np.asarray(read, dtype=int) - np.asarray(same, dtype=int)).mean() < 4
    with pytest.raises(PictureError, match="pixels"):
        pictures.open_picture(path, most=1000)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(PictureError, match="IMG_0001.HEIC") as caught:
            pictures.open_picture(path)
        assert "\n" not in str(caught.value)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "text.png").write_text("I am no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    save(quarters(), tmp_path / "p.ppm")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "ps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name, word in (("text.png", "no picture of a kind"), ("empty.png", "no picture of a kind"),
                       ("p.ppm", "no picture of a kind"), ("ps.png", "no picture of a kind"),
                       ("pipe.png", "no plain file"), ("gone.png", "does not exist"), (".", "is a folder"),
                       ("x" * 300, "cannot be read|does not exist"), ("a\0b", "does not exist|cannot be read")):
        with pytest.raises(PictureError, match=word):
            pictures.open_picture(tmp_path / name)


@pytest.mark.parametrize("width, height", [(10_000, 5_001), (30_000, 30_000), (65_000, 65_000)])
def test_too_many_pixels_are_refused_before_decoding(tmp_path, width, height):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(PictureError, match="million"):
        pictures.open_picture(path)


@few
@given(st.sampled_from(["png", "jpg", "webp", "gif", "tiff", "bmp"]), st.data())
def test_damaged_bytes_give_a_picture_or_one_error(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    noise(24, 24).save(buffer, {"jpg": "JPEG"}.get(kind, kind))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / f"p.{kind}"
    path.write_bytes(raw)
    try:
        image = pictures.open_picture(path)
    except PictureError as error:
        assert "\n" not in str(error)
    else:
        assert image.mode == "RGB" and image.width * image.height <= pictures.MAX_PIXELS


@few
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"]), st.integers(1, 9),
       st.integers(1, 9), st.integers(0, 8))
def test_every_mode_becomes_rgb_of_the_right_size(mode, width, height, orientation):
    image = noise(width, height, 1).convert(mode) if mode == "I;16" else noise(width, height).convert(mode)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    out = pictures.normalise(image)
    assert out.mode == "RGB" and out.size == ((height, width) if orientation >= 5 else (width, height))


# ---- sizes and tensors


@few
@given(st.integers(1, 8000), st.integers(1, 8000), st.integers(1, 16), st.sampled_from([8, 16, 32, 64]))
def test_working_size(width, height, times, multiple):
    size = times * multiple
    w, h = pictures.working_size(width, height, size, multiple)
    assert w % multiple == h % multiple == 0 and min(w, h) >= multiple
    assert w <= 2 * size + multiple and h <= 2 * size + multiple
    assert (w - h) * (width - height) >= 0
    assert all(pictures.working_size(width, height, size, multiple, fit) == (size, size) for fit in ("squash", "crop"))
    assert pictures.working_size(size, size, size, multiple) == (size, size)


def test_working_size_keeps_aspect_and_area():
    assert pictures.working_size(1920, 1080, 512, 64) == (704, 384)
    assert pictures.working_size(3000, 4000, 512, 64) == (448, 576)
    assert pictures.working_size(10_000, 10, 512, 64) == (1024, 256)


@pytest.mark.parametrize("size, nearest", [(500, 512), (30, 64), (97, 128), (64 * 7 + 1, 448)])
def test_working_size_names_the_nearest(size, nearest):
    with pytest.raises(SettingsError, match=f"multiple of 64.* {nearest}$"):
        pictures.working_size(512, 512, size, 64)


def test_tensor_and_back():
    image = noise(32, 16)
    x = pictures.to_tensor(image, (32, 16))
    assert x.shape == (1, 3, 16, 32) and x.dtype == torch.float32 and x.is_contiguous()
    assert x.min() == -1 and x.max() == 1
    assert x[0, 1, 3, 5] == torch.tensor(image.getpixel((5, 3))[1], dtype=torch.float32) / 127.5 - 1
    assert np.array_equal(pixels(pictures.to_picture(x)), pixels(image))
    assert pictures.to_tensor(image, (64, 64)).shape == (1, 3, 64, 64)
    assert pictures.to_picture(x, (100, 7)).size == (100, 7)


def test_quantisation():
    x = torch.tensor([-5.0, -1.0, 2 * 99.6 / 255 - 1, 2 * 99.4 / 255 - 1, 1.0, 5.0]).expand(1, 3, 1, 6)
    assert pixels(pictures.to_picture(x))[0, :, 0].tolist() == [0, 0, 100, 99, 255, 255]
    assert pixels(pictures.to_picture(x, quantise="truncate"))[0, :, 0].tolist() == [0, 0, 99, 99, 255, 255]


def test_what_is_not_finite_becomes_no_picture():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericsError):
            pictures.to_picture(torch.full((1, 3, 2, 2), bad))


def test_mask_is_shown_as_what_is_left():
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0, 0] = 1
    shown = pictures.show_mask(quarters(), mask)
    assert shown.getpixel((2, 2)) == (255, 0, 0) and shown.getpixel((20, 2)) != (0, 255, 0)
    assert pictures.show_mask(quarters(), mask.bool()).getpixel((2, 2)) == (255, 0, 0)


# ---- writing


SETTINGS = {"source": "ein Hund — 犬 \U0001f415 \"quoted\" \\ \n",
            "config": {"steps": 50, "size": None, "pair": ["a", "b"]}}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_settings_survive_in_the_picture(tmp_path, kind, quick):
    path = pictures.save_picture(noise(32, 32), tmp_path / "new" / f"p.{kind}", SETTINGS, quick=quick)
    assert pictures.read_settings(path) == SETTINGS
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    same = pixels(pictures.open_picture(path)) == pixels(noise(32, 32))
    assert same.all() or kind.startswith("jp")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
json_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) |
                           st.dictionaries(st.text(max_size=5), inner), max_leaves=8)


@few
@given(st.dictionaries(st.text(max_size=10), json_values, max_size=4))
def test_any_settings_round_trip(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("settings") / "p.png"
    pictures.save_picture(noise(4, 4), path, values)
    assert pictures.read_settings(path) == values


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path, word in ((tmp_path / "p.bmp", "written as"), (tmp_path / "p", "written as"),
                       (tmp_path / "folder.png", "is a folder"), (tmp_path / "file" / "p.png", "cannot be written"),
                       (tmp_path / ("x" * 300 + ".png"), "cannot be written")):
        for attempt in (pictures.check_writable, lambda p: pictures.save_picture(noise(4, 4), p)):
            with pytest.raises(PictureError, match=word):
                attempt(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PictureError, match="may be written to"):
        pictures.check_writable(tmp_path / "p.png")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, stage):
    path = pictures.save_picture(noise(4, 4), tmp_path / "p.png", {"old": 1})

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, stage, fail)
    with pytest.raises(PictureError if isinstance(failure, OSError) else type(failure)):
        pictures.save_picture(noise(4, 4), path, {"new": 1})
    assert pictures.read_settings(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_reader_never_sees_half_a_picture(tmp_path):
    path, seen, stop = tmp_path / "p.png", [], threading.Event()
    pictures.save_picture(noise(256, 256), path)

    def read():
        while not stop.is_set():
            seen.append(pictures.open_picture(path).size)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(5):
        pictures.save_picture(noise(256, 256, seed=i), path)
    stop.set()
    reader.join()
    assert set(seen) <= {(256, 256)}


# ---- settings of strangers


def with_text(path: Path, text: str, key: str = "sage", compressed: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, text, zip=compressed)
    return save(noise(4, 4), path, pnginfo=info)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"text"', "[" * 60_000, '{"a":' * 10_000,
                                  "{" + " " * 70_000 + "}", '{"a": ' + "9" * 5000 + "}"],
                         ids=lambda text: text[:8])
def test_damaged_settings_are_refused(tmp_path, text):
    with pytest.raises(PictureError, match="damaged"):
        pictures.read_settings(with_text(tmp_path / "p.png", text))


def test_no_settings(tmp_path):
    for path in (save(noise(4, 4), tmp_path / "p.png"), save(noise(4, 4), tmp_path / "p.jpg"),
                 save(noise(4, 4), tmp_path / "p.webp"), with_text(tmp_path / "q.png", "{}", key="other")):
        with pytest.raises(PictureError, match="no settings"):
            pictures.read_settings(path)
    save(noise(4, 4), tmp_path / "p.gif")
    for name in ("p.gif", "gone.png", "."):
        with pytest.raises(PictureError):
            pictures.read_settings(tmp_path / name)


def test_a_text_bomb_is_refused(tmp_path):
    with pytest.raises(PictureError):
        pictures.read_settings(with_text(tmp_path / "p.png", "[" + " " * 5_000_000 + "]", compressed=True))


# ---- sheets


def test_sheet_enlarges_small_pictures_in_whole_pixels():
    row = [("input", noise(64, 64)), ("a blue mug on a wooden table, by the window, in the evening", noise(64, 64))]
    page = pictures.sheet([row, row[:1]])
    blown = noise(64, 64).resize((256, 256), Image.Resampling.NEAREST)
    assert page.width == 2 * 256 + 3 * 8
    found = pixels(page.crop((8, page.height - 8 - 256, 264, page.height - 8)))
    assert np.array_equal(found, pixels(blown))
    assert (pixels(page)[:, :8] == 255).all()


def test_sheet_reduces_large_pictures_and_keeps_aspect():
    page = pictures.sheet([[("wide", noise(2000, 500)), ("tall", noise(100, 300))]])
    assert page.width == 512 + 100 + 3 * 8
