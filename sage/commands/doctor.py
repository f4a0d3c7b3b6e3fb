"""`sage doctor`: what this machine has, and what an edit would take on it."""

import argparse
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage import __version__
from sage.bench.machine import machine, peak_memory, versions
from sage.display import console
from sage.errors import SageError
from sage.machine.estimates import PROBE, STEPS, Probe, estimate, figures
from sage.models.known import KNOWN, installed, own_folder, own_names, weights_dir

SHOWN = 0.15  # seconds for which a convolution of a size is tried
SMALLEST = 8  # its side at first: in a precision that a processor only imitates, more would take minutes
SHORT = 4  # steps of the edit that is timed
LONG = 24  # letters of a name beyond which it is out of line
SMALLER = 256  # pixels at which networks of 512 still work, and take a quarter of the time


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
    """
    parser = command("doctor", run, "tell what this machine has, and what an edit would take on it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> None:
    """Look, try, and print."""
    console.begin("looking at this machine, some seconds", sys.stderr.isatty())
    found = facts(args.device)
    print(json.dumps(found) if args.json else "\n".join(lines(found)))


def facts(device: str | None = None) -> dict[str, Any]:
    """What there is, as JSON values; times in seconds, amounts in bytes.

    Raises:
        SettingsError: a device that cannot be had.
    """
    import torch

    from sage.models.loading import choose_device
    from sage.models.memory import free_memory
    chosen = choose_device(device)
    kind = "cuda" if chosen.type == "cuda" else "cpu"
    rates = {dtype: rate(chosen, dtype) for dtype in (("float16",) if kind == "cuda" else ("float32", "bfloat16"))}
    models = {name: {"path": str(path) if (path := installed(name)) else None, "side": KNOWN[name].size,
                     "family": KNOWN[name].family, "download": KNOWN[name].download} for name in KNOWN}
    models |= {name: own(name) for name in own_names()}
    return {"sage": __version__, "versions": versions(), "machine": machine(kind), "device": str(chosen),
            "threads": torch.get_num_threads(), "precision": next(iter(rates)), "operations_per_second": rates,
            "memory": free_memory(chosen), "weights": str(weights_dir()), "disk": free_disk(weights_dir()),
            "models": models, "edits": timed(str(chosen)) + edits(models, kind, rates)}


def rate(device: Any, dtype: str) -> float:
    """Operations a second of the probe, or of as large a part of it as can be waited for."""
    probe = Probe(PROBE.channels, SMALLEST)
    while (seconds := fastest(device, dtype, probe)) < SHOWN and probe.side < PROBE.side:
        probe = probe._replace(side=2 * probe.side)
    return probe.operations / seconds


def fastest(device: Any, dtype: str, probe: Probe) -> float:
    """Seconds of a convolution, the least of those that fit into a moment."""
    import torch
    x = torch.randn(1, probe.channels, probe.side, probe.side, device=device).to(getattr(torch, dtype))
    w = torch.randn(probe.channels, probe.channels, 3, 3, device=device).to(x.dtype)

    def took() -> float:
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, w, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    until, times = time.perf_counter() + SHOWN, [took()]
    while time.perf_counter() < until:
        times.append(took())
    return min(times)


def own(name: str) -> dict[str, Any]:
    """What is known of a folder beside the known models without reading its weights."""
    from sage.models.describe import describe
    try:
        about = describe(str(own_folder(name)))
    except SageError as error:
        return {"path": str(own_folder(name)), "wrong": str(error)}
    return {"path": about["path"], "side": about["picture side"], "family": about["family"], "download": 0}


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is or would be."""
    try:
        return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
    except OSError:
        return None


def edits(models: dict[str, dict[str, Any]], kind: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    """What an edit of 50 steps by each model would take, as far as anything like it was measured."""
    found = []
    for name, about in models.items():
        for side in (about.get("side"), *([SMALLER] if about.get("side") == 2 * SMALLER else [])):
            for dtype, speed in rates.items():
                if side and (e := estimate(about["family"], side, kind, dtype, speed)):
                    found.append({"model": name, "side": side, "dtype": dtype, "steps": STEPS, "seconds": e.seconds,
                                  "memory": e.memory, "basis": e.basis})
    return found


def timed(device: str) -> list[dict[str, Any]]:
    """What an edit by the bundled model takes, from a short one that is made; nothing if it is not here."""
    if installed("stilllife") is None:
        return []
    from PIL import Image

    import sage
    model = sage.load_model("stilllife", device=device)
    settings = sage.method("sage").recommended(model)
    picture, prompts = Image.new("RGB", (model.sample_size, model.sample_size), "grey"), ("a red ball", "a blue ball")
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        sage.edit(model, picture, *prompts, settings.but(steps=SHORT, retries=0))
        step = (time.perf_counter() - start) / SHORT
    return [{"model": "stilllife", "side": model.sample_size, "dtype": str(model.dtype).removeprefix("torch."),
             "steps": settings.steps, "seconds": step * settings.steps,
             "memory": peak_memory(model.device.type),
             "basis": f"{SHORT} steps timed"}]


# ---- as text


def lines(found: dict[str, Any]) -> list[str]:
    """The same for people, on lines that fit their terminal but where a path is longer."""
    on = "no CUDA device is seen" if found["device"] == "cpu" else "CUDA"
    said = [*_wrapped(found["versions"]), f"{'machine':10} {found['machine']}",
            f"{'device':10} {found['device']} ({on}), {found['precision']} unless --dtype says otherwise",
            f"{'memory':10} {amount(found['memory'])} free",
            f"{'disk':10} {amount(found['disk'])} free where models lie: {found['weights']}",
            f"{'':10} (SAGE_WEIGHTS names another place)", "", "models"]
    width = min(max(map(len, found["models"])), LONG)
    for name, about in found["models"].items():
        place = about["path"] or f"not here: sage fetch {name} ({about['download'] / 1e9:.1f} GB)"
        said.append(f"  {name:{width}}  {about.get('wrong') or place}")
    source = figures()
    said += ["", *_wrapped("an edit would take about this, if the machine stays as busy as it is now: estimates, from "
                           f"edits measured on {source['machine']}, {source['date']}, and from how fast this machine "
                           "convolves beside that")]
    return [console.printable(line) for line in [*said, *_edits(found)]]


def _edits(found: dict[str, Any]) -> list[str]:
    """A table of edits, models of the same needs in one row; without a precision that would only be slower."""
    alike: dict[tuple[str, ...], list[str]] = {}
    quick = {(e["model"], e["side"]): e["seconds"] for e in found["edits"] if e["dtype"] == found["precision"]}
    for e in found["edits"]:
        if e["seconds"] <= quick.get((e["model"], e["side"]), e["seconds"]):
            flags = ("" if e["side"] == found["models"][e["model"]].get("side") else f" --size {e['side']}") + (
                "" if e["dtype"] == found["precision"] else f" --dtype {e['dtype']}")
            tight = found["memory"] is not None and (e["memory"] or 0) > found["memory"]
            memory = "unknown" if e["memory"] is None else amount(e["memory"])
            numbers = f"  {duration(e['seconds']):>8}  {memory:>9}  {e['steps']:>5}  "
            alike.setdefault((numbers, flags, e["basis"] + ("; more than is free" if tight else "")),
                             []).append(e["model"])
    rows = [f"  {'time':>8}  {'memory':>9}  {'steps':>5}  model"] if alike else []
    for (numbers, flags, basis), names in alike.items():
        text = f"{', '.join(names)}{' with' if flags else ''}{flags} ({basis})"
        rows += _wrapped(text, numbers, " " * len(numbers))
    return rows


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, console.width(), initial_indent=first, subsequent_indent=rest, break_long_words=False,
                         break_on_hyphens=False)


def amount(count: float | None) -> str:
    """Bytes for people."""
    return "an unknown amount" if count is None else f"{count / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, name, most in ((1, "s", 100), (60, "min", 100)):
        if seconds < most * unit:
            return f"{seconds / unit:.{1 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 3600:.0f} h"
