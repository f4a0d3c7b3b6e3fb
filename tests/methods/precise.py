"""Both sides of a comparison in float64: what then is left of a difference is one of formulas, and no rounding."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from sage import running
from sage.models.latent import LatentModel
from sage.trajectory.kinds import mapped

EMBEDDED = "diffusers.models.embeddings.get_timestep_embedding"
EXACT = 1e-9  # relative: what differs by less differs by rounding, which has been measured at up to 3e-13


def time_features(t, width, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
    """What stands at `EMBEDDED`, in float64, as EDICT's own network has it."""
    half = width // 2
    angles = scale * t.double()[:, None] * max_period ** (
        -torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift))
    waves = angles.cos(), angles.sin()
    return torch.cat(waves if flip_sin_to_cos else waves[::-1], dim=-1)


@contextmanager
def in_float64(model: LatentModel, *theirs: nn.Module) -> Iterator[None]:
    """Context in which our networks and theirs, latents, texts and all that is made of them are float64.

    Ours are those that predict; encoders of text keep their weights.  T5 rounds otherwise here than outside: what both
    sides are given is embedded in the context, or before it and given to both.
    `Tensor.float` gives float64 there, so that renditions and methods that make sure of float32 make sure of that.
    """
    embedded, apart = running._embedded, (model.vae, *model.encoders)
    networks = [network for network in model.networks() if not any(network is other for other in apart)]
    with pytest.MonkeyPatch.context() as patch, model.full_precision(*networks, dtype=torch.float64):
        for network in theirs:
            network.double()
        torch.set_default_dtype(torch.float64)
        patch.setattr(model, "_times", {}, raising=False)  # not those that were kept in less
        patch.setattr(model, "full_precision", lambda *modules, **dtype: nullcontext())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(EMBEDDED, time_features)
        patch.setattr(running, "_latents", lambda model, z: z.double())
        patch.setattr(running, "_embedded", lambda *given: {
            name: mapped(text, lambda _, t: t.double()) for name, text in embedded(*given).items()})
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
            for network in theirs:
                nn.Module.to(network, torch.float32)  # that of diffusers warns
