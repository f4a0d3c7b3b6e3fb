"""What the environment says: other encodings, variables of the hub that are wrong, machines that have too little."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import pytest

from sage import pictures
from sage.commands import main as cli
from sage.errors import ModelError, of_the_machine
from sage.models.fetch import check_environment, fetch, public
from sage.models.known import installed
from tests import small

ROOT = Path(__file__).resolve().parents[2]
NEEDS_MODEL = pytest.mark.skipif(not installed("stilllife"), reason="the bundled model is not here")


def run(*words: str, limits: str = "", **environment: str) -> subprocess.CompletedProcess:
    """`sage` in a process of its own, whose limits a shell sets."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LC_", "LANG", "PYTHON"))}
    return subprocess.run(["sh", "-c", f'{limits} exec "$0" -m sage "$@"', sys.executable, *words], cwd=ROOT,
                          timeout=300, capture_output=True, env=env | {"OMP_NUM_THREADS": "1"} | environment)


def one_line(done: subprocess.CompletedProcess) -> str:
    error = done.stderr.decode()
    assert done.returncode == 2 and error.count("\n") == 1 and error.startswith("sage: error: "), (done, error)
    return error


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("environment") / "p.png"
    small.picture().save(path)
    return path


# ---- encodings


@NEEDS_MODEL
@pytest.mark.parametrize("locale", ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
                                    pytest.param({"LC_ALL": "C.UTF-8"}, marks=pytest.mark.slow)))
def test_a_prompt_is_read_as_it_was_typed(picture, tmp_path, locale):
    out = tmp_path / "é.png"
    done = run("edit", str(picture), "--source", "a café, red", "--target", "a café, blue", "--reweight", "café:2",
               "--model", "stilllife", "--steps", "1", "--truncate", "--out", str(out), **locale)
    assert done.returncode == 0, done.stderr
    record = pictures.read_settings(out)
    assert record["source"] == "a café, red" and record["settings"]["reweight"] == {"café": 2.0}


@pytest.mark.slow
def test_a_table_names_files_that_the_locale_cannot(picture, tmp_path):
    (tmp_path / "t.csv").write_text(f"picture,source,target,name\n{picture.parent}/猫.png,a,b,c\n", encoding="utf-8")
    done = run("batch", str(tmp_path / "t.csv"), "--out", str(tmp_path / "o"), "--model", "stilllife", LC_ALL="C",
               PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"cannot be read" in done.stderr


# ---- the hub


@NEEDS_MODEL
def test_nothing_of_the_hub_is_imported_for_a_model_on_this_disk():
    code = ("import sys, sage\nmodel = sage.load_model('stilllife', device='cpu')\n"
            "assert not {'huggingface_hub', 'transformers', 'httpx2'} & sys.modules.keys(), sys.modules.keys()")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "soon", "HF_ENDPOINT": "http://[::1"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name, value", (
    ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_HUB_ETAG_TIMEOUT", "1.5"), ("HF_ENDPOINT", "http://[::1")))
def test_variables_that_are_wrong_as_the_hubs_library_is_imported(tmp_path, name, value):
    assert name in one_line(run("fetch", "sd-1.5", SAGE_WEIGHTS=str(tmp_path), **{name: value}))


@pytest.mark.parametrize("name, value", (
    ("HF_ENDPOINT", "http://[::1"), ("HF_ENDPOINT", "nowhere"), ("HF_ENDPOINT", "ftp://hub"), ("HF_ENDPOINT", "https://"),
    ("HF_ENDPOINT", "http://hub:99999"), ("HF_ENDPOINT", "http://a b"), ("HF_TOKEN", "hf_é"), ("HF_TOKEN", "hf_\x01x"),
    ("HTTPS_PROXY", "socks5://127.0.0.1:1"), ("ALL_PROXY", "gopher://127.0.0.1:1")))
def test_variables_that_are_wrong(tmp_path, monkeypatch, capsys, name, value):
    for other in [other for other in os.environ if "PROXY" in other.upper() or other.startswith("HF_")]:
        monkeypatch.delenv(other)
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    huggingface_hub.close_session()
    assert cli.main(["fetch", "sd-1.5"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name in error and (name != "HF_TOKEN" or "hf_" not in error)


@pytest.mark.parametrize("endpoint", ("http://me:secret@127.0.0.1:9", "http://me:secret@[::1", "me:secret@hub",
                                      "http://me:sec/secret@127.0.0.1:9/x", "http://me:secret@127.0.0.1:99999"))
def test_a_password_in_an_address_is_not_told(tmp_path, capsys, endpoint):
    huggingface_hub.close_session()
    with pytest.raises(ModelError) as caught:
        fetch("sd-1.5", tmp_path, endpoint, progress=False)
    assert "sec" not in str(caught.value) + capsys.readouterr().err
    assert public("https://huggingface.co/x") == "https://huggingface.co/x"


def test_what_is_right_passes(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    for endpoint in ("https://huggingface.co", "http://127.0.0.1:8000/hub", "http://[::1]:80", "https://u:p@hub"):
        check_environment(endpoint)


# ---- too little of the machine


@pytest.mark.parametrize("limit", ("-v 300000", *(pytest.param(limit, marks=pytest.mark.slow) for limit in (
    "-n 8", "-n 12", "-n 24", "-v 150000", "-v 600000", "-v 900000", "-v 1200000", "-v 2000000"))))
def test_too_little_to_begin_with(picture, tmp_path, limit):
    done = run("edit", str(picture), "--source", "a", "--target", "b", "--model", "stilllife", "--steps", "1",
               "--quiet", "--out", str(tmp_path / "e.png"), limits=f"ulimit {limit};")
    if done.returncode:
        assert "ulimit" in (error := one_line(done)) or "out of memory" in error


@pytest.fixture
def no_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])


@pytest.mark.parametrize("command", ("ui", "serve"))
def test_no_folder_for_what_is_temporary(no_temporary_folder, tmp_path, capsys, command):
    pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
    assert cli.main([command, "--port", "0"]) == 2
    assert capsys.readouterr().err == (f"sage: error: No usable temporary directory found in ['{tmp_path}/none']: name "
                                       "one with TMPDIR\n")


def test_an_upload_without_a_folder_for_what_is_temporary(picture, tmp_path, monkeypatch, request):
    pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
    from fastapi.testclient import TestClient

    from sage.studio import service
    from sage.studio.api import api
    model = small.make(tmp_path / "words").model
    monkeypatch.setattr(service, "load_model", lambda _: model)
    studio = service.Studio(["stilllife"], folder=tmp_path / "studio")
    http = TestClient(api(studio))

    def bring(path: str):
        return http.post(path, content=picture.read_bytes(), headers={"content-type": "application/octet-stream"})

    try:
        assert bring("/api/pictures").status_code == 200
        request.getfixturevalue("no_temporary_folder")
        for path in ("/api/pictures", "/api/masks"):
            refused = bring(path)
            assert refused.status_code == 422 and "No usable temporary directory" in refused.json()["error"]
            assert "\n" not in refused.json()["error"]
    finally:
        studio.close()


def test_only_what_the_machine_lacks_is_said_so():
    assert of_the_machine(OSError(24, "Too many open files")) and of_the_machine(MemoryError())
    assert "libx.so" in of_the_machine(ImportError("libx.so: failed to map segment"))
    assert not of_the_machine(ImportError("cannot import name 'x' from 'sage'")) and not of_the_machine(KeyError("x"))
    assert not of_the_machine(OSError("a message without a number"))
