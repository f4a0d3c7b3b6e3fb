"""Phase 1: the autoencoder, 64x64x3 -> 16x16x4.

    loss = L1 + 4 MSE + L1 of the picture's gradients + 1e-4 KL

The squared term keeps hues true; the gradients keep edges sharp.  No adversary: the target is what was rendered.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sage.models.sd.vae import VAE, VAEParams
from training import run
from training.data import batch, render_cache

PARAMS = VAEParams(channels=(24, 48, 96), layers_per_block=1, groups=8, scaling=1.0)
KL = 1e-4


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
    for part in x.split(50):
        y = vae.decode(vae.encode(part)).clamp(-1, 1)
        mse = ((y - part) / 2).square().mean(dim=(1, 2, 3))
        values.append(-10 * mse.log10())
    return torch.cat(values).mean().item()


def train(out: Path, pictures: int, samples: int, batch_size: int = 8, peak: float = 1.2e-3,
          seed: int = 0) -> run.State:
    """Train until `samples` pictures were seen, continuing from out/autoencoder.safetensors if it is there."""
    torch.manual_seed(seed)
    device = run.device()
    cache = render_cache(out / "data", pictures)
    held_out = batch(render_cache(out / "data", 1000, held_out=True), np.arange(200)).to(device)
    vae = VAE(PARAMS).to(device)
    optimiser = torch.optim.AdamW(vae.parameters(), peak, betas=(0.9, 0.98), weight_decay=1e-3, fused=True)
    state = run.State(out / "autoencoder.safetensors", {"vae": vae}, optimiser)
    state.load()
    bar = tqdm(total=samples, initial=state.done, desc="autoencoder", unit="picture", mininterval=5)
    recent: list[float] = []
    saved = time.monotonic()
    while state.done < samples:
        rng = np.random.default_rng([seed, state.done])
        x = batch(cache, rng.integers(pictures, size=batch_size)).to(device)
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(peak, state.done, samples)
        with torch.autocast(device.type, torch.bfloat16):
            loss, mse = loss_of(vae, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.averages["vae"].update()
        state.done += batch_size
        recent.append(mse.item())
        bar.update(batch_size)
        if time.monotonic() - saved > 120 or state.done >= samples:
            score = psnr(state.averaged("vae"), held_out)
            state.trained("vae")
            state.save()
            saved = time.monotonic()
            run.log(out / "autoencoder.jsonl", done=state.done, seconds=state.seconds, lr=group["lr"],
                    train_mse=float(np.mean(recent)), held_out_psnr=score)
            bar.set_postfix(psnr=f"{score:.2f}")
            recent.clear()
    bar.close()
    if not (path := out / "reconstructions.png").exists():
        from training import sheets  # which needs the parameters above

        sheets.reconstructions(state.averaged("vae"), held_out[:12], path)
        state.trained("vae")
    return state
