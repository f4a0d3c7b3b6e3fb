"""The stages of an edit, and a way to have any of them go wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sage.models.sd.model import StableDiffusion

STEPS = 3
# The calls of the UNet: the inversion's, and two for each step back.
PASSES = {f"pass {i + 1} of the UNet": i for i in range(3 * STEPS)}
STAGES = ("encode", "text", *PASSES, "gradient", "decode")


@contextmanager
def wrong(model: StableDiffusion, stage: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `change` done to what a stage gives, or let it raise."""
    undo: list[Callable[[], None]] = []
    if stage in ("encode", "decode"):
        kept = getattr(model.vae, stage)
        setattr(model.vae, stage, lambda *args, **kwargs: change(kept(*args, **kwargs)))
        undo.append(lambda: delattr(model.vae, stage))
    elif stage == "text":
        undo.append(model.text.register_forward_hook(lambda module, args, out: change(out)).remove)
    elif stage == "gradient":
        def hook(module, args, out):
            if isinstance(out, Tensor) and out.requires_grad:
                out.register_hook(change)
        undo.append(next(m for m in model.unet.modules() if isinstance(m, torch.nn.Conv2d)).register_forward_hook(
            hook).remove)
    else:
        calls = iter(range(10_000))
        undo.append(model.unet.register_forward_hook(
            lambda module, args, out: change(out) if next(calls) == PASSES[stage] else None).remove)
    try:
        yield
    finally:
        for back in undo:
            back()
