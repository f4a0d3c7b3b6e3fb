"""How the studio is reached: what it serves, what it refuses, and what could open it up and does not."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from sage.commands import main as cli

gradio = pytest.importorskip("gradio", reason="the extra `ui` is not installed")
import httpx  # noqa: E402  comes with Gradio

from sage.errors import SettingsError  # noqa: E402
from sage.studio import server  # noqa: E402
from sage.studio.handlers import Handlers  # noqa: E402
from sage.studio.service import Limits, Studio  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
OPENING = {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/",
           "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_MCP_SERVER": "True", "GRADIO_SSR_MODE": "True"}


@pytest.fixture(scope="module")
def http(tmp_path_factory):
    """A client of a studio that runs in this process."""
    folder, before = tmp_path_factory.mktemp("studio"), dict(os.environ)
    os.environ.update(OPENING)
    assert set(server.prepare(folder)) >= set(OPENING)
    studio = Studio(["stilllife"], Limits(steps=20), folder / "studio")
    page, address = server.launch(studio, port=0)
    with httpx.Client(base_url=address.rstrip("/"), timeout=60, trust_env=False) as client:
        client.page, client.studio, client.config = page, studio, client.get("/config").json()
        yield client
    page.close(verbose=False)
    studio.close()
    os.environ.clear()
    os.environ.update(before)


def event(http, name: str, what: str) -> int:
    component = next(c["id"] for c in http.config["components"] if c["props"].get("elem_id") == name)
    return next(d["id"] for d in http.config["dependencies"] if [component, what] in [list(t) for t in d["targets"]])


def call(http, name: str, what: str, data: list, session: str = "someone"):
    return http.post("/gradio_api/run/predict", json={"data": data, "fn_index": event(http, name, what),
                                                      "session_hash": session})


def drop(http, path: str, **more):
    return call(http, "picture", "upload", [{"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"},
                                             **more}])


def test_an_uploaded_picture_is_taken(http):
    path = http.post("/gradio_api/upload", files={"files": ("mug.png", MUG.read_bytes())}).json()[0]
    assert drop(http, path).status_code == 200


@pytest.mark.parametrize("path", [str(MUG), "/etc/passwd", "../../etc/passwd", "", "\0", "x" * 5000])
def test_a_path_that_was_not_uploaded_is_not_opened(http, path):
    answer = drop(http, path)
    assert answer.status_code >= 400 and "root:" not in answer.text and "Traceback" not in answer.text


def test_a_file_of_the_studio_that_was_not_uploaded_is_not_opened(http):
    example = next(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("still-life-*.png"))
    assert drop(http, str(example)).status_code >= 400


@pytest.fixture
def elsewhere():
    """The address of another server, and who asked it for what."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    other = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{other.server_port}/x.png", asked
    other.shutdown()


def test_an_address_is_not_fetched(http, elsewhere, monkeypatch):
    from gradio import processing_utils
    address, asked = elsewhere

    async def fetch(url, **_):
        asked.append(url)

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)  # which fetches public ones
    assert drop(http, address).status_code >= 400
    assert drop(http, str(MUG), url=address).status_code >= 400
    file = {"path": address, "meta": {"_type": "gradio.FileData"}}
    settings = next(d for d in http.config["dependencies"] if d["id"] == event(http, "source", "change"))["inputs"]
    assert call(http, "source", "change", [file] * len(settings)).status_code >= 400
    assert call(http, "words", "input", [file]).status_code >= 400
    assert asked == []


@pytest.mark.parametrize("path", ["/etc/passwd", str(MUG), str(ROOT / "sage" / "__init__.py"), "/proc/self/environ"])
def test_files_outside_are_not_served(http, path):
    answer = http.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert http.get(f"/gradio_api/file=https://example.com{path}", follow_redirects=False).status_code != 200


def test_folders_are_not_listed(http):
    folder = os.environ["GRADIO_TEMP_DIR"]
    for path in (folder, f"{folder}/", f"{folder}/studio", f"{folder}/studio/"):
        assert http.get(f"/gradio_api/file={path}").status_code in (403, 404, 405, 422, 500)


def test_what_is_too_long_is_refused(http):
    big = b"x" * (server.UPLOAD + server.MESSAGE + 1)
    assert http.post("/gradio_api/upload", files={"files": ("big.png", big)}).status_code == 413
    over = b"x" * (server.UPLOAD + 1000)
    assert http.post("/gradio_api/upload", files={"files": ("big.png", over)}).status_code == 413
    long = json.dumps({"data": ["x" * server.MESSAGE], "fn_index": 0, "session_hash": "a"})
    assert http.post("/gradio_api/queue/join", content=long).status_code == 413

    def pieces():
        for _ in range(30):
            yield b"x" * 100_000
    try:
        assert http.post("/gradio_api/queue/join", content=pieces()).status_code >= 400
    except httpx.HTTPError:
        pass  # hung up on
    assert http.get("/config").status_code == 200


def test_a_page_loads_nothing_from_elsewhere(http):
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http:" not in policy and "*" not in policy
    assert not re.search(r"fonts\.googleapis|google-analytics", page.text)


def test_the_environment_does_not_open_it(http):
    assert http.page.server_name == "127.0.0.1" and http.page.share is False and http.page.allowed_paths == []
    assert not http.page.analytics_enabled and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not any(name in os.environ for name in set(OPENING) - {"GRADIO_ANALYTICS_ENABLED"})
    assert http.base_url.host == "127.0.0.1"
    port, lines = http.base_url.port, Path("/proc/net/tcp").read_text().split("\n")[1:-1]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [a for a in listening if a.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_no_endpoint_is_offered_to_programs(http):
    info = http.get("/gradio_api/info").json()
    assert info["named_endpoints"] == {} and info["unnamed_endpoints"] == {}
    assert http.get("/monitoring").status_code >= 400 and http.get("/docs").status_code == 404


def test_an_index_that_is_none_of_ones_own(http):
    for name in ("history",):
        for index in (-1, 0, 99):
            answer = http.post("/gradio_api/run/predict", json={
                "data": [], "fn_index": event(http, name, "select"), "session_hash": "nobody",
                "event_data": {"index": index, "value": None}})
            assert answer.status_code == 200 and "not remembered any more" in answer.text


@pytest.mark.parametrize("where", ["/etc/passwd:X", f"{ROOT}/sage/methods/sage.py:SAGE", None, 3, "x" * 500])
def test_a_form_cannot_name_a_file_to_run(http, where, monkeypatch):
    monkeypatch.setattr(sys.modules["sage.method"], "_from_file", lambda name: pytest.fail(f"{name} was run"))
    form = {"method": where, "values": {}, "groups": []}
    answer = call(http, "source", "change", ["a", "b", form])
    assert answer.status_code == 200 and "this studio has no method" in answer.text


def test_touching_the_model_box_changes_nothing(http):
    on, visitor = Handlers(http.studio, SimpleNamespace(status="status")), SimpleNamespace(session_hash="touching")
    form = {"method": "sage", "values": {"steps": "7"}, "groups": []}
    assert on.model_picked("stilllife", form, form, visitor) == {"status": gradio.skip()}
    assert "no model" in on.model_picked("another", form, form, visitor)["status"]


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(http, monkeypatch, capsys):
    port = http.base_url.port
    monkeypatch.setattr(server, "prepare", lambda folder: pytest.fail("too late"))
    assert cli.main(["ui", "--port", str(port)]) == 2
    told = f"127.0.0.1:{port} is taken by another program: give another --port, or --port 0 for any that is free"
    assert capsys.readouterr().err == f"sage: error: {told}\n"
    assert cli.main(["ui", "--host", "192.0.2.1"]) == 2 and "is no address of this machine" in capsys.readouterr().err
    assert 0 < server.free_port("127.0.0.1", 0) != port


def test_a_port_that_is_taken_meanwhile_is_one_line(http, monkeypatch):
    with gradio.Blocks() as empty:
        pass
    monkeypatch.setattr("sage.studio.page.build", lambda studio: empty)
    monkeypatch.setattr(server, "free_port", lambda host, port: port)
    with pytest.raises(SettingsError, match="is taken by another program: give another --port"):
        server.launch(SimpleNamespace(limits=Limits()), port=http.base_url.port)


def test_sage_ui_without_gradio_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["ui"]) == 2
    assert capsys.readouterr().err == "sage: error: the studio needs Gradio: pip install 'sage-edit[ui]'\n"


@pytest.mark.parametrize("arguments, words", [(["--port", "x"], "whole number from 0"), (["--queue", "0"], "from 1"),
                                              (["--max-side", "4"], "from 8"), (["--max-steps", "1001"], "to 1000")])
def test_arguments_are_checked(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["ui", *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert cli.main(["ui", "--model", "no such model"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sage: error: no model is called 'no such model'")


def test_the_space_builds_its_page(tmp_path):
    """app.py as a Space runs it, but for the serving."""
    code = ("import runpy, sys; app = runpy.run_path('space/app.py'); "
            "from sage.studio.page import build; page = build(app['studio']); "
            "print(len(page.blocks) > 50, app['studio'].model.name); app['studio'].close()")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"SAGE_WEIGHTS": str(ROOT / "weights"), "TMPDIR": str(tmp_path)})
    assert done.stdout.split() == ["True", "stilllife"], done.stderr
    header = (ROOT / "space" / "README.md").read_text().split("---")[1]
    facts = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert facts["sdk"] == "gradio" and facts["app_file"] == "app.py" and facts["sdk_version"] == gradio.__version__
    assert float(facts["python_version"].strip('"')) >= 3.11
