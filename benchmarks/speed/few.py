"""A student of few steps beside SAGE in 20: seconds of an inversion and of an edit, network calls, memory.

    python -m benchmarks.speed --only few-stilllife

Each method is a process of its own, and rounds take turns.  The weights are random, of the shape that the student has;
SAGE edits with what it would be a student of.  The model is loaded before, and one edit made: nothing is timed twice.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed.models import MODELS

if TYPE_CHECKING:
    from sage.models.sd.inversion import InversionNet
    from sage.models.sd.unet import UNet

COMPILED = " compiled"  # by OpenVINO, where it is installed (sage.models.compiled)
METHODS = ("turbo", "turbo" + COMPILED, "turbo-ddpm", "turbo-ddpm" + COMPILED, "sage")
SAGE = {"steps": 20, "guided_steps": 17, "retries": 0}
WANTED = {"invert": 0.5, "edit": 0.25}  # seconds of `turbo` by the miniature, on two cores


@dataclass(frozen=True)
class Few:
    """What is measured.

    Attributes:
        warm: edits before those that are timed.
        timed: inversions, each with an edit, in a round.
        corrections: of the last step's noise by `turbo`, as the bundled student has them.
        asked: it is measured only where its name is asked for.
    """

    student: str
    teacher: str
    size: int
    dtype: str
    warm: int = 1
    timed: int = 5
    rounds: int = 3
    needs: float = 2
    corrections: int = 0
    asked: bool = False

    @property
    def name(self) -> str:
        return f"few-{self.student}-{self.size}-{self.dtype}"


# In bfloat16 a CPU without instructions for it convolves a hundred times slower.
CASES = (Few("stilllife-turbo", "stilllife", 128, "float32", corrections=2),
         Few("sdxl-turbo", "sdxl-turbo", 512, "float32", warm=0, timed=1, rounds=1, needs=18, asked=True))


def measure(case: Few, name: str, cache: Path) -> dict[str, Any]:
    """Rows of seconds by one method, and what one inversion and one edit ask of the network."""
    import torch

    import sage
    from benchmarks.speed.measure import DTYPES, Host, bytes_of
    from sage.bench.engine import Counted
    from sage.machine.allocator import keep_freed_memory
    from sage.models.compiled import compile_networks
    keep_freed_memory()
    about = MODELS[case.teacher if name == "sage" else case.student]
    interpreter = Host.now()
    loaded = sage.load_model(about.folder(cache), device="cpu", dtype=DTYPES[case.dtype])
    if about.lent:
        loaded.inversion = lent(loaded.unet)
    model: Any = Counted(loaded)
    graphs = compile_networks(loaded) if name.endswith(COMPILED) else None
    name = name.removesuffix(COMPILED)
    method, picture = sage.method(name), about.picture(case.size)
    settings = method.recommended(model).but(size=case.size, **(SAGE if name == "sage" else {}))
    if name == "sage" and about.unet is not None:  # weaker, lest numbers of random weights overflow
        settings = settings.but(guidance_scale=1.5, reconstruction_scale=1e-3)
    if name == "turbo":
        settings = settings.but(corrections=case.corrections)
    found: dict[str, Any] = {"invert": [], "edit": [], "threads": torch.get_num_threads(),
                             "steps": settings.steps}  # type: ignore[attr-defined]
    Host.forget()
    for number in range(case.warm + case.timed):
        start, counted = time.perf_counter(), model.counted
        path = sage.invert(model, picture, about.source, settings)
        middle, between = time.perf_counter(), model.counted
        sage.edit(model, picture, about.source, about.target, settings, trajectory=path)
        end, after = time.perf_counter(), model.counted
        found |= {"calls": [int(x) for x in (between - counted)[:1]] + [int(x) for x in (after - between)[:1]],
                  "gradients": int((after - counted)[1])}
        if graphs is not None and not graphs.wait():
            raise RuntimeError("a network could not be compiled")
        if number >= case.warm:
            found["invert"].append(middle - start)
            found["edit"].append(end - middle)
    held = [p for network in model.networks() for p in (*network.parameters(), *network.buffers())]
    return found | {"peak": Host.peak(), "interpreter": interpreter, "weights": bytes_of(held)}


def lent(unet: "UNet") -> "InversionNet":
    """An inversion network that shares its weights with a generator, but for its first and last layer."""
    import torch

    from sage.models.sd.inversion import InversionNet, inversion_params
    with torch.device("meta"):
        network = InversionNet(inversion_params(unet.params))
    given = unet.state_dict()
    network.load_state_dict({name: given[name] if given[name].shape == own.shape else 0.01 * torch.randn(own.shape)
                             for name, own in network.state_dict().items()}, assign=True)
    return network.eval().requires_grad_(False)
