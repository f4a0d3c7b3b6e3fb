"""`sage doctor`: what this machine has, and what an edit would take on it."""

import argparse
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sage import __version__
from sage.auto import auto_of
from sage.bench.machine import machine, peak_memory, versions
from sage.display import console
from sage.display.progress import Progress
from sage.errors import SageError
from sage.machine.estimates import PROBE, STEPS, Probe, estimate, figures
from sage.models.known import KNOWN, installed, own_folder, own_names, weights_dir

SHOWN = 0.15  # seconds for which a convolution of a size is tried
SMALLEST = 8  # its side at first: in a precision that a processor only imitates, more would take minutes
SHORT = 4  # steps, at most, of the edits that are timed
TRIES = 2  # of such an edit, the first of which warms up
UNKNOWN = "not measured"
Report = Callable[[str, int, int], None]
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
    with Progress(shown=sys.stderr.isatty(), unit="try") as progress:
        found = facts(args.device, progress)
    print(json.dumps(found) if args.json else "\n".join(lines(found)))


def facts(device: str | None = None, progress: Report = lambda phase, done, total: None) -> dict[str, Any]:
    """What there is, as JSON values; times in seconds, amounts in bytes.

    Args:
        progress: called with (what is tried, tries done, tries in all).
    Raises:
        SettingsError: a device that cannot be had.
    """
    import torch

    from sage.models.loading import choose_device
    from sage.models.memory import free_memory
    chosen = choose_device(device)
    kind = "cuda" if chosen.type == "cuda" else "cpu"
    rates = _rates(chosen, ("float16",) if kind == "cuda" else ("float32", "bfloat16"), progress)
    models = {name: {"path": str(path) if (path := installed(name)) else None, "side": KNOWN[name].size,
                     "family": KNOWN[name].family, "download": KNOWN[name].download, "student": KNOWN[name].student}
              for name in KNOWN}
    models |= {name: own(name) for name in own_names()}
    tried = timed(str(chosen), progress)
    others = {name: about for name, about in models.items() if name not in {row["model"] for row in tried}}
    return {"sage": __version__, "versions": versions(), "machine": machine(kind), "device": str(chosen),
            "threads": torch.get_num_threads(), "precision": next(iter(rates)), "operations_per_second": rates,
            "memory": free_memory(chosen), "weights": str(weights_dir()), "disk": free_disk(weights_dir()),
            "models": models, "edits": tried + edits(others, kind, rates)}


def _rates(device: Any, dtypes: Sequence[str], progress: Report) -> dict[str, float]:
    found = {}
    for number, dtype in enumerate(dtypes):
        progress("convolve", number, len(dtypes))
        found[dtype] = rate(device, dtype)
    progress("convolve", len(dtypes), len(dtypes))
    return found


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
    return {"path": about["path"], "side": about["picture side"], "family": about["family"], "download": 0,
            "student": "steps" in about}


def free_disk(folder: Path) -> int | None:
    """Bytes that are free where a folder is or would be."""
    try:
        return shutil.disk_usage(next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())).free
    except OSError:
        return None


def edits(models: dict[str, dict[str, Any]], kind: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    """What an edit by each model would take: of 50 steps, by a student of the few that it is made for.

    Of a model like which nothing was measured there is one row, with nothing for the time, the memory and the steps.
    """
    found = []
    for name, about in models.items():
        if not (own_side := about.get("side")):
            continue
        rows = [row for side in (own_side, *([SMALLER] if own_side == 2 * SMALLER else []))
                for dtype, speed in rates.items() if (row := _estimated(about, side, kind, dtype, speed))]
        unknown = {"side": own_side, "dtype": next(iter(rates)), "steps": None, "seconds": None, "memory": None,
                   "basis": UNKNOWN}
        found += [{"model": name, **row} for row in rows or [unknown]]
    return found


def _estimated(about: dict[str, Any], side: int, kind: str, dtype: str, speed: float) -> dict[str, Any] | None:
    from sage.models.sd.loading import STUDENT
    if not (found := estimate(about["family"], side, kind, dtype, speed)):
        return None
    steps, basis = STEPS, found.basis
    if about.get("student"):
        steps, basis = STUDENT["steps"], f"{basis}, for {STEPS} steps"
    return {"side": side, "dtype": dtype, "steps": steps, "seconds": found.seconds * steps / STEPS,
            "memory": found.memory, "basis": basis}


def timed(device: str, progress: Report = lambda phase, done, total: None) -> list[dict[str, Any]]:
    """What an edit by each bundled model that is here takes, from a short one that is made.

    By the method that `sage edit` takes with it where none is named.
    """
    return [_timed(name, device, progress) for name, known in KNOWN.items() if not known.repo and installed(name)]


def _timed(name: str, device: str, progress: Report) -> dict[str, Any]:
    from PIL import Image

    import sage
    progress(name, 0, TRIES)
    model = sage.load_model(name, device=device)
    auto = auto_of(name)
    settings = auto.as_method().recommended(model)
    steps = min(SHORT, settings.steps)
    short = settings.but(steps=steps, **({"retries": 0} if "retries" in settings.names() else {}))
    picture, prompts = Image.new("RGB", (model.sample_size, model.sample_size), "grey"), ("a red ball", "a blue ball")
    for done in range(1, TRIES + 1):
        start = time.perf_counter()
        sage.edit(model, picture, *prompts, short)
        seconds = time.perf_counter() - start
        progress(name, done, TRIES)
    return {"model": name, "side": model.sample_size, "dtype": str(model.dtype).removeprefix("torch."),
            "steps": settings.steps, "seconds": seconds * settings.steps / steps,
            "memory": peak_memory(model.device.type),
            "basis": f"{auto.method}, " + ("timed" if steps == settings.steps else f"timed at --steps {steps}")}


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
        size = about.get("download", 0) / 1e9
        place = about["path"] or (f"not here: sage fetch {name} ({size:.1f} GB)" if size else "missing")
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
        if e["seconds"] is None or e["seconds"] <= quick.get((e["model"], e["side"]), e["seconds"]):
            flags = ("" if e["side"] == found["models"][e["model"]].get("side") else f" --size {e['side']}") + (
                "" if e["dtype"] == found["precision"] else f" --dtype {e['dtype']}")
            tight = found["memory"] is not None and (e["memory"] or 0) > found["memory"]
            memory = "unknown" if e["memory"] is None else amount(e["memory"])
            numbers = f"  {duration(e['seconds']):>8}  {memory:>9}  {e['steps'] or '':>5}  "
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


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "unknown"
    for unit, name, most in ((1, "s", 100), (60, "min", 100)):
        if seconds < most * unit:
            return f"{seconds / unit:.{1 if seconds < 10 else 0}f} {name}"
    return f"{seconds / 3600:.0f} h"
