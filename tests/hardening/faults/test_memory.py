"""Memory that runs out, in any stage: one line that says what to do and no file; or an edit that makes do with less."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sage
from sage import pictures
from sage.commands import main as cli
from tests import small
from tests.hardening.faults.stages import STAGES, STEPS, wrong

ERRORS = {"GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
          "Python": MemoryError(),
          "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
                              "memory: you tried to allocate 8000000000 bytes. Error code 12")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("memory") / "tokenizer").model


CASES = [pytest.param(stage, kind, marks=[] if i % len(ERRORS) == j else pytest.mark.slow)
         for i, stage in enumerate(STAGES) for j, kind in enumerate(ERRORS)]


@pytest.mark.parametrize("stage, kind", CASES)
def test_it_is_one_line_and_no_file(model, stage, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    small.picture().save("p.png")
    (tmp_path / "m.safetensors").touch()

    def out_of_memory(x):
        raise ERRORS[kind]

    with wrong(model, stage, out_of_memory):
        status = cli.main(["edit", "p.png", "--source", "a cat on a mat", "--target", "a dog on a mat", "--model",
                           "m.safetensors", "--steps", str(STEPS), "--cross-level", "1", "--reconstruction-scale", "1",
                           "--out", "out/e.png"])
    out, error = capsys.readouterr()
    if status == 0:
        assert pictures.open_picture("out/e.png").size == (64, 64)
    else:
        assert status == 2 and error.count("\n") == 1 and not out
        assert "out of memory" in error and "try a smaller" in error
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_memory_that_really_runs_out(tmp_path):
    """A process that may not have the memory for its pictures ends with the same line."""
    code = ("import resource, sys\nfrom sage.commands import main as cli\n"
            "import sage, torch\nmodel = sage.load_model('stilllife')\n"
            "sage.load_model = lambda *_, **__: model\nsize = int(open('/proc/self/statm').read().split()[0]) << 12\n"
            "resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20),) * 2)\n"
            "sys.exit(cli.main(['edit', 'examples/mug.png', '--source', 'a mug', '--target', 'a cup', '--model',"
            "'stilllife', '--size', '1024', '--out', sys.argv[1]]))")
    root = Path(__file__).resolve().parents[3]
    out = tmp_path / "e.png"
    done = subprocess.run([sys.executable, "-c", code, out], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and not out.exists(), done.stderr
    assert "out of memory" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
