"""A pipe wherever a file can be named: refused at once in one line, never waited for."""

import argparse
import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import sage
from sage import pictures
from sage.batch.manifest import Manifest
from sage.batch.table import read_table
from sage.bench.cases import read_benchmark
from sage.bench.chosen import read_chosen
from sage.bench.extractors import CLIP_B32, PROTOCOLS, _found
from sage.bench.magicbrush import read_magicbrush
from sage.bench.rivals import _memory as memory_of
from sage.bench.runner import claim, read_manifests
from sage.bench.stilllife import write_stilllife
from sage.commands import main as cli
from sage.commands import rivals as comparing
from sage.errors import SageError
from sage.files import check_plain, open_plain, read_plain
from sage.models import fetch as fetching
from sage.models import loading
from sage.models.describe import describe
from sage.models.known import KNOWN
from sage.pictures.originals import identity
from sage.trajectory.label import is_trajectory, read_label
from tests.hardening.soon import soon
from tests.models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("pipes") / "model").folder


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def refused(call) -> str:
    with soon(), pytest.raises(SageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


IN_A_MODEL = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
              "settings.json", "edit_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
              "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json",
              "tokenizer/tokenizer.json", "words.txt", "auto.json", "unet/diffusion_pytorch_model.safetensors",
              "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
              "unet/diffusion_pytorch_model.safetensors.index.json")


@pytest.mark.parametrize("name", IN_A_MODEL)
def test_in_a_model(folder, tmp_path, name):
    other = shutil.copytree(folder, tmp_path / "model")
    if name.endswith("index.json"):
        tiny.weights(other, "unet").unlink()
    pipe(other / name)
    assert f"{name} is no plain file" in refused(lambda: sage.load_model(other, device="cpu"))
    if name.startswith(("unet", "vae")):
        assert f"{name} is no plain file" in refused(lambda: describe(other))


def test_as_a_shard(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "model")
    tiny.weights(other, "vae").unlink()
    (other / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"a": "shard.safetensors"}}))
    pipe(other / "vae" / "shard.safetensors")
    assert "shard.safetensors is no plain file" in refused(lambda: sage.load_model(other, device="cpu"))


def test_as_a_model_in_one_file(tmp_path):
    path = pipe(tmp_path / "m.safetensors")
    for call in (lambda: sage.load_model(path), lambda: describe(path), lambda: loading.load_model(str(path))):
        assert "is no plain file" in refused(call)


def magicbrush(path: Path) -> None:
    (path.parent / "edit_sessions.json").write_text('{"1": []}')
    pipe(path)
    read_magicbrush(path.parent)


def manifests(path: Path) -> None:
    pipe(path)
    read_manifests(path.parent)


READERS = {
    "p.png": pictures.open_picture, "settings.png": pictures.read_settings, "identity.png": identity,
    "t.safetensors": read_label, "t.csv": read_table, "t.jsonl": read_table,
    "mapping_file.json": lambda path: read_benchmark(path.parent), "local_descriptions.json": magicbrush,
    "manifest.jsonl": manifests, "run.json": lambda path: claim(path, {}), "chosen.json": read_chosen,
    "any": lambda path: check_plain(path, SageError), "opened": lambda path: open_plain(path, SageError),
    "read": lambda path: read_plain(path, SageError)}


@pytest.mark.parametrize("name", READERS)
def test_as_anything_that_is_read(tmp_path, name):
    path = tmp_path / name
    if name != "local_descriptions.json":
        pipe(path)
    message = refused(lambda: READERS[name](path))
    assert "is no plain file" in message


def test_what_is_no_trajectory_is_no_trajectory(tmp_path):
    with soon():
        assert not is_trajectory(pipe(tmp_path / "t.safetensors"))


def test_as_the_manifest_of_a_batch(tmp_path):
    pipe(tmp_path / "manifest.jsonl")
    assert "manifest.jsonl is no plain file" in refused(lambda: Manifest(tmp_path))
    (tmp_path / "manifest.jsonl").unlink()
    with soon(), Manifest(tmp_path):  # whose lock was given back
        pass


def test_as_what_says_how_a_benchmark_was_made(tmp_path):
    (tmp_path / "mapping_file.json").write_text("{}")
    pipe(tmp_path / "stilllife.json")
    assert "another benchmark" in refused(lambda: write_stilllife(tmp_path, 1))


def test_as_what_a_comparison_of_methods_has_come_to(tmp_path, monkeypatch):
    path = pipe(tmp_path / "out" / "plain" / "cost.json")
    with soon():
        assert memory_of(path) is None  # as where none was measured yet; it is, and takes the pipe's place
    monkeypatch.setattr(comparing, "_written", lambda args, found: [])
    for json_wanted, name in ((True, comparing.TABLES), (False, comparing.RECORD)):
        pipe(tmp_path / name)
        tell = partial(comparing._tell, argparse.Namespace(out=str(tmp_path), json=json_wanted))
        assert f"{name} is no plain file" in refused(partial(tell, SimpleNamespace(unfit={})))


def test_as_what_a_download_has_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "get_hf_file_metadata", lambda *_, **__: SimpleNamespace(location="http://hub/a"))
    monkeypatch.setattr(fetching, "http_get", lambda *_, **__: pytest.fail("it is written to"))
    pipe(tmp_path / "vae" / "config.json.part")
    assert "config.json.part is no plain file" in refused(lambda: fetching._download(
        KNOWN["sd-1.5"], tmp_path, "vae/config.json", SimpleNamespace(size=3), "http://hub", False))


def test_among_the_files_of_a_network_that_judges(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / CLIP_B32.name).mkdir(exist_ok=True)
        (tmp_path / CLIP_B32.name / name).touch()
    pipe(tmp_path / CLIP_B32.name / "generation_config.json")
    assert PROTOCOLS["magicbrush"].clip == CLIP_B32
    assert "generation_config.json is no plain file" in refused(lambda: _found(CLIP_B32, tmp_path, {}))


def test_as_a_region_a_reference_a_lora_or_sentences(tmp_path, capsys):
    picture, mask, fifo = (str(tmp_path / name) for name in ("p.png", "m.png", "pipe.png"))
    Image.new("RGB", (32, 32)).save(picture)
    Image.new("L", (32, 32), 255).save(mask)
    pipe(Path(fifo))
    lora, words = (str(pipe(tmp_path / name)) for name in ("l.safetensors", "words.txt"))
    edit = ["edit", picture, "--source", "a", "--target", "b", "--model", "stilllife"]
    compose = ["compose", picture, "--box", "2,2,9,9"]
    for command in (
            [*edit, "--method", "sage", "--mask", fifo], [*edit, "--lora", lora], [*edit, "--lora", f"{lora}:0.5"],
            [*edit, "--method", "pix2pix-zero", "--sentences", words, words],
            ["drag", picture, "--from", fifo, "--to", "8,8"],
            ["drag", picture, "--from", "8,8", "--to", fifo], ["drag", fifo, "--from", "8,8", "--to", "9,9"],
            ["drag", picture, "--from", "8,8", "--to", "9,9", "--mask", fifo],
            ["drag", picture, "--pixels", "--from", fifo, "--to", mask],
            [*compose, "--reference", fifo, "--reference-mask", mask], ["compose", fifo, *compose[2:], "--reference",
                                                                        picture, "--reference-mask", mask],
            [*compose, "--reference", picture, "--reference-mask", fifo],
            [*compose, "--pixels", "--reference", picture, "--reference-mask", fifo],
            ["grid", fifo, "--source", "a", "--target", "b", "--x", "seed=1"], ["caption", fifo],
            ["generate", "a", "--model", "stilllife", "--lora", lora]):
        with soon():
            assert cli.main(command) == 2, command
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "is no plain file" in said, (command, said)


def test_on_the_command_line(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "table.csv").write_text("picture,source,target\npipe.png,a,b\n")
    fifo, picture = str(pipe(tmp_path / "pipe.png")), str(tmp_path / "p.png")
    prompts = ["--source", "a", "--target", "b"]
    code = str(pipe(tmp_path / "m.py"))
    for words in (["edit", fifo, *prompts], ["edit", picture, "--config-from", fifo],
                  ["edit", picture, "--trajectory", fifo, "--target", "b"], ["invert", fifo, "--source", "a"],
                  ["generate", "--config-from", fifo], ["batch", fifo, "--out", str(tmp_path / "o")], ["info", fifo],
                  ["edit", picture, *prompts, "--method", f"{code}:M"],
                  ["edit", picture, *prompts, "--model", f"{code}:M"], ["methods", f"{code}:M"],
                  ["edit", picture, *prompts, "--model", fifo], ["score", fifo, "--against", str(tmp_path)]):
        with soon():
            assert cli.main(words) == 2, words
        assert capsys.readouterr().err.count("\n") == 1, words
