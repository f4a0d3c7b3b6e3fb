"""What is measured: the bundled miniature, and random weights of the sizes of Stable Diffusion 1.4 and 2.1.

Speed and memory do not depend on the weights; a picture edited by random weights means nothing.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.sampling.levels import ScheduleParams
from training.export import scheduler_config, text_config, unet_config, vae_config
from training.tokenizer import train as train_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Model:
    """A model to measure with, and an edit to ask of it.

    Attributes:
        self_level, cross_level: where the released code would look, and we do.
        changed: the words that differ between the prompts.
        unet, vae, text: None where the weights are there already.
    """

    name: str
    side: int
    self_level: int
    cross_level: int
    source: str
    target: str
    changed: tuple[str, str]
    prediction: str = "epsilon"
    unet: UNetParams | None = None
    vae: VAEParams | None = None
    text: CLIPTextParams | None = None

    def folder(self, cache: Path) -> Path:
        """A diffusers folder with its weights in float16, made under `cache` the first time."""
        if self.unet is None:
            return ROOT / "weights" / self.name
        folder = cache / self.name
        if not folder.exists():
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            write_folder(part, networks(self.unet, self.vae, self.text), self.prediction, self.side)
            part.rename(folder)
        return folder

    def picture(self, size: int) -> Image.Image:
        """A picture that is not changed in size on its way in."""
        if self.unet is None:
            return Image.open(ROOT / "examples" / "mug.png").convert("RGB").resize((size, size))
        return picture(size)


RED, BLUE = "a red ball on grass", "a blue ball on grass"
MUG = "a photograph of a big shiny {} mug in the centre, with a tiny green cone next to it, on stone tiles"

MODELS = {m.name: m for m in (
    Model("stilllife", 64, 0, 0, MUG.format("blue"), MUG.format("yellow"), ("blue", "yellow"), "v_prediction"),
    Model("sd14", 512, 1, 2, RED, BLUE, ("red", "blue"), unet=UNetParams(), vae=VAEParams(), text=CLIPTextParams()),
    Model("sd21", 768, 2, 2, RED, BLUE, ("red", "blue"), "v_prediction",
          UNetParams(heads=(5, 10, 20, 20), context_width=1024, linear_projection=True, upcast_attention=True),
          VAEParams(), CLIPTextParams(width=1024, mlp_width=4096, heads=16, layers=23, activation="gelu")),
    # Seconds instead of minutes: for the tests of all this.
    Model("tiny", 64, 1, 2, RED, BLUE, ("red", "blue"), unet=UNetParams(
        channels=(32, 32, 64, 64), layers_per_block=1, heads=(1, 2, 8, 8), context_width=32),
        vae=VAEParams(channels=(32, 32, 64), layers_per_block=1),
        text=CLIPTextParams(width=32, mlp_width=64, heads=2, layers=2, vocabulary=2000)),
)}


def networks(unet: UNetParams | None = None, vae: VAEParams | None = None, text: CLIPTextParams | None = None,
             seed: int = 0) -> dict[str, nn.Module]:
    """The three networks, by default of Stable Diffusion 1.x, float16, randomly initialised."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        return {"unet": UNet(unet or UNetParams()).half(), "vae": VAE(vae or VAEParams()).half(),
                "text_encoder": CLIPText(text or CLIPTextParams()).half()}


def write_folder(folder: Path, modules: dict[str, nn.Module], prediction: str = "epsilon", side: int = 512) -> Path:
    """Write networks as a diffusers folder, with the tokenizer of the still-life captions."""
    unet, vae, text = (modules[part] for part in ("unet", "vae", "text_encoder"))
    configs = {"unet": unet_config(unet.params, side // vae.factor), "vae": vae_config(vae.params, side),
               "text_encoder": text_config(text.params)}
    for part, module in modules.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(configs[part]))
        base = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(module.state_dict(), folder / part / f"{base}.fp16.safetensors", {"format": "pt"})
    (folder / "scheduler").mkdir()
    scheduler = scheduler_config(ScheduleParams()) | {"prediction_type": prediction}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    train_tokenizer(folder / "tokenizer", captions=500)
    return folder


def picture(size: int) -> Image.Image:
    """A deterministic picture of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
