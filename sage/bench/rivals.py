"""Every method against every other, on equal terms: `sage bench BENCHMARK --experiment rivals`.

    rival       a method that edits, as it is or with what it names in `beside`: an inversion, or SAGE's loss
    search      each rival's settings, by sage.bench.search, on tuning cases that no result is reported of
    test        on the other cases: all at these settings, then all at the published ones and at strengths on both sides
    cost        the peak memory of one edit, in a process of its own

    bounds/test/            a run (sage.bench.runner) of what every table has
    RIVAL/tuning/           a run of its trials
    RIVAL/chosen.json       what they came to
    RIVAL/test/             a run of the rest
    RIVAL/cost.json
    chosen.json             all that was chosen, with every trial

Killed at any moment and started again it goes on; once all are tested at their settings there are tables.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sage.bench.cases import Benchmark, Case
from sage.bench.chosen import CHOSEN, Chosen, Record, configuration, read_chosen, write_chosen
from sage.bench.configs import CONFIGURATIONS, Configuration
from sage.bench.experiments import BOUNDS
from sage.bench.files import MAX_JSON, BenchmarkError, write_text
from sage.bench.machine import machine, peak_memory
from sage.bench.metrics import Extractors, Metric
from sage.bench.runner import Progress, claim, read_manifests, run
from sage.bench.scoring import DONE, Line
from sage.bench.search import Trial, Values, best, race, search, space, start, strengths, whole_numbers
from sage.bench.tables import Comparison, Results
from sage.bench.tasks import Processes, tasks
from sage.errors import SettingsError
from sage.files import parse_json, read_plain
from sage.method import able
from sage.method import method as find_method

RIVALS = "rivals"
TITLE = "Every method, its settings found by the same search"
TRIALS, BATCH = 8, 8  # of a search; cases that are edited together
POINTS, FEW_POINTS = 3, 2  # strengths on a curve beside the chosen one; with few cases its ends
TUNED = 2  # cases of each kind that settings are chosen on
PARTS = 2  # of them, at least, so that a trial can be given up
OURS, RECOMMENDED, PLAIN = "sage", "recommended", "plain"
COST, TUNING, TEST, EVERYONE = "cost.json", "tuning", "test", "bounds"
REFERENCES = (*BOUNDS, RECOMMENDED)
BACKWARD = 2  # forward passes that a way back through the network counts for

TRUTH = {"inside_psnr": 2 / 3, "outside_psnr": 1 / 3}  # alike, leaving the picture alone is level with an edit
NO_TRUTH = {"background_psnr": 0.2, "clip_edited": 0.8}  # a point of CLIP for four decibels
COSTS = (Metric("calls", "network calls", 1, False, 0), Metric("gradients", "ways back", 1, False, 0),
         Metric("seconds", "seconds", 1, False), Metric("memory", "peak memory, MB", 1e-6, False, 0))

Make = Callable[[], tuple[Any, Extractors]]


@dataclass(frozen=True)
class Protocol:
    """What is the same for every rival.

    Attributes:
        steps: of the way to noise and of the way back.
        trials: of the search, each on all tuning cases.
        points: strengths on a curve.
        batch: cases that are edited together.
        aim: weights of the figures whose mean a search makes large.
    """

    steps: int
    trials: int = TRIALS
    points: int = POINTS
    batch: int = BATCH
    aim: Mapping[str, float] = field(default_factory=lambda: dict(TRUTH))

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "aim": dict(self.aim)}


@dataclass(frozen=True)
class Place:
    """Where an experiment lives, and what it is of.

    Attributes:
        beside: rows on other models, as they are recommended there; nothing is searched for them.
    """

    out: Path
    tuning: Benchmark
    test: Benchmark
    protocol: Protocol
    beside: tuple[Configuration, ...] = ()

    @property
    def references(self) -> tuple[Configuration, ...]:
        """What rivals are held against: bounds, what is recommended, and rows on other models."""
        return (*(CONFIGURATIONS[name] for name in REFERENCES), *self.beside)

    @property
    def reference_names(self) -> list[str]:
        """The rows of `references`."""
        return [c.name for c in self.references]


# ---- who competes, and at what


def rivals(model: Any) -> tuple[list[str], dict[str, str]]:
    """The names of the methods that edit, also with what they are compared with besides; and who cannot."""
    names, unfit = list[str](), dict[str, str]()
    for name in able("edit"):
        method = find_method(name)
        if why := method.fits(model):
            unfit[name] = why
        else:
            names += [name, *(f"{name}+{more}" for more in method.beside)]
    return names, unfit


def aim_of(benchmark: Benchmark, extractors: Extractors) -> dict[str, float]:
    """What a search makes large on a benchmark.

    Raises:
        SettingsError: there is neither a true edit nor CLIP to tell whether an edit was made at all.
    """
    if all(case.truth is not None for case in benchmark.cases):
        return dict(TRUTH)
    if extractors.image is None or extractors.text is None:
        raise SettingsError("a search on pictures without a true edit needs CLIP, or it would choose to do nothing: "
                            "give --extractors")
    return {key.replace("clip", extractors.similarity): weight for key, weight in NO_TRUTH.items()}


def score(line: Line, aim: Mapping[str, float]) -> float:
    """The weighted mean of what a result has of some figures; 0 for a failure."""
    found = [(weight, value) for key, weight in aim.items() if (value := line.scores.get(key)) is not None]
    total = sum(weight for weight, _ in found)
    return sum(weight * value for weight, value in found) / total if line.status == DONE and total else 0.0


# ---- the work of one process


@dataclass
class Worker:
    """A model and its judges, and what they are to do."""

    place: Place
    engine: Any
    extractors: Extractors

    def find(self, rival: str) -> None:
        """Search a rival's settings, and write them."""
        method, protocol = find_method(rival), self.place.protocol
        first, kinds = start(method, self.engine.model, protocol.steps), space(method)
        trials = search(kinds, {name: getattr(first, name) for name in kinds}, protocol.trials,
                        lambda values, leader: self._trial(rival, first, values, leader),
                        whole_numbers(method.Settings))
        if all(trial.score is None for trial in trials):
            raise SettingsError(f"{rival}: none of its {len(trials)} trials could be made")
        won, strength = best(trials).values, method.strength if method.strength in kinds else ""
        curve = strengths(kinds[strength], protocol.points, strength in whole_numbers(method.Settings)) \
            if strength else []
        chosen = Chosen(rival, method.title, first.but(**won).as_dict(), won, strength, tuple(curve),
                        "published" in method.presets, tuple(trials))
        write_chosen(self.place.out / rival / CHOSEN, chosen)

    def outdated(self, chosen: Mapping[str, Chosen]) -> list[str]:
        """Of what was chosen earlier the rivals whose search would try other settings now."""
        def same(found: Chosen) -> bool:
            method = find_method(found.rival)
            try:
                start(method, self.engine.model, self.place.protocol.steps).but(**found.settings)
            except SettingsError:
                return False
            return all(set(trial.values) == set(space(method)) for trial in found.trials)

        return [name for name, found in chosen.items() if not same(found)]

    def _trial(self, rival: str, first: Any, values: Values, leader: Trial | None) -> Trial:
        name = ",".join(f"{key}={value}" for key, value in values.items())
        try:
            settings = first.but(**values).as_dict()
        except SettingsError:  # each is possible, and both together are not
            return Trial(values, None)
        return race(values, self._scores(rival, configuration(f"{rival}:{name}", rival, settings)), leader)

    def _scores(self, rival: str, configuration: Configuration) -> Iterator[list[float | None]]:
        """What a configuration makes of the tuning cases, part by part."""
        protocol, cases = self.place.protocol, len(self.place.tuning.cases)
        batch = min(protocol.batch, -(-cases // PARTS))
        parts = -(-cases // batch)
        for part in range(1, parts + 1):
            lines = run(self.place.tuning, [configuration], self.engine, self.place.out / rival / TUNING,
                        batch=batch, shard=(part, parts), extractors=self.extractors)
            yield [score(line, protocol.aim) if line.status == DONE else None for line in lines]

    def test(self, rival: str, others: bool, shard: tuple[int, int]) -> None:
        """A part of the test of a rival as chosen, of what is beside that, or of the bounds."""
        if rival == EVERYONE:
            configurations = list(self.place.references)
        else:
            chosen = read_chosen(self.place.out / rival / CHOSEN)
            configurations = chosen.others() if others else [chosen.itself]
        if configurations:
            run(self.place.test, configurations, self.engine, self.place.out / rival / TEST, shard=shard,
                batch=self.place.protocol.batch, extractors=self.extractors)

    def cost(self, rival: str) -> None:
        """The memory of one edit; in a process that has made no other."""
        case = self.place.test.cases[0]
        chosen = read_chosen(self.place.out / rival / CHOSEN)
        [outcome] = self.engine.make(chosen.itself, [case], [self.place.test.source(case)], [None])
        memory = None if outcome.picture is None else peak_memory(self.engine.model.device.type)
        write_text(self.place.out / rival / COST, json.dumps({"memory": memory}) + "\n")

    def about(self) -> dict[str, Any]:
        """Who competes, at how many steps, and on what."""
        names, unfit = rivals(self.engine.model)
        ours = find_method(OURS).recommended(self.engine.model)
        return {"rivals": names, "unfit": unfit, "steps": ours.steps, "engine": self.engine.describe(),
                "models": {c.model: self.engine.configure(c)["model"] for c in self.place.beside},
                "networks": dict(self.extractors.versions), "aim": aim_of(self.place.test, self.extractors),
                "machine": machine(self.engine.describe().get("device", "cpu"))}


def _work(networks: tuple[Any, Extractors], place: Place, task: str, *arguments: Any) -> Any:
    return getattr(Worker(place, *networks), task)(*arguments)


# ---- the whole


@dataclass(frozen=True)
class Experiment:
    """What came out, to be asked for figures.

    Attributes:
        place: where it lives.
        chosen: by rival, in the order of the tables.
        unfit: who could not compete, and why.
        lines: of the test, costs among their scores.
        roots: by configuration, what the pictures of its lines are relative to.
        about: engine, networks and machine.
    """

    place: Place
    chosen: dict[str, Chosen]
    unfit: dict[str, str]
    lines: list[Line]
    roots: dict[str, Path]
    about: dict[str, Any]

    def results(self, wording: str = "") -> Results:
        """The results of all cases, or of those of one wording."""
        found = Results(self.lines, self.place.test.kinds)
        return found.of(self.place.test.wordings[wording]) if wording else found

    @property
    def wordings(self) -> list[str]:
        """Those that the cases have."""
        return list(self.place.test.wordings)

    @property
    def heads(self) -> list[str]:
        """The configurations of the main table: references, and every rival as chosen."""
        return [*self.place.reference_names, *(c.label for c in self.chosen.values())]

    @property
    def ours(self) -> str:
        """The row that others are compared with: sage, as its search left it."""
        return (self.chosen.get(OURS) or next(iter(self.chosen.values()))).label

    def score(self, line: Line) -> float:
        """What the search would have made of it."""
        return score(line, self.place.protocol.aim)

    def scored(self, label: str) -> dict[str, float]:
        """What the search made large, by test case."""
        return {line.case: self.score(line) for line in self.lines if line.configuration == label}

    def cost_of(self, label: str) -> float:
        """Network calls of an edit, a way back through the network counted as two."""
        lines = [line for line in self.lines if line.configuration == label and line.status == DONE]
        return float(np.mean([line.calls + BACKWARD * line.gradients for line in lines])) if lines else math.inf

    def ahead(self) -> tuple[Chosen, Comparison] | None:
        """The rival that `--method auto` is to take, and by how much it is ahead of what is recommended.

        It is the one with the highest score on the tuning cases of those that ask for no more network calls; and only
        if on the test cases its score is higher with an interval that leaves out zero.
        """
        allowed = self.cost_of(RECOMMENDED)
        fair = [c for c in self.chosen.values() if self.cost_of(c.label) <= allowed]
        if not fair:
            return None
        first = max(fair, key=lambda c: best(c.trials).score or -math.inf)
        kept = [replace(line, scores={"score": self.score(line)}, status=DONE) for line in self.lines
                if line.configuration in (first.label, RECOMMENDED)]
        found = Results(kept).compare(first.label, RECOMMENDED, Metric("score", "score", 1, True))
        return (first, found) if found and found.difference.low > 0 else None


def compete(place: Place, make: Make, workers: int = 1, progress: Progress | None = None, memory: bool = True,
            say: Callable[[str], None] = lambda message: None,
            so_far: Callable[[Experiment], None] = lambda found: None, record: Record | None = None) -> Experiment:
    """Search, test and measure, as far as it is not done.

    Args:
        place: its protocol's steps and aim are those of the model and the benchmark.
        make: makes the engine and the extractors; called once in each process.
        workers: processes, each with a model; with 1 there is only this one.
        progress: called with ("rivals", tasks done, tasks in all).
        memory: also measure the memory of one edit of each, in a process of its own.
        say: told beforehand what there is to do.
        so_far: given what there is when all have been tested at their settings.
        record: what was chosen earlier, which is not searched again where the same would be tried.
    Raises:
        BenchmarkError: the record is of another model or protocol.
        SageError: what stops the whole; a case that fails is a line.
    """
    with tasks(make, workers) as pool:
        about = pool.result(pool.submit(_work, place, "about"))
        place = replace(place, protocol=replace(place.protocol, steps=about["steps"], aim=about["aim"]))
        names = about["rivals"]
        say(estimate(place, len(names)))
        _claim(place, about)
        if record is not None:
            _take(place, record, about, lambda chosen: pool.result(pool.submit(_work, place, "outdated", chosen)), say)
        parts = min(-(-len(place.test.cases) // place.protocol.batch), 4 * workers)
        report, total = progress or (lambda phase, done, total: None), len(names) * (1 + 2 * parts) + parts
        found = [name for name in names if (place.out / name / CHOSEN).is_file()]
        waiting = {pool.submit(_work, place, "find", name): name for name in names if name not in found}
        tested, done = [EVERYONE, *found], len(found)
        for others in (False, True):
            while waiting or tested:
                waiting |= {pool.submit(_work, place, "test", name, others, (i, parts)): "" for name in tested
                            for i in range(1, parts + 1)}
                task = pool.next(waiting)
                pool.result(task)
                tested = [name] if (name := waiting.pop(task)) else []
                done += 1
                report(RIVALS, done, total)
            if not others:
                so_far(_recorded(place, about))
                tested = names
    if memory:
        _measure(place, make, [name for name in names if not (place.out / name / COST).is_file()], workers)
    return _recorded(place, about)


def _recorded(place: Place, about: Mapping[str, Any]) -> Experiment:
    """What lies in the folder, and is now in its record too."""
    experiment = read_experiment(place, about)
    write_text(place.out / CHOSEN, as_record(experiment))
    return experiment


def estimate(place: Place, count: int) -> str:
    """How much there is to do, in edits."""
    p = place.protocol
    each = p.trials * len(place.tuning.cases) + (p.points + 2) * len(place.test.cases)
    return (f"{count} rivals: {p.trials} trials each on {len(place.tuning.cases)} tuning cases, then up to "
            f"{p.points + 2} settings on {len(place.test.cases)} test cases; at most {count * each:,} edits of "
            f"{p.steps} steps")


def _claim(place: Place, about: Mapping[str, Any]) -> None:
    """BenchmarkError if the folder holds what was chosen by another protocol."""
    claim(place.out / f"{RIVALS}.json", {"protocol": place.protocol.as_dict(), "engine": about["engine"],
                                         "tuning": [case.name for case in place.tuning.cases],
                                         "benchmarks": [b.mapping_hash() for b in (place.tuning, place.test)]})


def _take(place: Place, record: Record, about: Mapping[str, Any],
          outdated: Callable[[Mapping[str, Chosen]], list[str]], say: Callable[[str], None]) -> None:
    """Put what was chosen earlier where a search would."""
    if record.weights != about["engine"].get("weights"):
        raise BenchmarkError("what was chosen earlier is of other weights: give the model that it was chosen on, or "
                             "have it searched anew")
    now = place.protocol.as_dict()
    for name in ("steps", "trials", "aim"):
        if record.protocol.get(name) != now[name]:
            raise BenchmarkError(f"what was chosen earlier is of another protocol, {name} {record.protocol.get(name)} "
                                 f"and not {now[name]}: have it searched anew")
    wanted = [name for name in about["rivals"] if not (place.out / name / CHOSEN).exists()]
    known = {name: found for name in wanted if (found := record.chosen.get(name)) and found.rival == name}
    anew = outdated(known)
    for name in known.keys() - anew:
        write_chosen(place.out / name / CHOSEN, known[name])
    if missing := [name for name in wanted if name not in known or name in anew]:
        say(f"to be searched, since nothing was chosen earlier or their settings are others now: {', '.join(missing)}")


def _measure(place: Place, make: Make, names: Sequence[str], workers: int) -> None:
    """The cost of each, in a process that has done nothing else."""
    with Processes(make, workers, alone=True) as pool:
        for task in [pool.submit(_work, place, "cost", name) for name in names]:
            pool.result(task)


# ---- what came of it


def read_experiment(place: Place, about: Mapping[str, Any]) -> Experiment:
    """What lies in the folder."""
    chosen = {name: read_chosen(place.out / name / CHOSEN) for name in about["rivals"]}
    lines, roots = list[Line](), dict[str, Path]()
    for folder, labels, memory in [(EVERYONE, place.reference_names, None),
                                   *((name, [c.name for c in (found.itself, *found.others())],
                                      _memory(place.out / name / COST)) for name, found in chosen.items())]:
        found = read_manifests(place.out / folder / TEST)
        for label in labels:
            own = [found[label, case.name] for case in place.test.cases if (label, case.name) in found]
            lines += [_with_costs(line, None if ":" in label else memory) for line in own]
            roots[label] = place.out / folder / TEST
    return Experiment(place, chosen, dict(about["unfit"]), lines, roots, dict(about))


def _with_costs(line: Line, memory: float | None) -> Line:
    if line.status != DONE or not line.calls:
        return line
    return replace(line, scores={**line.scores, "calls": line.calls, "gradients": line.gradients,
                                 "seconds": line.seconds, "memory": memory})


def _memory(path: Path) -> float | None:
    try:
        return parse_json(read_plain(path, BenchmarkError, MAX_JSON).decode())["memory"]
    except (BenchmarkError, ValueError, KeyError, TypeError):
        return None


def as_record(experiment: Experiment) -> str:
    """What was chosen, with every trial, and by which protocol."""
    about, place = experiment.about, experiment.place
    return json.dumps({"model": about["engine"], "protocol": place.protocol.as_dict(),
                       "tuning cases": len(place.tuning.cases), "test cases": len(place.test.cases),
                       "unfit": experiment.unfit,
                       "rivals": {name: c.as_dict() for name, c in experiment.chosen.items()}}, indent=1) + "\n"


def as_auto(experiment: Experiment, today: str) -> str | None:
    """What lies beside a model's settings.json for `--method auto`; None where no rival is ahead."""
    if not (found := experiment.ahead()):
        return None
    chosen, ahead = found
    difference = ahead.difference
    return json.dumps({"method": chosen.rival, "settings": chosen.settings, "why": {
        "date": today, "weights": experiment.about["engine"].get("weights"),
        "test cases": difference.count, "score minus recommended": [difference.mean, difference.low, difference.high],
        "network calls": [experiment.cost_of(chosen.label), experiment.cost_of(RECOMMENDED)]}}, indent=1) + "\n"


def in_turn(benchmark: Benchmark) -> Benchmark:
    """Of cases in several wordings those of one each, in turn over the kinds."""
    ways = list(benchmark.wordings)
    if len(ways) < 2:
        return benchmark
    return replace(benchmark, cases=tuple(c for c in benchmark.cases if c.wording == ways[c.kind % len(ways)]))


def split(benchmark: Benchmark, tuned: int, most: int | None = None) -> tuple[Benchmark, Benchmark]:
    """The first cases of each kind, to choose settings on, and the rest, or so many of them.

    Raises:
        SettingsError: there are not cases enough for both.
    """
    tuning, test = list[Case](), list[Case]()
    seen: dict[int, int] = {}
    for case in benchmark.cases:
        seen[case.kind] = number = seen.get(case.kind, -1) + 1
        if number < tuned:
            tuning.append(case)
        elif most is None or number < tuned + most:
            test.append(case)
    if not tuning or not test:
        raise SettingsError(f"{len(benchmark.cases)} cases are too few: settings are chosen on {tuned} of each kind, "
                            "and tested on others")
    return replace(benchmark, cases=tuple(tuning)), replace(benchmark, cases=tuple(test))
