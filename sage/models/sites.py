"""Where guidance reaches into a network: `Site`, one attention layer, and `Feature`, what a block passes on.

    projected(q, k, v)   queries, keys and values, before they meet       listen, swap
    map(q, k)            A = softmax(Q K^T / sqrt(d))                     record, rewrite
    out(x)               what the layer gives                             swap

All are parameter-free modules, and hooks on them live in contexts (sage.guidance.hooks).  A network says where its
sites are; nothing here knows guidance, time or prompts.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sage.errors import SettingsError


class QueriesKeys(NamedTuple):
    """What a map is made of: (B, H, N, D) queries and (B, H, M, D) keys; several times smaller than the map."""

    queries: Tensor
    keys: Tensor

    def map(self) -> Tensor:
        """(B, H, N, M) float32 probabilities."""
        q, k = self.queries.float(), self.keys.float()
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)


class KeysValues(NamedTuple):
    """What places are looked at by and for: (B, H, M, D) keys and values."""

    keys: Tensor
    values: Tensor


class Projection(NamedTuple):
    """(B, H, N, D) queries, (B, H, M, D) keys and values of one attention layer."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Where(NamedTuple):
    """Which sites: never chosen by counting tokens, so that pictures need not be square.

    Attributes:
        kind: "self" or "cross".
        level: halvings of the latents; None for any.
        blocks: from and to which share of the network's depth, in the order of a forward pass.
        place: "" for any but "mid", which holds too few places to compare; "all" for that too; else the one named.
    """

    kind: str = "self"
    level: int | None = None
    blocks: tuple[float, float] = (0.0, 1.0)
    place: str = ""


class Projected(nn.Module):
    """Hands queries, keys and values through: the place to listen to them, and to swap them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Projection:
        """What came in."""
        return Projection(q, k, v)


class Passed(nn.Module):
    """Hands a tensor through."""

    def forward(self, x: Tensor) -> Tensor:
        """What came in."""
        return x


class AttentionMap(nn.Module):
    """The probabilities softmax(Q K^T / sqrt(d)), formed only where a hook asks for them.

    Args:
        upcast: form the scores in float32, whatever the dtype of q and k (SD 2.1 overflows in float16).
    """

    def __init__(self, upcast: bool = False):
        super().__init__()
        self.upcast = upcast

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """As `probabilities`; here the hooks are called."""
        return self.probabilities(q, k)

    def probabilities(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, N, D) queries and (B, H, M, D) keys -> (B, H, N, M) probabilities, in the dtype of q."""
        dtype = q.dtype
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):
                scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(dim=-1).to(dtype)


class Site(nn.Module):
    """One attention layer as guidance sees it.

    Attributes:
        path: the layer's name in its network, e.g. "down_blocks.1.attentions.0.transformer_blocks.0.attn1".
        kind: "self" or "cross".
        level: how often the latents were halved before this layer, 0 at full latent resolution.
        place: "down", "mid" or "up" in a UNet, "double" or "single" in FLUX.1.
        heads, width: attention heads, and numbers in each.
        depth: share of the network's sites of this kind that a forward pass has visited before, in [0, 1).
        projected, map, out: the modules to hook.
    """

    def __init__(self, path: str, kind: str, level: int = 0, place: str = "", heads: int = 1, width: int = 1,
                 upcast: bool = False):
        super().__init__()
        self.path, self.kind, self.level, self.place = path, kind, level, place
        self.heads, self.width, self.depth = heads, width, 0.0
        self.projected, self.map, self.out = Projected(), AttentionMap(upcast), Passed()

    @property
    def tapped(self) -> bool:
        """Whether a hook wants the map: the one place where the two ways to compute attention part."""
        return bool(self.map._forward_hooks)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the places that latents of a size have here."""
        return halved(height, self.level), halved(width, self.level)

    def extra_repr(self) -> str:
        """What is shown of it where a network is printed."""
        return f"{self.path}, {self.kind}, level {self.level}"


class Feature(nn.Module):
    """Hands on what a block has computed, before its residual: the place to hear it, and to swap it.

    Attributes:
        path: the block's name in its network.
        level, place: as of a `Site`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.path, self.level, self.place = "", 0, ""

    def forward(self, x: Tensor) -> Tensor:
        """What came in."""
        return x


class Block(NamedTuple):
    """A part of a network that can be passed over, with what it gave in an earlier pass in place of its own.

    Attributes:
        kind: "attention"; "feedforward", which works on each token by itself, (B, N, C) -> (B, N, C'); "modulation", by
            which a time scales what others give; or "deep", all that a network does at a level and below it.
        level: as of a `Site`.
        module: what is passed over.
        tokens: whose they are, in the order of "text" and "image".
        gate: the modulation whose third part scales what it gives; of attention its first output, the text's.
    """

    kind: str
    level: int
    module: nn.Module
    tokens: tuple[str, ...] = ("image",)
    gate: nn.Module | None = None


class Sites(tuple[Site, ...]):
    """Sites in the order of a forward pass."""

    def at(self, where: Where) -> "Sites":
        """Those that `where` names.

        Raises:
            SettingsError: there is none, naming the levels there are.
        """
        low, high = where.blocks
        kin = [s for s in self if s.kind == where.kind
               and (where.place in ("all", s.place) if where.place else s.place != "mid") and low <= s.depth < high]
        chosen = Sites(s for s in kin if where.level in (None, s.level))
        if not chosen:
            raise SettingsError(f"the model has {self._instead(where, kin)}")
        return chosen

    def deepest(self, kind: str) -> int:
        """The most halvings at which there is attention of a kind but in the middle; 0 where there is none."""
        return max((s.level for s in self if s.kind == kind and s.place != "mid"), default=0)

    def _instead(self, where: Where, kin: list[Site]) -> str:
        """What there is in place of the sites that were asked for."""
        name, level = f"{where.kind}-attention", "" if where.level is None else f" at level {where.level}"
        if kin:
            return f"no {name}{level}: it has levels {', '.join(map(str, sorted({s.level for s in kin})))}"
        places = sorted({s.place for s in self if s.kind == where.kind})
        if places == ["mid"] and not where.place:
            return f"{name} in its middle alone, which is left out unless it is asked for by its place, mid"
        found = f"some in {', '.join(places)}" if any(places) else "some" if places else "none at all"
        return f"no such {name}{level}: it has {found}"


def find_sites(blocks: Iterable[nn.Module]) -> Sites:
    """The sites inside `blocks`, which a forward pass visits in this order; their `depth` is set."""
    sites = Sites(m for block in blocks for m in block.modules() if isinstance(m, Site))
    for kind in ("self", "cross"):
        kin = [s for s in sites if s.kind == kind]
        for i, site in enumerate(kin):
            site.depth = i / len(kin)
    return sites


def halved(side: int, level: int) -> int:
    """A side of the latents after `level` halvings, each rounding up."""
    return math.ceil(side / 2**level)


Rewrite = Callable[[Tensor, Site], Tensor]
