"""Checkpoint -> StableDiffusion: a known name, a diffusers folder or a single .safetensors file.  Always offline."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from sage.errors import ModelError, SettingsError
from sage.files import named_in_file
from sage.models.backbone import MEMBERS as BACKBONE_MEMBERS
from sage.models.backbone import Backbone
from sage.models.known import KNOWN, PICKLES, find_model, installed, pickled
from sage.models.layers import pack
from sage.models.sd import configs, renames
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.model import StableDiffusion
from sage.models.sd.singlefile import guess_prediction, take_apart
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.models.weights import fill, open_weights, renamed
from sage.prompts.vocabulary import read_words
from sage.sampling.levels import ScheduleParams

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTIONS = ("epsilon", "v_prediction")

# Models up to this many bytes may hold their convolutions three times.
SMALL = 2**28


def load_model(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
               prediction_type: str | None = None, tokenizer: str | Path | None = None) -> Backbone:
    """Load a model from this disk; nothing is ever downloaded.

    Args:
        model: a known name (`sage.models.known.KNOWN`), a diffusers folder, a .safetensors file, or
            path/to/file.py:NAME, a function of your own that is called as NAME(device, dtype) and gives a `Backbone`.
        device: CUDA where there is one, else the CPU.
        dtype: of the weights, norms excepted; float16 on CUDA and float32 elsewhere.
        prediction_type: "epsilon" or "v_prediction", where the checkpoint's own word is missing or wrong.
        tokenizer: folder with the tokenizer's files; needed for a single file unless a known model is in weights/.
    Raises:
        ModelError: nothing there, not whole, not supported, damaged, or a pickle.
        SettingsError: a device or dtype that cannot be had.
    """
    if ".py:" in str(model):
        return _own(str(model), choose_device(device), dtype)
    loaded = StableDiffusion(**_load_parts(model, device, dtype, prediction_type, tokenizer))
    make_fast(loaded)
    return loaded


def _own(where: str, device: torch.device, dtype: str | torch.dtype | None) -> Backbone:
    """What a user's own function makes; ModelError for anything but a `Backbone`, naming what it lacks."""
    loaded = named_in_file(where, ModelError)(device, None if dtype is None else _dtype(dtype))
    if missing := [name for name in BACKBONE_MEMBERS if not hasattr(loaded, name)]:
        raise ModelError(f"{where} gives a {type(loaded).__name__} without {', '.join(missing)}: docs/porting.md says "
                         "what a backbone has")
    return loaded


def make_fast(model: StableDiffusion) -> None:
    """Lay the weights out as the device likes them; what the model computes stays the same, to rounding.

    Decided by the device and the model alone, never by what is free: the same machine shall give the same bytes.
    """
    networks = model.unet, model.vae, model.text
    if model.device.type == "cuda":
        for network in networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif model.device.type == "cpu":
        if model.dtype == torch.float32 and sum(p.nbytes for n in networks for p in n.parameters()) <= SMALL:
            pack(model.unet)
            pack(model.vae)


def _load_parts(model: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None,
                prediction_type: str | None = None, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """Everything that a StableDiffusion is made of, by the names of its arguments."""
    name, path = find_model(model)
    if prediction_type not in (None, *PREDICTIONS):
        raise SettingsError(f"prediction_type is {prediction_type!r}: must be one of {', '.join(PREDICTIONS)}")
    device = choose_device(device)
    dtype = _dtype(dtype or ("float16" if device.type == "cuda" else "float32"))
    load = _load_folder if path.is_dir() else _load_file
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
    words = load_tokenizer(tokenizer or folder / "tokenizer", text)

    def network(make: Callable[[], nn.Module], part: str, base: str, rename: renames.Rename) -> nn.Module:
        tensors = open_weights(weight_files(folder / part, base, half=dtype != torch.float32))
        return fill(make, renamed(tensors, rename), str(folder / part), device, dtype)

    base = "diffusion_pytorch_model"
    return {"unet": network(lambda: UNet(unet), "unet", base, renames.folder_unet),
            "vae": network(lambda: VAE(vae), "vae", base, renames.folder_vae),
            "text": network(lambda: CLIPText(text), "text_encoder", "model", renames.folder_text),
            "tokenizer": words, "schedule": schedule, "prediction_type": prediction_type or prediction,
            "sample_size": side * 2 ** (len(vae.channels) - 1), "recommends": _recommends(folder),
            "taught": read_words(folder)}


def _recommends(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings by the name of a method, or generate/NAME for pictures from nothing, as a folder recommends them.

    They are in settings.json.  In edit_config.json, of which older folders have one, are those of SAGE.
    """
    if (folder / "settings.json").exists():
        settings = configs.Config(folder / "settings.json").values
        if wrong := [name for name, values in settings.items() if not isinstance(values, dict)]:
            raise ModelError(f"{folder / 'settings.json'}: {wrong[0]} must be an object of settings")
        return settings
    old = folder / "edit_config.json"
    return {"sage": configs.Config(old).values} if old.exists() else {}


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


def weight_files(folder: Path, base: str, half: bool) -> list[Path]:
    """The files of one network in a diffusers folder: one or several, the half-precision ones if `half`.

    Raises:
        ModelError: none there, pickles only, or an index that names files elsewhere.
    """
    whole = [folder / f"{base}.safetensors", folder / f"{base}.safetensors.index.json"]
    fp16 = [folder / f"{base}.fp16.safetensors", folder / f"{base}.safetensors.index.fp16.json",
            folder / f"{base}.fp16.safetensors.index.json"]
    path = next((p for p in (fp16 + whole if half else whole + fp16) if p.is_file()), None)
    if path is None:
        if found := sorted(p for p in folder.glob("*") if p.suffix.lower() in PICKLES):
            raise pickled(found[0])
        raise ModelError(f"{whole[0]} is missing")
    return [path] if path.suffix == ".safetensors" else _shards(path)


def _shards(index: Path) -> list[Path]:
    names = configs.Config(index).get("weight_map", {}, dict).values()
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or set("/\\") & set(name) or (
                not name.isprintable()):
            raise ModelError(f"{index} names {name!r}, which is no .safetensors file beside it")
    if not names:
        raise ModelError(f"{index} names no files")
    return [index.parent / name for name in sorted(set(names))]


def load_tokenizer(folder: Path, text: CLIPTextParams, pad: str | None = None) -> CLIPTokenizer:
    """The tokenizer in `folder`, or in its tokenizer/.

    Args:
        pad: the padding token, where the folder's own word is not to be taken.
    Raises:
        ModelError: no or damaged files, or more tokens than the text encoder has.
    """
    folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name} is missing")
    try:
        options = {} if pad is None else {"pad_token": pad}
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # the library raises bare Exception on a damaged vocabulary
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{folder} holds no readable tokenizer ({reason})") from error
    if len(tokenizer) > text.vocabulary:
        raise ModelError(f"{folder} has {len(tokenizer)} tokens, the text encoder {text.vocabulary}")
    tokenizer.model_max_length = min(tokenizer.model_max_length, text.max_length)
    return tokenizer


def _borrowed_tokenizer(path: Path) -> Path:
    """The tokenizer of a known model on this disk: all of Stable Diffusion shares one vocabulary."""
    for known in KNOWN.values():
        folder = installed(known.name) if known.repo else None
        if folder and (folder / "tokenizer").is_dir():
            return folder / "tokenizer"
    raise ModelError(f"{path.name} brings no tokenizer: name a folder that holds vocab.json and merges.txt "
                     "(tokenizer=, --tokenizer), or `sage fetch sd-1.4` once, whose tokenizer then serves")
