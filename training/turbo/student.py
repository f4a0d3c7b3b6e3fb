"""From a guided model of many steps to four calls: guidance is distilled first, then where the way from an anchor ends.

    v_guided = v(empty) + w (v(text) - v(empty))                    one call in the place of two, at a fixed w
    y = where DPM-Solver++ (2M) leads x_a                           from each anchor a, by the guided copy
    loss = sqrt(mean (G(x_a, a) - y)^2 + k^2) - k + share |decode(G) - decode(y)|

x_a are points of ways that begin at noise (one way holds all four anchors), real pictures noised, and the student's own
clean latents noised again, which is what it meets when it samples.  Each tuple is worked out once and kept.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sage.models.sd.unet import UNet
from sage.sampling.levels import Level
from sage.sampling.steps import Prediction, from_output, renoise, second_order
from training import run
from training.data import CHUNK, save_array
from training.turbo import loop
from training.turbo.teacher import ANCHORS, Teacher, clean, gaussian, noised, rows

SOLVE = 12  # steps of the way from the first anchor; a quarter of them lies between two anchors
TUPLES = 1000  # ways, or tuples, in a file
AT_ONCE = 50
KAPPA = 5e-4
PIXELS, PICTURES = 0.2, 8  # weight of the decoded difference, and how many of a batch are decoded
KINDS = ("drawn", "real", "unrolled")


# ---- guidance in one call


def guided_loss(student: UNet, teacher: Teacher, w: float, z0: Tensor, ids: Tensor,
                generator: torch.Generator) -> Tensor:
    """Mean squared error in v; timesteps are stratified over the batch."""
    b, text = len(z0), teacher.embed(ids)
    t = ((torch.arange(b) + torch.rand(b, generator=generator)) / b * len(teacher.alphas)).long().to(z0.device)
    level = teacher.level(t)
    z = noised(z0, gaussian(tuple(z0.shape), generator), level)
    with torch.no_grad():
        empty = teacher.velocity(z, level, teacher.empty.expand(b, -1, -1))
        target = empty + w * (teacher.velocity(z, level, text) - empty)
    return (student(z, t, text).float() - target).square().mean()


def train_guided(out: Path, teacher: Teacher, latents: Sequence[np.ndarray], samples: int, w: float = 3.0,
                 batch_size: int = 32, seed: int = 0) -> UNet:
    """A copy of the teacher that needs one call where the teacher needs two; out/guided.safetensors."""
    student = teacher.copy()

    def loss(rng: np.random.Generator, generator: torch.Generator, done: float) -> tuple[Tensor, dict[str, float]]:
        seeds = rng.integers(len(latents) * CHUNK, size=batch_size)
        return guided_loss(student, teacher, w, rows(latents, seeds), teacher.captions(seeds, rng), generator), {}

    loop.train(out / "guided.safetensors", student, loss, samples, batch_size, peak=1e-4, seed=seed)
    return loop.averaged(out / "guided.safetensors", student)


# ---- where ways end


def way(teacher: Teacher, start: int) -> list[Level]:
    """The levels from an anchor to the clean end, in steps of a twelfth of all timesteps, as many as there are."""
    total = len(teacher.alphas)
    steps = round(SOLVE * (start + 1) / total)
    times = [round((start + 1) * (1 - k / steps)) - 1 for k in range(steps)]
    return [*map(teacher.model.schedule.level, times), Level(0, 1.0, 0.0)]


def solve(predict: Callable[[Tensor, Level], Prediction], z: Tensor, levels: Sequence[Level]) -> list[Tensor]:
    """The latents at each level from the first, by DPM-Solver++ (2M); the last step, to no noise, is of first order."""
    found, before, last = [z], None, levels[0]
    for here, there in pairwise(levels):
        p = predict(found[-1], here)
        better = p if before is None or not there.noise else second_order(p, before, last, here, there)
        found.append(renoise(better, there))
        before, last = p, here
    return found


def predictor(guided: UNet, text: Tensor) -> Callable[[Tensor, Level], Prediction]:
    """What a network of v predicts under a text."""
    return lambda z, level: from_output(z, guided(z, level.t, text).float(), level, "v_prediction")


def tuple_type(shape: tuple[int, ...], tokens: int) -> np.dtype:
    """A stored tuple: x_a, y, which anchor, and the caption's ids."""
    return np.dtype([("x", "<f2", shape), ("y", "<f2", shape), ("anchor", "u1"), ("ids", "<u2", (tokens,))])


@torch.no_grad()
def made(kind: str, number: int, teacher: Teacher, guided: UNet, latents: Sequence[np.ndarray], count: int,
         student: UNet | None = None) -> np.ndarray:
    """One file's tuples of a kind: 4 `count` of "drawn", else `count` at anchors that take turns.

    Args:
        student: whose clean latents are noised again, of "unrolled".
    """
    rng = np.random.default_rng([5, KINDS.index(kind), number])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    shape, found = tuple(latents[0].shape[1:]), []
    for start in range(0, count, AT_ONCE):
        b = min(AT_ONCE, count - start)
        seeds = rng.integers(len(latents) * CHUNK, size=b)
        ids = teacher.captions(seeds, rng)
        text, eps = teacher.embed(ids), gaussian((b, *shape), generator)
        first = 0 if kind == "drawn" else 1 + len(found) % (len(ANCHORS) - 1) if kind == "unrolled" else (
            len(found) % len(ANCHORS))
        if kind == "real":
            x0 = rows(latents, seeds)
        elif kind == "unrolled" and student is not None:
            x0 = unrolled(student, teacher, text, first, generator, shape)
        else:
            x0 = torch.zeros_like(eps)  # as sampling begins
        levels = way(teacher, ANCHORS[first])
        states = solve(predictor(guided, text), noised(x0, eps, levels[0]), levels)
        for k, anchor in enumerate(ANCHORS[first:] if kind == "drawn" else ANCHORS[first:first + 1], start=first):
            part = np.empty(b, tuple_type(shape, ids.shape[1]))
            at = next(i for i, passed in enumerate(levels) if passed.t == anchor)
            part["x"], part["y"] = states[at].cpu().numpy(), states[-1].cpu().numpy()
            part["anchor"], part["ids"] = k, ids.numpy()
            found.append(part)
    return np.concatenate(found)


def unrolled(student: UNet, teacher: Teacher, text: Tensor, steps: int, generator: torch.Generator,
             shape: tuple[int, ...]) -> Tensor:
    """The student's clean latents after some of its steps from noise."""
    x = torch.zeros(len(text), *shape, device=text.device)
    for anchor in ANCHORS[:steps]:
        level = teacher.model.schedule.level(anchor)
        x = clean(student, noised(x, gaussian(tuple(x.shape), generator), level), level, text)
    return x


def tuples(out: Path, kind: str, files: int, teacher: Teacher, guided: UNet, latents: Sequence[np.ndarray],
           count: int = TUPLES, student: UNet | None = None) -> list[np.ndarray]:
    """Memory maps of the tuples of a kind, those that are missing worked out; out/tuples/KIND-NUMBER.npy."""
    folder = out / "tuples"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}-{number:04d}.npy" for number in range(files)]
    for number in tqdm([i for i, path in enumerate(paths) if not path.exists()], desc=f"tuples {kind}", unit="file"):
        save_array(paths[number], made(kind, number, teacher, guided, latents, count, student))
    return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]


# ---- four calls


def student_loss(student: UNet, teacher: Teacher, batch: np.ndarray, pixels: float = PIXELS) -> tuple[Tensor, dict]:
    """The loss above, and by itself the error at each anchor."""
    x, y = (torch.from_numpy(batch[name].astype(np.float32)).to(run.device()) for name in ("x", "y"))
    which = torch.from_numpy(batch["anchor"].astype(np.int64))
    level = teacher.level(torch.tensor(ANCHORS)[which].to(x.device))
    g = clean(student, x, level, teacher.embed(torch.from_numpy(batch["ids"].astype(np.int64))))
    errors = (g - y).square().mean(dim=(1, 2, 3))
    loss = ((errors + KAPPA**2).sqrt() - KAPPA).mean()
    told = {f"mse_{anchor}": errors[which == k].mean().item() for k, anchor in enumerate(ANCHORS) if (which == k).any()}
    if pixels:
        decode = teacher.model.vae.decode
        with torch.no_grad():
            wanted = decode(y[:PICTURES])
        loss = loss + pixels * (decode(g[:PICTURES]) - wanted).abs().mean()
    return loss, told


def train_student(out: Path, name: str, start: UNet, teacher: Teacher, stored: Sequence[np.ndarray], samples: int,
                  batch_size: int = 32, seed: int = 0) -> UNet:
    """Train on stored tuples from the weights of `start`; out/NAME.safetensors."""
    student = teacher.copy()
    student.load_state_dict(start.state_dict())
    sizes = np.array([len(part) for part in stored])

    def loss(rng: np.random.Generator, generator: torch.Generator, done: float) -> tuple[Tensor, dict[str, float]]:
        part = stored[int(rng.choice(len(stored), p=sizes / sizes.sum()))]  # one file a batch: read in one go
        return student_loss(student, teacher, part[np.sort(rng.integers(len(part), size=batch_size))])

    loop.train(out / f"{name}.safetensors", student, loss, samples, batch_size, peak=1e-4, seed=seed)
    return loop.averaged(out / f"{name}.safetensors", student)
