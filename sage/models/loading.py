"""Checkpoint -> backbone: a known name, a diffusers folder or a single .safetensors file.  Always offline.

What a checkpoint is of is read off its folders or names: those of FLUX.1 are opened by `sage.models.flow.loading`, all
others by `sage.models.sd.loading`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sage.errors import ModelError, SageError, SettingsError, out_of_memory
from sage.files import named_in_file
from sage.models.backbone import MEMBERS as BACKBONE_MEMBERS
from sage.models.backbone import Backbone
from sage.models.flow.loading import is_flux_folder, load_flux, open_file, open_folder
from sage.models.flow.model import Flux
from sage.models.flow.singlefile import is_flux
from sage.models.known import find_model
from sage.models.latent import LatentModel
from sage.models.layers import pack
from sage.models.lora import merge
from sage.models.loras import Lora, read_loras
from sage.models.sd import loading as sd
from sage.models.sd.loading import Opened
from sage.models.sd.model import StableDiffusion
from sage.models.weights import open_weights

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTIONS = ("epsilon", "v_prediction")


def load_model(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
               prediction_type: str | None = None, tokenizer: str | Path | None = None,
               lora: str | Path | Iterable[str | Path | Lora] | None = None) -> Backbone:
    """Load a model from this disk; nothing is ever downloaded.

    Args:
        model: a known name (`sage.models.known.KNOWN`), a diffusers folder, a .safetensors file, or
            path/to/file.py:NAME, a function of your own that is called as NAME(device, dtype) and gives a `Backbone`.
        device: CUDA where there is one, else the CPU.
        dtype: of the weights, norms excepted; on CUDA float16, and bfloat16 for flows; float32 elsewhere.
        prediction_type: "epsilon" or "v_prediction", where the checkpoint's own word is missing or wrong.
        tokenizer: folder with the tokenizer's files, or with the text encoders of FLUX.1; needed for a single file
            unless a known model is in weights/.
        lora: LoRA files to merge into the weights, each FILE or FILE:SCALE (`sage.models.lora`).
    Raises:
        ModelError: nothing there, not whole, not supported, damaged, or a pickle.
        SettingsError: a device or dtype that cannot be had.
    """
    loras = read_loras(lora)
    if ".py:" in str(model):
        if loras:
            raise ModelError(f"{loras[0].name} cannot be merged into a model of your own: do it in {model}")
        return _own(str(model), choose_device(device), dtype)
    path = find_model(model)[1]
    flow = is_flux_folder(path) if path.is_dir() else is_flux(open_weights([path]))
    if flow:
        loaded: Flux | StableDiffusion = _load_flux(model, device, dtype, prediction_type, tokenizer)
    else:
        opened, parts = _opened_parts(model, device, dtype, prediction_type, tokenizer)
        loaded = opened.backbone(**parts)
    for each in loras:
        merge(loaded, each)
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
    elif model.small:
        for network in networks:
            pack(network)


def _load_parts(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
                prediction_type: str | None = None, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """Everything that a StableDiffusion is made of, by the names of its arguments."""
    return _opened_parts(model, device, dtype, prediction_type, tokenizer)[1]


def _opened_parts(model: str | Path, device: str | torch.device | None, dtype: str | torch.dtype | None,
                  prediction_type: str | None, tokenizer: str | Path | None) -> tuple[Opened, dict[str, Any]]:
    name, path = find_model(model)
    if prediction_type not in (None, *PREDICTIONS):
        raise SettingsError(f"prediction_type is {prediction_type!r}: must be one of {', '.join(PREDICTIONS)}")
    device = choose_device(device)
    dtype = _dtype(dtype or ("float16" if device.type == "cuda" else "float32"))
    opened = sd.open_folder(path, half=dtype != torch.float32) if os.path.isdir(path) else sd.open_file(path)
    if prediction_type is None:
        sd.warn_of_prediction(opened)
    parts = sd.load_parts(opened, device, dtype, prediction_type, None if tokenizer is None else Path(tokenizer))
    return opened, {**parts, "name": name}


def choose_device(device: str | torch.device | None) -> torch.device:
    """A device that can be used: the one named, or CUDA where there is one, else the CPU.

    Raises:
        SettingsError: the named one cannot be had.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except Exception as error:  # torch raises nearly anything, by how it was built
        raise SettingsError(f"there is no device {str(device)[:40]!r}: give cpu, cuda, cuda:1, mps or another that "
                            "torch knows") from error
    try:
        torch.zeros(1, device=device).item()  # which "meta" cannot give
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise SettingsError(f"device {str(device)!r} cannot be used: {reason}") from error
    return device


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = DTYPES.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise SettingsError(f"dtype {dtype!r} is not known: {', '.join(DTYPES)}")
    return known
