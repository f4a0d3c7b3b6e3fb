"""The library leaves the threads of a process alone; programs let them sleep while they wait, before torch is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Whoever imports torch first is told the policy of that moment, and ends.
WATCHED = """
import os, runpy, sys
class Torch:
    @staticmethod
    def find_spec(name, *_):
        if name == "torch":
            print("policy:", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Torch)
"""
COMMAND = "from sage.commands.main import main; main(sys.argv[1:])"
EDIT = ["edit", str(ROOT / "examples" / "mug.png"), "--source", "a blue mug", "--target", "a red mug", "--model",
        "stilllife"]


def policy(program: str, *arguments: str, folder: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", WATCHED + program, *arguments], capture_output=True, text=True,
                          cwd=folder, env=inherited | {"PYTHONPATH": str(ROOT)} | environment, timeout=100)
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("policy:")).removeprefix("policy: ")


def test_the_library_leaves_threads_alone(tmp_path):
    assert policy("import sage; sage.load_model", folder=tmp_path) == "None"


@pytest.mark.parametrize("program, arguments", [
    (COMMAND, EDIT), (COMMAND, ["bench", "stilllife", "--each", "1", "--side", "16", "--out", "run", "--quiet"]),
    (f"runpy.run_path({str(ROOT / 'examples' / 'demo.py')!r}, run_name='__main__')", [])],
    ids=("edit", "bench", "demo"))
def test_programs_let_them_sleep_before_torch_is_imported(program, arguments, tmp_path):
    assert policy(program, *arguments, folder=tmp_path) == "PASSIVE"


def test_whoever_has_chosen_keeps_it(tmp_path):
    assert policy(COMMAND, *EDIT, folder=tmp_path, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
