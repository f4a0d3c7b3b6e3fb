"""Where the seconds of an edit go: torch's profiler over one step of each kind, summed by network and by operation."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.speed.cells import GUIDED, OURS, WHOLE, Cell
from benchmarks.speed.measure import DTYPES, IMPLEMENTATIONS
from benchmarks.speed.models import MODELS

MARK, PART = "mark: ", "part: "
BACKWARD = "autograd::engine::evaluate_function"
# The first that occurs in the name of an operation says its kind.
OPERATIONS = (
    ("transfers", ("memcpy", "_to_copy")),
    ("convolution", ("conv",)),
    ("attention, fused", ("scaled_dot_product", "flash_attention", "efficient_attention")),
    ("maps", ("bmm", "softmax")),
    ("linear", ("addmm", "::mm", "linear")),
    ("norms and activations", ("norm", "silu", "gelu", "sigmoid")),
)


def kind_of(operation: str) -> str:
    name = operation.lower()
    return next((kind for kind, words in OPERATIONS if any(w in name for w in words)), "the rest")


def named(module: nn.Module, part: str) -> None:
    """Let the profiler see what is computed inside a module's forward pass."""
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(PART + part):
            return forward(*args, **kwargs)

    module.forward = run


def name_parts(modules: dict[str, nn.Module]) -> None:
    named(modules["unet"], "UNet")
    named(modules["text"], "text")
    for half in ("encoder", "decoder"):
        named(getattr(modules["vae"], half), "VAE")
    for module in modules["unet"].modules():
        if type(module).__name__ == "AttentionMap":
            named(module, "maps")


def lineage(event: Any) -> Iterable[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def place(event: Any) -> tuple[str, str]:
    """(network, operation) that an event's own time belongs to."""
    parts, backward, kind = [], False, "Python" if event.name.startswith(PART) else None
    for e in lineage(event):
        if e.name.startswith(PART):
            parts.append(e.name.removeprefix(PART))
        backward = backward or e.name.startswith(BACKWARD)
        # What a fused attention or a linear layer calls is its own.
        if not e.name.startswith((PART, MARK)) and (found := kind_of(e.name)) != "the rest":
            kind = found
    if backward:
        return "UNet, backward", kind or "the rest"
    outer = parts[-1] if parts else "sampling"
    network = {"UNet": "UNet, forward", "maps": "sampling"}.get(outer, outer)
    return network, "maps" if "maps" in parts else kind or "the rest"


def summed(events: Iterable[Any], device: str) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds by the step that was under way, the network and the operation."""
    seconds: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    step = "encode"
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.name.startswith(MARK):
            step = event.name.removeprefix(MARK)
            continue
        # A device's kernels hang at the operation that launched them; those listed for themselves are the same again.
        if device == "cuda":
            own = sum(k.duration for k in event.kernels if not k.name.startswith((PART, MARK)))
        else:
            own = event.self_cpu_time_total
        network, operation = place(event)
        seconds[step][network][operation] += own / 1e6
    return {step: {n: dict(ops) for n, ops in networks.items()} for step, networks in seconds.items()}


def measure(cell: Cell, implementation: str, cache: Path) -> dict[str, Any]:
    """Seconds of an edit of 50 steps by network and operation, from one step of each kind."""
    about, dtype = MODELS[cell.model], DTYPES[cell.dtype]
    runs = IMPLEMENTATIONS[implementation](about, about.folder(cache), cell.device, dtype)
    runs.invert(cell.batch, cell.size, 2)  # once, so that nothing is for the first time
    name_parts(runs.modules())
    ours = implementation == OURS
    guided, steps = 2, 4 if ours else 2

    def mark(phase: str, done: int, total: int) -> None:
        """Names what begins here; what follows the first step of its kind is counted, the first is not."""
        following = {"encode": "invert, first" if done else "encode", "decode": "end" if done else "decode",
                     "invert": "guided, first" if done == total else "invert",
                     "edit": "decode" if done == total else "guided" if done < guided else
                     "unguided, first" if done == guided else "unguided"}[phase]
        if cell.device == "cuda":
            torch.cuda.synchronize()
        with record_function(MARK + following):
            pass

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cell.device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        runs.edit(cell.batch, cell.size, steps, guided, mark)
    seconds = summed(profiler.events(), cell.device)
    # Inversion: all but the first of `steps`; guided and unguided: one each.
    times = {"encode": 1, "decode": 1, "end": 1, "invert": WHOLE / (steps - 1),
             "guided": GUIDED if ours else WHOLE, "unguided": WHOLE - GUIDED if ours else 0}
    whole: dict = defaultdict(lambda: defaultdict(float))
    for step, networks in seconds.items():
        for network, operations in networks.items():
            for operation, s in operations.items():
                whole[network][operation] += s * times.get(step, 0)
    return {"seconds": {n: dict(ops) for n, ops in whole.items()}, "steps": seconds}
