"""The studio and its API under load: many clients on loopback, a short queue, each checking its own results.

    python -m benchmarks.studio_load [--clients 50] [--seconds 60] [--queue 16] [--command ui|serve]

Each client is a visitor of its own with its own picture and its own words.  It knows beforehand, byte for byte, what
its edit must be.  Refused clients are told so and come again.
"""

import argparse
import asyncio
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import sage
from sage.method import method_of
from sage.pictures import from_pixels, save_picture
from sage.pictures.metadata import make_record
from sage.pictures.originals import identity
from sage.settings import Settings
from sage.stilllife.render import render
from sage.stilllife.scenes import sample_scene
from sage.studio import form

SOURCE = "a photograph of a small red mug on grass"
COLOURS = ("blue", "green", "yellow", "orange", "purple", "pink", "white")
METHOD = "sage"
STEPS = 2  # of each edit: it is the queue that is measured, not the model
PATIENCE = 180.0  # seconds that a client waits for a result before it is counted as lost
REST = 0.5, 2.0  # seconds before a client that was refused, or met an error, comes again


class Failed(Exception):
    """Why a client has no result: what the studio said."""


@dataclass
class Client:
    """One visitor.

    Attributes:
        expected: the bytes of the file that the studio must hand over.
    """

    number: int
    picture: Path
    target: str
    expected: bytes


@dataclass
class Tally:
    """What came of the requests.

    Attributes:
        untold: refused, and not told that the queue is full.
        lost: how often an edit ended in an error, by what was said.
        waits: seconds of each answered edit.
        positions: of what waited, how many were told to be ahead.
    """

    answered: int = 0
    refused: int = 0
    swapped: int = 0
    untold: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    positions: set[int] = field(default_factory=set)


def asked_settings(model: Any) -> Settings:
    """The settings of every edit."""
    return sage.method(METHOD).recommended(model).but(steps=STEPS, guided_steps=1, retries=0)


def sent_as(config: Settings, command: str) -> dict[str, Any]:
    """Settings as the page of `sage ui` sends those of a form, or as JSON values."""
    return form.shown(config)["values"] if command == "ui" else config.as_dict()


def make_clients(model: Any, number: int, folder: Path, config: Settings) -> list[Client]:
    """Pictures no two of which are alike, and the right edit of each."""
    clients = []
    for i in range(number):
        path = save_picture(from_pixels(render(sample_scene(np.random.default_rng(i)), 64)), folder / f"{i}.png")
        target = SOURCE.replace("red", COLOURS[i % len(COLOURS)])
        result = sage.edit(model, Image.open(path), SOURCE, target, config)
        record = make_record(model, SOURCE, target, config, identity(path))
        clients.append(Client(i, path, target, save_picture(result.image, folder / "edit.png", record).read_bytes()))
    assert len({client.expected for client in clients}) == number
    return clients


async def be(client: Client, http: httpx.AsyncClient, asked: dict[str, Any], until: float, tally: Tally) -> None:
    """One client's time, and at least until something has come of it.

    Args:
        asked: of every edit, the method and the settings.
    """
    dice, came = random.Random(client.number), False
    while (began := time.monotonic()) < until or not came:
        try:
            got = await asyncio.wait_for(edited(client, http, asked, tally), PATIENCE)
        except (Failed, httpx.HTTPError, TimeoutError) as error:
            tally.lost[str(error) if isinstance(error, Failed) else type(error).__name__] += 1
            came = True
            await asyncio.sleep(dice.uniform(*REST))
            continue
        if got is None:
            await asyncio.sleep(dice.uniform(*REST))
            continue
        came = True
        if got != client.expected:
            tally.swapped += 1
        else:
            tally.answered += 1
            tally.waits.append(time.monotonic() - began)


async def edited(client: Client, http: httpx.AsyncClient, asked: dict[str, Any], tally: Tally) -> bytes | None:
    """The edited file; None when the queue was full.

    Raises:
        Failed: the studio said why not.
    """
    sent = answered(await http.post("/api/pictures", params={"name": client.picture.name},
                                    content=client.picture.read_bytes(),
                                    headers={"content-type": "application/octet-stream"}))
    answer = await http.post("/api/edit", json=asked | {"picture": sent.json()["picture"], "source": SOURCE,
                                                        "target": client.target})
    if answer.status_code == 503:
        tally.refused += 1
        tally.untold += "no more may" not in answer.json()["error"]
        return None
    job = answered(answer).json()
    while job["state"] in ("waiting", "working"):
        if job["state"] == "waiting":
            tally.positions.add(job["ahead"])
        await asyncio.sleep(0.25)  # as the page does
        job = answered(await http.get(f"/api/jobs/{job['job']}")).json()
    if job["state"] != "done":
        raise Failed(job["error"] or job["state"])
    return answered(await http.get(job["results"][0]["url"])).content


def answered(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is none of an error."""
    if answer.is_error:
        said = answer.json()["error"] if "json" in answer.headers.get("content-type", "") else answer.text[:80]
        raise Failed(f"{answer.status_code}: {said}")
    return answer


async def watch(pid: int, curve: list[float], done: asyncio.Event) -> None:
    """Resident memory of the server in MB, once a second, while it lives."""
    while not done.is_set() and (found := re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())):
        curve.append(int(found[1]) / 1024)
        await asyncio.sleep(1)


async def load(address: str, pid: int, clients: list[Client], asked: dict[str, Any],
               seconds: float) -> tuple[Tally, Tally, list[float]]:
    """All clients at once, each with its own cookies.

    Returns:
        What came of their requests; of one edit after them all; and the memory of the server in MB.
    """
    tally, after, curve, done = Tally(), Tally(), list[float](), asyncio.Event()
    sessions = [httpx.AsyncClient(base_url=address, timeout=PATIENCE, trust_env=False) for _ in clients]
    watching = asyncio.create_task(watch(pid, curve, done))
    until = time.monotonic() + seconds
    await asyncio.gather(*(be(client, http, asked, until, tally)
                           for client, http in zip(clients, sessions, strict=True)))
    done.set()
    await watching
    await be(clients[0], sessions[0], asked, 0, after)
    for http in sessions:
        await http.aclose()
    return tally, after, curve


def report(what: str, tally: Tally, after: Tally, curve: list[float], crashed: bool) -> tuple[str, bool]:
    """What is printed, and whether all was well."""
    lines = [f"{what}: {tally.answered} answered, {tally.refused} refused, {tally.untold} of them not told that the "
             f"queue is full, {tally.swapped} swapped, {tally.lost.total()} lost, "
             f"{'crashed' if crashed else 'no crash'}"]
    if waits := sorted(tally.waits):
        lines.append(f"answered in {statistics.median(waits):.1f} s (median), "
                     f"{waits[int(0.95 * (len(waits) - 1))]:.1f} s (95 %)")
    if tally.positions:
        lines.append(f"places in the queue that were told: {min(tally.positions)} to {max(tally.positions)}")
    if curve:
        shown = curve[::max(1, len(curve) // 12)]
        lines.append(f"memory of the server in MB, start to end: {', '.join(f'{v:.0f}' for v in shown)}; at the end "
                     f"{curve[-1]:.0f}, most {max(curve):.0f}")
    lines += [f"lost, {count} times: {said}" for said, count in tally.lost.most_common(10)]
    works = after.answered == 1
    if not works:
        lines.append(f"after the load the studio does not work any more: {next(iter(after.lost), 'other bytes')}")
    return "\n".join(lines), bool(works and tally.answered) and not (crashed or tally.swapped or tally.lost
                                                                     or tally.untold)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=60, help="[%(default)s]")
    parser.add_argument("--queue", type=int, default=16, help="[%(default)s]")
    parser.add_argument("--command", choices=("ui", "serve"), default="ui", help="the settings are sent as its page "
                        "sends those of a form, or as JSON values [%(default)s]")
    args = parser.parse_args(argv)
    model = sage.load_model("stilllife")
    config = asked_settings(model)
    asked = {"method": method_of(config).name, "settings": sent_as(config, args.command)}
    with tempfile.TemporaryDirectory() as folder:
        clients = make_clients(model, args.clients, Path(folder), config)
        server = subprocess.Popen([sys.executable, "-m", "sage", args.command, "--port", "0", "--model", "stilllife",
                                   "--queue", str(args.queue)], stdout=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0].rstrip("/")
            tally, after, curve = asyncio.run(load(address, server.pid, clients, asked, args.seconds))
            crashed = server.poll() is not None
        finally:
            server.terminate()
            server.wait(60)
    text, well = report(f"sage {args.command}: {args.clients} clients for {args.seconds:g} s against a queue of "
                        f"{args.queue}", tally, after, curve, crashed)
    print(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
