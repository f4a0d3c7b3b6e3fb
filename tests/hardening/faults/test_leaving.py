"""A visitor of the studio who leaves at any stage: nothing of theirs stays, and the next one finds it as it was."""

import json
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from threading import Event, Thread

import pytest

from sage.studio import service
from sage.studio.clock import Cancelled, Clock
from sage.studio.requests import EditRequest, Limits, MakeRequest
from tests import small
from tests.hardening.ends import SEEN

LEAVER, NEXT = "who leaves", "the next"
USUAL = [*(("edit", phase) for phase in ("load", "encode", "invert", "edit", "decode")), ("variants", "second"),
         ("look", "explain"), ("generate", "generate")]
MORE = [("variants", "invert"), ("look", "edit"), ("generate", "load"), ("generate", "decode"), ("model", "load")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("leaving") / "tokenizer").model


@contextmanager
def opened(model, place: Path) -> Iterator[service.Studio]:
    """A studio with a small model, and two visitors who have brought the same picture."""
    small.picture().save(place / "p.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "load_model", lambda _: model)
        patch.setattr(model, "name", "stilllife")
        studio = service.Studio(["stilllife"], Limits(patience=60), folder=place / "studio")
        for who in (LEAVER, NEXT):
            studio.take(who, place / "p.png", "p.png")
        yield studio
        studio.close()


@pytest.fixture
def studio(model, tmp_path):
    with opened(model, tmp_path) as studio:
        yield studio


@pytest.fixture(scope="module")
def wanted(model, tmp_path_factory) -> bytes:
    """The edit of who was never disturbed."""
    with opened(model, tmp_path_factory.mktemp("undisturbed")) as studio:
        return studio.edit(NEXT, request(studio)).result(60).path.read_bytes()


def request(studio, seed: int = 0) -> EditRequest:
    config = studio.recommended("edit", "plain").but(steps=2, seed=seed)
    return EditRequest("stilllife", "a cat on a mat", "a dog on a mat", config)


def asked(studio, kind: str):
    """A job of a kind, for who will leave."""
    if kind == "edit":
        return studio.edit(LEAVER, request(studio))
    if kind == "variants":
        return studio.variants(LEAVER, [request(studio), request(studio, 1)])
    if kind == "look":
        return studio.look_inside(LEAVER, studio.visit(LEAVER).results[0])
    if kind == "model":
        return studio.choose(LEAVER, "stilllife")
    config = studio.recommended("generate", "plain").but(steps=2)
    return studio.make(LEAVER, MakeRequest("stilllife", "a cat", "", None, None, config))


def leave(studio, way: str, job) -> None:
    """Forgotten for others who came, or not seen any more."""
    if way == "forgotten":
        leaving = Thread(target=studio.leave, args=[LEAVER])  # as by another's request
        leaving.start()
        leaving.join(10)
        assert not leaving.is_alive()
    else:
        job.asked -= 10**6


@pytest.mark.parametrize("kind, stage, way", [
    *((*at, "forgotten") for at in USUAL),
    *(pytest.param(*at, "forgotten", marks=pytest.mark.slow) for at in MORE),
    *(pytest.param(*at, "not seen", marks=pytest.mark.slow) for at in USUAL + MORE)])
def test_at_any_stage_of_the_work(studio, wanted, monkeypatch, kind, stage, way):
    if kind == "look":
        studio.edit(LEAVER, request(studio)).result(60)
    phases, ready, here = [], Event(), Event()

    class Watched(Clock):
        def __call__(self, phase: str, done: int, total: int) -> None:
            super().__call__(phase, done, total)
            phases.append(phase)
            assert ready.wait(10)
            second = stage == "second" and phase == "edit" and job.part == 2
            if (phase == stage or second) and not here.is_set():
                here.set()
                leave(studio, way, job)

    monkeypatch.setattr(service, "Clock", Watched)
    if stage == "load":
        studio.model = None
    folder, job = studio.visit(LEAVER).folder, asked(studio, kind)
    ready.set()
    if kind == "model":  # what is loaded is everybody's
        job.result(60)
    else:
        with pytest.raises(Cancelled):
            job.result(60)
    assert here.is_set(), phases
    if way == "forgotten":
        nothing_is_left(studio, folder)
    assert not list(studio.folder.rglob("*.part"))
    after = studio.edit(NEXT, request(studio)).result(60)
    assert after.path.read_bytes() == wanted and studio.jobs.counts["working"] == studio.jobs.counts["waiting"] == 0
    SEEN.setdefault("visitors who leave", Counter())[f"{way}: {kind}, {stage}"] += 1


def nothing_is_left(studio, folder: Path) -> None:
    assert not folder.exists()
    assert not [key for cache in (studio.trajectories, studio.album) for key in cache.keys() if key[0] == LEAVER]


def test_while_they_wait(studio):
    going, on = Event(), Event()

    def wait(job):
        going.set()
        assert on.wait(60)

    studio.jobs.submit(NEXT, "edit", Clock(), wait)
    assert going.wait(60)
    folder, job, behind = studio.visit(LEAVER).folder, asked(studio, "edit"), studio.edit(NEXT, request(studio))
    assert job.state == "waiting" and studio.jobs.ahead(behind) == 2
    studio.leave(LEAVER)
    assert job.state == "cancelled" and studio.jobs.ahead(behind) == 1  # at once
    on.set()
    assert behind.result(60).path.exists()
    nothing_is_left(studio, folder)
    SEEN.setdefault("visitors who leave", Counter())["edit, waiting"] += 1


def test_in_the_middle_of_an_upload(studio, tmp_path, monkeypatch, capfd):
    pytest.importorskip("uvicorn", reason="the extra `ui` is not installed")
    from sage.studio.server import Served, listen
    (uploads := tmp_path / "uploads").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(uploads))
    data, visitors = (tmp_path / "p.png").read_bytes(), len(studio._visits)
    with listen("127.0.0.1", 0) as own:
        served, (host, port) = Served(studio, own), own.getsockname()[:2]
        begun = (f"POST /api/pictures HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\n"
                 "Content-Type: application/octet-stream\r\n\r\n").encode()
        try:
            for sent in (begun[:60], begun, begun + data[:len(data) // 2], begun + data[:-1]):
                with socket.create_connection((host, port)) as leaver:
                    leaver.sendall(sent)
                SEEN.setdefault("visitors who leave", Counter())["upload"] += 1
            after = HTTPConnection(host, port, timeout=60)
            after.request("POST", "/api/pictures", data, {"Content-Type": "application/octet-stream"})
            answer = after.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["picture"]
            assert len(studio._visits) == visitors + 1 and not list(uploads.iterdir())
            assert capfd.readouterr().err == ""  # no traceback on the server's terminal
        finally:
            served.close()
