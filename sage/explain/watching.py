"""`Watched`: watches an edit, keeps what can be drawn of it, and draws it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sage import pictures
from sage.config import EditConfig
from sage.editing import Moment
from sage.explain import heat
from sage.explain.charts import Chart
from sage.inversion import Trajectory, ddim_reconstruction, vae_reconstruction
from sage.models.sd.model import Backbone

SIDE = 512  # pixels of the longer side of everything that is drawn
STEPS = 100  # steps that are drawn, of more of them evenly spaced ones
CHEAP = 1024  # places of latents: up to this, pictures of all of these steps are decoded
DECODED = {"cpu": 12}  # otherwise this many, a decoding being seconds there
DECODED_ELSEWHERE = 50
MOST = 0.995  # share of all values that the scale of a heat map spans

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Predictions:
    """The clean pictures that the model saw in the noise at the beginning of a step."""

    step: int
    source: Image.Image
    target: Image.Image
    guided: Image.Image


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
class _Step:
    """What is kept of a Moment.  Norms are root mean squares over channels, in units of the latents."""

    signal: float
    loss: float | None
    difference_norm: float
    gradient_norm: float | None
    difference: np.ndarray | None = None  # (h, w)
    gradient: np.ndarray | None = None
    mask: np.ndarray | None = None
    predicted: Tensor | None = None  # (3, 4, h, w) float16: source, target, guided


class Watched:
    """Watches one edit, whose arguments it takes too, and knows what happened inside.

    When the edit is begun anew, so is this: it is of the result that is handed back.  Steps count from 0.
    All pictures have one size, that of the edited one or at most 512 pixels; heat maps of one quantity have one scale
    over all steps.

    Args:
        decoded: at how many steps predictions are decoded to pictures; default: all where that is cheap, else 12 on a
            CPU and 50 on a GPU.
    """

    def __init__(self, model: Backbone, picture: Image.Image, source: str, target: str,
                 config: EditConfig | None = None, decoded: int | None = None, truncate: bool = False):
        self.model, self.config = model, config or model.recommended
        self.prompts = {name: model.prompts.parse(text, truncate)
                        for name, text in (("source", source), ("target", target))}
        self.picture = pictures.normalise(picture)
        if max(self.picture.size) > SIDE:
            self.picture = ImageOps.contain(self.picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
        self.attempts = 0
        self._wanted, self._seen = decoded, []
        self._attention: dict[str, np.ndarray | float] = {}
        self._pictures: dict[int, Predictions] = {}
        self._scales: dict[str, float] = {}
        self._rebuilt: tuple[Image.Image, Image.Image] | None = None

    def __call__(self, moment: Moment) -> None:
        """Keep what can be drawn of a step, on the CPU; of a batch, of its first picture."""
        if moment.step == 0:
            self._begin(moment)
        self._scales.clear()
        for name, maps in (("source", moment.attention_source), ("target", moment.attention_target)):
            self._attention[name] = self._attention[name] + maps[0].float().cpu().numpy()
        difference, gradient = _norms(moment.difference), None if moment.gradient is None else _norms(moment.gradient)
        drawn = {}
        if moment.step in self._drawn:
            drawn = {"difference": difference, "gradient": gradient,
                     "mask": None if moment.mask is None else moment.mask[0, 0].cpu().numpy() > 0.5}
        if moment.step in self._decoded:
            drawn["predicted"] = torch.cat([x[:1] for x in (moment.x0_source, moment.x0_target, moment.x0)]).to(
                "cpu", torch.float16)
        self._seen.append(_Step(moment.level.alpha, None if moment.loss is None else moment.loss[0],
                                _mean(difference), None if gradient is None else _mean(gradient), **drawn))

    def _begin(self, moment: Moment) -> None:
        self.attempts += 1
        self._seen, self._attention, self._pictures = [], {"source": 0.0, "target": 0.0}, {}
        limit = self._wanted
        if limit is None:
            cheap = moment.z.shape[-2] * moment.z.shape[-1] <= CHEAP
            limit = STEPS if cheap else DECODED.get(moment.z.device.type, DECODED_ELSEWHERE)
        self._decoded = _spread(self.config.steps, limit)
        self._drawn = sorted({*_spread(self.config.steps, STEPS), *self._decoded})

    # ---- what there is to see

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that can be drawn: all, or at most about 100 of them."""
        return tuple(i for i in self._drawn if i < len(self._seen)) if self._seen else ()

    @property
    def decoded(self) -> tuple[int, ...]:
        """The steps of which there are predicted pictures, among `steps`."""
        return tuple(i for i in self._decoded if i < len(self._seen)) if self._seen else ()

    @property
    def signal(self) -> list[float]:
        """At each step the share of signal, of 1, in the latents from which it started."""
        return [s.signal for s in self._seen]

    @property
    def losses(self) -> list[float | None]:
        """At each step the reconstruction loss, None where nothing was held on to."""
        return [s.loss for s in self._seen]

    @property
    def difference_norms(self) -> list[float]:
        """At each step the root mean square of what the guidance scale multiplies, eps_target - eps_source."""
        return [s.difference_norm for s in self._seen]

    @property
    def gradient_norms(self) -> list[float | None]:
        """At each step the root mean square of what the reconstruction gradient took out of the latents."""
        return [s.gradient_norm for s in self._seen]

    def scale(self, quantity: str) -> float:
        """The norm at a place that has the brightest colour in all heat maps of "difference" or of "gradient".

        One value in 200 is greater, so that a single odd place does not darken all others.
        """
        if quantity not in self._scales:
            found = [maps.ravel() for s in self._seen if (maps := getattr(s, quantity)) is not None]
            self._scales[quantity] = float(np.quantile(np.concatenate(found), MOST)) if found else 0.0
        return self._scales[quantity] or 1.0

    def difference(self, step: int) -> Image.Image:
        """Heat map of the guidance difference at a step of `steps`."""
        return heat.heat(self._seen[step].difference / self.scale("difference"), self.picture.size)

    def gradient(self, step: int) -> Image.Image | None:
        """Heat map of what the reconstruction gradient took out at a step of `steps`, None where it did nothing."""
        gradient = self._seen[step].gradient
        return None if gradient is None else heat.heat(gradient / self.scale("gradient"), self.picture.size)

    def mask(self, step: int) -> Image.Image | None:
        """The picture, faded where a step of `steps` could not change it; None where nothing was blended."""
        mask = self._seen[step].mask
        return None if mask is None else pictures.show_mask(self.picture, torch.from_numpy(mask))

    def predictions(self, step: int) -> Predictions:
        """The predicted clean pictures at `step`, or at the one of `decoded` that is nearest to it."""
        step = min(self.decoded, key=lambda i: abs(i - step))
        if step not in self._pictures:
            made = [pictures.to_picture(self.model.decode(x[None].float()), self.picture.size)
                    for x in self._seen[step].predicted]
            self._pictures[step] = Predictions(step, *made)
        return self._pictures[step]

    def word_maps(self, prompt: str) -> list[WordMap]:
        """Where the picture looks at each word of the "source" or the "target" prompt, mean over all steps.

        The attention to a word is the sum over its tokens; each map has its own scale, from 0 to its `share`.
        """
        find, own = self.model.prompts, self.prompts[prompt]
        edited = {p for span in find.differences(self.prompts["source"], self.prompts["target"])
                  for p in getattr(span, prompt)}
        attention = self._attention[prompt] / len(self._seen)
        maps = []
        for word, positions in find.words(own):
            if positions:
                values = attention[list(positions)].sum(axis=0)
                share = float(values.max())
                maps.append(WordMap(word, heat.over(self.picture, values / (share or 1.0)), share,
                                    bool(edited & {*positions})))
        return maps

    def reconstructions(self, trajectory: Trajectory, progress: Progress | None = None) -> tuple[
            Image.Image, Image.Image]:
        """The picture after the autoencoder alone, and after inversion and plain sampling, which takes a while."""
        if self._rebuilt is None:
            self._rebuilt = (vae_reconstruction(self.model, trajectory),
                             ddim_reconstruction(self.model, trajectory, progress))
        return self._rebuilt

    def strip(self, progress: Progress | None = None) -> Image.Image:
        """The predicted clean pictures over the steps: rows under the source prompt, the target prompt, and guided."""
        made = []
        for done, step in enumerate(self.decoded, start=1):
            made.append(self.predictions(step))
            if progress:
                progress("explain", done, len(self.decoded))
        return pictures.sheet([[(f"{name} {p.step + 1}", getattr(p, name)) for p in made]
                               for name in ("source", "target", "guided")], side=128)

    def charts(self) -> list[Chart]:
        """The curves over the steps, as pictures and for a page."""
        distance = {"l1": "mean distance", "l2": "mean squared distance"}[self.config.map_loss]
        compared = {"self": "self-attention maps", "cross": "cross-attention maps",
                    "latent": "predicted clean latents"}.get(self.config.reconstruction)
        measured = f"{distance} of {compared} from those recorded" if compared else "nothing is compared"
        return [Chart("Reconstruction loss", measured, self.losses),
                Chart("Guidance difference", "root mean square, in units of the noise", self.difference_norms),
                Chart("Attention gradient", "root mean square, in units of the latents", self.gradient_norms)]


def _norms(x: Tensor) -> np.ndarray:
    """(B, C, h, w) -> (h, w) root mean square over the channels of the first."""
    return x[0].float().square().mean(dim=0).sqrt().cpu().numpy()


def _mean(norms: np.ndarray) -> float:
    """Root mean square over all places."""
    return float(np.sqrt(np.square(norms, dtype=np.float64).mean()))


def _spread(steps: int, limit: int) -> list[int]:
    """At most `limit` of the steps 0, 1, ..., evenly spaced, with the first and the last; at least the last."""
    if limit < 2:
        return [steps - 1]
    return sorted({round(i) for i in np.linspace(0, steps - 1, min(steps, limit))})
