"""Checkpoint of Stable Diffusion 1.x, 2.x or XL -> its backbone: a diffusers folder, or the authors' single file."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sage.auto import AUTO, OF_STUDENTS
from sage.errors import ModelError
from sage.models.folders import Folder, Source, load_tokenizer
from sage.models.known import KNOWN, installed, named_for_few
from sage.models.sd import configs, renames
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.inversion import InversionNet, inversion_params
from sage.models.sd.model import StableDiffusion
from sage.models.sd.singlefile import guess_prediction, take_apart
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.models.sd.xl import StableDiffusionXL
from sage.models.weights import Part, Stored, check_room, open_weights, renamed
from sage.sampling.levels import ScheduleParams

INVERSION = "inversion"  # the folder of the network that finds noise for a few-step generator
MAX_SIDE = 4096  # pixels, as of the setting `size`
# What networks for few steps were trained for.
STUDENT: dict[str, Any] = {"steps": 4, "spacing": "trailing", "guidance_scale": 1.0}
XL_SIDE = {False: 1024, True: 512}  # of single files: whether they are of a student

Tokenizers = Callable[[Path | None], tuple[Any, ...]]


@dataclass(frozen=True)
class Opened:
    """A checkpoint of which the configurations and headers have been read, and no weights.

    Attributes:
        where: for errors.
        family: "1.x", "2.x" or "XL"; "small" for what is like none of them.
        texts: one encoder, two of XL.
        why: what the prediction type goes by, where it had to be guessed.
        side: of the pictures that the model was trained at, in pixels.
        student: made for few steps.
        parts: "unet", "vae", "text", "text_2", "inversion".
        tokenizers: one for each encoder; from the folder that a user names, or from where the checkpoint has them.
        more: further arguments of the backbone.
    """

    where: Path
    family: str
    unet: UNetParams
    vae: VAEParams
    texts: tuple[CLIPTextParams, ...]
    schedule: ScheduleParams
    prediction: str
    why: str
    side: int
    student: bool
    parts: Mapping[str, Part]
    tokenizers: Tokenizers
    recommends: Mapping[str, Mapping[str, Any]]
    more: Mapping[str, Any]

    @property
    def backbone(self) -> type[StableDiffusion]:
        """What it becomes."""
        return StableDiffusionXL if len(self.texts) == 2 else StableDiffusion


def load_parts(o: Opened, device: torch.device, dtype: torch.dtype, prediction_type: str | None = None,
               tokenizer: Path | None = None, shared: bool = False) -> dict[str, Any]:
    """Read the weights: the arguments of `Opened.backbone`, by name.

    Args:
        shared: the weights are in memory already.
    Raises:
        ModelError: weights that do not fit, or no tokenizer.
    """
    words = dict(zip(("tokenizer", "tokenizer_2"), o.tokenizers(tokenizer), strict=False))
    if len(o.texts) == 2 and not shared:
        check_room(o.parts.values(), o.where.name, device, dtype)
    own = {"vae": o.vae.dtype(dtype), "inversion": torch.float32}
    networks = {name: part.load(device, own.get(name, dtype)) for name, part in o.parts.items()}
    return {**networks, **words, "schedule": o.schedule, "prediction_type": prediction_type or o.prediction,
            "sample_size": o.side, "recommends": o.recommends, "device": device, "dtype": dtype,
            "made_for": STUDENT["steps"] if o.student else 0, **o.more}


def open_source(source: Source) -> Opened:
    """Read the configurations and headers of a diffusers folder, or take those of a pipeline.

    Raises:
        ModelError: not whole, damaged, or not supported.
    """
    scheduler = source.config("scheduler/scheduler_config.json")
    schedule, prediction = configs.schedule_params(scheduler)
    unet, side = configs.unet_params(source.config("unet/config.json"))
    of_vae = source.config("vae/config.json")
    vae = configs.vae_params(of_vae)
    texts = [configs.text_params(source.config("text_encoder/config.json"))]
    more: dict[str, Any] = {"taught": source.words()}
    if source.holds("text_encoder_2"):
        texts.append(configs.text_params(source.config("text_encoder_2/config.json"), projects=True))
        # A checkpoint of XL overflows unless it says that it does not.
        vae = dataclasses.replace(vae, upcast=of_vae.get("force_upcast", True, bool))
        if source.holds("model_index.json"):
            index = source.config("model_index.json")
            more["empty_is_zero"] = index.get("force_zeros_for_empty_prompt", True, bool)
    check_kin(unet, vae, texts, source.path)
    pixels = side * 2 ** (len(vae.channels) - 1)
    if pixels > MAX_SIDE:
        raise ModelError(f"{source.path}: sample_size is {side}, which are pictures of {pixels} pixels a side: at most "
                         f"{MAX_SIDE} are made")
    student = configs.is_student(scheduler)
    of_student = students(configs.is_ancestral(scheduler)) if student else {}
    names = ("tokenizer", "tokenizer_2")[:len(texts)]

    def tokenizers(named: Path | None) -> tuple[Any, ...]:
        if named is not None:
            return _named_tokenizers(named, texts)
        return tuple(source.tokenizer(name, text) for name, text in zip(names, texts, strict=True))

    def part(make: Callable[[], Any], name: str, rename: renames.Rename) -> Part:
        return Part(make, renamed(source.tensors(name), rename), str(source.path / name))

    parts = {"unet": part(lambda: UNet(unet), "unet", renames.folder_unet),
             "vae": part(lambda: VAE(vae), "vae", renames.folder_vae)}
    for name, place, text in zip(("text", "text_2"), ("text_encoder", "text_encoder_2"), texts, strict=False):
        parts[name] = part(partial(CLIPText, text), place, renames.folder_text)
    if source.holds(INVERSION):
        inversion, _ = configs.unet_params(source.config(f"{INVERSION}/config.json"))
        check_inversion(inversion, unet, vae, texts, source.path / INVERSION)
        factor = 2 ** (len(vae.channels) - 1)
        parts["inversion"] = Part(lambda: InversionNet(inversion, factor), source.tensors(INVERSION),
                                  str(source.path / INVERSION))
    return Opened(source.path, family_of(unet, texts), unet, vae, tuple(texts), schedule, prediction, "", pixels,
                  student, parts, tokenizers, {**of_student, **source.recommends()}, more)


def open_folder(folder: Path, half: bool = False) -> Opened:
    """`open_source` of a diffusers folder.

    Args:
        half: the files in half precision where there are both.
    """
    return open_source(Folder(folder, half))


def open_file(path: Path, tensors: dict[str, Stored] | None = None) -> Opened:
    """Read the names and shapes of a single file.

    Raises:
        ModelError: not whole, damaged, or not supported.
    """
    tensors = open_weights([path]) if tensors is None else tensors
    file = take_apart(path, tensors)
    check_kin(file.unet, file.vae, file.texts, path)
    prediction, why = guess_prediction(path, file.family, next(iter(tensors.values())).file.metadata() or {})
    student = named_for_few(path)
    xl = file.family == "XL"
    side = XL_SIDE[student] if xl else 768 if prediction == "v_prediction" else 512
    # The text towers saw different padding: the end token those of CLIP, token 0 those of OpenCLIP.
    pads = {"1.x": ("<|endoftext|>",), "2.x": ("!",), "XL": ("<|endoftext|>", "!")}[file.family]

    def tokenizers(named: Path | None) -> tuple[Any, ...]:
        folder = named or _borrowed_tokenizer(path)
        return tuple(load_tokenizer(folder, text, pad) for text, pad in zip(file.texts, pads, strict=True))

    made: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet(file.unet), "vae": lambda: VAE(file.vae),
        **{name: partial(CLIPText, text) for name, text in zip(("text", "text_2"), file.texts, strict=False)}}
    parts = {name: Part(make, file.tensors[name], f"{path} ({name})") for name, make in made.items()}
    return Opened(path, file.family, file.unet, file.vae, file.texts, ScheduleParams(set_alpha_to_one=student),
                  prediction, why, side * 2 ** (len(file.vae.channels) - 1) // 8, student, parts,
                  tokenizers, students(xl) if student else {}, {})


def students(ancestral: bool) -> dict[str, dict[str, Any]]:
    """How a network for few steps is used where nothing else is recommended.

    Args:
        ancestral: with new noise at every step.
    """
    eta = {"eta": float(ancestral)}
    return {"plain": STUDENT, "sdedit": STUDENT, "turbo-ddpm": {"steps": STUDENT["steps"]},
            "generate/plain": STUDENT | eta, AUTO: dict(OF_STUDENTS)}


def family_of(unet: UNetParams, texts: Sequence[CLIPTextParams]) -> str:
    """What a network is known by: the family whose widths it has, else "small"."""
    return {(768, 1): "1.x", (1024, 1): "2.x", (2048, 2): "XL"}.get((unet.context_width, len(texts)), "small")


def warn_of_prediction(o: Opened) -> None:
    """Say what a single file was taken to predict, where it may as well be otherwise."""
    if o.why and o.family == "2.x":
        warnings.warn(f"{o.where.name}: taken to predict {'v' if o.prediction != 'epsilon' else 'epsilon'}, because "
                      f"{o.why}; prediction_type overrides this", stacklevel=4)


def check_kin(unet: UNetParams, vae: VAEParams, texts: Iterable[CLIPTextParams], where: Path) -> None:
    """Refuse networks that do not belong together, and numbers that no network can be built from."""
    texts = list(texts)
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise ModelError(f"{where}: the UNet maps {unet.in_channels} channels to {unet.out_channels}, the autoencoder "
                         f"has {vae.latent_channels}; inpainting and depth models are not supported")
    if unet.context_width != (width := sum(text.width for text in texts)):
        raise ModelError(f"{where}: the UNet expects text {unet.context_width} wide, the text encoder"
                         f"{'s give' if texts[1:] else ' gives'} {width}")
    if bool(unet.added_width) != bool(texts[1:]):
        raise ModelError(f"{where}: a UNet that is told sizes and pooled text, as that of XL, needs two text encoders, "
                         "and no other takes two; refiners are not supported")
    if unet.pooled_width != texts[-1].projection:
        raise ModelError(f"{where}: the UNet expects pooled text {unet.pooled_width} wide, the text encoder gives "
                         f"{texts[-1].projection}")
    if len({text.max_length for text in texts}) > 1:
        raise ModelError(f"{where}: the text encoders take prompts of {texts[0].max_length} and "
                         f"{texts[-1].max_length} tokens, which cannot be joined")
    widths = [*unet.channels, *unet.heads, unet.in_channels, unet.groups, unet.added_width or 1, *vae.channels,
              vae.groups]
    depths = [unet.layers_per_block, *unet.depths, vae.layers_per_block]
    for text in texts:
        widths += [text.width, text.mlp_width, text.heads, text.vocabulary, text.max_length]
        depths.append(text.layers)
    # Building a network takes time and memory before any weight is found missing.
    if (max(widths) > configs.MAX_WIDTH or max(depths) > configs.MAX_LAYERS
            or max(len(unet.channels), len(vae.channels)) > configs.MAX_LEVELS):
        raise ModelError(f"{where}: a network wider than {configs.MAX_WIDTH}, or of more than {configs.MAX_LAYERS} "
                         f"layers or {configs.MAX_LEVELS} levels, is not built")
    whole = [*zip(unet.channels, unet.heads, strict=True), *((c, unet.groups) for c in unet.channels),
             *((c, vae.groups) for c in vae.channels), *((text.width, text.heads) for text in texts)]
    if min(*widths, *depths) < 1 or any(a % b for a, b in whole):
        raise ModelError(f"{where}: channels, heads and groups that do not divide each other")


def check_inversion(found: UNetParams, unet: UNetParams, vae: VAEParams, texts: Sequence[CLIPTextParams],
                    where: Path) -> None:
    """Refuse an inversion network that is of another generator."""
    wanted = inversion_params(unet)
    for name in ("in_channels", "out_channels"):
        if getattr(found, name) != getattr(wanted, name):
            raise ModelError(f"{where}: its {name} is {getattr(found, name)}, and for the UNet beside it must be "
                             f"{getattr(wanted, name)}")
    own = dataclasses.replace(found, in_channels=unet.in_channels, out_channels=unet.out_channels)
    check_kin(own, vae, texts, where)


def _named_tokenizers(folder: Path, texts: Sequence[CLIPTextParams]) -> tuple[Any, ...]:
    """The tokenizer of a folder that the user names, which pads as it says; that of a second encoder with token 0."""
    return tuple(load_tokenizer(folder, text, pad) for text, pad in zip(texts, (None, "!"), strict=False))


def _borrowed_tokenizer(path: Path) -> Path:
    """The tokenizer of a known model on this disk: all of Stable Diffusion shares one vocabulary."""
    for known in KNOWN.values():
        folder = installed(known.name) if known.repo else None
        if folder and os.path.isdir(folder / "tokenizer"):
            return folder / "tokenizer"
    raise ModelError(f"{path.name} brings no tokenizer: name a folder that holds vocab.json and merges.txt "
                     "(tokenizer=, --tokenizer), or `sage fetch sd-1.4` once, whose tokenizer then serves")
