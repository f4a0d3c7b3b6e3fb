"""What is measured: the bundled miniature, and random weights of the sizes of Stable Diffusion 1.4, 2.1 and XL.

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
from sage.models.sd.inversion import InversionNet, inversion_params
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
        text_2: of XL.
        student: a network of few steps, with an inversion network beside it.
        lent: its inversion network has the student's own weights, lent when it is loaded: of XL's size two are 20 GB.
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
    text_2: CLIPTextParams | None = None
    student: bool = False
    lent: bool = False

    def folder(self, cache: Path) -> Path:
        """A diffusers folder with its weights in float16, made under `cache` the first time."""
        if self.unet is None:
            return ROOT / "weights" / self.name
        folder = cache / self.name
        if not folder.exists():
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            made = networks(self.unet, self.vae, self.text, text_2=self.text_2,
                            inversion=self.student and not self.lent)
            write_folder(part, made, self.prediction, self.side, self.student)
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
    Model("stilllife-turbo", 128, 0, 0, MUG.format("blue"), MUG.format("yellow"), ("blue", "yellow"), "v_prediction",
          UNetParams(16, 16, (64, 128, 224), (True,) * 3, 1, (2, 4, 7), context_width=192),
          VAEParams(channels=(24, 48, 96, 128), layers_per_block=1, latent_channels=16, groups=8, scaling=0.297),
          CLIPTextParams(width=192, mlp_width=768, heads=6, layers=3, vocabulary=2000), student=True),
    Model("sdxl-turbo", 512, 2, 2, RED, BLUE, ("red", "blue"), "epsilon",
          UNetParams(channels=(320, 640, 1280), attention=(False, True, True), heads=(5, 10, 20), context_width=2048,
                     transformer_depth=(1, 2, 10), linear_projection=True, pooled_width=1280, size_width=256),
          VAEParams(scaling=0.13025), CLIPTextParams(), CLIPTextParams(1280, 5120, 20, 32, activation="gelu",
                                                                      projection=1280), student=True, lent=True),
    # Seconds instead of minutes: for the tests of all this.
    Model("tiny-xl", 64, 1, 1, RED, BLUE, ("red", "blue"), unet=UNetParams(
        channels=(32, 32, 64), attention=(False, True, True), layers_per_block=1, heads=(1, 1, 2), context_width=64,
        transformer_depth=(1, 1, 2), linear_projection=True, pooled_width=24, size_width=32),
        vae=VAEParams(channels=(32, 32, 64), layers_per_block=1),
        text=CLIPTextParams(width=32, mlp_width=64, heads=2, layers=2, vocabulary=2000),
        text_2=CLIPTextParams(width=32, mlp_width=64, heads=2, layers=2, vocabulary=2000, projection=24),
        student=True, lent=True),
    Model("tiny", 64, 1, 2, RED, BLUE, ("red", "blue"), unet=UNetParams(
        channels=(32, 32, 64, 64), layers_per_block=1, heads=(1, 2, 8, 8), context_width=32),
        vae=VAEParams(channels=(32, 32, 64), layers_per_block=1),
        text=CLIPTextParams(width=32, mlp_width=64, heads=2, layers=2, vocabulary=2000)),
)}


def networks(unet: UNetParams | None = None, vae: VAEParams | None = None, text: CLIPTextParams | None = None,
             seed: int = 0, text_2: CLIPTextParams | None = None, inversion: bool = False) -> dict[str, nn.Module]:
    """The three networks, by default of Stable Diffusion 1.x, float16, randomly initialised; and what XL and a student
    have beside them."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        made = {"unet": UNet(unet or UNetParams()).half(), "vae": VAE(vae or VAEParams()).half(),
                "text_encoder": CLIPText(text or CLIPTextParams()).half()}
        if text_2:
            made["text_encoder_2"] = CLIPText(text_2).half()
        if inversion:
            made["inversion"] = InversionNet(inversion_params(unet or UNetParams())).half()
    return made


def write_folder(folder: Path, modules: dict[str, nn.Module], prediction: str = "epsilon", side: int = 512,
                 student: bool = False) -> Path:
    """Write networks as a diffusers folder, with the tokenizer of the still-life captions."""
    unet, vae, text = (modules[part] for part in ("unet", "vae", "text_encoder"))
    configs = {"unet": unet_config(unet.params, side // vae.factor), "vae": vae_config(vae.params, side),
               "text_encoder": text_config(text.params)}
    if "text_encoder_2" in modules:
        configs["text_encoder_2"] = text_config(modules["text_encoder_2"].params)
    if "inversion" in modules:
        configs["inversion"] = unet_config(modules["inversion"].params, side // vae.factor)
    for part, module in modules.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(configs[part]))
        base = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file(module.state_dict(), folder / part / f"{base}.fp16.safetensors", {"format": "pt"})
    (folder / "scheduler").mkdir()
    scheduler = scheduler_config(ScheduleParams()) | {"prediction_type": prediction}
    if student:
        scheduler |= {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    train_tokenizer(folder / "tokenizer", captions=500)
    if "text_encoder_2" in modules:
        shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    return folder


def picture(size: int) -> Image.Image:
    """A deterministic picture of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
