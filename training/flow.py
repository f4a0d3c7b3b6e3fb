"""A rectified flow on the same latents: a small transformer of FLUX.1's build, told by the text encoder of the UNet.

    z_t = (1 - t) x0 + t eps,   loss = E |v_theta(z_t, t, text) - (eps - x0)|^2

(Esser et al. 2403.03206, eq. 13 and 14.)  The text encoder and the autoencoder stay as they are: the hidden states are
the text's tokens, that of the end mark stands for the whole.

eps - x0 is one draw of what is to be learnt, its mean given z_t.  A diffusion of the same latents has learnt that mean,
and may teach it: the minimum is the same, and the spread of the draws, in the end all of the loss, is gone.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sage.models.flow.transformer import FluxTransformer, Modulation
from sage.models.sd.clip import CLIPText
from sage.models.sd.unet import UNet
from sage.models.sd.vae import VAE
from sage.sampling.levels import alphas_cumprod
from training import networks, run, sheets, tokenizer
from training.captions import Captioner
from training.diffusion import latents

PEAK, TAUGHT_PEAK, WARMUP = 4e-4, 6e-4, 4_000  # learning rates, also by a teacher, and samples until they are reached
BATCH, TAUGHT_BATCH = 16, 4  # samples of a step; by a teacher half as many scenes in two captions each
CONTRAST = 4.0  # weight of what two captions change, beside the rest
STRONGEST, PLAIN = 4.0, 0.25  # guidance that is learnt, at most, and the share of scenes without
MEAN, UNIFORM = 0.75, 0.25  # of logit t, and the share of the times that are spread evenly


class Coarse(FluxTransformer):
    """The flow with tokens of 2 x 2 latents, each in the place of its first: what a finer one goes on from."""

    def positions(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """The rotations of every second place of every second row."""
        whole = super().positions(2 * rows, 2 * columns, dtype)
        return whole.unflatten(0, (2 * rows, 2 * columns))[::2, ::2].flatten(0, 1)


def finer(coarse: Mapping[str, Tensor], latents: int = 4) -> dict[str, Tensor]:
    """Weights with a token a latent, of those with one for several: what they say of several equal ones.

    Args:
        latents: of a coarse token.
    """
    weights = dict(coarse)
    weights["x_embedder.weight"] = coarse["x_embedder.weight"].unflatten(1, (-1, latents)).sum(dim=2)
    for name in ("proj_out.weight", "proj_out.bias"):
        weights[name] = coarse[name].unflatten(0, (-1, latents)).mean(dim=1)
    return weights


def begin(transformer: FluxTransformer) -> None:
    """Weights to start from: every block does nothing, and the velocity is 0 (Peebles & Xie 2212.09748, sec. 3.2)."""
    for layer in transformer.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in transformer.modules():
        if isinstance(layer, Modulation):
            nn.init.zeros_(layer.linear.weight)
    nn.init.zeros_(transformer.proj_out.weight)


def times(batch: int, generator: torch.Generator) -> Tensor:
    """(B,) times in (0, 1), stratified: a share evenly, the others with a normal logit (2403.03206, eq. 19).

    Of a few times it is left to chance whether one is among the share.
    Place and form are decided near t = 1, where logits of mean 0 hardly come; flows are sampled with a shift to there.
    """
    even = int(UNIFORM * batch + torch.rand(1, generator=generator).item())
    u, w = ((torch.arange(n) + torch.rand(n, generator=generator)) / max(n, 1) for n in (even, batch - even))
    return torch.cat([u, torch.sigmoid(MEAN + torch.special.ndtri(w))]).clamp(1e-4, 1 - 1e-4)


def guidances(batch: int, generator: torch.Generator) -> Tensor:
    """(B,) scales of guidance that a teacher shows: 1 in a share of them, the others spread evenly up to the most."""
    plain = torch.rand(batch, generator=generator) < PLAIN
    return torch.where(plain, 1.0, 1 + (STRONGEST - 1) * torch.rand(batch, generator=generator))


def _log_snr(t: Tensor) -> Tensor:
    return 2 * ((1 - t) / t).log()


class Teacher(nn.Module):
    """A UNet that predicts v, as a teacher of the velocity in the same latents.

    z_t / n has the signal to noise of the diffusion's level a = (1 - t)^2 / n^2, n^2 = (1 - t)^2 + t^2, where x0 and
    eps are z and v turned by its angle.
    """

    def __init__(self, unet: UNet):
        super().__init__()
        self.unet = unet
        alphas = alphas_cumprod(networks.SCHEDULE)
        self.register_buffer("log_snr", (alphas / (1 - alphas)).log().float(), persistent=False)  # falling

    def knows(self, t: Tensor) -> Tensor:
        """(B,) bool: whether the diffusion has a level as noisy as these times."""
        log_snr = _log_snr(t)
        return (log_snr <= self.log_snr[0]) & (log_snr >= self.log_snr[-1])

    @torch.no_grad()
    def forward(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """(B, C, h, w) latents at the times (B,) -> E[eps - x0 | z, text]; only of use where it `knows`."""
        rising = self.log_snr.flip(0)
        log_snr = _log_snr(t).clamp(rising[0], rising[-1])
        above = torch.searchsorted(rising, log_snr).clamp(1, len(rising) - 1)
        share = (log_snr - rising[above - 1]) / (rising[above] - rising[above - 1])
        timestep = len(rising) - above - share
        n = ((1 - t).square() + t.square()).sqrt()
        signal, noise = ((x / n)[:, None, None, None] for x in (1 - t, t))
        z = z / n[:, None, None, None]
        return (noise - signal) * z + (signal + noise) * self.unet(z, timestep, context).float()


def flow_loss(transformer: FluxTransformer, text: CLIPText, z0: Tensor, ids: Tensor, end: int,
              generator: torch.Generator) -> Tensor:
    """The loss above.

    Args:
        z0: (B, C, h, w) latents.
        ids: (B, M) int64 tokens of the captions.
        end: the token that ends one.
    """
    t, eps, z = _noised(z0, generator)
    with run.autocast(z0.device):
        v = transformer(z, t, *_conditioning(text, ids.to(z0.device), end))
    return (v.float() - (eps - z0)).square().mean()


def taught_loss(transformer: FluxTransformer, text: CLIPText, z0: Tensor, ids: Tensor, others: Tensor, empty: Tensor,
                end: int, generator: torch.Generator, teacher: Teacher) -> Tensor:
    """The loss under a teacher, who also knows what other captions make of the same noisy latents, and guidance.

        E (|d|^2 + |d'|^2) / 2 + CONTRAST E |d - d'|^2,   d = v_theta(z_t, t, text, w) - v(text, w)
        v(text, w) = E[eps - x0 | z_t] + w (E[eps - x0 | z_t, text] - E[eps - x0 | z_t])

    What a word changes is a small part of the velocity, and lost among the rest if it is not asked for; guidance w,
    which the network is told (Meng et al. 2210.03142, sec. 3.1), makes it larger.  Where the teacher has no level the
    caption is learnt from the draw, and the other one is left out.

    Args:
        z0: (B, C, h, w) latents.
        ids, others: (B, M) int64 tokens of their captions, and of others.
        empty: (M,) int64 tokens of the empty caption.
        end: the token that ends one.
    """
    device, batch = z0.device, len(z0)
    t, eps, z = _noised(z0, generator)
    w = guidances(batch, generator).to(device)
    known, scale = teacher.knows(t)[:, None, None, None], w[:, None, None, None]
    with run.autocast(device):
        tokens, pooled = _conditioning(text, torch.cat([ids, others, empty.expand(batch, -1)]).to(device), end)
        without, *learnt = teacher(z.repeat(3, 1, 1, 1), t.repeat(3), tokens).roll(batch, 0).chunk(3)
        v, v_other = transformer(torch.cat([z, z]), torch.cat([t, t]), tokens[:2 * batch], pooled[:2 * batch],
                                 torch.cat([w, w])).float().chunk(2)
    own, other = (without + scale * (one - without) for one in learnt)
    d, d_other = v - torch.where(known, own, eps - z0), torch.where(known, v_other - other, 0.0)
    return ((d.square() + d_other.square()) / 2 + CONTRAST * torch.where(known, d - d_other, 0.0).square()).mean()


def _noised(z0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Times, noise, and the latents at these times."""
    t = times(len(z0), generator).to(z0.device)
    eps = torch.randn(z0.shape, generator=generator).to(z0.device)
    at = t[:, None, None, None]
    return t, eps, (1 - at) * z0 + at * eps


@torch.no_grad()
def _conditioning(text: CLIPText, ids: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The tokens of captions, and each one's at its end."""
    tokens = text(ids)
    return tokens, tokens[torch.arange(len(ids), device=ids.device), (ids == end).int().argmax(dim=1)]


def train(out: Path, outer: VAE, pictures: int, samples: int, seed: int = 0,
          save_every: float = 180.0, text_of: Path | None = None, taught_by: Path | None = None,
          start: Path | None = None, coarse: bool = False) -> run.State:
    """Train until `samples` captioned latents were seen, continuing from out/flow.safetensors if it is there.

    A new training goes on from out/flow-coarse.safetensors, if that is there.

    Args:
        text_of: the model whose text encoder tells what is wanted; default: what the training of the UNet has come to.
            It is kept beside the weights, and asked for at the start alone.
        taught_by: the model whose UNet teaches the velocity, asked for each time; its text encoder is taken, the only
            one that it understands.
        start: a flow that a new training goes on from instead; the samples that it has seen count.
        coarse: train the beginning, out/flow-coarse.safetensors, with a token for four latents: three times as fast.
    """
    torch.manual_seed(seed)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on CPUs too, whatever it is called
    device = run.device()
    z, scale = latents(out, outer, pictures)
    words = tokenizer.train(out / "tokenizer")
    captioner, transformer = Captioner(words), Coarse(networks.COARSE) if coarse else FluxTransformer(networks.FLOW)
    empty = torch.tensor(captioner.pad([]))
    begin(transformer)
    text = CLIPText(networks.text_params(len(words))).to(device).requires_grad_(False)
    modules = {"text": text, "transformer": transformer.to(device)}
    matrices, others = ([p for p in transformer.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}],
                                  PEAK, betas=(0.9, 0.99), fused=True)
    course = networks.COARSELY if coarse else networks.FLOWING
    state = run.State(out / f"{course}.safetensors", modules, optimiser, rate=0.9995)
    state.numbers["scale"] = scale
    if not state.load():
        text.load_state_dict(networks.text_of(out, words, taught_by or text_of).state_dict())
        if start is not None:
            weights, state.done = networks.flow_of(start)
            transformer.load_state_dict(weights)
            state.numbers["begun"] = state.done
        elif not coarse and (out / f"{networks.COARSELY}.safetensors").exists():
            transformer.load_state_dict(finer(networks.coarse_of(out)))
        state.restart_averages()
        state.save()  # a start may be all that is asked for
    scale, teacher = state.numbers["scale"], None
    if taught_by is not None:
        teacher = Teacher(networks.unet_of(taught_by)).to(device)

    batch_size, peak = (BATCH, PEAK) if teacher is None else (TAUGHT_BATCH, TAUGHT_PEAK)
    batch_size *= 2 if coarse else 1

    def loss(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        seeds = rng.integers(len(z), size=batch_size if teacher is None else batch_size // 2)
        z0 = torch.from_numpy(z[seeds]).float().to(device) * scale
        if teacher is None:
            return flow_loss(transformer, text, z0, captioner.ids(seeds, rng), words.eos_token_id, generator), {}
        return taught_loss(transformer, text, z0, *captioner.pairs(seeds, rng), empty, words.eos_token_id,
                           generator, teacher), {}

    def sheet(path: Path) -> None:
        sheets.samples(networks.assemble_flow(out), path)

    run.learn(state, loss, peak, samples, batch_size, None if coarse else sheet, WARMUP, seed, save_every)
    return state
