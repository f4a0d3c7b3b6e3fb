"""What exact inversions share: guidance that both ways have alike, and a step of DDIM undone by solving for its start.

    eps = eps_negative + w (eps_text - eps_negative)          the way up under the source prompt, the way down under any
    z' = a z + b eps(z', level')                              DDIM's own step from z' to z, read as an equation for z'

The latter is solved in rounds: AIDI (Pan et al. 2309.04907), ReNoise (Garibi et al. 2403.14602, without averages).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.settings import Guidance, PartWay, Settings, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

    Predict = Callable[[Tensor, kit.Level], kit.Prediction]

SEEN = 1e-3  # change of the latents in the last round, relative to them, that shows in the picture


@frozen
class Mirrored(Guidance, PartWay):
    """Guidance."""

    guided_from: str = setting("source", "what guidance leads away from: the source prompt, and then none is needed on "
                               "the way to noise; or the empty prompt, on both ways", "source", "empty")

    def fixed(self) -> dict[str, Any]:
        """The settings that an inversion depends on: the scale too, where both ways are guided."""
        guided = {"guidance_scale": self.guidance_scale} if self.guided_from == "empty" else {}
        return super().fixed() | {"guided_from": self.guided_from} | guided


@frozen
class TwoStates(Mirrored):
    """Guidance."""

    fixes = frozenset({"conventions", "precision"})

    conventions: str = setting("consistent", "noise levels and how many steps are taken: consistent, or as in the "
                               "original code", "consistent", "published")
    precision: str = setting("model", "numbers that the network computes in: the model's, or float64 as in the "
                             "original code, which makes the way back exact to 15 digits and is slow on most GPUs",
                             "model", "float64")

    @property
    def taken(self) -> int:
        """How many of the steps are taken, each way."""
        return int(self.strength * self.steps) if self.conventions == "published" else super().taken


@frozen
class Implicit(Settings):
    """Fixed point."""

    fixed_point_rounds: int = setting(10, "fixed point: predictions for one step of the way to noise, at most", low=1,
                                      high=1000)
    fixed_point_tolerance: float = setting(1e-4, "fixed point: change of the latents in a round, relative to them, "
                                           "from which on a step has settled", low=0)
    fixed_point_damping: float = setting(0.0, "fixed point: share of the last round that is kept in each: 0.5 where it "
                                         "swings", low=0, high=0.99)


def guided(job: "Job[Any]", z: "Tensor", level: "kit.Level", text: "kit.Text") -> "kit.Prediction":
    """What latents (B, C, h, w) are made of under a text; the way to noise is under `job.source`.

    The network has them in its own precision, whatever they are in: what undoes a step asks it the very same.
    """
    s, z = job.settings, in_precision(job, z)
    if text is job.source and s.guided_from == "source":
        return job.predict(z, level, text)
    negative = job.source if s.guided_from == "source" else job.empty
    return job.cfg(z, level, text, negative, s.guidance_scale)


# ---- precision


def precise(job: "Job[Any]") -> AbstractContextManager[None]:
    """Context in which the network computes in float64, where the settings ask for that."""
    import torch
    return job.model.full_precision(dtype=torch.float64) if _double(job) else nullcontext()


def in_precision(job: "Job[Any]", z: "Tensor") -> "Tensor":
    """Latents as the network takes them."""
    return z.double() if _double(job) else z.to(job.z0.dtype)


def _double(job: "Job[Any]") -> bool:
    return getattr(job.settings, "precision", "model") == "float64"


# ---- two states


def part_way(model: "Backbone", settings: Any, consistent: "tuple[kit.Edges, kit.Edges]") -> (
        "tuple[kit.Edges, kit.Edges]"):
    """The steps there and back that are taken: of the consistent ones, or of those of EDICT's and BDIA's code.

    Those are more than `settings.steps` where these do not divide the timesteps, and what strength leaves out is
    counted from the noisy end.

    Raises:
        SettingsError: the original's steps of a model that has no timesteps.
    """
    if settings.conventions == "consistent":
        return kit.part_way(consistent, settings.taken)
    ways = kit.of_timesteps(model, "multiples")(settings.steps, settings.spacing)
    return kit.part_way(ways, len(ways[0]) - settings.steps + settings.taken)


def states(path: "kit.Trajectory", like: "Tensor") -> "list[Tensor]":
    """Both states at the noisy end, (B, C, h, w) float64, where the latents `like` are.

    Raises:
        SettingsError: the trajectory has none.
    """
    if not isinstance(path, kit.Pair) or len(path.states) != 2:
        raise SettingsError("the trajectory does not hold the two states that lead back exactly: invert again")
    return [state.to(like.device).double() for state in path.states]


# ---- DDIM's step as an equation


def fixed_point_inversion(job: "Job[Any]", predict: "Predict") -> "kit.Settled":
    """The way to noise that sampling leads back along, to the tolerance of the settings (`Implicit`).

    A round begins with the plain step, whose prediction is that of the last round before.  Pictures of a batch settle
    each by itself.

    Args:
        predict: (latents, level) -> what they are made of.
    """
    import torch
    s, latents, residuals = job.settings, [job.z0], list[torch.Tensor]()
    eps = predict(job.z0, job.up[0][0]).eps if job.up else job.z0
    for done, (here, there) in enumerate(job.up, start=1):
        a, b = kit.affine(here, there)
        z = a * latents[-1] + b * eps
        residual, open_ = torch.full_like(z[:, 0, 0, 0], torch.inf), torch.ones_like(z[:, 0, 0, 0], dtype=torch.bool)
        for _ in range(s.fixed_point_rounds):
            rows = open_[:, None, None, None]
            found = predict(z, there).eps.where(rows, eps)
            reached = a * latents[-1] + b * found
            residual = ((reached - z).flatten(1).norm(dim=1) / reached.flatten(1).norm(dim=1)).where(open_, residual)
            z, eps = torch.lerp(reached, z, s.fixed_point_damping).where(rows, z), found
            open_ = residual > s.fixed_point_tolerance
            if not open_.any():
                break
        latents.append(z)
        residuals.append(residual)
        job.report("invert", done, len(job.up))
    return kit.Settled(origin=None, latents=tuple(latents), residuals=tuple(residuals))  # type: ignore[arg-type]


def note_unsettled(job: "Job[Any]", path: "kit.Trajectory") -> None:
    """Say for each picture how many steps of its way to noise have not settled, and so will not be retraced."""
    if not isinstance(path, kit.Settled) or not path.residuals:
        return
    most = max(job.settings.fixed_point_tolerance, SEEN)
    for row, number in enumerate(sum(r > most for r in path.residuals).tolist()):
        if number:
            job.note(row, f"{number} of {len(path.residuals)} steps of the inversion have not settled, and are not "
                          "retraced exactly: try more fixed_point_rounds, a fixed_point_damping of 0.5, or a smaller "
                          "guidance_scale")
