"""A block of each kind of FLUX.1 at full width beside diffusers': the same weights, in one process, taking turns.

    python -m benchmarks.flux_block [--tokens 1024] [--text 512] [--dtype float32] [--device cpu] [--rounds 9]

Prints how long ours takes as a share of theirs, of each pair of turns, and how far their results are apart.  Nothing
else may run meanwhile.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from sage.machine.allocator import keep_freed_memory
from sage.models.flow.transformer import DoubleBlock, FluxParams, SingleBlock, rotations

Run = Callable[[], Tensor]


def shared(ours: nn.Module, theirs: nn.Module) -> None:
    """Give both the very same weights."""
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(0.5)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    for module in (ours, theirs):
        module.eval().requires_grad_(False)


def blocks(p: FluxParams, tokens: int, text: int, device: str, dtype: torch.dtype) -> Iterator[tuple[str, Run, Run]]:
    """The name of each kind of block, ours and theirs, on the same tokens."""
    side = int(tokens**0.5)
    if side**2 != tokens:
        raise SystemExit(f"{tokens} tokens are no square")
    options = {"device": device, "dtype": dtype}
    image, words, vector = (torch.randn(1, n, p.width, **options) for n in (tokens, text, 1))
    vector = vector[:, 0]
    rotation = rotations(p, side, side).to(device)
    places = torch.stack([torch.zeros(side, side), *torch.meshgrid(torch.arange(side), torch.arange(side),
                                                                   indexing="ij")], dim=-1).reshape(-1, 3)
    ids = torch.cat([torch.zeros(text, 3), places]).to(device)
    turned = FluxPosEmbed(theta=10000, axes_dim=list(p.axes))(ids)
    with torch.device(device):
        double = DoubleBlock(p, "b").to(dtype)
        their_double = FluxTransformerBlock(p.width, p.heads, p.width // p.heads).to(dtype)
        single = SingleBlock(p, "b").to(dtype)
        their_single = FluxSingleTransformerBlock(p.width, p.heads, p.width // p.heads).to(dtype)
    shared(double, their_double)
    shared(single, their_single)
    yield ("double", lambda: torch.cat(double(words, image, vector, rotation), dim=1),
           lambda: torch.cat(their_double(image, words, vector, turned), dim=1))
    # Ours keeps text and picture together from block to block; theirs takes them apart and joins them in each.
    x = torch.cat([words, image], dim=1)
    yield ("single", lambda: single(x, text, vector, rotation),
           lambda: torch.cat(their_single(image, words, vector, turned), dim=1))


def seconds(run: Run, device: str) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def measure(ours: Run, theirs: Run, device: str, rounds: int) -> dict[str, float]:
    """The median of ours / theirs over pairs of turns, its extremes, and the distance of the results."""
    a, b = ours().float(), theirs().float()
    ratios = []
    for i in range(rounds):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        took = {first: seconds(first, device), second: seconds(second, device)}
        ratios.append(took[ours] / took[theirs])
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "apart": ((a - b).norm() / b.norm()).item()}


def main() -> None:
    """Measure and print, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    found = {name: measure(ours, theirs, args.device, args.rounds) for name, ours, theirs in blocks(
        FluxParams(), args.tokens, args.text, args.device, getattr(torch, args.dtype))}
    print(json.dumps({"tokens": args.tokens, "text": args.text, "dtype": args.dtype, "device": args.device,
                      "threads": torch.get_num_threads(), **found}, indent=2))


if __name__ == "__main__":
    main()
