"""The load on the studio, little and short: right answers are counted, and errors are told by kind."""

import asyncio
import os
from contextlib import closing
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
pytest.importorskip("httpx", reason="which the clients ask with")

from benchmarks import studio_load  # noqa: E402
from sage.studio import server  # noqa: E402
from sage.studio.requests import Limits  # noqa: E402
from sage.studio.service import Studio  # noqa: E402


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with closing(Studio(["stilllife"], Limits(waiting=1), tmp_path_factory.mktemp("load") / "studio")) as studio:
        yield studio


@pytest.fixture(scope="module")
def address(studio):
    with closing(server.Served(studio, server.listen("127.0.0.1", 0))) as served:
        yield served.address


@pytest.fixture(scope="module")
def clients(studio, tmp_path_factory):
    return studio_load.make_clients(studio.model, 2, tmp_path_factory.mktemp("clients"),
                                    studio_load.asked_settings(studio.model))


def loaded(address, clients, asked, seconds):
    tallies = asyncio.run(studio_load.load(address, os.getpid(), clients, asked, seconds))
    return *tallies, *studio_load.report("it", *tallies, False)


@pytest.mark.slow
@pytest.mark.parametrize("command", ("ui", "serve"))
def test_clients_get_their_own_edits(studio, address, clients, command):
    settings = studio_load.sent_as(studio_load.asked_settings(studio.model), command)
    tally, after, curve, text, well = loaded(address, clients, {"method": "sage", "settings": settings}, 0)
    assert well and not tally.lost and tally.answered >= 2 and after.answered == 1 and curve[-1] > 50, text
    assert f"it: {tally.answered} answered" in text and "s (median)" in text and "memory of the server" in text


def test_errors_are_told_by_kind_and_not_hammered(address, clients, monkeypatch):
    monkeypatch.setattr(studio_load, "REST", (0.2, 0.3))
    tally, after, _, text, well = loaded(address, clients, {"method": "sage", "settings": {"no_such": 1}}, 0.5)
    assert not well and tally.answered == 0 and 2 <= tally.lost.total() <= 6 and len(tally.lost) == 1
    assert f"lost, {tally.lost.total()} times: 422: " in text and "no setting 'no_such'" in text
    assert "does not work any more" in text and after.lost.total() == 1


def test_other_bytes_than_the_right_ones_are_told(address, clients):
    wrong = replace(clients[0], expected=b"another's")
    tally, _, _, text, well = loaded(address, [wrong], {"method": "sage", "settings": {"steps": 1}}, 0)
    assert not well and tally.swapped == 1 and "1 swapped" in text and "other bytes" in text


@pytest.mark.slow
@pytest.mark.parametrize("command", ("ui", "serve"))
def test_the_whole_command(command, capsys):
    assert studio_load.main(["--clients", "3", "--seconds", "5", "--queue", "1", "--command", command]) == 0
    text = capsys.readouterr().out
    assert "0 swapped, 0 lost, no crash" in text and f"sage {command}: 3 clients for 5 s" in text
