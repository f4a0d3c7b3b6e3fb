"""Phase 1: the autoencoder, 128x128x3 -> 16x16x8, in two stages.

    loss = L1 + 4 MSE + L1 of the picture's gradients + 1e-4 KL

The squared term keeps hues true; the gradients keep edges sharp.  No adversary: the target is what was rendered.

`outer` learns the levels next to the pixels with the latents four pixels wide, on crops, which is quick.  `inner` puts
one more level between them: at first it alone learns, against the outer levels as they stand, then everything does.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sage
from sage.models.vae import VAE, VAEParams
from training import run
from training.data import SIDE, batch, render_cache

PARAMS = VAEParams(channels=(24, 48, 96, 128), layers_per_block=1, groups=8, latent_channels=8, scaling=1.0)
OUTER = replace(PARAMS, channels=PARAMS.channels[:-1], latent_channels=4)
KL = 1e-4
SETTLE = 1200  # pictures for which the new level alone learns


def loss_of(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, logvar = vae.posterior(x)
    z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
    error = (vae.decode(z) - x).float()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mse = error.square().mean()
    mean, logvar = mean.float(), logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 4 * mse + edges + KL * kl, mse


@torch.no_grad()
def psnr(vae: VAE, x: Tensor) -> float:
    """Mean PSNR in dB of mean reconstructions, over pictures in [-1, 1]."""
    values = []
    for part in x.split(20):
        y = vae.decode(vae.encode(part)).clamp(-1, 1)
        mse = ((y - part) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * mse.log10())
    return torch.cat(values).mean().item()


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
    """One training of an autoencoder.

    side: of the crops in pixels; settle: pictures for which what was inherited is left alone.
    """

    name: str
    params: VAEParams
    side: int
    batch_size: int
    peak: float
    settle: int = 0


def _crops(x: Tensor, side: int, rng: np.random.Generator) -> Tensor:
    """A random square of each picture (B, 3, H, W)."""
    if side == x.shape[-1]:
        return x
    corners = rng.integers(x.shape[-1] - side + 1, size=(len(x), 2))
    return torch.stack([p[:, i:i + side, j:j + side] for p, (i, j) in zip(x, corners, strict=True)])


def train_stage(out: Path, stage: Stage, pictures: int, samples: int, start: VAE | None = None,
                seed: int = 0, save_every: float = 150.0, watched: int = 100) -> run.State:
    """Train until `samples` pictures were seen, continuing from out/{stage.name}.safetensors if it is there.

    Args:
        start: an autoencoder with a level less, whose levels are inherited.
        watched: held-out pictures on which the reconstruction is followed.
    """
    torch.manual_seed(seed)
    device = run.device()
    cache = render_cache(out / "data", pictures)
    held_out = batch(render_cache(out / "data", watched, held_out=True), np.arange(watched)).to(device)
    vae = VAE(stage.params)
    inherited = inherit(vae, start) if start else frozenset()
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
        for name, parameter in vae.named_parameters():
            parameter.requires_grad_(state.done >= stage.settle or name not in inherited)
        x = _crops(batch(cache, rng.integers(pictures, size=stage.batch_size)), stage.side, rng).to(device)
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(stage.peak, state.done, samples, warmup=800)
        with run.autocast(device):
            loss, mse = loss_of(vae, x)
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


def train(out: Path, pictures: int, outer: int, samples: int, start: Path | None = None) -> run.State:
    """Both stages, each going on where it stopped.

    Args:
        outer, samples: pictures shown in the two stages.
        start: a model whose autoencoder takes the place of the first stage's.
    """
    if start is None:
        stage = Stage("outer", OUTER, SIDE // 2, 8, 1.2e-3)
        state = train_stage(out, stage, pictures, outer)
        first = state.averaged("vae")
    else:
        first = sage.load_model(start, dtype="float32").vae
    stage = Stage("autoencoder", PARAMS, SIDE, 4, 1e-3, settle=SETTLE)
    return train_stage(out, stage, pictures, samples, first)
