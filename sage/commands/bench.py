"""`sage bench` and `sage score`: arguments -> benchmark, run, tables, report.

Imports no torch before the model is loaded.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import get_terminal_size

from sage.bench import places, tables
from sage.bench.cases import MAPPING, WORDINGS, Benchmark, read_benchmark
from sage.bench.chosen import CHOSEN
from sage.bench.configs import CONFIGURATIONS, DEFAULT, REGION_DEFAULT, Configuration, configuration
from sage.bench.experiments import BOUNDS, EXPERIMENTS, MODELS, OPTIONAL, REGION_BOUNDS, Experiment, experiment
from sage.bench.files import BenchmarkError, write_text
from sage.bench.machine import today, versions
from sage.bench.magicbrush import SESSIONS, Turn, final_turns, is_magicbrush, read_magicbrush
from sage.bench.metrics import Extractors
from sage.bench.regions import POINTS, WHERE, read_dragbench, read_tficon
from sage.bench.report import REPORT, write_report
from sage.bench.rivals import BATCH, RIVALS, TRIALS
from sage.bench.rivals import TITLE as RIVALS_TITLE
from sage.bench.rivals_page import AUTO, PAGE, SHEET
from sage.bench.rivals_page import RECORD as RIVALS_RECORD
from sage.bench.runner import Engine, Here, Pool, read_manifests, run
from sage.bench.scoring import Line, has_result, results_root, score_folder
from sage.bench.stilllife import FIRST_SEED, FULL, FULLY, QUICK, SIDE, TUNING_SEED
from sage.commands.measuring import (
    BENCHMARK,
    BOTH,
    NONE,
    TABLES,
    check_sizes,
    command_line,
    judges,
    make_engine,
    said,
    status_of,
    still_lifes,
)
from sage.display.help import Help
from sage.display.progress import Progress
from sage.errors import SettingsError
from sage.method import able

MOST_AT_ONCE = 1024  # threads, models and so on: a process that asks for many more threads ends in a crash
BUNDLED = "stilllife"
RECORD = "tables.md"

CONFIGS = "configurations, any of them as NAME:SETTING=VALUE,... too:\n" + "".join(
    f"  {c.name:28} {c.help}\n" for c in CONFIGURATIONS.values()) + f"""
NAME@MODEL and NAME@MODEL:SETTING=VALUE,... are on another model than --model's, in the same table.

methods, each as it is recommended, by its name, or as method=NAME where a configuration has the same one:
  {" ".join(able("edit"))}, or path/to/file.py:Class\n""" + "\nexperiments:\n" + "".join(
    f"  {e.name:28} {e.title}\n" for e in EXPERIMENTS.values()) + f"""  {RIVALS:28} {RIVALS_TITLE}

places, dragbench and tficon put something elsewhere.  A method that reads regions, such as regiondrag and
eedit, is asked with them; any other edits what plain pixels give.  NAME:words=source moves under the source
prompt for both, and so asks for nothing else.

  sage bench dragbench --data DragBench-DR --extractors hub --out runs/drag
  sage bench tficon    --data TF-ICON --config pixels eedit ddpm:strength=0.4 --extractors hub --out runs/icon
  sage bench places    --experiment regions --quick --out runs/places

turbo has rows on a few-step student beside those on its teacher, with what they take.  More students, by
--models, add rows: {" and ".join(OPTIONAL)}.

  sage bench stilllife --experiment turbo --prompts both --models student=weights/stilllife-turbo --out runs/turbo

{RIVALS} compares all methods on equal terms, and is run alone.  Each method, also with the other inversions
that it names, is given its settings by the same search: so many trials on the same tuning cases, which are
not among those reported, the first trial being its published numbers.  Then all of them edit the test
cases: at what was chosen, at strengths on both sides of it, and as published.  Still lifes are asked for in
full and in short.  Killed, it goes on.  Rows on other models, not searched, stand beside
them: --config turbo@MODEL; for stilllife they are those of its student.  It writes

  {PAGE:28} tables, a frontier for each kind of edit, differences to sage with intervals
  {RIVALS_RECORD:28} the tables, to keep
  {SHEET:28} ten edits by every method
  {CHOSEN:28} what was chosen, with every trial
  {AUTO:28} if a method is ahead of what is recommended for sage at no more network calls:
  {"":28} put it beside a model's settings.json, and `sage edit --method auto` takes it
  {REPORT:28} every picture at the chosen settings

docs/rivals.md tells the rest.

  sage bench stilllife --experiment {RIVALS} --quick --out runs/rivals
  sage bench stilllife --experiment {RIVALS} --quick --out runs/rivals --chosen earlier/{CHOSEN}
  sage bench piebench  --experiment {RIVALS} --data PIE-Bench --extractors hub --out runs/rivals-pie
"""
SMALL_WORLD, REGIONAL = ("stilllife", "places"), ("places", "dragbench", "tficon")  # rendered; putting things elsewhere
BENCHMARKS = (  # name, cases at once, model, what it is
    ("stilllife", 10, BUNDLED, "rendered still lifes, whose right edits are known"),
    ("places", 1, BUNDLED, "rendered still lifes in which things are moved, scaled, exchanged, removed and put in"),
    ("piebench", 1, "sd-1.4", "PIE-Bench, from the folder that its authors distribute"),
    ("magicbrush", 1, "sd-1.4", "MagicBrush, from the folder that its authors distribute"),
    ("dragbench", 1, "sd-1.5", "drags: DragBench, or RegionDrag's DragBench-DR and -SR, from the distributed folder"),
    ("tficon", 1, "sd-2.1-base", "compositions: TF-ICON's test bench, from the folder that its authors distribute"))


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the two commands to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
    """
    bench = command("bench", None, "measure configurations on a benchmark; killed at any moment, it goes on from there")
    of = bench.add_subparsers(required=True, metavar="BENCHMARK")
    for name, batch, model, help in BENCHMARKS:
        sub = of.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", allow_abbrev=False,
                            epilog=CONFIGS, formatter_class=Help)
        sub.set_defaults(run=run_bench, benchmark=name)
        _add_bench(sub, name, batch, model)
    score = command("score", run_score, "score folders of edited pictures, ours or another tool's")
    score.add_argument("folders", metavar="FOLDER", nargs="+", help="pictures that lie as the benchmark's own do")
    score.add_argument("--against", metavar="BENCHMARK", required=True,
                       help="a folder in the layout of PIE-Bench, MagicBrush, DragBench or TF-ICON")
    score.add_argument("--out", metavar="FOLDER", help=f"also write {TABLES}, {RECORD} and {REPORT} there")
    _add_extractors(score)
    score.add_argument("--device", help="of the extractors: cpu, cuda, cuda:1, ... [cuda where there is one]")
    _add_output(score)


def _add_bench(parser: argparse.ArgumentParser, benchmark: str, batch: int, model: str) -> None:
    add, regions = parser.add_argument, benchmark in REGIONAL
    bounds, default = (REGION_BOUNDS, REGION_DEFAULT) if regions else (BOUNDS, DEFAULT)
    add("--out", metavar="DIR", required=True, help=f"where the run lives: results, manifest, {TABLES}, {RECORD}, "
        f"{REPORT}")
    add("--config", metavar="NAME", nargs="+", action="extend", help=f"what to measure [{' '.join(default)}]")
    add("--experiment", metavar="NAME", nargs="+", action="extend", help="groups of configurations that answer a "
        f"question together, with the bounds {', '.join(bounds)}")
    if benchmark in SMALL_WORLD:
        full, quick = (places.FULL, places.QUICK) if regions else (FULL, QUICK)
        add("--side", metavar="N", type=int, default=SIDE, help=f"of the pictures in pixels [{SIDE}]")
        add("--each", metavar="N", type=int, help=f"cases of each kind [{full}]")
        add("--quick", dest="each", action="store_const", const=quick, help=f"the same as --each {quick}")
        add("--tuning", action="store_true", help="other cases than those reported: for choosing settings on")
    if benchmark == "stilllife":
        add("--data", metavar="DIR", help=f"the benchmark, which is made if it is not there [OUT/{BENCHMARK}]")
        add("--prompts", choices=(*WORDINGS, BOTH), help="what the prompts name: everything, the noun and what changes "
            f"alone, or a case for both [{FULLY[0]}; {BOTH} with --experiment {RIVALS}]")
    elif benchmark not in SMALL_WORLD:
        add("--data", metavar="DIR", required=True, help="the folder that is distributed, unpacked")
        add("--quick", action="store_true", help=f"only the first {QUICK} cases of each kind")
    if benchmark == "dragbench":
        add("--ask", choices=("regions", "points"), help="what a method is given: RegionDrag's regions where the "
            "folder has them, or a disc around each point; measured is by the points either way [regions]")
    _add_extractors(parser)
    add("--model", default=model, help=f"a name, a diffusers folder or a .safetensors file [{model}]")
    add("--models", metavar="NAME=MODEL", nargs="+", type=_named_model, action="extend", help="what the names after @ "
        f"stand for in rows; any other is the model's own [{' '.join(f'{k}={v}' for k, v in MODELS.items())}]")
    add("--device", help="cpu, cuda, cuda:1, ... [cuda where there is one]")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="precision [float16 on cuda, else float32]")
    add("--trials", metavar="N", type=int, default=TRIALS, help=f"of the search for each method's settings, with "
        f"--experiment {RIVALS} [{TRIALS}]")
    add("--chosen", metavar="FILE", type=Path, help=f"with --experiment {RIVALS}: what an earlier comparison chose, "
        f"its {CHOSEN}, in place of a search")
    add("--batch", metavar="N", type=int, help=f"cases that are edited together [{batch}; {BATCH} with --experiment "
        f"{RIVALS}; 1 with one that tells seconds: {', '.join(e.name for e in EXPERIMENTS.values() if e.timed)}]")
    add("--shard", metavar="I/N", type=_shard, default=(1, 1), help="do the I-th of N parts, all into the same DIR")
    add("--threads", metavar="N", type=int, help="of the CPU for each model; another number may change last digits "
        "[as many as cores; 1 with --engine ray]")
    add("--engine", choices=("local", "ray"), default="local", help="this process, or a Ray cluster with a model in "
        "each worker: docs/cluster.md [local]")
    add("--workers", metavar="N", type=int, help="processes that render still lifes [1]; with --engine ray, models "
        f"[one for each GPU, or 1]; with --experiment {RIVALS}, processes with a model each [as many as cores; 1 on a "
        "GPU]")
    parser.set_defaults(usual_batch=batch)
    _add_output(parser)


def _add_extractors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extractors", metavar="FROM", default=NONE,
                        help="the networks of the published protocol: hub, a folder that holds them, or none, and "
                        "then no figures that need them [none]")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the tables as one JSON object on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N, such as 1/4")
    return int(found[1]), int(found[2])


def _named_model(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (equals and model and re.fullmatch(r"[\w.-]+", name)):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must be NAME=MODEL, such as student=weights/stilllife-turbo")
    return name, model


def run_bench(args: argparse.Namespace) -> int:
    """Do what is missing of a run, and write and print its tables; 1 if any case failed."""
    for name in ("threads", "workers", "batch", "trials"):
        if (value := getattr(args, name)) is not None and not 1 <= value <= MOST_AT_ONCE:
            raise SettingsError(f"--{name} is {value}: must be from 1 to {MOST_AT_ONCE}")
    if RIVALS in (args.experiment or ()):
        from sage.commands.rivals import run_rivals
        return run_rivals(args)
    if args.chosen:
        raise SettingsError(f"--chosen is for --experiment {RIVALS}: leave it out")
    experiments = [experiment(name) for name in args.experiment or ()]
    timed = any(e.timed for e in experiments)
    args.models = dict(args.models) if args.models else None
    args.batch = args.batch or (1 if timed else args.usual_batch)
    configurations, out = _configurations(args, experiments), Path(args.out)
    with Progress(not args.quiet and sys.stderr.isatty(), unit="case", resumes=True) as bar:
        benchmark = _benchmark(args, out, bar)
        threads = args.threads or (1 if args.engine == "ray" else None)
        # The networks depend on what sort of cases there are: to a cluster one of them is enough to send.
        sort = replace(benchmark, cases=tuple(sorted(benchmark.cases, key=lambda case: not case.attributes)[:1]))
        make = partial(make_engine, sort, args.model, args.device, args.dtype, threads, args.extractors,
                       MODELS | (args.models or {}))
        pool = _cluster(make, configurations, args, threads) if args.engine == "ray" else Here(*make())
        lines = run(benchmark, configurations, pool, out, batch=args.batch, shard=args.shard, progress=bar)
    everything = in_order(read_manifests(out).values(), benchmark, [c.name for c in configurations])
    facts = {"benchmark": args.benchmark}
    about = pool.describe()
    facts |= {name: said(value) for name, value in about.items()}
    facts |= {f"@{c.model}": said(pool.configure(c)["model"]) for c in configurations if c.model}
    results = tables.Results(everything, benchmark.kinds, costs=timed or args.benchmark in REGIONAL)
    baselines = [name for name in dict.fromkeys(e.baseline for e in experiments) if name in results.configurations]
    _finish(results, benchmark, out, dict.fromkeys(results.configurations, out), facts | pool.versions(),
            pool.versions(), args.json, {"machine": pool.machine(), "command": command_line(args)}, baselines)
    return status_of(lines)


def _benchmark(args: argparse.Namespace, out: Path, bar: Progress) -> Benchmark:
    """The benchmark that the flags name."""
    if args.benchmark == "stilllife":
        return still_lifes(args, args.data or out / BENCHMARK, args.each or FULL, bar,
                           TUNING_SEED if args.tuning else FIRST_SEED, args.prompts or FULLY[0])
    if args.benchmark == "places":
        check_sizes(args.side, args.each or places.FULL)
        return places.places(args.each or places.FULL, args.side,
                             places.TUNING_SEED if args.tuning else places.FIRST_SEED)
    if args.benchmark == "dragbench":
        found = read_dragbench(args.data, regions=args.ask != "points")
    else:
        read = {"magicbrush": read_magicbrush, "piebench": read_benchmark, "tficon": read_tficon}[args.benchmark]
        found = read(args.data)
    return first_of_each_kind(found, QUICK) if args.quick else found


def _configurations(args: argparse.Namespace, groups: Sequence[Experiment]) -> list[Configuration]:
    """Those that the flags name; SettingsError for one that the benchmark has no use for."""
    regions = args.benchmark in REGIONAL
    bounds, default = (REGION_BOUNDS, REGION_DEFAULT) if regions else (BOUNDS, DEFAULT)
    named = [*(bounds if groups else ()), *(args.config or ())]
    absent = [name for name in OPTIONAL if name not in (args.models or ())]
    rows = [configuration(name) for e in groups for name in e.configurations]
    named += [row.name for row in rows if row.model not in absent]
    if missing := sorted({row.model for row in rows} & set(absent)):
        print(f"sage: rows on {' and '.join(missing)} are left out: name the models with --models", file=sys.stderr)
    found = [configuration(name) for name in dict.fromkeys(named or default)]
    for c in found:
        if c.makes == ("reconstruction" if regions else "pixels"):
            raise SettingsError(f"{c.name} is not for {args.benchmark}, whose cases put "
                                f"{'something' if regions else 'nothing'} elsewhere: leave it out")
    return found


def _cluster(make: Callable[[], tuple[Engine, Extractors]], configurations: Sequence[Configuration],
             args: argparse.Namespace, threads: int) -> Pool:
    from sage.bench.cluster import RayPool, connect
    if args.device not in (None, "cpu", "cuda"):
        raise SettingsError(f"--device {args.device}: with --engine ray it is cpu or cuda, and Ray says which of them")
    connect()
    gpu = None if args.device is None else args.device == "cuda"
    return RayPool(make, configurations, args.workers, threads, gpu)



def run_score(args: argparse.Namespace) -> int:
    """Score folders; 1 if any result is missing or damaged."""
    benchmark, lines = _against(args.against), []
    names = [Path(folder).resolve().name for folder in args.folders]
    if len(set(names)) < len(names):
        names = list(args.folders)
    jobs = [(name, folder, benchmark) for name, folder in zip(names, args.folders, strict=True)]
    if benchmark.protocol == "magicbrush":
        last = final_turns(benchmark)
        jobs += [(f"{name}, final turn", folder, last) for name, folder, _ in jobs
                 if any(isinstance(case, Turn) and case.iterated and has_result(folder, case) for case in last.cases)]
    roots = {name: results_root(folder) for name, folder, _ in jobs}
    extractors = judges(benchmark, args.extractors, args.device)
    with Progress(not args.quiet and sys.stderr.isatty(), unit="case", resumes=True) as bar:
        for name, folder, cases in jobs:
            lines += score_folder(cases, folder, name, extractors, bar)
    _finish(tables.Results(lines, benchmark.kinds), benchmark, Path(args.out) if args.out else None, roots,
            {"benchmark": Path(args.against).resolve().name, **extractors.versions}, dict(extractors.versions),
            args.json, {})
    return status_of(lines)



def _against(folder: str) -> Benchmark:
    """The benchmark in a folder, of whatever kind it is; BenchmarkError if it is of none."""
    if is_magicbrush(folder):
        return read_magicbrush(folder, prompts=False)
    if (Path(folder) / MAPPING).exists():
        return read_benchmark(folder)
    for pattern, read in ((f"*/*/{POINTS}", read_dragbench), (f"*/*/{WHERE}", read_tficon)):
        if next(Path(folder).glob(pattern), None):
            return read(folder)
    raise BenchmarkError(f"{folder} is no benchmark: it has no {MAPPING}, {SESSIONS}, CATEGORY/SAMPLE/{POINTS} or "
                         f"DOMAIN/NNNN PROMPT/{WHERE}")


def _finish(results: tables.Results, benchmark: Benchmark, out: Path | None, roots: dict[str, Path],
            facts: dict[str, str], networks: dict[str, str], as_json: bool, made: dict[str, str],
            baselines: Sequence[str] = ()) -> None:
    """Write tables and report to `out` if there is one, and print the tables, with what the networks are.

    Args:
        made: what only the record says, since it may differ between runs that are otherwise the same.
        baselines: configurations that the record compares the others with.
    """
    if out is not None:
        title = f"Edits of {facts['benchmark']}"
        cases = str(len({line.case for line in results.lines}))
        write_text(out / TABLES, tables.as_json(results, networks))
        record = {"date": today(), **made, **facts, "versions": versions(), "cases": cases}
        write_text(out / RECORD, tables.as_record(title, results, record, benchmark.wordings, baselines))
        write_report(out / REPORT, title, benchmark, results, roots, facts)
    if as_json:
        print(tables.as_json(results, networks), end="")
    else:
        table = (tables.as_text(results, get_terminal_size().columns) if sys.stdout.isatty()
                 else tables.as_markdown(results))
        print(table, *(f"\n{name}: {text}\n" for name, text in networks.items()), sep="", end="")
    if out is not None:
        sys.stdout.flush()
        print(f"sage: report in {out / REPORT}", file=sys.stderr)


def first_of_each_kind(benchmark: Benchmark, count: int) -> Benchmark:
    """A benchmark's first cases of each kind."""
    seen: Counter[int] = Counter()
    cases = []
    for case in benchmark.cases:
        seen[case.kind] += 1
        if seen[case.kind] <= count:
            cases.append(case)
    return replace(benchmark, cases=tuple(cases))


def in_order(lines: Iterable[Line], benchmark: Benchmark, names: Sequence[str]) -> list[Line]:
    """Lines in the benchmark's order, configurations as named and then any others: whatever order they were done in."""
    found = {(line.configuration, line.case): line for line in lines}
    others = sorted({c for c, _ in found} - set(names))
    # Of what kind a case is the benchmark says, whatever a manifest does.
    return [replace(found[c, case.name], kind=case.kind) for c in (*names, *others) for case in benchmark.cases
            if (c, case.name) in found]

