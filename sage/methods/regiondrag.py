"""RegionDrag's rule on edit-friendly noises: regions of the latents are put elsewhere (2407.18247; 2304.06140).

    z_K[to] <- z*_K[from],  and where nothing is put any more  sqrt(1 - a^2) z_K + a noise
    z_k     <- mean(z_{k+1}) + sigma u_k,   u_k moved likewise              the target looks at the source's keys
    z_k[to] <- z*_k[from]   while k > until N;   z_k <- z*_k outside        z*: the latents of the way to noise

The noises are those that give the picture back: where nothing is moved, nothing changes.

This is the rule and not the released code (Visual-AI/RegionDrag), whose network sees the picture itself too, through
an IP-Adapter; docs/eedit.md has all that differs.  There is no preset "published".

Where a region was and nothing is put, what lies around comes: `Vacated`, of ours.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sage import kit
from sage.guidance.moves import Moves, Vacated
from sage.method import Method, Step
from sage.settings import Guidance, PartWay, Picture, frozen, setting, share_of

if TYPE_CHECKING:
    from sage.job import Job
    from sage.models.backbone import Backbone


@frozen
class Settings(Vacated, Guidance, PartWay, Picture):
    """Regions."""

    until: float = setting(0.2, "share of the way to noise down to which what is moved is put there anew", low=0,
                           high=1)
    drag_class: str = setting("copy", "where a region was, nothing is left, and it is made anew; or with cut what was "
                              "at its new place", "copy", "cut")
    alpha: float = setting(1.0, "share of noise where a region was and noise is put, 1 for noise alone", low=0, high=1)
    margin: int = setting(1, "places around the regions that may change too, where no mask says it", low=0, high=100)
    keys: str = setting("source", "what the edit looks at: the picture as it was, both, or itself alone", "source",
                        "both", "own")


class RegionDrag(Method[Settings]):
    """Regions put elsewhere."""

    name, title, paper = "regiondrag", "RegionDrag's rule on edit-friendly noises", "2407.18247"
    about = "puts regions of the picture elsewhere; without regions to move it is edit-friendly DDPM inversion"
    good_at = "putting things elsewhere, and making them larger or smaller"
    reads = frozenset({"source", "target", "mask", "moves", "points"})
    calls = "3 strength N; 4 strength N with guidance_scale other than 1, or with regions and unnamed"
    strength = "strength"

    def defaults(self, model: "Backbone") -> Settings:
        return Settings(steps=20, strength=0.5, guidance_scale=1.0)

    def inversion(self, settings: Settings) -> str:
        return "ddpm, without guidance"

    def draws(self, settings: Settings) -> bool:
        return True

    def edges(self, model: "Backbone", settings: Settings, size: tuple[int, int]) -> (
            "tuple[kit.Edges, kit.Edges]"):
        return kit.part_way(super().edges(model, settings, size), settings.taken)

    def invert(self, job: "Job[Settings]") -> "kit.Trajectory":
        return kit.noise_inversion(job, lambda z, i: kit.reaching(
            job.predict(z, job.down[i][0], job.source, "source"), *job.down[i]))

    def edit(self, job: "Job[Settings]", path: "kit.Trajectory") -> Iterator[Step]:
        s, moves = job.settings, Moves(job, job.settings.margin)
        selfs = kit.Sites(site for site in job.model.sites() if site.kind == "self") if s.keys != "own" else ()
        z = moves.begun(path.noise, job.down[0][0]) if job.down else path.noise
        for i, (here, there) in enumerate(job.down):
            recorded, left = moves.of_moved(path.latents[-1 - i], here), len(job.down) - 1 - i
            branches = {"source": (recorded, job.source), "target": (z, job.target)}
            if s.guidance_scale != 1 or moves.unnamed:
                branches["negative"] = z, job.empty
            lenders = dict.fromkeys(("target", "negative"), "source")
            with kit.lent(selfs, branches, lenders, own=s.keys == "both"):
                seen = job.together(here, **branches)
            guided = seen["target"] if s.guidance_scale == 1 else kit.classifier_free(
                seen["negative"], seen["target"], s.guidance_scale)
            if moves.unnamed:
                guided = moves.where_vacant(seen["negative"], guided)
            mean, scale = kit.reaching(guided, here, there)
            z = mean + scale * moves.noises(path.noises[i], job.noise(1, i))  # type: ignore[attr-defined]
            if left > share_of(s.until, s.steps):
                z = moves.put(z, path.latents[-2 - i])
            z = moves.confined(z, path.latents[-2 - i])
            yield Step(i, z, here, seen["source"], seen["target"], guided, mask=moves.free)
