"""What every phase of the training shares: resumable state without pickles, learning rate, moving averages, a log."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from sage.machine.workers import end_with_parent

SHEET_EVERY = 2400.0  # seconds between sample sheets
MEET_EVERY = 16  # steps that each of several processes goes alone

# (numpy's generator, torch's) -> the loss of a batch drawn from them, and what else is worth a line
Loss = Callable[[np.random.Generator, torch.Generator], tuple[Tensor, dict[str, float]]]


def learning_rate(peak: float, done: int, total: int, warmup: int = 3000, decay: float = 0.35,
                  begun: float = 0) -> float:
    """Linear warm-up, flat, then half a cosine to 1 % of `peak` over the last `decay` of `total` pictures.

    Args:
        begun: pictures done where the optimiser began.
    """
    left = max(total - done, 0) / (decay * total)
    fall = 1.0 if left >= 1 else 0.01 + 0.99 * 0.5 * (1 - torch.cos(torch.tensor(left * torch.pi)).item())
    return peak * min(1.0, (done - begun + 1) / warmup) * fall


class Average:
    """Exponential moving average of a module's parameters, the one that is shipped."""

    def __init__(self, module: nn.Module, rate: float = 0.999):
        self.module, self.rate, self.updates = module, rate, 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        rate = min(self.rate, (1 + self.updates) / (10 + self.updates))
        parameters = self.module.state_dict()
        torch._foreach_lerp_(list(self.shadow.values()), [parameters[k] for k in self.shadow], 1 - rate)


class State:
    """Modules, their averages and one optimiser, saved as one safetensors file that is replaced whole.

    Args:
        modules: by name; those of their parameters that learn belong to `optimiser`.
    """

    def __init__(self, path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer,
                 rate: float = 0.999):
        self.path, self.modules, self.optimiser = path, modules, optimiser
        self.rate = rate
        self.restart_averages()
        self.numbers: dict[str, float] = {}  # anything else that belongs to the weights
        self.done, self.seconds, self._since = 0, 0.0, time.monotonic()

    def restart_averages(self) -> None:
        """Average from the modules' present weights on."""
        self.averages = {name: Average(module, self.rate) for name, module in self.modules.items()}

    def save(self) -> None:
        """Write the file; of several processes the first does."""
        if dist.is_initialized() and dist.get_rank() > 0:
            return
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        tensors: dict[str, Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
            tensors |= {f"average/{name}/{k}": v for k, v in self.averages[name].shadow.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": v for k, v in state.items()}
        updates = {name: average.updates for name, average in self.averages.items()}
        meta = self.numbers | {"done": self.done, "seconds": self.seconds, "updates": updates}
        temporary = self.path.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"state": json.dumps(meta)})
        os.replace(temporary, self.path)

    def load(self) -> bool:
        """Continue from the file, if there is one."""
        if not self.path.exists():
            return False
        with safe_open(self.path, "pt") as file:
            meta = json.loads(file.metadata()["state"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        for name, module in self.modules.items():
            module.load_state_dict({k: tensors[f"{name}/{k}"] for k in module.state_dict()})
            average = self.averages[name]
            average.shadow = {k: tensors[f"average/{name}/{k}"] for k in average.shadow}
            average.updates = meta["updates"][name]
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser/"):
                _, index, field = key.split("/")
                states.setdefault(int(index), {})[field] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": states})
        self.done, self.seconds, self._since = meta["done"], meta["seconds"], time.monotonic()
        self.numbers = {k: v for k, v in meta.items() if k not in ("done", "seconds", "updates")}
        return True

    def load_averages(self) -> dict:
        """Put the averaged weights of the file into the modules: for use, not for going on.

        Returns:
            what was saved beside them: pictures done, seconds, and the numbers given to the state.
        """
        with safe_open(self.path, "pt") as file:
            for name, module in self.modules.items():
                module.load_state_dict({k: file.get_tensor(f"average/{name}/{k}") for k in module.state_dict()})
            return json.loads(file.metadata()["state"])

    @torch.no_grad()
    def meet(self) -> None:
        """Go on from the mean of all processes: of weights, their averages and the optimiser's moments."""
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments = [v for p in parameters for v in self.optimiser.state[p].values() if v.shape == p.shape]
        shadows = [v for average in self.averages.values() for v in average.shadow.values()]
        tensors = [*parameters, *moments, *shadows]
        flat = torch.cat([x.reshape(-1) for x in tensors])
        dist.all_reduce(flat)
        for x, mean in zip(tensors, (flat / dist.get_world_size()).split([x.numel() for x in tensors]), strict=True):
            x.copy_(mean.view_as(x))

    def averaged(self, name: str) -> nn.Module:
        """The module carrying its averaged weights, until `trained` puts the trained ones back."""
        self._trained = {k: v.clone() for k, v in self.modules[name].state_dict().items()}
        self.modules[name].load_state_dict(self.averages[name].shadow)
        return self.modules[name]

    def trained(self, name: str) -> None:
        self.modules[name].load_state_dict(self._trained)


def learn(state: State, loss: Loss, peak: float, samples: int, batch_size: int,
          sheet: Callable[[Path], None] | None = None, warmup: int = 3000, seed: int = 0,
          save_every: float = 180.0) -> None:
    """Train until `samples` were seen: step k draws all that it needs from (seed, k).

    In a process group every process takes its own steps, and they meet every `MEET_EVERY` (local SGD, Stich
    1805.09767): a core each is busy all the time, where two threads of one process wait for each other.

    Args:
        sheet: writes a picture of how far it has come.
        save_every: seconds.
    """
    name, folder = state.path.stem, state.path.parent
    parameters = [p for group in state.optimiser.param_groups for p in group["params"]]
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    bar = tqdm(total=samples, initial=state.done, desc=name, unit="sample", mininterval=10, disable=rank > 0)
    recent: list[dict[str, float]] = []
    alone = 0
    saved = shown = time.monotonic()
    while state.done < samples:
        rng = np.random.default_rng([seed, 2, state.done + rank * batch_size])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        rate = learning_rate(peak, state.done, samples, warmup, begun=state.numbers.get("begun", 0))
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        value, told = loss(rng, generator)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        state.optimiser.step()
        state.optimiser.zero_grad(set_to_none=True)
        for average in state.averages.values():
            average.update()
        state.done += size * batch_size
        recent.append({"loss": value.item(), **told})
        bar.update(size * batch_size)
        if size > 1:
            alone += 1
            if alone < MEET_EVERY and state.done < samples:
                continue
            state.meet()
            alone = 0
            if rank > 0:
                continue
        if time.monotonic() - saved > save_every or state.done >= samples:
            state.save()
            saved = time.monotonic()
            means = {k: float(np.mean([r[k] for r in recent if k in r])) for k in {k: 0 for r in recent for k in r}}
            log(folder / f"{name}.jsonl", done=state.done, seconds=state.seconds, lr=rate, **means)
            bar.set_postfix(loss=f"{means['loss']:.4f}")
            recent.clear()
            if sheet and (saved - shown > SHEET_EVERY or state.done >= samples):
                sheet(folder / f"samples-{name}-{state.done:07d}.png")
                shown = time.monotonic()
    bar.close()


def in_processes(count: int, work: Callable[..., object], *arguments: object) -> None:
    """`work(*arguments)` in `count` processes of one thread each, which `learn` together; if one fails all end."""
    with tempfile.TemporaryDirectory(prefix="sage-training-") as folder:
        torch.multiprocessing.spawn(_member, (count, f"file://{folder}/meeting", work, arguments), nprocs=count)


def _member(rank: int, count: int, meeting: str, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    work(*arguments)
    dist.destroy_process_group()


def log(path: Path, **values: float) -> None:
    """Append one line of JSON."""
    with path.open("a") as file:
        file.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}) + "\n")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where it is faster: on CUDA, and on processors that multiply it themselves."""
    faster = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=faster)
