"""SAGE: edit a real picture by rewriting its description; every method that does so, on the same networks.

    model = sage.load_model("stilllife")
    result = sage.edit(model, picture, source="a red ball on grass", target="a blue ball on grass")
    result.image.save("edit.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sage.errors import ModelError, NumericsError, PictureError, PromptError, SageError, SettingsError
from sage.method import METHODS, Method, Request, Step, method
from sage.settings import Settings

if TYPE_CHECKING:
    from sage.editing import EditResult, check_prompts, edit, invert
    from sage.generation import Generated, generate, generate_batch
    from sage.inversion.reconstruction import ddim_reconstruction, vae_reconstruction
    from sage.methods.sage import EditConfig
    from sage.models.fetch import fetch
    from sage.models.loading import load_model
    from sage.models.pipelines import from_pipeline
    from sage.running import run
    from sage.trajectory.disk import load_trajectory, save_trajectory
    from sage.trajectory.kinds import Trajectory

    Moment = Step

__version__ = "0.2.0"

# Imported when first used, so that the command line can check its arguments before torch is loaded.
_LAZY = {
    "sage.editing": "EditResult Moment check_prompts edit invert",
    "sage.generation": "Generated generate generate_batch",
    "sage.inversion.reconstruction": "ddim_reconstruction vae_reconstruction",
    "sage.methods.sage": "EditConfig",
    "sage.models.fetch": "fetch",
    "sage.models.loading": "load_model",
    "sage.models.pipelines": "from_pipeline",
    "sage.running": "run",
    "sage.trajectory.disk": "load_trajectory save_trajectory",
    "sage.trajectory.kinds": "Trajectory",
}
_WHERE = {name: module for module, names in _LAZY.items() for name in names.split()}

__all__ = ["EditConfig", "EditResult", "Generated", "METHODS", "Method", "ModelError", "Moment", "NumericsError",
           "PictureError", "PromptError", "Request", "SageError", "Settings", "SettingsError", "Step", "Trajectory",
           "check_prompts", "ddim_reconstruction", "edit", "fetch", "from_pipeline", "generate", "generate_batch",
           "invert", "load_model", "load_trajectory", "method", "run", "save_trajectory", "vae_reconstruction"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sage' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
