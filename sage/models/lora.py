"""LoRA: a file of low-rank changes, merged into a model's weights (Hu et al. 2106.09685, eq. 3).

    W' = W + scale (alpha / r) B A,    A: r x in ("down"), B: out x r ("up"); alpha = r where none is stored

Read are the layouts of kohya (lora_unet_..., lora_te_..., lora_te1_..., lora_te2_..., with the names of a diffusers
folder or of a single file) and of diffusers and peft (unet.....lora_A.weight, and what came before it).  Every key has
to be of a layer that the model has, of fitting shape: anything else is refused before a weight is changed.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sage.errors import ModelError
from sage.files import parse_json
from sage.models.latent import LatentModel
from sage.models.loras import Lora
from sage.models.sd import renames
from sage.models.weights import FLOATS, Stored, open_weights, some

DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight")
UP = ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight")
LAYERS = (nn.Linear, nn.Conv2d)
# By the beginning of their keys: the networks as models call them.  Longer beginnings come first.
PARTS = {"lora_unet_": "unet", "lora_te1_": "text", "lora_te2_": "text_2", "lora_te_": "text",
         "unet.": "unet", "transformer.": "transformer", "text_encoder_2.": "text_2", "text_encoder.": "text"}
OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "lora_mid": "LoCon with a middle factor", "dora_scale": "DoRA",
          "lora_magnitude_vector": "DoRA", "oft_": "OFT"}
METADATA = "lora_adapter_metadata"  # what diffusers writes of alpha and rank

SGM = (
    (r"^(input|output)_blocks_(\d+)_(\d)(_|$)", r"\1_blocks.\2.\3."),
    (r"^middle_block_(\d)_", r"middle_block.\1."),
    (r"\.(in|emb|out)_layers_(\d)$", r".\1_layers.\2"),
    (r"^(time_embed|out)_(\d)$", r"\1.\2"),
    (r"^label_emb_(\d)_(\d)$", r"label_emb.\1.\2"),
)


@dataclass
class Change:
    """What a file holds of one layer."""

    down: Stored | None = None
    up: Stored | None = None
    alpha: Stored | None = None


def merge(model: LatentModel, lora: Lora) -> None:
    """Merge a file into a model; the model's weights become new tensors, and the old ones stay as they are.

    Raises:
        ModelError: a file of another kind, or of another model; nothing is changed, unless numbers overflow.
    """
    tensors = open_weights([lora.path])
    changes, alphas = _changes(lora, tensors), _alphas(tensors)
    layers = {part: _layers(network) for part in dict.fromkeys(PARTS.values())
              if (network := getattr(model, part, None)) is not None}
    places = {key: _layer(key, layers, model) for key in changes}
    if strange := [key for key, layer in places.items() if layer is None]:
        raise ModelError(f"{lora.name} is not for {model.name}: {len(strange)} of its {len(changes)} layers are not in "
                         f"it ({some(strange)})")
    for key, change in changes.items():
        _check(lora, key, change, places[key].weight.shape)
    for key, change in changes.items():
        merged = _merged(lora, key, change, places[key].weight, alphas.get(key))
        places[key].weight = nn.Parameter(merged, requires_grad=False)
    model.loras = (*model.loras, lora)


def _layer(key: str, layers: Mapping[str, Mapping[str, nn.Module]], model: Any) -> Any:
    """The layer that a key is of, None where the model has none such."""
    part, name = _place(key)
    found = layers.get(part, {}).get(name)
    if found is None and part == "unet" and part in layers:
        found = layers[part].get(_from_sgm(name, model.unet.params.layers_per_block))
    return found


def _changes(lora: Lora, tensors: Mapping[str, Stored]) -> dict[str, Change]:
    """What there is of each layer, by the beginning of its keys."""
    changes: dict[str, Change] = {}
    for key, stored in tensors.items():
        if other := next((kind for word, kind in OTHERS.items() if f".{word}" in key), None):
            raise ModelError(f"{lora.name} is no plain LoRA, but {other} ({key}), which is not supported")
        layer, role = _parted(key)
        if role is None or not key.startswith(tuple(PARTS)):
            raise ModelError(f"{lora.name} is no LoRA of a known layout: {key[:120]!r} is neither of kohya's nor of "
                             "diffusers'")
        if stored.dtype not in FLOATS:
            raise ModelError(f"{lora.name}: {key} is {stored.dtype}, and no floating-point numbers")
        change = changes.setdefault(layer, Change())
        if getattr(change, role) is not None:
            raise ModelError(f"{lora.name} holds {role} of {layer} twice")
        setattr(change, role, stored)
    if not changes:
        raise ModelError(f"{lora.name} holds nothing")
    return changes


def _parted(key: str) -> tuple[str, str | None]:
    """A key as its layer and what it is of it: "down", "up" or "alpha"."""
    for role, endings in (("down", DOWN), ("up", UP), ("alpha", ("alpha",))):
        for ending in endings:
            if key.endswith(f".{ending}"):
                return key.removesuffix(f".{ending}"), role
    # processor.to_q_lora.down.weight, the first layout of diffusers
    if m := re.fullmatch(r"(.+)\.processor\.(to_(?:q|k|v|out))_lora\.(down|up)\.weight", key):
        return f"{m[1]}.{m[2]}{'.0' if m[2] == 'to_out' else ''}", m[3]
    return key, None


def _place(key: str) -> tuple[str, str]:
    """The network and the flat name of a layer."""
    begin = next(begin for begin in PARTS if key.startswith(begin))
    part, name = PARTS[begin], key.removeprefix(begin).replace(".", "_")
    if part.startswith("text") and not name.startswith(("text_model_", "text_projection")):
        name = f"text_model_{name}"
    return part, name


def _from_sgm(name: str, layers: int) -> str:
    """A flat name of the single file's UNet as one of ours."""
    dotted = renames.apply(SGM, name).rstrip(".")
    return str(renames.single_unet(layers)(f"{dotted}.weight")).removesuffix(".weight").replace(".", "_")


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers that a file may change, by their names without dots."""
    return {name.replace(".", "_"): module for name, module in network.named_modules() if isinstance(module, LAYERS)}


def _alphas(tensors: Mapping[str, Stored]) -> dict[str, float]:
    """The alphas that diffusers keeps in the file's metadata, by layer.

    Raises:
        ModelError: metadata that are damaged, or of a kind that is not supported.
    """
    first = next(iter(tensors.values()), None)
    said = ((first.file.metadata() or {}) if first is not None else {}).get(METADATA)
    if said is None:
        return {}
    path = first.path.name  # type: ignore[union-attr]
    try:
        values = parse_json(said)
        entries = {part: {key.removeprefix(f"{part}."): value for key, value in values.items()
                          if key.startswith(f"{part}.")} for part in ("unet", "transformer", "text_encoder",
                                                                     "text_encoder_2")}
        return dict(_told(tensors, entries))
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(f"{path}: what it says of its alphas is damaged") from error


def _told(tensors: Mapping[str, Stored], entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for key, stored in tensors.items():
        layer, role = _parted(key)
        said = entries.get(layer.partition(".")[0], {})
        if role != "down" or not said:
            continue
        if said.get("use_rslora") or said.get("use_dora"):
            raise ModelError(f"{stored.path.name} is no plain LoRA (use_rslora or use_dora), which is not supported")
        patterns = said.get("alpha_pattern") or {}
        own = next((value for name, value in patterns.items() if layer.endswith(name)), said.get("lora_alpha"))
        if own is not None:
            yield layer, float(own)


def _check(lora: Lora, key: str, change: Change, shape: tuple[int, ...]) -> None:
    """Refuse a change that lacks a factor, or is of another shape than a weight."""
    if change.down is None or change.up is None:
        raise ModelError(f"{lora.name}: {key} lacks its {'down' if change.down is None else 'up'}")
    down, up = change.down.shape, change.up.shape
    if not (len(down) in (2, 4) and len(up) in (2, 4) and down[0] > 0 and up[1] == down[0] and set(up[2:]) <= {1}):
        raise ModelError(f"{lora.name}: {key} is {list(up)} times {list(down)}, which make no weight")
    if _squeezed((up[0], *down[1:])) != _squeezed(shape):
        raise ModelError(f"{lora.name} is for another model: {key} is for a layer of {[up[0], *down[1:]]}, and here it "
                         f"is {list(shape)}")
    if change.alpha is not None and math.prod(change.alpha.shape) != 1:
        raise ModelError(f"{lora.name}: alpha of {key} is not one number")


def _merged(lora: Lora, key: str, change: Change, weight: Tensor, alpha: float | None) -> Tensor:
    """W + scale (alpha / r) B A, in the dtype of W."""
    down, up = (stored.read().float() for stored in (change.down, change.up) if stored is not None)
    if change.alpha is not None:
        alpha = float(change.alpha.read())
    factor = lora.scale * (1.0 if alpha is None else alpha / len(down))
    difference = (factor * (up.flatten(1) @ down.flatten(1))).reshape(weight.shape)
    merged = (weight.float() + difference.to(weight.device)).to(weight.dtype)
    if not merged.isfinite().all():
        raise ModelError(f"{lora.name}: {key} at scale {lora.scale:g} gives numbers that are not finite")
    return merged


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A layer's shape, that of a 1x1 convolution as of a linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)
