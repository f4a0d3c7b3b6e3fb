"""`Job`: one batch of pictures at one method's settings, as the driver makes it and a method works with it."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sage.errors import SettingsError
from sage.guidance.caching import NONE, Cache, Places, Slips
from sage.guidance.hooks import watch
from sage.method import Method, Request
from sage.models.backbone import Backbone, Text
from sage.models.sites import Sites, Where
from sage.pictures.regions import cells, of_points, union
from sage.pictures.tensors import to_mask
from sage.prompts.plan import Plan, token_factors
from sage.sampling.levels import Edges, Level
from sage.sampling.steps import Prediction, classifier_free, gaussian
from sage.settings import Cached, Settings, seed_of

Progress = Callable[[str, int, int], None]
Noises = Sequence[Tensor] | Callable[[tuple[int, ...]], Tensor]

S = TypeVar("S", bound=Settings)

PREPARED = 16  # texts whose preparation is kept
TEXTS = ("source", "target", "empty", "nothing")  # embedded prompts that any method may ask for


class Job(Generic[S]):
    """What a method works with.

    Args:
        texts: embedded prompts to use, by their names in TEXTS and in the method's `texts`; those that are absent are
            embedded when they are first asked for.
        noises: what `noise` hands out in place of drawing, in the order in which it is asked; or a function of the
            tag.
        places: the tokens that a cache computes anew, in place of drawing them (`Cache`).
        background: (B or 1, C, h, w) clean latents of what is outside the mask, where they are not the picture's own.
        report: called with (phase, steps done, steps in all).
        watched: hear where each pass looks.
    Attributes:
        model, settings, plans, requests: a plan and a request a picture.
        z0: (B, C, h, w) clean latents; noise where a picture is made from nothing.
        up, down: the steps from clean to noisy and back, each with both of its levels.
        notes: for each picture what its user should know of this edit, as `note` has it.
    """

    def __init__(self, method: Method[S], model: Backbone, settings: S, plans: Sequence[Plan], z0: Tensor, *,
                 requests: Sequence[Request] = (), texts: Mapping[str, Text] | None = None,
                 noises: Noises | None = None, places: Places | None = None, background: Tensor | None = None,
                 report: Progress | None = None, watched: bool = False):
        self.method, self.model, self.settings, self.plans, self.z0 = method, model, settings, tuple(plans), z0
        self.requests = tuple(requests) or (Request(),) * len(z0)
        self.up: Edges
        self.down: Edges
        height, width = z0.shape[-2:]
        self.up, self.down = method.edges(model, settings, (height, width))
        self.report: Progress = report or (lambda phase, done, total: None)
        self.notes = tuple(list[str]() for _ in z0)
        self._texts, self._noises, self._drawn, self._places = dict(texts or {}), noises, 0, places
        self._taken: dict[tuple[int, ...], Any] = {}  # of a list of noises, by tag
        if places is not None and self.cached.cache == "none":
            raise SettingsError("places to compute were given, and with cache none all of them are")
        if background is not None and background.shape[-3:] != z0.shape[-3:]:
            raise SettingsError(f"background is of shape {tuple(background.shape)}, the latents {tuple(z0.shape)}")
        self.background = z0 if background is None else background.to(z0).expand_as(z0)
        self._prepared: OrderedDict[tuple[float | None, ...], tuple[tuple[Text, ...], Any]] = OrderedDict()
        self._watched = _looked_at(model, settings) if watched else Sites()
        self._looks: dict[str, Tensor] = {}
        self._begin: Callable[[], Cache] | None = None

    # ---- what is not computed at every step

    @property
    def cached(self) -> Cached:
        """What the settings say of a cache, and no cache where they say nothing."""
        return self.settings if isinstance(self.settings, Cached) else Cached()

    def start_cache(self, edges: Edges | None = None, whole: Sequence[bool] = (), slips: Slips = NONE,
                    online: bool = False) -> None:
        """Take what the settings allow from earlier passes, from the next one on: a way begins.

        Args:
            edges, whole: its steps, and which are computed whole; default: the way back, as the settings have it.
            slips: of the released code.
            online: draw the places of a step when it comes.
        """
        if self.cached.cache == "none":
            return
        if edges is None:
            edges, whole = self.down, [self.in_full(i) for i in range(len(self.down))]
        self._begin = partial(self._begun, edges, whole, slips, online)
        vars(self).pop("_cache", None)

    @cached_property
    def _cache(self) -> Cache | None:
        """That of the way that is gone, made by its first pass."""
        return self._begin() if self._begin else None

    def _begun(self, edges: Edges, whole: Sequence[bool], slips: Slips, online: bool) -> Cache:
        height, width = self.z0.shape[-2:]
        made = Cache(self.model, self.cached, edges, whole, self.region, (height, width), self.target.tokens.shape[1],
                     seed_of(self.settings), slips, online, self._places)
        if not made.held_blocks:
            for row in range(len(self.z0)):
                self.note(row, f"{self.model.name} has no blocks that a cache may pass over: every step back is whole")
        return made

    def in_full(self, step: int) -> bool:
        """Whether a step of the way back is computed whole: always without a cache."""
        return self.cached.whole(step, len(self.down))

    def gain(self, weights: Sequence[float]) -> float:
        """By how much what is done at whole steps alone has to be stronger, to be as much as at all of them.

        Args:
            weights: of each step of the way back.
        """
        done = sum(w for i, w in enumerate(weights) if self.in_full(i))
        return sum(weights) / done if done else 1.0

    # ---- text

    @cached_property
    def source(self) -> Text:
        """The source prompts, embedded."""
        return self._text("source", lambda: self.model.embed([plan.source for plan in self.plans]))

    @cached_property
    def target(self) -> Text:
        """The target prompts, embedded."""
        return self._text("target", lambda: self.model.embed([plan.target for plan in self.plans]))

    @cached_property
    def empty(self) -> Text:
        """The empty prompt, or the negative one, for each picture."""
        return self._text("empty", lambda: self.model.embed([self.model.prompts.parse(request.negative)
                                                             for request in self.requests]))

    @cached_property
    def nothing(self) -> Text:
        """The empty prompt, whatever the negative one says."""
        return self.text("nothing", "") if any(request.negative for request in self.requests) else self.empty

    def text(self, name: str, prompt: str | Callable[[], Text]) -> Text:
        """A text of the method's own; what was given under `name`, one of its `texts`, comes before it.

        Args:
            prompt: to be embedded; or what makes the text.
        """
        if isinstance(prompt, str):
            return self._text(name, lambda: self.model.embed([self.model.prompts.parse(prompt)] * len(self.z0)))
        return self._text(name, prompt)

    def _text(self, name: str, embed: Callable[[], Text]) -> Text:
        return self._texts[name].expand(len(self.z0)) if name in self._texts else embed()

    @cached_property
    def factors(self) -> Tensor | None:
        """(B, M) factors on the attention to the target's tokens, None if nothing is reweighted."""
        factors = token_factors(self.plans, self.target.tokens.shape[1])
        return None if factors is None else factors.to(self.z0.device)

    # ---- where the pictures may change

    @cached_property
    def mask(self) -> Tensor | None:
        """(B, 1, h, w) in {0, 1}: where the pictures may change by their requests, None if none says it.

        Raises:
            SettingsError: a mask that is no picture, or has no white place.
        """
        if not any(request.mask for request in self.requests):
            return None
        height, width = self.z0.shape[-2:]
        counted = getattr(self.settings, "mask_cells", "half")
        return torch.cat([torch.ones_like(self.z0[:1, :1]) if request.mask is None else
                          to_mask(request.mask, (width, height), counted).to(self.z0) for request in self.requests])

    @cached_property
    def region(self) -> Tensor | None:
        """(B, 1, h, w) in {0, 1}: the mask, or else the places that something is moved from or to; None for neither."""
        if self.mask is not None or not any(request.moves or request.points for request in self.requests):
            return self.mask
        height, width = self.z0.shape[-2:]
        rows = []
        for row, request in enumerate(self.requests):
            place = np.zeros((height, width), bool)
            if request.moves:
                place |= cells(union(request.moves), (height, width))
            for of in self.pairs_of_points(row):
                place[of[:, 0], of[:, 1]] = True
            rows.append(place if request.moves or request.points else ~place)
        return torch.stack([torch.from_numpy(row) for row in rows])[:, None].to(self.z0)

    def pairs_of_points(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the points of a picture's request lead to, and from where: (n, 2) int64 rows and columns of latents.

        Points are whole tokens of the network, each pair of tokens once.

        Raises:
            SettingsError: what is no pairs of pixels.
        """
        patch = getattr(self.model.schedule.params, "patch", 1)  # type: ignore[attr-defined]
        height, width = (side // patch for side in self.z0.shape[-2:])
        return of_points(self.requests[row].points, self.model.vae.factor * patch,  # type: ignore[attr-defined]
                         (height, width), patch)

    def allowed(self, found: Tensor | None) -> Tensor | None:
        """Where the pictures may change: inside the mask that was given, and there where a method finds that they may.

        Args:
            found: (B, 1, h, w) from 0 to 1; None for everywhere.
        """
        return self.mask if found is None else found if self.mask is None else self.mask * found

    def confined(self, z: Tensor, kept: Tensor, found: Tensor | None = None) -> Tensor:
        """`z` where the pictures may change, and elsewhere `kept`, both (B, C, h, w)."""
        mask = self.allowed(found)
        return z if mask is None else torch.where(mask > 0, z, kept)

    # ---- passes

    def predict(self, z: Tensor, level: Level, text: Text, branch: str = "") -> Prediction:
        """What latents (B, C, h, w) at `level` are made of under a text.

        Args:
            branch: the name under which those who watch know this pass: "source" or "target".
        """
        return self._pass(z, level, (text,), (branch,))

    def together(self, level: Level, **branches: tuple[Tensor, Text]) -> dict[str, Prediction]:
        """Several passes as one batch, its rows in the order of the names; contexts around it see that batch.

        Args:
            branches: latents and text by name.
        """
        z = torch.cat([z for z, _ in branches.values()])
        both = self._pass(z, level, tuple(text for _, text in branches.values()), tuple(branches))
        return dict(zip(branches, both.chunk(len(branches)), strict=True))

    @property
    def asks_once(self) -> bool:
        """Whether guidance, however strong, is no second pass: it is an input of the network, or it is none."""
        by_input = getattr(self.settings, "guidance_by", "passes") == "input" and self.model.prediction_type == "flow"
        return self.model.distilled or by_input

    def cfg(self, z: Tensor, level: Level, text: Text, negative: Text, w: float, branch: str = "target") -> Prediction:
        """negative + w (text - negative), both in one batch; one pass where w is 1 or the network takes guidance."""
        if self.model.distilled:
            return self._pass(z, level, (text,), (branch,), w)
        if w == 1 or self.asks_once:
            return self.predict(z, level, text, branch)
        both = self.together(level, negative=(z, negative), **{branch: (z, text)})
        return classifier_free(both["negative"], both[branch], w)

    def _pass(self, z: Tensor, level: Level, texts: tuple[Text, ...], branches: tuple[str, ...],
              guidance: float | None = None) -> Prediction:
        known = [name or f"text {id(text)}" for name, text in zip(branches, texts, strict=True)]
        with watch(self._watched) as tap, self._cache.around(level, known) if self._cache else nullcontext():
            prediction = self.model.predict(z, level, self._prepare(texts, guidance))
        if self._watched:
            maps = tap.pop()
            rows = self._watched[0].grid(*z.shape[-2:])[0]
            looks = rearrange(sum(maps) / len(maps), "b (h w) m -> b m h w", h=rows).chunk(len(branches))
            self._looks |= {name: look for name, look in zip(branches, looks, strict=True) if name}
        return prediction

    def _prepare(self, texts: tuple[Text, ...], guidance: float | None) -> Any:
        if any(text.tokens.requires_grad for text in texts):
            return Text.cat(texts)
        key = *map(id, texts), guidance  # the texts are kept too: an id is theirs for as long
        if key not in self._prepared:
            self._prepared[key] = texts, self.model.prepare(texts[0] if len(texts) == 1 else Text.cat(texts), guidance)
            if len(self._prepared) > PREPARED:
                self._prepared.popitem(last=False)
        return self._prepared[key][1]

    def note(self, row: int, text: str) -> None:
        """Tell the user of a picture something, once."""
        if text not in self.notes[row]:
            self.notes[row].append(text)

    def take_looks(self) -> dict[str, Tensor]:
        """Where the passes since the last call have looked, by their names; nothing unless watched."""
        looks, self._looks = self._looks, {}
        return looks

    # ---- noise

    def noise(self, *tag: int) -> Tensor:
        """(1, C, h, w) standard normal numbers, the same for every picture.

        They are those of the seed and the tag, or the next of those that were given; a tag's are the same each time.

        Raises:
            SettingsError: fewer were given than are asked for, or of another shape.
        """
        shape, given = self.z0[:1].shape, self._given(tag)
        if given is None:
            return gaussian(shape, self._generator(tag), self.z0)
        if given.shape[-3:] != shape[-3:] or given.numel() not in (shape.numel(), self.z0.numel()):
            raise SettingsError(f"noise {self._drawn} is of shape {tuple(given.shape)}, the latents {tuple(shape)}")
        return given.to(self.z0).reshape(-1, *shape[1:])

    def whole(self, low: int, high: int, *tag: int) -> int:
        """A whole number from `low` to below `high`, the same for every picture.

        It is that of the seed and the tag, or the next of the noises that were given: one number, or a tensor of it.

        Raises:
            SettingsError: fewer were given than are asked for, or what is no such number.
        """
        given = self._given(tag)
        if given is None:
            return int(torch.randint(low, high, (), generator=self._generator(tag)))
        if given.numel() != 1 or not low <= given.item() < high or given.item() != int(given.item()):
            raise SettingsError(f"noise {self._drawn} has to be one whole number from {low} to {high - 1}, for "
                                f"{self.method.name} to shift by")
        return int(given.item())

    def _generator(self, tag: tuple[int, ...]) -> torch.Generator:
        return torch.Generator().manual_seed(_mixed(seed_of(self.settings), tag))

    def _given(self, tag: tuple[int, ...]) -> Tensor | None:
        """The next of the noises that were given, None where none were."""
        if self._noises is None:
            return None
        if callable(self._noises):
            self._drawn += 1
            given = self._noises(tag)
        else:
            if tag not in self._taken:
                if self._drawn >= len(self._noises):
                    raise SettingsError(f"{len(self._noises)} noises were given, and {self.method.name} asks for more")
                self._taken[tag] = self._noises[self._drawn]
                self._drawn += 1
            given = self._taken[tag]
        try:
            return torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise SettingsError(f"noise {self._drawn} is {type(given).__name__}: give a tensor") from None


def _mixed(seed: int, tag: tuple[int, ...]) -> int:
    """The seed itself without a tag, else a number of both."""
    if not tag:
        return seed
    return int.from_bytes(hashlib.sha256(repr((seed, *tag)).encode()).digest()[:7], "little")


def _looked_at(model: Backbone, settings: Settings) -> Sites:
    """The cross-attention that is shown to those who watch: of the settings' level, or of one that is fine enough."""
    levels = sorted({site.level for site in model.sites() if site.kind == "cross" and site.place != "mid"})
    if not levels:
        return Sites()
    return model.sites().at(Where("cross", getattr(settings, "cross_level", min(2, levels[-1]))))
