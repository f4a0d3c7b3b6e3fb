"""Films docs/first_minutes.md, a stranger in a terminal and at the studio: docs/first_minutes/*.webp, docs/studio.png.

    pip install pyte                    # a terminal without a screen
    python docs/make_film.py            # with the extras ui and browser, and Chromium; minutes
"""

import html
import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyte
from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
MUG = DOCS.parent / "examples" / "mug.png"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTH = 900  # pixels of a picture in the document
ROWS, COLUMNS = 50, 100  # of the terminal
TERMINAL = """<body style="margin: 0; background: #16181d">
<pre style="margin: 0; padding: 22px; width: 860px; color: #d6d9e0; font: 14px/1.45 monospace">{}</pre>"""


class Film:
    """A page and what is left of it."""

    def __init__(self, page: Any, address: str):
        self.page = page
        page.set_default_timeout(600_000)
        page.goto(address)
        page.wait_for_selector("#caption dd")
        page.wait_for_function("() => document.querySelector('#source').value !== ''")

    def shot(self, name: str) -> Image.Image:
        """A picture of the page, which is not to show an error."""
        self.page.wait_for_function("() => document.querySelector('.compare .after').complete")
        self.page.wait_for_timeout(400)
        if wrong := self.page.locator(".error:visible").all_inner_texts():
            raise RuntimeError(f"{name}: the page shows an error: {' '.join(wrong)}")
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        keep(image, name)
        return image

    def bring(self, path: Path, said: str) -> None:
        self.page.set_input_files("#file", str(path))
        self.page.wait_for_selector(f"#status:has-text('{said}')")

    def edit(self) -> None:
        self.page.click("#edit")
        self.page.wait_for_selector("#status:has-text('Done in')")

    def drag(self, *places: tuple[float, float]) -> None:
        box = self.page.locator("#boxes").bounding_box()
        for i, (x, y) in enumerate(places):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if i == 0:
                self.page.mouse.down()
        self.page.mouse.up()


def keep(image: Image.Image, name: str) -> None:
    """As a file of the document, no wider than it shows."""
    small = image.resize((min(WIDTH, image.width), round(image.height * min(1, WIDTH / image.width))),
                         Image.Resampling.LANCZOS)
    small.save(DOCS / "first_minutes" / f"{name}.webp", quality=72, method=6)


def terminal(page: Any, name: str, command: str, folder: Path, answer: str = "") -> None:
    """What a terminal shows once a command has ended.

    Args:
        folder: where it is run, with `sage` on the path.
        answer: what is typed where it asks.
    """
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {command}\r\n".encode())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    child, end = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execvpe("sh", ["sh", "-c", f"stty rows {ROWS} cols {COLUMNS}; exec {command}"], os.environ | {"PATH": path})
    while True:
        try:
            stream.feed(os.read(end, 65536))
        except OSError:  # it has ended
            break
        if answer and screen.display[screen.cursor.y].rstrip().endswith("[y/N]"):
            os.write(end, f"{answer}\n".encode())
            answer = ""
    os.waitpid(child, 0)
    shown = "\n".join(line.rstrip() for line in screen.display).rstrip()
    page.set_content(TERMINAL.format(html.escape(shown.replace(str(DOCS.parent), "~/sage"))))
    keep(Image.open(io.BytesIO(page.locator("pre").screenshot())).convert("RGB"), name)


def shell(page: Any, folder: Path) -> None:
    """What is seen in a terminal."""
    shutil.copy(MUG, folder)
    beach = "sage edit holiday.jpg --source 'a beach' --target 'a snowy beach'"
    terminal(page, "make", "make edit", DOCS.parent)
    terminal(page, "word", "sage edit mug.png --source 'a blue mug' --target 'a blue teapot' --model stilllife", folder)
    terminal(page, "fetch", f"{beach} --model sd-1.5", folder, "n")
    terminal(page, "doctor", "sage doctor", folder)


def wide(film: Film, other: Path) -> None:
    """What is seen at a desk."""
    page = film.page
    film.shot("opens")
    target = page.input_value("#target").replace("yellow", "green")
    page.fill("#target", target)
    page.wait_for_function("target => document.querySelector('#caption').textContent.includes(target)", arg=target)
    film.shot("follows").quantize(128).save(DOCS / "studio.png", optimize=True)
    film.bring(other, "mush")
    film.shot("other")
    film.bring(MUG, "taken to show")
    page.fill("#target", "make it red")
    page.wait_for_selector("#words .meant")
    page.wait_for_function("() => document.querySelector('#caption').textContent.includes('red')")
    film.shot("instruction")
    page.select_option("#model", "stilllife")
    page.wait_for_selector("#status:has-text('is loaded')")
    page.click("#edit")
    page.wait_for_selector("#compare.working")
    film.shot("emerges")
    page.wait_for_selector("#status:has-text('Done in')")
    film.shot("done")
    page.click("#move")
    film.drag((0.772, 0.715), (0.8, 0.8), (0.97, 0.965))
    film.drag((0.115, 0.83))
    film.shot("move")
    page.click("#boxes-done")
    film.edit()
    film.shot("moved")


def main() -> None:
    (DOCS / "first_minutes").mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", "sage", "ui", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", server.stdout.readline())[0]
        with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            other = Path(folder) / "holiday.jpg"
            Image.effect_mandelbrot((640, 480), (-2, -1.2, 0.8, 1.2), 60).convert("RGB").save(other)
            shell(chromium.new_page(viewport={"width": 904, "height": 400}), Path(folder))
            wide(Film(chromium.new_page(viewport={"width": 1280, "height": 860}), address), other)
            phone = Film(chromium.new_page(viewport={"width": 390, "height": 844}), address)
            phone.shot("phone")
            chromium.close()
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
