"""Context managers over forward hooks on attention maps: listen to them, or rewrite them.  No arithmetic.

Hooks live only inside a `with`; they know no time, prompt or phase.  Contexts nest, and a map passes through them in
the order in which they were entered.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from sage.errors import SettingsError
from sage.models.attention import AttentionMap

Rewrite = Callable[[Tensor, AttentionMap], Tensor]


def select(sites: Iterable[AttentionMap], kind: str, level: int) -> list[AttentionMap]:
    """The sites of one kind at one level of the down and up path.

    Raises:
        SettingsError: there is none, naming the levels there are.
    """
    sites = [s for s in sites if s.place != "mid" and s.kind == kind]
    chosen = [s for s in sites if s.level == level]
    if not chosen:
        levels = ", ".join(map(str, sorted({s.level for s in sites})))
        raise SettingsError(f"the model has no {kind}-attention at level {level}: it has levels {levels}")
    return chosen


class Tap:
    """Holds the maps of one forward pass until they are taken."""

    def __init__(self, sites: list[AttentionMap]):
        self.sites, self._maps = sites, {}

    def pop(self) -> list[Tensor]:
        """The maps (B, H, N, M) of the latest pass, in the order of the sites, each handed over once.

        Raises:
            LookupError: a site was not visited since the last `pop`.
        """
        maps, self._maps = self._maps, {}
        missing = [s.path for s in self.sites if s.path not in maps]
        if missing:
            raise LookupError(f"no map was recorded at {', '.join(missing)}")
        return [maps[s.path] for s in self.sites]


@contextmanager
def record(sites: list[AttentionMap]) -> Iterator[Tap]:
    """Keep the maps at `sites`, as they are when they pass, inside the context."""
    tap = Tap(sites)

    def keep(site: AttentionMap, inputs: tuple, output: Tensor) -> None:
        tap._maps[site.path] = output

    with _hooked(sites, keep):
        yield tap


@contextmanager
def rewrite(sites: list[AttentionMap], function: Rewrite) -> Iterator[None]:
    """Let every map at `sites` pass through `function(map, site)` inside the context."""
    with _hooked(sites, lambda site, inputs, output: function(output, site)):
        yield


@contextmanager
def _hooked(sites: list[AttentionMap], hook: Callable) -> Iterator[None]:
    handles = [site.register_forward_hook(hook) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
