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
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

import sage
from sage.pictures import from_pixels, save_picture
from sage.pictures.metadata import make_record
from sage.pictures.originals import identity
from sage.stilllife.render import render
from sage.stilllife.scenes import sample_scene
from sage.studio import form

SOURCE = "a photograph of a small red mug on grass"
COLOURS = ("blue", "green", "yellow", "orange", "purple", "pink", "white")
STEPS = 2  # of each edit: it is the queue that is measured, not the model
PATIENCE = 180.0  # seconds that a client waits for a result before it is counted as lost


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
    """What came of the requests."""

    answered: int = 0
    refused: int = 0
    swapped: int = 0
    lost: list[str] = field(default_factory=list)
    untold: int = 0
    waits: list[float] = field(default_factory=list)
    positions: set[int] = field(default_factory=set)


def make_clients(number: int, folder: Path, config: sage.EditConfig) -> list[Client]:
    """Pictures no two of which are alike, and the right edit of each."""
    model, clients = sage.load_model("stilllife"), []
    for i in range(number):
        path = save_picture(from_pixels(render(sample_scene(np.random.default_rng(i)), 64)), folder / f"{i}.png")
        target = SOURCE.replace("red", COLOURS[i % len(COLOURS)])
        result = sage.edit(model, Image.open(path), SOURCE, target, config)
        record = make_record(model, SOURCE, target, config, identity(path))
        clients.append(Client(i, path, target, save_picture(result.image, folder / "edit.png", record).read_bytes()))
    assert len({client.expected for client in clients}) == number
    return clients


async def be(client: Client, http: httpx.AsyncClient, settings: dict, until: float, tally: Tally) -> None:
    """One client's minute, and at least until something has come of it."""
    dice = random.Random(client.number)
    sent = await http.post("/api/pictures", params={"name": client.picture.name}, content=client.picture.read_bytes(),
                           headers={"content-type": "application/octet-stream"})
    sent.raise_for_status()
    asked = {"picture": sent.json()["picture"], "source": SOURCE, "target": client.target, "settings": settings}
    while (began := time.monotonic()) < until or not (tally.answered or tally.swapped or tally.lost):
        try:
            got = await asyncio.wait_for(edited(http, asked, tally), PATIENCE)
        except Exception as error:
            tally.lost.append(f"client {client.number}: {type(error).__name__}: {error}")
            continue
        if got is None:
            await asyncio.sleep(dice.uniform(0.5, 2.0))
        elif got != client.expected:
            tally.swapped += 1
        else:
            tally.answered += 1
            tally.waits.append(time.monotonic() - began)


async def edited(http: httpx.AsyncClient, asked: dict, tally: Tally) -> bytes | None:
    """The edited file; None when the queue was full."""
    answer = await http.post("/api/edit", json=asked)
    if answer.status_code == 503:
        tally.refused += 1
        tally.untold += "no more may" not in answer.json()["error"]
        return None
    answer.raise_for_status()
    job = answer.json()
    while job["state"] in ("waiting", "working"):
        if job["state"] == "waiting":
            tally.positions.add(job["ahead"])
        await asyncio.sleep(0.25)  # as the page does
        job = (await http.get(f"/api/jobs/{job['job']}")).raise_for_status().json()
    if job["state"] != "done":
        raise RuntimeError(job["error"] or job["state"])
    return (await http.get(job["results"][0]["url"])).raise_for_status().content


async def watch(pid: int, curve: list[float], done: asyncio.Event) -> None:
    """Resident memory of the server in MB, once a second."""
    while not done.is_set():
        status = Path(f"/proc/{pid}/status").read_text()
        curve.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024)
        await asyncio.sleep(1)


async def load(address: str, pid: int, clients: list[Client], settings: dict, seconds: float) -> tuple[Tally, list]:
    """All clients at once, each with its own cookies."""
    tally, curve, done = Tally(), [], asyncio.Event()
    sessions = [httpx.AsyncClient(base_url=address, timeout=PATIENCE, trust_env=False) for _ in clients]
    watching = asyncio.create_task(watch(pid, curve, done))
    until = time.monotonic() + seconds
    await asyncio.gather(*(be(client, http, settings, until, tally)
                           for client, http in zip(clients, sessions, strict=True)))
    done.set()
    await watching
    after = Tally()
    await be(clients[0], sessions[0], settings, 0, after)
    assert after.answered == 1, f"the studio does not work any more after the load: {after.lost or 'other bytes'}"
    for http in sessions:
        await http.aclose()
    return tally, curve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="[%(default)s]")
    parser.add_argument("--seconds", type=float, default=60, help="[%(default)s]")
    parser.add_argument("--queue", type=int, default=16, help="[%(default)s]")
    parser.add_argument("--command", choices=("ui", "serve"), default="ui", help="the settings are sent as its page "
                        "sends those of a form, or as JSON values [%(default)s]")
    args = parser.parse_args()
    config = sage.method("sage").recommended(sage.load_model("stilllife")).but(steps=STEPS, guided_steps=1, retries=0)
    settings = form.shown(config)["values"] if args.command == "ui" else config.as_dict()
    with tempfile.TemporaryDirectory() as folder:
        clients = make_clients(args.clients, Path(folder), config)
        server = subprocess.Popen([sys.executable, "-m", "sage", args.command, "--port", "0", "--model", "stilllife",
                                   "--queue", str(args.queue)], stdout=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stdout.readline())[0].rstrip("/")
            tally, curve = asyncio.run(load(address, server.pid, clients, settings, args.seconds))
            crashed = server.poll() is not None
        finally:
            server.terminate()
            server.wait(60)
    waits = sorted(tally.waits)
    print(f"{args.clients} clients for {args.seconds:g} s against a queue of {args.queue}: {tally.answered} answered, "
          f"{tally.refused} refused and told so, {tally.swapped} swapped, {len(tally.lost)} lost, "
          f"{'crashed' if crashed else 'no crash'}")
    if waits:
        print(f"answered in {statistics.median(waits):.1f} s (median), {waits[int(0.95 * (len(waits) - 1))]:.1f} s "
              f"(95 %); positions told: {min(tally.positions)} to {max(tally.positions)}")
    shown = curve[::max(1, len(curve) // 12)]
    print(f"memory of the server in MB, start to end: {', '.join(f'{v:.0f}' for v in shown)}; most {max(curve):.0f}")
    for line in tally.lost[:5]:
        print(line)
    return int(crashed or tally.swapped > 0 or bool(tally.lost) or tally.untold > 0 or tally.answered == 0)


if __name__ == "__main__":
    sys.exit(main())
