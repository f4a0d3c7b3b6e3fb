"""TurboEdit by edit-friendly noises: DDPM inversion for networks of a few steps (Deutch et al. 2408.00735).

    x_k = s z0 + n eps_k,   s, n of timestep t_k - shift         noised less than the network is told, alg. 1
    u_k = x_{k-1} - mean(x_k, source)
    x^_{k-1} = mean(x^_k, source) + u_k + w [mean(x^_k, target) - mean(x^_k, source)]        pseudo-guidance, eq. 9

mean is that of DDPM's posterior between t_k and t_{k-1}, whatever level the latents have, and the last step goes to the
clean latents.  At w = 1 and without shift it is `ddpm`.  The way has so few steps that the statistics of the edited
latents run ahead of the timestep, which the shift makes up for; and the last noise, which nobody smoothes any more, is
shortened to `last_limit`, or to `last_norm`.

The original's grids for SDXL-Turbo are presets: timesteps 799, 599, 399, 199, and in three steps 799, 499, 199.  The
default is that of students with the anchors 999, 749, 499, 249, without the first.  Any diffusion network will do, in
more steps and without a shift; there SAGE's loss and a mask, both off at first, let more of the way be taken.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.method import LOSS, Method, Step
from sage.settings import Blending, Phrases, Picture, Preserved, Solver, Span, frozen, setting, share_of

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

PUBLISHED = dict(steps=5, strength=0.8, shift=200, guidance_scale=1.5, last_limit=0.0, last_norm=15.5, fit="squash",
                 seed=2)
THREE = dict(steps=3, strength=1.0, spacing="original")
LEAST, MOST = 199, 799  # timesteps


@frozen
class Settings(Preserved, Blending, Solver, Picture):
    """Few steps."""

    fixes = frozenset({"strength", "shift"})

    steps: int = setting(4, "steps from clean to noisy, of which `strength` are taken", low=1, high=1000)
    spacing: str = setting("trailing", "how the steps are spread over the noise levels; original: evenly from timestep "
                           "199 to 799, as in the original's three", "leading", "trailing", "linspace", "original")
    strength: float = setting(0.75, "share of the steps that are taken, those at the clean end: the more, the more may "
                              "change", low=0, high=1)
    shift: int = setting(200, "timesteps by which latents are noised less than the network is told", low=0, high=1000,
                         search=(0, 100, 200))
    guidance_scale: float = setting(1.5, "w: how much of the difference that the target prompt makes is added; 1 adds "
                                    "it once", low=0, high=100, search=Span(1, 5))
    last_limit: float = setting(15.5 / 128, "largest noise of the last step, root mean square; 0 for no limit", low=0)
    last_norm: float = setting(0.0, "the same as the norm of the whole tensor, whatever the picture's size, as in the "
                               "original; 0 for no limit", low=0)
    blend: Phrases = setting(None, "phrases that mark where the picture may change: none (everywhere), auto "
                             "(what differs between the prompts), or SOURCE,TARGET")
    mask_from: str = setting("difference", "what marks where the picture may change: attention to the phrases, or "
                             "where the predictions under the two prompts differ", "attention", "difference")
    blend_threshold: float = setting(0.3, "attention or difference, relative to its maximum, above which a place is in "
                                     "the mask", low=0, high=1)
    cross_level: int = setting(1, "halvings of the latents at which attention is read for the blending mask", low=0,
                               high=8)
    blend_fraction: float = setting(1.0, "share of the steps taken, from the first, with blending", low=0, high=1)

    @property
    def taken(self) -> int:
        """How many steps there are."""
        return share_of(self.strength, self.steps)

    def blends_at(self, step: int) -> bool:
        return step < share_of(self.blend_fraction, self.taken)


class TurboDDPM(Method[Settings]):
    """TurboEdit by edit-friendly noises."""

    name, title, paper = "turbo-ddpm", "TurboEdit (DDPM)", "2408.00735"
    about = ("keeps structure by the noises that the picture would need; made for students of three or four steps, and "
             "good in more with SAGE's loss")
    good_at = "both keeping and changing: ahead of SAGE in both on stilllife, at half its calls"
    reads = frozenset({"source", "target", "mask"})
    presets = {"published": PUBLISHED, "published-3": PUBLISHED | THREE}
    keep = "preserve_scale"
    calls = "3 strength N"
    beside = (LOSS,)

    def defaults(self, model: "Backbone") -> Settings:
        sites = model.sites()
        return Settings(preserve_level=min(1, sites.deepest("self")), cross_level=min(1, sites.deepest("cross")))

    def fits(self, model: "Backbone") -> str:
        return "it is a flow, and has no timesteps to shift" if model.prediction_type == "flow" else ""

    # ---- the way to noise

    def inversion(self, settings: Settings) -> str:
        return "turbo-ddpm"

    def draws(self, settings: Settings) -> bool:
        return True

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> tuple["kit.Edges", "kit.Edges"]:
        if settings.spacing == "original":
            noisy = [model.schedule.level(t) for t in original_timesteps(settings.steps)]
        else:
            _, *noisy = model.schedule.levels(settings.steps, settings.spacing, size)
        levels = (kit.Level(0, 1.0, 0.0), *noisy[:settings.taken])
        return kit.upwards(levels), kit.downwards(levels)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        noises, latents = list["Tensor"](), list["Tensor"]()
        for k, (told, _) in zip(range(len(job.down), 0, -1), job.down, strict=True):  # the noisiest is drawn first
            t = told.t - job.settings.shift
            latents.append(kit.renoise(kit.Prediction(job.z0, job.noise(k)), job.model.schedule.level(t))
                           if t > 0 else job.z0)
        latents = [job.z0, *latents[::-1]]
        for i, (here, there) in enumerate(job.down):
            mean, _ = kit.ancestral(job.predict(latents[-1 - i], here, job.source), here, there)
            noises.append(latents[-2 - i] - mean)
            job.report("invert", i + 1, len(job.down))
        return kit.Noises(origin=None, latents=tuple(latents), noises=tuple(noises))  # type: ignore[arg-type]

    # ---- the way back

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, z = job.settings, path.noise
        preservation, blend = kit.Preservation(job, len(job.down)), kit.BlendingMask.of_job(job, z)
        for i, (here, there) in enumerate(job.down):
            pull, known = preservation.pull_and_source(i, here, path.latents[-1 - i], z)
            if known is None or blend.sites:
                with blend.listen() as tap:
                    seen = job.together(here, source=(z, job.source), target=(z, job.target))
                blend.add(tap, "source", "target")
            else:
                seen = {"source": known, "target": job.predict(z, here, job.target, "target")}
            blend.add_difference(seen["target"].eps - seen["source"].eps)
            noise = path.noises[i]  # type: ignore[attr-defined]
            if i == len(job.down) - 1:
                noise = shortened(noise, s)
            guided = kit.classifier_free(seen["source"], seen["target"], s.guidance_scale)
            mean, _ = kit.ancestral(guided, here, there)  # linear: w may act on what is predicted
            found = blend.at(z) if blend.used and s.blends_at(i) else None
            z = job.confined(mean + noise - pull, path.latents[-2 - i], found)
            yield Step(i, z, here, seen["source"], seen["target"], guided, mask=job.allowed(found))


def original_timesteps(steps: int) -> list[int]:
    """`steps` timesteps from LEAST up to MOST, evenly; one alone is MOST."""
    return [round(MOST - k * (MOST - LEAST) / max(steps - 1, 1)) for k in reversed(range(steps))]


def shortened(noise: "Tensor", s: Settings) -> "Tensor":
    """Each picture's noise (B, C, h, w), no larger than the settings allow."""
    size = noise.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    for limit in (s.last_limit, s.last_norm / noise[0].numel() ** 0.5):
        if limit:
            noise = noise * (limit / size).clamp(max=1)
            size = size.clamp(max=limit)
    return noise
