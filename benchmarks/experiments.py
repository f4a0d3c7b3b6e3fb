"""Every experiment on the still-life benchmark, and the tables and figures of docs/experiments.md.

Each edit is asked for twice, in a prompt that names everything and in a short one: a table of both, and one of each.
A configuration that several experiments name is run once.  Killed at any moment and started again, it goes on; the same
number of processes or another gives the same tables.
"""

import argparse
import json
import os
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
import torch

import sage
from sage.bench.cases import WORDINGS, read_benchmark
from sage.bench.configs import configuration
from sage.bench.encoder import load_encoder
from sage.bench.engine import ModelEngine
from sage.bench.experiments import BOUNDS, EXPERIMENTS, FRONTIERS, Experiment, experiment, sweep
from sage.bench.files import write_text
from sage.bench.metrics import METRICS
from sage.bench.runner import RUN, read_manifests
from sage.bench.runner import run as run_configurations
from sage.bench.scoring import Line
from sage.bench.stilllife import QUICK, write_stilllife
from sage.bench.tables import Results
from sage.display.progress import Progress
from sage.files import written_whole
from sage.machine.workers import end_with_parent
from sage.stilllife.edits import KINDS

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402  the drawing without a screen is chosen before

EDITS = QUICK // len(WORDINGS)
SHOWN = ("outside_psnr", "inside_psnr", "asked", "kept", "structure", "prompt_whole")
COMPARED = ("outside_psnr", "inside_psnr", "asked", "kept")
BY_KEY = {m.key: m for m in METRICS}
KEPT = ("outside_psnr", "kept")  # the second where the edit is everywhere, and there is no outside
CHANGED = ("asked", "inside_psnr")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    add = parser.add_argument
    add("--only", metavar="NAME", nargs="+", default=[
        e.name for e in EXPERIMENTS.values() if not e.timed and e.baseline in (*BOUNDS, *e.configurations)],
        help="some experiments, in this order; not those of regions and of seconds, which need other cases and the "
             "machine to themselves")
    add("--run", type=Path, default=Path("runs/experiments"), help="where the runs live [runs/experiments]")
    add("--out", type=Path, default=Path("benchmarks/results/stilllife"), help="where tables and figures are written")
    add("--model", default="stilllife", help="a name or a folder, such as what `make train ARGS=--noisy-captions` "
        "writes; a run is of one model [stilllife]")
    add("--each", metavar="N", type=int, default=EDITS, help=f"edits of each kind, each in two wordings [{EDITS}]")
    add("--processes", metavar="N", type=int, default=os.cpu_count(), help="at work side by side, a thread each")
    args = parser.parse_args()
    experiments = [experiment(name) for name in args.only]
    benchmark = write_stilllife(args.run / "benchmark", args.each, workers=args.processes, wordings=WORDINGS)
    with get_context("spawn").Pool(args.processes, end_with_parent) as pool:
        jobs = [(args.run, args.model, args.only, i, args.processes) for i in range(1, args.processes + 1)]
        pool.starmap(work, jobs, chunksize=1)
    lines = read_manifests(args.run)
    for e in experiments:
        write(e, [lines[name, case.name] for name in names([e]) for case in benchmark.cases], args.out, args.run,
              benchmark.wordings)


def names(experiments: Sequence[Experiment]) -> list[str]:
    """Their configurations, each once, after the bounds."""
    return list(dict.fromkeys([*BOUNDS, *(name for e in experiments for name in e.configurations)]))


def work(run: Path, model: str, only: Sequence[str], part: int, parts: int) -> None:
    """One process's part of the runs."""
    torch.set_num_threads(1)
    benchmark = read_benchmark(run / "benchmark")
    engine = ModelEngine(sage.load_model(model, device="cpu"))
    with Progress(part == 1, unit="case", resumes=True) as bar:
        run_configurations(benchmark, [configuration(name) for name in names([experiment(n) for n in only])], engine,
                           run, batch=10, shard=(part, parts), extractors=load_encoder().extractors(), progress=bar)


def write(e: Experiment, lines: Sequence[Line], out: Path, run: Path,
          wordings: Mapping[str, Collection[str]]) -> None:
    """The tables of one experiment, of all its cases and of each wording's, with its figures where it has any."""
    results = Results(lines)
    pictures = {"frontier": frontier, "figure-9": grid}.get(e.name, lambda *_: [])(results, out)
    text = [f"# {e.title}\n", f"{e.question}\n", facts(results, run), *(f"![{p.stem}]({p.name})\n" for p in pictures),
            "Mean and 95 % interval over the cases.\n", table(results), comparison(results, e.baseline)]
    for wording, cases in wordings.items():
        own = results.of(cases)
        text += [f"## {wording.capitalize()} prompts\n", table(own), comparison(own, e.baseline)]
    write_text(out / f"{e.name}.md", "\n".join(text))
    print(out / f"{e.name}.md")


def facts(results: Results, run: Path) -> str:
    """When and on what it was measured."""
    engine = json.loads((run / RUN).read_text())["engine"]
    versions = ", ".join(f"{name} {version}" for name, version in engine["versions"].items())
    count = len(next(iter(results.by_case.values())))
    return (f"{count} cases, {count // len(results.kinds)} of each kind, half of them in full and half in short "
            f"prompts; {date.today().isoformat()}; {machine()}, {engine['device']} {engine['dtype']}; {versions}; "
            f"weights {engine['weights']}. Attributes read by the encoder: {load_encoder().describe()}.\n")


def machine() -> str:
    """The processor, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def table(results: Results) -> str:
    """A row for each configuration, a column for each figure that any has."""
    shown = [BY_KEY[key] for key in SHOWN if BY_KEY[key] in results.metrics]
    rows = [["configuration", *(m.title for m in shown), "failed"], ["---"] * (len(shown) + 2)]
    for name in results.configurations:
        means = [results.mean(name, m.key) for m in shown]
        cells = ["" if v is None else v.text(m) for v, m in zip(means, shown, strict=True)]
        rows.append([f"`{name}`", *cells, str(len(results.failed(name)))])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def comparison(results: Results, baseline: str) -> str:
    """Differences from the baseline over the same cases, with their intervals and the share of cases won."""
    shown = [BY_KEY[key] for key in COMPARED if BY_KEY[key] in results.metrics]
    rows = [[f"minus `{baseline}`", *(m.title for m in shown)], ["---"] * (len(shown) + 1)]
    for name in results.configurations:
        found = [results.compare(name, baseline, m) for m in shown]
        if name != baseline and not configuration(name).is_bound:
            rows.append([f"`{name}`", *("" if c is None else f"{c.difference.text(m, signed=True)}, {c.wins:.0%}"
                                        for c, m in zip(found, shown, strict=True))])
    return "Paired differences, 95 % interval, share of cases won:\n\n" + "".join(
        f"| {' | '.join(row)} |\n" for row in rows)


# ---- figures


def frontier(results: Results, out: Path) -> list[Path]:
    """What was kept against what was changed, a curve for each way of keeping; overall, and for each kind of edit."""
    paths = []
    for kind in (None, *results.kinds):
        name = "overall" if kind is None else KINDS[kind]
        shown = [key for key in CHANGED if BY_KEY[key] in results.metrics]
        figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), 5), layout="constrained", squeeze=False)
        for axis, changed in zip(axes[0], shown, strict=True):
            _frontier(axis, results, changed, kind)
        if axes[0, 0].lines:
            axes[0, 0].legend(fontsize=8)
        figure.suptitle(f"{name}: the guidance scale w grows along each curve, from its dot")
        paths.append(out / f"frontier-{name.replace(' ', '-')}.png")
        _save(figure, paths[-1])
    return paths


def _frontier(axis, results: Results, changed: str, kind: int | None) -> None:
    keys = next((key for key in KEPT if results.mean("plain", key, kind)), KEPT[-1]), changed
    for number, (label, base) in enumerate(FRONTIERS.items()):
        means = [[results.mean(name, key, kind) for name in sweep(base)] for key in keys]
        if any(v is None for row in means for v in row):
            continue
        x, y = ([v.mean * BY_KEY[key].scale for v in row] for row, key in zip(means, keys, strict=True))
        colour = f"C{number}" if number < 10 else "black"
        axis.plot(x, y, "-", color=colour, label=label, linewidth=1.5)
        axis.plot(x[0], y[0], "o", color=colour, markersize=5)
        if kind is None:
            spans = [[np.abs([v.low - v.mean, v.high - v.mean]) * BY_KEY[key].scale for v in row]
                     for row, key in zip(means, keys, strict=True)]
            axis.errorbar(x, y, xerr=np.transpose(spans[0]), yerr=np.transpose(spans[1]), fmt="none", ecolor=colour,
                          alpha=0.25, linewidth=1)
    for bound, mark in (("plain", "k*"), ("autoencoder", "k^")):
        place = [results.mean(bound, key, kind) for key in keys]
        if all(place):
            axis.plot(*(v.mean * BY_KEY[key].scale for v, key in zip(place, keys, strict=True)), mark,
                      markersize=9, label="plain, w = 1" if bound == "plain" else "true edit through the autoencoder")
    axis.set_xlabel(f"kept: {BY_KEY[keys[0]].title}")
    axis.set_ylabel(f"changed: {BY_KEY[changed].title}")
    axis.grid(alpha=0.3)


def grid(results: Results, out: Path) -> list[Path]:
    """Fig. 9: the two guidance scales against each other."""
    cells = {tuple(float(part.split("=")[1]) for part in name.split(":")[1].split(",")[:2]): name
             for name in EXPERIMENTS["figure-9"].configurations}
    ws, scales = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    shown = [key for key in ("outside_psnr", "inside_psnr", "asked", "kept") if BY_KEY[key] in results.metrics]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 4), layout="constrained")
    for axis, key in zip(axes, shown, strict=True):
        metric = BY_KEY[key]
        values = np.array([[results.mean(cells[w, s], key).mean * metric.scale for s in scales] for w in ws])
        axis.imshow(values, cmap="viridis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = value < values.mean()
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color="w" if dark else "k", fontsize=8)
        axis.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
        axis.set_yticks(range(len(ws)), [f"{w:g}" for w in ws])
        axis.set_xlabel("self-attention guidance (reconstruction_scale)")
        axis.set_title(metric.title, fontsize=10)
    axes[0].set_ylabel("guidance scale w")
    _save(figure, path := out / "figure-9.png")
    return [path]


def _save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
