"""The inversion network of TurboEdit: the noise under which a few-step generator gives a picture back (2408.08332).

    F(x0, x^0, t, text) -> mean, log variance        of the noise, at every place and channel

It is a UNet whose input is two pictures, as latents: the one wanted, and what is reconstructed of it so far.  Ours:
what it says of the mean is added to s/n (x0 - x^0), with s and n the shares of picture and noise at t, which is known
without a network: a draw around that makes x0 itself, noised.  A network that says nothing inverts as edit-friendly
DDPM does.
"""

from dataclasses import replace

import torch
from torch import Tensor

from sage.models.backbone import Text
from sage.models.sd.unet import UNet, UNetParams
from sage.sampling.levels import Level

LOG_VARIANCE = (-10.0, 4.0)  # between these: what is drawn stays finite


def inversion_params(unet: UNetParams) -> UNetParams:
    """Those of the inversion network of a generator: two pictures in, two numbers out for each of its own."""
    return replace(unet, in_channels=2 * unet.in_channels, out_channels=2 * unet.out_channels)


class InversionNet(UNet):
    """Predicts the noise for one step of a few-step generator.

    Args:
        factor: pixels a side of a place of the latents, for networks that are told sizes, as those of XL are.
    """

    def __init__(self, params: UNetParams, factor: int = 8):
        super().__init__(params)
        self.factor = factor

    def noise(self, x0: Tensor, reconstruction: Tensor, level: Level, text: Text) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the noise, each (B, C, h, w) float32.

        Args:
            x0: (B, C, h, w) clean latents of the picture.
            reconstruction: (B, C, h, w) clean latents after the step before; zeros before the first.
            level: from which the step starts.
            text: embedded source prompts.
        """
        added = None
        if text.pooled is not None:  # as the generator is told
            height, width = (side * self.factor for side in x0.shape[-2:])
            added = self.added(text.pooled, torch.tensor([[height, width, 0, 0, height, width]], device=x0.device))
        both = self(torch.cat([x0, reconstruction], dim=1), level.t, text.tokens, added).float()
        mean, log_variance = both.chunk(2, dim=1)
        return mean + level.signal / level.noise * (x0 - reconstruction), log_variance.clamp(*LOG_VARIANCE)
