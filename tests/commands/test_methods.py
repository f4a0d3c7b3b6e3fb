"""`sage methods`: every method is listed with what it reads and can be told, and none needs torch for that."""

import json
import subprocess
import sys

import pytest

from sage.commands import main as cli
from sage.method import METHODS, method


def test_every_method_is_listed(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in METHODS:
        found = method(name)
        assert f"\n{name} " in f"\n{out}" and found.title in out and found.about.split()[-1] in out
        assert not found.paper or found.paper in out


@pytest.mark.parametrize("name", METHODS)
def test_one_is_told_with_all_its_settings(capsys, name):
    assert cli.main(["methods", name]) == 0
    out = capsys.readouterr().out
    assert all(f"--{field.replace('_', '-')} " in out for field in method(name).Settings.names())
    assert cli.main(["methods", name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)[name]
    found = method(name)
    assert list(told["settings"]) == list(found.Settings.names()) and told["edits"] is found.does("edit")
    assert (told["reads"], told["calls"], told["good_at"]) == (sorted(found.reads), found.calls, found.good_at)
    assert told["beside"] == list(found.beside) and found.good_at and found.calls
    out = " ".join(out.split())
    assert f"reads {', '.join(told['reads'])}; network calls {found.calls}" in out and f"good at {found.good_at}" in out
    assert ("also: " in out) == bool(found.beside)
    assert not found.beside or "also: " + ", ".join(f"+{more}" for more in found.beside) in out


def test_one_that_is_not_there_is_refused_in_a_line(capsys):
    assert cli.main(["methods", "masactr"]) == 2
    assert "did you mean masactrl?" in capsys.readouterr().err


def test_no_torch_is_needed():
    code = "import sys\nfrom sage.commands.main import main\nmain(['methods'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
