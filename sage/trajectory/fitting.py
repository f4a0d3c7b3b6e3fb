"""Of what a way to noise is, and whether it serves an edit."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from sage import pictures
from sage.errors import SettingsError
from sage.method import method_of
from sage.models.backbone import Backbone
from sage.pictures.framing import framed
from sage.prompts.plan import Plan
from sage.settings import Settings, seed_of
from sage.trajectory.kinds import Origin, Trajectory, Wanted


def origin_of(model: Backbone, images: Sequence[Image.Image], plans: Sequence[Plan], config: Settings) -> Origin:
    """Of what a trajectory of these pictures, upright RGB, would be."""
    method, (images, _) = method_of(config), framed(images, (), config)
    return Origin(model.fingerprint(), method.inversion(config), method.where, config, tuple(p.source for p in plans),
                  tuple(p.target for p in plans) if method.follows_target(config) else None,
                  tuple(map(pictures.digest, images)), images[0].size)


def sharing_key(config: Settings, plans: Sequence[Plan]) -> tuple[Any, ...]:
    """Edits of the same pictures with one model and equal keys make the very same way to noise, to the last bit."""
    method = method_of(config)
    followed = tuple((p.target, p.factors) for p in plans) if method.follows_target(config) else None
    return (method.inversion(config), tuple(sorted(config.fixed().items(), key=str)),
            seed_of(config) if method.draws(config) else None, method.wants(config), followed,
            tuple(plan.source for plan in plans))


def check_trajectory(trajectory: Trajectory, wanted: Origin, wants: Sequence[Wanted]) -> None:
    """SettingsError unless a trajectory is of what is wanted, and holds the attention that an edit needs."""
    had, method = trajectory.origin, method_of(wanted.settings)
    if had.model != wanted.model:
        raise SettingsError("the trajectory is of another model: invert again with this one")
    if had.inversion != wanted.inversion:
        raise SettingsError(f"the trajectory was made by {had.inversion}, and this edit needs {wanted.inversion}: "
                            "invert again")
    if had.source != wanted.source:
        raise SettingsError(f"the trajectory is of another source prompt: {had.source[0].text!r}")
    if had.picture_size != wanted.picture_size:
        raise SettingsError(f"the trajectory is of a picture of {had.picture_size}, not {wanted.picture_size}")
    if had.pictures != wanted.pictures:
        raise SettingsError("the trajectory is of another picture of the same size: invert this one")
    before, now = had.settings.fixed(), wanted.settings.fixed()
    for name in {**now, **before}:  # where one method has no such setting, the way is that of the other's default
        then = before[name] if name in before else type(wanted.settings).default(name)
        if then != (needed := now[name] if name in now else type(had.settings).default(name)):
            raise SettingsError(f"the trajectory was made with {name}={then}, not {needed}: invert again")
    if method.draws(wanted.settings) and seed_of(had.settings) != seed_of(wanted.settings):
        raise SettingsError(f"the trajectory was made with seed={seed_of(had.settings)}: invert again")
    if had.target != wanted.target or (wanted.target is not None and _reweighted(had) != _reweighted(wanted)):
        raise SettingsError("the trajectory was made with other reweighting: invert again with this target")
    for want in wants:
        if want.steps and not any(own.covers(want) for own in trajectory.wants):
            where = want.where
            missing = sorted(want.steps - frozenset().union(*(o.steps for o in trajectory.wants if o.where == where)))
            raise SettingsError(f"the trajectory has no {where.kind}-attention maps at level {where.level} for step "
                                f"{len(trajectory.latents) - 1 - missing[-1]}: invert again with this configuration")


def _reweighted(origin: Origin) -> Any:
    return getattr(origin.settings, "reweight", None)
