"""One node loads a model, and one edits for each method, its inputs made of the method's own settings.

An image is (B, H, W, C) float32 in [0, 1], a mask (B, H, W), white where the picture may change.  Nothing of ComfyUI is
imported: a node is a class with INPUT_TYPES, RETURN_TYPES, FUNCTION and CATEGORY.
"""

import hashlib
import json
import math
from dataclasses import Field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sage
from sage.models.known import KNOWN, own_names
from sage.pictures.files import TEXT_KEY
from sage.pictures.metadata import make_record
from sage.prompts.phrases import read_factors, read_phrases
from sage.settings import Settings
from sage.studio.form import kind
from sage.studio.words import factors_text, phrases_text

CATEGORY = "SAGE"
NAMES = "..."  # in the list of models: the one whose place is written beside it
DTYPES = ("as usual", "float32", "float16", "bfloat16")
MOST = 2**53  # a whole number that ComfyUI's pages can hold
STEP = 0.001
MASK = "may_change"  # a method may have a setting that is called mask


class LoadModel:
    """A model by its name, or any diffusers folder or .safetensors file, with LoRA files merged."""

    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("SAGE_MODEL",), ("model",), "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Load a model from this disk; nothing is downloaded (sage fetch does that)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What it is given."""
        return {"required": {"model": ([*KNOWN, *own_names(), NAMES],)}, "optional": {
            "path": ("STRING", {"default": "", "tooltip": f"a folder or .safetensors file, for {NAMES}"}),
            "lora": ("STRING", {"default": "", "multiline": True, "tooltip": "FILE or FILE:SCALE, a line each"}),
            "device": ("STRING", {"default": "", "tooltip": "CUDA where there is one"}),
            "dtype": (list(DTYPES),)}}

    def load(self, model: str, path: str = "", lora: str = "", device: str = "", dtype: str = DTYPES[0]) -> tuple[Any]:
        """As `sage.load_model`."""
        return (sage.load_model(path.strip() if model == NAMES else model, device.strip() or None,
                                None if dtype == DTYPES[0] else dtype,
                                lora=[line.strip() for line in lora.splitlines() if line.strip()]),)


class Edit:
    """Edits images by one method; a class for each is made below.

    A setting that is left as it is follows what the model recommends.
    """

    METHOD = "sage"
    RETURN_TYPES, RETURN_NAMES, FUNCTION = ("IMAGE", "STRING"), ("image", "settings"), "edit"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What it is given: the method's settings, and a mask where it reads one."""
        method = sage.method(cls.METHOD)
        masks = {MASK: ("MASK", {"tooltip": "white where the picture may change"})} if "mask" in method.reads else {}
        return {"required": {"model": ("SAGE_MODEL",), "image": ("IMAGE",),
                             "source": ("STRING", {"multiline": True, "tooltip": "what the picture shows"}),
                             "target": ("STRING", {"multiline": True, "tooltip": "what it shall show"})},
                "optional": masks | {f.name: given_as(method.Settings, f) for f in method.Settings.fields()},
                "hidden": {"extra_pnginfo": "EXTRA_PNGINFO"}}

    def edit(self, model: Any, image: Tensor, source: str, target: str, may_change: Tensor | None = None,
             extra_pnginfo: dict[str, Any] | None = None, **values: Any) -> tuple[Tensor, str]:
        """As `sage.edit`, image by image.

        Returns:
            (B, H, W, 3) images, and the settings of the first as JSON; what saves them puts these into the file, from
            where `sage info` and `sage edit --config-from` read them.
        """
        method = sage.method(self.METHOD)
        settings = method.recommended(model).but(**changed(method.Settings, values))
        results, record = [], dict[str, Any]()
        for i, one in enumerate(image):
            request = {} if may_change is None else {"mask": mask_of(may_change[i % len(may_change)])}
            result = sage.edit(model, picture_of(one), source, target, settings, **request)
            results.append(tensor_of(result.image))
            known = {"name": "ComfyUI", "sha256": hashlib.sha256(one.cpu().numpy().tobytes()).hexdigest()}
            record = record or make_record(model, source, target, settings, known, savings=result.savings)
        if extra_pnginfo is not None:
            extra_pnginfo[TEXT_KEY] = record
        return torch.stack(results), json.dumps(record)


def given_as(owner: type[Settings], f: Field) -> tuple[Any, ...]:
    """A setting as an input of a node."""
    how, help = kind(owner, f), {"tooltip": f.metadata["help"]}
    default = getattr(owner(), f.name)
    if how == "choice":
        return list(f.metadata["choices"]), {"default": default, **help}
    if how == "switch":
        return "BOOLEAN", {"default": default, **help}
    if how in ("whole", "number"):
        limits = {"min": max(f.metadata["low"], -MOST), "max": min(f.metadata["high"], MOST)}
        if how == "whole":
            limits = {name: int(value) for name, value in limits.items()}
        return "INT" if how == "whole" else "FLOAT", {
            "default": default, **limits, "step": 1 if how == "whole" else step(default), **help}
    return "STRING", {"default": written(how, default), **help}


def step(default: float) -> float:
    """A step by which a number can be turned: a hundredth of what it is, a power of ten."""
    return STEP if not default else min(1.0, 10.0 ** math.floor(math.log10(abs(default)) - 1))


def written(how: str, value: Any) -> str:
    """A setting that is given as text."""
    if how in ("phrases", "factors"):
        return phrases_text(value) if how == "phrases" else factors_text(value)
    return "" if value is None else str(value)


def changed(owner: type[Settings], values: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults that the node shows."""
    found, defaults = dict[str, Any](), owner()
    for f in owner.fields():
        how, default = kind(owner, f), getattr(defaults, f.name)
        if f.name not in values:
            continue
        value = values[f.name]
        if how in ("phrases", "factors", "perhaps", "text") and value == written(how, default):
            continue
        if how in ("phrases", "factors"):
            value = (read_phrases if how == "phrases" else read_factors)(value.strip() or "none")
        elif how == "perhaps":
            value = int(value) if value.strip() else None
        if value != default:
            found[f.name] = value
    return found


def picture_of(image: Tensor) -> Image.Image:
    """(H, W, C) in [0, 1] -> a picture; of more than three channels the first three."""
    return Image.fromarray(levels(image[..., :3]))


def mask_of(mask: Tensor) -> Image.Image:
    """(H, W) in [0, 1] -> a picture of it."""
    return Image.fromarray(levels(mask))


def levels(values: Tensor) -> np.ndarray:
    """[0, 1] -> 0 to 255, rounded."""
    return (values.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def tensor_of(image: Image.Image) -> Tensor:
    """A picture -> (H, W, 3) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).float() / 255


def edit_node(name: str) -> type[Edit]:
    """The node of a method."""
    method = sage.method(name)
    return type(f"Edit_{name}", (Edit,), {"METHOD": name, "DESCRIPTION": method.about, "__doc__": method.about})


EDITS = {f"SAGE {name}": edit_node(name) for name in sage.METHODS if sage.method(name).edits}
NODE_CLASS_MAPPINGS = {"SAGE load model": LoadModel, **EDITS}
NODE_DISPLAY_NAME_MAPPINGS = {"SAGE load model": "SAGE: load a model",
                              **{key: f"SAGE: {sage.method(node.METHOD).title}" for key, node in EDITS.items()}}
