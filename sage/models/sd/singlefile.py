"""Checkpoints in one file, as CompVis and Stability published them: what they are, read off names and shapes.

    model.diffusion_model.*                      UNet
    first_stage_model.*                          autoencoder
    cond_stage_model.transformer.text_model.*    CLIP, family 1.x
    cond_stage_model.model.*                     OpenCLIP, family 2.x

Nothing in a file tells epsilon from v prediction, so that is read from what people write beside it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sage.errors import ModelError
from sage.models.sd import renames
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from sage.models.weights import Stored, renamed, some

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "clip": "cond_stage_model.transformer.",
            "openclip": "cond_stage_model.model."}

FOLDER = ("down_blocks.", "encoder.down_blocks.", "text_model.", "transformer_blocks.", "single_transformer_blocks.")


@dataclass(frozen=True)
class SingleFile:
    """A checkpoint taken apart: parameters, and the tensors under our names.

    Attributes:
        family: "1.x" or "2.x".
    """

    family: str
    unet: UNetParams
    vae: VAEParams
    text: CLIPTextParams
    tensors: dict[str, dict[str, Stored]]  # "unet", "vae", "text"


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

    family = "2.x" if parts["openclip"] else "1.x"
    try:
        unet = _unet(parts["unet"], family)
        vae = _vae(parts["vae"])
        if family == "2.x":
            text, rename = _openclip(parts["openclip"])
            words = renamed(parts["openclip"], rename)
        else:
            words = renamed(parts["clip"], renames.folder_text)
            text = _clip(words)
    except KeyError as error:
        raise ModelError(f"{path} is not all of a Stable Diffusion checkpoint: {error} is missing") from error
    except (IndexError, ValueError) as error:
        raise ModelError(f"{path} has weights of shapes that no Stable Diffusion checkpoint has") from error
    return SingleFile(family, unet, vae, text, {
        "unet": renamed(parts["unet"], renames.single_unet(unet.layers_per_block)),
        "vae": renamed(parts["vae"], renames.single_vae(len(vae.channels))),
        "text": words})


def _recognise(path: Path, parts: dict[str, dict[str, Stored]], unknown: list[str]) -> None:
    if any(key.startswith("conditioner.embedders.") for key in unknown):
        raise ModelError(f"{path} is a Stable Diffusion XL checkpoint; 1.x and 2.x are supported")
    if any(key.startswith(FOLDER) for key in unknown):
        raise ModelError(f"{path} is one network of a diffusers folder; give the folder that holds model_index.json")
    if not parts["unet"]:
        raise ModelError(f"{path} is no Stable Diffusion checkpoint: no {PREFIXES['unet']}* among its "
                         f"{len(unknown)} unknown names ({some(unknown)})")
    if not parts["vae"]:
        raise ModelError(f"{path} holds no autoencoder ({PREFIXES['vae']}*); a whole checkpoint is needed")
    if bool(parts["clip"]) == bool(parts["openclip"]):
        raise ModelError(f"{path} holds {'two text encoders' if parts['clip'] else 'no text encoder'}; exactly one "
                         f"is needed ({PREFIXES['clip']}* or {PREFIXES['openclip']}*)")
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
        transformer_depth=count(t, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        context_width=t["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        linear_projection=len(projection.shape) == 2,
        # Only 2.1 at 768 needs it, and it cannot be told from its base; elsewhere it costs little.
        upcast_attention=family == "2.x")


def _vae(t: dict[str, Stored]) -> VAEParams:
    levels = count(t, r"encoder\.down\.(\d+)\.")
    return VAEParams(
        channels=tuple(t[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        layers_per_block=count(t, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=t["post_quant_conv.weight"].shape[0])


def _clip(t: dict[str, Stored]) -> CLIPTextParams:
    vocabulary, width = t["text_model.embeddings.token_embedding.weight"].shape
    return CLIPTextParams(
        width=width, heads=max(1, width // 64), vocabulary=vocabulary, activation="quick_gelu",
        mlp_width=t["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        layers=count(t, r"text_model\.encoder\.layers\.(\d+)\."),
        max_length=t["text_model.embeddings.position_embedding.weight"].shape[0])


def _openclip(t: dict[str, Stored]) -> tuple[CLIPTextParams, renames.Rename]:
    stored = count(t, r"transformer\.resblocks\.(\d+)\.")
    # The UNet was trained on the output of the last layer but one; some files are saved without the last, of 24.
    layers = 23 if stored == 23 else stored - 1
    vocabulary, width = t["token_embedding.weight"].shape
    return CLIPTextParams(
        width=width, heads=max(1, width // 64), layers=layers, vocabulary=vocabulary, activation="gelu",
        mlp_width=t["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        max_length=t["positional_embedding"].shape[0]), renames.single_openclip(layers)


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
    if re.search(r"768|v[-_]?pred", path.name, re.IGNORECASE):
        return "v_prediction", "its name says so"
    return "epsilon", "nothing in its name or metadata says otherwise"
