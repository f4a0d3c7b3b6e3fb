"""Rows -> one page: the table, the targets, where the time goes, memory, and how it was measured."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.cells import BASELINE, GUIDED, OURS, UNASKED, WHOLE, Cell
from benchmarks.speed.few import COMPILED, WANTED

GIB = 2**30
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
SHARED = 0.6  # of the time of its threads, below which a process did not have the machine to itself
PACKAGES = ("torch", "diffusers", "transformers", "numpy")
STEPS_OF = {OURS: {"guided": GUIDED, "unguided": WHOLE - GUIDED}, BASELINE: {"guided": WHOLE, "unguided": 0}}

HEAD = ("model, side, device", "numbers", "pictures", "", "load s", "encode, decode s", "inversion step s",
        "guided step s", "unguided step s", "edit s", "faster", "times the floor", "peak GiB", "beyond GiB",
        "of the baseline's", "device GiB")

NOTES = f"""\
- ours: SAGE through its public functions. baseline: the released algorithm's way of computing, written by us over \
diffusers' networks: maps of every attention layer materialised, references on the host, source and target pass one \
after the other, a gradient at all {WHOLE} steps, weights not frozen, decoding with gradients on. It works at one \
picture at a time: for 8 pictures it is taken to need 8 times as long.
- edit s: marked "measured", whole edits of {WHOLE} steps were timed. Else it is composed of medians: encode and both \
texts, {WHOLE} inversion steps, {GUIDED} guided and {WHOLE - GUIDED} unguided steps, decode; the baseline has {WHOLE} \
guided steps. The first step of a kind is left out, where there are more. For several pictures it is the time of all.
- Numbers are medians; in brackets the least and the most, of steps over all rounds, of edits over the rounds.
- peak: most memory resident in a process of its own, from after loading to the end of the edit; while a short edit \
ran, the references of {WHOLE} steps were held, in ours those of the {GUIDED} guided ones. beyond: less the bytes of \
the parameters, and less what was resident when the libraries were imported and nothing was loaded. of the \
baseline's: share of its memory beyond; on a GPU, of its peak on the device.
- faster, of the baseline's: against the baseline of this run at the same model and side, on a CPU in float32.
- times the floor: the edit's seconds over those that the machine needs for the operations and bytes that cannot be \
spared, at the best rates seen by torch in this run (below).
- SD sizes have random weights: speed and memory do not depend on them. The miniature's steps are those of its \
recommended settings, with {WHOLE} steps and no retries."""


def this_machine() -> dict[str, Any]:
    """The kind of machine and the versions; no names, no paths."""
    from sage import __version__
    from sage.bench.machine import machine
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line.split() for line in info if line.startswith("flags")), [])
    found = {"cpu": machine(), "instructions": [f for f in FLAGS if f in flags],
             "python": platform.python_version(), "sage": __version__}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_GiB"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1)
    import torch
    if torch.cuda.is_available():
        found["gpu"] = machine("cuda")
    return found | {name: metadata.version(name) for name in PACKAGES}


def digits(x: float) -> str:
    """Three digits, of hundreds and more all."""
    return f"{x:.0f}" if x >= 99.95 else f"{x:.3g}" if x >= 1 else f"{x:.2g}"


def spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    text = digits(median(values))
    return f"{text} ({digits(min(values))} to {digits(max(values))})" if len(values) > 1 else text


def gib(count: float | None) -> str:
    return "" if count is None else f"{count / GIB:.2f}"


def composed(row: Mapping[str, Any], name: str, batch: int) -> float:
    """Seconds of an edit of 50 steps, from one round's medians."""
    if row["whole"] is not None:
        return row["whole"]
    steps = sum(count * median(row[kind]) for kind, count in STEPS_OF[name].items() if count)
    return (row["encode"] + row["text"] * (batch if name == OURS else 1) + WHOLE * median(row["invert"]) + steps
            + row["decode"] + row["finish"])


class Summary:
    """The rounds of one cell by one implementation."""

    def __init__(self, cell: Cell, name: str, rows: Sequence[Mapping[str, Any]]):
        self.cell, self.name, self.rows = cell, name, rows
        self.edits = [composed(row, name, cell.batch) for row in rows]
        self.edit = median(self.edits)
        self.peak = max(row["peak"] for row in rows)
        self.weights = sum(rows[0]["weights"].values())
        # A GPU's run has its weights elsewhere.
        self.beyond = None if cell.device == "cuda" else max(
            row["peak"] - row["interpreter"] for row in rows) - self.weights
        self.device_peak = max((row["device_peak"] for row in rows), default=0) if cell.device == "cuda" else None

    def steps(self, kind: str) -> list[float]:
        return [s for row in self.rows for s in row[kind]]

    def line(self, baseline: "Summary | None", floor: float | None) -> list[str]:
        inout = [[row[part] for row in self.rows] for part in ("encode", "decode")]
        mine = self.name == OURS
        return [
            digits(median(row["load"] for row in self.rows)), ", ".join(digits(median(x)) for x in inout),
            spread(self.steps("invert")), spread(self.steps("guided")), spread(self.steps("unguided")),
            spread(self.edits) + (", measured" if self.rows[0]["whole"] is not None else ""),
            f"**{self.cell.batch * baseline.edit / self.edit:.2f}**" if mine and baseline else "",
            f"{self.edit / floor:.2f}" if floor else "", gib(self.peak), gib(self.beyond),
            share(self, baseline) if mine and self.cell.batch == 1 else "", gib(self.device_peak)]


def share(ours: Summary, baseline: Summary | None) -> str:
    if baseline is None:
        return ""
    a, b = ((s.beyond if s.beyond is not None else s.device_peak) for s in (ours, baseline))
    return f"{100 * a / b:.0f} %"


class Page:
    """Everything that was measured, by cell."""

    def __init__(self, results: Mapping[str, Any]):
        self.results, self.rows = results, results["rows"]
        self.cells = [Cell(**values) for values in results["cells"].values()]
        self.machines = {(r["job"]["device"], r["job"]["dtype"]): r["result"] for r in self.of("floor")}
        self.counts = {Cell(**r["job"]["cell"]).name: r["result"] for r in self.of("count")}
        self.summaries: dict[tuple[str, str], Summary] = {}
        for cell in self.cells:
            for name in (OURS, BASELINE):
                rows = [r["result"] for r in self.of("edit") if Cell(**r["job"]["cell"]).name == cell.name
                        and r["job"]["implementation"] == name]
                if rows:
                    self.summaries[cell.name, name] = Summary(cell, name, rows)

    def of(self, kind: str, failed: bool = False) -> list[Mapping[str, Any]]:
        return [r for r in self.rows if r["job"]["kind"] == kind and ("failed" in r["result"]) == failed]

    def baseline(self, cell: Cell) -> Summary | None:
        dtype = "float32" if cell.device == "cpu" else cell.dtype
        return self.summaries.get((f"{cell.model}-{cell.size}-{cell.device}-{dtype}-b1", BASELINE))

    def floor(self, cell: Cell, name: str = OURS) -> float | None:
        """Seconds of the least work that makes this edit: that of ours, also where the baseline does more."""
        machine, parts = self.machines.get((cell.device, cell.dtype)), self.counts.get(cell.name)
        if machine is None or parts is None:
            return None
        times = {"encode": 1, "text": 1, "decode": 1, "invert": WHOLE, **STEPS_OF[OURS]}
        return sum(n * max(parts[part]["flops"] / machine["flops"], parts[part]["bytes"] / machine["bytes"])
                   for part, n in times.items())

    def why_not(self, cell: Cell, name: str) -> str:
        failed = [r["result"]["failed"] for r in self.of("edit", failed=True)
                  if Cell(**r["job"]["cell"]).name == cell.name and r["job"]["implementation"] == name]
        if failed:
            return failed[-1]
        return cell.why_not or ("not yet measured: no GPU here" if cell.device == "cuda" else "no row")

    def table(self) -> list[str]:
        lines = [row(HEAD), row(["---"] * len(HEAD))]
        left: dict[str, list[str]] = {}
        for cell in self.cells:
            for name in cell.implementations:
                where = [f"{cell.model} {cell.size} {cell.device}", cell.dtype, str(cell.batch), name]
                if summary := self.summaries.get((cell.name, name)):
                    lines.append(row([*where, *summary.line(self.baseline(cell), self.floor(cell))]))
                elif cell.device == "cuda" and not cell.why_not:
                    lines.append(row([*where, self.why_not(cell, name), *[""] * (len(HEAD) - 5)]))
                elif cell.why_not != UNASKED:
                    left.setdefault(self.why_not(cell, name), []).append(f"{cell.name} {name}")
        shared = [f"{cell} {name}" for (cell, name), s in self.summaries.items() if s.cell.device == "cpu"
                  and min(row["busy"] for row in s.rows) < SHARED]
        if shared:
            lines += ["", f"Something else was at work on this machine, and these are too slow: {', '.join(shared)}."]
        return [*lines, "", *(f"Not measured ({why}): {', '.join(names)}." for why, names in left.items())]

    def targets(self) -> list[str]:
        lines = [row(("target", "wanted", "measured", "met")), row(["---"] * 4)]

        def add(what: str, wanted: str, value: float | None, met: bool, text: str = "") -> None:
            lines.append(row((what, wanted, "not yet measured" if value is None else text or digits(value),
                              "" if value is None else "yes" if met else "**no**")))

        def pair(name: str) -> tuple[Summary | None, Summary | None]:
            mine = self.summaries.get((name, OURS))
            return mine, self.baseline(mine.cell) if mine else None

        def faster(what: str, name: str, wanted: float) -> None:
            a, b = pair(name)
            value = b.edit / a.edit if a and b else None
            add(f"{what}: edits, times as fast as the baseline", f"at least {wanted:g}", value,
                bool(value and value >= wanted))

        def at_most(what: str, wanted: float, value: float | None, unit: str = "") -> None:
            add(what, f"at most {wanted:g}{unit}", value, value is not None and value <= wanted)

        amx = "" if "amx_bf16" in self.results["machine"].get("instructions", ()) else " (this one has no matrix units)"
        a, b = pair("sd14-256-cpu-float32-b1")
        faster("SD 1.4, 256, CPU, float32", "sd14-256-cpu-float32-b1", 1.5)
        at_most("the same: memory beyond the weights, share of the baseline's", 0.5, a.beyond / b.beyond if a and b
                else None)
        a, b = pair("sd14-256-cpu-bfloat16-b1")
        faster(f"SD 1.4, 256, CPU with matrix units{amx}, bfloat16", "sd14-256-cpu-bfloat16-b1", 4)
        at_most("the same: peak, share of the baseline's", 0.5, a.peak / b.peak if a and b else None)
        name = "sd14-512-cuda-float16-b1"
        a, _ = pair(name)
        many = self.summaries.get((name.replace("b1", "b8"), OURS))
        faster("SD 1.4, 512, GPU, float16", name, 4)
        at_most("the same: an edit, seconds", 1.5, a.edit if a else None)
        at_most("the same: peak on the device, GB", 4.5, a.device_peak / 1e9 if a else None)
        rate = 8 * a.edit / many.edit if a and many else None
        add("the same: pictures a second of 8 at once against 1", "at least 2.5", rate, bool(rate and rate >= 2.5))
        a, _ = pair("stilllife-64-cpu-float32-b1")
        at_most("miniature, CPU: an edit once loaded, seconds, 41 guided steps", 2.5, a.edit if a else None)
        known = [s for r in self.of("recommended") for s in r["result"]["seconds"]]
        at_most("the same as it recommends, 17 guided steps", 2.5, median(known) if known else None)
        commands = [r["result"]["seconds"] for r in self.of("command")]
        at_most("miniature, CPU: the whole command, seconds", 8, median(commands) if commands else None)
        for name in ("turbo", "turbo" + COMPILED):
            of_turbo = [r["result"] for r in self.of("few") if r["job"]["method"] == name
                        and r["job"]["case"]["student"] == "stilllife-turbo"]
            for part, what in (("invert", "an inversion"), ("edit", "an edit")):
                seconds = [s for r in of_turbo for s in r[part]]
                at_most(f"few steps, the miniature's shape at 128 pixels: {what} by {name}, seconds", WANTED[part],
                        median(seconds) if seconds else None)
        for r in self.of("many"):
            g = r["result"]["growth"]
            add("memory grows by an edit, KiB", "nothing", g["slope"], g["low"] <= 0 or g["slope"] < 1024,
                growth(g))
        return lines

    def ablation(self) -> list[str]:
        lines = []
        for model in dict.fromkeys(r["job"]["model"] for r in self.of("ablation")):
            head = ("and now", "inversion step s", "guided step s", "unguided step s", "50 + 41 + 9 steps s",
                    "beyond the weights GiB")
            lines += ["", f"{model}, float32, one picture, on the CPU:", "", row(head), row(["---"] * len(head))]
            for r in (r for r in self.of("ablation") if r["job"]["model"] == model):
                i, g, u = (r["result"][k] for k in ("invert", "guided", "unguided"))
                whole = WHOLE * i + GUIDED * g + (WHOLE - GUIDED) * u
                lines.append(row((r["job"]["upto"], *map(digits, (i, g, u, whole)), gib(r["result"]["beyond"]))))
        return lines

    def profile(self) -> list[str]:
        lines = []
        for r in self.of("profile"):
            cell, seconds = Cell(**r["job"]["cell"]), r["result"]["seconds"]
            total = sum(sum(operations.values()) for operations in seconds.values())
            kinds = sorted({k for operations in seconds.values() for k in operations},
                           key=lambda k: -sum(operations.get(k, 0) for operations in seconds.values()))
            lines += ["", f"{cell.name}, {r['job']['implementation']}: {digits(total)} s under the profiler", "",
                      row(("part", "s", "%", *kinds)), row(["---"] * (3 + len(kinds)))]
            for part in sorted(seconds, key=lambda p: -sum(seconds[p].values())):
                own = sum(seconds[part].values())
                lines.append(row((part, digits(own), f"{100 * own / total:.0f}", *(
                    f"{100 * seconds[part][k] / total:.1f}" if k in seconds[part] else "" for k in kinds))))
        return lines

    def few(self) -> list[str]:
        """A student of few steps beside SAGE, a row a method."""
        lines = [row(("student, side, numbers", "method", "steps", "threads", "inversion s", "edit s",
                      "calls, inversion + edit", "of them differentiated", "weights GiB", "peak beyond GiB")),
                 row(["---"] * 10)]
        rows = self.of("few")
        for case, method in dict.fromkeys((r["job"]["case"]["student"], r["job"]["method"]) for r in rows):
            own = [r for r in rows if (r["job"]["case"]["student"], r["job"]["method"]) == (case, method)]
            first, about = own[0]["result"], own[0]["job"]["case"]
            beyond = max(r["result"]["peak"] - r["result"]["interpreter"] for r in own) - first["weights"]
            lines.append(row((f"{case} {about['size']} {about['dtype']}", method, str(first["steps"]),
                              str(first["threads"]), *(spread([s for r in own for s in r["result"][part]])
                                                       for part in ("invert", "edit")),
                              " + ".join(map(str, first["calls"])), str(first["gradients"]), gib(first["weights"]),
                              gib(beyond))))
        return lines

    def memory(self) -> list[str]:
        lines = []
        for r in self.of("many"):
            resident = r["result"]["resident"]
            marks = sorted({0, *(n - 1 for n in (5, 10, 20, 50, 100) if n <= len(resident)), len(resident) - 1})
            lines += [f"{len(resident)} edits of {r['result']['steps']} steps by one process: MiB resident after edit "
                      + ", ".join(f"{i + 1}: {resident[i] / 2**20:.1f}" for i in marks)
                      + f". Growth an edit, the first left out: {growth(r['result']['growth'])} KiB.", ""]
        rows = sorted((r["result"] for r in self.of("steps")), key=lambda r: r["steps"])
        if rows:
            lines += [row(("steps", "peak MiB", "references MiB", "peak less references MiB")), row(["---"] * 4)]
            lines += [row((str(r["steps"]), *(f"{b / 2**20:.1f}" for b in (
                r["peak"], r["references"], r["peak"] - r["references"])))) for r in rows]
        return lines


def growth(g: Mapping[str, float]) -> str:
    slope, low, high = (g[k] / 1024 for k in ("slope", "low", "high"))
    return f"{slope:.1f} [{low:.1f}, {high:.1f}]"


def row(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def render(results: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    page = Page(results)
    machine = ", ".join(f"{k} {', '.join(v) if isinstance(v, list) else v}" for k, v in results["machine"].items())
    lines = ["# Speed and memory", "", f"`make bench-speed`; {results['date']}; {machine}."]
    if any(row["job"]["kind"] == "edit" for row in page.rows):  # not a part that has none
        lines += ["", "## The targets", "", *page.targets(), "", "## Every figure", "", *page.table(), "", NOTES]
    if page.machines:
        lines += ["", "## The machine at its best", "", row(("device", "numbers", "GFLOP/s", "by", "GB/s of a copy")),
                  row(["---"] * 5)]
        lines += [row((device, dtype, f"{m['flops'] / 1e9:.0f}", m["by"], f"{m['bytes'] / 1e9:.1f}"))
                  for (device, dtype), m in page.machines.items()]
    if page.of("ablation"):
        lines += ["", "## What each short cut is worth", "", "One more a line, each a process of its own, 6 steps.",
                  *page.ablation()]
    if page.of("profile"):
        lines += ["", f"## Where the time goes, of an edit of {WHOLE} steps", "",
                  "Per cent of the whole, by network and operation; maps are those that are materialised.",
                  *page.profile()]
    if page.of("few"):
        lines += ["", "## A student of few steps beside SAGE", "",
                  "Random weights; an edit begins at an inversion that is there. The model is loaded before.", "",
                  *page.few()]
    if page.of("many") or page.of("steps"):
        lines += ["", "## Memory of the miniature", "", *page.memory()]
    return "\n".join(lines) + "\n"
