"""The networks that are trained, and the model that they make."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPTokenizer

import sage
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.model import StableDiffusion
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.sampling.levels import ScheduleParams
from training import autoencoder, run, tokenizer
from training.data import SIDE

UNET = UNetParams(in_channels=autoencoder.PARAMS.latent_channels, out_channels=autoencoder.PARAMS.latent_channels,
                  channels=(64, 128, 224), attention=(True, True, True), layers_per_block=1, heads=(2, 4, 7),
                  context_width=192)
# Noisier at its end than Stable Diffusion's: what lies in 32 x 32 places shows through noise that hides it in 16 x 16.
SCHEDULE = ScheduleParams(beta_end=0.0225)
CLEAN = "diffusion"  # the training of the text encoder and the UNet with captions that are right


def scaled(params: VAEParams, scale: float) -> VAEParams:
    """The autoencoder whose latents have the variance that the UNet was trained at."""
    return replace(params, scaling=scale)


def text_params(vocabulary: int) -> CLIPTextParams:
    return CLIPTextParams(width=192, mlp_width=768, heads=6, layers=3, vocabulary=vocabulary,
                          max_length=tokenizer.MAX_LENGTH)


@torch.no_grad()
def inherit(text: CLIPText, words: CLIPTokenizer, unet: UNet, start: Path) -> None:
    """Start from a model whose latents are a quarter of ours in number: four of our channels hold one of its cells.

    What the text encoder knows of a token moves with the token's string; the UNet's first layer sees the mean of the
    four, its last one says the same for each, and everything between is kept.
    """
    given = sage.load_model(start, device=run.device(), dtype="float32")
    known = json.loads((start / "tokenizer" / "vocab.json").read_text())
    own, old = text.state_dict(), given.text.state_dict()
    table = "text_model.embeddings.token_embedding.weight"
    for name, value in old.items():
        if name == table:
            for token, row in words.get_vocab().items():
                if token in known:
                    own[name][row] = value[known[token]]
        elif name.endswith("position_embedding.weight"):
            own[name].copy_(value[:len(own[name])])
        else:
            own[name].copy_(value)
    own, old = unet.state_dict(), given.unet.state_dict()
    for name, value in old.items():
        if name == "conv_in.weight":
            value = value.repeat_interleave(4, dim=1) * (1.5 / 4)
        elif name.startswith("conv_out."):
            value = value.repeat_interleave(4, dim=0)
        own[name].copy_(value)


def assemble(out: Path, course: str = CLEAN) -> StableDiffusion:
    """The model that the latest checkpoints under `out` average to, float32; `course` names the UNet's training."""
    words = tokenizer.train(out / "tokenizer")
    vae = VAE(autoencoder.PARAMS)
    text, unet = CLIPText(text_params(len(words))), UNet(UNET)
    modules = {"autoencoder": {"vae": vae}, course: {"text": text, "unet": unet}}
    numbers = {name: run.State(out / f"{name}.safetensors", m, torch.optim.SGD([torch.zeros(1)])).load_averages()
               for name, m in modules.items()}
    vae = VAE(scaled(autoencoder.PARAMS, numbers[course]["scale"])).requires_grad_(False)
    vae.load_state_dict(modules["autoencoder"]["vae"].state_dict())
    model = StableDiffusion(unet=unet, vae=vae, text=text, tokenizer=words, schedule=SCHEDULE,
                            prediction_type="v_prediction", name="stilllife", sample_size=SIDE, device=run.device(),
                            dtype=torch.float32)
    for module in (model.unet, model.vae, model.text):
        module.to(model.device)
    return model
