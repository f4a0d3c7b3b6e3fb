"""Checkpoint of FLUX.1 -> Flux: a diffusers folder, or the authors' transformer in one file with its companions.

    flux1-dev.safetensors      the transformer
    ae.safetensors             its autoencoder, beside it or as vae/ in the folder of the companions
    text_encoder, text_encoder_2, tokenizer, tokenizer_2     beside it, in a folder that is named, or in a fetched model
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sage.errors import ModelError
from sage.files import check_plain
from sage.models.flow import configs, singlefile
from sage.models.flow.model import Flux
from sage.models.flow.t5 import T5Params, T5Text
from sage.models.flow.transformer import FluxParams, FluxTransformer
from sage.models.folders import Folder
from sage.models.folders import Source as FolderSource
from sage.models.known import installed
from sage.models.sd import renames
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.configs import MAX_BYTES, MAX_LAYERS, MAX_LEVELS, MAX_WIDTH, Config, text_params
from sage.models.sd.vae import VAE, VAEParams
from sage.models.weights import Part, check_room, open_weights, renamed
from sage.sampling.levels import FlowParams

SIDE = 1024  # of the pictures that FLUX.1 was trained at
MOST = {True: 512, False: 256}  # tokens of a prompt, of dev and of schnell: whether guidance is an input
AXES_OF = 128  # numbers of a head of FLUX.1
# How dev and schnell are used, where a folder does not say it: whether guidance is an input.
RECOMMENDS: dict[bool, dict[str, dict[str, Any]]] = {
    True: {name: {"steps": 28, "guidance_scale": 3.5} for name in ("plain", "sdedit", "generate/plain")},
    False: {"plain": {"guidance_scale": 1.0}, **dict.fromkeys(("sdedit", "generate/plain"),
                                                              {"steps": 4, "guidance_scale": 1.0})}}


class Source(FolderSource, Protocol):
    """What the parts of a FLUX.1 are taken from."""

    def t5_tokenizer(self, part: str, t5: T5Params, most: int) -> tuple[Any, int]:
        """The tokenizer of T5, and how many tokens a prompt may have, at most `most`."""
        ...


@dataclass(frozen=True)
class FluxFolder(Folder):
    """A diffusers folder of a FLUX.1."""

    def t5_tokenizer(self, part: str, t5: T5Params, most: int) -> tuple[Any, int]:
        """Its tokenizer of T5."""
        return load_t5_tokenizer(self.place(part), t5, most)


@dataclass(frozen=True)
class Opened:
    """A checkpoint of which the configurations and headers have been read, and no weights."""

    path: Path
    transformer: FluxParams
    vae: VAEParams
    text: CLIPTextParams
    t5: T5Params | None
    schedule: FlowParams
    side: int
    parts: Mapping[str, Part]  # "transformer", "vae", "text", "t5"
    companions: Source
    recommends: Mapping[str, Mapping[str, Any]]


def load_flux(opened: Opened, name: str, device: torch.device, dtype: torch.dtype, shared: bool = False) -> Flux:
    """Read the weights of an opened checkpoint.

    Args:
        shared: they are in memory already.
    Raises:
        ModelError: weights that do not fit together, or into the memory that is free.
    """
    check_kin(opened)
    if not shared:
        check_room(opened.parts.values(), name, device, dtype)
    t, words = opened.transformer, opened.companions
    clip_tokenizer = words.tokenizer("tokenizer", opened.text)
    if opened.t5 is None:
        tokenizer, tokens = clip_tokenizer, opened.text.max_length
    else:
        tokenizer, tokens = words.t5_tokenizer("tokenizer_2", opened.t5, MOST[t.guidance])
    made: dict[str, Any] = {"t5": None}
    made |= {part: of.load(device, dtype) for part, of in opened.parts.items()}
    return Flux(**made, tokenizer=tokenizer, clip_tokenizer=clip_tokenizer, tokens=tokens,
                schedule=opened.schedule, name=name, sample_size=opened.side, device=device, dtype=dtype,
                recommends=opened.recommends, taught=words.words())


def is_flux_folder(folder: Path) -> bool:
    """Whether a diffusers folder is of a transformer and not of a UNet."""
    return (folder / "transformer").is_dir() and not (folder / "unet").is_dir()


def open_folder(folder: Path, half: bool = False) -> Opened:
    """`open_source` of a diffusers folder.

    Args:
        half: the files in half precision where there are both.
    """
    return open_source(FluxFolder(folder, half))


def open_source(source: Source) -> Opened:
    """Read the configurations and headers of a diffusers folder, or take those of a pipeline.

    Raises:
        ModelError: not whole, damaged, or not supported.
    """
    vae, side = configs.vae_params(source.config("vae/config.json"))
    transformer = configs.transformer_params(source.config("transformer/config.json"), vae.latent_channels)
    schedule = configs.flow_params(source.config("scheduler/scheduler_config.json"), transformer.patch)
    text, t5, encoders = _encoders(source)
    parts = {"transformer": _of(lambda: FluxTransformer(transformer), source, "transformer"),
             "vae": _of(lambda: VAE(vae), source, "vae", renames.folder_vae), **encoders}
    return Opened(source.path, transformer, vae, text, t5, schedule, side, parts, source,
                  source.recommends() or RECOMMENDS[transformer.guidance])


def open_file(path: Path, companions: Path | None, half: bool = False) -> Opened:
    """The same of the authors' transformer in one file.

    Args:
        companions: the folder with the text encoders; default: that of the file, or a fetched FLUX.1.
    Raises:
        ModelError: not whole, damaged, not supported, or without companions.
    """
    source = FluxFolder(_companions(path, companions), half)
    side, beside = SIDE, path.with_name("ae.safetensors")
    if beside.is_file():
        vae, tensors = singlefile.autoencoder(beside, open_weights([beside]))
        of_vae = Part(lambda: VAE(vae), tensors, str(beside))
    else:
        vae, side = configs.vae_params(source.config("vae/config.json"))
        of_vae = _of(lambda: VAE(vae), source, "vae", renames.folder_vae)
    transformer, tensors = singlefile.take_apart(path, open_weights([path]), vae.latent_channels)
    head = transformer.width // max(transformer.heads, 1)
    if head != AXES_OF:
        warnings.warn(f"{path.name}: its heads are {head} wide, and taken to be turned by axes of "
                      f"{', '.join(map(str, transformer.axes))}: a diffusers folder would say it", stacklevel=3)
    text, t5, encoders = _encoders(source)
    parts = {"transformer": Part(lambda: FluxTransformer(transformer), tensors, str(path)), "vae": of_vae, **encoders}
    return Opened(path, transformer, vae, text, t5, FlowParams(dynamic=transformer.guidance, patch=transformer.patch),
                  side, parts, source, RECOMMENDS[transformer.guidance])


def _of(make: Callable[[], nn.Module], source: Source, part: str, rename: renames.Rename = renames.folder_unet) -> Part:
    return Part(make, renamed(source.tensors(part), rename), str(source.path / part))


def _encoders(source: Source) -> tuple[CLIPTextParams, T5Params | None, dict[str, Part]]:
    """The text encoders of a folder; a smaller model may have one."""
    text = text_params(source.config("text_encoder/config.json"))
    parts = {"text": _of(lambda: CLIPText(text), source, "text_encoder", renames.folder_text)}
    if not source.holds("text_encoder_2"):
        return text, None, parts
    t5 = configs.t5_params(source.config("text_encoder_2/config.json"))
    return text, t5, parts | {"t5": _of(lambda: T5Text(t5), source, "text_encoder_2", folder_t5)}


def folder_t5(key: str) -> str | None:
    """Names of a T5 encoder, which are ours; some files hold its embeddings twice."""
    return None if key == "encoder.embed_tokens.weight" else key


def _companions(path: Path, named: Path | None) -> Path:
    """The folder with the text encoders."""
    known = [installed(name) for name in ("flux-schnell", "flux-dev")]
    places = [named] if named else [path.parent, *known]
    for place in places:
        if place is not None and (place / "text_encoder" / "config.json").is_file():
            return place
    raise ModelError(f"{path.name} holds a transformer alone: name the folder of a FLUX.1 model that has "
                     "text_encoder, text_encoder_2, tokenizer and tokenizer_2 (tokenizer=, --tokenizer), put the file "
                     "beside them, or `sage fetch flux-schnell` once, whose encoders then serve")


def load_t5_tokenizer(folder: Path, t5: T5Params, most: int) -> tuple[Any, int]:
    """The tokenizer of T5 in `folder`, and how many tokens a prompt may have.

    Args:
        most: tokens that the model was trained with.
    Raises:
        ModelError: no or damaged files, or more tokens than the text encoder has.
    """
    path = folder / "tokenizer.json"
    check_plain(path, ModelError, MAX_BYTES)
    from transformers import PreTrainedTokenizerFast  # which imports the hub's library, and that reads the environment
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="</s>", pad_token="<pad>",
                                            unk_token="<unk>")
    except Exception as error:  # the library raises bare Exception on a damaged vocabulary
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{folder} holds no readable tokenizer ({reason})") from error
    if (most_tokens := max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))) > t5.vocabulary:
        raise ModelError(f"{folder} has {most_tokens} tokens, the text encoder {t5.vocabulary}")
    said = folder / "tokenizer_config.json"
    own = Config(said).get("model_max_length", most, int) if said.is_file() else most
    if own < 8:
        raise ModelError(f"{said}: model_max_length is {own}: no prompt would fit")
    return tokenizer, min(own, most)


def check_kin(o: Opened) -> None:
    """Refuse networks that do not belong together, and numbers that no network can be built from."""
    t, context = o.transformer, o.text.width if o.t5 is None else o.t5.width
    for name, wanted, given in (("tokens", t.context_width, context), ("pooled text", t.pooled_width, o.text.width)):
        if wanted != given:
            raise ModelError(f"{o.path}: the transformer expects {name} {wanted} wide, the text encoder gives {given}")
    widths = [t.width, t.heads, t.mlp_width, t.context_width, t.pooled_width, *t.axes, *o.vae.channels, o.vae.groups,
              o.vae.latent_channels, o.text.width, o.text.mlp_width, o.text.heads, o.text.vocabulary,
              o.text.max_length]
    depths = [t.depth, t.depth_single, o.vae.layers_per_block, o.text.layers]
    if o.t5 is not None:
        widths += [o.t5.width, o.t5.head_width, o.t5.heads, o.t5.mlp_width, o.t5.vocabulary]
        depths += [o.t5.layers]
    # Building a network takes time and memory before any weight is found missing.
    if max(widths) > MAX_WIDTH or max(depths) > MAX_LAYERS or len(o.vae.channels) > MAX_LEVELS:
        raise ModelError(f"{o.path}: a network wider than {MAX_WIDTH}, or of more than {MAX_LAYERS} layers or "
                         f"{MAX_LEVELS} levels, is not built")
    if min(*widths, *depths) < 1 or t.width % t.heads or o.text.width % o.text.heads or any(
            c % o.vae.groups for c in o.vae.channels):
        raise ModelError(f"{o.path}: channels, heads and groups that do not divide each other")
    if sum(t.axes) != t.width // t.heads or any(n % 2 for n in t.axes):
        raise ModelError(f"{o.path}: axes of {', '.join(map(str, t.axes))} numbers do not make up a head of "
                         f"{t.width // t.heads}")
