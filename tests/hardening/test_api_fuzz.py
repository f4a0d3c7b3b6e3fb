"""The HTTP API, attacked: any body, name, header and file to every route; an answer, or one line of why not."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
pytest.importorskip("httpx", reason="which the requests are made with")

from fastapi.routing import APIRoute  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from sage.display.console import LONGEST  # noqa: E402
from sage.method import METHODS  # noqa: E402
from sage.studio import service  # noqa: E402
from sage.studio.api import api  # noqa: E402
from sage.studio.requests import Limits  # noqa: E402
from sage.studio.server import Guard, Pages  # noqa: E402
from sage.studio.service import Studio  # noqa: E402
from tests import small  # noqa: E402
from tests.hardening import files  # noqa: E402
from tests.hardening.ends import SEEN, Counter, tries  # noqa: E402
from tests.hardening.test_methods_fuzz import NAMES, WORDS  # noqa: E402

FILE = {"content-type": "application/octet-stream"}
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
AXES = ("strength", "seed", "method", "steps", "blend", "reweight", "size", "\0", "encode")


class World:
    """A studio with a small model, a visitor, and the keys of what they have."""

    def __init__(self, model, folder):
        self.studio = Studio(["stilllife"], Limits(steps=2, side=64, waiting=3), folder / "studio", folder / "gallery")
        self.http = TestClient(Guard(Pages(api(self.studio), "studio.html")), "http://127.0.0.1",
                               raise_server_exceptions=False)
        self.png = files.encoded(small.picture(), "PNG")
        self.routes = [(route, verb) for route in api(self.studio).routes if isinstance(route, APIRoute)
                       for verb in sorted(route.methods)]
        self.begin()

    def begin(self) -> None:
        """A visitor with a picture, a mask and a result, as everybody has who has worked here for a while."""
        picture = self.http.post("/api/pictures", content=self.png, headers=FILE).json()["picture"]
        edit = {"picture": picture, "source": SOURCE, "target": TARGET, "method": "plain", "settings": {"steps": 1}}
        job = self.http.post("/api/edit", json=edit).json()["job"]
        self.studio.jobs.find(self.http.cookies["sage-visit"], job).result()
        result = self.http.get(f"/api/jobs/{job}").json()["results"][0]["result"]
        kept = self.http.get("/api/gallery").json()[0]["name"]
        self.keys = {"picture": picture, "job": job, "result": result, "gallery": kept}
        moves = [[[10, 10, 30, 30], [20, 20]], [picture, [8, 8]]]
        variants = edit | {"axis": "seed", "values": [1, 2], "mask": picture, "paste": False, "truncate": True}
        self.bodies = {
            "/api/edit": edit | {"moves": moves, "mask": "", "paste": True, "model": "stilllife", "truncate": False},
            "/api/variants": variants, "/api/model": {"name": "stilllife"},
            "/api/generate": {"prompt": TARGET, "negative": "a", "width": 64, "height": 64, "method": "plain",
                              "settings": {"steps": 1}, "truncate": True},
            "/api/compose": {"picture": picture, "reference": picture, "mask": picture, "box": [1, 2, 30, 40]},
            "/api/words": {"source": SOURCE, "target": TARGET, "method": "sage", "settings": {"reweight": "dog:2"}}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    model = small.make(folder / "tokenizer").model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "load_model", lambda place: model)
        world = World(model, folder)
        yield world
        world.studio.close()


@st.composite
def settings(draw):
    """Some settings of methods, of values that they may have or never."""
    method = draw(st.sampled_from(tuple(METHODS)))
    names = st.one_of(st.sampled_from(service.method(method).Settings.names()), st.text(max_size=8))
    return draw(st.one_of(files.VALUES, st.dictionaries(names, st.one_of(WORDS, files.VALUES), max_size=3))), method


@st.composite
def bodies(draw, world, path):
    """A body for a route: an honest one but for some values, or anything."""
    if path in ("/api/pictures", "/api/masks"):
        return draw(st.one_of(st.just(world.png), st.binary(max_size=60), files.damaged(world.png)))
    honest = dict(world.bodies.get(path, {"a": 1}))
    if "settings" in honest and draw(st.booleans()):
        honest["settings"], honest["method"] = draw(settings())
    if draw(st.booleans()):
        change = draw(st.sampled_from((
            {"method": draw(NAMES)}, {"axis": draw(st.sampled_from(AXES)), "values": draw(st.one_of(
                st.none(), st.lists(st.one_of(WORDS, files.NUMBERS), max_size=5)))},
            {"moves": draw(st.lists(st.lists(st.one_of(st.lists(files.NUMBERS, max_size=5), WORDS,
                                                       st.just(world.keys["picture"])), max_size=3), max_size=3))},
            {"box": draw(st.lists(files.NUMBERS, max_size=5))}, {"source": draw(WORDS)}, {"target": draw(WORDS)},
            {"width": draw(files.NUMBERS), "height": draw(files.NUMBERS)}, {"mask": draw(WORDS)}, {})))
        return json.dumps(honest | {name: value for name, value in change.items() if name in honest}).encode()
    text = draw(st.one_of(files.hostile_json(honest), st.just(json.dumps(honest)), files.VALUES.map(json.dumps)))
    raw = text.encode(errors="surrogatepass")
    return draw(st.one_of(st.just(raw), st.just(raw), files.damaged(raw)))


HEADERS = st.dictionaries(
    st.sampled_from(("host", "origin", "cookie", "content-type", "authorization", "referer", "range", "content-length",
                     "if-none-match", "accept", "x")),
    st.one_of(st.sampled_from(("[", "[::1", "127.0.0.1:x", "http://[", "null", "bytes=0-", "bytes=9-1,x", "bytes=-",
                               "sage-visit=" + "a" * 32, "sage-visit=\xe9", "application/json", "9" * 5000, "-1",
                               "text/plain; charset=\xe9", "multipart/form-data", "Bearer \xe9", "a;b=c;;=", "")),
              st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)), max_size=2)


@tries(20, 3000)
@given(st.data())
def test_any_request_is_answered(world, capsys, data):
    route, verb = data.draw(st.sampled_from(world.routes))
    seen, path = SEEN.setdefault(f"requests of the API, {verb} {route.path}", Counter()), route.path
    for name in ("key", "result", "name", "side", "index"):
        right = {"side": "before", "index": "0", "name": world.keys["gallery"] if "gallery" in path else "p2p"}.get(
            name, next((key for kind, key in world.keys.items() if f"/{kind}s/" in path), ""))
        words = st.one_of(st.just(right), st.just(right), WORDS, st.sampled_from((*world.keys.values(), "-1")))
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(data.draw(words), safe="", errors="replace"))
    asked = {"task": data.draw(WORDS)} if not data.draw(st.integers(0, 4)) else {}
    asked |= {"name": data.draw(WORDS)} if not data.draw(st.integers(0, 4)) else {}
    asked = {name: value.encode(errors="replace").decode() for name, value in asked.items()}
    body = data.draw(bodies(world, route.path)) if verb == "POST" else None
    headers = FILE if route.path in ("/api/pictures", "/api/masks") else {"content-type": "application/json"}
    if not data.draw(st.integers(0, 3)):
        headers = headers | data.draw(HEADERS)
    answer = world.http.request(verb, path, params=asked, content=body,
                                headers={name: value.encode("latin-1") for name, value in headers.items()})
    who = world.http.cookies["sage-visit"]
    assert answer.status_code < 500 or answer.status_code == 503, (verb, path, body, headers)
    if answer.is_error:
        said = answer.json()["error"] if "json" in answer.headers["content-type"] else answer.text
        assert said and said.isprintable() and len(said) <= LONGEST, said
    seen[str(answer.status_code)] += 1
    for job in world.studio.jobs.of(who):
        if data.draw(st.booleans()):
            job.cancel()
        wait(world, who, job, seen)
    if world.studio.visit(who).picture is None or (who, world.keys["picture"]) not in world.studio.album.keys():
        world.begin()
    assert "Traceback" not in capsys.readouterr().err, (verb, path, body)


def wait(world, who, job, seen) -> None:
    """Until a job has ended, in a result, an error of one line, or nothing for one that was broken off."""
    try:
        job.result()
    except BaseException:  # what there is to be said is in the job
        assert job.state in ("failed", "cancelled"), job.state
    assert "went wrong" not in job.error and job.error.isprintable() and len(job.error) <= LONGEST, job.error
    seen[f"job {job.state}"] += 1
