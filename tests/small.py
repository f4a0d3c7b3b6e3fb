"""A whole small Stable Diffusion in memory: our model, and diffusers' and transformers' modules of its weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.models.sd.model import StableDiffusion
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.sampling.levels import ScheduleParams
from tests.models import oracle, tiny

# As in SD 1.x, attention at levels 0 to 2 and none at the last; a picture of 64 x 96 has latents of 16 x 24.
UNET = UNetParams(channels=(32, 32, 64, 64), layers_per_block=1, heads=(1, 2, 8, 8), context_width=32)
UNET_2 = UNetParams(channels=(32, 32, 64, 64), layers_per_block=1, heads=(2, 4, 4, 8), context_width=32,
                    linear_projection=True, upcast_attention=True)
VAE_ = VAEParams(channels=(32, 32, 64), layers_per_block=1, scaling=0.5)
TEXT = CLIPTextParams(width=32, mlp_width=64, heads=2, layers=2, vocabulary=99, max_length=77)


@dataclass(frozen=True)
class Small:
    """Our model, and the oracle's modules that hold its weights."""

    model: StableDiffusion
    unet: nn.Module
    vae: nn.Module
    text: nn.Module
    tokenizer: CLIPTokenizer


def make(folder: Path, unet: UNetParams = UNET, prediction: str = "epsilon", dtype: torch.dtype = torch.float32,
         schedule: ScheduleParams | None = None) -> Small:
    """The tokenizer's files go to `folder`; below float32 the oracle's modules keep the unrounded weights."""
    torch.manual_seed(0)
    theirs = [oracle.unet(unet), oracle.vae(VAE_), oracle.text(TEXT)]
    with torch.no_grad():
        for name, p in (pair for module in theirs for pair in module.named_parameters()):
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape))  # at their initial 0 and 1 many mistakes do not show
            if ".attn" in name and ("to_q" in name or "to_k" in name):
                p.mul_(5 if "attn2" in name else 2)  # random weights give flat maps, that tell nothing
        theirs[0].conv_out.weight.mul_(3)  # about unit variance, as noise has
        theirs[2].get_input_embeddings().weight.mul_(20)  # as are prompts
        normalise(theirs[1])
    if not folder.exists():
        tiny.tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    ours = [UNet(unet), VAE(VAE_), CLIPText(TEXT)]
    for our, their in zip(ours, theirs, strict=True):
        our.load_state_dict(oracle.text_state(their) if isinstance(our, CLIPText) else their.state_dict())
        for module in our.modules():
            if not isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                for p in module.parameters(recurse=False):
                    p.data = p.data.to(dtype)
    model = StableDiffusion(unet=ours[0], vae=ours[1], text=ours[2], tokenizer=tokenizer,
                            schedule=schedule or ScheduleParams(), prediction_type=prediction, name="small",
                            sample_size=64, device=torch.device("cpu"), dtype=dtype)
    return Small(model, *theirs, tokenizer)


def inversion(model: StableDiffusion) -> InversionNet:
    """An inversion network of random weights for a model, as new ones are after `load_model`."""
    torch.manual_seed(1)
    network = InversionNet(inversion_params(model.unet.params)).eval().requires_grad_(False)
    network.conv_out.weight.mul_(3)
    return network


def hooks(model: StableDiffusion | nn.Module) -> list[str]:
    """The kind and place of every hook on every module of a model, or of one network."""
    networks = (model,) if isinstance(model, nn.Module) else (model.unet, model.vae, model.text)
    return [f"{kind} of {type(network).__name__}.{name}" for network in networks
            for name, module in network.named_modules() for kind, found in vars(module).items()
            if kind.endswith("_hooks") for _ in found]


def normalise(vae: nn.Module) -> None:
    """Let the latents of `picture` vary in place as much as latents do: of random weights they are nearly constant."""
    mean, wanted = vae.encode(tensor()).latent_dist.mean, 1 / vae.config.scaling_factor
    shift, stretch = mean.mean(dim=(0, 2, 3)), wanted / mean.std(dim=(0, 2, 3))
    half = len(shift)
    vae.quant_conv.bias[:half] = (vae.quant_conv.bias[:half] - shift) * stretch
    vae.quant_conv.weight[:half] *= stretch[:, None, None, None]


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Smooth random colours under strong noise: in flat places group norms would enlarge every rounding error."""
    g = np.random.default_rng(seed)
    smooth = Image.fromarray(g.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(smooth) // 2 + g.integers(0, 128, (height, width, 3))).astype(np.uint8))


def tensor() -> torch.Tensor:
    """`picture` as (1, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
