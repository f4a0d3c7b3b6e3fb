"""RF-inversion: both ways are drawn along straight lines, to a noise that is chosen and to the picture itself.

    up     v <- v + gamma (v_noise - v),   v_noise = (y1 - z) / (1 - t)        (Rout et al. 2410.10792, eq. 8 and 15)
    down   v <- v + eta_i (v_clean - v),   v_clean = (z - x0) / t              for steps i from start to stop

y1 is drawn once.  In (x0, eps) the first line is that through z and y1, the other that through z and x0, and so both
are written for diffusions too.  eta_i = eta (1 - i / N)^power.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.errors import SettingsError
from sage.method import Method, Step
from sage.settings import FlowGuidance, PartWay, Picture, Span, as_begun, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone, Text
    from sage.prompts.tokens import Prompt, Prompts

# start, stop and eta are those of the original pipeline's example; its signature has eta = 1, and nothing recorded of
# it says that it was run so.
PUBLISHED = dict(steps=28, guidance_scale=3.5, gamma=0.5, eta=0.9, start=0.0, stop=0.25, source_guidance_scale=0.0,
                 guidance_by="input", conventions="published", encode="sample")


@frozen
class Settings(FlowGuidance, PartWay, Picture):
    """Control."""

    fixes = frozenset({"gamma", "source_guidance_scale", "conventions"})

    gamma: float = setting(0.5, "how far the way to noise is drawn to the noise that is chosen: 0 not at all, 1 "
                           "straight there", low=0, high=1)
    eta: float = setting(0.9, "how far the way back is drawn to the picture: 0 not at all, 1 straight there", low=0,
                         high=1, search=Span(0.4, 1.0))
    start: float = setting(0.0, "share of the steps back before they are drawn to the picture", low=0, high=1)
    stop: float = setting(0.25, "share of the steps back after which they no longer are: the more, the more is kept",
                          low=0, high=1, search=Span(0.1, 0.7))
    decay: float = setting(0.0, "eta falls as this power of the share of the steps that are left: 0 not at all, 1 "
                           "evenly", low=0, high=10)
    source_guidance_scale: float = setting(0.0, "how strongly the source prompt is followed on the way to noise: 0 "
                                           "not at all, the empty prompt is", low=0, high=100)
    conventions: str = setting("consistent", "levels on the way to noise, and windows of steps: those of the way back; "
                               "or as in the original code, which tells a flow evenly spread times, and takes steps as "
                               "long as those of the way back in their order", "consistent", "published")

    @property
    def taken(self) -> int:
        """How many of the steps are taken, each way."""
        return as_begun(self.strength, self.steps) if self.conventions == "published" else super().taken

    @property
    def drawn(self) -> range:
        """The steps back that are drawn to the picture, of those that are taken."""
        if self.conventions == "published":  # shares of all steps, and steps counted from the first that is taken
            return range(int(self.start * self.steps), min(int(self.stop * self.steps), self.steps))
        return range(share_of(self.start, self.taken), share_of(self.stop, self.taken))

    def eta_at(self, step: int) -> float:
        """eta at a step back."""
        return self.eta * (1 - step / self.taken) ** self.decay if step in self.drawn else 0.0


class RFInversion(Method[Settings]):
    """RF-inversion."""

    name, title, paper = "rf-inversion", "RF-inversion", "2410.10792"
    about = "draws the way to noise to a typical noise, and the way back to the picture; for changes of the whole"
    good_at = "changes of the whole picture, its style above all"
    reads = frozenset({"source", "target", "negative", "mask"})
    presets = {"published": PUBLISHED}
    calls = ("3 strength N; 2 strength N where guidance is an input of the network, or 1; strength N more with a "
             "source_guidance_scale other than 0 and 1")

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "rf"

    def draws(self, settings: Settings) -> bool:
        return settings.gamma > 0 or super().draws(settings)

    def inverted_under(self, settings: Settings, source: "Prompt", prompts: "Prompts") -> "Prompt":
        return source if settings.source_guidance_scale else prompts.parse("")

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        up, down = kit.part_way(super().edges(model, settings, size), settings.taken)
        if settings.conventions == "published" and down:
            if model.prediction_type != "flow":
                raise SettingsError(f"conventions is published: {model.name} is no rectified flow")
            told = [k / (len(down) + 1) for k in range(len(down))] + [1.0]
            up = kit.upwards(tuple(kit.Level(t, 1 - level.signal, level.signal) for t, level in zip(
                told, [down[0][0], *(there for _, there in down)], strict=True)))
        return up, down

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        s, z, latents = job.settings, job.z0, [job.z0]
        noise = job.noise(0) if s.gamma else z
        for i, (here, there) in enumerate(job.up):
            p = _followed(job, z, here)
            if s.gamma:
                p = (1 - s.gamma) * p + s.gamma * _straight(z, noise, here, s.conventions == "published")
            z = kit.renoise(p, there)
            latents.append(z)
            job.report("invert", i + 1, len(job.up))
        return kit.Trajectory(origin=None, latents=tuple(latents))  # type: ignore[arg-type]  # the driver says of what

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, z, picture = job.settings, path.noise, path.latents[0]
        for i, (here, there) in enumerate(job.down):
            target = guided = job.cfg(z, here, job.target, job.empty, s.guidance_scale)
            if eta := s.eta_at(i):
                guided = (1 - eta) * target + eta * kit.with_clean(z, picture, here)
            z = kit.renoise(guided, there)
            if job.mask is not None:
                z = job.confined(z, kit.renoise(kit.Prediction(picture, job.noise(0)), there))
            yield Step(i, z, here, target=target, guided=guided, mask=job.mask)


def _followed(job: "Job[Settings]", z: "Tensor", level: "kit.Level") -> "kit.Prediction":
    """What the way to noise follows: the source prompt, as strongly as is asked for."""
    w = job.settings.source_guidance_scale
    text: Text = job.source if w else job.empty
    return job.cfg(z, level, text, job.empty, w) if w or job.model.distilled else job.predict(z, level, text)


def _straight(z: "Tensor", noise: "Tensor", level: "kit.Level", told: bool) -> "kit.Prediction":
    """The line from `z` at `level` to the noise.

    Args:
        told: how far it is goes by the time that the network is told, and not by that of the latents.
    """
    if not told:
        return kit.with_noise(z, noise, level)
    velocity = (noise - z) / (1 - level.t)
    return kit.from_output(z, velocity, level, "flow")
