"""Both sides of a comparison in float64: what then is left of a difference is one of formulas, and no rounding."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from sage import editing
from sage.models.backbone import Text
from tests.small import Small


@contextmanager
def in_float64(made: Small) -> Iterator[None]:
    """Context in which our network and diffusers', latents, texts and all that is made of them are float64.

    `Tensor.float` gives float64 there, so that renditions and methods that make sure of float32 make sure of that.
    """
    embedded = editing._embedded
    with pytest.MonkeyPatch.context() as patch, made.model.full_precision(dtype=torch.float64):
        made.unet.double()
        torch.set_default_dtype(torch.float64)
        patch.setattr(made.model, "full_precision", lambda *modules, **dtype: nullcontext())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(editing, "_latents", lambda model, z: z.double())
        patch.setattr(editing, "_embedded", lambda *given: {
            name: Text(text.tokens.double()) for name, text in embedded(*given).items()})
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
            made.unet.to(torch.float32)
