"""Any picture file gives an RGB picture of the promised size or one PictureError; any picture can be edited."""

import mmap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sage
from sage import EditConfig, pictures
from sage.errors import PictureError
from tests import small
from tests.hardening import files
from tests.hardening.ends import ends_well, tries

MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA"),
         "BMP": ("1", "L", "P", "RGB"), "GIF": ("1", "L", "P", "RGB"),
         "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "I")}
SIDES = st.one_of(st.integers(1, 40), st.sampled_from((1, 255, 256, 257)))


@st.composite
def picture_files(draw) -> tuple[bytes, tuple[int, int], str]:
    """A whole file, the size that it is meant to be seen at, and its mode."""
    kind = draw(st.sampled_from(sorted(MODES)))
    mode, width, height = draw(st.sampled_from(MODES[kind])), draw(SIDES), draw(SIDES)
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    orientation, options = draw(st.integers(1, 8)), {}
    if kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if mode == "P" and kind in ("PNG", "GIF") and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    if kind == "TIFF" and mode in ("1", "L", "RGB") and draw(st.booleans()):
        options["compression"] = draw(st.sampled_from(("tiff_lzw", "tiff_adobe_deflate", "packbits")))
    turned = "exif" in options and 5 <= orientation <= 8
    return files.encoded(image, kind, **options), (height, width) if turned else (width, height), mode


@tries(40, 1000)
@given(picture_files())
def test_a_whole_file_gives_a_picture_of_its_size(tmp_path_factory, made):
    raw, size, mode = made
    path = tmp_path_factory.mktemp("p") / "p"
    path.write_bytes(raw)
    image = ends_well("pictures, whole", lambda: pictures.open_picture(path), PictureError)
    assert image is not None or mode in ("F", "I")  # numbers of no known range
    assert image is None or image.mode == "RGB" and image.size == size and image.info == {}


def test_no_file_is_mapped(tmp_path, monkeypatch):
    """One that is mapped ends the process when another cuts it short."""
    monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("mapped"))
    Image.new("RGB", (9, 9)).save(tmp_path / "p.tiff")
    assert pictures.open_picture(tmp_path / "p.tiff").size == (9, 9)


@tries(100, 5000)
@given(picture_files(), st.data())
def test_a_damaged_file_gives_a_picture_or_one_error(tmp_path_factory, made, data):
    raw = data.draw(files.damaged(made[0], first=8))
    if raw.startswith(files.PNG):
        raw = files.rechecked(raw)
    path = tmp_path_factory.mktemp("p") / "p"
    path.write_bytes(raw)
    image = ends_well("pictures, damaged", lambda: pictures.open_picture(path), PictureError)
    assert image is None or image.mode == "RGB" and image.width * image.height <= pictures.MAX_PIXELS
    ends_well("settings of damaged pictures", lambda: pictures.read_settings(path), PictureError)


@tries(40, 1000)
@given(st.integers(1, pictures.MAX_SIDE), st.integers(1, 3), st.booleans(), st.sampled_from((".png", ".jpg", ".webp")))
def test_thin_pictures(tmp_path_factory, long, short, upright, ending):
    """Long lines become tensors, sheets and files again, or are refused before any work."""
    image = Image.new("RGB", (short, long) if upright else (long, short))
    size = pictures.working_size(*image.size, 64, 8)
    assert pictures.to_tensor(image, size).shape == (1, 3, size[1], size[0])
    assert max(pictures.sheet([[("input", image)]]).size) < 700
    path = tmp_path_factory.mktemp("p") / f"p{ending}"
    early = ends_well("thin pictures", lambda: pictures.check_writable(path, image.size) or True, PictureError)
    assert bool(early) == (long <= 16_383 or ending != ".webp")
    if early:
        assert Image.open(pictures.save_picture(image, path, {"a": 1})).size == image.size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("pictures") / "tokenizer").model


@tries(4, 100)
@given(st.sampled_from(("RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16")), st.integers(1, 300), st.integers(1, 300))
def test_any_picture_can_be_edited(model, mode, width, height):
    image = Image.new(mode, (width, height))
    config = EditConfig(steps=1, cross_level=1, size=64)
    result = ends_well("pictures, edited", lambda: sage.edit(model, image, "a cat on a mat", "a dog on a mat", config))
    assert result.image.size == (width, height) and result.image.mode == "RGB" and result.latents.isfinite().all()
