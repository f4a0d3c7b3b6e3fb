"""The inversion network: the noise under which the frozen student gives a picture back (Wu et al. 2408.08332, sec. 3).

    e = m + sqrt(v) xi,   m, v = F(x0, x_t+, t)
    loss = mean (x0 - G(s x_t+ + n e, t))^2 + beta KL(N(m, v) | N(0, 1))

beta weighs the mean KL of a number.  x_t+, what is reconstructed so far, is nothing at the first anchor; else the
picture noised to the anchor before and taken back by one call; and in the second half of the training, half of the
time, what the network itself has come to.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sage.models.backbone import Text
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.models.sd.unet import UNet
from training.data import CHUNK
from training.turbo import loop
from training.turbo.teacher import ANCHORS, Teacher, clean, gaussian, noised, rows

BETA = 0.3  # the paper's 1e-6, of a sum over 4 x 64 x 64 numbers, is 0.016, at which noises stay too small here


def from_student(student: UNet) -> InversionNet:
    """The student with a second picture, of which it sees nothing yet, and a noise that is standard normal."""
    network = InversionNet(inversion_params(student.params)).to(next(student.parameters()).device)
    own, given, channels = network.state_dict(), student.state_dict(), student.params.in_channels
    for name, value in given.items():
        if name == "conv_in.weight":
            own[name].zero_()
            own[name][:, :channels] = value
        elif name.startswith("conv_out."):
            own[name].zero_()
        else:
            own[name].copy_(value)
    return network


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """The mean KL divergence of a number from a standard normal one."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def step(network: InversionNet, student: UNet, teacher: Teacher, x0: Tensor, x: Tensor, anchor: int, text: Tensor,
         generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One step of algorithm 1: the reconstruction, and mean and log variance of its noise."""
    level = teacher.model.schedule.level(anchor)
    mean, log_variance = network.noise(x0, x, level, Text(text))
    eps = mean + (log_variance / 2).exp() * gaussian(tuple(x0.shape), generator)
    return clean(student, noised(x, eps, level), level, text), mean, log_variance


@torch.no_grad()
def before(network: InversionNet, student: UNet, teacher: Teacher, x0: Tensor, number: int, own: bool, text: Tensor,
           generator: torch.Generator) -> Tensor:
    """What is reconstructed before the step of an anchor, by its number: as above."""
    if number == 0:
        return torch.zeros_like(x0)
    if own:
        x = torch.zeros_like(x0)
        for anchor in ANCHORS[:number]:
            x, _, _ = step(network, student, teacher, x0, x, anchor, text, generator)
        return x
    level = teacher.model.schedule.level(ANCHORS[number - 1])
    return clean(student, noised(x0, gaussian(tuple(x0.shape), generator), level), level, text)


def train(out: Path, student: UNet, teacher: Teacher, latents: Sequence[np.ndarray], samples: int,
          batch_size: int = 32, *, beta: float = BETA, single: bool = False, name: str = "inversion",
          begun: InversionNet | None = None, seed: int = 0) -> InversionNet:
    """Train the network; out/NAME.safetensors.

    Args:
        single: at the first anchor alone, the paper's single-step precursor.
        begun: what it goes on from, if not from the student.
    """
    network = begun or from_student(student)

    def loss(rng: np.random.Generator, generator: torch.Generator, done: float) -> tuple[Tensor, dict[str, float]]:
        seeds = rng.integers(len(latents) * CHUNK, size=batch_size)
        x0, text = rows(latents, seeds), teacher.embed(teacher.captions(seeds, rng, empty=0.05))
        number = 0 if single else int(rng.integers(len(ANCHORS)))
        x = before(network, student, teacher, x0, number, done >= 0.5 and rng.random() < 0.5, text, generator)
        g, mean, log_variance = step(network, student, teacher, x0, x, ANCHORS[number], text, generator)
        error, apart = (x0 - g).square().mean(), kl(mean, log_variance)
        told = {f"mse_{ANCHORS[number]}": error.item(), f"kl_{ANCHORS[number]}": apart.item()}
        return error + beta * apart, told

    loop.train(out / f"{name}.safetensors", network, loss, samples, batch_size, peak=1e-4, seed=seed)
    return loop.averaged(out / f"{name}.safetensors", network)
