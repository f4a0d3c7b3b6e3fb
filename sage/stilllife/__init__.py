"""A rendered world of still lifes that knows the true result of every edit."""

from sage.stilllife.captions import caption
from sage.stilllife.edits import KINDS, EditCase, edit_case
from sage.stilllife.render import render, thing_mask
from sage.stilllife.scenes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    FLOORS,
    FORMS,
    MATERIALS,
    POSITIONS,
    SECOND_FORMS,
    SIZES,
    STYLES,
    TILTS,
    Companion,
    Jitter,
    Scene,
    Thing,
    held_out_scene,
    is_held_out,
    sample_scene,
    training_scene,
)

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "COLOURS",
    "Companion",
    "EditCase",
    "FLOORS",
    "FORMS",
    "Jitter",
    "KINDS",
    "MATERIALS",
    "POSITIONS",
    "SECOND_FORMS",
    "SIZES",
    "STYLES",
    "Scene",
    "TILTS",
    "Thing",
    "caption",
    "edit_case",
    "held_out_scene",
    "is_held_out",
    "render",
    "sample_scene",
    "thing_mask",
    "training_scene",
]
