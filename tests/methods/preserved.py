"""SAGE's loss beside another editor, once more and apart: the gradient by autograd through diffusers' UNet."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.methods.test_pix2pix_zero import Maps

Pull = Callable[[int, int, Tensor, Tensor], Tensor | float]


def drawn_to(unet, text, places, t, recorded, z, scale):
    """scale x the gradient of the mean difference of all self-attention maps of `places` places, by autograd."""
    kept, found = dict(unet.attn_processors), {}
    unet.set_attn_processor({name: Maps(found, name, "attn1") for name in kept})

    def maps(latents):
        unet(latents, t, text)
        return torch.cat([m.flatten() for m in found.values() if m.shape[1] == places])

    try:
        with torch.enable_grad():
            reference, z = maps(recorded).detach(), z.detach().clone().requires_grad_()
            (maps(z) - reference).abs().mean().backward()
        return scale * z.grad
    finally:
        unet.set_attn_processor(kept)


def pull(unet, text: Tensor, scale: float, steps: int, fraction: float = 0.8) -> Pull:
    """(step, timestep, latents of the source, of the edit) -> what the edit loses; at the first step both are one.

    Args:
        text: (1, M, D) of the source prompt.
        steps: of the way back, of which the first `fraction` have it.
    """
    def lost(i: int, t: int, source: Tensor, z: Tensor) -> Tensor | float:
        return drawn_to(unet, text, 256, t, source, z, scale * (1 - i / steps)) if 0 < i < fraction * steps else 0.0

    return lost
