"""Phase 1: the autoencoder, 128x128x3 -> 16x16x16, in two stages.

    loss = L1 + 4 MSE + L1 of the picture's gradients + penalty

The squared term keeps hues true; the gradients keep edges sharp.  No adversary: the target is what was rendered.

`outer` has three levels and latents a quarter of the picture's side; it learns on crops, which is quick; its penalty is
1e-4 KL.  `autoencoder` puts a fourth level between: what it encodes are the latents of the first, each square of 2x2 in
one, and its penalty is how far it is from that,

    |mean - unshuffle(mean of outer)|^2 / variance + 0.01 |logvar - unshuffle(logvar of outer)|^2

so that the space of latents is known before it is trained, and the diffusion need not wait for it.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import sage
from sage.bench import metrics
from sage.models.sd.vae import VAE, VAEParams
from training import run
from training.data import SIDE, batch, render_cache

PARAMS = VAEParams(channels=(24, 48, 96, 128), layers_per_block=1, groups=8, latent_channels=16, scaling=1.0)
OUTER = replace(PARAMS, channels=PARAMS.channels[:-1], latent_channels=4)
KL, VARIANCE = 1e-4, 0.01
SETTLE = 4000  # pictures for which the fourth level alone learns, its two halves apart


def picture_loss(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a reconstruction without penalty, and the squared error in it."""
    error = (y - x).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mse = error.square().mean()
    return error.abs().mean() + 4 * mse + edges, mse


def sampled(mean: Tensor, logvar: Tensor) -> Tensor:
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


def outer_loss(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the first stage, and the squared error in it."""
    mean, logvar = vae.posterior(x)
    loss, mse = picture_loss(vae.decode(sampled(mean, logvar)), x)
    mean, logvar = mean.float(), logvar.float()
    return loss + KL * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(), mse


@torch.no_grad()
def posterior_of(outer: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the second stage is to encode: (B, 3, H, W) -> mean and log-variance, each (B, 16, H / 8, W / 8).

    Of a whole autoencoder in the place of the outer levels: what it encodes.
    """
    square = 2 ** (len(PARAMS.channels) - len(outer.params.channels))
    mean, logvar = (F.pixel_unshuffle(m.float(), square) for m in outer.posterior(x))
    return mean, logvar


def inner_loss(vae: VAE, x: Tensor, outer: VAE, settling: bool) -> tuple[Tensor, Tensor]:
    """The loss of the second stage, and the squared error in it.

    While it settles, the decoder is given what the encoder ought to say, so that neither waits for the other.
    Afterwards it is so for every other picture: the diffusion learns these latents.
    """
    mean, logvar = vae.posterior(x)
    wanted, wanted_logvar = posterior_of(outer, x)
    z = sampled(wanted, wanted_logvar)
    if not settling:
        z[1::2] = sampled(mean, logvar)[1::2]
    y = vae.decode(z)
    loss, mse = picture_loss(y, x)
    apart = (mean.float() - wanted).square().mean() / wanted.var()
    return loss + apart + VARIANCE * (logvar.float() - wanted_logvar).square().mean(), mse


@torch.no_grad()
def psnr(vae: VAE, x: Tensor) -> float:
    """Mean PSNR in dB of mean reconstructions, over pictures in [-1, 1]."""
    values = []
    for part in x.split(20):
        y = vae.decode(vae.encode(part)).clamp(-1, 1)
        values += [metrics.psnr(m) for m in ((y - part) / 2).square().mean(dim=(1, 2, 3)).tolist()]
    return float(np.mean(values))


def inherit(vae: VAE, outer: VAE) -> frozenset[str]:
    """Give an autoencoder the levels of one that has a level less.

    Returns:
        The names of the parameters that were inherited; the others are left as they are.
    """
    own, given = vae.state_dict(), outer.state_dict()
    names = set()
    for name, value in given.items():
        if ".mid_block." in name or "quant_conv" in name or name in _ENDS:
            continue
        if name.startswith("decoder.up_blocks."):
            _, _, level, rest = name.split(".", 3)
            name = f"decoder.up_blocks.{int(level) + 1}.{rest}"
        if own[name].shape == value.shape:
            own[name].copy_(value)
            names.add(name)
    return frozenset(names)


# What lies next to the latents, and so is another thing in an autoencoder with another depth.
_ENDS = {f"{part}.{weight}" for part in ("encoder.conv_norm_out", "encoder.conv_out", "decoder.conv_in")
         for weight in ("weight", "bias")}


@dataclass(frozen=True)
class Stage:
    """One training of an autoencoder; side: of the crops in pixels."""

    name: str
    params: VAEParams
    side: int
    batch_size: int
    peak: float


FIRST = Stage("outer", OUTER, SIDE // 2, 8, 1.2e-3)
SECOND = Stage("autoencoder", PARAMS, SIDE, 4, 1e-3)


def _crops(x: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """A random square of each picture (B, 3, H, W)."""
    if side == x.shape[-1]:
        return x
    corners = rng.integers(x.shape[-1] - side + 1, size=(len(x), 2))
    return torch.stack([p[:, i:i + side, j:j + side] for p, (i, j) in zip(x, corners, strict=True)])


def train_stage(out: Path, stage: Stage, pictures: int, samples: int, outer: VAE | None = None, seed: int = 0,
                save_every: float = 150.0, watched: int = 100) -> run.State:
    """Train until `samples` pictures were seen, continuing from out/{stage.name}.safetensors if it is there.

    Args:
        outer: the trained autoencoder of the first stage, which makes this the second.
        watched: held-out pictures on which the reconstruction is followed.
    """
    torch.manual_seed(seed)
    device = run.device()
    cache = render_cache(out / "data", pictures)
    held_out = batch(render_cache(out / "data", watched, held_out=True), np.arange(watched)).to(device)
    vae = VAE(stage.params)
    inherited = inherit(vae, outer) if outer else frozenset()
    vae = vae.to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), stage.peak, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    state = run.State(out / f"{stage.name}.safetensors", {"vae": vae}, optimiser)
    state.load()
    bar = tqdm(total=samples, initial=state.done, desc=stage.name, unit="picture", mininterval=5)
    recent: list[float] = []
    saved = time.monotonic()
    while state.done < samples:
        rng = np.random.default_rng([seed, state.done])
        torch.manual_seed(int(rng.integers(2**62)))
        settling = state.done < SETTLE
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(not settling or name not in inherited)
        x = _crops(batch(cache, rng.integers(pictures, size=stage.batch_size)), stage.side, rng).to(device)
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(stage.peak, state.done, samples, warmup=800)
        with run.autocast(device):
            loss, mse = inner_loss(vae, x, outer, settling) if outer else outer_loss(vae, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.averages["vae"].update()
        state.done += stage.batch_size
        recent.append(mse.item())
        bar.update(stage.batch_size)
        if time.monotonic() - saved > save_every or state.done >= samples:
            score = psnr(state.averaged("vae"), held_out)
            state.trained("vae")
            state.save()
            saved = time.monotonic()
            run.log(out / f"{stage.name}.jsonl", done=state.done, seconds=state.seconds, lr=group["lr"],
                    train_mse=float(np.mean(recent)), held_out_psnr=score)
            bar.set_postfix(psnr=f"{score:.2f}")
            recent.clear()
    bar.close()
    return state


def train_outer(out: Path, pictures: int, samples: int, start: Path | None = None) -> VAE:
    """The first stage, going on where it stopped; or the autoencoder of the model `start` in its stead."""
    if start:
        return sage.load_model(start, device=run.device(), dtype="float32").vae
    return train_stage(out, FIRST, pictures, samples).averaged("vae").requires_grad_(False)


def take(out: Path, vae: VAE, history: dict) -> None:
    """Put an autoencoder that is trained where `train` leaves its own.

    Args:
        history: what is known of its training, for the log.
    """
    state = run.State(out / f"{SECOND.name}.safetensors", {"vae": vae}, torch.optim.SGD([torch.zeros(1)]))
    state.done = history.get("done", 0)
    state.save()
    run.log(out / f"{SECOND.name}.jsonl", **history)


def train(out: Path, outer: VAE, pictures: int, samples: int) -> run.State:
    """The second stage, going on where it stopped."""
    return train_stage(out, SECOND, pictures, samples, outer)
