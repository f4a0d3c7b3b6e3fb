"""The networks that are trained, and the model that they make."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

import sage
from sage.errors import ModelError
from sage.models.flow.model import Flux
from sage.models.flow.transformer import FluxParams, FluxTransformer
from sage.models.folders import Folder
from sage.models.known import find_model
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.model import StableDiffusion
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.sampling.levels import FlowParams, ScheduleParams
from training import autoencoder, basis, run, tokenizer
from training.data import SIDE

UNET = UNetParams(in_channels=autoencoder.PARAMS.latent_channels, out_channels=autoencoder.PARAMS.latent_channels,
                  channels=(64, 128, 224), attention=(True, True, True), layers_per_block=1, heads=(2, 4, 7),
                  context_width=192)
SCHEDULE = ScheduleParams()
# A token a latent, 256 for a picture: of FLUX.1's 2 x 2 there would be too few to draw forms with.  Guidance is an
# input, as FLUX.1 dev has it.
FLOW = FluxParams(channels=autoencoder.PARAMS.latent_channels, patch=1, width=192, heads=6, mlp_width=768, depth=3,
                  depth_single=6, context_width=192, pooled_width=192, axes=(8, 12, 12), guidance=True)
COARSE = replace(FLOW, patch=2)  # to begin with
FLOW_SCHEDULE = FlowParams(patch=FLOW.patch)
CLEAN = "diffusion"  # the training of the text encoder and the UNet with captions that are right
FLOWING = "flow"  # that of the flow's transformer
COARSELY = "flow-coarse"  # the beginning of that, with a quarter of the tokens


def scaled(params: VAEParams, scale: float) -> VAEParams:
    """The autoencoder whose latents have the variance that the UNet was trained at."""
    return replace(params, scaling=scale)


def text_params(vocabulary: int) -> CLIPTextParams:
    return CLIPTextParams(width=192, mlp_width=768, heads=6, layers=3, vocabulary=vocabulary,
                          max_length=tokenizer.MAX_LENGTH)


@torch.no_grad()
def inherit(text: CLIPText, words: CLIPTokenizer, unet: UNet, start: Path) -> None:
    """Start from a model of this kind, or from one of pictures of half the side: its latents are our channels of form.

    What the text encoder knows of a token moves with the token's string; the UNet neither sees detail nor says any at
    first, and everything between is kept.
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
        if value.shape == own[name].shape:
            pass
        elif name == "conv_in.weight":
            value = F.pad(value, (0, 0, 0, 0, 0, own[name].shape[1] - value.shape[1]))
        elif name.startswith("conv_out."):
            value = torch.cat([value, value.new_zeros(len(own[name]) - len(value), *value.shape[1:])])
        own[name].copy_(value)


def take(out: Path, start: Path) -> tuple[VAE, int]:
    """Put a model's words and autoencoder where a training under `out` looks for its own.

    Returns:
        the autoencoder, whose latents are learnt as they are; and the samples that its UNet has seen.
    """
    given, folder = sage.load_model(start, device=run.device(), dtype="float32"), find_model(start)[1]
    history = json.loads((folder / "training.json").read_text())
    if not (out / basis.FILE).exists():
        shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
        autoencoder.take(out, given.vae, history["autoencoder"])
        basis.keep(out, basis.of(given.vae))
    return given.vae, history[CLEAN]["done"]


def _averages(out: Path, course: str, modules: dict[str, torch.nn.Module]) -> dict:
    """Fill modules with the averages of a course's latest checkpoint; what was saved beside them."""
    state = run.State(out / f"{course}.safetensors", modules, torch.optim.SGD([torch.zeros(1)]))
    return state.load_averages()


def _autoencoder(out: Path, scale: float) -> VAE:
    """The trained autoencoder, its latents in our basis and scaled."""
    trained = VAE(scaled(autoencoder.PARAMS, scale)).requires_grad_(False)
    _averages(out, "autoencoder", {"vae": trained})
    return basis.kept(out).taken_into(trained).to(run.device())


@torch.no_grad()
def text_of(out: Path, words: CLIPTokenizer, start: Path | None = None) -> CLIPText:
    """A trained text encoder: the one that the latest checkpoint of `CLEAN` averages to, or that of a model.

    Raises:
        SageError: of a model that has another vocabulary.
    """
    text = CLIPText(text_params(len(words)))
    if start is None:
        _averages(out, CLEAN, {"text": text})
    else:
        given = sage.load_model(start, device=run.device(), dtype="float32")
        place = Folder(find_model(start)[1]).place("tokenizer/vocab.json")
        if json.loads(place.read_text()) != words.get_vocab():
            raise ModelError(f"{start} has another vocabulary than {out / 'tokenizer'}: its text encoder is of no use")
        text.load_state_dict(given.text.state_dict())
    return text.to(run.device()).requires_grad_(False)


def unet_of(start: Path) -> UNet:
    """The UNet of a model of these latents, to teach.

    Raises:
        SageError: of a model whose UNet is another.
    """
    unet = sage.load_model(start, device=run.device(), dtype="float32").unet
    if unet.params != UNET:
        raise ModelError(f"{start} has another UNet than is trained here: it knows other latents, and cannot teach")
    return unet.requires_grad_(False)


def flow_of(start: Path) -> tuple[dict[str, Tensor], int]:
    """The weights of a flow of these latents, and the samples that it has seen.

    Raises:
        SageError: of a model whose transformer is another.
    """
    given = sage.load_model(start, device=run.device(), dtype="float32")
    if getattr(given.network, "params", None) != FLOW:
        raise ModelError(f"{start} has another network than the flow that is trained here, which cannot go on from it")
    history = json.loads((find_model(start)[1] / "training.json").read_text())
    return given.network.state_dict(), history[FLOWING]["done"]


def coarse_of(out: Path) -> dict[str, Tensor]:
    """The weights that the beginning of a flow has come to, averaged."""
    transformer = FluxTransformer(COARSE)
    _averages(out, COARSELY, {"transformer": transformer})
    return transformer.state_dict()


def assemble_flow(out: Path) -> Flux:
    """The flow that the latest checkpoints under `out` average to, float32."""
    words = tokenizer.train(out / "tokenizer")
    text, transformer = CLIPText(text_params(len(words))), FluxTransformer(FLOW)
    numbers = _averages(out, FLOWING, {"text": text, "transformer": transformer})
    device = run.device()
    return Flux(transformer=transformer.to(device), vae=_autoencoder(out, numbers["scale"]), text=text.to(device),
                t5=None, tokenizer=words, clip_tokenizer=words, tokens=text.params.max_length, schedule=FLOW_SCHEDULE,
                name="stilllife-flow", sample_size=SIDE, device=device, dtype=torch.float32)


def assemble(out: Path, course: str = CLEAN) -> StableDiffusion:
    """The model that the latest checkpoints under `out` average to, float32; `course` names the UNet's training."""
    words = tokenizer.train(out / "tokenizer")
    text, unet = CLIPText(text_params(len(words))), UNet(UNET)
    numbers, device = _averages(out, course, {"text": text, "unet": unet}), run.device()
    return StableDiffusion(unet=unet.to(device), vae=_autoencoder(out, numbers["scale"]), text=text.to(device),
                           tokenizer=words, schedule=SCHEDULE, prediction_type="v_prediction", name="stilllife",
                           sample_size=SIDE, device=device, dtype=torch.float32)
