"""What an edit has to say of itself: in notes, which stand beside the result."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from sage import pictures, quality
from sage.method import Request
from sage.models.backbone import Backbone
from sage.prompts.plan import Plan
from sage.settings import Settings

if TYPE_CHECKING:
    from sage.editing import EditResult

SAME = "both prompts say the same to the model: nothing is asked to change"


def unlike(model: Backbone, images: Sequence[Image.Image], z: Tensor, size: tuple[int, int]) -> tuple[str, ...]:
    """What is to be said of each picture, if it is none of the small world that a model knows.

    Args:
        z: the pictures' latents.
        size: (width, height) at which they are worked.
    Returns:
        "" where there is nothing to be said.
    """
    given = torch.cat([pictures.to_tensor(image, size) for image in images])
    advice = "the edit will be mush; for photographs take another model, such as sd-1.4 (sage fetch sd-1.4 gets it)"
    said = quality.unlike(model.name, given, model.decode(z).cpu())
    return tuple(f"{told}: {advice}" if told else "" for told in said)


def unusual(model: Backbone, size: tuple[int, int], settings: Settings) -> list[str]:
    """What is to be said of a size, and of steps, that the model was not trained for."""
    said, made_for = [], getattr(model.schedule, "made_for", 0)
    if 0 < made_for < (steps := getattr(settings, "steps", 0)) / 2:
        said.append(f"{model.name} was made for {made_for} steps, and these are {steps}: the picture may fall apart; "
                    "take a method for few, such as turbo-ddpm, or a model that is no student")
    area = size[0] * size[1] / model.sample_size**2
    if not 0.5 <= area <= 2:
        said.append(f"{model.name} was trained at {model.sample_size} x {model.sample_size} pixels, and this picture "
                    f"is worked at {size[0]} x {size[1]}: it may fall apart")
    return said


def of_plan(plan: Plan, request: Request) -> tuple[str, ...]:
    """The notes of a plan; what is moved, and further targets, are changes that both prompts do not say."""
    return tuple(note for note in plan.notes if note != SAME or not (request.moves or request.points or request.edits))


def of_result(result: "EditResult", config: Settings) -> Iterator[str]:
    """What a result itself gives to say."""
    if seen := result.looks_wrong(config):
        yield f"the result looks {seen}: try a smaller guidance_scale"
    if result.masks and not any(mask.any() for mask in result.masks):
        yield "the blending mask is empty, and keeps the picture as it is: try a smaller blend_threshold, or blend none"
