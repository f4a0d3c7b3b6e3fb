"""How an editor of two branches holds its source branch to the picture: inversion x editor is a product.

    ddim        the source branch samples by itself, guided away from the empty prompt       Song et al.   2010.02502
    null-text   ... from one that is fitted at each step, so that it retraces the inversion  Mokady et al. 2211.09794
    negative    ... from the source prompt, which leaves it as it is predicted               Miyake et al. 2305.16807
    proximal    and of the guidance keep what is large: prox_k(eps_target - eps_source)      Han et al.    2306.05414
    direct      the source branch is put back onto the inversion after each step             Ju et al.     2310.01506
    fixed-point it samples by itself, back along an inversion that it retraces               Pan et al.    2309.04907

An editor asks its anchor for the branches of a pass, for what they are guided to, and lets it hold the latents.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sage import kit
from sage.errors import SettingsError
from sage.inversion import exact
from sage.settings import Guidance, Solver, frozen, setting

if TYPE_CHECKING:
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone

INVERSIONS = ("ddim", "null-text", "negative", "proximal", "direct", "fixed-point")
Branches = dict[str, "tuple[Tensor, kit.Text]"]
Predictions = dict[str, "kit.Prediction"]


@frozen
class Anchored(Guidance, exact.Implicit, Solver):
    """Inversion."""

    fixes = frozenset({"conventions"})

    inversion: str = setting("ddim", "how the source branch is held to the picture", *INVERSIONS)
    null_text_steps: int = setting(10, "null-text: steps of Adam at each sampling step, at most", low=1, high=1000)
    null_text_rate: float = setting(0.01, "null-text: rate of the first sampling step's, falling to half of it", low=0)
    null_text_tolerance: float = setting(1e-5, "null-text: mean square error at which the first sampling step's fit "
                                         "ends; each further step allows for two of these more, in the original code "
                                         "for 2e-5", low=0)
    null_text_branches: str = setting("both", "null-text: guided away from what was fitted: both branches, or the "
                                      "source's alone", "both", "source")
    negative_empty: float = setting(0.0, "negative, proximal: share of the empty prompt in the source prompt that "
                                    "guidance leads away from, on the arc between them", low=0, high=1)
    proximal_quantile: float = setting(0.75, "proximal: share of the guidance of both branches that is taken for "
                                       "small, that of the source branch being zero; below 0, the size itself up to "
                                       "which it is, negated", low=-1000, high=1)
    proximal_from: str = setting("negative", "proximal: what guidance leads away from: the source prompt, as with "
                                 "negative, or what is fitted, as with null-text", "negative", "null-text")
    proximal_of: str = setting("both", "proximal: whose guidance the share is of: both branches'; or the target's "
                               "alone, the source branch being as it is predicted, as in the authors' code for "
                               "masactrl", "both", "target")
    proximal_kind: str = setting("soft", "proximal: what remains is made smaller by the threshold, or left as it is; "
                                 "or as the original's option l1 does by mistake", "soft", "hard", "l1")
    proximal_hold: str = setting("path", "proximal: places with little guidance are drawn to the inversion's latents, "
                                 "to the clean picture's, or not at all", "path", "picture", "none")
    proximal_rate: float = setting(1.0, "proximal: how far they are drawn", low=0, high=1)
    proximal_below: float = setting(400.0, "proximal: the timestep below which they are; negated, that above which",
                                    low=-1000)
    proximal_margin: int = setting(1, "proximal: places around those with much guidance that are left alone too", low=0,
                                   high=100)
    conventions: str = setting("consistent", "levels told to the network on the way to noise, and windows of steps: "
                               "consistent, or as in the original code", "consistent", "published")

    def fixed(self) -> dict[str, Any]:
        own = {"null-text": ("guidance_scale", "null_text_steps", "null_text_rate", "null_text_tolerance"),
               "fixed-point": exact.Implicit.names()}.get(self.way, ())
        return super().fixed() | {name: getattr(self, name) for name in own}

    @property
    def way(self) -> str:
        """The name of the way to noise."""
        if self.inversion == "proximal" and self.proximal_from == "null-text":
            return "null-text"
        return self.inversion if self.inversion in ("null-text", "fixed-point") else "ddim"


def edges(model: "Backbone", settings: Any) -> "tuple[kit.Edges, kit.Edges] | None":
    """The steps from clean to noisy and back as the original code has them; None where they are to be consistent.

    Raises:
        SettingsError: the model is not of the kind that has timesteps.
    """
    if settings.conventions == "consistent":
        return None
    return kit.of_timesteps(model, "ahead")(settings.steps, settings.spacing)


def invert(job: "Job[Any]", text: "kit.Text | None" = None) -> "kit.Trajectory":
    """DDIM inversion with what the anchor adds to it.

    Args:
        text: of the source branch; default: the source prompts.
    """
    text = job.source if text is None else text
    if job.settings.inversion == "fixed-point":
        return exact.fixed_point_inversion(job, lambda z, level: job.predict(z, level, text))
    path = kit.ddim_inversion(job, text)
    if job.settings.way != "null-text":
        return path
    return kit.NullText(origin=path.origin, latents=path.latents, empties=fitted_empties(job, text, path.latents))


def anchor(job: "Job[Any]", path: "kit.Trajectory", text: "kit.Text | None" = None) -> "DDIM":
    """The anchor that the settings name.

    Args:
        text: of the source branch, as given to `invert`.
    Raises:
        SettingsError: the way to noise, made elsewhere, has not what is held to at each step.
    """
    if job.settings.inversion in ("direct", "proximal"):
        check_latents(job, path)
    if job.settings.way == "null-text" and len(getattr(path, "empties", ())) != len(job.down):
        raise SettingsError(f"the trajectory has no {len(job.down)} fitted empty prompts, one a step: give a NullText "
                            "of so many")
    return _ANCHORS[job.settings.inversion](job, path, job.source if text is None else text)


def check_latents(job: "Job[Any]", path: "kit.Trajectory") -> None:
    """SettingsError unless a way to noise has latents of every level."""
    if len(path.latents) != len(job.down) + 1:
        raise SettingsError(f"the trajectory has {len(path.latents)} latents, and {len(job.down)} steps need "
                            f"{len(job.down) + 1}, from the clean ones on")


class DDIM:
    """Both branches are guided away from the empty prompt."""

    def __init__(self, job: "Job[Any]", path: "kit.Trajectory", text: "kit.Text"):
        self.job, self.path, self.text, self.w = job, path, text, job.settings.guidance_scale

    def branches(self, step: int, source: "Tensor", target: "Tensor") -> Branches:
        """Latents and text of a pass, for `Job.together`: "source" and "target", and what they are guided from."""
        from_source, from_target = self.negatives(step)
        guided_from = {} if from_source is None else {"no_source": (source, from_source)}
        return guided_from | {"no_target": (target, from_target), "source": (source, self.text),
                              "target": (target, self.job.target)}

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        """What guidance leads the branches away from, None where the source branch has none."""
        return None if self.text is self.job.empty else self.job.empty, self.job.empty

    def guided(self, seen: Predictions, level: "kit.Level") -> "tuple[kit.Prediction, kit.Prediction]":
        """What the branches move towards."""
        source = seen["source"]
        if "no_source" in seen:
            source = kit.classifier_free(seen["no_source"], source, self.w)
        return source, kit.classifier_free(seen["no_target"], seen["target"], self.w)

    def hold(self, step: int, level: "kit.Level", source: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor]":
        """The latents after a step, held."""
        return source, target


class NullText(DDIM):
    """Guided away from an empty prompt that was fitted to each step."""

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        fitted = self.path.empties[step]  # type: ignore[attr-defined]
        return fitted, fitted if self.job.settings.null_text_branches == "both" else self.job.empty


class Negative(DDIM):
    """Guided away from the source prompt: the source branch is what is predicted under it, whatever w is."""

    def __init__(self, job: "Job[Any]", path: "kit.Trajectory", text: "kit.Text"):
        super().__init__(job, path, text)
        share = job.settings.negative_empty
        self.negative = text if share == 0 else text.slerp(job.empty, share)

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        return None if self.job.settings.negative_empty == 0 else self.negative, self.negative


class Proximal(Negative):
    """Of what guidance adds the large alone is kept; where that is nothing, latents can be drawn to the picture's."""

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        source, target = super().negatives(step)
        if self.job.settings.way == "null-text":
            source = target = self.path.empties[step]  # type: ignore[attr-defined]
        return (source if self.job.settings.proximal_of == "both" else None), target

    def guided(self, seen: Predictions, level: "kit.Level") -> "tuple[kit.Prediction, kit.Prediction]":
        import torch
        s = self.job.settings
        base = {name: seen.get(f"no_{name}", seen[name]) for name in ("source", "target")}
        change = {name: seen[name] - base[name] for name in base}
        both = torch.stack([change[name].eps for name in base], dim=1)  # (B, 2, C, h, w)
        q, size = s.proximal_quantile, (both if s.proximal_of == "both" else both[:, 1:]).abs()
        kappa = size.flatten(1).quantile(q, dim=1)[:, None, None, None, None] if q > 0 else both.new_tensor(-q)
        kept = kit.proximal(both, kappa, s.proximal_kind)
        share = torch.where(both == 0, 0.0, kept / both)
        self._still = 1 - kit.dilated((kept.abs() > kappa).flatten(0, 1).float(), s.proximal_margin).view_as(both)
        guided = [base[name] + self.w * (change[name] * share[:, i]) for i, name in enumerate(base)]
        if s.proximal_hold == "picture" and self._late(level):
            clean = self.path.latents[0]
            guided = [kit.Prediction(self._drawn(p.x0, clean, i), p.eps) for i, p in enumerate(guided)]
        return guided[0], guided[1]

    def hold(self, step: int, level: "kit.Level", source: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor]":
        s, recorded = self.job.settings, self.path.latents[-2 - step]
        if s.proximal_hold != "path" or not self._late(level):
            return source, target
        return self._drawn(source, recorded, 0), self._drawn(target, recorded, 1)

    def _late(self, level: "kit.Level") -> bool:
        job = self.job
        timestep = 1000 * level.t if job.model.prediction_type == "flow" else level.t
        bound = job.settings.proximal_below
        return timestep > -bound if bound < 0 else timestep < bound

    def _drawn(self, z: "Tensor", to: "Tensor", branch: int) -> "Tensor":
        return z - self.job.settings.proximal_rate * self._still[:, branch] * (z - to)


class Direct(DDIM):
    """The source branch goes back along the inversion, whatever was predicted; it only lends its attention."""

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        return None, self.job.empty

    def hold(self, step: int, level: "kit.Level", source: "Tensor", target: "Tensor") -> "tuple[Tensor, Tensor]":
        return self.path.latents[-2 - step], target


class FixedPoint(DDIM):
    """The source branch samples as it is predicted, which retraces an inversion that has settled."""

    def __init__(self, job: "Job[Any]", path: "kit.Trajectory", text: "kit.Text"):
        super().__init__(job, path, text)
        exact.note_unsettled(job, path)

    def negatives(self, step: int) -> "tuple[kit.Text | None, kit.Text]":
        return None, self.job.empty


_ANCHORS = dict(zip(INVERSIONS, (DDIM, NullText, Negative, Proximal, Direct, FixedPoint), strict=True))


# ---- null-text optimisation


def fitted_empties(job: "Job[Any]", text: "kit.Text", latents: "Sequence[Tensor]") -> "tuple[kit.Text, ...]":
    """For each sampling step the empty prompts under which guidance leads back along the inversion, (B, M, D) each.

    Pictures are fitted one by one: each stops where it would alone.
    """
    rows = [_fitted(job, text, row, [z[row:row + 1] for z in latents]) for row in range(len(job.z0))]
    return tuple(kit.Text.cat(step) for step in zip(*rows, strict=True))


def _fitted(job: "Job[Any]", text: "kit.Text", row: int, latents: "Sequence[Tensor]") -> "list[kit.Text]":
    """Algorithm 1 of the paper: the fit of each step begins where that of the last one ended.

        min over empty of |z*_{t-1} - step(z_t, eps_empty + w (eps_source - eps_empty))|^2
    """
    import torch
    s, found, z = job.settings, [], latents[-1]
    source, empty = text.rows([row]), job.empty.rows([row])
    published = s.conventions == "published"
    falling, allowed = (100, 2e-5) if published else (2 * s.steps, 2 * s.null_text_tolerance)
    with job.model.full_precision():  # the error is of the order of 1e-5
        for i, (here, there) in enumerate(job.down):
            positive = job.predict(z, here, source)
            tokens = empty.tokens.detach().clone().requires_grad_()
            adam = torch.optim.Adam([tokens], lr=s.null_text_rate * max(0.0, 1 - i / falling))
            for _ in range(s.null_text_steps):
                with torch.enable_grad():
                    negative = job.predict(z, here, kit.Text(tokens, empty.pooled))
                    reached = kit.renoise(kit.classifier_free(negative, positive, s.guidance_scale), there)
                    loss = (reached - latents[-2 - i]).square().mean()
                    (tokens.grad,) = torch.autograd.grad(loss, tokens)
                adam.step()
                if loss.item() < s.null_text_tolerance + allowed * i:
                    break
            empty = kit.Text(tokens.detach(), empty.pooled)
            z = kit.renoise(kit.classifier_free(job.predict(z, here, empty), positive, s.guidance_scale), there)
            found.append(empty)
            job.report("null-text", row * len(job.down) + i + 1, len(job.z0) * len(job.down))
    return found
