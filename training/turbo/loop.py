"""The loop of every training here: it goes on where it stopped, and then ends with the same bits."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training import run

# (numpy's generator, torch's, share of the training done) -> the loss of a batch, and what else is worth a line
Loss = Callable[[np.random.Generator, torch.Generator, float], tuple[Tensor, dict[str, float]]]


def train(path: Path, network: nn.Module, loss: Loss, samples: int, batch_size: int, *, peak: float, seed: int = 0,
          save_every: float = 180.0) -> run.State:
    """Train until `samples` were seen, continuing from `path` if it is there.

    Args:
        path: of the checkpoint, .safetensors; beside it the curve, .jsonl.
        network: at the weights that a new training starts from.
    """
    optimiser = torch.optim.AdamW(network.parameters(), peak, betas=(0.9, 0.99), weight_decay=1e-2)
    state = run.State(path, {"network": network}, optimiser)
    state.load()
    network.requires_grad_(True).train()
    bar = tqdm(total=samples, initial=state.done, desc=path.stem, unit="sample", mininterval=10)
    recent: list[dict[str, float]] = []
    saved = time.monotonic()
    while state.done < samples:
        rng = np.random.default_rng([seed, 3, state.done])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for group in optimiser.param_groups:
            group["lr"] = run.learning_rate(peak, state.done, samples)
        value, told = loss(rng, generator, state.done / samples)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.averages["network"].update()
        state.done += batch_size
        recent.append({"loss": value.item(), **told})
        bar.update(batch_size)
        if time.monotonic() - saved > save_every or state.done >= samples:
            state.save()
            saved = time.monotonic()
            means = {k: float(np.mean([r[k] for r in recent if k in r])) for k in {k: 0 for r in recent for k in r}}
            run.log(path.with_suffix(".jsonl"), done=state.done, seconds=state.seconds, lr=group["lr"], **means)
            recent.clear()
    bar.close()
    return state


def averaged(path: Path, network: nn.Module) -> nn.Module:
    """The network with the averaged weights of a checkpoint, frozen."""
    run.State(path, {"network": network}, torch.optim.SGD([torch.zeros(1)])).load_averages()
    return network.eval().requires_grad_(False)
