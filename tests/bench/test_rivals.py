import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sage
from sage.auto import recorded
from sage.bench import rivals, rivals_page
from sage.bench.cases import read_benchmark, write_mapping
from sage.bench.chosen import CHOSEN, Chosen, read_chosen, read_record
from sage.bench.configs import configuration
from sage.bench.engine import ModelEngine
from sage.bench.files import BenchmarkError
from sage.bench.frontier import Curve, Frontier, ticks
from sage.bench.metrics import Extractors
from sage.bench.rivals import (
    Experiment,
    Place,
    Protocol,
    aim_of,
    as_auto,
    compete,
    in_turn,
    score,
    split,
)
from sage.bench.rivals_page import PAGE, RECORD, SHEET, contact_sheet, markdown, sampled, write_all
from sage.bench.scoring import DONE, FAILED, Line
from sage.bench.search import Trial
from sage.commands.main import main
from sage.errors import SettingsError
from tests.bench.networks import make_networks
from tests.bench.test_report import Page
from tests.bench.world import make_benchmark
from tests.models import tiny

METHODS = ("sage", "sdedit", "p2p")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in the real layout, of random weights, whose maker recommends two steps."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    tiny.make(folder)
    ours = {"steps": 2, "guided_steps": 1, "self_level": 0, "cross_level": 0}
    (folder / "settings.json").write_text(json.dumps({"sage": ours}))
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return make_networks(tmp_path_factory.mktemp("networks") / "extractors")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """The real benchmark's format: six edits of two kinds, no true edits."""
    made = make_benchmark(tmp_path_factory.mktemp("benchmark"), 6, truths=False)
    write_mapping(made.folder, [replace(case, kind=i % 2) for i, case in enumerate(made.cases)])
    return read_benchmark(made.folder)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Some of the methods, short published runs, and no processes."""
    monkeypatch.setattr(rivals, "able", lambda task: METHODS)
    for name in METHODS:
        cls = type(sage.method(name))
        monkeypatch.setattr(cls, "beside", ("direct",) if name == "p2p" else ())
        monkeypatch.setattr(cls, "presets", {key: {**preset, "steps": 3} for key, preset in cls.presets.items()})
    monkeypatch.setattr(rivals, "_measure", lambda place, make, names, workers: [
        (place.out / name / rivals.COST).write_text('{"memory": 5000000}') for name in names])


def maker(folder, before=lambda configuration: None, extractors=None):
    class Engine(ModelEngine):
        def make(self, configuration, *rest):
            before(configuration)
            return super().make(configuration, *rest)

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Engine(sage.load_model(folder), lambda name: sage.load_model(folder)), extractors or Extractors()
    return make


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A benchmark whose right results are known, in two wordings."""
    made = make_benchmark(tmp_path_factory.mktemp("known"), 6)
    write_mapping(made.folder, [replace(case, kind=i % 2, wording=("full", "short")[i // 2 % 2])
                                for i, case in enumerate(made.cases)])
    return read_benchmark(made.folder)


def place(out, benchmark, **protocol):
    tuning, test = split(benchmark, 1)
    return Place(out, tuning, test, Protocol(0, **{"trials": 2, "points": 2, "batch": 2, **protocol}))


@pytest.mark.slow
def test_the_whole_on_the_real_benchmarks_format_with_random_weights(folder, networks, benchmark, tmp_path, capsys):
    command = ["bench", "piebench", "--experiment", "rivals", "--data", str(benchmark.folder), "--extractors",
               str(networks), "--model", str(folder), "--trials", "2", "--workers", "1", "--threads", "1", "--out",
               str(tmp_path / "out")]
    assert main([*command, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "4 rivals: 2 trials each on 4 tuning cases, then up to 4 settings on 2 test cases" in err
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written >= {PAGE, RECORD, SHEET, "chosen.json", "report.html", "tables.json", "rivals.json"}
    chosen = json.loads((tmp_path / "out/chosen.json").read_text())
    assert list(chosen["rivals"]) == ["sage", "sdedit", "p2p", "p2p+direct"]
    assert chosen["protocol"]["aim"] == {"background_psnr": 0.2, "clip_edited": 0.8}
    assert all(len(r["trials"]) == 2 and r["settings"]["steps"] == 2 for r in chosen["rivals"].values())
    assert chosen["rivals"]["p2p"]["trials"][0]["values"]["guidance_scale"] == 7.5
    # Nothing that settings were chosen on is reported.
    tuned = {line["case"] for line in lines_of(tmp_path / "out/p2p/tuning")}
    tested = {line["case"] for line in lines_of(tmp_path / "out/p2p/test")}
    assert tuned and tested and not tuned & tested
    assert "background PSNR" in out and str(tmp_path) not in (tmp_path / "out" / RECORD).read_text()
    Page((tmp_path / "out" / PAGE).read_text())
    assert Image.open(tmp_path / "out" / SHEET).width > 2 * 96


def lines_of(folder: Path):
    return [json.loads(text) for path in folder.glob("manifest*.jsonl") for text in path.read_text().splitlines()]


@pytest.mark.slow
def test_killed_and_started_again_it_comes_to_the_same(folder, known, tmp_path):
    whole = compete(place(tmp_path / "whole", known), maker(folder))
    made = []

    def fragile(configuration):
        made.append(configuration.name)
        if len(made) % 7 == 0:
            raise KeyboardInterrupt

    for _ in range(20):
        try:
            again = compete(place(tmp_path / "again", known), maker(folder, fragile))
            break
        except KeyboardInterrupt:
            continue
    assert (tmp_path / "whole/chosen.json").read_bytes() == (tmp_path / "again/chosen.json").read_bytes()
    assert [line.scores.keys() for line in again.lines] == [line.scores.keys() for line in whole.lines]
    for a, b in zip(again.lines, whole.lines, strict=True):
        assert {**a.scores, "seconds": 0} == {**b.scores, "seconds": 0} and (a.configuration, a.case) == (
            b.configuration, b.case)
    before = len(made)
    compete(place(tmp_path / "again", known), maker(folder, made.append))
    assert len(made) == before  # nothing is made a second time
    beside = replace(place(tmp_path / "again", known), beside=(configuration("sdedit@another"),))
    compete(beside, maker(folder, made.append))
    assert {c.name for c in made[before:]} == {"sdedit@another"}  # a row that is new is made alone
    with pytest.raises(BenchmarkError, match="trials"):
        compete(place(tmp_path / "again", known, trials=3), maker(folder))


@pytest.fixture(scope="module")
def experiment(folder, known, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(rivals, "able", lambda task: ("plain", "sdedit", "p2p"))
    patch.setattr(rivals, "_measure", lambda *a: None)
    patch.setattr(type(sage.method("p2p")), "beside", ())
    patch.setattr(type(sage.method("p2p")), "presets", {"published": {"steps": 3, "blend": None}})
    early, where = [], place(tmp_path_factory.mktemp("experiment"), known)
    where = replace(where, beside=(configuration("sdedit@another"),))
    found = compete(where, maker(folder), so_far=early.append)
    patch.undo()
    assert [line for line in found.lines if ":" not in line.configuration] == early[0].lines and len(early) == 1
    assert "p2p:published" in {line.configuration for line in found.lines}
    early_table = markdown(early[0], {})
    assert "| p2p |" in early_table and "p2p:published" not in early_table
    return found


@pytest.mark.slow
def test_what_was_chosen_earlier_is_not_searched_again_where_it_still_fits(folder, known, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "able", lambda task: ("sage", "sdedit"))
    first, said = compete(place(tmp_path / "first", known), maker(folder)), []
    monkeypatch.setattr(rivals, "able", lambda task: ("sage", "sdedit", "plain"))  # one is new
    record = read_record(tmp_path / "first/chosen.json")
    again = compete(place(tmp_path / "again", known), maker(folder), say=said.append, record=record)
    assert {name: again.chosen[name] for name in first.chosen} == first.chosen
    assert "to be searched" in said[1] and said[1].endswith(": plain")
    assert not lines_of(tmp_path / "again/sage/tuning") and lines_of(tmp_path / "again/plain/tuning")
    assert [line.scores["outside_psnr"] for line in again.lines if line.configuration == "sage"] == [
        line.scores["outside_psnr"] for line in first.lines if line.configuration == "sage"]
    # A search that would try another setting now, and one whose setting is gone, are made anew.
    sage_values = record.chosen["sage"].trials[0].values
    fewer = replace(record.chosen["sage"], trials=tuple(
        replace(t, values={"guidance_scale": sage_values["guidance_scale"]}) for t in record.chosen["sage"].trials))
    gone = replace(record.chosen["sdedit"], settings={**record.chosen["sdedit"].settings, "gone": 1})
    here = rivals.Worker(again.place, *maker(folder)())
    assert here.outdated({**record.chosen, "sage": fewer, "sdedit": gone}) == ["sage", "sdedit"]
    assert here.outdated(record.chosen) == []
    for other, why in ((replace(record, weights="0"), "other weights"),
                       (replace(record, protocol={**record.protocol, "steps": 50}), "steps 50 and not 2")):
        with pytest.raises(BenchmarkError, match=why):
            compete(place(tmp_path / "other", known), maker(folder), record=other)


@pytest.mark.parametrize("text", [
    "", "{}", "[]", '{"rivals": {}}', '{"rivals": {"sage": 1}, "model": {}, "protocol": {}}',
    '{"rivals": [], "model": {"weights": "a"}, "protocol": {}}'])
def test_what_is_no_record_is_one_line(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("chosen.json").write_text(text)
    command = ["bench", "stilllife", "--experiment", "rivals", "--quiet", "--out", "out", "--chosen", "chosen.json"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "chosen.json is no chosen.json of a comparison" in err and err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_methods_that_cannot_use_the_model_are_left_out_and_told(folder, known, tmp_path, monkeypatch):
    monkeypatch.setattr(type(sage.method("sdedit")), "fits", lambda *_: "it wants a flow")
    found = compete(place(tmp_path, known, trials=1, points=1), maker(folder))
    assert "sdedit" not in found.chosen and found.unfit == {"sdedit": "it wants a flow"}
    assert "sdedit is left out: it wants a flow." in markdown(found, {})


@pytest.mark.slow
def test_a_setting_that_fails_everywhere_is_not_chosen(folder, known, tmp_path):
    def fail(configuration):
        if configuration.changes.get("guidance_scale") == 7.5:
            raise RuntimeError("it is too hard")

    class Broken(ModelEngine):
        def _edited(self, configuration, jobs):
            fail(configuration)
            return super()._edited(configuration, jobs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sage.load_model(folder)
    found = compete(place(tmp_path, known), lambda: (Broken(model), Extractors()))
    first, second = found.chosen["p2p"].trials
    assert (first.failed, first.score) == (2, 0.0) and second.score > 0
    assert found.chosen["p2p"].values == second.values


# ---- with SAGE's loss besides


@pytest.mark.slow
def test_a_method_with_sages_loss_competes_beside_itself_and_is_searched_with_it(folder, known, tmp_path, monkeypatch):
    monkeypatch.setattr(rivals, "able", lambda task: ("turbo-ddpm",))
    monkeypatch.setattr(type(sage.method("turbo-ddpm")), "beside", ("sage",))
    engine, extractors = maker(folder)()
    assert rivals.rivals(engine.model)[0] == ["turbo-ddpm", "turbo-ddpm+sage"]
    at = place(tmp_path, known, trials=3)
    worker = rivals.Worker(replace(at, protocol=replace(at.protocol, steps=4)), engine, extractors)
    alone, beside = (find(worker, name) for name in rivals.rivals(engine.model)[0])
    assert "preserve_scale" not in alone.values and alone.settings["preserve_scale"] == 0
    tried = [trial.values["preserve_scale"] for trial in beside.trials]
    assert tried[0] == 14100 and len(set(tried)) == 3 and all(2000 <= scale <= 100_000 for scale in tried)
    assert beside.settings["preserve_scale"] == beside.values["preserve_scale"] and beside.strength == alone.strength
    assert beside.itself.settings(sage.method("turbo-ddpm").Settings()).as_dict() == beside.settings
    # The loss does something: what is the same in all else is scored otherwise.
    same = alone.trials[0].values
    assert beside.trials[0].values == {**same, "preserve_scale": 14100}
    assert beside.trials[0].each != alone.trials[0].each


def find(worker, rival):
    worker.find(rival)
    return read_chosen(worker.place.out / rival / CHOSEN)


# ---- what is made large


def line(case="a", status=DONE, configuration="x", calls=10.0, gradients=0.0, **scores):
    return Line(configuration, case, 0, status, scores=scores, calls=calls, gradients=gradients)


def test_the_score_is_a_weighted_mean_of_what_there_is_and_nothing_for_a_failure():
    aim = {"inside_psnr": 2, "outside_psnr": 1}
    assert score(line(inside_psnr=20, outside_psnr=32), aim) == 24
    assert score(line(inside_psnr=20, outside_psnr=None), aim) == 20  # an edit of everything has no outside
    assert score(line(status=FAILED), aim) == 0 == score(line(), aim)


def test_without_a_true_edit_there_must_be_clip(known, benchmark):
    assert aim_of(known, Extractors()) == {"inside_psnr": 2 / 3, "outside_psnr": 1 / 3}
    with pytest.raises(SettingsError, match="needs CLIP"):
        aim_of(benchmark, Extractors())


def test_a_quick_search_takes_the_wordings_in_turn(known, benchmark):
    assert [(c.kind, c.wording) for c in in_turn(known).cases] == [(0, "full"), (1, "short"), (0, "full")]
    assert in_turn(benchmark) == benchmark


def test_a_benchmark_is_split_by_kind(benchmark):
    tuning, test = split(benchmark, 1)
    assert [c.kind for c in tuning.cases] == [0, 1] and len(test.cases) == 4
    assert not {c.name for c in tuning.cases} & {c.name for c in test.cases}
    assert len(split(benchmark, 1, 1)[1].cases) == 2
    with pytest.raises(SettingsError, match="too few"):
        split(benchmark, 3)


# ---- auto


def settled(name, values, trial_score):
    settings = sage.method(name).Settings().but(**values, steps=2)
    return Chosen(name, name, settings.as_dict(), values, "guidance_scale", (), False, (Trial(values, trial_score),))


def made_up(known, rows):
    """An experiment with these scores: by label (network calls, ways back, dB above 20 of each case)."""
    cases = [f"{i}" for i in range(12)]
    lines = [line(case, DONE, label, calls, gradients, inside_psnr=20.0 + gain + 0.1 * (i % 3), outside_psnr=20.0)
             for label, (calls, gradients, gain) in rows.items() for i, case in enumerate(cases)]
    chosen = {"sage": settled("sage", {"guidance_scale": 2.0}, 30.0),
              "p2p": settled("p2p", {"guidance_scale": 3.0}, 31.0),
              "sdedit": settled("sdedit", {"strength": 0.4}, 32.0)}
    return Experiment(Place(Path("x"), known, known, Protocol(2)), chosen, {}, lines, {}, {"engine": {"weights": "w"}})


@pytest.mark.parametrize("rows, expected", [
    ({"recommended": (40, 10, 0), "p2p": (50, 0, 2), "sdedit": (99, 0, 9)}, "p2p"),  # sdedit asks for too much
    ({"recommended": (40, 10, 0), "p2p": (50, 0, 2), "sdedit": (20, 0, 9)}, "sdedit"),
    ({"recommended": (40, 10, 0), "p2p": (50, 0, 2), "sdedit": (20, 0, 0)}, None),  # best when tuned, not ahead
    ({"recommended": (40, 0, 0), "p2p": (50, 0, 2), "sdedit": (20, 20, 9)}, None),  # a way back counts as two
    ({"recommended": (40, 0, 0), "p2p": (40, 0, -2), "sdedit": (99, 0, 0)}, None)])
def test_auto_is_who_was_best_on_tuning_cases_at_no_more_calls_and_is_ahead_on_the_others(known, rows, expected):
    found = made_up(known, {**rows, "sage": (99, 0, 0)})
    text = as_auto(found, "2026-01-01")
    assert (text and json.loads(text)["method"]) == expected
    if text:
        values = json.loads(text)
        taken = recorded(values, "tiny")
        assert taken.method == expected and taken.as_method().variant["steps"] == 2
        assert values["why"]["test cases"] == 12 and values["why"]["score minus recommended"][1] > 0


# ---- pages


def test_pages_say_what_was_measured(experiment, tmp_path):
    shutil.copytree(experiment.place.out, tmp_path / "out")
    found = replace(experiment, place=replace(experiment.place, out=tmp_path / "out"))
    paths = write_all(found, {"date": "2026-01-01", "machine": "<a machine>"})
    page = Page(paths[0].read_text())
    assert [h["text"] for h in page.all("h2")] == [
        "The table", "Frontiers", "Minus method=plain", "Ten edits by every method", "The search"]
    captions = [c["text"] for c in page.all("caption")]
    assert captions == ["short prompts", "full prompts", "all prompts"]
    figures = [f["text"] for f in page.all("figcaption")]
    assert figures == ["all kinds, short prompts", "all kinds, full prompts", "all kinds, all prompts", "mixed",
                       "change object"]
    text = paths[1].read_text()
    mean = found.results("short").mean("p2p", "inside_psnr")
    assert f"| {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}] |" in text.split("## Full")[0]
    assert "2 trials on the same 2 tuning cases" in text and "4 other cases" in text
    assert "- machine: <a machine>" in text
    calls = {row.split("|")[1].strip(): row for row in text.split("## All prompts")[1].split("##")[0].splitlines()
             if row.startswith("| ")}
    title = [cell.strip() for cell in calls[""].split("|")].index("network calls")
    lines = [x for x in found.lines if x.configuration == "p2p"]
    assert calls["p2p"].split("|")[title].strip() == f"{np.mean([x.calls for x in lines]):.0f}"
    assert {"p2p:published", "sdedit:published"} <= calls.keys() and "plain:published" not in calls
    assert "<a machine>" not in paths[0].read_text()  # its text is escaped there


def test_rows_on_another_model_stand_beside_the_rivals_and_win_nothing(experiment):
    label = "sdedit@another"
    assert label in experiment.heads and label not in experiment.chosen
    assert experiment.about["models"]["another"]["weights"] == experiment.about["engine"]["weights"]
    text = markdown(experiment, {})
    assert text.count(f"| {label} |") == 4  # short, full, all, the paired differences
    assert len([x for x in experiment.lines if x.configuration == label and x.status == DONE]) == 4
    ours, bounds = rivals_page._tables(experiment).split("<caption>")[1].split('<tbody class="bounds">')
    row = '<th scope="row">sdedit'
    assert ours.count(row) == 2 and bounds.count(row) == 1  # as chosen and published; on another model


def test_the_contact_sheet_has_every_method_and_one_case_of_each_kind(experiment):
    assert [case.kind for case in sampled(experiment)] == [0, 1]
    assert [case.wording for case in sampled(experiment)] == ["full", "short"]
    sheet = contact_sheet(experiment)
    rows = 2 + 2 + len(experiment.chosen)  # source, true edit, recommended, on another model, rivals
    assert sheet.height > rows * 96 and sheet.width < 3 * 110


def test_curves_run_from_the_weakest_strength_with_the_chosen_one_among_them():
    c = replace(settled("p2p", {"guidance_scale": 3.0}, 1.0), strengths=(1.0, 8.0), published=True)
    assert list(c.curve.values()) == [1.0, 3.0, 8.0] and list(c.curve)[1] == "p2p"
    assert c.itself.name == "p2p"
    assert [other.name for other in c.others()] == ["p2p:guidance_scale=1", "p2p:guidance_scale=8", "p2p:published"]
    assert settled("plain", {}, 1.0).label == "method=plain"  # plain is a bound of every table


def test_the_front_is_of_those_that_no_other_beats_in_both():
    def curve(name, *places):
        return Curve(name, places, ["w"] * len(places))

    frontier = Frontier("t", "kept", "changed", [curve("sage", (1, 1)), curve("a", (3, 1), (2, 2)), curve("b", (1, 3)),
                                                 curve("c", (2, 1.5)),
                                                 replace(curve("bound", (9, 9)), mark="bound")])
    assert frontier.front() == ["a", "b"]
    svg = frontier.svg()
    assert svg.count("<text") - svg.count('class="middle"') - svg.count('class="end"') == 4  # a, b, sage, the bound
    assert 'class="rest"' in svg and 'class="ours"' in svg
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and len(ticks(5, 5)) >= 2


@pytest.mark.parametrize("arguments, message", [
    (["stilllife", "--config", "plain"], "--config plain: with --experiment rivals it is for rows on another model"),
    (["stilllife", "--experiment", "loss"], "leave out the other experiments"),
    (["stilllife", "--shard", "1/2"], "leave out --shard"),
    (["stilllife", "--chosen", "gone.json"], "gone.json"),
    (["stilllife", "--engine", "ray"], "leave out --engine ray"),
    (["stilllife", "--tuning"], "leave out --tuning"), (["stilllife", "--trials", "0"], "--trials is 0"),
    (["magicbrush", "--data", "x"], "is for stilllife and piebench"), (["piebench", "--data", "x"], "no benchmark")])
def test_what_does_not_go_with_it_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark, *more = arguments
    assert main(["bench", benchmark, "--out", "out", "--quiet", "--experiment", "rivals", *more]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
