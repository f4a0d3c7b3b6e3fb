"""Checkpoints in one file, as CompVis and Stability published them: what they are, read off names and shapes.

    model.diffusion_model.*                      UNet
    first_stage_model.*                          autoencoder
    cond_stage_model.transformer.text_model.*    CLIP, family 1.x
    cond_stage_model.model.*                     OpenCLIP, family 2.x
    conditioner.embedders.0.transformer.*        CLIP, and
    conditioner.embedders.1.model.*              OpenCLIP, family XL

Nothing in a file tells epsilon from v prediction, so that is read from what people write beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sage.errors import ModelError
from sage.models.sd import renames
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.configs import one_or_all
from sage.models.sd.unet import SIZES, UNetParams
from sage.models.sd.vae import VAEParams
from sage.models.weights import Stored, renamed, some

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "clip": "cond_stage_model.transformer.",
            "openclip": "cond_stage_model.model.", "clip of XL": "conditioner.embedders.0.transformer.",
            "openclip of XL": "conditioner.embedders.1.model."}
REFINER = "conditioner.embedders.0.model."

SIZE_WIDTH = 256  # features of each number that tells sizes: the shapes do not tell
XL_SCALING = 0.13025  # of its autoencoder

FOLDER = ("down_blocks.", "encoder.down_blocks.", "text_model.", "transformer_blocks.", "single_transformer_blocks.")


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint taken apart: parameters, and the tensors under our names.

    Attributes:
        family: "1.x", "2.x" or "XL".
        tensors: by "unet", "vae", "text", and of XL "text_2".
    """

    family: str
    unet: UNetParams
    vae: VAEParams
    texts: tuple[CLIPTextParams, ...]
    tensors: dict[str, dict[str, Stored]]


def take_apart(path: Path, tensors: dict[str, Stored]) -> SingleFile:
    """Recognise a single-file checkpoint.

    Raises:
        ModelError: another kind of file, or one that lacks a network.
    """
    parts: dict[str, dict[str, Stored]] = {name: {} for name in PREFIXES}
    unknown = []
    for key, stored in tensors.items():
        if key in renames.DROP_SINGLE_NAMES or key.startswith(renames.DROP_SINGLE):
            continue
        for name, prefix in PREFIXES.items():
            if key.startswith(prefix):
                parts[name][key.removeprefix(prefix)] = stored
                break
        else:
            unknown.append(key)
    _recognise(path, parts, unknown)

    family = "XL" if parts["openclip of XL"] else "2.x" if parts["openclip"] else "1.x"
    texts, words = list[CLIPTextParams](), list[dict[str, Stored]]()
    try:
        unet = _unet(parts["unet"], family)
        vae = _vae(parts["vae"], family)
        if family != "2.x":
            words.append(renamed(parts["clip of XL" if family == "XL" else "clip"], renames.folder_text))
            texts.append(_clip(words[0]))
        if family != "1.x":
            tower = parts["openclip of XL" if family == "XL" else "openclip"]
            text, rename = _openclip(tower, family)
            words.append(renamed(tower, rename))
            texts.append(text)
    except KeyError as error:
        raise ModelError(f"{path} is not all of a Stable Diffusion checkpoint: {error} is missing") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path} has weights of shapes that no Stable Diffusion checkpoint has") from error
    return SingleFile(family, unet, vae, tuple(texts), {
        "unet": renamed(parts["unet"], renames.single_unet(unet.layers_per_block)),
        "vae": renamed(parts["vae"], renames.single_vae(len(vae.channels))),
        **dict(zip(("text", "text_2"), words, strict=False))})


def _recognise(path: Path, parts: dict[str, dict[str, Stored]], unknown: list[str]) -> None:
    if any(key.startswith(REFINER) for key in unknown):
        raise ModelError(f"{path} is a refiner of Stable Diffusion XL; give the base model")
    if any(key.startswith(FOLDER) for key in unknown):
        raise ModelError(f"{path} is one network of a diffusers folder; give the folder that holds model_index.json")
    if not parts["unet"]:
        raise ModelError(f"{path} is no Stable Diffusion checkpoint: no {PREFIXES['unet']}* among its "
                         f"{len(unknown)} unknown names ({some(unknown)})")
    if not parts["vae"]:
        raise ModelError(f"{path} holds no autoencoder ({PREFIXES['vae']}*); a whole checkpoint is needed")
    found = sorted(name for name in PREFIXES if "clip" in name and parts[name])
    if found not in (["clip"], ["openclip"], ["clip of XL", "openclip of XL"]):
        raise ModelError(f"{path} holds {', '.join(found) if found else 'no text encoder'}; exactly one is needed "
                         f"({PREFIXES['clip']}* or {PREFIXES['openclip']}*), of XL both of its own "
                         f"({PREFIXES['clip of XL']}*, {PREFIXES['openclip of XL']}*)")
    if unknown:
        raise ModelError(f"{path} does not fit: {len(unknown)} unexpected ({some(unknown)})")


def count(tensors: Mapping[str, Stored], pattern: str) -> int:
    """How many numbers stand in the one group of `pattern`, counting from 0 to the highest."""
    return 1 + max((int(m[1]) for key in tensors if (m := re.match(pattern, key))), default=-1)


def _unet(t: dict[str, Stored], family: str) -> UNetParams:
    entries = count(t, r"input_blocks\.(\d+)\.")
    levels = 1 + sum(1 for key in t if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", key))
    layers = entries // levels - 1
    first = [1 + level * (layers + 1) for level in range(levels)]
    channels = tuple(t[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first)
    projection = t["middle_block.1.proj_in.weight"]
    return UNetParams(
        in_channels=t["input_blocks.0.0.weight"].shape[1],
        out_channels=t["out.2.weight"].shape[0],
        channels=channels,
        attention=tuple(f"input_blocks.{i}.1.norm.weight" in t for i in first),
        layers_per_block=layers,
        # The number of heads leaves no trace in the shapes: 8 everywhere in 1.x, heads of 64 channels in 2.x.
        heads=(8,) * levels if family == "1.x" else tuple(max(1, c // 64) for c in channels),
        transformer_depth=one_or_all(tuple(
            count(t, rf"input_blocks\.{i}\.1\.transformer_blocks\.(\d+)\.") or 1 for i in first[:-1])
            + (count(t, r"middle_block\.1\.transformer_blocks\.(\d+)\."),)),
        context_width=t["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        linear_projection=len(projection.shape) == 2,
        # Only 2.1 at 768 needs it, and it cannot be told from its base; elsewhere it costs little.
        upcast_attention=family == "2.x",
        pooled_width=t["label_emb.0.0.weight"].shape[1] - SIZES * SIZE_WIDTH if family == "XL" else 0,
        size_width=SIZE_WIDTH if family == "XL" else 0)


def _vae(t: dict[str, Stored], family: str) -> VAEParams:
    levels = count(t, r"encoder\.down\.(\d+)\.")
    return VAEParams(
        channels=tuple(t[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        layers_per_block=count(t, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=t["post_quant_conv.weight"].shape[0],
        scaling=XL_SCALING if family == "XL" else VAEParams.scaling,
        upcast=family == "XL")


def _clip(t: dict[str, Stored]) -> CLIPTextParams:
    vocabulary, width = t["text_model.embeddings.token_embedding.weight"].shape
    return CLIPTextParams(
        width=width, heads=max(1, width // 64), vocabulary=vocabulary, activation="quick_gelu",
        mlp_width=t["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        layers=count(t, r"text_model\.encoder\.layers\.(\d+)\."),
        max_length=t["text_model.embeddings.position_embedding.weight"].shape[0])


def _openclip(t: dict[str, Stored], family: str) -> tuple[CLIPTextParams, renames.Rename]:
    stored, xl = count(t, r"transformer\.resblocks\.(\d+)\."), family == "XL"
    # The UNet of 2.x was trained on the output of the last layer but one; some files are saved without the last, of 24.
    # That of XL is told the end mark of the last one too.
    layers = stored if xl or stored == 23 else stored - 1
    vocabulary, width = t["token_embedding.weight"].shape
    return CLIPTextParams(
        width=width, heads=max(1, width // 64), layers=layers, vocabulary=vocabulary, activation="gelu",
        mlp_width=t["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        max_length=t["positional_embedding"].shape[0],
        projection=t["text_projection"].shape[1] if xl else 0), renames.single_openclip(layers, xl)


def guess_prediction(path: Path, family: str, metadata: dict[str, str]) -> tuple[str, str]:
    """The prediction type of a single file, and why: its metadata, its name, or its family's default.

    1.x was trained to predict the noise; 2.x at 512 as well, at 768 it predicts v, and people keep the 768 in the
    file's name.
    """
    named = metadata.get("modelspec.prediction_type", "")
    if named in ("epsilon", "v", "v_prediction"):
        return ("epsilon" if named == "epsilon" else "v_prediction"), "its metadata say so"
    if family == "1.x":
        return "epsilon", "1.x models do"
    if family == "XL" and not re.search(r"v[-_]?pred", path.name, re.IGNORECASE):
        return "epsilon", "XL models do"
    if re.search(r"768|v[-_]?pred", path.name, re.IGNORECASE):
        return "v_prediction", "its name says so"
    return "epsilon", "nothing in its name or metadata says otherwise"
