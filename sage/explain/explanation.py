"""`Explanation`: what was watched of an edit, and how it is written down."""

from pathlib import Path

from sage.editing import EditResult
from sage.explain import page
from sage.explain.watching import Progress, Rebuilt, Watched


class Explanation(Watched):
    """Watches one edit, whose arguments it takes too, and shows what happened inside.

        explanation = Explanation(model, picture, source, target, config)
        result = sage.edit(model, picture, source, target, config, watch=explanation)
        explanation.write("inside", result)

    What there is to see stands in `Watched`.
    """

    def write(self, folder: str | Path, result: EditResult, progress: Progress | None = None,
              rebuilt: Rebuilt | None = None) -> Path:
        """Write PNG files and one page, index.html, that holds everything and opens without a network.

        Of an edit that was made again by `retries`, both are of the attempt that `result` is.

        Args:
            progress: called with (phase, steps done, steps in all).
            rebuilt: what `reconstructions` would give, if that is known.
        Returns:
            The page, which is written last; every file is written whole or not at all.
        Raises:
            PictureError: a place that cannot be written to.
        """
        self.choose(result.attempt)
        rebuilt = rebuilt or self.reconstructions(result.trajectory, progress)
        return page.write(self, Path(folder), result, rebuilt, progress)
