"""The library leaves the process's allocator alone; the command line sets it."""

import os
import subprocess
import sys

import pytest

# mallopt as ctypes finds it, with a note of each call.
WATCHED = """
import ctypes
class Library(ctypes.CDLL):
    def __getattr__(self, name):
        if name == "mallopt":
            print("mallopt")
        return super().__getattr__(name)
ctypes.CDLL = Library
"""


def calls(program: str) -> int:
    done = subprocess.run([sys.executable, "-c", WATCHED + program], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    return done.stdout.split().count("mallopt")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_loading_a_model_leaves_the_allocator_alone():
    assert calls("import sage; sage.load_model('stilllife', device='cpu')") == 0
    assert calls("from sage.commands.main import main; main(['models'])") == 1
