"""Benchmarks that put something elsewhere: made-up folders in the layouts of DragBench and TF-ICON, from end to end."""

import json
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import sage
from sage import pictures
from sage.bench import engine as engines
from sage.bench.configs import REGION_DEFAULT, configuration
from sage.bench.files import BenchmarkError
from sage.bench.metrics import Extractors
from sage.bench.places import places
from sage.bench.region_metrics import drag_bench, nearest, tf_icon
from sage.bench.regions import read_dragbench, read_tficon
from sage.bench.runner import Outcome
from sage.bench.scoring import DONE, Line
from sage.bench.tables import Results, interval
from sage.commands.main import main
from sage.method import method
from tests.bench.networks import make_networks
from tests.bench.world import StubEngine, picture
from tests.models import tiny

SIDE = 64
FROM, TO = (8, 8, 24, 24), (36, 30, 52, 46)
READS = {"source", "target", "mask", "moves", "points"}


def box(*sides, size=SIDE):
    mask = np.zeros((size, size), bool)
    mask[sides[1]:sides[3], sides[0]:sides[2]] = True
    return mask


def dense():
    """All pixels of a square, and where each of them shall be."""
    y, x = np.mgrid[FROM[1]:FROM[3], FROM[0]:FROM[2]].reshape(2, -1)
    return np.stack([x, y, x + TO[0] - FROM[0], y + TO[1] - FROM[1]], -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def drags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("DragBench-DR")
    for i, name in enumerate(("animals/JH_1", "animals/JH_2", "art_work/1")):
        (folder / name).mkdir(parents=True)
        picture(i, SIDE).save(folder / name / "original_image.png")
        mask = (box(*FROM) | box(*TO)).astype(np.uint8) * 255
        points = [(16, 16), (44, 38)] * (1 + i)
        for file, of in (("meta_data", points), ("meta_data_region", dense())):
            if (i, file) != (2, "meta_data_region"):  # the last one has points alone
                (folder / name / f"{file}.pkl").write_bytes(
                    pickle.dumps({"prompt": "a cat on a mat", "points": of, "mask": mask}))
    return folder


@pytest.fixture(scope="module")
def compositions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tficon")
    for i, name in enumerate(("Real-Cartoon/0000 a cat on a mat", "Real-Real/0001 a dog on a mat")):
        (folder / name).mkdir(parents=True)
        picture(i, SIDE).save(folder / name / "bg01.png")
        picture(9 + i, 80).save(folder / name / "fg02.jpg")
        for file, of in (("fg02_mask.png", box(20, 10, 60, 70, size=80)), ("mask_bg_fg.jpg", box(*TO))):
            Image.fromarray(of.astype(np.uint8) * 255).save(folder / name / file)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return make_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    tiny.make(folder)
    return folder


def bench(name, data, out, *more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return main(["bench", name, "--data", str(data), "--out", str(out), "--quiet", *more])


# ---- what a method is given


def test_a_drag_is_asked_by_its_regions_or_its_points(drags):
    first, _, sparse = read_dragbench(drags).cases
    source = read_dragbench(drags).source(first)
    asked = first.asked(source, READS).request
    assert np.array_equal(np.array(asked.points).reshape(-1, 2), dense()) and not asked.moves
    assert np.array_equal(np.asarray(asked.mask) > 0, box(*FROM) | box(*TO))
    discs = sparse.asked(source, READS).request
    assert len(discs.moves) == 3 and not discs.points and discs.moves[0].target.getbbox() == (37, 31, 51, 45)
    assert read_dragbench(drags, regions=False).cases[0].asked(source, READS).request.moves
    for case in (first, sparse):
        other = case.asked(source, READS - {"moves", "points"})
        assert other.around is source and not other.request.moves and not other.request.points
        before, after = np.asarray(source), np.asarray(other.picture)
        assert np.array_equal(after[38, 44], before[16, 16]) and not np.array_equal(after[16, 16], before[16, 16])


def test_a_composition_edits_the_paste_inside_its_box(compositions):
    benchmark = read_tficon(compositions)
    case, source = benchmark.cases[0], benchmark.source(benchmark.cases[0])
    with pytest.raises(BenchmarkError, match="not been opened"):
        case.asked(source, READS)
    asked = benchmark.ready(case).asked(source, READS)
    changed = (np.asarray(asked.picture) != np.asarray(source)).any(-1)
    assert not changed[~box(*TO)].any() and changed[box(*TO)].mean() > 0.9
    assert np.array_equal(np.asarray(asked.request.mask) > 0, box(*TO)) and asked.around is source


def test_what_is_outside_stays_to_the_last_pixel(model, compositions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = engines.ModelEngine(sage.load_model(model))
    benchmark = read_tficon(compositions)
    case = benchmark.ready(benchmark.cases[0])
    source = benchmark.source(case)
    for name in ("eedit:steps=2", "sdedit:steps=2", "p2p:steps=2"):  # the last one reads no mask
        [made] = engine.make(configuration(name), [case], [source], [None])
        changed = (np.asarray(made.picture) != np.asarray(source)).any(-1)
        assert made.reason == "" and not changed[~box(*TO)].any() and changed[box(*TO)].any()


# ---- from end to end


@pytest.mark.parametrize("name, figures", (
    ("dragbench", {"distance", "distance_share", "fidelity", "clip_kept"}),
    pytest.param("tficon", {"lpips_background", "lpips_foreground", "clip_image", "clip_text"},
                 marks=pytest.mark.slow)))
def test_a_run_from_the_command_line(request, model, networks, tmp_path, capsys, name, figures):
    data = request.getfixturevalue({"dragbench": "drags", "tficon": "compositions"}[name])
    given = ["--model", str(model), "--extractors", str(networks), "--device", "cpu", "--config", "source", "pixels",
             *(f"{edit}:steps=2" for edit in ("regiondrag", "eedit"))]
    assert bench(name, data, tmp_path / "out", *given) == 0
    said = capsys.readouterr().out
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    overall = {row["configuration"]: row for row in tables["table"] if row["kind"] is None}
    assert list(overall) == ["source", "pixels", "regiondrag:steps=2", "eedit:steps=2"]
    for row in overall.values():
        assert figures | {"background_psnr", "seconds"} <= row.keys() and None not in [row[key] for key in figures]
    assert overall["source"]["background_psnr"]["mean"] == 100 and overall["eedit:steps=2"]["calls"]["mean"] >= 3
    assert {row["kind"] for row in tables["table"]} - {None} == {path.name for path in data.iterdir()}
    for key, version in tables["networks"].items():
        assert f"{key}: {version}" in said
    assert "plain pixels, moved" in (tmp_path / "out/report.html").read_text()

    # Killed before the last result, it goes on, and nothing else is made anew.
    path = tmp_path / "out/manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])
    assert bench(name, data, tmp_path / "out", *given) == 0
    again = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert len(again) == len(lines)
    last = [(line["configuration"], line["case"], line["scores"]) for line in again][-1]
    assert last == tuple(json.loads(lines[-1])[key] for key in ("configuration", "case", "scores"))

    # Its results are another tool's to the scorer, and what their records hold repeats them.
    folder = tmp_path / "out" / "pixels"
    assert main(["score", str(folder), "--against", str(data), "--extractors", str(networks), "--device", "cpu",
                 "--out", str(tmp_path / "scored"), "--quiet"]) == 0
    scored = json.loads((tmp_path / "scored/tables.json").read_text())["table"][0]
    for key in figures:
        assert scored[key]["mean"] == pytest.approx(overall["pixels"][key]["mean"], rel=1e-5)


def test_the_record_of_a_result_repeats_it(model, compositions, tmp_path):
    assert bench("tficon", compositions, tmp_path / "out", "--model", str(model), "--config", "ddpm:steps=2") == 0
    [path, _] = sorted((tmp_path / "out/ddpm_steps=2").rglob("*.png"))
    record = pictures.read_settings(path)
    assert record["source"] == record["target"] == "a cat on a mat" and record["paste"] is True and record["mask"]


def test_by_default_what_is_moved_is_measured_beside_plain_pixels(drags, monkeypatch, tmp_path, capsys):
    engine = StubEngine()
    monkeypatch.setattr(sage, "load_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(engines, "ModelEngine", lambda *given: engine)
    assert bench("dragbench", drags, tmp_path / "out") == 0
    rows = [row.split("|")[1].strip() for row in capsys.readouterr().out.splitlines()]
    assert rows[2:] == list(REGION_DEFAULT) and {"regiondrag", "eedit", "source", "pixels"} <= set(rows)
    assert (tmp_path / "out/regiondrag/annotation_images/animals/JH_1/dragged_image.png").is_file()
    assert bench("dragbench", drags, tmp_path / "out", "--ask", "points") == 2  # other cases: another run
    for words, said in ((["--config", "reconstruct"], "reconstruct is not for dragbench"),
                        (["--experiment", "rivals"], "dragbench asks for what no prompt says")):
        assert bench("dragbench", drags, tmp_path / "other", *words) == 2
        assert said in capsys.readouterr().err
    assert bench("tficon", drags, tmp_path / "other") == 2 and "no TF-ICON" in capsys.readouterr().err
    assert bench("piebench", drags, tmp_path / "other") == 2


class Untouched(StubEngine):
    """Gives the source back, or plain pixels where they are asked for."""

    def make(self, configuration, cases, sources, truths):
        return [Outcome(case.by_pixels(source) if configuration.makes == "pixels" else source, calls=3)
                for case, source in zip(cases, sources, strict=True)]


@pytest.mark.slow
def test_places_are_run_like_any_other(monkeypatch, tmp_path):
    monkeypatch.setattr(sage, "load_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(engines, "ModelEngine", lambda *given: Untouched())
    words = ["bench", "places", "--out", str(tmp_path), "--side", "64", "--tuning", "--quiet", "--each", "1"]
    assert main([*words, "--config", "pixels", "eedit:words=source"]) == 0
    tables = json.loads((tmp_path / "tables.json").read_text())
    naive, source = (row for row in tables["table"] if row["kind"] is None)
    assert naive["ghost"]["mean"] < source["ghost"]["mean"] and source["place_error"] and source["iou"]
    assert source["attributes"]["count"] == 5 and source["calls"]["mean"] == 3
    assert main([*words[:-1], "2", "--config", "pixels"]) == 2  # another run


def test_the_source_prompt_for_both(model):
    """`words=source` asks a drag for nothing but its moves, which the record holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = engines.ModelEngine(sage.load_model(model))
    benchmark = places(1, SIDE)
    case = replace(benchmark.ready(benchmark.cases[0]), source_marked="a cat", target_marked="a dog")
    for name, target in (("regiondrag:steps=2,words=source", "a cat"), ("regiondrag:steps=2", "a dog")):
        [made] = engine.make(configuration(name), [case], [benchmark.source(case)], [None])
        assert (made.settings["source"], made.settings["target"]) == ("a cat", target)
        assert len(made.settings["moves"]) == 1 and made.settings["mask"] and "paste" not in made.settings


# ---- figures


def test_drags_by_hand():
    """Features that are the pixels themselves: what has gone to its target is at no distance from it."""
    rng = np.random.default_rng(0)
    source = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    moved = np.roll(source, (4, 6), (0, 1))
    points, mask = np.array([[[3, 5], [9, 9]], [[12, 9], [17, 13]]], float), box(0, 0, 60, 40, size=60)[:40]
    mask[:, 30:] = False
    sizes = []

    def features(x, prompt):
        sizes.append(x.shape)
        return x.transpose(2, 0, 1) / 255 - 0.5

    networks = Extractors(features=features, side=120,
                          lpips=lambda x, y: float(np.abs(x - y).mean()) / (x.shape == (224, 224, 3)),
                          image=lambda x: x.mean((0, 1)) - 127)
    found = drag_bench(source, moved, mask, "a cat", points, networks)
    assert found["distance"] == pytest.approx(0.5) and found["points"] == 2
    assert 0 <= found["distance_share"] < 0.05
    assert sizes == [(40, 60, 3)] * 2 + [(120, 120, 3)] * 2  # at their own size, and squashed as RegionDrag has them
    same = drag_bench(source, source, mask, "a cat", points, networks)
    assert same["distance"] == pytest.approx((np.hypot(6, 4) + np.hypot(5, 4)) / 2)
    assert same["fidelity"] == 1 > found["fidelity"] and same["clip_kept"] == pytest.approx(100)
    assert same["background_psnr"] == 100 > found["background_psnr"]
    smaller = np.asarray(Image.fromarray(source).resize((30, 20)))
    assert drag_bench(source, smaller, mask, "", points, Extractors()).keys() == {
        "background_psnr", "background_mse", "background_ssim"}
    wide = nearest(source, 120)
    assert wide.shape == (120, 120, 3) and np.array_equal(wide[3, 2], source[1, 1])


def test_compositions_by_hand():
    background, result = (np.asarray(picture(i, SIDE)) for i in (0, 1))
    reference = np.asarray(picture(2, 48))
    seen = []

    def distance(x, y):
        seen.append((x, y))
        return float(np.abs(x - y).mean())

    networks = Extractors(lpips=distance, image=lambda x: x.mean((0, 1)), text=lambda text: np.array([1.0, 2, 3]))
    found = tf_icon(background, result, reference, TO, box(*TO), "a cat", networks)
    (a, b), (c, d) = seen
    assert (a[box(*TO)] == -1).all() and (b[box(*TO)] == -1).all() and a.min() == -1 and a.max() <= 1
    assert np.allclose(a[~box(*TO)], background[~box(*TO)] / 127.5 - 1, atol=1e-6) and d.shape == c.shape == (48, 48, 3)
    crop = Image.fromarray(result[TO[1]:TO[3], TO[0]:TO[2]]).resize((48, 48), Image.Resampling.BICUBIC)
    assert np.allclose(d, np.asarray(crop) / 127.5 - 1, atol=1e-6)
    assert found["clip_text"] > 0 and found["lpips_background"] > 0 and found["clip_image"] < 100


def test_points_of_all_pictures_weigh_alike():
    lines = [Line("a", f"{i}", 0, DONE, scores={"distance": d, "points": n, "distance_share": d})
             for i, (d, n) in enumerate(((1.0, 1.0), (4.0, 3.0)))]
    results = Results(lines, ["x"])
    assert results.mean("a", "distance").mean == 13 / 4 and results.mean("a", "distance_share").mean == 5 / 2
    x, w = np.array([0.0, 1, 2, 3, 8]), np.array([1.0, 2, 3, 4, 90])
    assert interval(x, [2.0] * 5) == interval(x)
    drawn = np.random.default_rng(0).integers(5, size=(2000, 5))  # the bootstrap's, each draw a mean by weight
    means = [np.average(x[some], weights=w[some]) for some in drawn]
    assert (interval(x, w).low, interval(x, w).high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))))
    assert [m.key for m in Results(lines, ["x"], costs=True).metrics] == ["distance", "distance_share", "seconds",
                                                                         "calls"]


def test_regiondrag_reads_points():
    assert {"moves", "points"} <= method("regiondrag").reads & method("eedit").reads
