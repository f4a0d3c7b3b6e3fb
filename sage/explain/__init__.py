"""Look inside an edit: `Explanation`, for the command line, the studio and notebooks."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sage.explain.explanation import Explanation
    from sage.explain.watching import Predictions, WordMap

PAGE = "index.html"
FILES = ("reconstructions.png", "predictions.png", "mask.png", "difference.png", "gradient.png", "words-source.png",
         "words-target.png", "curves.png", PAGE)  # all that `Explanation.write` writes into its folder

__all__ = ["FILES", "PAGE", "Explanation", "Predictions", "WordMap"]


_LAZY = {"Explanation": "sage.explain.explanation", "Predictions": "sage.explain.watching",
         "WordMap": "sage.explain.watching"}


def __getattr__(name: str):
    """Imported when first used: the command line has need of the names of the files before that of torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'sage.explain' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
