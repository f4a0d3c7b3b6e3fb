"""Context managers over forward hooks: hear, record, rewrite or swap what passes through a network.  No arithmetic.

Hooks live only inside a `with`; they know no time, prompt or phase.  Contexts nest, and what passes goes through them
in the order in which they were entered.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sage.models.sites import Feature, Projection, QueriesKeys, Rewrite, Site

Hook = Callable[..., Any]

HEARD, EXACT = "heard", "exact"


def hearing(hook: Hook, kind: str = HEARD) -> Hook:
    """The hook, said to change nothing: it only hears.

    Args:
        kind: HEARD where it is content with what an earlier pass had, EXACT where it has to be this pass's.
    """
    hook.hears = kind  # type: ignore[attr-defined]
    return hook


def kinds(module: nn.Module) -> set[str]:
    """What the hooks on a module are for: HEARD, EXACT, or "" for what changes something."""
    return {getattr(hook, "hears", "") for hook in module._forward_hooks.values()}


class Tap:
    """Holds what was heard in one forward pass until it is taken."""

    def __init__(self, sites: Sequence[Site | Feature]):
        self.sites, self._heard = sites, dict[str, Any]()

    def hear(self, site: Site | Feature, what: Any) -> None:
        """Hold what a site had."""
        self._heard[site.path] = what

    def pop(self) -> list[Any]:
        """What the latest pass had at the sites, in their order, each handed over once.

        Raises:
            LookupError: a site was not visited since the last `pop`.
        """
        heard, self._heard = self._heard, {}
        missing = [s.path for s in self.sites if s.path not in heard]
        if missing:
            raise LookupError(f"nothing was heard at {', '.join(missing)}")
        return [heard[s.path] for s in self.sites]


@contextmanager
def listen(sites: Sequence[Site], last: bool = False,
           keep: Callable[[Projection], Any] = lambda p: QueriesKeys(p.queries, p.keys)) -> Iterator[Tap]:
    """Keep the queries and keys at `sites` inside the context, or what else `keep` takes there; no map is formed.

    Args:
        last: nothing after the last of the sites needs a gradient: from there to the end of the context there is none,
            and no memory goes into one.
    """
    tap, with_gradient = Tap(sites), torch.is_grad_enabled()

    def hear(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Projection) -> None:
            tap.hear(site, keep(output))
            if last and site is sites[-1]:
                torch.set_grad_enabled(False)
        return hearing(hook, EXACT)

    try:
        with hooked((site.projected, hear(site)) for site in sites):
            yield tap
    finally:
        torch.set_grad_enabled(with_gradient)


@contextmanager
def record(sites: Sequence[Site]) -> Iterator[Tap]:
    """Keep the maps (B, H, N, M) at `sites`, as they are when they pass, inside the context."""
    tap = Tap(sites)
    with hooked((site.map, hearing(lambda module, inputs, output, site=site: tap.hear(site, output)))
                for site in sites):
        yield tap


@contextmanager
def watch(sites: Sequence[Site]) -> Iterator[Tap]:
    """Hear the maps at `sites` as they are applied, without changing how anything is computed: mean over the heads.

    A map that another context rewrites is taken as it leaves it; any other is made of its queries and keys afterwards.
    `pop` gives (B, N, M) float32 each.
    """
    tap, rewritten = Tap(sites), [site for site in sites if site.tapped]
    heard = {site.path for site in rewritten}

    def from_pair(site: Site) -> Callable[..., None]:
        return hearing(lambda module, inputs, output: tap.hear(
            site, QueriesKeys(output.queries.detach(), output.keys.detach()).map().mean(dim=1)))

    def as_applied(site: Site) -> Callable[..., None]:
        return hearing(lambda module, inputs, output: tap.hear(site, output.detach().float().mean(dim=1)))

    with (hooked((site.map, as_applied(site)) for site in rewritten),
          hooked((site.projected, from_pair(site)) for site in sites if site.path not in heard)):
        yield tap


@contextmanager
def rewrite(sites: Iterable[Site], function: Rewrite) -> Iterator[None]:
    """Let every map (B, H, N, M) at `sites` pass through `function(map, site)` inside the context."""
    with hooked((site.map, lambda module, inputs, output, site=site: function(output, site)) for site in sites):
        yield


@contextmanager
def swap(sites: Iterable[Site], function: Callable[[Projection, Site], Projection]) -> Iterator[None]:
    """Let queries, keys and values at `sites` pass through `function(projection, site)` inside the context."""
    with hooked((site.projected, lambda module, inputs, output, site=site: function(output, site)) for site in sites):
        yield


@contextmanager
def swap_outputs(places: Iterable[Site | Feature], function: Callable[[Tensor, Any], Tensor]) -> Iterator[None]:
    """Let what attention layers give, or what blocks pass on, go through `function(x, place)` inside the context."""
    with hooked((place.out if isinstance(place, Site) else place,
                 lambda module, inputs, output, place=place: function(output, place)) for place in places):
        yield


@contextmanager
def hear_features(features: Sequence[Feature]) -> Iterator[Tap]:
    """Keep what passes at `features`, (B, C, h, w) each, inside the context."""
    tap = Tap(features)
    with hooked((f, hearing(lambda module, inputs, output, f=f: tap.hear(f, output))) for f in features):
        yield tap


@contextmanager
def detour(modules: Iterable[nn.Module], function: Callable[..., Any]) -> Iterator[None]:
    """Call `function(plain, module, *inputs)` instead of each module inside the context.

    `plain(*inputs)` is what the module would have computed.
    """
    modules = list(modules)
    kept = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            plain = module.forward
            module.forward = lambda *inputs, plain=plain, module=module: function(plain, module, *inputs)
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]], first: bool = False) -> Iterator[None]:
    """Forward hooks for as long as the context lasts.

    Args:
        first: before those that are there.
    """
    handles = [module.register_forward_hook(hook, prepend=first) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
