"""What the released SAGE code computes on diffusers 0.21.4, once more and in another way: the oracle of test_published.

Written against the description of that code's behaviour, over diffusers' UNet2DConditionModel.  Every attention map is
materialised in every pass, layers are told apart by the side of their map, references are kept under the timestep
that the network was told, and noise levels are inferred from single timesteps.  Nothing of `sage` is used.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

TRAIN_STEPS = 1000


# In float32, as diffusers computes it; 1 - ALPHAS[0] is off by 4e-5.
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2, dim=0).tolist()


@dataclass
class Options:
    """The released code's knobs; names are ours."""

    steps: int = 8
    trailing: bool = False
    w: float = 7.5
    kind: str = "self"
    distance: str = "l1"
    scale: float = 200.0
    gain: float = 500.0
    falling: bool = True
    last_guided: int = 40
    self_level: int = 1
    cross_level: int = 2
    replace: tuple[str, str] | None = None
    replace_fraction: float = 0.0
    blend: tuple[str, str] | None = None
    blend_fraction: float = 0.0
    gradient_floor: float = 1.0
    guidance_floor: float = 1.0
    reweight: dict[str, float] = field(default_factory=dict)
    noise: float = 0.0
    sample: bool = False
    seed: int = 8888
    side: int = 64
    prediction: str = "epsilon"


@dataclass
class Released:
    latents: Tensor
    picture: Image.Image
    noise: Tensor
    losses: list[float]
    masks: list[Tensor]
    inversion: list[Tensor]


def convert(output: Tensor, z: Tensor, a: float, prediction: str) -> tuple[Tensor, Tensor]:
    if prediction == "v_prediction":
        return a**0.5 * z - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * z
    return (z - (1 - a) ** 0.5 * output) / a**0.5, output


def descend(output: Tensor, t: int, z: Tensor, o: Options) -> tuple[Tensor, Tensor]:
    """DDIMScheduler.step: the next latents and the predicted clean ones."""
    x0, eps = convert(output, z, ALPHAS[t], o.prediction)
    below = t - TRAIN_STEPS // o.steps
    a = ALPHAS[below] if below >= 0 else ALPHAS[0]
    return a**0.5 * x0 + (1 - a) ** 0.5 * eps, x0


def ascend(output: Tensor, t: int, z: Tensor, o: Options) -> Tensor:
    """DDIMInverseScheduler.step as it was up to 0.21."""
    x0, eps = convert(output, z, ALPHAS[t], o.prediction)
    a = ALPHAS[t + TRAIN_STEPS // o.steps]
    return a**0.5 * x0 + (1 - a) ** 0.5 * eps


def grid(o: Options) -> list[int]:
    """The N timesteps from noisy to clean, and a 0."""
    if o.trailing:
        down = np.round(np.arange(TRAIN_STEPS, 0, -TRAIN_STEPS / o.steps)).astype(int) - 1
    else:
        down = (np.arange(o.steps) * (TRAIN_STEPS // o.steps))[::-1] + 1
    return [*down.tolist(), 0]


class Watcher:
    """Attention processor of every layer: sees each map, files it, changes it."""

    def __init__(self, o: Options, side: int, columns: tuple[list[int], list[int]] | None, first_key: int,
                 words: tuple[Tensor, Tensor], factors: Tensor):
        self.o, self.columns, self.first_key, self.words, self.factors = o, columns, first_key, words, factors
        self.self_count, self.cross_count = ((side >> level) ** 2 for level in (o.self_level, o.cross_level))
        self.phase, self.key = "", -1
        self.maps = defaultdict(list)       # (phase, key, kind) -> maps in visiting order
        self.columns_of = defaultdict(list)  # key -> source columns in visiting order
        self.sum = torch.zeros(())
        self.turn = 0

    def begin(self, phase: str, key: int) -> None:
        self.phase, self.key, self.turn = phase, key, 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        q, k, v = (attn.head_to_batch_dim(f(x)) for f, x in (
            (attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)))
        map = attn.get_attention_scores(q, k)  # one picture: (heads, N, M)
        map = self.edit(map, cross)
        out = attn.batch_to_head_dim(torch.bmm(map, v))
        return attn.to_out[1](attn.to_out[0](out))

    def edit(self, map: Tensor, cross: bool) -> Tensor:
        kind = "cross" if cross else "self"
        here = map.shape[1] == (self.cross_count if cross else self.self_count)
        if here and kind == ("cross" if self.o.kind == "cross" else "self") and self.phase != "target":
            filed = self.maps[self.phase, self.key, kind]
            filed.append(map if self.phase == "source" else map.detach())
            if self.o.kind == "replace" and self.phase == "source":
                map = self.maps["invert", self.key, kind][len(filed) - 1]
        if not cross:
            return map
        if here and self.columns and self.key >= self.first_key:
            source, target = self.columns
            if self.phase == "invert":
                taken = map[..., source]
                self.columns_of[self.key].append(taken.mean(-1, keepdim=True) if len(target) == 1 else taken)
            elif self.phase == "target":
                map = map.clone()
                map[..., target] = self.columns_of[self.key][self.turn]
                self.turn += 1
        if here and self.phase != "invert":
            chosen = self.words[0 if self.phase == "source" else 1]
            self.sum = self.sum + (map.detach() * chosen).sum(-1).mean(0)
        return map * self.factors

    def mask(self, like: Tensor) -> Tensor:
        side = int(len(self.sum) ** 0.5)
        pooled = F.max_pool2d(self.sum.reshape(1, 1, side, side), 3, 1, 1)
        return F.interpolate((pooled / pooled.max() > 0.3).float(), size=like.shape[-2:])


def tokens(tokenizer, text: str) -> list[int]:
    return tokenizer(text).input_ids


def phrase(tokenizer, prompt: str, text: str, every: bool = False) -> list[int]:
    ids, wanted = tokens(tokenizer, prompt), tokens(tokenizer, text)[1:-1]
    starts = [i for i in range(len(ids)) if ids[i:i + len(wanted)] == wanted]
    return sorted({i + j for i in (starts if every else starts[:1]) for j in range(len(wanted))})


def word(tokenizer, prompt: str, text: str) -> Tensor:
    """(77,): 1 at the tokens of each word, split at blanks, that equals `text`."""
    chosen, at = torch.zeros(77), 1
    for w in prompt.split(" "):
        count = len(tokens(tokenizer, w)) - 2
        if w == text:
            chosen[at:at + count] = 1
        at += count
    return chosen


def run(unet, vae, text, tokenizer, image: Image.Image, source: str, target: str, o: Options) -> Released:
    """The whole edit; leaves its processor in `unet`."""
    unet, vae = unet.requires_grad_(False), vae.requires_grad_(False)
    levels = grid(o)
    pixels = np.array(image.convert("RGB").resize((o.side, o.side), Image.Resampling.LANCZOS))
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        generator = torch.Generator().manual_seed(o.seed)
        z = (posterior.sample(generator) if o.sample else posterior.mean) * vae.config.scaling_factor
        padded = tokenizer([source, target], padding="max_length", max_length=77, return_tensors="pt").input_ids
        of_source, of_target = text(padded).last_hidden_state.chunk(2)

    factors = torch.ones(77)
    for name, factor in o.reweight.items():
        factors[phrase(tokenizer, target, name, every=True)] = factor
    columns, first_key = None, TRAIN_STEPS
    if o.replace and o.replace_fraction > 0:
        columns = phrase(tokenizer, source, o.replace[0]), phrase(tokenizer, target, o.replace[1])
        first_key = levels[int(len(levels) * o.replace_fraction)]
    names = o.blend or ("", "")
    watcher = Watcher(o, z.shape[-1], columns, first_key,
                      (word(tokenizer, source, names[0]), word(tokenizer, target, names[1])), factors)
    unet.set_attn_processor(watcher)

    clean, inversion = z, []
    with torch.no_grad():
        for t in levels[::-1][:o.steps]:
            watcher.begin("invert", t)
            z = ascend(unet(z, t, encoder_hidden_states=of_source).sample, t, z, o)
            inversion.append(z)
    if o.noise:
        torch.manual_seed(o.seed)
        z = ((1 - o.noise) * z + o.noise * torch.randn_like(z)) / ((1 - o.noise) ** 2 + o.noise**2) ** 0.5

    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[o.distance]
    losses, masks = [], []
    for i, t in enumerate(levels[:o.steps]):
        key = levels[i + 1]
        z = z.detach().requires_grad_()
        with torch.no_grad():
            watcher.begin("target", key)
            out_target = unet(z, t, encoder_hidden_states=of_target).sample
        watcher.begin("source", key)
        out_source = unet(z, t, encoder_hidden_states=of_source).sample
        g = torch.zeros_like(z)
        if o.kind in ("self", "cross"):
            now, then = (torch.cat(watcher.maps[phase, key, o.kind]) for phase in ("source", "invert"))
            loss = distance(now, then)
        elif o.kind == "latent":
            loss = distance(descend(out_source, t, z, o)[1], clean)
        if o.kind in ("self", "cross", "latent"):
            g = torch.autograd.grad(loss * o.gain, z)[0]
            losses.append(loss.item())
        watcher.maps.pop(("source", key, "self"), None)
        with torch.no_grad():
            w = o.w * watcher.mask(z).clamp(o.guidance_floor, 1) if o.guidance_floor < 1 else o.w
            z = descend(out_source + w * (out_target - out_source), t, z, o)[0]
            weight = 0 if i > o.last_guided else 1 - i / len(levels) if o.falling else 1
            if o.gradient_floor < 1:
                g = g * (1 - watcher.mask(z)).clamp(o.gradient_floor, 1)
            z = z - o.scale * weight * g
            if o.blend and i < o.blend_fraction * o.steps:
                m = watcher.mask(z)
                masks.append(m)
                z = m * z + (1 - m) * inversion[-(i + 1)]
    with torch.no_grad():
        x = vae.decode(z / vae.config.scaling_factor).sample
    pixels = (x[0] * 127.5 + 127.5).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
    return Released(z.detach(), Image.fromarray(pixels), inversion[-1], losses, masks, inversion)
