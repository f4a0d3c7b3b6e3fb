"""One measurement in a process of its own, so that its peak of memory is nobody else's.

A short edit is timed step by step.  While it runs, as many bytes are held beside it as the references of 50 steps
would take beyond its own: the peak is that of a whole edit.
"""

import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.cells import BASELINE, GUIDED, OURS, WHOLE, Cell
from benchmarks.speed.models import MODELS, Model
from sage.machine.allocator import keep_freed_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Progress = Callable[[str, int, int], None]


class Host:
    """Resident memory of this process, in bytes; Linux counts from the last `forget`."""

    @staticmethod
    def _status(key: str) -> int | None:
        try:
            return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        except OSError:
            return None

    @classmethod
    def now(cls) -> int:
        return cls._status("VmRSS") or cls.peak()

    @classmethod
    def peak(cls) -> int:
        return cls._status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @staticmethod
    def forget() -> None:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # then the peak is that of the whole process


@dataclass
class Clock:
    """A progress callback that keeps when each step ended, and the most memory by then.

    Attributes:
        began: when a phase was first heard of.
        ended: when each of its steps was done.
        peaks: bytes on the host, the most during each phase.
        at: called with (phase, done, total) once the time is taken.
    """

    device: str
    at: Progress | None = None
    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    last: float = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = self.time()
        # A phase that reports no beginning began where the one before it ended.
        self.began.setdefault(phase, self.last if done else now)
        if done:
            self.ended.setdefault(phase, []).append(now)
        self.last = now
        self.peaks[phase] = max(self.peaks.get(phase, 0), Host.peak())
        Host.forget()
        if self.at:
            self.at(phase, done, total)
            self.last = self.time()
            if not done:
                self.began[phase] = self.last

    def time(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def steps(self, phase: str) -> list[float]:
        """Seconds of each step of a phase."""
        ends = [self.began[phase], *self.ended[phase]]
        return [b - a for a, b in zip(ends, ends[1:], strict=False)]


class Ours:
    """SAGE by its public functions."""

    guided_of_whole = GUIDED

    def __init__(self, model: Model, folder: Path, device: str, dtype: torch.dtype):
        import sage
        keep_freed_memory()
        self.about, self.model = model, sage.load_model(folder, device=device, dtype=dtype)
        self.recommended = sage.method("sage").recommended(self.model)

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.model.unet, "vae": self.model.vae, "text": self.model.text}

    def config(self, size: int, steps: int, guided: int):
        """The model's own settings; with random weights weaker guidance, lest numbers overflow."""
        config = self.recommended.but(steps=steps, guided_steps=guided, size=size, retries=0)
        return config if self.about.unet is None else config.but(guidance_scale=1.5, reconstruction_scale=1e-3)

    def invert(self, batch: int, size: int, steps: int) -> Any:
        """An inversion that records at each of its steps."""
        import sage
        from sage.editing import invert_batch
        picture, config = self.about.picture(size), self.config(size, steps, steps)
        if batch == 1:
            return sage.invert(self.model, picture, self.about.source, config)
        return invert_batch(self.model, [picture] * batch, [self._plan(config)] * batch, config)

    def edit(self, batch: int, size: int, steps: int, guided: int, progress: Progress) -> Any:
        import sage
        from sage.editing import edit_batch
        picture, config = self.about.picture(size), self.config(size, steps, guided)
        if batch == 1:
            return sage.edit(self.model, picture, self.about.source, self.about.target, config, progress)
        return edit_batch(self.model, [picture] * batch, [self._plan(config)] * batch, config, progress)

    def text(self) -> None:
        self.model.embed([self._plan(self.recommended).target])

    def _plan(self, config):
        import sage
        return sage.check_prompts(self.model, self.about.source, self.about.target, config)


class Baseline:
    """The released way, one picture at a time."""

    guided_of_whole = WHOLE

    def __init__(self, model: Model, folder: Path, device: str, dtype: torch.dtype):
        from benchmarks.speed.baseline import Released
        self.about, self.model = model, Released.load(folder, device, dtype, model.prediction)

    def modules(self) -> dict[str, nn.Module]:
        return {"unet": self.model.unet, "vae": self.model.vae, "text": self.model.text}

    def invert(self, batch: int, size: int, steps: int, progress: Progress = lambda *step: None) -> Any:
        from benchmarks.speed.baseline import Settings
        a = self.about
        settings = Settings(steps, a.self_level, a.cross_level, a.changed)
        return self.model.invert(a.picture(size), a.source, a.target, settings, progress)

    def edit(self, batch: int, size: int, steps: int, guided: int, progress: Progress) -> Any:
        inversion = self.invert(batch, size, steps, progress)
        return inversion, self.model.sample(inversion, self.about.target, progress)

    def text(self) -> None:
        self.model.embed(self.about.target)


IMPLEMENTATIONS = {OURS: Ours, BASELINE: Baseline}


def storages(thing: Any, seen: set[int] | None = None) -> Iterator[torch.UntypedStorage]:
    """The memory of every tensor that can be reached from `thing`, each once; networks are left out."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (nn.Module, type, str, bytes)):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        storage = thing.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield storage
        return
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif isinstance(thing, (list, tuple, set)):
        parts = list(thing)
    else:
        parts = [*getattr(thing, "__dict__", {}).values(),
                 *(getattr(thing, slot, None) for slot in getattr(type(thing), "__slots__", ()))]
    for part in parts:
        yield from storages(part, seen)


def bytes_of(thing: Any) -> int:
    return sum(s.nbytes() for s in storages(thing))


def held(thing: Any, times: float) -> list[Tensor]:
    """Memory of the same size as the tensors of `thing`, `times` over, on their devices, and touched."""
    parts = list(storages(thing))
    return [torch.empty(round(part.nbytes() * times), dtype=torch.uint8, device=part.device).fill_(1)
            for part in parts if part.nbytes()] if times > 0 else []


def weights(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Bytes of each network."""
    return {name: bytes_of([*module.parameters(), *module.buffers()]) for name, module in modules.items()}


def measure(cell: Cell, implementation: str, cache: Path) -> dict[str, Any]:
    """Load, edit, and say how long each part took and what was held."""
    about, dtype = MODELS[cell.model], DTYPES[cell.dtype]
    folder = about.folder(cache)
    clock = Clock(cell.device)
    if implementation == OURS:
        import sage.editing
        import sage.models.loading  # noqa: F401  the first use imports them
    else:
        import benchmarks.speed.baseline  # noqa: F401
    interpreter, start = Host.now(), clock.time()
    Host.forget()
    runs = IMPLEMENTATIONS[implementation](about, folder, cell.device, dtype)
    row = {"load": clock.time() - start, "threads": torch.get_num_threads(), "interpreter": interpreter,
           "weights": weights(runs.modules()), "loading_peak": Host.peak()}

    warm = runs.invert(cell.batch, cell.size, 2)
    row["reference_bytes_a_step"] = bytes_of(warm) // 2
    if cell.whole:
        del warm
        runs.edit(cell.batch, cell.size, 2, 2, lambda *step: None)
        guided, steps = runs.guided_of_whole, WHOLE
    else:
        guided, steps = cell.guided, cell.guided + (cell.unguided if implementation == OURS else 0)
        ballast: list[Tensor] = []

        def hold(phase: str, done: int, total: int) -> None:
            """Those of two steps are in `warm`."""
            if phase == "invert" and done == total:
                ballast.extend(held(warm, (runs.guided_of_whole - guided) / 2 - 1))

        clock.at = hold
    Host.forget()
    if cell.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before, worked = clock.time(), time.process_time()
    result = runs.edit(cell.batch, cell.size, steps, guided, clock)
    end = clock.time()
    row["busy"] = (time.process_time() - worked) / (end - before) / row["threads"]
    clock.peaks["end"] = Host.peak()
    back = clock.steps("edit")
    row |= {
        "steps": steps, "whole": end - before if cell.whole else None,
        "encode": clock.steps("encode")[-1], "invert": clock.steps("invert")[0 if cell.whole else 1:],
        "guided": back[1:guided], "unguided": back[guided + (len(back) - guided > 1):], "first": back[0],
        "decode": clock.steps("decode")[-1], "finish": end - clock.last, "peaks": clock.peaks,
        "peak": max(clock.peaks.values()), "text": _text(runs, clock)}
    if cell.device == "cuda":
        row |= {"device_peak": torch.cuda.max_memory_allocated(), "device_reserved": torch.cuda.max_memory_reserved()}
    del result
    return row


def _text(runs: Any, clock: Clock) -> float:
    seconds = []
    for _ in range(3):
        start = clock.time()
        runs.text()
        seconds.append(clock.time() - start)
    return sorted(seconds)[1]
