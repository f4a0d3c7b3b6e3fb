"""The measuring of speed: the baseline is the released algorithm, counts are right, and a killed run goes on."""

import json
import subprocess
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.speed import __main__ as command
from benchmarks.speed import ablation, baseline, carried, count, floor, parts, table
from benchmarks.speed.cells import BASELINE, CELLS, GUIDED, OURS, UNASKED, WHOLE, Cell
from benchmarks.speed.few import CASES, METHODS, Few
from benchmarks.speed.few import measure as measure_few
from benchmarks.speed.measure import IMPLEMENTATIONS, Clock, Host, Ours, bytes_of, held, measure
from benchmarks.speed.memory import slope
from sage.machine.estimates import FILE
from tests import released, small

TINY = Cell("tiny", 64, "cpu", "float32", 1, (OURS, BASELINE), guided=3, unguided=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tiny model's weights are kept."""
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def rows(folder):
    return {name: measure(TINY, name, folder) for name in (OURS, BASELINE)}


@pytest.mark.parametrize("prediction", ("epsilon", "v_prediction"))
def test_the_baseline_computes_what_the_released_code_does(tmp_path, prediction):
    made = small.make(tmp_path / "tokenizer", prediction=prediction)
    source, target, image = "a cat on a mat", "a dog on a mat", small.picture()
    judge = released.run(made.unet, made.vae, made.text, made.tokenizer, image, source, target, released.Options(
        steps=4, w=2.0, scale=10.0, gain=300.0, replace=("cat", "dog"), replace_fraction=0.5, blend=("cat", "dog"),
        blend_fraction=0.8, prediction=prediction))
    settings = baseline.Settings(4, changed=("cat", "dog"), replace_fraction=0.5, w=2.0, scale=10.0)
    model = baseline.Released(made.unet, made.vae, made.text, made.tokenizer, prediction)
    seen = []
    inversion = model.invert(image, source, target, settings, lambda *step: seen.append(step))
    picture = model.sample(inversion, target, lambda *step: seen.append(step))
    assert torch.allclose(model.latents, judge.latents, atol=1e-5)
    assert picture.size == (64, 64)
    assert [s for s in seen if s[0] == "edit"] == [("edit", i, 4) for i in (1, 2, 3, 4)]
    references = [maps for (phase, _), maps in inversion.watcher.maps.items() if phase == "invert"]
    assert len(references) == 4 and all(len(maps) == 3 for maps in references)


def test_operations_counted_by_hand():
    x = torch.zeros(2, 8, 5, 5, device="meta")
    assert count.flops(lambda: F.conv2d(x, torch.zeros(16, 8, 3, 3, device="meta"), padding=1)) == (
        2 * 2 * 5 * 5 * 16 * 8 * 9)
    tokens = torch.zeros(2, 7, 8, device="meta")
    assert count.flops(lambda: F.linear(tokens, torch.zeros(3, 8, device="meta"))) == 2 * 2 * 7 * 8 * 3
    q, k = torch.zeros(2, 4, 7, 8, device="meta"), torch.zeros(2, 4, 9, 8, device="meta")
    assert count.flops(lambda: F.scaled_dot_product_attention(q, k, k)) == 2 * 2 * (2 * 4 * 7 * 9 * 8)


@pytest.mark.slow
def test_the_counts_of_an_edit():
    one, eight = (count.counted("tiny", 64, batch) for batch in (1, 8))
    for part in ("forward", "backward", "decode", "encode", "reference"):
        assert eight[part] == pytest.approx(8 * one[part], rel=0.01)
    assert 0.2 * one["forward"] < one["backward"] < one["forward"]  # frozen weights, and not from the last block
    latents = 64 // 4
    assert one["reference"] == 3 * 2 * (latents // 2) ** 4  # sites, heads, (N, N)
    machine = {"flops": 1e9, "bytes": 1e9}
    assert count.Part(2e9, 1e9).seconds(machine) == 2 and count.Part(1e9, 3e9).seconds(machine) == 3


def test_the_machine_at_its_best(monkeypatch):
    monkeypatch.setattr(floor, "LINEAR", ((64, 64, 64),))
    monkeypatch.setattr(floor, "CONVOLUTION", ((1, 16, 8, 3),))
    monkeypatch.setattr(floor, "COPY", 2**16)
    found = floor.machine("cpu", torch.float32, 0.0)
    assert found["flops"] == max(found["rates"].values()) and found["bytes"] > 0 and len(found["rates"]) == 3


def test_a_measured_row(rows):
    ours, theirs = rows[OURS], rows[BASELINE]
    assert [len(ours[k]) for k in ("invert", "guided", "unguided")] == [4, 2, 1]  # the first of each left out
    assert [len(theirs[k]) for k in ("invert", "guided", "unguided")] == [2, 2, 0]
    assert ours["weights"]["unet"] == theirs["weights"]["unet"] > 0
    for row in rows.values():
        assert min(row["invert"] + row["guided"]) > 0 and row["peak"] >= max(row["peaks"].values())
    maps = 3 * 2 * 64 * 64 * 4  # sites, heads, (N, N), bytes
    assert theirs["reference_bytes_a_step"] == pytest.approx(maps, rel=0.3)  # and latents, masks, text
    assert 0 < ours["reference_bytes_a_step"] < 1.3 * maps  # however it keeps them


@pytest.mark.parametrize("name, dtype, width", ((OURS, "float32", 4), (BASELINE, "float16", 2)))
def test_the_way_of_a_gpu_as_far_as_a_cpu_can_go_it(folder, monkeypatch, name, dtype, width):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 9)
    kind = IMPLEMENTATIONS[name]
    monkeypatch.setitem(IMPLEMENTATIONS, name, lambda model, folder, device, dtype: kind(model, folder, "cpu", dtype))
    row = measure(replace(TINY, device="cuda", dtype=dtype, guided=2, unguided=1), name, folder)
    assert calls.count("reset") == 1 and calls.count("wait") > 10
    assert (row["device_peak"], row["device_reserved"]) == (7, 9)
    assert row["weights"]["unet"] == count.counted("tiny", 64, 1)["unet_weights"] * width
    assert table.Summary(replace(TINY, device="cuda"), name, [row]).line(None, 1.0)[-1] == "0.00"


def test_several_pictures_at_once(folder, rows):
    row = measure(replace(TINY, batch=2), OURS, folder)
    assert row["reference_bytes_a_step"] == pytest.approx(2 * rows[OURS]["reference_bytes_a_step"], rel=0.3)


def test_a_whole_edit_is_timed_whole(folder, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.measure.WHOLE", 5)
    monkeypatch.setattr(Ours, "guided_of_whole", 4)
    row = measure(replace(TINY, whole=True), OURS, folder)
    assert (len(row["invert"]), len(row["guided"]), len(row["unguided"])) == (5, 3, 1)
    assert row["whole"] >= sum(row["invert"]) + sum(row["guided"])


def test_tensors_are_found_wherever_they_hang():
    @dataclass
    class Box:
        inside: object

    a, b = torch.zeros(10), torch.zeros(4, dtype=torch.float16)
    box = Box({"a": [a, a[2:]], "b": (Box(b), torch.nn.Linear(9, 9), "text", None)})
    assert bytes_of(box) == 40 + 8
    assert sum(t.nbytes for t in held(box, 2.5)) == 120 and held(box, -1) == []


def test_a_peak_is_forgotten():
    if Host._status("VmHWM") is None:
        pytest.skip("needs Linux")
    from mmap import mmap
    block = mmap(-1, 2**27)  # not a tensor: what those free may be kept
    block.write(bytes([1]) * 2**27)
    high = Host.peak()
    block.close()
    Host.forget()
    assert Host.peak() < high


def test_the_clock_gives_each_step_its_seconds(monkeypatch):
    now = iter(range(0, 1000, 10))
    clock = Clock("cpu")
    monkeypatch.setattr(Clock, "time", lambda self: float(next(now)))
    for step in (("encode", 0, 1), ("encode", 1, 1), ("invert", 1, 2), ("invert", 2, 2), ("edit", 1, 1)):
        clock(*step)
    assert clock.steps("encode") == [10] and clock.steps("invert") == [10, 10] and clock.steps("edit") == [10]
    clock.at = lambda *step: next(now)  # what is done beside the edit counts nowhere
    clock("decode", 0, 1)
    clock("decode", 1, 1)
    assert clock.steps("decode") == [10]


@pytest.mark.parametrize("name, kind", (
    ("aten::mkldnn_convolution", "convolution"), ("ConvolutionBackward0", "convolution"), ("aten::addmm", "linear"),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention, fused"), ("aten::baddbmm", "maps"),
    ("aten::native_group_norm", "norms and activations"), ("Memcpy DtoH (Device -> Pinned)", "transfers"),
    ("aten::add", "the rest")))
def test_operations_by_kind(name, kind):
    assert parts.kind_of(name) == kind


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in (OURS, BASELINE)])
def test_the_profile_finds_every_part(folder, name):
    seconds = parts.measure(TINY, name, folder)["seconds"]
    assert {"UNet, forward", "UNet, backward", "VAE", "text", "sampling"} <= set(seconds)
    for part, operation in (("UNet, forward", "linear"), ("UNet, backward", "convolution"), ("VAE", "convolution")):
        assert seconds[part][operation] > 0
    assert any(operations.get("maps") for operations in seconds.values())
    assert name == OURS or "attention, fused" not in seconds["UNet, forward"]


def test_growth_with_its_interval():
    noise = [(-1) ** i for i in range(100)]
    found = slope([1000 + 5 * i + n for i, n in enumerate(noise)])
    assert found["low"] < 5 < found["high"] and found["slope"] == pytest.approx(5, abs=0.01)


def fake(seconds: float, peak: float, name: str) -> dict:
    return {"busy": 0.9, "load": 3.0, "threads": 2, "interpreter": 2**28, "weights": {"unet": 2**30}, "whole": None,
            "loading_peak": 0, "encode": 1.0, "invert": [seconds, seconds * 1.1, seconds * 0.9],
            "guided": [3 * seconds] * 2, "unguided": [2 * seconds] if name == OURS else [], "decode": 2.0,
            "finish": 0.5, "text": 0.25, "peak": round(peak * 2**30), "peaks": {}, "first": 1.0}


def results() -> dict:
    cell, bf16 = CELLS["sd14-256-cpu-float32-b1"], CELLS["sd14-256-cpu-bfloat16-b1"]
    job = {"kind": "edit", "cell": asdict(cell)}
    rows = [{"job": job | {"implementation": OURS, "turn": i}, "result": fake(1.0 + i / 100, 2.25, OURS)}
            for i in range(2)]
    rows += [{"job": job | {"implementation": BASELINE}, "result": fake(2.0, 4.25, BASELINE)},
             {"job": job | {"cell": asdict(bf16), "implementation": OURS}, "result": {"failed": "it was too much"}},
             {"job": {"kind": "floor", "device": "cpu", "dtype": "float32"},
              "result": {"flops": 1e9, "bytes": 1e9, "by": "linear"}},
             {"job": {"kind": "count", "cell": asdict(cell)}, "result": {
                 part: {"flops": 1e8, "bytes": 0} for part in ("encode", "text", "invert", "guided", "unguided",
                                                               "decode")}},
             {"job": {"kind": "many"}, "result": {"steps": 10, "resident": [2**28] * 100,
                                                  "growth": {"slope": 0.0, "low": -1.0, "high": 1.0}}},
             {"job": {"kind": "steps"}, "result": {"steps": 10, "peak": 2**28, "references": 2**20}}]
    unasked = replace(CELLS["sd21-768-cpu-float32-b1"], why_not=UNASKED)
    cells = [cell, bf16, CELLS["sd14-512-cuda-float16-b1"], CELLS["sd14-512-cpu-bfloat16-b1"], unasked]
    return {"machine": {"cpu": "some"}, "date": "2026-01-01", "cells": {c.name: asdict(c) for c in cells},
            "rows": json.loads(json.dumps(rows))}


def test_the_table():
    page = table.Page(results())
    ours, theirs = (page.summaries["sd14-256-cpu-float32-b1", name] for name in (OURS, BASELINE))
    once = 1.0 + 0.25 + 2.0 + 0.5
    assert ours.edits[0] == pytest.approx(once + WHOLE + 3 * GUIDED + 2 * (WHOLE - GUIDED))
    assert theirs.edit == pytest.approx(once + WHOLE * 2 + 6 * WHOLE)
    assert page.floor(ours.cell) == pytest.approx(0.1 * (3 + 2 * WHOLE))
    assert (ours.beyond, theirs.beyond) == (2**30, 3 * 2**30)
    text = table.render(results())
    assert f"**{theirs.edit / ours.edit:.2f}**" in text and "33 %" in text
    assert "not yet measured: no GPU here" in text
    assert "Not measured (it was too much): sd14-256-cpu-bfloat16-b1 ours." in text
    assert UNASKED not in text and "sd21" not in text
    assert "Something else" not in text
    slowed = results()
    slowed["rows"][0]["result"]["busy"] = 0.3
    assert "too slow: sd14-256-cpu-float32-b1 ours." in table.render(slowed)
    header, *lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.count("|") in (5, len(table.HEAD) + 1, 6) for line in (header, *lines))


def test_every_cell_is_measured_or_says_why_not():
    grid = {(m, s, d, t, b) for m, s in (("stilllife", 64), ("sd14", 512), ("sd21", 768)) for b in (1, 8)
            for d, t in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "float16"))}
    assert grid <= {(c.model, c.size, c.device, c.dtype, c.batch) for c in CELLS.values()}
    cells = command.chosen(None, None, False, False)
    names = [job["name"] for job in command.plan(cells, None, False, cuda=False)]
    assert len(set(names)) == len(names) and not any("cuda" in name for name in names)
    turns = [name for name in names if name.startswith("sd14-256-cpu-float32-b1 ")]
    assert [t.split()[1] for t in turns] == [OURS, BASELINE, BASELINE, OURS, OURS, BASELINE]
    assert any("cuda" in job["name"] for job in command.plan(cells, None, False, cuda=True))


def test_a_student_is_measured_beside_sage_and_the_large_one_only_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(command, "installed", lambda: True)

    def few(*only):
        jobs = command.plan(command.chosen(only or None, None, False, False), only or None, False, cuda=False)
        return [job["name"] for job in jobs if job["kind"] == "few"]

    names = few("few-stilllife")
    assert few() == few("few") == names and names[:6] == [
        f"few-stilllife-turbo-128-float32 {name}" for name in (
            "turbo 1", "turbo compiled 1", "turbo-ddpm 1", "turbo-ddpm compiled 1", "sage 1", "sage 2")]
    monkeypatch.setattr(command, "installed", lambda: False)
    assert few() == [name for name in names if "compiled" not in name]
    assert [name.split()[1] for name in few("few-sdxl")] == ["turbo", "turbo-ddpm", "sage"] and few("memory") == []


def test_targets_of_a_student_are_those_of_the_medians():
    case = asdict(CASES[0])
    row = {"steps": 4, "threads": 2, "calls": [8, 4], "gradients": 0, "weights": 2**30, "peak": 3 * 2**30,
           "interpreter": 2**29}
    kept = json.loads(Path("benchmarks/results/speed.json").read_text())
    for edit, met in ((0.2, "yes"), (0.3, "**no**")):
        of_turbo = row | {"invert": [0.4, 0.9, 0.4], "edit": [0.1, edit, 9.0]}
        rows = [{"job": {"kind": "few", "case": case, "method": name}, "result": of_turbo} for name in METHODS]
        text = table.render(kept | {"rows": kept["rows"] + rows})
        assert "an inversion by turbo, seconds | at most 0.5 | 0.4 | yes |" in text
        for name in ("turbo", "turbo compiled"):
            assert f"an edit by {name}, seconds | at most 0.25 | {edit:g} | {met} |" in text
        assert ("| stilllife-turbo 128 float32 | turbo-ddpm | 4 | 2 | 0.4 (0.4 to 0.9) | "
                f"{edit:g} (0.1 to 9) | 8 + 4 | 0 | 1.00 | 1.50 |") in text
        alone = table.render(kept | {"rows": rows})
        assert "turbo-ddpm" in alone and "The targets" not in alone and "not yet measured" not in alone


@pytest.mark.slow
@pytest.mark.parametrize(("name", "calls", "back"), (("turbo", [8, 4], 0), ("turbo-ddpm", [3, 6], 0),
                                                     ("sage", [20, 40], 17)))
def test_a_student_of_xls_shape_is_written_and_measured(folder, name, calls, back):
    found = measure_few(Few("tiny-xl", "tiny-xl", 64, "float32", timed=2), name, folder)
    assert (found["calls"], found["gradients"]) == (calls, back)
    assert len(found["invert"]) == len(found["edit"]) == 2 and found["peak"] > found["interpreter"] > 0
    parts = (folder / "tiny-xl").rglob("*.safetensors")
    assert found["weights"] < 2.1 * sum(part.stat().st_size for part in parts)  # of float16, and none twice


def test_a_part_can_be_asked_for():
    cells = command.chosen(["sd14-512-cpu-bfloat16-b1"], 2, True, False)
    jobs = list(command.plan(cells, ["sd14-512-cpu-bfloat16-b1"], False, cuda=False))
    assert {job["kind"] for job in jobs} == {"floor", "count", "edit"}
    assert len(jobs) == 4 and jobs[-1]["cell"]["whole"]
    only = list(command.plan(command.chosen(["memory"], None, False, False), ["memory"], False, cuda=False))
    assert {job["kind"] for job in only} == {"many", "steps"}


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    jobs = [{"name": str(i), "kind": "count"} for i in range(4)]
    other = {"key": "of another run", "code": command.fingerprint(), "job": {}, "result": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(other) + "\n")
    tried = []

    def result(job, cache):
        tried.append(job["name"])
        if job["name"] == "2" and len(tried) == 3:
            raise KeyboardInterrupt
        return {"failed": "once"} if len(tried) == 2 else {"value": job["name"]}

    monkeypatch.setattr(command, "result_of", result)
    with pytest.raises(KeyboardInterrupt):
        command.carry_out(jobs, tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as kept:
        kept.write('{"key": "torn')
    rows = command.carry_out(jobs, tmp_path)
    assert tried == ["0", "1", "2", "1", "2", "3"]  # what failed is tried again
    assert [row["result"] for row in rows] == [{"value": str(i)} for i in range(4)]
    assert len(command.carry_out(jobs, tmp_path)) == 4 and len(tried) == 10  # the one before was done
    assert command.read(tmp_path / "rows.jsonl") == [other]


def test_a_changed_code_starts_afresh(tmp_path, monkeypatch):
    jobs, tried = [{"name": "0", "kind": "count"}], []
    row = {"key": json.dumps(jobs[0], sort_keys=True), "code": "older", "job": jobs[0], "result": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(command, "result_of", lambda job, cache: tried.append(job) or {})
    command.carry_out(jobs, tmp_path)
    assert tried == jobs


def test_a_measurement_that_fails_says_why(tmp_path, monkeypatch):
    job = {"name": "x", "kind": "edit", "cell": asdict(TINY), "implementation": BASELINE}
    monkeypatch.setattr(command, "available", lambda: 0.5)
    assert command.result_of(job, tmp_path) == {"failed": "not tried: it needs about 2 GiB of memory"}

    def ends(code: int, out: str = "", error: str = "") -> dict:
        monkeypatch.setattr(command.subprocess, "run",
                            lambda *args, **options: subprocess.CompletedProcess(args, code, out, error))
        return command.result_of({"name": "x", "kind": "floor"}, tmp_path)

    assert ends(0, 'a warning\n{"flops": 1}\n') == {"flops": 1}
    assert "memory" in ends(-9)["failed"]
    assert ends(1, "", f"Traceback\nOSError: {command.ROOT}/x is missing\n\n") == {"failed": "OSError: /x is missing"}


def test_every_short_cut_can_be_put_out_of_action():
    with ExitStack() as out:
        for put_out in ablation.SHORT_CUTS.values():
            put_out(out)


def test_what_sage_doctor_goes_by_is_what_was_measured():
    kept = json.loads(Path("benchmarks/results/speed.json").read_text())
    assert json.loads(FILE.read_text()) == carried.carried(kept), "python -m benchmarks.speed.carried writes it anew"


def test_a_whole_table_renews_it_and_a_part_does_not(tmp_path, monkeypatch):
    kept = json.loads(Path("benchmarks/results/speed.json").read_text())
    monkeypatch.setattr(carried, "FILE", tmp_path / "carried.json")
    command.write(tmp_path / "part.md", kept)
    assert not (tmp_path / "carried.json").exists()
    monkeypatch.setattr(command, "RESULTS", tmp_path / "whole.md")
    command.write(tmp_path / "whole.md", kept)
    assert json.loads((tmp_path / "carried.json").read_text()) == carried.carried(kept)
