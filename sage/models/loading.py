"""Checkpoint -> backbone: a known name, a diffusers folder or a single .safetensors file.  Always offline.

What a checkpoint is of is read off its folders or names: those of FLUX.1 are opened by `sage.models.flow.loading`, all
others here, as Stable Diffusion.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sage.errors import ModelError, SageError, SettingsError, out_of_memory
from sage.files import named_in_file
from sage.models.backbone import MEMBERS as BACKBONE_MEMBERS
from sage.models.backbone import Backbone
from sage.models.flow.loading import is_flux_folder, load_flux, open_file, open_folder
from sage.models.flow.model import Flux
from sage.models.flow.singlefile import is_flux
from sage.models.folders import load_tokenizer, recommended, weight_files
from sage.models.known import KNOWN, find_model, installed
from sage.models.latent import LatentModel
from sage.models.layers import pack
from sage.models.sd import configs, renames
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.models.sd.model import StableDiffusion
from sage.models.sd.singlefile import guess_prediction, take_apart
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.models.weights import fill, open_weights, renamed
from sage.prompts.vocabulary import read_words
from sage.sampling.levels import ScheduleParams

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTIONS = ("epsilon", "v_prediction")

MAX_SIDE = 4096  # pixels, as of the setting `size`

INVERSION = "inversion"  # the folder of the network that finds noise for a few-step generator

# Models up to this many bytes may hold their convolutions three times.
SMALL = 2**28


def load_model(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
               prediction_type: str | None = None, tokenizer: str | Path | None = None) -> Backbone:
    """Load a model from this disk; nothing is ever downloaded.

    Args:
        model: a known name (`sage.models.known.KNOWN`), a diffusers folder, a .safetensors file, or
            path/to/file.py:NAME, a function of your own that is called as NAME(device, dtype) and gives a `Backbone`.
        device: CUDA where there is one, else the CPU.
        dtype: of the weights, norms excepted; on CUDA float16, and bfloat16 for flows; float32 elsewhere.
        prediction_type: "epsilon" or "v_prediction", where the checkpoint's own word is missing or wrong.
        tokenizer: folder with the tokenizer's files, or with the text encoders of FLUX.1; needed for a single file
            unless a known model is in weights/.
    Raises:
        ModelError: nothing there, not whole, not supported, damaged, or a pickle.
        SettingsError: a device or dtype that cannot be had.
    """
    if ".py:" in str(model):
        return _own(str(model), choose_device(device), dtype)
    path = find_model(model)[1]
    flow = is_flux_folder(path) if path.is_dir() else is_flux(open_weights([path]))
    loaded = (_load_flux(model, device, dtype, prediction_type, tokenizer) if flow else
              StableDiffusion(**_load_parts(model, device, dtype, prediction_type, tokenizer)))
    make_fast(loaded)
    return loaded


def _load_flux(model: str | Path, device: str | torch.device | None, dtype: str | torch.dtype | None,
               prediction_type: str | None, tokenizer: str | Path | None) -> Flux:
    name, path = find_model(model)
    if prediction_type is not None:
        raise SettingsError(f"prediction_type is {prediction_type!r}: {name} predicts a flow; leave it out")
    device = choose_device(device)
    dtype = _dtype(dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    half = dtype != torch.float32
    opened = (open_folder(path, half) if path.is_dir() else
              open_file(path, None if tokenizer is None else Path(tokenizer), half))
    return load_flux(opened, name, device, dtype)


def _own(where: str, device: torch.device, dtype: str | torch.dtype | None) -> Backbone:
    """What a user's own function makes; ModelError for anything but a `Backbone`, naming what it lacks."""
    make = named_in_file(where, ModelError)
    if not callable(make):
        raise ModelError(f"{where} is {type(make).__name__}: it must be a function that is called as (device, dtype)")
    kind = None if dtype is None else _dtype(dtype)
    try:
        loaded = make(device, kind)
    except Exception as fault:
        if isinstance(fault, SageError) or out_of_memory(fault):
            raise
        raise ModelError(f"{where} made no model ({type(fault).__name__}: {fault})") from fault
    if missing := [name for name in BACKBONE_MEMBERS if not hasattr(loaded, name)]:
        raise ModelError(f"{where} gives a {type(loaded).__name__} without {', '.join(missing)}: docs/porting.md says "
                         "what a backbone has")
    return loaded


def make_fast(model: LatentModel) -> None:
    """Lay the weights out as the device likes them; what the model computes stays the same, to rounding.

    Decided by the device and the model alone, never by what is free: the same machine shall give the same bytes.
    """
    networks = model.networks()
    if model.device.type == "cuda":
        for network in networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif model.device.type == "cpu":
        if model.dtype == torch.float32 and sum(p.nbytes for n in networks for p in n.parameters()) <= SMALL:
            for network in networks:
                pack(network)


def _load_parts(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
                prediction_type: str | None = None, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """Everything that a StableDiffusion is made of, by the names of its arguments."""
    name, path = find_model(model)
    if prediction_type not in (None, *PREDICTIONS):
        raise SettingsError(f"prediction_type is {prediction_type!r}: must be one of {', '.join(PREDICTIONS)}")
    device = choose_device(device)
    dtype = _dtype(dtype or ("float16" if device.type == "cuda" else "float32"))
    load = _load_folder if os.path.isdir(path) else _load_file
    parts = load(path, device, dtype, prediction_type, None if tokenizer is None else Path(tokenizer))
    return {**parts, "name": name, "device": device, "dtype": dtype}


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device that can be used: the one named, or CUDA where there is one, else the CPU.

    Raises:
        SettingsError: the named one cannot be had.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # which "meta" cannot give
    except Exception as error:  # torch raises nearly anything, by how it was built
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise SettingsError(f"device {str(device)!r} cannot be used: {reason}") from error
    return device


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise SettingsError(f"dtype {dtype!r} is not known: {', '.join(DTYPES)}")
    return known


def _load_folder(folder: Path, device: torch.device, dtype: torch.dtype, prediction_type: str | None,
                 tokenizer: Path | None) -> dict[str, Any]:
    schedule, prediction = configs.schedule_params(folder / "scheduler" / "scheduler_config.json")
    unet, side = configs.unet_params(folder / "unet" / "config.json")
    vae = configs.vae_params(folder / "vae" / "config.json")
    text = configs.text_params(folder / "text_encoder" / "config.json")
    _check_kin(unet, vae, text, folder)
    pixels = side * 2 ** (len(vae.channels) - 1)
    if pixels > MAX_SIDE:
        raise ModelError(f"{folder}: sample_size is {side}, which are pictures of {pixels} pixels a side: at most "
                         f"{MAX_SIDE} are made")
    words = load_tokenizer(tokenizer or folder / "tokenizer", text)

    def network(make: Callable[[], nn.Module], part: str, base: str, rename: renames.Rename) -> nn.Module:
        tensors = open_weights(weight_files(folder / part, base, half=dtype != torch.float32))
        return fill(make, renamed(tensors, rename), str(folder / part), device, dtype)

    base = "diffusion_pytorch_model"
    inversion = _inversion_of(folder, unet, vae, text)
    more = {} if inversion is None else {"inversion": fill(
        lambda: InversionNet(inversion), open_weights(weight_files(folder / INVERSION, base, half=True)),
        str(folder / INVERSION), device, torch.float32)}
    return {**more, "unet": network(lambda: UNet(unet), "unet", base, renames.folder_unet),
            "vae": network(lambda: VAE(vae), "vae", base, renames.folder_vae),
            "text": network(lambda: CLIPText(text), "text_encoder", "model", renames.folder_text),
            "tokenizer": words, "schedule": schedule, "prediction_type": prediction_type or prediction,
            "sample_size": pixels, "recommends": recommended(folder), "taught": read_words(folder)}


def _inversion_of(folder: Path, unet: UNetParams, vae: VAEParams, text: CLIPTextParams) -> UNetParams | None:
    """The inversion network that lies beside a UNet, None where there is none.

    Raises:
        ModelError: one that is of another generator.
    """
    if not os.path.lexists(folder / INVERSION):
        return None
    found, _ = configs.unet_params(folder / INVERSION / "config.json")
    wanted = inversion_params(unet)
    for name in ("in_channels", "out_channels"):
        if getattr(found, name) != getattr(wanted, name):
            raise ModelError(f"{folder / INVERSION}: its {name} is {getattr(found, name)}, and for the UNet beside it "
                             f"must be {getattr(wanted, name)}")
    _check_kin(replace(found, in_channels=unet.in_channels, out_channels=unet.out_channels), vae, text,
               folder / INVERSION)
    return found


def _load_file(path: Path, device: torch.device, dtype: torch.dtype, prediction_type: str | None,
               tokenizer: Path | None) -> dict[str, Any]:
    tensors = open_weights([path])
    file = take_apart(path, tensors)
    _check_kin(file.unet, file.vae, file.text, path)
    prediction, why = guess_prediction(path, file.family, next(iter(tensors.values())).file.metadata() or {})
    if prediction_type is None and file.family == "2.x":
        warnings.warn(f"{path.name}: taken to predict {'v' if prediction != 'epsilon' else 'epsilon'}, because {why}; "
                      "prediction_type overrides this", stacklevel=3)
    prediction = prediction_type or prediction
    # The text towers saw different padding: the end token in 1.x, token 0 in 2.x.
    words = load_tokenizer(tokenizer or _borrowed_tokenizer(path), file.text,
                           pad="!" if file.family == "2.x" else "<|endoftext|>")

    def network(make: Callable[[], nn.Module], part: str) -> nn.Module:
        return fill(make, file.tensors[part], f"{path} ({part})", device, dtype)

    latents = 96 if prediction == "v_prediction" else 64
    return {"unet": network(lambda: UNet(file.unet), "unet"), "vae": network(lambda: VAE(file.vae), "vae"),
            "text": network(lambda: CLIPText(file.text), "text"), "tokenizer": words,
            "schedule": ScheduleParams(), "prediction_type": prediction,
            "sample_size": latents * 2 ** (len(file.vae.channels) - 1)}


def _check_kin(unet: UNetParams, vae: VAEParams, text: CLIPTextParams, where: Path) -> None:
    """Refuse networks that do not belong together, and numbers that no network can be built from."""
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise ModelError(f"{where}: the UNet maps {unet.in_channels} channels to {unet.out_channels}, the autoencoder "
                         f"has {vae.latent_channels}; inpainting and depth models are not supported")
    if unet.context_width != text.width:
        raise ModelError(f"{where}: the UNet expects text {unet.context_width} wide, the text encoder gives "
                         f"{text.width}")
    widths = (*unet.channels, *unet.heads, unet.in_channels, unet.groups, *vae.channels, vae.groups, text.width,
              text.mlp_width, text.heads, text.vocabulary, text.max_length)
    depths = (unet.layers_per_block, unet.transformer_depth, vae.layers_per_block, text.layers)
    # Building a network takes time and memory before any weight is found missing.
    if (max(widths) > configs.MAX_WIDTH or max(depths) > configs.MAX_LAYERS
            or max(len(unet.channels), len(vae.channels)) > configs.MAX_LEVELS):
        raise ModelError(f"{where}: a network wider than {configs.MAX_WIDTH}, or of more than {configs.MAX_LAYERS} "
                         f"layers or {configs.MAX_LEVELS} levels, is not built")
    whole = [*zip(unet.channels, unet.heads, strict=True), *((c, unet.groups) for c in unet.channels),
             *((c, vae.groups) for c in vae.channels), (text.width, text.heads)]
    if min(*widths, *depths) < 1 or any(a % b for a, b in whole):
        raise ModelError(f"{where}: channels, heads and groups that do not divide each other")


def _borrowed_tokenizer(path: Path) -> Path:
    """The tokenizer of a known model on this disk: all of Stable Diffusion shares one vocabulary."""
    for known in KNOWN.values():
        folder = installed(known.name) if known.repo else None
        if folder and os.path.isdir(folder / "tokenizer"):
            return folder / "tokenizer"
    raise ModelError(f"{path.name} brings no tokenizer: name a folder that holds vocab.json and merges.txt "
                     "(tokenizer=, --tokenizer), or `sage fetch sd-1.4` once, whose tokenizer then serves")
