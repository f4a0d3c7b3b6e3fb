"""A block of each kind of FLUX.1 at full width: beside diffusers', and what EEdit's cache makes of an edit.

    python -m benchmarks.flux_block [--tokens 1024] [--text 512] [--dtype float32] [--device cpu] [--rounds 5]

Ours and theirs have the same weights and take turns in one process: told are ours as a share of theirs, of each pair
of turns, and how far their results are apart.  An edit by EEdit is put together from its blocks: the medians of whole
passes and of passes between, which take turns too, times how many of each the 19 double and 38 single blocks of FLUX.1
dev have in it, dense, with either saving, and with both.  What is beside the blocks is left out of all.

How long it will take is said first; with --minutes, rounds are left out until it fits.  Nothing else may run meanwhile.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from sage.bench.files import write_text
from sage.bench.machine import machine, today, versions
from sage.display.progress import Progress
from sage.guidance.caching import Cache
from sage.machine.allocator import keep_freed_memory
from sage.methods.eedit import EEdit, Settings
from sage.models.flow.transformer import DoubleBlock, FluxParams, FluxTransformer, SingleBlock, rotations
from sage.sampling.levels import Level

Run = Callable[[], Tensor]
WANTED = 2.4  # times fewer seconds an edit than dense
NARROW = FluxParams(width=96, heads=3, mlp_width=384, context_width=64, pooled_width=32, axes=(4, 14, 14))
BEFORE = 2  # runs of each thing before the first round counts, to warm up and to tell how long a round takes
WAYS = {"dense": {"inv_skip": 1, "use_cache": False}, "skipping alone": {"use_cache": False},
        "holding alone": {"inv_skip": 1}, "both": {}, "both, as published": EEdit.presets["published"]}


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
def measure(ours: Run, theirs: Run, device: str, rounds: int, done: Callable[[], None] = lambda: None) -> (
        dict[str, float]):
    """The median of ours / theirs over pairs of turns, its extremes, and the distance of the results."""
    a, b = ours().float(), theirs().float()
    ratios = []
    for i in range(rounds):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        took = {first: seconds(first, device), second: seconds(second, device)}
        ratios.append(took[ours] / took[theirs])
        done()
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
            "apart": ((a - b).norm() / b.norm()).item()}


# ---- an edit


@dataclass(frozen=True)
class Shallow:
    """A transformer of one block of each kind, as far as a cache asks a model."""

    network: FluxTransformer

    def blocks(self) -> tuple:
        return self.network.blocks()

    def sites(self) -> tuple:
        return self.network.sites()

    def features(self) -> tuple:
        return ()


def passes(p: FluxParams, tokens: int, text: int, device: str, dtype: torch.dtype) -> dict[tuple[str, str], Run]:
    """A pass of each kind of block, computed whole, and between whole ones."""
    side = int(tokens**0.5)
    with torch.device("meta"):
        network = FluxTransformer(replace(p, depth=1, depth_single=1)).to(dtype)
    network.to_empty(device=device).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.normal_(0, 0.02)
    options = {"device": device, "dtype": dtype}
    image, words, vector = (torch.randn(1, n, p.width, **options) for n in (tokens, text, 1))
    x, rotation = torch.cat([words, image], dim=1), rotations(p, side, side).to(device)
    [double], [single] = network.transformer_blocks, network.single_transformer_blocks
    runs = {"double": lambda: torch.cat(double(words, image, vector[:, 0], rotation), dim=1),
            "single": lambda: single(x, text, vector[:, 0], rotation)}
    levels = [Level(t, 1 - t, t) for t in (0.9, 0.8, 0.1)]
    edges = tuple(zip(levels, levels[1:], strict=False))
    # Of each kind its own: a pass through one block holds nothing of the other.
    caches = {kind: Cache(Shallow(network), Settings(), edges, [True, False], None, (p.patch * side,) * 2, text)
              for kind in runs}

    def held(kind: str, step: int) -> Run:
        def cached() -> Tensor:
            with caches[kind].around(levels[step], ["target"]):
                return runs[kind]()
        return cached

    return {(kind, how): held(kind, step) for step, how in enumerate(("whole", "between")) for kind in runs}


def counts(settings: Settings) -> dict[str, int]:
    """How many whole passes, and passes between whole ones, an edit by EEdit has of each block."""
    ups = settings.taken - (settings.grid == "released")  # whose inversion is a step shorter
    asked = [i for i in range(ups) if i % settings.stride == 0 or i == ups - 1]
    by_steps = settings.whole_by == "steps"
    whole = [settings.whole(i, settings.steps) if by_steps else settings.whole(n, len(asked))
             for n, i in enumerate(asked)]
    whole += [settings.whole(i, settings.taken) for i in range(settings.taken)]
    return {"whole": sum(whole), "between": len(whole) - sum(whole)}


@torch.no_grad()
def edits(runs: dict[tuple[str, str], Run], p: FluxParams, device: str, rounds: int,
          done: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
    """Seconds of an edit by each way, in the blocks alone, and how many times fewer they are than dense."""
    took: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for run in runs.values():
        run()
    for i in range(rounds):
        for kind in ("double", "single")[::-1 if i % 2 else 1]:
            for how in ("whole", "between"):  # in this order: between is what it is after a whole one
                took[kind, how].append(seconds(runs[kind, how], device))
        done()
    once = {how: p.depth * statistics.median(took["double", how]) + p.depth_single * statistics.median(
        took["single", how]) for how in ("whole", "between")}
    found = {}
    for name, changes in WAYS.items():
        of = counts(EEdit().defaults(None).but(cache="eedit").but(**changes))  # type: ignore[arg-type]  # of no model
        found[name] = {**of, "seconds": sum(number * once[how] for how, number in of.items())}
        found[name]["times fewer"] = found["dense"]["seconds"] / found[name]["seconds"]
    return found


# ---- the table


def report(found: dict) -> str:
    """What was measured, in Markdown."""
    lines = ["# FLUX.1's blocks\n",
             f"At full width, random weights, {found['tokens']} + {found['text']} tokens, {found['dtype']}; {today()}; "
             f"{machine(found['device'])}; {versions()}.\n",
             "| block | ours / diffusers' | least to most | apart |", "|---|---|---|---|"]
    lines += [f"| {name} | {of['ratio']:.3f} | {of['least']:.3f} to {of['most']:.3f} | {of['apart']:.1g} |"
              for name, of in ((name, found[name]) for name in ("double", "single"))]
    lines += ["\nAn edit by EEdit, 28 steps each way, in the blocks of FLUX.1 dev alone:\n",
              "| | whole passes | passes between | seconds | times fewer than dense | wanted |",
              "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {of['whole']} | {of['between']} | {of['seconds']:.0f} | {of['times fewer']:.2f} | "
              f"{f'{WANTED:g}' if name == 'both' else ''} |" for name, of in found["edit"].items()]
    return "\n".join([*lines, ""])


def fitted(rounds: int, minutes: float, once: float, begun: float) -> int:
    """As many of `rounds` as fit into a time, at least one.

    Args:
        once: seconds of a round.
        begun: seconds that have gone by.
    """
    return max(1, min(rounds, int((60 * minutes - begun) / once)))


def main() -> None:
    """Measure and print, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=10.0, help="at the most; fewer rounds then [10]")
    parser.add_argument("--narrow", action="store_true", help="blocks of a width of 96 instead, in seconds: that all "
                        "of this runs")
    parser.add_argument("--out", type=Path, help="also write a table, in Markdown")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    began, p = time.perf_counter(), NARROW if args.narrow else FluxParams()
    given = p, args.tokens, args.text, args.device, getattr(torch, args.dtype)
    compared, cached = list(blocks(*given)), passes(*given)
    everything = [run for _, ours, theirs in compared for run in (ours, theirs)] + [*cached.values()]
    with torch.no_grad():
        once = [sum(seconds(run, args.device) for run in everything) for _ in range(BEFORE)][-1]
    rounds = fitted(args.rounds, args.minutes, once, time.perf_counter() - began)
    print(f"about {rounds * once / 60:.1f} minutes for {rounds} rounds", file=sys.stderr, flush=True)
    total, parts = rounds * (len(compared) + 1), iter(range(1, 10**6))
    with Progress(sys.stderr.isatty(), unit="round") as bar:
        def done() -> None:
            bar("measuring", next(parts), total)
        found = {name: measure(ours, theirs, args.device, rounds, done) for name, ours, theirs in compared}
        edit = edits(cached, p, args.device, rounds, done)
    found = {"tokens": args.tokens, "text": args.text, "dtype": args.dtype, "device": args.device, "rounds": rounds,
             "threads": torch.get_num_threads(), **found, "edit": edit}
    print(json.dumps(found, indent=2))
    if args.out:
        write_text(args.out, report(found))


if __name__ == "__main__":
    main()
