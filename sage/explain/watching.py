"""`Watched`: watches an edit, keeps what can be drawn of it, and draws it; what a method does not have is None."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sage import pictures
from sage.editing import picture_of, settings_for
from sage.errors import SettingsError
from sage.explain import heat
from sage.explain.charts import Chart
from sage.inversion.reconstruction import ddim_reconstruction, vae_reconstruction
from sage.method import Step, method_of
from sage.models.backbone import Backbone
from sage.settings import Settings
from sage.trajectory.kinds import Trajectory

SIDE = 512  # pixels of the longer side of everything that is drawn
STEPS = 100  # steps that are drawn, of more of them evenly spaced ones
CHEAP = 1024  # places of latents: up to this, pictures of all of these steps are decoded
DECODED = {"cpu": 12}  # otherwise this many, a decoding being seconds there
DECODED_ELSEWHERE = 50
MOST = 0.995  # share of all values that the scale of a heat map spans
PREDICTED = ("source", "target", "guided")
PROMPTS = ("source", "target")

Progress = Callable[[str, int, int], None]
Rebuilt = tuple[Image.Image, Image.Image | None]


@dataclass(frozen=True)
class Predictions:
    """The clean pictures that the model saw in the noise at the beginning of a step; None where it was not asked."""

    step: int
    source: Image.Image | None
    target: Image.Image | None
    guided: Image.Image | None


@dataclass(frozen=True)
class WordMap:
    """Where the picture looks at one word of a prompt.

    Attributes:
        share: the attention of the place that looks at it most, of 1; the brightest colour of the map.
        edited: whether the other prompt lacks the word.
    """

    word: str
    picture: Image.Image
    share: float
    edited: bool


@dataclass(frozen=True)
class _Seen:
    """What is kept of a step.  Norms are root mean squares over channels, in units of the latents.

    Attributes:
        drawn: whether its maps are kept; the curves have every step.
    """

    signal: float
    loss: float | None
    difference_norm: float | None
    gradient_norm: float | None
    drawn: bool = False
    difference: np.ndarray | None = None  # (h, w)
    gradient: np.ndarray | None = None
    mask: np.ndarray | None = None
    predicted: Mapping[str, Tensor] = field(default_factory=dict)  # (C, h, w) float16 each, by PREDICTED

    @classmethod
    def of(cls, step: Step) -> "_Seen":
        """What can be drawn of a step's first picture, on the CPU."""
        difference, gradient = _norms(step.difference), _norms(step.gradient)
        found = {"source": step.x0_source, "target": step.x0_target, "guided": step.x0}
        return cls(step.level.alpha, None if step.loss is None else step.loss[0], _mean(difference), _mean(gradient),
                   True, difference, gradient, None if step.mask is None else step.mask[0, 0].cpu().numpy() > 0.5,
                   {name: x[0].to("cpu", torch.float16) for name, x in found.items() if x is not None})

    def thinned(self, drawn: bool, decoded: bool) -> "_Seen":
        """Without the maps and predictions that are not wanted of it."""
        if not drawn:
            return _Seen(self.signal, self.loss, self.difference_norm, self.gradient_norm)
        return self if decoded else replace(self, predicted={})


@dataclass
class _Attempt:
    """What was seen of an edit as it was made once.

    Attributes:
        drawn, decoded: the steps to be kept for drawing and for decoding, beside the last one.
        looks: by the prompt the sum of where the picture looked, (M, h', w'), and over how many steps.
        pictures, scales: what was decoded, by step, and the scales of heat maps, by quantity.
    """

    drawn: frozenset[int] = frozenset()
    decoded: frozenset[int] = frozenset()
    seen: list[_Seen] = field(default_factory=list)
    looks: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    pictures: dict[int, Predictions] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        if self.seen:
            last = len(self.seen) - 1
            self.seen[last] = self.seen[last].thinned(last in self.drawn, last in self.decoded)
        self.seen.append(_Seen.of(step))
        self.pictures.clear()
        self.scales.clear()
        for name in PROMPTS:
            if name in step.looks:
                total, count = self.looks.get(name, (0.0, 0))
                self.looks[name] = total + step.looks[name][0].float().cpu().numpy(), count + 1


class Watched:
    """Watches one edit, whose arguments it takes too, and knows what happened inside.

    What a method does not have is None, or empty.  Of an edit that is made again by `retries` every attempt is kept,
    and the latest shown until `choose` says another.  Steps count from 0.  All pictures have one size, that of the
    edited one or at most 512 pixels; heat maps of one quantity have one scale over all steps.

    Args:
        decoded: at how many steps predictions are decoded to pictures; default: all where that is cheap, else 12 on a
            CPU and 50 on a GPU.
    """

    def __init__(self, model: Backbone, picture: Image.Image | str | Path, source: str, target: str,
                 config: Settings | None = None, decoded: int | None = None, truncate: bool = False, *,
                 method: str | None = None):
        self.model, self.config = model, settings_for(model, config, method)
        self.prompts = {name: model.prompts.parse(text, truncate) for name, text in zip(PROMPTS, (source, target),
                                                                                        strict=True)}
        self.picture = pictures.framed(pictures.normalise(picture_of(picture)), getattr(self.config, "fit", "keep"))
        if max(self.picture.size) > SIDE:
            self.picture = ImageOps.contain(self.picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
        self._wanted, self._attempts, self._chosen = decoded, dict[int, _Attempt](), 0

    def __call__(self, step: Step) -> None:
        """Keep what can be drawn of a step, on the CPU; of a batch, of its first picture."""
        if step.step == 0 or step.attempt not in self._attempts:  # begun anew also where memory ran out
            self._attempts[step.attempt] = self._begun(step)
        self._attempts[step.attempt].add(step)
        self._chosen = step.attempt

    def _begun(self, step: Step) -> _Attempt:
        size, limit = (step.z.shape[-2], step.z.shape[-1]), self._wanted
        if limit is None:
            limit = STEPS if size[0] * size[1] <= CHEAP else DECODED.get(step.z.device.type, DECODED_ELSEWHERE)
        total = len(method_of(self.config).edges(self.model, self.config, size)[1])
        decoded = _spread(total, limit)
        return _Attempt(frozenset(_spread(total, STEPS) + decoded), frozenset(decoded))

    def choose(self, attempt: int) -> None:
        """Show the edit as it was made that time: `EditResult.attempt` says of which a result is."""
        if attempt in self._attempts:
            self._chosen = attempt

    @property
    def attempts(self) -> int:
        """How often the edit was made."""
        return len(self._attempts)

    @property
    def _now(self) -> _Attempt:
        return self._attempts.get(self._chosen) or _Attempt()

    # ---- what there is to see

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that can be drawn: all, or at most about 100 of them."""
        return tuple(i for i, s in enumerate(self._now.seen) if s.drawn)

    @property
    def decoded(self) -> tuple[int, ...]:
        """The steps of which there are predicted pictures, among `steps`."""
        return tuple(i for i, s in enumerate(self._now.seen) if s.predicted)

    @property
    def predicted(self) -> tuple[str, ...]:
        """Of "source", "target" and "guided" what the method predicts at any step."""
        return tuple(name for name in PREDICTED if any(name in s.predicted for s in self._now.seen))

    @property
    def signal(self) -> list[float]:
        """At each step the share of signal, of 1, in the latents from which it started."""
        return [s.signal for s in self._now.seen]

    @property
    def losses(self) -> list[float | None]:
        """At each step what `Method.compares` names, None where nothing was held on to."""
        return [s.loss for s in self._now.seen]

    @property
    def difference_norms(self) -> list[float | None]:
        """At each step the root mean square of eps_target - eps_source, None without one of them."""
        return [s.difference_norm for s in self._now.seen]

    @property
    def gradient_norms(self) -> list[float | None]:
        """At each step the root mean square of what a gradient took out of the latents."""
        return [s.gradient_norm for s in self._now.seen]

    def scale(self, quantity: str) -> float:
        """The norm at a place that has the brightest colour in all heat maps of "difference" or of "gradient".

        One value in 200 is greater, so that a single odd place does not darken all others.
        """
        scales = self._now.scales
        if quantity not in scales:
            found = [maps.ravel() for s in self._now.seen if (maps := getattr(s, quantity)) is not None]
            scales[quantity] = float(np.quantile(np.concatenate(found), MOST)) if found else 0.0
        return scales[quantity] or 1.0

    def difference(self, step: int) -> Image.Image | None:
        """Heat map of the guidance difference at a step of `steps`, None without one of the two predictions."""
        return self._heat("difference", step)

    def gradient(self, step: int) -> Image.Image | None:
        """Heat map of what a gradient took out at a step of `steps`, None where it did nothing."""
        return self._heat("gradient", step)

    def _heat(self, quantity: str, step: int) -> Image.Image | None:
        values = getattr(self._now.seen[step], quantity)
        return None if values is None else heat.heat(values / self.scale(quantity), self.picture.size)

    def mask(self, step: int) -> Image.Image | None:
        """The picture, faded where a step of `steps` could not change it; None where nothing was blended."""
        mask = self._now.seen[step].mask
        return None if mask is None else pictures.show_mask(self.picture, torch.from_numpy(mask))

    def predictions(self, step: int) -> Predictions:
        """The predicted clean pictures at `step`, or at the one of `decoded` that is nearest to it.

        Raises:
            SettingsError: no step was watched that predicts anything.
        """
        if not self.decoded:
            raise SettingsError("no prediction was watched: give this to sage.edit as watch, and look afterwards")
        step = min(self.decoded, key=lambda i: abs(i - step))
        if step not in self._now.pictures:
            made = {name: pictures.to_picture(self.model.decode(x[None].float().to(self.model.device)),
                                              self.picture.size)
                    for name, x in self._now.seen[step].predicted.items()}
            self._now.pictures[step] = Predictions(step, *map(made.get, PREDICTED))
        return self._now.pictures[step]

    def looks(self, prompt: str) -> np.ndarray | None:
        """(M, h', w') how much each place looks at each token of the "source" or the "target" prompt, as applied, mean
        over heads, sites and steps; None where that was not to be seen."""
        if prompt not in self._now.looks:
            return None
        total, count = self._now.looks[prompt]
        return total / count

    def word_maps(self, prompt: str) -> list[WordMap]:
        """Where the picture looks at each word of the "source" or the "target" prompt; none where that was not seen.

        The attention to a word is the sum over its tokens; each map has its own scale, from 0 to its `share`.
        """
        if (looks := self.looks(prompt)) is None:
            return []
        maps = []
        for word, positions, edited in self.words(prompt):
            if positions:
                values = looks[list(positions)].sum(axis=0)
                share = float(values.max())
                maps.append(WordMap(word, heat.over(self.picture, values / (share or 1.0)), share, edited))
        return maps

    def words(self, prompt: str) -> list[tuple[str, tuple[int, ...], bool]]:
        """Each word of a prompt with its token positions, and whether the other prompt lacks it."""
        find = self.model.prompts
        edited = {p for span in find.differences(self.prompts["source"], self.prompts["target"])
                  for p in getattr(span, prompt)}
        return [(word, positions, bool(edited & {*positions}))
                for word, positions in find.words(self.prompts[prompt])]

    def reconstructions(self, trajectory: Trajectory, progress: Progress | None = None) -> Rebuilt:
        """The picture after the autoencoder alone, and after inversion and plain sampling, which takes a while; None
        for the second where there is no way to noise."""
        back = ddim_reconstruction(self.model, trajectory, progress) if len(trajectory.latents) > 1 else None
        return vae_reconstruction(self.model, trajectory), back

    def strip(self, progress: Progress | None = None) -> Image.Image | None:
        """The predicted clean pictures over the steps: rows under the source prompt, the target prompt, and guided, as
        far as the method predicts them; None if it does not."""
        made = []
        for done, step in enumerate(self.decoded, start=1):
            made.append(self.predictions(step))
            if progress:
                progress("explain", done, len(self.decoded))
        rows = [[(f"{name} {p.step + 1}", picture) for p in made if (picture := getattr(p, name)) is not None]
                for name in self.predicted]
        return pictures.sheet(rows, side=128) if rows else None

    def charts(self) -> list[Chart]:
        """The curves over the steps, as pictures and for a page."""
        compared = method_of(self.config).compares(self.config) or "nothing is compared"
        return [Chart("Loss", compared, self.losses),
                Chart("Guidance difference", "root mean square, in units of the noise", self.difference_norms),
                Chart("Gradient", "root mean square, in units of the latents", self.gradient_norms)]


def _norms(x: Tensor | None) -> np.ndarray | None:
    """(B, C, h, w) -> (h, w) root mean square over the channels of the first."""
    return None if x is None else x[0].float().square().mean(dim=0).sqrt().cpu().numpy()


def _mean(norms: np.ndarray | None) -> float | None:
    """Root mean square over all places."""
    return None if norms is None else float(np.sqrt(np.square(norms, dtype=np.float64).mean()))


def _spread(steps: int, limit: int) -> list[int]:
    """At most `limit` of the steps 0, 1, ..., evenly spaced, with the first and the last; at least the last."""
    if limit < 2:
        return [steps - 1]
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(steps, limit))})
