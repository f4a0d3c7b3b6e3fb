"""The method in docs/methods.md is run as a stranger would run it: a file outside the package, on the bundled model."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sage
from sage.commands.main import main
from sage.pictures import read_settings

ROOT = Path(__file__).parents[2]
PROMPTS = ["--source", "a blue mug on paving", "--target", "a red mug on paving"]


@pytest.fixture
def written(tmp_path, monkeypatch) -> str:
    text = (ROOT / "docs" / "methods.md").read_text()
    code = re.search(r"in 40 lines\n.*?```python\n(.*?)```", text, re.DOTALL)[1]
    assert 30 <= len(code.strip().splitlines()) <= 40
    (tmp_path / "lend.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return "lend.py:Lend"


def test_a_method_of_40_lines_edits_from_the_command_line(written, capsys):
    picture = str(ROOT / "examples" / "mug.png")
    command = ["edit", picture, "--model", "stilllife", "--method", written, *PROMPTS, "--steps", "4", "--quiet"]
    assert main([*command, "--guidance-scale", "2", "--lend-fraction", "0.75", "--out", "a.png"]) == 0
    assert main([*command, "--guidance-scale", "2", "--lend-fraction", "0", "--out", "b.png"]) == 0
    pictures = [np.asarray(Image.open(name)).astype(int) for name in ("a.png", "b.png", picture)]
    assert pictures[0].shape == pictures[2].shape and (pictures[0] != pictures[1]).any()
    assert np.abs(pictures[0] - pictures[2]).mean() < np.abs(pictures[1] - pictures[2]).mean()  # lending holds it
    assert read_settings("a.png")["settings"]["lend_fraction"] == 0.75
    capsys.readouterr()

    assert main([*command, "--config-from", "a.png", "--out", "c.png"]) == 0
    assert (np.asarray(Image.open("c.png")) == pictures[0]).all()
    named = command.index("--method")
    unnamed = [*command[:named], *command[named + 2:]]
    assert main([*unnamed, "--config-from", "a.png"]) == 2  # its name is code, which no picture says
    assert "was made by a method of someone's own" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*unnamed, "--lend-fraction", "0.5"])  # of another method
    assert main([*command, "--lend-fraction", "7"]) == 2
    assert "at most 1" in capsys.readouterr().err


@pytest.mark.slow
def test_what_it_wrote_is_read_by_who_names_it(written, capsys):
    picture, own = str(ROOT / "examples" / "mug.png"), ["--model", "stilllife", "--method", written]
    settings = ["--steps", "4", "--guidance-scale", "2", "--quiet"]
    assert main(["invert", picture, *own, *PROMPTS[:2], *settings, "--out", "t.safetensors"]) == 0
    assert main(["edit", picture, *own, *PROMPTS, *settings, "--out", "fresh.png"]) == 0
    again = ["edit", picture, "--trajectory", "t.safetensors", *PROMPTS[2:], *settings]
    assert main([*again, *own, "--out", "kept.png"]) == 0
    assert (np.asarray(Image.open("kept.png")) == np.asarray(Image.open("fresh.png"))).all()
    capsys.readouterr()
    for file in ("t.safetensors", "fresh.png"):
        assert main(["info", file]) == 2
        assert "was made by a method of someone's own, lend.py:Lend: give it with --method" in capsys.readouterr().err
        assert main(["info", file, "--method", written]) == 0
        assert "lend_fraction" in capsys.readouterr().out
        assert main(["info", file, "--method", "other.py:Lend"]) == 2  # nothing of which was run
        capsys.readouterr()
    assert main([*again, "--out", "unnamed.png"]) == 2
    assert not Path("unnamed.png").exists()


def test_it_is_known_by_its_place(written):
    found = sage.method(written)
    assert found.name == "lend" and found.where == written and found.Settings.groups()["lending"]
    with pytest.raises(sage.SettingsError, match="has nothing called 'Other'"):
        sage.method("lend.py:Other")
