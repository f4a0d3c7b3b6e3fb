"""Picture files, opened as a stranger's and written whole; the settings of an edit inside its picture.  No torch."""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from sage.errors import PictureError
from sage.files import numbered, open_plain, parse_json, unwritable, written_whole

MAX_BYTES = 2**29  # of a file: 50 million pixels of four times 16 bits, not compressed, are less
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_500  # a JPEG's; of a picture of one column, 50 million rows would take gigabytes to scale
MAX_SETTINGS = 60_000  # bytes: a JPEG has room for 64 kB beside the picture
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST = {"JPEG": MAX_SIDE, "WEBP": 16_383}
TEXT_KEY = "sage"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ASCII = b"ASCII\0\0\0"


def _readable() -> tuple[str, ...]:
    """The formats that are opened; Pillow registers some forty, most of which nobody sends in good faith."""
    formats = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"]
    if features.check("avif"):
        formats.append("AVIF")
    try:
        import pillow_heif
    except ImportError:
        return tuple(formats)
    pillow_heif.register_heif_opener()
    return (*formats, "HEIF")


# ---- reading


def open_picture(path: str | Path, most: int = MAX_PIXELS) -> Image.Image:
    """Read a picture file as it is meant to be seen: RGB, upright, on white; the first frame of an animation.

    Args:
        most: pixels; a picture of more is refused before it is decoded.
    Raises:
        PictureError: missing, not a picture of an allowed format, damaged, or too large.
    """
    with _opened(Path(path), _readable()) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF and the like, which changes nothing
        try:
            return normalise(image, most)
        except PictureError as error:
            raise PictureError(f"{path}: {error}") from error


def normalise(image: Image.Image, most: int = MAX_PIXELS) -> Image.Image:
    """Any Pillow picture -> RGB: EXIF orientation applied, colours in sRGB, 16-bit grey scaled, alpha on white.

    Args:
        most: pixels.
    Raises:
        PictureError: damaged, too large, or of a mode that has no plain meaning as a picture.
    """
    width, height = image.size
    if width < 1 or height < 1 or width * height > most:
        raise PictureError(f"the picture has {width} x {height} pixels, and must have from 1 to "
                           f"{most // 10**6} million; scale it down")
    if max(width, height) > MAX_SIDE:
        raise PictureError(f"the picture has {width} x {height} pixels, and no side may have more than {MAX_SIDE}; "
                           "cut it")
    try:
        image.load()
        profile, image = image.info.get("icc_profile"), _upright(image)
        if image.mode.startswith("I"):
            return _grey16(image)
        if image.mode == "F":
            raise PictureError("the picture is in floating-point numbers of no known range; save it with 8 or 16 bits")
        if image.mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image if image.mode in ("CMYK", "L") else image.convert("RGB")
        image = _to_srgb(image, profile) if profile else image
        return _bare(image.convert("RGB"))
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError("the picture takes more memory than there is; scale it down") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise PictureError(f"the picture is damaged or cut short ({_line(error)})") from error


@contextmanager
def _opened(path: Path, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The file, its header read."""
    with ExitStack() as stack:
        yield _header(path, formats, stack)


def _header(path: Path, formats: tuple[str, ...], stack: ExitStack) -> Image.Image:
    try:
        file = stack.enter_context(open_plain(path, PictureError, MAX_BYTES, "give the path of a picture"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Given a path, Pillow maps files that are not compressed: one cut short meanwhile would end the process,
            # and a TIFF that is to be turned comes out wrong.
            return Image.open(file, formats=formats)
    except PictureError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(f"{path}: the picture has more than {MAX_PIXELS // 10**6} million pixels; scale it "
                           "down") from error
    except UnidentifiedImageError as error:
        if "HEIF" not in formats and _is_heic(path):
            raise PictureError(f"{path} is a HEIC picture, which needs pillow-heif: pip install 'sage-edit[heif]'; or "
                               "save it as JPEG") from error
        raise PictureError(f"{path} is no picture of a kind that is read here: {', '.join(formats)}") from error
    except Exception as error:  # as above
        raise PictureError(f"{path} cannot be read ({getattr(error, 'strerror', None) or _line(error)})") from error


def _is_heic(path: Path) -> bool:
    """By the first box of the file, which names the kind."""
    with open_plain(path, PictureError) as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIC


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # unreadable EXIF says nothing about orientation, and is no reason to refuse the pixels
        return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of another profile (Display P3 of telephones, CMYK of print) as sRGB; damaged profiles are ignored."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(given):
            return image
        return ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _grey16(image: Image.Image) -> Image.Image:
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError("the picture's grey values go beyond 16 bits; save it with 8 or 16 bits")
    if isinstance(clear := image.info.get("transparency"), int):
        values[values == clear] = 65535
    eight = np.round(np.arange(65536) / 257).astype(np.uint8)
    return Image.fromarray(eight[values]).convert("RGB")


def _bare(image: Image.Image) -> Image.Image:
    """A copy of the pixels without EXIF, profile and texts, none of which belongs to what is made from them."""
    image = image.copy()
    image.info = {}
    return image


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:120] or type(error).__name__


def digest(image: Image.Image) -> str:
    """What a `normalise`d picture is known by, whatever file it came from: SHA-256 of its size and pixels, in hex."""
    return hashlib.sha256(b"%d x %d " % image.size + image.tobytes()).hexdigest()


# ---- writing


def check_writable(path: str | Path, size: tuple[int, int] = (1, 1)) -> None:
    """Raise PictureError now for what `save_picture` would refuse after minutes of work.

    Args:
        size: of the picture.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise PictureError(f"{path}: pictures are written as {', '.join(WRITTEN)}")
    if max(size) > (most := LARGEST.get(WRITTEN[path.suffix.lower()], math.inf)):
        raise PictureError(f"{path} cannot hold {size[0]} x {size[1]} pixels, only {most} a side: write a .png")
    if why := unwritable(path):
        raise PictureError(why)


def save_picture(image: Image.Image, path: str | Path, settings: dict[str, Any] | None = None,
                 new: bool = False, quick: bool = False) -> Path:
    """Write a picture and the settings that made it; whole or not at all, whatever happens meanwhile.

    Args:
        path: its ending is the format: .png (settings as text "sage"), .jpg or .webp (settings as EXIF comment).
        settings: JSON values.
        new: if something has that name by then, take NAME-2, NAME-3 and so on.
        quick: a PNG in half the time, and somewhat larger.
    Returns:
        Where it was written.
    Raises:
        PictureError: another ending, a place that cannot be written to, or more than the format can hold.
    """
    path = Path(path)
    check_writable(path, image.size)
    options = _options(WRITTEN[path.suffix.lower()], None if settings is None else settings_text(settings), quick)
    names = numbered(path)
    while True:
        place = next(names)
        try:
            with written_whole(place, new) as out:
                image.save(out, **options)
            return place
        except (OSError, ValueError) as error:  # ValueError: what an encoder thinks impossible
            if new and isinstance(error, FileExistsError) and os.path.lexists(place):
                continue
            reason = getattr(error, "strerror", None) or _line(error)
            raise PictureError(f"{place} cannot be written ({reason})") from error


def settings_text(settings: dict[str, Any]) -> str:
    """Settings as they are stored in a picture.

    Raises:
        PictureError: too long.
    """
    # Half of a character, as file names may hold, becomes the escape that JSON has for it.
    text = json.dumps(settings, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    if len(text.encode()) > MAX_SETTINGS:
        raise PictureError(f"the prompts and settings are more than the {MAX_SETTINGS // 1000} kB that a picture can "
                           "carry: shorten them")
    return text


def _options(kind: str, text: str | None, quick: bool) -> dict[str, Any]:
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        if text is not None:
            info.add_text(TEXT_KEY, text)
        return {"format": kind, "pnginfo": info, **({"compress_level": 1} if quick else {})}
    exif = Image.Exif()
    if text is not None:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = ASCII + text.encode()
    quality = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0}
    return {"format": kind, "exif": exif, **quality}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings inside a picture that `save_picture` wrote.  What they say is a stranger's word: check it.

    Raises:
        PictureError: no picture, or none that holds settings.
    """
    path = Path(path)
    with _opened(path, tuple(sorted(set(WRITTEN.values())))) as image:
        text = image.info.get(TEXT_KEY) if image.format == "PNG" else _comment(image)
    if text is None:
        raise PictureError(f"{path} holds no settings of an edit; many programs drop them when they save a picture")
    try:
        settings = parse_json(text) if isinstance(text, str) and len(text) <= MAX_SETTINGS else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise PictureError(f"{path}: the settings in it are damaged")
    return settings


def _comment(image: Image.Image) -> str | None:
    try:
        raw = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except Exception:  # as in `_upright`
        return None
    if not isinstance(raw, bytes) or not raw.startswith(ASCII + b"{"):
        return None
    return raw.removeprefix(ASCII).decode("utf-8", "replace")
