"""What of a pass is taken from an earlier one: `Cache`, a context around a network's blocks, for any method.

    whole step     everything is computed, and what attention and the deeper levels gave is held
    step between   attention and the deeper levels give what they gave then; feed-forward layers work on a share of the
                   places, those of the mask rather than others (EEdit 2503.10270; Ma et al. 2312.00858)

What is held is each branch's own.  A pass is whole out of its turn where something is new: a branch, a hook that
changes what passes, or one that has to hear this very pass; and wherever a gradient is wanted.  Who only hears, hears
what was held.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sage.errors import SettingsError
from sage.guidance.hooks import EXACT, HEARD, detour, hearing, hooked, kinds
from sage.guidance.refresh import BONUS, Draws, Lists, drawn, favour, on_grid, preprocessed, rings
from sage.models.backbone import Backbone
from sage.models.sites import Block, Feature, Site
from sage.sampling.levels import Edges, Level
from sage.settings import Cached

Places = Mapping[tuple[int, str], Tensor]
Branch = tuple[str, int]  # its name, or what else it is known by, and the how manieth of that name at its level
DEEP = 1  # the level from which on everything is held


@dataclass(frozen=True)
class Slips:
    """What the released code does and should not (EEdit @35e95e3).

    Attributes:
        modulation: between whole steps double blocks have the modulation of the last whole one.
        gate: what attention gave the text is held as it was gated, and gated once more.
        gates: what single blocks gave is held as it was gated: places that are not computed keep the gate of when they
            were.
        offset: places in single blocks are counted from their first token, which is the text's: of the picture the last
            ones are never computed, and the region is that many tokens further on.
        cut: of the text only as many tokens are drawn from as the picture has.
        nearest: a token is of the region where its middle is, and not where any of it is.
        bonus: of the region's places, which is 1 in drags.
    """

    modulation: bool = False
    gate: bool = False
    gates: bool = False
    offset: bool = False
    cut: bool = False
    nearest: bool = False
    bonus: float = BONUS


NONE = Slips()


@dataclass
class Held:
    """What one branch's last whole pass had.

    Attributes:
        changed: where hooks changed something.
        given: by the name of a block what it gave.
        heard: by the path of a site or feature what passed there, before any hook.
    """

    changed: frozenset[str]
    given: dict[str, Any] = field(default_factory=dict)
    heard: dict[str, Any] = field(default_factory=dict)


class Cache:
    """The passes of one way.

    Args:
        settings: whose group `Cached` says how much is computed between whole steps.
        steps: of the way.
        whole: which of them are whole.
        region: (B, 1, h, w), the places drawn more often; None for no difference.
        size: (h, w) of the latents.
        text: tokens of a prompt.
        slips: what of the released code's slips is done too.
        online: draw the places of a step when it comes, and not of all before the first; they are the same if every
            step comes.
        given: in place of drawing, the places of each step and feed-forward layer, by the number of the step and the
            layer's path in the network: (k,) or (1, k) int64, of [text; picture] counted from the text's first token.

    Raises:
        SettingsError: places of a layer that there is not, or that are out of range.
    """

    def __init__(self, model: Backbone, settings: Cached, steps: Edges, whole: Sequence[bool], region: Tensor | None,
                 size: tuple[int, int], text: int = 0, seed: int = 0, slips: Slips = NONE, online: bool = False,
                 given: Places | None = None):
        self.settings, self.numbers = settings, {here.t: i for i, (here, _) in enumerate(steps)}
        self.slips, self.whole, blocks = slips, list(whole), model.blocks()
        self.deep = next((b for b in blocks if b.kind == "deep" and b.level == DEEP), None)
        shallow = [b for b in blocks if b.kind != "deep" and (self.deep is None or b.level < DEEP)]
        names = {b.module: str(i) for i, b in enumerate(shallow)}
        kinds = ("attention", "modulation") if slips.modulation else ("attention",)
        self.held_blocks = {names[b.module]: b.module for b in shallow if b.kind in kinds}
        self.gates = {names[b.module]: names[b.gate] for b in shallow
                      if b.kind == "attention" and b.gate is not None and slips.gate}
        self.norms = {names[b.module]: b.gate for b in shallow
                      if b.kind == "feedforward" and b.gate is not None and slips.gates}
        self.kept = self.held_blocks | {str(i): b.module for i, b in enumerate(shallow)
                                        if b.kind == "feedforward" or str(i) in self.gates.values()}
        self.refreshed = {str(i): b for i, b in enumerate(shallow) if b.kind == "feedforward"}
        if self.deep is not None:
            self.held_blocks["deep"] = self.kept["deep"] = self.deep.module
        self.places: tuple[Site | Feature, ...] = (*model.sites(), *model.features())
        self.draws = {name: self._draws(block, i, region, size, text, seed)
                      for i, (name, block) in enumerate(self.refreshed.items())}
        self._drawn = set[int]() if online and given is None else set(range(len(self.whole)))
        self.lists: Lists = {}
        self.paths = self._paths(model) if given is not None else {}
        if given is not None:
            self.lists |= self._given(given, size, text)
        elif not online:  # token index preprocessing
            self.lists |= preprocessed(self.draws, self.whole)
        self._held: dict[Branch, Held] = {}
        self._level: float | None = None
        self._seen = Counter[str]()

    def _draws(self, block: Block, number: int, region: Tensor | None, size: tuple[int, int], text: int,
               seed: int) -> Draws:
        """The draws of a layer's tokens, the `number`-th, which has a generator of its own."""
        s, (rows, columns) = self.settings, (-(-side // 2**block.level) for side in size)
        ring = torch.full((1, rows * columns), -1)
        if region is not None:
            where = on_grid(region.cpu(), rows, columns, self.slips.nearest)
            ring = rings(where, s.cascade_num)
        of_text = torch.full((len(ring), min(text, rows * columns) if self.slips.cut else text), -1)
        parts = {"image": ring, "text": of_text}
        whose = ("image",) if self.slips.offset and len(block.tokens) > 1 else block.tokens
        score = favour(torch.cat([parts[name] for name in whose], dim=1), self.slips.bonus)
        generator = torch.Generator().manual_seed((seed * 1000 + number) % 2**63)
        return Draws(score, s.fresh_ratio, s.soft_fresh_weight, s.fresh_threshold, generator)

    def _paths(self, model: Backbone) -> dict[str, str]:
        """The path of each layer whose places are drawn, by its name."""
        network = model.network  # type: ignore[attr-defined]  # what has blocks has one
        paths = {module: path for path, module in network.named_modules()}
        return {name: paths[block.module] for name, block in self.refreshed.items()}

    def _given(self, given: Places, size: tuple[int, int], text: int) -> Lists:
        known, lists = {path: name for name, path in self.paths.items()}, Lists()
        for (step, path), places in given.items():
            if path not in known:
                raise SettingsError(f"there is no feed-forward layer {str(path)[:60]!r} to be given places of: there "
                                    f"is {', '.join([*known][:4])}")
            block = self.refreshed[known[path]]
            count = {"image": math.prod(-(-side // 2**block.level) for side in size), "text": text}
            most, places = sum(count[part] for part in block.tokens), torch.as_tensor(places).reshape(1, -1)
            if places.is_floating_point() or places.numel() and not 0 <= places.min() <= places.max() < most:
                raise SettingsError(f"places of step {step} of {path} have to be whole numbers from 0 to {most - 1}")
            lists[step, known[path]] = places.long()
        return lists

    @contextmanager
    def around(self, level: Level, branches: Sequence[str]) -> Iterator[None]:
        """Context around a pass.

        Args:
            branches: what the parts of its batch are known by, in their order.
        """
        if level.t not in self.numbers or not self.held_blocks:
            yield
            return
        if level.t != self._level:
            self._level, self._seen = level.t, Counter()
        names = []
        for branch in branches:
            names.append((branch, self._seen[branch]))
            self._seen[branch] += 1
        step = self.numbers[level.t]
        if step not in self._drawn:
            self._drawn.add(step)
            self.lists |= drawn(self.draws, step, self.whole[step])
        context = self._whole(names) if self._anew(step, names) else self._between(step, names)
        with context:
            yield

    def _anew(self, step: int, names: Sequence[Branch]) -> bool:
        """Whether a pass is computed whole."""
        if self.whole[step] or torch.is_grad_enabled() or any(name not in self._held for name in names):
            return True
        changed, hearing, exact = self._hooks()
        held = [self._held[name] for name in names]
        return exact or any(h.changed != changed or not hearing <= h.heard.keys() for h in held)

    def _hooks(self) -> tuple[frozenset[str], set[str], bool]:
        """Where hooks change something; where they hear; and whether one has to hear this very pass."""
        changed, heard, exact = set[str](), set[str](), False
        for place in self.places:
            for part in (place.projected, place.map, place.out) if isinstance(place, Site) else (place,):
                if part._forward_hooks:
                    found = kinds(part)
                    exact |= EXACT in found
                    if "" in found:
                        changed.add(place.path)
                    if HEARD in found:
                        heard.add(place.path)
        return frozenset(changed), heard, exact

    # ---- a whole pass

    @contextmanager
    def _whole(self, names: Sequence[Branch]) -> Iterator[None]:
        changed, heard, _ = self._hooks()
        held, gates = [Held(changed) for _ in names], dict[str, Tensor]()

        def keep(where: str, name: str, value: Any) -> None:
            for one, part in zip(held, parted(value, len(names)), strict=True):
                getattr(one, where)[name] = part

        def computed(name: str) -> Callable[..., Any]:
            def run(plain: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
                given = gates[name] * plain(*inputs) if name in gates else plain(*inputs)
                keep("given", name, given)
                return given
            return run

        def hear(place: Site | Feature) -> Callable[..., None]:
            return hearing(lambda module, inputs, output: keep("heard", place.path, output))

        with ExitStack() as stack:
            self._open(stack, gates)
            for name, module in self.kept.items():
                stack.enter_context(detour([module], computed(name)))
            stack.enter_context(hooked(((entrance(p), hear(p)) for p in self.places if p.path in heard), first=True))
            yield
        self._held |= zip(names, held, strict=True)

    def _open(self, stack: ExitStack, gates: dict[str, Tensor]) -> None:
        """Where gates are held: let each layer's own be 1, and put it into `gates`, for the layer to be scaled by."""
        def opened(name: str) -> Callable[..., Any]:
            def run(plain: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
                shift, scale, gates[name] = plain(*inputs)
                return shift, scale, torch.ones_like(gates[name])
            return run

        for name, module in self.norms.items():
            stack.enter_context(detour([module], opened(name)))

    # ---- a pass between

    @contextmanager
    def _between(self, step: int, names: Sequence[Branch]) -> Iterator[None]:
        held, gates = [self._held[name] for name in names], dict[str, Tensor]()
        self._tell(held)

        def recalled(name: str) -> Callable[..., Any]:
            def run(plain: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
                given = joined([h.given[name] for h in held])
                if name in self.gates:
                    return (joined([h.given[self.gates[name]] for h in held])[2] * given[0], *given[1:])
                return given
            return run

        def refreshed(name: str) -> Callable[..., Any]:
            def run(plain: Callable[..., Tensor], module: nn.Module, x: Tensor) -> Tensor:
                places = self._places(step, name).to(x.device)

                def computed(x: Tensor) -> Tensor:
                    return gates[name] * plain(x) if name in gates else plain(x)

                if places.shape[1] == x.shape[1]:
                    given = computed(x)
                else:
                    rows = places.repeat(len(x) // len(places), 1)[..., None]
                    fresh, before = computed(x.gather(1, rows.expand(-1, -1, x.shape[-1]))), joined(
                        [h.given[name] for h in held])
                    given = before.scatter(1, rows.expand(-1, -1, before.shape[-1]), fresh.to(before.dtype))
                for h, part in zip(held, parted(given, len(held)), strict=True):
                    h.given[name] = part
                return given
            return run

        with ExitStack() as stack:
            self._open(stack, gates)
            for name, module in self.held_blocks.items():
                stack.enter_context(detour([module], recalled(name)))
            for name, block in self.refreshed.items():
                stack.enter_context(detour([block.module], refreshed(name)))
            yield

    def _places(self, step: int, name: str) -> Tensor:
        if self.paths and (step, name) not in self.lists:
            raise SettingsError(f"no places were given of step {step} of {self.paths[name]}, which is not whole")
        return self.lists[step, name]

    def _tell(self, held: Sequence[Held]) -> None:
        """Let those who hear have what was held, as if it passed."""
        for place in self.places:
            if place.path not in held[0].heard:
                continue
            if isinstance(place, Feature):
                place(joined([h.heard[place.path] for h in held]))
                continue
            q, k, v = place.projected(*joined([h.heard[place.path] for h in held]))
            if place.tapped:
                place.map(q, k)


def entrance(place: Site | Feature) -> nn.Module:
    """What a pass comes through first there."""
    return place.projected if isinstance(place, Site) else place


def parted(value: Any, parts: int) -> list[Any]:
    """A tensor, or a tuple of tensors, in equal parts of its batch, without a graph."""
    if isinstance(value, Tensor):
        return list(value.detach().chunk(parts))
    pieces = zip(*(parted(part, parts) for part in value), strict=True)
    return [type(value)(*piece) if hasattr(value, "_fields") else tuple(piece) for piece in pieces]


def joined(values: Sequence[Any]) -> Any:
    """Parts as one batch again."""
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))
    whole = [joined(part) for part in zip(*values, strict=True)]
    return type(values[0])(*whole) if hasattr(values[0], "_fields") else tuple(whole)
