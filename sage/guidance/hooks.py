"""Context managers over forward hooks on attention maps: hear them, record them, or rewrite them.  No arithmetic.

Hooks live only inside a `with`; they know no time, prompt or phase.  Contexts nest, and a map passes through them in
the order in which they were entered.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sage.errors import SettingsError
from sage.models.sd.attention import AttentionMap, QueriesKeys

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
    """Holds what was heard in one forward pass until it is taken."""

    def __init__(self, sites: list[AttentionMap]):
        self.sites, self._heard = sites, {}

    def pop(self) -> list:
        """What the latest pass had at the sites, in their order, each handed over once.

        Raises:
            LookupError: a site was not visited since the last `pop`.
        """
        heard, self._heard = self._heard, {}
        missing = [s.path for s in self.sites if s.path not in heard]
        if missing:
            raise LookupError(f"no map was recorded at {', '.join(missing)}")
        return [heard[s.path] for s in self.sites]


@contextmanager
def listen(sites: list[AttentionMap], last: bool = False) -> Iterator[Tap]:
    """Keep the queries and keys at `sites` inside the context; no map is formed.

    Args:
        last: nothing after the last of the sites needs a gradient: from there to the end of the context there is none,
            and no memory goes into one.
    """
    tap, with_gradient = Tap(sites), torch.is_grad_enabled()

    def hear(site: AttentionMap) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: QueriesKeys) -> None:
            tap._heard[site.path] = output
            if last and site is sites[-1]:
                torch.set_grad_enabled(False)
        return hook

    try:
        with _hooked((site.projected, hear(site)) for site in sites):
            yield tap
    finally:
        torch.set_grad_enabled(with_gradient)


@contextmanager
def record(sites: list[AttentionMap]) -> Iterator[Tap]:
    """Keep the maps (B, H, N, M) at `sites`, as they are when they pass, inside the context."""
    tap = Tap(sites)

    def keep(site: AttentionMap, inputs: tuple, output: Tensor) -> None:
        tap._heard[site.path] = output

    with _hooked((site, keep) for site in sites):
        yield tap


@contextmanager
def rewrite(sites: list[AttentionMap], function: Rewrite) -> Iterator[None]:
    """Let every map at `sites` pass through `function(map, site)` inside the context."""
    with _hooked((site, lambda site, inputs, output: function(output, site)) for site in sites):
        yield


@contextmanager
def _hooked(hooks: Iterable[tuple[nn.Module, Callable]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
