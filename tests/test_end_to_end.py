"""`sage edit` with real networks: a tiny model of random weights, and the bundled one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sage import pictures
from sage.commands import main as cli
from sage.models.known import installed
from tests.models import tiny

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ["--source", "a cat", "--target", "a dog"]
LEVELS = ["--steps", "4", "--self-level", "0", "--cross-level", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("model") / "little")


@pytest.fixture
def cat(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (36, 52, 3), dtype=np.uint8)).save("cat.png")
    return Path("cat.png")


def run(*arguments) -> int:
    return cli.main([str(a) for a in arguments])


def test_edit_repeat_and_sheet(model, cat, capsys):
    assert run("edit", cat, *PROMPTS, *LEVELS, "--model", model.folder, "--target", "a cat and a dog", "--sheet",
               "--json", "--reweight", "dog:2") == 0
    report = json.loads(capsys.readouterr().out)
    first, second = (pictures.open_picture(out) for out in report["out"])
    assert first.size == second.size == (52, 36)
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    assert pictures.open_picture(report["sheet"]).width > 4 * 256

    assert run("edit", cat, "--config-from", report["out"][0], "--model", model.folder, "--out", "again.png") == 0
    assert np.array_equal(np.asarray(pictures.open_picture("again.png")), np.asarray(first))
    assert pictures.read_settings("again.png") == pictures.read_settings(report["out"][0])


def test_several_targets_equal_single_edits(model, cat, capsys):
    both = ["--target", "a cat and a dog"]
    assert run("edit", cat, *PROMPTS, *both, *LEVELS, "--model", model.folder, "--out", "both.png") == 0
    assert run("edit", cat, *PROMPTS[:2], *both, *LEVELS, "--model", model.folder, "--out", "one.png") == 0
    assert np.array_equal(np.asarray(pictures.open_picture("both-2.png")), np.asarray(pictures.open_picture("one.png")))


@pytest.mark.parametrize("arguments, word", [
    (["--source", "a cat", "--target", "dog " * 80], "too many for this model"),
    ([*PROMPTS, "--replace", "ca,dog"], "'ca' is not in the prompt"),
    ([*PROMPTS, "--size", "33"], "multiple of"),
    ([*PROMPTS, "--self-level", "7"], "level"),
    ([*PROMPTS, "--device", "abacus"], "abacus")])
def test_what_only_the_model_can_tell(model, cat, capsys, arguments, word):
    assert run("edit", cat, "--model", model.folder, *LEVELS, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("sage: error: ") == 1 and word in err.splitlines()[-1]
    assert not Path("out").exists()


def test_a_long_prompt_is_cut_when_asked(model, cat, capsys):
    assert run("edit", cat, "--model", model.folder, *LEVELS, "--source", "a cat", "--target", "a " + "dog " * 80,
               "--truncate", "--out", "e.png") == 0
    assert pictures.read_settings("e.png")["truncate"] is True


def test_info_counts_parameters_in_both_layouts(model, tmp_path, capsys):
    wanted = sum(p.numel() for m in (model.unet, model.vae, model.text) for p in m.parameters())
    file = model.single_file(tmp_path / "m.safetensors")
    for place, layout in ((model.folder, "diffusers folder"), (file, "single file")):
        assert run("info", place, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters in all"] == wanted and layout == facts["layout"]


MAKEFILE = (ROOT / "Makefile").read_text()
EXAMPLE, SOURCE, TARGET = (re.search(rf"^EXAMPLE{name} := (.+)$", MAKEFILE, re.MULTILINE)[1]
                           for name in ("", "_SOURCE", "_TARGET"))


@pytest.mark.skipif(installed("stilllife") is None, reason="the bundled model is not in weights/")
def test_the_bundled_model_edits_the_bundled_example(cat, capsys):
    assert run("edit", ROOT / EXAMPLE, "--source", SOURCE, "--target", TARGET, "--model", "stilllife", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    before, after = (pictures.open_picture(path) for path in (ROOT / EXAMPLE, report["out"][0]))
    assert before.size == after.size
    change = np.abs(np.asarray(before).astype(int) - np.asarray(after)).max(axis=2) > 40
    assert 0.02 < change.mean() < 0.6  # something changed, and most did not
    assert report["settings"][0]["model"] == "stilllife"
