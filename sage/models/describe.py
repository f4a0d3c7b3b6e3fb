"""What a model on this disk is, told from its configurations and the headers of its weights alone."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sage.models.flow.loading import SIDE, check_kin, is_flux_folder, open_folder
from sage.models.flow.singlefile import is_flux
from sage.models.flow.singlefile import take_apart as take_transformer_apart
from sage.models.flow.transformer import FluxParams
from sage.models.folders import Folder
from sage.models.known import find_model
from sage.models.sd import loading as sd
from sage.models.sd.loading import Opened
from sage.models.weights import Stored, open_weights


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
    opened = sd.open_folder(folder)
    files = {stored.path for part in opened.parts.values() for stored in part.tensors.values()}
    return {"layout": "diffusers folder", **_of_sd(opened), "prediction_type": opened.prediction,
            "parameters": {name: part.numbers for name, part in opened.parts.items()},
            "bytes": sum(path.stat().st_size for path in files), **_words(opened.more["taught"])}


def _flux_folder(folder: Path) -> dict[str, Any]:
    opened = open_folder(folder)
    check_kin(opened)
    files = {stored.path for part in opened.parts.values() for stored in part.tensors.values()}
    return {"layout": "diffusers folder", **_of_flux(opened.transformer), "picture side": opened.side,
            "prediction_type": "flow", "parameters": {name: part.numbers for name, part in opened.parts.items()},
            "bytes": sum(path.stat().st_size for path in files), **_words(Folder(folder).words())}


def _words(taught: Iterable[str]) -> dict[str, str]:
    return {"words": " ".join(sorted(taught))} if taught else {}


def _flux_file(path: Path, tensors: dict[str, Stored]) -> dict[str, Any]:
    params, stored = take_transformer_apart(path, tensors)
    return {"layout": "single file, transformer alone", **_of_flux(params), "picture side": SIDE,
            "prediction_type": "flow", "parameters": {"transformer": _count(stored)}, "bytes": path.stat().st_size}


def _of_flux(params: FluxParams) -> dict[str, Any]:
    if params in (FluxParams(), FluxParams(guidance=False)):
        return {"family": f"FLUX.1 {'dev' if params.guidance else 'schnell'}"}
    return {"family": "small flow", "guidance": "an input" if params.guidance else "by two passes"}


def _file(path: Path, tensors: dict[str, Stored]) -> dict[str, Any]:
    opened = sd.open_file(path, tensors)
    return {"layout": "single file", **_of_sd(opened), "prediction_type": f"{opened.prediction} ({opened.why})",
            "parameters": {name: part.numbers for name, part in opened.parts.items()}, "bytes": path.stat().st_size}


def _of_sd(opened: Opened) -> dict[str, Any]:
    few = {"steps": f"{sd.STUDENT['steps']}, it was made for few"} if opened.student else {}
    return {"family": opened.family, "picture side": opened.side, **few}


def _count(tensors: dict[str, Stored]) -> int:
    return sum(math.prod(stored.shape) for stored in tensors.values())
