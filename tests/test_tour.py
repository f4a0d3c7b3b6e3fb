"""The tour runs from top to bottom, in an interpreter of its own, as it would in Jupyter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"

# What a kernel does with code cells: one after the other in one namespace, and the value of a last expression is shown.
KERNEL = """
import ast, json, sys
shown, space = [], {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin), start=1):
    name, body = f"<cell {number}>", ast.parse(source).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), space)
    value = eval(compile(last, name, "eval"), space) if last else None
    shown.append(list(value.size) if hasattr(value, "_repr_png_") and value._repr_png_() else None)
print(json.dumps(shown))
"""


@pytest.mark.slow
def test_the_tour_runs_and_shows_its_pictures(tmp_path):
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]
             if cell["cell_type"] == "code"]
    run = subprocess.run([sys.executable, "-c", KERNEL], input=json.dumps(cells), capture_output=True, text=True,
                         cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    shown = json.loads(run.stdout.splitlines()[-1])
    assert len(shown) == len(cells) and sum(size is not None for size in shown) == 7
    assert all(min(size) > 100 for size in shown if size)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_snippet_of_the_readme_runs_as_it_stands(tmp_path):
    [snippet] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path,
                         env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "edit.png", "mug.safetensors"}


def test_the_tour_is_stored_as_jupyter_reads_it_with_its_pictures_and_prints_alone():
    text = NOTEBOOK.read_text()
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    opening, quiet = ("".join(cell["source"]) for cell in notebook["cells"][:2])
    assert "`make tour`" in opening and "IProgress" in quiet  # how to open it, and no red box where widgets are missing
    ids, shown = [cell["id"] for cell in notebook["cells"]], []
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids)
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            kinds = [tuple(output.get("data", ("text",))) for output in cell["outputs"]]
            assert set(kinds) <= {("text",), ("image/jpeg", "text/plain")}, "docs/make_tour.py stores what is shown"
            shown += kinds
        assert cell.keys() == keys and cell["metadata"] == {} and all(isinstance(s, str) for s in cell["source"])
    assert shown.count(("image/jpeg", "text/plain")) == 7 and ("text",) in shown and len(text) < 600_000
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    assert not re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", text)
