"""Look inside an edit: `Explanation`, for the command line, the studio and notebooks."""

from sage.explain.watching import Explanation, Predictions, WordMap

__all__ = ["Explanation", "Predictions", "WordMap"]
