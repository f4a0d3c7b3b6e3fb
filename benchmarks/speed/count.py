"""Operations and bytes that an edit cannot do without, and the seconds that this machine needs for them.

Counted over diffusers' networks on the meta device, where nothing is computed: the forward passes, and of the backward
pass what leads from the compared maps to the latents through frozen weights.  Bytes are the weights, read once in every
pass, and the references, written once and read once.  What networks write for themselves is taken to stay in caches.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.speed.baseline import Settings, Watcher
from benchmarks.speed.cells import GUIDED, WHOLE, Cell
from benchmarks.speed.models import MODELS, Model
from training.export import text_config, unet_config, vae_config

WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Part:
    """Floating-point operations (a multiplication and an addition are two) and bytes to and from memory."""

    flops: float
    bytes: float = 0.0

    def __add__(self, other: "Part") -> "Part":
        return Part(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Part":
        return Part(self.flops * times, self.bytes * times)

    def seconds(self, machine: Mapping[str, float]) -> float:
        """At the machine's best: FLOP/s and bytes/s."""
        return max(self.flops / machine["flops"], self.bytes / machine["bytes"])


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def networks(model: Model) -> dict[str, nn.Module]:
    """diffusers' networks of this shape, without weights."""
    if model.unet is None:
        folder = model.folder(None)
        configs = {part: json.loads((folder / part / "config.json").read_text())
                   for part in ("unet", "vae", "text_encoder")}
    else:
        configs = {"unet": unet_config(model.unet, 64),
                   "vae": vae_config(model.vae, model.side), "text_encoder": text_config(model.text)}
    with torch.device("meta"):
        made = {"unet": UNet2DConditionModel.from_config(configs["unet"]),
                "vae": AutoencoderKL.from_config(configs["vae"]),
                "text": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))}
    return {name: module.eval().requires_grad_(False) for name, module in made.items()}


@cache
def counted(name: str, size: int, batch: int) -> dict[str, float]:
    """FLOPs of each network's passes, parameters, and entries of one step's references."""
    model = MODELS[name]
    made = networks(model)
    unet, vae, text = made["unet"], made["vae"], made["text"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = size // factor
    length = text.config.max_position_embeddings
    with torch.device("meta"):
        z = torch.empty(batch, 4, side, side)
        x = torch.empty(batch, 3, size, size)
        context = torch.empty(batch, length, unet.config.cross_attention_dim)
        ids = torch.zeros(1, length, dtype=torch.long)
    with torch.no_grad():
        forward = flops(lambda: unet(z, 1, encoder_hidden_states=context))
        result = {"forward": forward, "encode": flops(lambda: vae.encode(x)), "decode": flops(lambda: vae.decode(z)),
                  "text": flops(lambda: text(ids))}
    watcher = Watcher(Settings(self_level=model.self_level, cross_level=model.cross_level), side)
    watcher.counts["cross"] = -1
    maps: list[torch.Tensor] = []
    watcher.seen = lambda map, kind: (maps.append(map) if map.shape[1] == watcher.counts.get(kind) else None, map)[1]
    unet.set_attn_processor(watcher)

    def guided() -> None:
        leaf = z.clone().requires_grad_()
        unet(leaf, 1, encoder_hidden_states=context)
        loss = sum(F.l1_loss(map, torch.empty_like(map)) for map in maps)
        loss.backward()  # autograd.grad does not go with the counter

    result["backward"] = flops(guided) - forward
    result["reference"] = sum(map.numel() for map in maps)
    return result | {f"{name}_weights": sum(p.numel() for p in m.parameters()) for name, m in made.items()}


def parts(cell: Cell) -> dict[str, Part]:
    """What each part of an edit of this cell must do, by the names of the table's columns."""
    c, width = counted(cell.model, cell.size, cell.batch), WIDTH[cell.dtype]
    unet, vae, text = (c[f"{name}_weights"] * width for name in ("unet", "vae", "text"))
    reference = c["reference"] * width
    return {
        "encode": Part(c["encode"], vae / 2) + Part(c["text"], text), "text": Part(c["text"], text) * cell.batch,
        "invert": Part(c["forward"], unet + reference * GUIDED / WHOLE),
        "guided": Part(2 * c["forward"] + c["backward"], 2 * unet + reference),
        "unguided": Part(2 * c["forward"], unet), "decode": Part(c["decode"], vae / 2)}


def floor(cell: Cell, machine: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part, and of an edit, below which this machine cannot go."""
    seconds = {name: part.seconds(machine) for name, part in parts(cell).items()}
    edit = (seconds["encode"] + seconds["text"] + seconds["decode"] + WHOLE * seconds["invert"]
            + GUIDED * seconds["guided"] + (WHOLE - GUIDED) * seconds["unguided"])
    return seconds | {"edit": edit}
