"""What every training here shares: it goes on where it stopped, and then ends with the same bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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
    run.learn(state, lambda rng, generator: loss(rng, generator, state.done / samples), peak, samples, batch_size,
              seed=seed, save_every=save_every)
    return state


def averaged(path: Path, network: nn.Module) -> nn.Module:
    """The network with the averaged weights of a checkpoint, frozen."""
    run.State(path, {"network": network}, torch.optim.SGD([torch.zeros(1)])).load_averages()
    return network.eval().requires_grad_(False)
