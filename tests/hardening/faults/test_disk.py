"""A full disk, a read-only folder, weights that change and a network that is lost: one line, and nothing half."""

import errno
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sage
from sage import pictures
from sage.batch.manifest import Line, Manifest
from sage.bench.files import BenchmarkError, write_text
from sage.commands import main as cli
from sage.errors import ModelError, PictureError
from sage.models import known, loading
from sage.models.fetch import fetch
from sage.models.sd import renames
from sage.models.sd.clip import CLIPText
from sage.models.weights import fill, open_weights, renamed
from sage.pictures.regions import box_mask
from sage.trajectory.label import read_label
from tests import small
from tests.bench.world import make_benchmark
from tests.hardening.ends import SEEN
from tests.hardening.faults.killing import visible
from tests.hardening.faults.test_killed import COMMANDS
from tests.models import hub as hubs
from tests.models import tiny

SIZE = 512 << 10
PROMPTS = ["--source", "a cat on a mat", "--target", "a dog on a mat", "--steps", "1", "--cross-level", "1"]


def mount(*arguments) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """A real disk of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount") or not mount("-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)):
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@contextmanager
def only(disk: Path, free: int):
    """Leave so many bytes of a disk free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - free)))
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("disk") / "tokenizer").model


@pytest.fixture
def editing(model, tmp_path, monkeypatch):
    """`sage edit` with a model that is there, to a place of the test's choosing."""
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    small.picture().save(tmp_path / "p.png")
    (tmp_path / "m.safetensors").touch()
    return lambda out: cli.main(["edit", str(tmp_path / "p.png"), *PROMPTS, "--model", str(tmp_path / "m.safetensors"),
                                 "--out", str(out)])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))


@pytest.mark.parametrize("ending", (".png", ".jpg", ".webp"))
def test_a_full_disk_leaves_the_old_picture(disk, ending):
    path = pictures.save_picture(Image.new("RGB", (8, 8)), disk / f"e{ending}", {"old": 1})
    old = path.read_bytes()
    for free in range(0, 24 << 10, 4096):
        with only(disk, free):
            with pytest.raises(PictureError, match="No space left|cannot be written"):
                pictures.save_picture(NOISE, path, {"new": 1})
            assert path.read_bytes() == old and {p.name for p in disk.iterdir()} == {path.name, "filler"}
    assert pictures.read_settings(pictures.save_picture(NOISE, path, {"new": 1})) == {"new": 1}


def test_an_edit_to_a_full_disk_is_one_line(disk, editing, capsys):
    with only(disk, 4096):
        assert editing(disk / "e.png") == 2
        assert "No space left" in (error := capsys.readouterr().err) and error.count("\n") == 1
        assert not (disk / "e.png").exists() and len(list(disk.iterdir())) == 1
    assert editing(disk / "e.png") == 0


READ = {".png": lambda path: Image.open(path).load(), ".safetensors": read_label,
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()]}
ENDS = {".html": "</html>", ".md": "\n"}


def whole(disk: Path, kinds=(".png", ".html")) -> None:
    """What lies on a disk was written to its end, and nothing else does."""
    for path in disk.rglob("*"):
        if path.is_file() and path.name != "filler" and (path.suffix != ".lock" or path.stat().st_size):
            assert path.suffix in kinds, path
            if path.suffix in READ:
                READ[path.suffix](path)
            else:
                assert path.read_text().rstrip(" ").endswith(ENDS[path.suffix])


def fills(disk: Path, step: int, work) -> int:
    """Do something with ever more room until it is done; returns how often it was refused, each time in one line."""
    for refused in range(shutil.disk_usage(disk).total // step):
        with only(disk, refused * step):
            status = work()
            whole(disk)
        if status == 0:
            return refused
    raise AssertionError("never done")


def lined(command: list[str], capsys) -> int:
    status, error = cli.main(command), capsys.readouterr().err
    assert status == 0 or (status == 2 and error.count("\n") == 1 and "No space left" in error), error
    return status


def test_a_grid_on_a_full_disk_goes_on_when_there_is_room(disk, editing, tmp_path, capsys):
    command = ["grid", str(tmp_path / "p.png"), *PROMPTS[:4], "--method", "plain", "--x", "steps=1,2", "--model",
               str(tmp_path / "m.safetensors"), "--out", str(disk), "--quiet"]
    assert fills(disk, 12 << 10, lambda: lined(command, capsys)) >= 3
    assert {p.name for p in disk.iterdir()} == {"1-1-1.png", "2-1-1.png", "sheet.png", "index.html"}
    for name in ("sheet.png", "index.html"):  # the last that are written
        (disk / name).unlink()
    with only(disk, 0):
        assert lined(command, capsys) == 2
        assert not (disk / "sheet.png").exists() and not (disk / "index.html").exists()


@pytest.mark.slow
def test_an_explanation_on_a_full_disk_is_whole_or_one_line(disk, editing, tmp_path, capsys):
    assert mount("-o", f"remount,size={16 * SIZE}", str(disk))
    command = ["edit", str(tmp_path / "p.png"), *PROMPTS, "--model", str(tmp_path / "m.safetensors"), "--quiet",
               "--out", str(disk / "e.png"), "--explain", str(disk / "inside")]
    assert fills(disk, 256 << 10, lambda: lined(command, capsys)) >= 2
    assert (disk / "inside" / "index.html").exists()


def test_pictures_of_text_on_a_full_disk(disk, editing, tmp_path, capsys):
    command = ["generate", "a cat", "--method", "plain", "--steps", "1", "--count", "2", "--sheet", "--model",
               str(tmp_path / "m.safetensors"), "--quiet", "--out", str(disk / "g.png")]
    assert fills(disk, 16 << 10, lambda: lined(command, capsys)) >= 3


WRITING = {name: words for name, words in COMMANDS.items() if name in ("invert", "drag", "compose")} | {
    "edit --sheet": ["edit", "p0.png", *PROMPTS, "--sheet", "--out", "out/e.png"],
    "batch": ["batch", "t.csv", "--method", "plain", "--steps", "1", "--out", "out/"],
    "bench": ["bench", "piebench", "--data", "benchmark", "--config", "plain:steps=1", "source", "--out", "out/"],
    "score": ["score", "benchmark/true_edits", "--against", "benchmark", "--device", "cpu", "--out", "out/"]}


@pytest.mark.parametrize("name, room", [
    *(pytest.param(name, (0.5,), id=name) for name in ("invert", "batch", "bench", "score")),
    *(pytest.param(name, [part / 16 for part in range(16)], marks=pytest.mark.slow, id=f"{name}, 16 sizes")
      for name in WRITING)])
def test_a_command_on_a_disk_that_fills_at_any_write(disk, model, tmp_path, monkeypatch, capsys, name, room):
    """With a part of the room that it needs: refused in lines of ours, what is there is whole; and goes on with all."""
    assert mount("-o", f"remount,size={16 * SIZE}", str(disk))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    for i in range(2):
        small.picture(seed=i).save(f"p{i}.png")
    box_mask((10, 10, 50, 50), (64, 64)).save("mask.png")
    Path("t.csv").write_text("picture,source,target,name\n" + "".join(f"p{i}.png,a cat,a dog,{i}\n" for i in range(2)))
    Path("m.safetensors").touch()
    make_benchmark(Path("benchmark"), count=2)
    words = [word.replace("out/", f"{disk}/") if word.startswith("out/") else "1" if word == "6" else word
             for word in WRITING[name]] + (["--model", "m.safetensors"] if name != "score" else [])
    seen = SEEN.setdefault(f"a full disk, {name}", Counter())

    def worked() -> int:
        status, error = cli.main(words), capsys.readouterr().err
        assert "Traceback" not in error and all(line.startswith("sage: ") for line in error.splitlines()), error
        assert status == 0 or "No space left" in error, error
        assert status in (0, 2) or name in ("batch", "bench"), error  # where each row ends by itself
        return status

    def made() -> dict[str, bytes]:
        return {file: raw for file, raw in visible(disk).items() if not file.endswith(".jsonl")}  # which has times

    assert worked() == 0
    wanted, needed = made(), shutil.disk_usage(disk).used
    for share in room:
        for path in disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with only(disk, int(needed * share)):
            assert worked() != 0
            whole(disk, {*READ, *ENDS})
        seen["refused"] += 1
    assert worked() == 0 and made() == wanted


def test_the_studio_on_a_full_disk(disk, model, tmp_path, monkeypatch, capsys):
    """A gallery without room costs nobody their edit; a server without room says so, and works again with some."""
    pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
    from fastapi.testclient import TestClient

    from sage.studio import service
    from sage.studio.api import api
    small.picture().save(tmp_path / "p.png")
    monkeypatch.setattr(service, "load_model", lambda _: model)
    studio = service.Studio(["stilllife"], folder=tmp_path / "studio", gallery=disk)
    http, file = TestClient(api(studio)), {"content-type": "application/octet-stream"}

    def bring():
        return http.post("/api/pictures", content=(tmp_path / "p.png").read_bytes(), headers=file)

    def edited() -> dict:
        asked = {"picture": picture, "source": "a cat", "target": "a dog", "method": "plain", "settings": {"steps": 1}}
        job = http.post("/api/edit", json=asked).json()["job"]
        while (state := http.get(f"/api/jobs/{job}").json())["state"] in ("waiting", "working"):
            time.sleep(0.01)
        return state

    try:
        picture = bring().json()["picture"]
        with only(disk, 4096):
            [result] = edited()["results"]
            assert "the gallery could not keep it (No space left on device)" in result["notes"]
            assert [p.name for p in disk.iterdir()] == ["filler"] and http.get(result["url"]).status_code == 200
        [result] = edited()["results"]
        assert not any("gallery" in note for note in result["notes"]) and len(http.get("/api/gallery").json()) == 1
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        with only(disk, 4096):
            refused = bring()
            assert refused.status_code == 422 and "No space left" in refused.json()["error"]
            assert "\n" not in refused.json()["error"]
        assert bring().status_code == 200
        monkeypatch.setattr(studio, "folder", disk / "studio")
        http.cookies.clear()
        picture = bring().json()["picture"]
        with only(disk, 4096):
            assert edited()["state"] == "failed" and not list(disk.rglob("*.part"))
        assert edited()["state"] == "done"
        assert "Traceback" not in capsys.readouterr().err
    finally:
        studio.close()


def test_manifests_on_a_full_disk_go_on_when_there_is_room(disk):
    with Manifest(disk) as manifest, only(disk, 0):
        with pytest.raises(PictureError, match="No space left"):
            for i in range(1000):
                manifest.append(Line(i, i, "done", f"{i}.png"))
    with Manifest(disk) as manifest:
        made = len(manifest.done)
        manifest.append(Line(7, 7, "done", "last.png"))
    with Manifest(disk) as manifest:
        assert len(manifest.done) == made + 1 and "last.png" in manifest.done
    with only(disk, 0), pytest.raises(BenchmarkError, match="No space left"):
        write_text(disk / "tables.json", "x" * 9000)
    assert not (disk / "tables.json").exists()


@pytest.mark.parametrize("fails", ("write", "fsync", "replace"))
@pytest.mark.parametrize("code", (errno.ENOSPC, errno.EIO, errno.EDQUOT))
def test_a_disk_that_fails_at_the_last_moment(tmp_path, monkeypatch, fails, code):
    path = pictures.save_picture(Image.new("RGB", (8, 8)), tmp_path / "e.png", {"old": 1})

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    target = (Image.Image, "save") if fails == "write" else (os, fails)
    with monkeypatch.context() as patch, pytest.raises(PictureError, match=os.strerror(code)):
        patch.setattr(*target, fail)
        pictures.save_picture(NOISE, path, {"new": 1})
    assert pictures.read_settings(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["e.png"]


def test_a_read_only_folder(disk, editing, capsys):
    (disk / "old.png").write_bytes(b"old")
    assert mount("-o", "remount,ro", str(disk))
    for out in ("e.png", "old.png", "new/e.png"):
        assert editing(disk / out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("Read-only" in error or "written" in error)
    with pytest.raises(PictureError, match="cannot be written"):
        Manifest(disk)
    with pytest.raises(BenchmarkError, match="cannot be written"):
        write_text(disk / "tables.json", "{}")
    with pytest.raises(ModelError, match="cannot be fetched"):
        fetch("sd-1.5", disk, "http://127.0.0.1:9", progress=False)
    assert [p.name for p in disk.iterdir()] == ["old.png"]


# ---- weights that change under the program


@pytest.fixture
def weights(tmp_path):
    return tiny.make(tmp_path / "model").folder / "text_encoder" / "model.safetensors"


def swapped(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes()[:-1000])
    new.replace(path)


@pytest.mark.parametrize("change", (
    lambda path: os.truncate(path, 5000), lambda path: os.truncate(path, 0), lambda path: path.unlink(), swapped,
    lambda path: path.write_bytes(b"\xff" * path.stat().st_size)))
def test_weights_that_change_while_they_are_read(weights, change):
    """What was opened is read on, or refused: never a crash, never weights that are no numbers."""
    tensors = open_weights([weights])
    change(weights)
    try:
        network = fill(lambda: CLIPText(tiny.TEXTS["1.x"]), renamed(tensors, renames.folder_text), "it",
                       torch.device("cpu"), torch.float32)
    except ModelError as error:
        assert str(weights) in str(error)
    else:
        assert all(p.isfinite().all() for p in network.parameters())


def test_weights_that_change_after_loading_change_nothing(weights):
    folder = weights.parents[1]
    model = loading.load_model(folder, device="cpu")
    before = model.embed([model.prompts.parse("a cat")]).tokens
    weights.write_bytes(b"")
    assert torch.equal(model.embed([model.prompts.parse("a cat")]).tokens, before)


# ---- a network that is lost


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub.file_download
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what a broken transfer may lose
    for name in ("HF_ENDPOINT", "HF_TOKEN", "SAGE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    folder = tiny.make(tmp_path / "hub").folder
    for part in tiny.parts(folder):
        save_file({k: v.half() for k, v in load_file(tiny.weights(folder, part)).items()},
                  tiny.weights(folder, part, ".fp16"))
    model = known.KNOWN["sd-1.5"]
    hub = hubs.Hub(folder, model.repo, model.revision)
    yield hub
    hub.close()


class Always(set):
    """A set that keeps what is taken out of it."""

    def discard(self, name):
        pass


def test_a_network_that_is_lost_for_good_and_comes_back(hub, tmp_path):
    name = "unet/diffusion_pytorch_model.fp16.safetensors"
    hub.cut = Always({name})
    with pytest.raises(ModelError, match="what has been fetched is kept|cannot be fetched") as caught:
        fetch("sd-1.5", tmp_path / "weights", hub.url, progress=False)
    assert "\n" not in str(caught.value) and known.installed("sd-1.5", tmp_path / "weights") is None
    before, size = hub.served[name], len(hub.files()[name])
    hub.cut = set()
    folder = fetch("sd-1.5", tmp_path / "weights", hub.url, progress=False)
    assert (folder / name).read_bytes() == hub.files()[name] and hub.served[name] - before < size / 2


def test_a_full_disk_during_a_download(hub, disk):
    with only(disk, SIZE // 4), pytest.raises(ModelError, match="needs .* GB more|is full"):
        fetch("sd-1.5", disk, hub.url, progress=False)
    assert not [p for p in disk.iterdir() if not p.name.startswith(".")]
