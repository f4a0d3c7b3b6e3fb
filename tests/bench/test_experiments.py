import json
import re

import pytest

from sage import EditConfig
from sage.bench.configs import configuration
from sage.bench.experiments import BOUNDS, EXPERIMENTS, FRONTIERS, REGION_BOUNDS, experiment, sweep
from sage.bench.runner import run
from sage.bench.tables import Results
from sage.errors import SettingsError
from tests.bench.world import StubEngine, make_benchmark

RECOMMENDED = EditConfig(self_level=0, cross_level=0)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_configuration_is_possible_and_another(name):
    e = experiment(name)
    settings = [configuration(c) for c in e.configurations]
    assert len({c.folder for c in settings}) == len(settings)
    started = [RECOMMENDED if c.method == "sage" else c.edits_by.Settings() for c in settings]
    distinct = {json.dumps([c.makes, c.method, c.words, c.settings(base).as_dict(), dict(c.overrides)])
                for c, base in zip(settings, started, strict=True)}
    assert len(distinct) >= len(settings) - 2  # some may be what is recommended
    assert e.baseline in (*BOUNDS, *REGION_BOUNDS, *e.configurations)


def test_the_grid_is_whole_and_the_frontier_has_every_way():
    assert len(EXPERIMENTS["figure-9"].configurations) == 16
    assert {name for base in FRONTIERS.values() for name in sweep(base)} == set(EXPERIMENTS["frontier"].configurations)
    settings = configuration("cross-guidance:guidance_scale=3").settings(RECOMMENDED)
    assert (settings.guidance_scale, settings.reconstruction, settings.blend) == (3.0, "cross", None)


def test_an_unknown_experiment_is_one_line_that_names_the_others():
    with pytest.raises(SettingsError, match="no experiment is called 'tabel-1': there are table-1, table-1-strong"):
        experiment("tabel-1")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Lines of a stub for the grid and the frontier."""
    folder = tmp_path_factory.mktemp("experiments")
    benchmark = make_benchmark(folder / "benchmark", 3)
    names = [*BOUNDS, *EXPERIMENTS["figure-9"].configurations, *EXPERIMENTS["frontier"].configurations]
    lines = run(benchmark, [configuration(n) for n in dict.fromkeys(names)], StubEngine(fails=["000000000001"]),
                folder / "run", batch=2)
    return Results(lines)


def test_tables_say_means_differences_and_failures(results):
    drawing = pytest.importorskip("benchmarks.experiments", reason="needs matplotlib")
    text = drawing.table(results)
    rows = [row.split("|")[1:-1] for row in text.splitlines()]
    assert len({len(row) for row in rows}) == 1 and rows[0][0].strip() == "configuration"
    by_name = {row[0].strip(): row for row in rows[2:]}
    mean = results.mean("guidance:guidance_scale=3", "outside_psnr")
    assert f"{mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]" in by_name["`guidance:guidance_scale=3`"][1]
    assert by_name["`plain`"][-1].strip() == "1"
    differences = drawing.comparison(results, "guidance:guidance_scale=1")
    assert "`guidance:guidance_scale=1`" not in differences.split("|\n", 2)[2]
    assert re.search(r"\| `guidance:guidance_scale=3` \| [+-]\d+\.\d\d \[.*\], (0|50|100)% ", differences)


@pytest.mark.slow
def test_figures_are_drawn_and_the_same_again(results, tmp_path):
    drawing = pytest.importorskip("benchmarks.experiments", reason="needs matplotlib")
    paths = [*drawing.frontier(results, tmp_path), *drawing.grid(results, tmp_path)]
    assert [p.name for p in paths] == ["frontier-overall.png", "frontier-mixed.png", "frontier-change-object.png",
                                       "frontier-add-object.png", "figure-9.png"]
    first = [p.read_bytes() for p in paths]
    assert all(b.startswith(b"\x89PNG") for b in first)
    assert first == [p.read_bytes() for p in (*drawing.frontier(results, tmp_path), *drawing.grid(results, tmp_path))]
