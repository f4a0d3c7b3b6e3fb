"""How the studio is reached: what it serves, what it refuses, and what could open it up and does not."""

import io
import re
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sage.commands import main as cli

pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
httpx = pytest.importorskip("httpx", reason="which the tests of the API ask with")

from sage.errors import SettingsError  # noqa: E402
from sage.pictures import read_settings  # noqa: E402
from sage.studio import server  # noqa: E402
from sage.studio.requests import Limits  # noqa: E402
from sage.studio.service import Studio  # noqa: E402
from tests.models import tiny  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
SOURCE = "a photograph of a big shiny blue mug on stone tiles"
TARGET = SOURCE.replace("blue", "yellow")
FILE = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    with closing(Studio(["stilllife"], Limits(steps=20, waiting=2), folder / "studio", folder / "gallery")) as studio:
        yield studio


@pytest.fixture(scope="module")
def address(studio):
    """Where a studio runs in this process."""
    with closing(server.Served(studio, server.listen("127.0.0.1", 0))) as served:
        yield served.address


@pytest.fixture
def http(address):
    """A visitor of their own."""
    with httpx.Client(base_url=address, timeout=300, trust_env=False) as client:
        yield client


def bring(http, path=MUG, name="mug.png"):
    return http.post("/api/pictures", params={"name": name}, headers=FILE,
                     content=path.getvalue() if isinstance(path, io.BytesIO) else Path(path).read_bytes())


def asked(picture, **more):
    return {"picture": picture, "source": SOURCE, "target": TARGET, "method": "sage",
            "settings": {"steps": 2, "guided_steps": 1, "retries": 0}} | more


def ended(http, answer):
    """What comes of the job of an answer."""
    assert answer.status_code == 202, answer.text
    state = answer.json()
    while state["state"] in ("waiting", "working"):
        time.sleep(0.05)
        state = http.get(f"/api/jobs/{state['job']}").json()
    return state


def test_from_a_picture_to_a_file_that_repeats_the_edit(http, tmp_path):
    picture = bring(http).json()
    assert (picture["width"], picture["height"], picture["name"], picture["record"]) == (128, 128, "mug.png", None)
    done = ended(http, http.post("/api/edit", json=asked(picture["picture"])))
    assert done["state"] == "done" and done["error"] == ""
    [result] = done["results"]
    assert (result["source"], result["target"]) == (SOURCE, TARGET)
    got = http.get(result["url"])
    assert got.headers["content-type"] == "image/png" and "mug-edit.png" in got.headers["content-disposition"]
    (tmp_path / "edit.png").write_bytes(got.content)
    assert read_settings(tmp_path / "edit.png")["settings"]["steps"] == 2
    assert cli.main(["edit", str(MUG), "--config-from", str(tmp_path / "edit.png"), "--out",
                     str(tmp_path / "again.png"), "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == got.content
    for side in ("before", "after"):
        assert http.get(result[side]).headers["content-type"] == "image/png"
    assert [r["result"] for r in http.get("/api/results").json()["results"]] == [result["result"]]
    assert "sage edit mug.png" in http.get(f"{result['url']}/recipe").json()["command"]
    assert any(kept["name"] == "mug-edit.png" for kept in http.get("/api/gallery").json())
    restored = http.post(f"{result['url']}/restore").json()
    assert restored["record"]["form"]["values"]["steps"] == "2" and restored["picture"]["name"] == "mug.png"
    brought = bring(http, tmp_path / "edit.png", "edit.png").json()  # the picture that was edited takes its place
    assert brought["record"]["target"] == TARGET and brought["name"] == "mug.png"


def test_a_picture_from_text_and_variants(http):
    made = ended(http, http.post("/api/generate", json={"prompt": TARGET, "settings": {"steps": 2}}))
    assert made["state"] == "done" and made["results"][0]["before"] == ""
    picture = bring(http).json()["picture"]
    grid = ended(http, http.post("/api/variants", json=asked(picture, axis="guidance_scale", values=[1, 2])))
    assert [r["settings"]["guidance_scale"] for r in grid["results"]] == [1.0, 2.0]
    assert [r["saved"] is not None for r in grid["results"]] == [False, True]
    seeds = ended(http, http.post("/api/variants", json=asked(picture, axis="seed", method="flowedit",
                                                                settings={"steps": 1})))
    assert [r["settings"]["seed"] for r in seeds["results"]] == [0, 1, 2, 3]
    used = http.post(f"/api/pictures/of/{seeds['results'][0]['result']}").json()
    assert used["name"] == "mug-edit.png"


def test_what_is_ones_own_is_nobody_elses(http, address):
    picture = bring(http).json()["picture"]
    done = ended(http, http.post("/api/edit", json=asked(picture)))
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as other:
        for path in (f"/api/pictures/{picture}", f"/api/jobs/{done['job']}", done["results"][0]["url"],
                     done["results"][0]["after"]):
            assert other.get(path).status_code == 422, path
        assert other.delete(f"/api/jobs/{done['job']}").status_code == 422
        assert "not remembered" in other.post("/api/edit", json=asked(picture)).json()["error"]
        assert other.get("/api/results").json()["results"] == []


def test_waiting_is_told_bounded_and_can_be_ended(http):
    picture = bring(http).json()["picture"]
    slow = asked(picture, settings={"steps": 20, "retries": 0})
    first = http.post("/api/edit", json=slow).json()
    while http.get(f"/api/jobs/{first['job']}").json()["state"] == "waiting":
        time.sleep(0.02)
    second, third = (http.post("/api/edit", json=slow).json() for _ in range(2))
    assert (second["state"], second["ahead"], third["ahead"]) == ("waiting", 1, 2)
    full = http.post("/api/edit", json=slow)
    assert full.status_code == 503 and "2 are waiting already" in full.json()["error"]
    assert http.get("/api/status").json()["queue"] == {"working": 1, "waiting": 2, "most": 2}
    for job in (second, first, third):
        assert http.delete(f"/api/jobs/{job['job']}").json()["state"] == "cancelled"


def test_the_latest_live_edit_wins_and_an_edit_takes_its_place(http):
    picture = bring(http).json()["picture"]
    before = len(http.get("/api/results").json()["results"])
    slow = http.post("/api/edit", json=asked(picture, live=True, settings={"steps": 20, "retries": 0})).json()
    first = ended(http, http.post("/api/edit", json=asked(picture, live=True)))
    assert http.get(f"/api/jobs/{slow['job']}").json()["state"] == "cancelled"
    assert first["kind"] == "live" and first["state"] == "done"
    second = ended(http, http.post("/api/edit", json=asked(picture, live=True, settings={"steps": 3})))
    assert http.get(first["results"][0]["url"]).status_code == 422  # its place is taken
    found = http.get("/api/results").json()["results"]
    assert len(found) == before + 1 and found[0]["url"] == second["results"][0]["url"]
    kept = ended(http, http.post("/api/edit", json=asked(picture)))
    again = ended(http, http.post("/api/edit", json=asked(picture)))
    found = [r["url"] for r in http.get("/api/results").json()["results"]]
    assert len(found) == before + 2 and found[:2] == [job["results"][0]["url"] for job in (again, kept)]


def test_an_edit_can_be_waited_for(http):
    picture = bring(http).json()["picture"]
    job = http.post("/api/edit", json=asked(picture)).json()
    assert http.get(f"/api/jobs/{job['job']}", params={"wait": 30}).json()["state"] == "done"
    assert http.get(f"/api/jobs/{job['job']}", params={"wait": 31}).status_code == 422
    slow = http.post("/api/edit", json=asked(picture, settings={"steps": 20, "retries": 0})).json()
    assert http.get(f"/api/jobs/{slow['job']}", params={"wait": 0.05}).json()["state"] in ("waiting", "working")
    http.delete(f"/api/jobs/{slow['job']}")


@pytest.mark.parametrize("change, words", [
    ({"source": " "}, "source prompt is empty"), ({"settings": {"steps": 21}}, "at most 20"),
    ({"settings": {"steps": "many"}}, "steps is 'many'"), ({"settings": {"no_such": 1}}, "no setting 'no_such'"),
    ({"model": "/etc/passwd"}, "no model"), ({"method": "/etc/passwd:X"}, "no method"),
    ({"method": f"{ROOT}/sage/methods/sage.py:SAGE"}, "no method"), ({"mask": "0"}, "not remembered"),
    ({"target": "x" * 5000}, "at most 4096"), ({"settings": [1]}, "settings"), ({"picture": 3}, "picture")])
def test_mistakes_are_one_line(http, change, words):
    answer = http.post("/api/edit", json=asked(bring(http).json()["picture"]) | change)
    assert answer.status_code == 422 and words in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_bad_pictures_are_one_line_without_a_path(http):
    for data in (b"", b"no picture", MUG.read_bytes()[:900]):
        answer = http.post("/api/pictures", params={"name": "../../mine.png"}, content=data, headers=FILE)
        assert answer.status_code == 422 and "mine.png" in answer.text and "/tmp" not in answer.text


def test_parts_are_moved_and_put_in(http):
    mug = bring(http).json()
    still = asked(mug["picture"], target=SOURCE, method="regiondrag", settings={"steps": 2})
    moved = ended(http, http.post("/api/edit", json=still | {"moves": [[[46, 40, 62, 62], [10, 50]]]}))
    [result] = moved["results"]
    restored = http.post(f"/api/results/{result['result']}/restore").json()["record"]
    again = ended(http, http.post("/api/edit", json=still | {"moves": restored["moves"]}))
    first, second = (http.get(r["url"]).content for r in (result, again["results"][0]))
    assert first == second
    for bad in ([[[1], [2, 3]]], [[[1, 2]]], [[["x", 2], [3, 4]]], [[[1e9, 2], [3, 4]]], [[[1, 2], [3, 4]]] * 17,
                [["/etc/passwd", [3, 4]]]):
        refused = http.post("/api/edit", json=still | {"moves": bad})
        assert refused.status_code == 422 and "\n" not in refused.json()["error"], bad
    mask = http.post("/api/masks", content=MUG.read_bytes(), headers=FILE).json()["picture"]
    paste = http.post("/api/compose", json={"picture": mug["picture"], "reference": mug["picture"], "mask": mask,
                                            "box": [0, 0, 16, 16]}).json()
    assert paste["name"] == "mug-composed.png" and http.get(f"/api/pictures/{paste['mask']}").status_code == 200
    put_in = asked(paste["picture"], method="plain", settings={"steps": 1})
    [result] = ended(http, http.post("/api/edit", json=put_in))["results"]
    assert "--config-from" in http.get(f"{result['url']}/recipe").json()["command"]
    bring(http)  # another picture meanwhile
    download = http.get(result["url"]).content
    for came in (http.post(f"{result['url']}/restore"), bring(http, io.BytesIO(download), "result.png")):
        record, shown = came.json()["record"], came.json()["picture"]
        assert record["pictured"] and record["references"] == ["mug.png"]
        assert (shown if isinstance(shown, str) else shown["picture"]) == paste["picture"]
    file = http.get(f"{paste['url']}/file")
    assert file.headers["content-type"] == "image/png"
    assert bring(http, io.BytesIO(file.content), "mug-composed.png").json()["picture"] == paste["picture"]


def test_what_is_seen_of_a_picture(http):
    mug = bring(http).json()
    assert "mug" in http.get(f"{mug['url']}/seen").json()["source"]
    assert http.get("/api/pictures/none/seen").status_code == 422


def test_methods_tell_their_forms(http):
    methods = http.get("/api/methods").json()
    assert {"sage", "p2p", "flowedit"} <= {m["name"] for m in methods} and all(m["about"] for m in methods)
    form = http.get("/api/methods/sage").json()
    assert form["strength"] == {"name": "guidance_scale", "low": 1, "high": 8, "log": True}
    assert form["keep"]["name"] == "reconstruction_scale" and list(form["presets"]) == ["gentle", "recommended", "bold"]
    often = {f["name"] for _, fields in form["groups"] for f in fields if f["often"]}
    assert {"steps", "seed", "guidance_scale"} <= often and "decay" not in often
    words = http.post("/api/words", json={"source": "a cat", "target": "a dog", "method": "sage"}).json()
    assert words["pairs"] == [["cat", "dog"]]


def test_each_model_is_asked_for_by_what_it_recommends_itself(tmp_path):
    """Whichever is in memory, and one that was never there too: several pages are open, and each goes by its model."""
    few, many, little = "stilllife-turbo", "stilllife", str(tiny.make(tmp_path / "little").folder)
    with (closing(Studio([few, many, little], Limits(steps=20), tmp_path / "files")) as studio,
          closing(server.Served(studio, server.listen("127.0.0.1", 0))) as served,
          httpx.Client(base_url=served.address, timeout=300, trust_env=False) as http):
        picture = bring(http).json()["picture"]

        def made(model, method=None, **settings):
            done = ended(http, http.post("/api/edit", json=asked(picture, model=model, method=method,
                                                                 settings=settings)))
            assert done["error"] == "", done
            [result] = done["results"]
            assert result["model"] == model == http.get("/api/status").json()["model"]
            return result["settings"] | {"method": result["method"]}

        status = http.get("/api/status", params={"model": many}).json()
        assert status["model"] == few and status["loaded"]  # nothing is known of one that was never loaded
        assert "not loaded here yet" in http.get("/api/methods/sage", params={"model": many}).json()["error"]
        assert "no model 'none'" in http.get("/api/methods", params={"model": "none"}).json()["error"]
        assert "no model 'none'" in http.post("/api/edit", json=asked(picture, model="none")).json()["error"]
        wrong = ended(http, http.post("/api/edit", json=asked(picture, model="little", settings={"stpes": 2})))
        assert wrong["state"] == "failed" and "stpes" in wrong["error"]  # told when its settings are known
        first = made(many, steps=2)
        assert (first["method"], first["guidance_scale"]) == ("turbo-ddpm", 3.0)

        assert [m["name"] for m in http.get("/api/methods", params={"model": few}).json()] == [
            "plain", "sdedit", "turbo", "turbo-ddpm"]
        status = http.get("/api/status", params={"model": few}).json()
        assert (status["model"], status["loaded"], status["defaults"]["edit"]) == (few, False, "turbo")
        form = http.get("/api/methods/turbo-ddpm", params={"model": few}).json()
        assert form["values"]["steps"] == "4"
        words = http.post("/api/words", json={"source": "a mug", "target": "a ball", "method": "turbo", "model": few})
        assert words.json()["pairs"] == [["mug", "ball"]]
        assert "inversion network" in http.get("/api/methods/turbo").json()["error"]  # of the one in memory
        second = made(few, "turbo-ddpm")
        assert (second["steps"], second["guidance_scale"]) == (4, 1.5)

        studio.use(many)
        assert made(few)["method"] == "turbo"
        studio.use(many)
        grid = ended(http, http.post("/api/variants", json=asked(picture, model=few, method="turbo", settings={},
                                                                 axis="method")))
        assert {r["method"]: r["settings"]["steps"] for r in grid["results"]}["turbo-ddpm"] == 4


def test_the_description_names_every_request(http):
    paths = http.get("/api/openapi.json").json()["paths"]
    assert {"/api/edit", "/api/generate", "/api/methods", "/api/status", "/api/jobs/{key}"} <= set(paths)
    assert all(about.get("description") for verbs in paths.values() for about in verbs.values())
    assert "delete" in paths["/api/jobs/{key}"]


def test_pages_are_served_and_load_nothing_from_elsewhere(http):
    page = http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy and "http:" not in policy
    assert page.headers["x-content-type-options"] == "nosniff" and "SAGE studio" in page.text
    for path in re.findall(r'(?:src|href)="(page/[^"]+)"', page.text):
        assert http.get(path).status_code == 200, path
    assert "http://" not in page.text and "https://" not in page.text


@pytest.mark.parametrize("path", ["/page/../server.py", "/page/%2e%2e/server.py", "/page/", "/page", "/docs", "/redoc",
                                  "/page//etc/passwd", "/sage/__init__.py", "/api/gallery/..%2f..%2fetc%2fpasswd"])
def test_nothing_else_is_served(http, path):
    assert http.get(path).status_code in (404, 422)


def test_what_the_api_does_not_have_is_one_line(http):
    for verb, path in (("GET", "/api/nothing"), ("DELETE", "/api/status"), ("GET", "/api/results/a/b/c")):
        answer = http.request(verb, path)
        assert answer.status_code in (404, 405) and "\n" not in answer.json()["error"]


def test_what_is_too_long_is_refused(http):
    def pieces():
        for _ in range(30):
            yield b"x" * 100_000

    for length in (str(server.UPLOAD + 1), "-1", "many", "9" * 5000):
        with socket.create_connection(("127.0.0.1", http.base_url.port)) as own:
            own.sendall(f"POST /api/pictures HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n".encode())
            assert own.recv(100).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
    assert http.post("/api/edit", content=b"x" * (server.MESSAGE + 1)).status_code == 413
    try:
        assert http.post("/api/edit", content=pieces()).status_code >= 400
    except httpx.HTTPError:
        pass  # hung up on
    assert http.get("/api/status").status_code == 200


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"origin": "null"},
                                     {"host": "evil.example"}, {"host": "evil.example:80"}, {"host": ""},
                                     {"host": "["}, {"host": "[::1"}, {"origin": "http://["}])
def test_another_site_may_not_speak_to_it(http, headers):
    assert http.get("/api/status", headers=headers).status_code in (400, 403)


def test_its_own_page_may(http, address):
    assert http.get("/api/status", headers={"origin": address.rstrip("/")}).status_code == 200


def test_a_token_is_asked_for(studio):
    served = server.Served(studio, server.listen("127.0.0.1", 0), home="api.html", token="secret-token")
    try:
        base = served.address.partition("?")[0]
        with httpx.Client(base_url=base, timeout=60, trust_env=False) as client:
            assert client.get("/").status_code == 401 and client.get("/api/status").status_code == 401
            assert client.get("/?token=wrong").status_code == 401
            bearer = {"authorization": "Bearer secret-token"}
            assert client.get("/api/status", headers=bearer).status_code == 200
            assert client.get("/api/status", headers={"authorization": "Bearer secret-toke"}).status_code == 401
            opened = client.get(served.address)
            assert opened.status_code == 303 and "HttpOnly" in opened.headers["set-cookie"]
            assert "SAGE API" in client.get("/").text  # by the cookie
    finally:
        served.close()


def test_only_this_machine_reaches_it(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    lines = Path("/proc/net/tcp").read_text().split("\n")[1:-1]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    assert [a for a in listening if a.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    assert server.is_loopback("localhost") and server.is_loopback("::1") and not server.is_loopback("0.0.0.0")


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(address, monkeypatch, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    monkeypatch.setattr(server, "Studio", lambda *_: pytest.fail("too late"))
    assert cli.main(["ui", "--port", port]) == 2
    told = f"127.0.0.1:{port} is taken by another program: give another --port, or --port 0 for any that is free"
    assert capsys.readouterr().err == f"sage: error: {told}\n"
    assert cli.main(["serve", "--host", "192.0.2.1"]) == 2
    assert "is no address of this machine" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="is no address of this machine"):
        server.listen("no.such.host.invalid", 0)
    with server.listen("127.0.0.1", 0) as own:
        assert isinstance(own, socket.socket) and own.getsockname()[1] > 0


def test_sage_ui_without_its_extra_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["ui"]) == 2
    told = "the studio needs FastAPI and uvicorn: pip install 'sage-edit[ui]'"
    assert capsys.readouterr().err == f"sage: error: {told}\n"


@pytest.mark.parametrize("arguments, words", [(["--port", "x"], "whole number from 0"), (["--queue", "0"], "from 1"),
                                              (["--max-side", "4"], "from 8"), (["--max-steps", "1001"], "to 1000"),
                                              (["--token", "short"], "at least 8"), (["--patience", "1"], "from 5")])
def test_arguments_are_checked(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["ui", *arguments])
    assert ended.value.code == 2 and words in capsys.readouterr().err


def test_all_models_of_this_disk_can_be_chosen(monkeypatch):
    monkeypatch.setattr(server, "own_names", lambda: ["mine"])
    monkeypatch.setattr(server, "installed", lambda name: name.startswith("stilllife"))
    assert server.choose_models(None) == ["stilllife-turbo", "stilllife", "mine"]  # first the one that follows
    assert server.choose_models(["other"]) == ["other"]


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert cli.main(["ui", "--port", "0", "--model", "no such model"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("sage: error: no model is called 'no such model'")


def test_the_client_of_twenty_lines_edits(studio, address, tmp_path, monkeypatch):
    config = studio.recommended("edit", "sage").but(steps=2, guided_steps=1, retries=0)
    monkeypatch.setattr(studio, "recommended", lambda *_, **__: config)
    done = subprocess.run([sys.executable, ROOT / "examples" / "client.py", address, MUG, SOURCE, TARGET,
                           tmp_path / "edit.png"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert read_settings(tmp_path / "edit.png")["target"] == TARGET
    code = [line for line in (ROOT / "examples" / "client.py").read_text().splitlines() if line and line[0] not in '#"']
    assert len(code) <= 20
