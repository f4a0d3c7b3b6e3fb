"""A rectified flow on the same latents: a small transformer of FLUX.1's build, told by the text encoder of the UNet.

    z_t = (1 - t) x0 + t eps,   loss = E |v_theta(z_t, t, text) - (eps - x0)|^2

(Esser et al. 2403.03206, eq. 13 and 14.)  The text encoder and the autoencoder stay as they are: the hidden states are
the text's tokens, that of the end mark stands for the whole.

eps - x0 is one draw of what is to be learnt, its mean given z_t.  A diffusion of the same latents has learnt that mean,
and may teach it: the minimum is the same, and the spread of the draws, in the end all of the loss, is gone.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sage.models.flow.transformer import FluxTransformer, Modulation
from sage.models.sd.clip import CLIPText
from sage.models.sd.unet import UNet
from sage.models.sd.vae import VAE
from sage.sampling.levels import alphas_cumprod
from training import networks, run, sheets, tokenizer
from training.captions import Captioner
from training.diffusion import latents

FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
PEAK, WARMUP = 4e-4, 4_000  # learning rate, and the samples until it is reached
MEAN, UNIFORM = 0.75, 0.25  # of logit t, and the share of the times that are spread evenly


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

    Place and form are decided near t = 1, where logits of mean 0 hardly come; flows are sampled with a shift to there.
    """
    even = round(UNIFORM * batch)
    u, w = ((torch.arange(n) + torch.rand(n, generator=generator)) / max(n, 1) for n in (even, batch - even))
    return torch.cat([u, torch.sigmoid(MEAN + torch.special.ndtri(w))]).clamp(1e-4, 1 - 1e-4)


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
              generator: torch.Generator, teacher: Teacher | None = None) -> Tensor:
    """The loss above.

    Args:
        z0: (B, C, h, w) latents.
        ids: (B, M) int64 tokens of the captions.
        end: the token that ends one.
        teacher: gives the velocity to learn, at the times that it knows.
    """
    device = z0.device
    t = times(len(z0), generator).to(device)
    eps = torch.randn(z0.shape, generator=generator).to(device)
    at = t[:, None, None, None]
    ids = ids.to(device)
    # The fused attention of CPUs takes four times as long there and back as the products that it is made of.
    with run.autocast(device), sdpa_kernel([SDPBackend.MATH] if device.type == "cpu" else list(FUSED)):
        with torch.no_grad():
            tokens = text(ids)
        pooled = tokens[torch.arange(len(ids), device=device), (ids == end).int().argmax(dim=1)]
        z, wanted = (1 - at) * z0 + at * eps, eps - z0
        if teacher is not None:
            wanted = torch.where(teacher.knows(t)[:, None, None, None], teacher(z, t, tokens), wanted)
        v = transformer(z, t, tokens, pooled)
    return (v.float() - wanted).square().mean()


def train(out: Path, outer: VAE, pictures: int, samples: int, batch_size: int = 16, seed: int = 0,
          save_every: float = 180.0, text_of: Path | None = None, taught_by: Path | None = None) -> run.State:
    """Train until `samples` captioned latents were seen, continuing from out/flow.safetensors if it is there.

    Args:
        text_of: the model whose text encoder tells what is wanted; default: what the training of the UNet has come to.
            It is kept beside the weights, and asked for at the start alone.
        taught_by: the model whose UNet teaches the velocity, asked for each time; its text encoder is taken, the only
            one that it understands.
    """
    torch.manual_seed(seed)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # on CPUs too, whatever it is called
    device = run.device()
    z, scale = latents(out, outer, pictures)
    words = tokenizer.train(out / "tokenizer")
    captioner, transformer = Captioner(words), FluxTransformer(networks.FLOW)
    begin(transformer)
    text = CLIPText(networks.text_params(len(words))).to(device).requires_grad_(False)
    modules = {"text": text, "transformer": transformer.to(device)}
    matrices, others = ([p for p in transformer.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    optimiser = torch.optim.AdamW([{"params": matrices, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}],
                                  PEAK, betas=(0.9, 0.99), fused=True)
    state = run.State(out / f"{networks.FLOWING}.safetensors", modules, optimiser, rate=0.9995)
    state.numbers["scale"] = scale
    if not state.load():
        text.load_state_dict(networks.text_of(out, words, taught_by or text_of).state_dict())
        state.restart_averages()
    scale, teacher = state.numbers["scale"], None
    if taught_by is not None:
        teacher = Teacher(networks.unet_of(taught_by)).to(device)

    def loss(rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        seeds = rng.integers(len(z), size=batch_size)
        z0 = torch.from_numpy(z[seeds]).float().to(device) * scale
        ids = captioner.ids(seeds, rng)
        return flow_loss(transformer, text, z0, ids, words.eos_token_id, generator, teacher), {}

    run.learn(state, loss, PEAK, samples, batch_size, lambda path: sheets.samples(networks.assemble_flow(out), path),
              warmup=WARMUP, seed=seed, save_every=save_every)
    return state
