"""Pictures: files, tensors, sheets, and the settings of an edit inside its picture."""

from sage.pictures.files import (
    MAX_PIXELS,
    MAX_SETTINGS,
    MAX_SIDE,
    TEXT_KEY,
    WRITTEN,
    check_writable,
    digest,
    normalise,
    open_picture,
    read_settings,
    save_picture,
    settings_text,
)
from sage.pictures.sheets import sheet
from sage.pictures.tensors import (
    check_side,
    framed,
    from_pixels,
    middle,
    show_mask,
    to_mask,
    to_picture,
    to_tensor,
    working_size,
)

__all__ = ["MAX_PIXELS", "MAX_SETTINGS", "MAX_SIDE", "TEXT_KEY", "WRITTEN", "check_side", "check_writable", "digest",
           "framed", "from_pixels", "middle", "normalise", "open_picture", "read_settings", "save_picture",
           "settings_text", "sheet", "show_mask", "to_mask", "to_picture", "to_tensor", "working_size"]
