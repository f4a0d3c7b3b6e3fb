"""`sage info`, `sage models`, `sage fetch`: what there is, and what it is."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage.display import console
from sage.errors import ModelError
from sage.models.known import KNOWN, installed, known_model, own_folder, own_names, unknown, weights_dir
from sage.pictures.masks import mask_of_text
from sage.pictures.metadata import read_record
from sage.pictures.originals import pastes_in
from sage.trajectory.label import is_trajectory, read_label

WEIGHTS = (".safetensors", ".ckpt", ".pt", ".bin")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the three commands to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
    """
    info = command("info", run_info, "tell what made a picture, or what a model or a trajectory is")
    info.add_argument("what", metavar="PICTURE-or-MODEL", help="an edited picture, a trajectory, or a model's name, "
                                                               "folder or file")
    info.add_argument("--method", metavar="path/to/file.py:Class",
                      help="your own method, for what was made by it")
    info.add_argument("--json", action="store_true", help="one JSON object on stdout")
    models = command("models", run_models, "list the models that go by a name, those in SAGE_WEIGHTS [weights/] too")
    models.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fetch = command("fetch", run_fetch, "download a known model, once, into SAGE_WEIGHTS [weights/]")
    fetch.add_argument("name", metavar="NAME", help=", ".join(name for name, m in KNOWN.items() if m.repo))
    fetch.add_argument("--quiet", action="store_true", help="no progress bar")


def run_info(args: argparse.Namespace) -> None:
    """What made a picture, or what a model or a trajectory is."""
    path = Path(args.what)
    if path.suffix.lower() == ".safetensors" and is_trajectory(path):
        facts = read_label(path, args.method or "").facts(path)
    elif (known_model(args.what) or own_folder(args.what) or os.path.isdir(path) or path.suffix.lower() in WEIGHTS):
        facts = _model_facts(args.what)
    elif os.path.exists(path) or path.suffix:
        facts = read_record(path, trusted=args.method or "")
        facts = facts if args.json else _in_words(facts)
    else:
        raise ModelError(f"{unknown(args.what)}; there is no such picture either")
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{_shown(name)}:")
            for key, inner in value.items():
                print(f"  {_shown(key)}: {_shown(inner)}")
        else:
            print(f"{_shown(name)}: {_shown(value)}")


def _in_words(record: dict[str, Any]) -> dict[str, Any]:
    """A record in which the masks, which stand there as letters, are told in words."""
    told = dict(record)
    if "mask" in record:
        told["mask"] = _area(record["mask"])
    if "moves" in record:
        told["moves"] = "; ".join(f"{_area(start)}, to {_area(end)}" for start, end in record["moves"])
    if "composed" in record:
        told["composed"] = "; ".join(f"with {paste.reference['name']}, in the box {','.join(map(str, paste.box))}"
                                     for paste in pastes_in(record))
    return told


def _area(text: str) -> str:
    """Where a mask is white."""
    mask = mask_of_text(text)
    box, share = mask.getbbox() or (0, 0, 0, 0), mask.histogram()[255] / (mask.width * mask.height)
    return f"{share:.0%} of {mask.width} x {mask.height}, in the box {','.join(map(str, box))}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ") if value > 9999 else str(value)
    return console.printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _model_facts(model: str) -> dict[str, Any]:
    known = known_model(model)
    if known and known.repo and not installed(known.name):
        return _known_facts(known.name) | {"on disk": False}
    console.begin(f"looking into {model}, some seconds", sys.stderr.isatty())
    from sage.models.describe import describe
    facts = describe(model)
    return (_known_facts(known.name) if known else {}) | facts


def _known_facts(name: str) -> dict[str, Any]:
    m = KNOWN[name]
    facts = {"name": name, "family": m.family, "picture side": m.size, "prediction_type": m.prediction_type,
             "licence": m.licence}
    return facts | ({"licence text": m.licence_url, "from": f"{m.repo} at {m.revision[:12]}", "download": m.download}
                    if m.repo else {})


def run_models(args: argparse.Namespace) -> None:
    """Every known model, and whether it is here."""
    found = {name: installed(name) for name in KNOWN}
    if args.json:
        known = {name: _known_facts(name) | {"path": str(path) if path else None} for name, path in found.items()}
        print(json.dumps(known | {name: {"name": name, "path": str(own_folder(name))} for name in own_names()}))
        return
    wide = max(map(len, [*KNOWN, *own_names()]))
    for name, path in found.items():
        m = KNOWN[name]
        size = f"{m.download / 1e9:.1f} GB" if m.download else "bundled"
        place = path or (f"not here: sage fetch {name}" if m.repo else "missing")
        print(f"{name:{wide}} {m.size:4} px  {size:8} {m.licence:24} {place}")
    for name in own_names():
        print(console.printable(f"{name:{wide}} your own {'':34} {own_folder(name)}"))
    print(f"\nModels lie in {weights_dir()}; SAGE_WEIGHTS names another place. Any folder there is found by its name.")


def run_fetch(args: argparse.Namespace) -> None:
    """Download a model unless it is here; print its folder."""
    known = known_model(args.name)
    if known is None:
        raise unknown(args.name)
    path = installed(known.name)
    if path is None:
        from sage.models.fetch import fetch
        path = fetch(known.name, progress=not args.quiet)
    print(path)
