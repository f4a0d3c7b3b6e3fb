"""Phase 2: the text encoder and the UNet together, on the latents that the autoencoder learns to encode.

The network predicts v; the error of x0 weighs min(SNR + 1, 16) at every level:

    loss = E |W (v_theta - v)|^2 min(SNR + 1, 16) / (SNR + 1),   v = sqrt(a) eps - sqrt(1 - a) x0

so that the noisiest levels, where place and form are decided, count as much as they are seen.  (With the error of eps
weighted as min-SNR does, they weigh next to nothing, and positions stay at chance.)  W lets the four channels of form
(`training.basis`) count as much as the twelve of detail.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sage.models.sd.clip import CLIPText
from sage.models.sd.unet import UNet
from sage.models.sd.vae import VAE
from sage.sampling.levels import alphas_cumprod
from training import autoencoder, networks, run, sheets, tokenizer
from training.basis import FORM, fitted
from training.captions import IGNORE, READOUTS, VALUES, Captioner, Noise
from training.data import CHUNK, batch, render_cache, save_array
from training.networks import SCHEDULE

SNR_CAP = 16.0
FORMING, FORMING_SHARE = (0.15, 0.7), 0.5  # the levels that decide on forms, and how many samples are theirs alone


@torch.no_grad()
def latents(out: Path, outer: VAE, pictures: int) -> tuple[np.ndarray, float]:
    """(pictures, 16, 16, 16) float16 unscaled posterior means in `training.basis`, cached by chunk, and their scale.

    At that scale a form is as noisy as it is in a model of the outer levels alone.
    """
    cache = render_cache(out / "data", pictures)
    folder = out / "latents"
    folder.mkdir(exist_ok=True)
    for chunk in tqdm(range(len(cache)), desc="encode", unit="k"):
        path = folder / f"{chunk:04d}.npy"
        if path.exists():
            continue
        parts = []
        for start in range(0, CHUNK, 50):
            x = batch(cache, np.arange(chunk * CHUNK + start, chunk * CHUNK + start + 50)).to(run.device())
            with run.autocast(x.device):
                parts.append(autoencoder.posterior_of(outer, x)[0].half().cpu().numpy())
        save_array(path, np.concatenate(parts))
    turn = fitted(out, outer)
    chunks = (torch.from_numpy(np.load(folder / f"{c:04d}.npy", allow_pickle=False)) for c in range(len(cache)))
    return np.concatenate([turn(z.float()).half().numpy() for z in chunks]), float(turn.scale)


def readout_loss(heads: nn.ModuleDict, hidden: Tensor, places: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of attributes read off the tokens that should know them."""
    rows = torch.arange(hidden.shape[0])
    losses = []
    for name, attributes in READOUTS.items():
        at = hidden[rows, places[name]]
        for a in attributes:
            target = labels[a].masked_fill(places[name] == 0, IGNORE)
            if (target != IGNORE).any():
                losses.append(F.cross_entropy(heads[f"{name}_{a}"](at), target, ignore_index=IGNORE))
    return torch.stack(losses).mean()


def warm_up_text(text: CLIPText, captioner: Captioner, pictures: int, steps: int = 200, batch_size: int = 64,
                 seed: int = 0) -> float:
    """Teach the text encoder to gather what belongs together before the UNet has to wait for it.

    Returns:
        The last loss.
    """
    width = text.params.width
    heads = nn.ModuleDict({f"{name}_{a}": nn.Linear(width, len(VALUES[a]))
                           for name, attributes in READOUTS.items() for a in attributes}).to(run.device())
    optimiser = torch.optim.AdamW([*text.parameters(), *heads.parameters()], 1e-3, fused=True)
    bar = tqdm(range(steps), desc="text warm-up", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([seed, 1, step])
        ids, places, labels = captioner.labelled(rng.integers(pictures, size=batch_size), rng)
        device = run.device()
        loss = readout_loss(heads, text(ids.to(device)), {k: v.to(device) for k, v in places.items()},
                            {k: v.to(device) for k, v in labels.items()})
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return loss.item()


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 timesteps, stratified to lower the loss's variance: one part of all, one of those of forms."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    (low, high), even = FORMING, 1 - FORMING_SHARE
    return (torch.where(u < even, u / even, low + (high - low) * (u - even) / FORMING_SHARE)
            * SCHEDULE.train_steps).long()


def v_loss(unet: UNet, text: CLIPText, z0: Tensor, ids: Tensor, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """The loss above, of z0 (B, 16, 16, 16) scaled latents and ids (B, N) int64 of their captions."""
    device = z0.device
    t = timesteps(len(z0), generator)
    a = alphas[t].float()[:, None, None, None].to(device)
    eps = torch.randn(z0.shape, generator=generator).to(device)
    z = a.sqrt() * z0 + (1 - a).sqrt() * eps
    v = a.sqrt() * eps - (1 - a).sqrt() * z0
    with run.autocast(device):
        predicted = unet(z, t.to(device), text(ids.to(device)))
    snr_plus_1 = 1 / (1 - a)
    weight = snr_plus_1.clamp(max=SNR_CAP) / snr_plus_1
    form, detail = (predicted.float() - v).square().split((FORM, z0.shape[1] - FORM), dim=1)
    return (weight * form).mean() + (weight * detail).mean()


@dataclass(frozen=True)
class Course:
    """One training of the text encoder and the UNet; `noise` is that of its captions."""

    name: str
    peak: float
    noise: Noise | None = None


CLEAN = Course(networks.CLEAN, 8e-4)
NOISY = Course("noisy", 4e-4, Noise())


def _networks(vocabulary: int) -> dict[str, nn.Module]:
    text, unet = CLIPText(networks.text_params(vocabulary)), UNet(networks.UNET)
    nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=0.1)
    nn.init.zeros_(unet.conv_out.weight)
    return {"text": text.to(run.device()), "unet": unet.to(run.device())}


def _begin(state: run.State, out: Path, course: Course, captioner: Captioner, pictures: int, seed: int,
           start: Path | None, seen: int) -> None:
    """The weights of the last checkpoint, or those that the course starts from."""
    if state.load():
        return
    if course.noise:
        clean = run.State(out / f"{CLEAN.name}.safetensors", state.modules, state.optimiser)
        state.numbers["scale"] = clean.load_averages()["scale"]
    elif start:
        networks.inherit(state.modules["text"], captioner.tokenizer, state.modules["unet"], start)
        state.done = state.numbers["begun"] = seen
    else:
        warm_up_text(state.modules["text"], captioner, pictures, seed=seed)
    state.restart_averages()
    state.save()  # a start may be all that is asked for


def train(out: Path, outer: VAE, pictures: int, samples: int, course: Course = CLEAN, batch_size: int = 32,
          seed: int = 0, save_every: float = 180.0, start: Path | None = None, seen: int = 0) -> run.State:
    """Train until `samples` captioned latents were seen, continuing from out/{course.name}.safetensors if it is there.

    Args:
        start: the model whose text encoder and UNet a new training starts from, instead of from nothing.
        seen: samples that it has seen, which count.

    A course with noisy captions starts from the finished training with clean ones.
    """
    torch.manual_seed(seed)
    device = run.device()
    z, scale = latents(out, outer, pictures)
    captioner = Captioner(tokenizer.train(out / "tokenizer"), course.noise)
    modules = _networks(len(captioner.tokenizer))
    parameters = [p for m in modules.values() for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, course.peak, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    state = run.State(out / f"{course.name}.safetensors", modules, optimiser, rate=0.9995)
    state.numbers["scale"] = scale
    _begin(state, out, course, captioner, pictures, seed, start, seen)
    scale = state.numbers["scale"]
    alphas = alphas_cumprod(SCHEDULE)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        seeds = rng.integers(len(z), size=batch_size)
        z0 = torch.from_numpy(z[seeds]).float().to(device) * scale
        return v_loss(modules["unet"], modules["text"], z0, captioner.ids(seeds, rng), alphas, generator), {}

    def sheet(path: Path) -> None:
        sheets.samples(networks.assemble(out, course.name), path)

    run.learn(state, loss, course.peak, samples, batch_size, sheet, seed=seed, save_every=save_every)
    return state
