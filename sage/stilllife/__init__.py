"""A rendered world of still lifes that knows the true result of every edit."""

from sage.stilllife.captions import caption
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
