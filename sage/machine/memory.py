"""An edit in the memory there is: less is asked for beforehand where little is free, and again when it runs out."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sage.errors import MemoryRunOut, SettingsError, out_of_memory
from sage.models.backbone import Backbone
from sage.models.memory import free_memory, release, whole_memory
from sage.models.savings import Savings
from sage.trajectory.kinds import Wanted

T = TypeVar("T")

SHARE = 0.9  # of what is free; the rest is for what is not counted
UNSURE = 4  # what is needed is estimated to such a factor, not least since few methods walk a gradient back
MOST_PLACES = {"cpu": 2**15, "cuda": 2**18}  # of latents; those of Stable Diffusion's 1448 and 4096 pixels a side


@dataclass(frozen=True)
class Task:
    """What is to be done at once.

    Attributes:
        size: (width, height) in pixels at which the pictures are worked.
        batch: pictures.
        wants: attention that is recorded.
    """

    model: Backbone
    size: tuple[int, int]
    batch: int
    wants: tuple[Wanted, ...] = ()

    def need(self) -> int:
        """Bytes on the device, beyond the weights, as the model saves now."""
        one = self.model.needs(*self.size)
        references = sum(amount * len(wanted.steps) for wanted in self.wants
                         for (kind, level), amount in one.attention.items()
                         if kind == wanted.where.kind and wanted.where.level in (None, level))
        return self.batch * (max(one.autoencoder, one.network) + (0 if self.model.savings.references else references))


@contextmanager
def own_savings(model: Backbone, savings: Savings | None = None) -> Iterator[None]:
    """Context after which the model saves no more than before; inside, from the first, what is given."""
    before = model.savings
    try:
        if savings is not None:
            model.save(savings)
        yield
    finally:
        if model.savings != before:
            model.save(before)


def settle(task: Task) -> tuple[str, ...]:
    """Save as much memory as what is free asks for; what is to be said about it, nothing if all is well.

    Raises:
        SettingsError: more places than the device can compare with each other in any time.
        MemoryRunOut: it would need far more than there is, whatever is saved.
    """
    model, said = task.model, tuple[str, ...]()
    _check_places(task)
    while (free := free_memory(model.device)) is not None:
        need, savings = task.need(), model.savings.next(model.device.type)
        if need <= SHARE * free or savings is None:
            break
        model.save(savings)
        said = (f"about {gib(need)} are needed and {gib(free)} are free: {savings}",)
    whole, need = whole_memory(model.device), task.need()
    if whole is not None and need > UNSURE * whole:
        raise MemoryRunOut(f"about {gib(need)} of memory are needed at {task.size[0]} x {task.size[1]} pixels, and "
                           f"there are {gib(whole)} in all: try a smaller size, or fewer pictures at once")
    return said


def _check_places(task: Task) -> None:
    """SettingsError for a size at which attention, which compares every place with every other, would not end."""
    places = math.prod(task.model.latent_shape(task.size)[1:])
    most = MOST_PLACES.get(task.model.device.type, MOST_PLACES["cuda"])
    if places > most:
        raise SettingsError(f"{task.size[0]} x {task.size[1]} pixels are {places} places of latents, and "
                            f"{task.model.device.type} can compare at most {most} with each other: try a smaller size")


def stepping_down(task: Task, stage: str, run: Callable[[], T], notes: list[str]) -> T:
    """`run()`; when memory runs out, again with less need of it, until nothing is left to be saved.

    Args:
        stage: what is being done, for the error.
        notes: what was done is added here.
    Raises:
        MemoryRunOut: at the last rung too.
    """
    model = task.model
    while True:
        try:
            return run()
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Out of the handler: the error holds the frames of the failed run, and they their tensors.
        release(model.device)
        savings, free = model.savings.next(model.device.type), free_memory(model.device)
        if savings is None:
            has = "" if free is None else f", {gib(free)} are free"
            raise MemoryRunOut(f"out of memory while {stage}: about {gib(task.need())} are needed beyond the model"
                               f"{has}; try a smaller size, fewer pictures at once, or device cpu")
        model.save(savings)
        notes.append(f"memory ran out while {stage}, which was done again: {savings}")


def gib(amount: int) -> str:
    """An amount of bytes for people."""
    return f"{amount / 2**30:.1f} GiB"
