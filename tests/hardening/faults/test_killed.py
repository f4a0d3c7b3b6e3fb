"""Killed at any moment, an edit, a batch, a benchmark and a download leave no half file, and end with the same result.

One moment of each, twenty in the slow run; so do the other commands, of which all but one are killed in that alone.
"""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import sage
from sage import EditConfig, pictures
from sage.bench import rivals
from sage.bench.cases import TRUE_EDITS, read_benchmark, write_mapping
from sage.bench.engine import ModelEngine
from sage.bench.metrics import Extractors
from sage.bench.stilllife import TUNING_SEED, write_stilllife
from sage.commands import main as cli
from sage.models import known
from sage.models.fetch import fetch
from sage.models.weights import open_weights
from sage.pictures.regions import box_mask
from sage.stilllife.edits import KINDS
from sage.studio import service
from sage.studio.requests import EditRequest
from sage.trajectory.label import is_trajectory, read_label
from tests import small
from tests.bench.world import make_benchmark
from tests.hardening.ends import SEEN
from tests.hardening.faults.killing import ended, killed, moments, started, timed, visible
from tests.models import hub as hubs
from tests.models import tiny

MANY = pytest.param(20, marks=pytest.mark.slow)
TIMES = [1, MANY]
SETTINGS = ["--steps", "6", "--cross-level", "1"]
PROMPTS = ["--source", "a cat on a mat", "--target", "a dog on a mat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = small.make(tmp_path_factory.mktemp("killed") / "tokenizer").model
    # So that what is loaded on first use is there already, and the moments fall into the work.
    sage.edit(model, small.picture(), "a cat", "a dog", EditConfig(steps=1, cross_level=1))
    return model


@pytest.fixture
def place(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    for i in range(3):
        small.picture(seed=i).save(f"p{i}.png")
    return tmp_path


def whole(path, raw: bytes) -> None:
    """Every file that can be seen is one that was written to its end."""
    if path.endswith(".png"):
        pictures.open_picture(path)
        Image.open(path).verify()
    elif path.endswith(".jsonl"):
        lines = raw.split(b"\n")  # of a line being written, a piece may stand at the end, and is cut off later
        assert all(json.loads(line) for line in lines[:-1])
    elif path.endswith(".json"):
        json.loads(raw)
    elif path.endswith(".safetensors"):
        if is_trajectory(path):
            read_label(path)
        else:  # what was fetched
            open_weights([Path(path)])
    elif path.endswith(".html"):
        assert raw.strip().endswith(b"</html>")
    elif path.endswith(".md"):
        assert raw.endswith(b"\n")


def survives(kind, work, place, times: int, seed: int, same=lambda files: files) -> None:
    """Kill `work`, which writes below out/, at random moments while it is at it, and let it end each time."""
    out, wanted, seen = place / "out", place / "wanted", SEEN.setdefault(f"kills, {kind}", Counter())
    length = timed(work)
    out.rename(wanted)
    result = same(visible(wanted))
    waiting = moments(seed, times, length)
    while waiting:
        after = waiting.pop(0)
        if killed(work, after):
            seen["at work"] += 1
        else:  # the machine has less to do than when the time was taken
            seen["done already"] += 1
            waiting = [moment * 0.8 for moment in (after, *waiting)]
        seen["hidden remainders"] += len(list(out.rglob(".sage-*.part")))
        for name, raw in visible(out).items() if out.exists() else ():
            whole(str(out / name), raw)
        assert ended(started(work)) == 0
        assert same(visible(out)) == result
        shutil.rmtree(out)


@pytest.mark.parametrize("times", TIMES)
def test_an_edit(place, times):
    (place / "m.safetensors").touch()
    arguments = ["edit", "p0.png", *PROMPTS, *SETTINGS, "--out", "out/e.png", "--sheet", "--model",
                 str(place / "m.safetensors")]
    survives("edit", lambda: cli.main(arguments), place, times, 1)


@pytest.mark.parametrize("times", TIMES)
def test_a_grid(place, times):
    arguments = ["grid", "p0.png", *PROMPTS, "--method", "plain", "--x", "steps=3,4", "--z", "seed=0,1", "--out", "out"]
    survives("grid", commanded(place, *arguments), place, times, 5)


COMMANDS = {
    "generate": ["generate", "a cat on a mat", "--method", "plain", "--steps", "6", "--count", "2", "--sheet", "--out",
                 "out/g.png"],
    "invert": ["invert", "p0.png", *PROMPTS[:2], *SETTINGS, "--out", "out/t.safetensors"],
    "drag": ["drag", "p0.png", "--from", "20,20", "--to", "40,40", "--steps", "6", "--out", "out/d.png"],
    "compose": ["compose", "p0.png", "--reference", "p1.png", "--reference-mask", "mask.png", "--box", "8,8,40,48",
                "--steps", "6", "--out", "out/c.png"],
    "edit --explain": ["edit", "p0.png", *PROMPTS, "--steps", "2", *SETTINGS[2:], "--out", "out/e.png", "--explain",
                       "out/inside"]}


@pytest.mark.parametrize("times", [MANY])
@pytest.mark.parametrize("name", COMMANDS)
def test_another_command(place, name, times):
    box_mask((10, 10, 50, 50), (64, 64)).save("mask.png")
    survives(name, commanded(place, *COMMANDS[name]), place, times, 6)


def commanded(place, *arguments: str):
    """The work of a command with the model of these tests."""
    (place / "m.safetensors").touch()
    return lambda: cli.main([*arguments, "--model", str(place / "m.safetensors")])


@pytest.mark.parametrize("times", [MANY])
def test_the_gallery_of_the_studio(place, model, monkeypatch, times):
    """A result of before the kill stays in the gallery, and one of the same name comes beside it."""
    monkeypatch.setattr(service, "load_model", lambda _: model)

    def work():
        studio = service.Studio(["stilllife"], folder=place / "studio", gallery=place / "out")
        studio.take("me", place / "p0.png", "p0.png")
        config = studio.recommended("edit", "plain").but(steps=6)
        for target in ("a dog on a mat", "a fox on a mat"):
            studio.edit("me", EditRequest("stilllife", "a cat on a mat", target, config)).result()
        studio.close()

    survives("gallery of the studio", work, place, times, 7, lambda files: set(files.values()))


@pytest.mark.parametrize("times", TIMES)
def test_a_batch(place, times):
    (place / "t.csv").write_text("picture,source,target,name\n" + "".join(
        f"p{i}.png,a cat on a mat,a {thing} on a mat,{i}-{thing}\n" for i in range(2) for thing in ("dog", "fox")))
    arguments = ["batch", "t.csv", "--method", "plain", "--steps", "4", "--out", "out"]

    def same(files):
        """A kill between an edit and its line has the edit made again: the lines of what is done are the same."""
        lines = {}
        for line in map(json.loads, files.pop("manifest.jsonl").splitlines()):
            lines[line["row"]] = {k: v for k, v in line.items() if k not in ("time", "seconds")}
        return files, lines

    survives("batch", commanded(place, *arguments), place, times, 2, same)


@pytest.mark.parametrize("times", TIMES)
def test_a_benchmark(place, model, times):
    benchmark = make_benchmark(place / "benchmark", count=4)
    rows = [f"{name}:steps=2,cross_level=1" for name in ("plain", "recommended")]
    arguments = ["bench", "piebench", "--data", str(benchmark.folder), "--config", *rows, "--batch", "2", "--out",
                 "out"]

    def same(files):
        files.pop("manifest.jsonl")
        return files

    survives("benchmark", commanded(place, *arguments), place, times, 3, same)


@pytest.mark.parametrize("times", TIMES)
def test_the_making_of_a_benchmark(place, times):
    """Killed at any moment, and made once more by whoever needs it."""
    def work():
        return len(write_stilllife(place / "out", 1, side=24, first_seed=TUNING_SEED).cases) != len(KINDS)

    survives("making of a benchmark", work, place, times, 9)


@pytest.mark.parametrize("times", TIMES)
def test_the_score_of_folders(place, times):
    made = make_benchmark(place / "benchmark", count=3)
    for name in ("ours", "theirs"):
        shutil.copytree(made.folder / TRUE_EDITS, place / name)
    arguments = ["score", "ours", "theirs", "--against", str(made.folder), "--out", "out", "--device", "cpu"]
    survives("score", lambda: cli.main(arguments), place, times, 10)


@pytest.mark.slow
@pytest.mark.parametrize("times", [20])
def test_the_experiment_of_all_rivals(place, model, monkeypatch, times):
    monkeypatch.setattr(rivals, "able", lambda task: ("plain", "sdedit"))
    recommended = {"steps": 3, "guided_steps": 1, "self_level": 0, "cross_level": 1}
    monkeypatch.setattr(model, "recommends", {"sage": recommended})
    made = make_benchmark(place / "benchmark", count=6)
    write_mapping(made.folder, [dataclasses.replace(case, kind=i % 2) for i, case in enumerate(made.cases)])
    where = rivals.Place(place / "out", *rivals.split(read_benchmark(made.folder), 1),
                         rivals.Protocol(0, trials=2, points=2, batch=2))

    def work():
        found = rivals.compete(where, lambda: (ModelEngine(model), Extractors()), memory=False)
        return any(line.status != "done" for line in found.lines)

    def same(files):
        """A kill between a picture and its line has it made again: the lines say the same, but for seconds."""
        lines = {}
        for name in [name for name in files if "manifest" in name]:
            for line in map(json.loads, files.pop(name).splitlines()):
                lines[line["configuration"], line["case"]] = {k: v for k, v in line.items() if k != "seconds"}
        return files, lines

    survives("experiment of all rivals", work, place, times, 8, same)


@pytest.mark.parametrize("times", TIMES)
def test_a_download(tmp_path, monkeypatch, times):
    import huggingface_hub.constants
    known_model = dataclasses.replace(known.KNOWN["sd-1.5"], revision="0123456789abcdef" * 2 + "01234567")
    monkeypatch.setitem(known.KNOWN, "sd-1.5", known_model)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "SAGE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    folder = tiny.make(tmp_path / "hub").folder
    for part in tiny.parts(folder):
        state = {key: value.half() for key, value in load_file(tiny.weights(folder, part)).items()}
        save_file(state, tiny.weights(folder, part, ".fp16"))
    hub = hubs.Hub(folder, known_model.repo, known_model.revision)
    try:
        def work():
            fetch("sd-1.5", tmp_path / "out", hub.url, progress=False)

        def same(files):
            assert all(name.startswith("sd-1.5/") for name in files)
            return files

        survives("download", work, tmp_path, times, 4, same)
    finally:
        hub.close()
