"""A basis of the latents: four channels that say what a picture of half the side is, and twelve of detail.

    z' = M z + b      z   (16, h, w)  the outer levels' latents, each square of 2x2 in one
                      z'  first the best guess, cell by cell, of the outer levels' latents of the picture at half its
                          side; then what that leaves of z, along its main directions

So a UNet that knows pictures of half the side knows the first four from the start, at the noise that it knows, and
forms need not be found again among sixteen channels that each hold a little of them.  The autoencoder takes the basis
into its 1x1 convolutions, after which nothing else has to know of it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sage.models.sd.vae import VAE
from training import autoencoder, run
from training.data import batch, render_cache

FORM = autoencoder.OUTER.latent_channels  # channels that say what a picture of half the side is
FITTED = 1000  # pictures
FILE = "basis.safetensors"


@dataclass(frozen=True)
class Basis:
    """matrix: (16, 16) float32, M; bias: (16,) float32, b; logvar: (16,) float32, of the posterior of z'.

    scale: () float32, brings the outer levels' latents of the pictures at half their side to unit variance.
    """

    matrix: Tensor
    bias: Tensor
    logvar: Tensor
    scale: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """(B, 16, h, w) -> the same in this basis."""
        return F.conv2d(z, self.matrix[..., None, None], self.bias)

    @torch.no_grad()
    def taken_into(self, vae: VAE) -> VAE:
        """The autoencoder, whose latents are from now on in this basis."""
        half = len(self.bias)
        first, last = vae.quant_conv, vae.post_quant_conv
        mean, bias = first.weight[:half, :, 0, 0], first.bias[:half]
        first.weight[:half] = (self.matrix @ mean)[..., None, None]
        first.bias[:half] = self.matrix @ bias + self.bias
        first.weight[half:] = 0  # the sum of variances is no linear thing of their logarithms: what it is on average
        first.bias[half:] = self.logvar
        back = last.weight[:, :, 0, 0] @ torch.linalg.inv(self.matrix)
        last.weight.copy_(back[..., None, None])
        last.bias -= back @ self.bias
        return vae


def fit(outer: VAE, x: Tensor) -> Basis:
    """The basis for pictures (B, 3, H, W) in [-1, 1]."""
    parts = [(*autoencoder.posterior_of(outer, p), outer.posterior(F.avg_pool2d(p, 2))[0].float()) for p in x.split(50)]
    z, logvar, wanted = (torch.cat(p).permute(0, 2, 3, 1).flatten(0, 2).double() for p in zip(*parts, strict=True))
    centre, middle = z.mean(dim=0), wanted.mean(dim=0)
    form = torch.linalg.lstsq(z - centre, wanted - middle).solution.T  # (4, 16)
    _, _, rows = torch.linalg.svd(form)
    told = torch.linalg.lstsq((z - centre) @ form.T, z - centre).solution.T  # (16, 4): of z, by the guess
    rest = rows[FORM:] @ (torch.eye(len(centre), dtype=z.dtype) - told @ form)  # what it leaves
    _, directions = torch.linalg.eigh((rest @ (z - centre).T).cov())
    matrix = torch.cat([form, directions.T.flip(0) @ rest])
    bias = torch.cat([middle, torch.zeros(len(rest))]) - matrix @ centre
    spread = (matrix.square() @ logvar.exp().mean(dim=0)).log()
    return Basis(matrix.float(), bias.float(), spread.float(), 1 / wanted.std().float())


@torch.no_grad()
def fitted(out: Path, outer: VAE) -> Basis:
    """The one that is kept under `out`, fitted where there is none."""
    if not (out / FILE).exists():
        keep(out, fit(outer, batch(render_cache(out / "data", FITTED), np.arange(FITTED)).to(run.device())))
    return kept(out)


def of(vae: VAE) -> Basis:
    """That of a trained autoencoder's own latents: nothing is turned."""
    channels = vae.params.latent_channels
    return Basis(torch.eye(channels), torch.zeros(channels), vae.quant_conv.bias.detach()[channels:],
                 torch.tensor(vae.params.scaling))


def keep(out: Path, basis: Basis) -> None:
    """Under `out`, where `kept` finds it."""
    temporary = (out / FILE).with_suffix(".tmp")
    save_file({k: v.cpu().contiguous() for k, v in vars(basis).items()}, temporary)
    temporary.replace(out / FILE)


def kept(out: Path) -> Basis:
    """The one that is kept under `out`, on the CPU."""
    return Basis(**load_file(out / FILE))
