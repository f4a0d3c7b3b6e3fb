"""Standard output that is full, closed or of another alphabet: one line or an escape, and what was made is there."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import sage
from sage import pictures
from sage.commands import main as cli
from tests import small
from tests.hardening.test_settings_fuzz import RECORD

ROOT = Path(__file__).resolve().parents[3]


def run(shell: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`sage` with these arguments, its output led somewhere by a shell."""
    return subprocess.run(["sh", "-c", f'"$0" -m sage "$@" {shell}', sys.executable, *arguments], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_output_is_one_line():
    done = run("> /dev/full", "models")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_closed_output_is_no_error():
    done = run(">&-", "models")
    assert (done.returncode, done.stderr) == (0, "")


def test_another_alphabet_is_escaped(tmp_path):
    path = pictures.save_picture(Image.new("RGB", (4, 4)), tmp_path / "é.png", RECORD | {"source": "猫 é"})
    done = run("", "info", str(path), PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "source: \\u732b \\xe9" in done.stdout


@pytest.mark.parametrize("encoding, printed", [("utf-8", b"out/\xff-edit.png\n"), ("ascii", b"out/\\udcff-edit.png\n")])
def test_the_name_of_a_file_may_be_any_bytes(tmp_path, monkeypatch, encoding, printed):
    model = small.make(tmp_path / "tokenizer").model
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    name = os.fsdecode(b"\xff.png")
    small.picture().save(name)
    Path("m.safetensors").touch()
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert cli.main(["edit", name, "--source", "a cat", "--target", "a dog", "--model", "m.safetensors", "--steps",
                         "1", "--cross-level", "1"]) == 0
        assert raw.getvalue() == printed
    assert pictures.read_settings(os.fsdecode(b"out/\xff-edit.png"))["picture"]["name"] == name
