"""SAGE: edit a real picture by rewriting its description, with self-attention guidance.

    model = sage.load_model("stilllife")
    result = sage.edit(model, picture, source="a red ball on grass", target="a blue ball on grass")
    result.image.save("edit.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sage.config import EditConfig
from sage.errors import ModelError, NumericsError, PictureError, PromptError, SageError, SettingsError

if TYPE_CHECKING:
    from sage.editing import EditResult, Moment, edit
    from sage.inversion import Trajectory, ddim_reconstruction, invert, vae_reconstruction
    from sage.models.fetch import fetch
    from sage.models.loading import load_model
    from sage.prompts.plan import check_prompts
    from sage.trajectory.disk import load_trajectory, save_trajectory

__version__ = "0.1.0"

# Imported when first used, so that the command line can check its arguments before torch is loaded.
_LAZY = {"load_model": "sage.models.loading", "fetch": "sage.models.fetch", "check_prompts": "sage.prompts.plan",
         "edit": "sage.editing", "EditResult": "sage.editing", "Moment": "sage.editing"} | dict.fromkeys(
    ("invert", "vae_reconstruction", "ddim_reconstruction", "Trajectory"), "sage.inversion") | dict.fromkeys(
    ("save_trajectory", "load_trajectory"), "sage.trajectory.disk")

__all__ = ["EditConfig", "ModelError", "NumericsError", "PictureError", "PromptError", "SageError", "SettingsError",
           "EditResult", "Moment", "Trajectory", "check_prompts", "ddim_reconstruction", "edit", "fetch", "invert",
           "load_model", "load_trajectory", "save_trajectory", "vae_reconstruction"]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'sage' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
