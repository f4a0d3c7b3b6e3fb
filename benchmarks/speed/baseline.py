"""The released algorithm's way of computing, over diffusers' networks: what ours is measured against.

Every attention layer of every pass materialises its maps.  Reference maps lie on the host, under the timestep that the
network was told.  A sampling step is two passes one after another, and a gradient at all of the steps, those included
where it is multiplied by zero.  Weights are not frozen, and the picture is decoded with gradients on.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import record_function
from transformers import CLIPTextModel, CLIPTokenizer

TRAIN_STEPS = 1000
MAX_STEPS = 40  # the last guided step; further gradients are multiplied by zero
GAIN = {"cuda": 500.0, "cpu": 300.0}
BASE = "diffusion_pytorch_model"

Progress = Callable[[str, int, int], None]


def alphas() -> list[float]:
    """The table of diffusers, which computes it in float32."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2, dim=0).tolist()


@dataclass(frozen=True)
class Settings:
    """The released code's knobs that cost time; guidance is weak, so that random networks do not overflow."""

    steps: int = 50
    self_level: int = 1
    cross_level: int = 2
    changed: tuple[str, str] | None = None  # words whose maps are replaced, and where the picture may change
    replace_fraction: float = 0.1
    blend_fraction: float = 0.8
    w: float = 1.5
    scale: float = 1e-3


class Watcher:
    """Attention processor of every layer: sees each map, files it, changes it."""

    def __init__(self, settings: Settings, side: int):
        self.counts = {"self": (side >> settings.self_level) ** 2, "cross": (side >> settings.cross_level) ** 2}
        self.maps = defaultdict(list)     # (phase, timestep) -> self-attention maps in visiting order, on the host
        self.columns = defaultdict(list)  # timestep -> columns of the replaced word, likewise
        self.replaced, self.first_key = None, TRAIN_STEPS
        self.words: dict[str, Tensor] = {}
        self.sum: Tensor | float = 0.0
        self.phase, self.key, self.turn = "", -1, 0

    def begin(self, phase: str, key: int) -> None:
        self.phase, self.key, self.turn = phase, key, 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        cross = encoder_hidden_states is not None
        context = encoder_hidden_states if cross else hidden_states
        q, k, v = (attn.head_to_batch_dim(f(x)) for f, x in (
            (attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context)))
        with record_function("part: maps"):
            map = attn.get_attention_scores(q, k)  # (heads, N, M)
            map = self.seen(map, "cross" if cross else "self")
            out = torch.bmm(map, v)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(out)))

    def seen(self, map: Tensor, kind: str) -> Tensor:
        if map.shape[1] != self.counts[kind]:
            return map
        if kind == "self":
            if self.phase == "source":
                self.maps["source", self.key].append(map.cpu())  # inside the graph
            elif self.phase == "invert":
                self.maps["invert", self.key].append(map.detach().cpu())
            return map
        if self.replaced and self.key >= self.first_key:
            source, target = self.replaced
            if self.phase == "invert":
                self.columns[self.key].append(map[..., source].detach().cpu())
            elif self.phase == "target":
                map = map.clone()
                map[..., target] = self.columns[self.key][self.turn].to(map.device)
                self.turn += 1
        if self.phase in self.words:
            self.sum = self.sum + (map.detach() * self.words[self.phase]).sum(-1).mean(0)
        return map

    def mask(self, like: Tensor) -> Tensor:
        side = int(len(self.sum) ** 0.5)
        pooled = F.max_pool2d(self.sum.reshape(1, 1, side, side), 3, 1, 1)
        return F.interpolate((pooled / pooled.max() > 0.3).to(like), size=like.shape[-2:])


@dataclass
class Inversion:
    settings: Settings
    levels: list[int]
    watcher: Watcher
    source: Tensor
    latents: list[Tensor] = field(default_factory=list)


class Released:
    """The three networks, and an edit of one picture.

    Attributes:
        latents: of the latest edit, before decoding.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer,
                 prediction: str = "epsilon", table: list[float] | None = None):
        self.unet, self.vae, self.text, self.tokenizer = unet.eval(), vae.eval(), text.eval(), tokenizer
        self.prediction, self.table = prediction, table or alphas()
        self.device, self.dtype = unet.device, unet.dtype

    @classmethod
    def load(cls, folder: Path, device: str, dtype: torch.dtype, prediction: str) -> "Released":
        unet = filled(UNet2DConditionModel, folder / "unet", dtype).to(device)
        vae = filled(AutoencoderKL, folder / "vae", dtype).to(device)
        text = CLIPTextModel.from_pretrained(folder / "text_encoder", variant="fp16", dtype=dtype,
                                             local_files_only=True).to(device)
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(unet, vae, text, tokenizer, prediction)

    def embed(self, prompt: str) -> Tensor:
        length = self.text.config.max_position_embeddings
        ids = self.tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").input_ids
        with torch.no_grad():
            return self.text(ids.to(self.device)).last_hidden_state

    def invert(self, image: Image.Image, source: str, target: str, s: Settings, progress: Progress) -> Inversion:
        """The way to noise, filing reference maps on the host."""
        progress("encode", 0, 1)
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            z = self.vae.encode(x.to(self.device, self.dtype)).latent_dist.mean * self.vae.config.scaling_factor
        text = self.embed(source)
        progress("encode", 1, 1)
        levels = [*((np.arange(s.steps) * (TRAIN_STEPS // s.steps))[::-1] + 1).tolist(), 0]
        watcher = Watcher(s, z.shape[-1])
        if s.changed:
            watcher.replaced = tuple(self.phrase(p, w) for p, w in zip((source, target), s.changed, strict=True))
            watcher.first_key = levels[int(len(levels) * s.replace_fraction)]
            for phase, where in zip(("source", "target"), watcher.replaced, strict=True):
                watcher.words[phase] = torch.zeros(text.shape[1], device=self.device, dtype=self.dtype)
                watcher.words[phase][where] = 1
        self.unet.set_attn_processor(watcher)
        inversion = Inversion(s, levels, watcher, text)
        with torch.no_grad():
            for done, t in enumerate(levels[::-1][:s.steps], start=1):
                watcher.begin("invert", t)
                output = self.unet(z, t, encoder_hidden_states=text).sample
                z = self.step(output, z, t, t + TRAIN_STEPS // s.steps)
                inversion.latents.append(z)
                progress("invert", done, s.steps)
        return inversion

    def sample(self, inversion: Inversion, target: str, progress: Progress) -> Image.Image:
        """The guided way back, and the picture."""
        s, levels, watcher, z = inversion.settings, inversion.levels, inversion.watcher, inversion.latents[-1]
        text, gain = self.embed(target), GAIN[self.device.type]
        for i, t in enumerate(levels[:s.steps]):
            key = levels[i + 1]
            z = z.detach().requires_grad_()
            with torch.no_grad():
                watcher.begin("target", key)
                out_target = self.unet(z, t, encoder_hidden_states=text).sample
            watcher.begin("source", key)
            out_source = self.unet(z, t, encoder_hidden_states=inversion.source).sample
            with record_function("part: maps"):
                now, then = (torch.cat(watcher.maps[phase, key]) for phase in ("source", "invert"))
                loss = F.l1_loss(now, then) * gain
            g = torch.autograd.grad(loss, z)[0]
            del watcher.maps["source", key]
            with torch.no_grad():
                z = self.step(out_source + s.w * (out_target - out_source), z, t, t - TRAIN_STEPS // s.steps)
                z = z - s.scale * (0 if i > MAX_STEPS else 1 - i / len(levels)) * g
                if s.changed and i < s.blend_fraction * s.steps:
                    m = watcher.mask(z)
                    z = m * z + (1 - m) * inversion.latents[-(i + 1)]
            progress("edit", i + 1, s.steps)
        self.latents = z
        progress("decode", 0, 1)
        x = self.vae.decode(z / self.vae.config.scaling_factor).sample.detach().float().cpu()
        progress("decode", 1, 1)
        pixels = (x[0] * 127.5 + 127.5).clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
        return Image.fromarray(pixels)

    def step(self, output: Tensor, z: Tensor, start: int, end: int) -> Tensor:
        """One DDIM step either way."""
        a, b = self.table[start], self.table[max(end, 0)]
        if self.prediction == "v_prediction":
            x0, eps = a**0.5 * z - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * z
        else:
            x0, eps = (z - (1 - a) ** 0.5 * output) / a**0.5, output
        return b**0.5 * x0 + (1 - b) ** 0.5 * eps

    def phrase(self, prompt: str, text: str) -> list[int]:
        ids, wanted = (self.tokenizer(t).input_ids for t in (prompt, text))
        wanted = wanted[1:-1]
        start = next(i for i in range(len(ids)) if ids[i:i + len(wanted)] == wanted)
        return list(range(start, start + len(wanted)))


def filled(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A network of diffusers with its weights, not initialised first."""
    with torch.device("meta"):
        module = kind.from_config(kind.load_config(folder))
    state = load_file(folder / f"{BASE}.fp16.safetensors")
    module.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    return module.requires_grad_()
