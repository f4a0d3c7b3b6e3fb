"""What a model on this disk is, told from its configurations and the headers of its weights alone."""

import math
from pathlib import Path
from typing import Any

from sage.models.flow.loading import SIDE, check_kin, is_flux_folder, open_folder
from sage.models.flow.singlefile import is_flux
from sage.models.flow.singlefile import take_apart as take_transformer_apart
from sage.models.flow.transformer import FluxParams
from sage.models.folders import weight_files
from sage.models.known import find_model
from sage.models.sd import configs
from sage.models.sd.singlefile import guess_prediction, take_apart
from sage.models.weights import Stored, open_weights
from sage.prompts.vocabulary import read_words

FAMILIES = {768: "1.x", 1024: "2.x"}


def describe(model: str | Path) -> dict[str, Any]:
    """Name, place, family, sizes and numbers of parameters, as plain JSON values; reads no weights.

    Raises:
        ModelError: nothing there, not whole, or not supported.
    """
    name, path = find_model(model)
    if path.is_dir():
        facts = _flux_folder(path) if is_flux_folder(path) else _folder(path)
    else:
        tensors = open_weights([path])
        facts = _flux_file(path, tensors) if is_flux(tensors) else _file(path, tensors)
    return {"name": name, "path": str(path), **facts, "parameters in all": sum(facts["parameters"].values())}


def _folder(folder: Path) -> dict[str, Any]:
    unet, side = configs.unet_params(folder / "unet" / "config.json")
    vae = configs.vae_params(folder / "vae" / "config.json")
    prediction = configs.schedule_params(folder / "scheduler" / "scheduler_config.json")[1]
    files = {"unet": weight_files(folder / "unet", "diffusion_pytorch_model", half=False),
             "vae": weight_files(folder / "vae", "diffusion_pytorch_model", half=False),
             "text": weight_files(folder / "text_encoder", "model", half=False)}
    return {"layout": "diffusers folder", "family": FAMILIES.get(unet.context_width, "small"),
            "picture side": side * 2 ** (len(vae.channels) - 1), "prediction_type": prediction,
            "parameters": {part: _count(open_weights(paths)) for part, paths in files.items()},
            "bytes": sum(path.stat().st_size for paths in files.values() for path in paths), **_words(folder)}


def _flux_folder(folder: Path) -> dict[str, Any]:
    opened = open_folder(folder)
    check_kin(opened)
    files = {stored.path for part in opened.parts.values() for stored in part.tensors.values()}
    return {"layout": "diffusers folder", **_of_flux(opened.transformer), "picture side": opened.side,
            "prediction_type": "flow", "parameters": {name: part.numbers for name, part in opened.parts.items()},
            "bytes": sum(path.stat().st_size for path in files), **_words(folder)}


def _words(folder: Path) -> dict[str, str]:
    return {"words": " ".join(sorted(words))} if (words := read_words(folder)) else {}


def _flux_file(path: Path, tensors: dict[str, Stored]) -> dict[str, Any]:
    params, stored = take_transformer_apart(path, tensors)
    return {"layout": "single file, transformer alone", **_of_flux(params), "picture side": SIDE,
            "prediction_type": "flow", "parameters": {"transformer": _count(stored)}, "bytes": path.stat().st_size}


def _of_flux(params: FluxParams) -> dict[str, Any]:
    if params in (FluxParams(), FluxParams(guidance=False)):
        return {"family": f"FLUX.1 {'dev' if params.guidance else 'schnell'}"}
    return {"family": "small flow", "guidance": "an input" if params.guidance else "by two passes"}


def _file(path: Path, tensors: dict[str, Stored]) -> dict[str, Any]:
    parts = take_apart(path, tensors)
    prediction, why = guess_prediction(path, parts.family, next(iter(tensors.values())).file.metadata() or {})
    return {"layout": "single file", "family": parts.family, "picture side": 768 if prediction != "epsilon" else 512,
            "prediction_type": f"{prediction} ({why})",
            "parameters": {part: _count(stored) for part, stored in parts.tensors.items()},
            "bytes": path.stat().st_size}


def _count(tensors: dict[str, Stored]) -> int:
    return sum(math.prod(stored.shape) for stored in tensors.values())
