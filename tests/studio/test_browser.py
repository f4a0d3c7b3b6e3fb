"""The studio in a real browser, by what can be seen: from the first glance to the file that a visitor takes home.

    make test-ui
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sage.commands import main as cli
from sage.pictures import read_settings
from sage.pictures.masks import mask_of_text

pytest.importorskip("fastapi", reason="the extra `ui` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
AXE = Path(os.environ.get("SAGE_AXE", ROOT / ".venv/axe/node_modules/axe-core/axe.min.js"))
SOURCE = "a photograph of a big shiny blue mug in the centre, with a tiny green cone next to it, on stone tiles"
TARGET = SOURCE.replace("blue", "yellow")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
PATIENCE = 300_000  # milliseconds: the machine may be busy
SHOTS = os.environ.get("SAGE_SCREENSHOTS")  # a folder to leave pictures of the page in
SEEN = """([selector, whole]) => { const e = document.querySelector(selector), b = e?.getBoundingClientRect();
  if (!b || !b.width || !b.height || getComputedStyle(e).visibility !== 'visible') return false;
  return b.left >= -1 && b.right <= innerWidth + 1 && (!whole || (b.top >= -1 && b.bottom <= innerHeight + 1)); }"""


def start(*arguments: str, models: Sequence[str] = ("--model", "stilllife"),
          command: str = "ui") -> tuple[subprocess.Popen, str]:
    server = subprocess.Popen([sys.executable, "-m", "sage", command, *models, "--max-steps", "60", *arguments],
                              cwd=ROOT, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    assert (found := re.search(r"http://127\.0\.0\.1:\d+/", line)), line
    return server, found[0]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A studio of its own, started as a user starts it."""
    server, address = start("--port", "0")
    try:
        yield address
    finally:
        server.terminate()
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, address) -> Iterator:
    """Open the page in a window of its own, of any size."""
    opened = []

    def visit(width: int = 1280, height: int = 900, address: str = address, **more) -> "Visitor":
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **more)
        opened.append(context)
        return Visitor(context.new_page(), address)

    yield visit
    for context in opened:
        context.close()


class Visitor:
    """What a person does on the page, and sees of it."""

    def __init__(self, page, address: str):
        self.page, self.hosts, self.errors = page, set(), []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: self.hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector("body[data-ready]")

    def welcomed(self) -> None:
        self.page.wait_for_selector("#caption dd")
        self.page.wait_for_function("() => document.querySelector('#source').value !== ''")

    def sees(self, selector: str, whole: bool = True) -> bool:
        """Whether it is within the view: all of it, or with `whole` False at least not beside it."""
        return self.page.evaluate(SEEN, [selector, whole])

    def bring_the_mug(self) -> None:
        """Drop the example's picture, and wait until it is described."""
        self.welcomed()
        self.drop(MUG)
        self.page.wait_for_selector("#status:has-text('taken to show')")

    def drop(self, path: Path) -> None:
        self.page.set_input_files("#file", str(path))

    def describe(self, source: str, target: str) -> None:
        self.page.fill("#source", source)
        self.page.fill("#target", target)

    def steps(self, number: int) -> None:
        if not self.page.locator("#advanced[open]").count():
            self.page.click("#advanced > summary")
        self.page.fill("#set-steps", str(number))

    def edit(self) -> str:
        """Press Edit, wait for the end, and read what is said."""
        self.page.click("#edit")
        return self.ended()

    def ended(self) -> str:
        self.page.wait_for_selector("#status:not([hidden])")
        self.page.wait_for_selector("#edit:not([disabled])")
        return self.page.inner_text("#status")

    def download(self, path: Path) -> Path:
        with self.page.expect_download() as got:
            self.page.click("#download")
        got.value.save_as(path)
        return path

    def translated(self, said: str) -> str:
        """What the page makes of something that the engine says."""
        return self.page.evaluate("async said => (await import('./page/base.js')).translated(said)", said)

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=f"{SHOTS}/{name}.png")

    def faults(self) -> list[str]:
        """What axe-core finds wrong by WCAG 2.2, levels A and AA."""
        if not AXE.exists():
            leave = pytest.fail if "SAGE_AXE" in os.environ else pytest.skip
            leave(f"no axe-core at {AXE}: make test-ui installs it")
        self.page.evaluate(AXE.read_text())
        levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
        found = self.page.evaluate("levels => axe.run({runOnly: levels})", levels)
        return [f"{v['id']}: {n['html'][:90]}" for v in found["violations"] for n in v["nodes"]]


WIDTHS = pytest.mark.parametrize("width, height", [(390, 844), (1280, 900), (1600, 900)])


def one_behind_the_other(first: Visitor, second: Visitor) -> None:
    """An edit of the first visitor is at work, long enough to see the second one wait for it."""
    for me in (first, second):
        me.describe(SOURCE, TARGET)
        me.steps(60)
    first.page.click("#edit")
    first.page.wait_for_selector("#progress-words:has-text('step')")
    second.page.click("#edit")
    second.page.wait_for_selector("#progress-words:has-text('you are next')")


def repeated(png: Path, picture: Path, out: Path) -> bool:
    """Whether `sage edit` makes the very same file from the settings inside."""
    assert cli.main(["edit", str(picture), "--config-from", str(png), "--out", str(out), "--quiet"]) == 0
    return out.read_bytes() == png.read_bytes()


@pytest.mark.parametrize("width, height", [(1280, 900), (1600, 900), (390, 844)])
def test_the_first_glance(visitor, width, height):
    me = visitor(width, height)
    me.welcomed()
    assert me.page.evaluate("document.documentElement.scrollWidth") <= width
    assert me.sees("#compare") and me.page.evaluate("document.querySelector('.compare .after').naturalWidth") > 0
    caption = me.page.inner_text("#caption")
    assert me.page.input_value("#target") in caption and me.page.input_value("#source") in caption
    begins = float(me.page.input_value(".compare input"))
    assert me.page.evaluate("document.querySelector('#compare').style.getPropertyValue('--at')") == f"{begins:g}%"
    for name in ("#caption", "#edit", "#examples li:nth-child(6)", "#examples"):
        if width > 860:
            assert me.sees(name), name
    me.page.locator("#examples button").first.scroll_into_view_if_needed()
    assert me.sees("#examples li:first-child")
    for name in ("#source", "#target", "#method", "#edit", "#words-part", "#download"):
        assert me.sees(name, whole=False), name
    me.page.evaluate("scrollTo(0, 0)")
    me.shot(f"first-{width}")
    assert me.errors == [] and len(me.hosts) == 1  # nothing was asked of any other server


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visitor, scheme):
    me = visitor(color_scheme=scheme)
    me.welcomed()
    me.page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    me.page.wait_for_selector("#words .prompt")
    assert me.faults() == []
    me.page.click("#command")
    assert me.faults() == []
    me.page.click("#copy-dialog .close")
    me.page.click("#tab-generate")
    assert me.faults() == []
    me.shot(f"open-{scheme}")


@pytest.mark.parametrize("width, height, scheme", [(1280, 900, "light"), (390, 844, "dark")])
def test_axe_finds_nothing_whatever_the_page_is_at(visitor, tmp_path, width, height, scheme):
    server, address = start("--port", "0", "--gallery", str(tmp_path / "gallery"))
    try:
        me = visitor(width, height, address=address, color_scheme=scheme)
        found: dict[str, list[str]] = {}

        def look(state: str) -> None:
            found[state] = me.faults()
            me.shot(f"axe-{state.replace(' ', '-')}-{width}")

        me.bring_the_mug()
        look("described")
        me.page.click("#brush")
        me.page.wait_for_selector("#brush-dialog[open]")
        look("the brush")
        me.page.click("#brush-dialog .close")
        me.describe(SOURCE, "make it red")
        me.page.wait_for_selector("#words .meant")
        look("an instruction")
        other = visitor(address=address)
        other.bring_the_mug()
        one_behind_the_other(other, me)
        look("waiting")
        other.page.click("#cancel")
        me.page.wait_for_selector("#compare.working")
        look("working")
        me.page.click("#cancel")
        me.page.wait_for_selector("#status:has-text('Cancelled')")
        look("cancelled")
        me.page.fill("#source", "")
        me.edit()
        assert me.page.locator("#status.error").count() == 1
        look("an error")
        me.describe("a mug, stone tiles", "a yelow mug, stone tiles")
        me.steps(2)
        me.edit()
        assert me.page.locator("#status.note li").count() >= 1
        look("a note")
        me.page.click("#variants-part > summary")
        me.page.click("#vary")
        me.page.wait_for_selector("#grid .variants button:nth-child(4)")
        me.page.wait_for_selector("#gallery li:nth-child(5)")
        look("variants, history and gallery")
        me.page.click("#look")
        me.page.wait_for_selector("#inside-dialog[open]")
        me.page.frame_locator("#inside").locator("#step").wait_for()
        look("inside, in its dialog")
        me.page.goto(me.page.locator("#inside").evaluate("frame => frame.src"))
        me.page.wait_for_selector("#step")
        look("inside")
        assert {state: faults for state, faults in found.items() if faults} == {}
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.parametrize("width, height, scheme", [(1280, 900, "light"), (390, 844, "dark")])
def test_the_page_of_the_api(visitor, browser, width, height, scheme):
    server, address = start("--port", "0", command="serve")
    try:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        me = Visitor.__new__(Visitor)
        me.page, errors = page, []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#now dd:has-text('stilllife')")
        for part in ("POST /api/edit", "GET /api/jobs/{key}", "DELETE /api/jobs/{key}"):
            assert part in page.inner_text("#paths")
        assert address in page.inner_text("#sketch") and me.sees("#now")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        me.shot(f"api-{width}")
        assert me.faults() == [] and errors == []
        page.close()
    finally:
        server.terminate()
        server.wait(60)


def test_from_a_dropped_picture_to_a_file_that_repeats_the_edit(visitor, tmp_path):
    me = visitor()
    me.bring_the_mug()
    me.describe(SOURCE, TARGET)
    me.page.wait_for_selector("#words .prompt span.differs:has-text('blue')")
    me.page.select_option("#method", "sage")  # whose words can be weighed
    me.page.wait_for_selector("#words .weight input")
    me.page.focus("#target")
    me.page.keyboard.press("Control+Enter")
    me.page.wait_for_selector("#progress-words:has-text('step')")
    assert re.search(r"(Inverting|Editing), step \d+ of 20", me.page.inner_text("#progress-words"))
    me.page.wait_for_selector("#compare.working")  # the picture emerges
    assert me.sees("#progress") and me.sees("#cancel")
    me.shot("emerging")
    assert me.ended().startswith("Done in")
    first = me.download(tmp_path / "mug-edit.png")
    assert read_settings(first)["picture"]["name"] == "mug.png" and repeated(first, MUG, tmp_path / "again.png")

    # The slider goes by the keys; a weighted word reuses the inversion.
    me.page.focus(".compare input")
    before = int(me.page.input_value(".compare input"))
    me.page.keyboard.press("ArrowRight")
    assert int(me.page.input_value(".compare input")) == before + 1
    assert me.page.evaluate("getComputedStyle(document.querySelector('.compare')).outlineStyle") != "none"
    me.page.focus("#words .weight input")
    for _ in range(5):
        me.page.keyboard.press("ArrowRight")
    me.page.wait_for_function("() => document.querySelector('#set-reweight')?.value === 'yellow:1.5'")
    assert "the inversion was at hand" in me.edit()
    second = me.download(tmp_path / "second.png")
    assert read_settings(second)["settings"]["reweight"] == {"yellow": 1.5}

    # A word that is gone does not block, and says so; Undo and a reload bring things back.
    me.page.fill("#target", SOURCE.replace("blue", "red"))
    assert "'yellow' was left out" in me.edit()
    me.page.click("#undo")
    me.page.wait_for_selector("#status:has-text('Undone')")
    assert me.page.input_value("#target") != TARGET and "yellow" in me.page.inner_text("#caption")
    told = me.page.inner_text("#caption")
    me.page.reload()
    me.ready()
    assert me.page.inner_text("#caption") == told and "mug.png" in me.page.inner_text("#picture-name")
    assert me.page.locator("#history li").count() == 4

    # An earlier one by its thumbnail, and one that comes back from the disk.
    me.page.locator("#history button").nth(2).click()
    me.page.wait_for_selector("#status:has-text('restored')")
    assert me.page.input_value("#target") == TARGET
    assert me.download(tmp_path / "first.png").read_bytes() == first.read_bytes()
    me.drop(second)
    me.page.wait_for_selector("#status:has-text('of mug.png are restored')")
    assert me.page.inner_text("#caption") == ""  # no other picture's prompts stand beside these
    assert me.errors == []


# Of every frame that is painted: whether a picture is seen, and which.
WATCHED = """() => { const seen = window.frames_seen = []; const look = () => {
  const e = document.querySelector('.compare .after');
  const whole = e.complete && e.naturalWidth > 0 && e.getBoundingClientRect().width > 0 && !e.closest('.working');
  const last = seen.at(-1);
  if (!last || last.src !== e.src || last.whole !== whole) seen.push({src: e.src, whole, at: performance.now()});
  requestAnimationFrame(look); }; look(); }"""


# Puts one text into a box, and another when the edit of the first has only just begun.
OVERTAKEN = """async ([first, second]) => { const box = document.querySelector('#target');
  const asked = () => performance.getEntriesByType('resource').filter(e => e.name.endsWith('api/edit')).length;
  const put = text => { box.value = text; box.dispatchEvent(new Event('input', {bubbles: true})); }, before = asked();
  const wait = time => new Promise(done => setTimeout(done, time));
  put(first); while (asked() === before) await wait(5); await wait(40); put(second); }"""


def test_a_stranger_types_over_a_word_and_watches(visitor):
    """With nothing chosen: the studio opens on the model that follows, with the methods that it is for."""
    server, address = start("--port", "0", models=())
    try:
        me = visitor(address=address)
        me.welcomed()
        assert me.page.is_checked("#live")
        offered = me.page.eval_on_selector_all("#method option", "all => all.map(one => one.value)")
        assert offered == ["plain", "sdedit", "turbo", "turbo-ddpm"] and not me.sees("#move")
        assert "follows" in me.page.inner_text("#model option:checked")
        before = me.page.locator("#compare").screenshot()
        me.page.evaluate("""() => { const box = document.querySelector('#target'), at = box.value.indexOf('yellow');
            box.focus(); box.setSelectionRange(at, at + 6); }""")
        sent = []
        me.page.on("request", lambda request: sent.append(request.url.rpartition("/")[2]))
        me.page.on("requestfinished", lambda request: sent.append("got " + request.url.rpartition("/")[2]))
        me.page.keyboard.type("green", delay=60)
        me.page.wait_for_function("() => document.querySelector('#caption').textContent.includes('tilted green')")
        me.page.wait_for_function("() => document.querySelector('#progress').hidden")
        assert me.page.locator("#compare").screenshot() != before
        assert sent[0] == "edit"  # before which nothing is asked: a description that is typed over is no instruction
        me.shot("stranger")

        sent.clear()
        typed = me.page.input_value("#target")
        me.page.evaluate(OVERTAKEN, [typed.replace("green", word) for word in ("orange", "purple")])
        me.page.wait_for_function("() => document.querySelector('#caption').textContent.includes('tilted purple')")
        first = next(i for i, what in enumerate(sent) if what.startswith("got") and "?wait" in what)
        assert sent[:first].count("edit") == 2 and sent.count("after.png") == 1  # one only just begun gives way

        me.page.select_option("#model", "stilllife")
        me.page.wait_for_selector("#status:has-text('is loaded')")
        assert me.sees("#move") and "sage" in me.page.eval_on_selector_all("#method option", "a => a.map(o => o.value)")
        assert me.errors == []
    finally:
        server.terminate()
        server.wait(60)


def made_by(folder: Path, model: str, method: str) -> Path:
    """The file of a small edit of the mug by a model."""
    out = folder / f"by-{model}.png"
    assert cli.main(["edit", str(MUG), "--source", SOURCE, "--target", TARGET, "--model", model, "--method", method,
                     "--steps", "2", "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def two_models() -> Iterator[str]:
    """A studio of both bundled models, begun with the one that follows what is typed."""
    server, address = start("--port", "0", models=())
    try:
        yield address
    finally:
        server.terminate()
        server.wait(60)


def chosen(me: Visitor, model: str) -> None:
    me.page.select_option("#model", model)
    me.page.wait_for_selector(f"#status:has-text('{model} is loaded')")


def test_what_another_model_made_brings_its_model(visitor, two_models, tmp_path):
    """Before anybody chose it too; nobody's page is broken by what others choose."""
    me = visitor(address=two_models)
    me.welcomed()
    me.drop(made_by(tmp_path, "stilllife", "sage"))  # which nobody has loaded
    me.page.wait_for_selector("#status:has-text('made with stilllife, which is the model now.')")
    assert (me.page.input_value("#model"), me.page.input_value("#method")) == ("stilllife", "sage")
    assert me.page.locator("#set-steps").input_value() == "2" and me.page.input_value("#target") == TARGET
    me.shot("brings-its-model")
    me.page.click("#undo")
    me.page.wait_for_selector("#status:has-text('The model is stilllife-turbo again')")
    assert (me.page.input_value("#model"), me.page.input_value("#method")) == ("stilllife-turbo", "turbo")
    chosen(me, "stilllife")

    other = visitor(390, 844, address=two_models)
    other.welcomed()
    other.page.wait_for_selector("#status.note:has-text('made with stilllife-turbo, which is the model now')")
    assert other.page.locator(".error:visible").count() == 0 and other.sees("#compare")
    assert (other.page.input_value("#model"), other.page.input_value("#method")) == ("stilllife-turbo", "turbo")
    other.shot("another-model-390")
    other.page.fill("#target", other.page.input_value("#target").replace("yellow", "green"))
    other.page.wait_for_function("() => document.querySelector('#caption').textContent.includes('tilted green')")
    assert "turbo, stilllife-turbo" in other.page.inner_text("#caption")

    # The first one's page is open, and goes on by its own model, as do settings that are changed and a reload.
    me.page.select_option("#method", "sage")
    me.steps(2)
    assert me.edit().startswith("Done in") and "sage, stilllife" in me.page.inner_text("#caption")
    other.page.reload()
    other.ready()
    assert (other.page.input_value("#model"), other.page.input_value("#method")) == ("stilllife-turbo", "turbo")
    other.page.select_option("#method", "turbo-ddpm")
    other.page.wait_for_function("() => document.querySelector('#set-steps')?.value === '4'")
    me.page.locator("#history button").last.click()
    me.page.wait_for_selector("#status.note:has-text('the next edit loads it first')")
    assert me.page.input_value("#method") == "turbo" and me.page.locator(".error:visible").count() == 0
    assert me.edit().startswith("Done in") and "turbo, stilllife-turbo" in me.page.inner_text("#caption")
    assert me.errors == other.errors == []


def test_what_a_model_made_that_is_not_here_gets_the_usual_method(visitor, tmp_path):
    me = visitor()
    me.welcomed()
    usual = me.page.input_value("#method")
    me.drop(made_by(tmp_path, "stilllife-turbo", "turbo"))
    me.page.wait_for_selector("#status.note:has-text('stilllife-turbo, which this studio does not have')")
    assert "turbo, by which it was made, cannot be used with stilllife: its usual one" in me.page.inner_text("#status")
    assert me.page.input_value("#method") == usual and me.page.input_value("#target") == TARGET
    me.shot("model-not-here")
    me.steps(2)
    assert me.edit().startswith("Done in") and me.errors == []


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_the_picture_follows_what_is_typed(visitor, width, height, tmp_path):
    me = visitor(width, height)
    me.bring_the_mug()
    me.page.select_option("#method", "sdedit")
    me.steps(4)
    assert not me.page.is_checked("#live")
    me.page.fill("#source", "a blue mug")
    me.page.fill("#target", "a blue mug")
    me.page.wait_for_timeout(600)
    results = me.page.locator("#history li").count()
    assert me.page.locator("#progress").is_hidden()  # nothing is edited unless it is asked for
    me.page.check("#live")
    me.page.wait_for_selector("#status:has-text('Done in')")
    me.page.locator("#compare").scroll_into_view_if_needed()
    plain = me.page.locator("#compare").screenshot()
    me.page.evaluate(WATCHED)

    me.page.focus("#target")
    me.page.keyboard.press("End")
    for key in ["Backspace"] * 3 + list("ball on stone tiles"):
        me.page.keyboard.press(key)
        me.page.wait_for_timeout(60)
    typed = me.page.input_value("#target")
    assert typed == "a blue ball on stone tiles"
    last = me.page.evaluate("performance.now()")
    me.page.wait_for_function("typed => document.querySelector('#caption').textContent.includes(typed)", arg=typed)
    took = me.page.evaluate("performance.now()") - last
    me.page.wait_for_function("() => document.querySelector('#progress').hidden")
    frames = me.page.evaluate("frames_seen")
    assert all(frame["whole"] for frame in frames)  # what is seen stays until the next is there
    assert len(frames) >= 2
    assert me.page.evaluate("document.activeElement.id") == "target" and me.sees("#target")
    assert me.sees("#compare")
    assert me.page.locator("#compare").screenshot() != plain
    me.shot(f"live-{width}")
    print(f"from the last key to its picture: {took:.0f} ms, {len(frames)} pictures on the way")

    # The slider too; all this is one result, and Edit keeps it.
    me.page.wait_for_function("n => document.querySelectorAll('#history li').length === n", arg=results + 1)
    before = frames[-1]["src"]
    me.page.focus("#set-slider-strength")
    for _ in range(10):
        me.page.keyboard.press("ArrowLeft")
    me.page.wait_for_function("""before => { const e = document.querySelector('.compare .after');
        return e.src !== before && document.querySelector('#progress').hidden; }""", arg=before)
    me.page.wait_for_timeout(500)
    assert me.page.locator("#history li").count() == results + 1
    assert me.edit().startswith("Done in")
    assert me.page.locator("#history li").count() == results + 1
    kept = me.download(tmp_path / "live.png")
    assert read_settings(kept)["target"] == typed and repeated(kept, MUG, tmp_path / "again.png")
    me.page.click("#undo")
    me.page.wait_for_selector("#status:has-text('Undone')")
    assert me.errors == []


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_a_known_word_takes_the_place_of_a_marked_one(visitor, width, height):
    me = visitor(width, height)
    me.welcomed()
    me.describe("a blue mug", "a blue mug on wood")
    me.page.evaluate("() => { const t = document.querySelector('#target'); t.focus(); t.setSelectionRange(2, 6); }")
    me.page.click("#known-part > summary")
    me.page.click("#known button:text-is('red')")
    assert me.page.input_value("#target") == "a red mug on wood" and me.sees("#known button:nth-child(1)", whole=False)
    me.page.click("#known button:text-is('green')")
    assert me.page.input_value("#target") == "a green mug on wood"
    me.page.evaluate("document.querySelector('#target').setSelectionRange(99, 99)")
    me.page.click("#known button:text-is('stone')")
    assert me.page.input_value("#target") == "a green mug on wood stone"
    me.page.wait_for_selector("#words .prompt span.differs:has-text('green')")
    me.shot(f"known-{width}")
    assert me.errors == []


@WIDTHS
def test_two_visitors_wait_see_it_and_can_cancel(visitor, tmp_path, width, height):
    first, second = visitor(), visitor(width, height)
    for me in (first, second):
        me.bring_the_mug()
    one_behind_the_other(first, second)
    second.page.locator("#progress").scroll_into_view_if_needed()
    assert second.sees("#progress") and second.sees("#cancel")
    second.shot(f"waiting-{width}")
    second.page.click("#cancel")
    second.page.wait_for_selector("#status:has-text('Cancelled')")
    assert second.sees("#status") and second.page.locator("#edit").is_enabled() and not second.sees("#progress")
    second.shot(f"cancelled-{width}")
    assert first.page.locator("#edit").is_disabled()
    first.page.click("#cancel")
    first.page.wait_for_selector("#status:has-text('Cancelled')")
    for me in (first, second):  # each gets their own
        me.steps(2)
        me.page.fill("#target", TARGET if me is first else SOURCE.replace("blue", "red"))
        me.page.click("#edit")
    for me in (first, second):
        assert me.ended().startswith("Done")
        target = me.page.input_value("#target")
        assert read_settings(me.download(tmp_path / "mine.png"))["target"] == target
        assert target in me.page.inner_text("#caption")


@WIDTHS
def test_stale_words_block_nothing_and_a_reload_keeps_what_is_there(visitor, width, height):
    me = visitor(width, height)
    me.bring_the_mug()
    me.describe(SOURCE, TARGET)
    me.page.select_option("#method", "sage")
    me.page.wait_for_selector("#words .weight input")
    me.steps(2)
    me.page.click("#rest-part > summary")
    me.page.fill("#set-reweight", "yellow:1.5")
    me.page.fill("#target", SOURCE.replace("blue", "red"))
    assert "'yellow' was left out" in me.edit() and me.sees("#compare")
    me.page.locator("#status").scroll_into_view_if_needed()
    assert me.sees("#status")
    me.shot(f"stale-{width}")
    told, held = me.page.inner_text("#caption"), me.page.input_value("#target")
    me.page.reload()
    me.ready()
    assert me.page.inner_text("#caption") == told and me.page.input_value("#target") == held
    assert "mug.png" in me.page.inner_text("#picture-name") and me.page.input_value("#set-steps") == "2"
    assert me.sees("#compare") and me.page.evaluate("document.querySelector('.compare .after').naturalWidth") > 0
    me.shot(f"reloaded-{width}")
    assert me.errors == []


@WIDTHS
def test_a_second_example_while_one_runs_is_edited_too(visitor, width, height):
    me = visitor(width, height)
    me.welcomed()
    me.page.locator("#examples button").nth(2).click()
    me.page.wait_for_selector("#progress-words:has-text('step')")
    me.page.locator("#examples button").nth(1).click()
    me.page.wait_for_selector("#status:has-text('Done')")
    target = me.page.input_value("#target")
    assert "mug" in target and target in me.page.inner_text("#caption")
    assert me.sees("#compare", whole=width > 390)
    me.shot(f"second-example-{width}")
    me.page.click("#look")
    me.page.wait_for_selector("#inside-dialog[open]")
    inside = me.page.frame_locator("#inside")
    inside.locator("#step").wait_for()
    assert me.sees("#inside-dialog") and inside.get_by_text("inversion and back").first.is_visible()
    me.shot(f"inside-{width}")
    assert me.errors == []


def test_a_picture_of_ones_own_is_not_described_by_another(visitor, tmp_path):
    """What stands in the prompts goes with the picture that it is of, unless the visitor wrote it."""
    me = visitor(390, 844)
    me.welcomed()
    me.page.fill("#target", me.page.input_value("#target").replace("yellow", "green"))
    me.bring_the_mug()
    assert "blue" in me.page.input_value("#source") and me.page.input_value("#target") == ""
    me.page.fill("#target", "a thing of my own")
    photo = tmp_path / "photo.png"
    Image.effect_noise((300, 200), 90).convert("RGB").save(photo)
    me.drop(photo)
    me.page.wait_for_selector("#status:has-text('mush')")
    assert me.sees("#status", whole=False) and me.page.input_value("#target") == "a thing of my own"
    me.page.click("#undo")
    me.page.wait_for_selector("#picture-name:has-text('mug.png')")
    me.shot("own-390")
    assert me.errors == []


def test_an_instruction_is_taken_for_what_it_asks(visitor):
    me = visitor()
    me.bring_the_mug()
    me.describe(SOURCE, "make it red")
    me.page.wait_for_selector("#words .meant:has-text('shiny red mug')")
    me.steps(2)
    assert "Your instruction was taken as" in me.edit()
    assert me.page.input_value("#target") == SOURCE.replace("blue", "red")
    assert SOURCE.replace("blue", "red") in me.page.inner_text("#caption")
    me.page.fill("#target", "make the dog sing")
    me.page.wait_for_selector("#words .meant:has-text('not understood')")
    assert "not understood" in me.edit() and me.page.input_value("#target") == "make the dog sing"
    me.page.fill("#target", "make it green")
    me.page.click("#words .meant button")
    me.page.wait_for_function("target => document.querySelector('#target').value === target",
                              arg=SOURCE.replace("blue", "green"))
    assert me.errors == []


def dragged(me: Visitor, canvas: str, *places: tuple[float, float]) -> None:
    """Press at the first of some places, shares of a canvas, and let go at the last."""
    box = me.page.locator(canvas).bounding_box()
    for i, (x, y) in enumerate(places):
        me.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if i == 0:
            me.page.mouse.down()
    me.page.mouse.up()


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_a_part_is_moved(visitor, tmp_path, width, height):
    me = visitor(width, height)
    me.bring_the_mug()
    me.page.click("#move")
    assert me.sees("#boxes-dialog") and me.page.locator("#boxes-done").is_disabled()
    assert not AXE.exists() or me.faults() == []
    before = me.page.locator("#boxes").bounding_box()
    dragged(me, "#boxes", (0.74, 0.62), (0.8, 0.8), (0.98, 0.96))
    assert me.page.locator("#boxes").bounding_box() == before  # not pulled away from under the pointer
    dragged(me, "#boxes", (0.15, 0.79))
    me.shot(f"move-{width}")
    me.page.click("#boxes-done")
    me.page.wait_for_selector("#status:has-text('Press Edit')")
    assert me.page.input_value("#method") == "regiondrag"
    assert me.page.inner_text("#picture-name") == "A part of it is moved."
    assert me.edit().startswith("Done in") and "nothing is asked" not in me.page.inner_text("#status")
    me.shot(f"moved-{width}")
    result = me.download(tmp_path / "moved.png")
    now, before = (Image.open(path).convert("RGB").getpixel((14, 112)) for path in (result, MUG))
    assert now[1] - now[0] > 60 > before[1] - before[0]  # the green cone is on the left now
    assert repeated(result, MUG, tmp_path / "again.png")
    me.page.reload()
    me.ready()
    assert me.page.inner_text("#picture-name") == "A part of it is moved."
    assert me.page.inner_text("#move") == "Move another part"
    me.page.click("#move")
    dragged(me, "#boxes", (0.78, 0.1), (0.95, 0.25))  # a piece of wall
    dragged(me, "#boxes", (0.12, 0.12))
    me.shot(f"move-another-{width}")
    me.page.click("#boxes-done")
    me.page.wait_for_selector("#status:has-text('Press Edit')")
    assert me.page.inner_text("#picture-name") == "2 parts of it are moved."
    assert me.edit().startswith("Done in")
    both = me.download(tmp_path / "both.png")
    first, second = read_settings(both)["moves"]
    assert [first] == read_settings(result)["moves"] and second != first
    assert repeated(both, MUG, tmp_path / "both-again.png")
    me.page.click("#unmask")
    assert me.page.inner_text("#picture-name") == "mug.png, 128 × 128"
    me.page.click("#move")  # with the keys alone
    for key in (" ", "ArrowLeft", "Shift+ArrowDown", " ", "ArrowRight"):
        me.page.keyboard.press(key)
    me.page.click("#boxes-done")
    assert me.page.inner_text("#picture-name") == "A part of it is moved." and me.errors == []


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_a_point_is_dragged(visitor, tmp_path, width, height):
    """A click is a point, as `sage drag --from x,y --to x,y` has it: the disc around it is moved."""
    me = visitor(width, height)
    me.bring_the_mug()
    me.page.click("#move")
    dragged(me, "#boxes", (0.88, 0.84))
    assert me.page.locator("#boxes-done").is_disabled() and "where it shall be" in me.page.inner_text("#boxes-hint")
    dragged(me, "#boxes", (0.12, 0.8), (0.14, 0.82))
    me.page.keyboard.press("ArrowRight")
    me.shot(f"point-{width}")
    me.page.click("#boxes-done")
    me.page.wait_for_selector("#status:has-text('Press Edit')")
    me.steps(8)
    assert me.edit().startswith("Done in")
    me.shot(f"pointed-{width}")
    result = me.download(tmp_path / "moved.png")
    [pair] = read_settings(result)["moves"]
    (left, top, right, bottom), there = (mask_of_text(text).getbbox() for text in pair)
    assert abs((left + right) / 2 - 0.88 * 128) < 2 and abs((top + bottom) / 2 - 0.84 * 128) < 2
    assert 24 <= right - left <= 27 and abs((there[0] + there[2]) / 2 - 0.16 * 128) < 2
    now, before = (Image.open(path).convert("RGB").getpixel((20, 108)) for path in (result, MUG))
    assert now[1] - now[0] > 40 > before[1] - before[0]  # the green cone is on the left now
    assert repeated(result, MUG, tmp_path / "again.png")
    me.page.click("#move")  # what was moved is shown beside what is to be moved next
    dragged(me, "#boxes", (0.5, 0.5), (0.5, 0.5))
    me.page.click("#boxes-again")
    assert me.page.locator("#boxes-done").is_disabled() and me.errors == []


def test_something_of_another_picture_is_put_in(visitor, tmp_path):
    me = visitor()
    me.bring_the_mug()
    other = tmp_path / "other.png"
    Image.new("RGB", (90, 60), "yellow").save(other)
    me.page.set_input_files("#put-file", str(other))
    me.page.wait_for_selector("#brush-dialog[open]")
    dragged(me, "#canvas", (0.4, 0.5), (0.6, 0.5))
    me.page.click("#brush-done")
    me.page.wait_for_selector("#boxes-dialog[open]")
    dragged(me, "#boxes", (0.05, 0.05), (0.2, 0.2), (0.4, 0.3))
    me.page.click("#boxes-done")
    me.page.wait_for_selector("#status:has-text('The paste is the picture now')")
    assert me.page.locator("#paste").is_checked() and me.sees("#download")
    paste = me.download(tmp_path / "mug-composed.png")
    assert Image.open(paste).getpixel((28, 22))[:3] == (255, 255, 0)
    me.page.fill("#target", me.page.input_value("#source") + " and a yellow ball")
    me.steps(4)
    assert me.edit().startswith("Done in")
    result = me.download(tmp_path / "result.png")
    assert Image.open(result).getpixel((100, 60)) == Image.open(MUG).convert("RGB").getpixel((100, 60))
    assert repeated(result, MUG, tmp_path / "again.png")  # other.png lies beside the result
    me.shot("composed")
    assert me.errors == []


@WIDTHS
def test_what_a_camera_makes_is_taken(visitor, tmp_path, width, height):
    """A HEIC file where the extra is there, else a line that names it; a file that is too large is told at once."""
    me = visitor(width, height)
    me.welcomed()
    photo = tmp_path / "IMG_1.HEIC"
    try:
        import pillow_heif
    except ImportError:
        photo.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
        me.drop(photo)
        me.page.wait_for_selector("#status.error:has-text('heif')")
    else:
        pillow_heif.from_pillow(Image.open(MUG).convert("RGB").resize((640, 480))).save(photo)
        me.drop(photo)
        me.page.wait_for_selector("#picture-name:has-text('IMG_1.HEIC, 640 × 480')")
        me.page.wait_for_selector("#status:has-text('say what it shows')")
        assert me.sees("#status")
    me.shot(f"heic-{width}")
    large = tmp_path / "large.tif"
    with large.open("wb") as file:
        file.truncate(64_000_001)
    me.drop(large)
    me.page.wait_for_selector("#status.error:has-text('large.tif is too large: at most 64 MB')")
    assert me.sees("#status")


def filmed(me: Visitor) -> Any:
    """A visitor's page as docs/make_film.py has it."""
    film = runpy.run_path(str(ROOT / "docs" / "make_film.py"))["Film"]
    found = film.__new__(film)
    found.page = me.page
    return found


@WIDTHS
def test_mistakes_are_one_line_that_is_seen(visitor, tmp_path, width, height):
    me = visitor(width, height)
    me.welcomed()
    bad = tmp_path / "bad.png"
    bad.write_bytes(MUG.read_bytes()[:700])
    me.drop(bad)
    me.page.wait_for_selector("#status.error:has-text('bad.png')")
    assert me.sees("#status") and str(tmp_path) not in me.page.inner_text("#status")
    with pytest.raises(RuntimeError, match="phone: the page shows an error: .*bad.png"):
        filmed(me).shot(str(tmp_path / "phone"))  # of which no picture is taken
    large = tmp_path / "photo.jpg"
    Image.new("RGB", (8000, 6000), "teal").save(large)
    me.drop(large)
    me.page.wait_for_selector("#status:has-text('scaled down')")
    assert me.sees("#status") and me.sees("#compare", whole=False)
    me.shot(f"large-{width}")
    me.page.fill("#source", "")
    assert "source prompt is empty" in me.edit() and me.sees("#status")
    evil = "a cat <img src=x onerror=document.title='owned'>"
    me.describe(evil, evil + " dog")
    me.page.wait_for_selector("#words .prompt")
    assert me.page.title() == "SAGE studio" and me.page.locator("#words img").count() == 0


def test_methods_sliders_presets_and_variants(visitor):
    me = visitor()
    me.welcomed()
    me.page.click("#advanced > summary")
    me.page.click("[data-preset=bold]")
    bold = float(me.page.input_value("#set-guidance_scale"))
    assert bold > 1.25 and me.page.get_attribute("[data-preset=bold]", "aria-pressed") == "true"
    me.page.focus("#set-slider-strength")
    me.page.keyboard.press("ArrowLeft")
    assert float(me.page.input_value("#set-guidance_scale")) < bold
    me.page.fill("#set-steps", "2")
    me.page.select_option("#method", "flowedit")
    me.page.wait_for_selector("#set-averages", state="attached")
    assert me.page.locator("#brush").is_visible() and me.page.locator("#set-slider-keep").count() == 1
    me.page.fill("#set-steps", "3")
    me.page.click("#brush")
    canvas = me.page.locator("#canvas").bounding_box()
    me.page.mouse.move(canvas["x"] + 60, canvas["y"] + 60)
    me.page.mouse.down()
    me.page.mouse.move(canvas["x"] + 200, canvas["y"] + 200)
    me.page.mouse.up()
    me.page.focus("#canvas")
    me.page.keyboard.press("Space")
    me.shot("brush")
    assert me.sees("#brush-dialog") and (not AXE.exists() or me.faults() == [])
    me.page.click("#brush-done")
    me.page.wait_for_selector("#picture-name:has-text('marked part')")
    me.page.click("#variants-part > summary")
    me.page.select_option("#axis", "seed")
    me.page.click("#vary")
    me.page.wait_for_selector("#progress-words:has-text('2 of 4: ')")
    me.page.wait_for_selector("#grid .variants button:nth-child(4)")
    assert me.page.inner_text("#grid h2") == "Variants by seed"
    assert me.page.locator("#grid button").all_inner_texts() == [f"Seed {seed}" for seed in range(4)]
    assert "inversion" not in me.page.inner_text("#status")  # which FlowEdit has none of
    me.page.locator("#grid button").nth(2).click()
    assert me.page.locator("#grid button").nth(2).get_attribute("aria-pressed") == "true"
    me.page.locator("#grid").scroll_into_view_if_needed()
    me.shot("variants")
    me.page.select_option("#method", "turbo-ddpm")
    me.page.wait_for_function("() => document.querySelector('#set-steps')?.value === '2'")  # as it was left
    assert me.errors == []


# What has the focus, and whether that can be seen.
FOCUSED = """() => { const e = document.activeElement, around = [e, e.closest('.drop, .file, .compare')];
  const lined = s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
  const seen = around.some(a => a && lined(getComputedStyle(a)));
  return {name: e.id || e.closest('[id]')?.id, word: !!e.closest('#words .prompt'), seen}; }"""


def test_the_keys_alone_go_through_the_page(visitor):
    """Nothing is changed by passing through, the words of a prompt are one stop, and what has the focus is seen."""
    me = visitor()
    me.bring_the_mug()
    me.describe(SOURCE, TARGET)
    me.page.select_option("#method", "sage")
    me.page.wait_for_selector("#words .weight input")
    assert me.page.locator("#words .prompt button").count() > 15
    me.steps(7)
    me.page.click("#rest-part > summary")
    me.page.fill("#set-reweight", "yellow:1.5")
    values = """() => Object.fromEntries([...document.querySelectorAll('select, input, textarea')]
        .map(e => [e.id, e.value]))"""
    held = me.page.evaluate(values)

    me.page.focus("#model")
    stops = []
    while len(stops) < 120:
        me.page.keyboard.press("Tab")
        stops.append(me.page.evaluate(FOCUSED))
        if stops[-1]["name"] == "model" or me.page.evaluate("document.activeElement === document.body"):
            break
    names = [stop["name"] for stop in stops]
    for name in ("language", "tab-edit", "file", "source", "target", "method", "edit", "undo", "set-steps"):
        assert names.count(name) == 1, (name, names)
    assert names.index("source") < names.index("target") < names.index("edit") < names.index("set-steps")
    assert sum(stop["word"] for stop in stops) == 1
    assert [stop for stop in stops if not stop["seen"] and stop["name"]] == []
    assert me.page.evaluate(values) == held and "is loaded" not in me.page.inner_text("#status")

    me.page.focus("#words .prompt button")  # among the words the arrows go
    me.page.keyboard.press("ArrowRight")
    assert me.page.evaluate("document.activeElement.textContent") == "photograph"
    me.page.keyboard.press("Tab")
    assert not me.page.evaluate(FOCUSED)["word"]
    me.page.keyboard.press("Shift+Tab")
    assert me.page.evaluate("document.activeElement.textContent") == "photograph"
    me.page.focus("#target")
    me.shot("focus")
    assert me.errors == []


@pytest.mark.parametrize("width, height", [(1280, 900), (390, 844)])
def test_what_is_kept_on_disk_and_what_is_copied(visitor, tmp_path, monkeypatch, width, height):
    server, address = start("--port", "0", "--gallery", str(tmp_path / "gallery"))
    try:
        me = visitor(width, height, address=address, permissions=["clipboard-read", "clipboard-write"])
        me.bring_the_mug()
        me.describe(SOURCE, TARGET)
        me.page.select_option("#method", "sage")
        me.steps(2)
        assert me.edit().startswith("Done in")
        mine = me.download(tmp_path / "mine.png")
        me.page.wait_for_selector("#gallery img")
        assert me.page.locator("#gallery li").count() == 1  # the first example is nobody's
        assert (tmp_path / "gallery" / "mug-edit.png").read_bytes() == mine.read_bytes()

        copied = {}
        for way in ("command", "python"):
            me.page.click(f"#{way}")
            me.page.wait_for_selector("#copy-dialog[open]")
            assert me.sees("#copy-dialog") and (not AXE.exists() or me.faults() == [])
            copied[way] = me.page.input_value("#copy-text")
            me.shot(f"copy-{way}-{width}")
            me.page.click("#copy")
            assert me.page.inner_text("#copy") == "Copied."
            assert me.page.evaluate("navigator.clipboard.readText()") == copied[way]
            me.page.click("#copy-dialog .close")
        if width > 390:  # both do what they say
            again = tmp_path / "again"
            again.mkdir()
            shutil.copy(MUG, again)
            monkeypatch.chdir(again)
            assert shlex.split(copied["command"])[:3] == ["sage", "edit", "mug.png"]
            assert cli.main([*shlex.split(copied["command"])[1:], "--out", "said.png", "--quiet"]) == 0
            exec(copied["python"], {})
            for name in ("said.png", "result.png"):
                assert Image.open(name).tobytes() == Image.open(mine).tobytes(), name

        other = visitor(width, height, address=address)  # another day
        other.welcomed()
        other.page.locator("#gallery-part").scroll_into_view_if_needed()
        assert other.sees("#gallery-part") and other.sees("#gallery img", whole=False)
        assert other.page.evaluate("document.querySelector('#gallery img').naturalWidth") > 0
        other.shot(f"gallery-{width}")
        other.page.click("#gallery button")
        other.page.wait_for_selector("#status:has-text('of mug.png are restored')")
        assert other.page.input_value("#target") == TARGET and other.page.input_value("#set-steps") == "2"
        assert "gallery/mug-edit.png" in other.page.get_attribute(".compare .after", "src")
        caption = other.page.inner_text("#caption")  # of what is seen
        assert TARGET in caption and "sage, stilllife" in caption and "striped" not in caption
        assert other.page.locator("#history [aria-pressed=true]").count() == 0
        assert other.download(tmp_path / "theirs.png").read_bytes() == mine.read_bytes()
        other.shot(f"gallery-taken-{width}")
        assert me.errors == other.errors == []
    finally:
        server.terminate()
        server.wait(60)


def test_another_language_and_a_picture_from_text(visitor, tmp_path):
    me = visitor(locale="de-DE")
    me.welcomed()
    assert me.page.evaluate("document.documentElement.lang") == "de" and me.page.inner_text("#edit") == "Bearbeiten"
    me.describe("a mug, stone tiles", "a yelow mug, stone tiles")  # and what the engine has to say is said in it
    me.page.click("#edit")
    me.page.wait_for_selector("#status li:has-text(\"'yelow' (gemeint: 'yellow'?) nicht gelernt\")")
    me.page.fill("#target", " ")
    me.page.click("#edit")
    me.page.wait_for_selector("#status.error:has-text('der Ziel-Prompt ist leer')")
    me.page.click("#tab-generate")
    me.page.fill("#prompt", "a red mug on grass")
    me.page.click("#advanced > summary")
    me.page.fill("#make-set-steps", "3")
    me.page.click("#make")
    me.page.wait_for_selector("#status:has-text('Fertig')")
    record = read_settings(me.download(tmp_path / "made.png"))
    assert record["task"] == "generate" and record["size"] == [128, 128]
    me.page.click("#use")
    me.page.wait_for_selector("#picture-name:has-text('a-red-mug-on-grass.png')")
    assert me.page.input_value("#source") == "a red mug on grass" and me.page.locator("#pane-edit").is_visible()
    assert me.errors == []


def test_the_page_calls_things_as_it_labels_them(visitor):
    """What the engine says to a terminal, with its flags and names of settings, in the words of the page."""
    me = visitor()
    me.welcomed()
    me.describe("a mug, " * 40, "a red mug, " * 40)
    me.page.click("#edit")
    said = "“Cut prompts that are too long”"
    me.page.wait_for_selector(f"#status.error:has-text('{said}')")
    me.page.wait_for_selector(f"#words:has-text('{said}')")
    assert "--" not in me.page.inner_text("body")
    me.page.click("#advanced > summary")
    assert me.page.inner_text("label:has(#truncate)").strip() == said.strip("“”")
    me.describe("a mug", "a red mug")
    me.page.fill("#set-guidance_scale", "200")
    me.page.click("#edit")
    me.page.wait_for_selector("#status.error:has-text('“Guidance scale” is 200.0: must be at least 0 and at most 100')")
    assert me.page.inner_text("label[for=set-guidance_scale]") == "Guidance scale"
    for said, here in (
            ("{} has 8 x 8 pixels; fit=keep takes all of it", "{} has 8 x 8 pixels; “Fit: keep” takes all of it"),
            ("blend_threshold was left out: the phrase 'fit_it' is not in it",
             "“Blend threshold” was left out: the phrase 'fit_it' is not in it"),
            ("the result looked oversaturated: it was made again with guidance_scale 2",
             "the result looked oversaturated: it was made again with “Guidance scale” 2"),
            ("my_mug.png: steps=2", "my_mug.png: “Steps: 2”")):
        assert me.translated(said) == here
    assert me.errors == []


def test_every_setting_is_in_the_language_of_the_page(visitor):
    me = visitor(390, 844, locale="de-DE")
    me.welcomed()
    for part in ("advanced", "rest-part", "variants-part"):
        me.page.click(f"#{part} > summary")
    methods = me.page.eval_on_selector_all("#method option", "options => options.map(o => o.value)")
    assert len(methods) > 15
    for name in methods:
        me.page.select_option("#method", name)
        english = me.page.evaluate("async name => (await fetch(`api/methods/${name}`)).json()", name)
        fields = [field for _, members in english["groups"] for field in members]
        me.page.wait_for_function("names => names.every(name => document.getElementById(`set-${name}`)) && "
                                  "document.querySelectorAll('#advanced .field').length === names.length",
                                  arg=[f["name"] for f in fields])
        text = me.page.inner_text("#advanced")
        assert not [f["help"] for f in fields if f["help"].rstrip(".") in text], name
        assert not re.search(r"\b(or more|the|which|\d to \d)\b|[a-z]_[a-z]", text.replace("Lambda_", "")), name
        assert me.page.evaluate("document.documentElement.scrollWidth") <= 390, name
        beside = me.page.evaluate("() => [...document.querySelectorAll('header *, .controls *')].filter(e => "
                                  "e.offsetParent && e.getBoundingClientRect().right > innerWidth - 9).length")
        assert not beside, name
    me.shot("german-390")
    assert me.translated("the result looked oversaturated: it was made again with guidance_scale 2 and eta 1") == (
        "das Ergebnis wirkte übersättigt: es wurde noch einmal gemacht, mit „Guidance-Stärke“ 2 und eta 1")
    assert me.translated("m was not taught 'a', 'b' (did you mean 'c'?) and 2 more: such words have little effect, or "
                         "a strange one (sage info m lists those it knows)").startswith(
        "m hat 'a', 'b' (gemeint: 'c'?) und 2 weitere nicht gelernt")
    assert me.translated("steps is 2.5: must be a whole number") == "„Schritte“ ist 2.5: erlaubt ist eine ganze Zahl"
    assert me.translated("nobody said this: and that is it") == "nobody said this: and that is it"
    assert me.errors == []


@pytest.mark.parametrize("locale, title, what", [
    ("en-US", "An edit in four requests", "Ask for an edit: a job."),
    ("de-DE", "Eine Bearbeitung in vier Anfragen", "Eine Bearbeitung anfordern: ein Job.")])
def test_the_page_of_the_api_speaks_the_visitors_language(browser, locale, title, what):
    server, address = start("--port", "0", command="serve")
    context, errors = browser.new_context(viewport={"width": 390, "height": 844}, locale=locale), []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector(f".operation:has-text('POST /api/edit'):has-text('{what}')")
        page.wait_for_selector("#now dd")
        assert page.inner_text("h2[data-text='api.sketch']") == title and page.inner_text("#hint code") == "error"
        assert page.evaluate("document.documentElement.lang") == locale[:2]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390 and "{" not in page.inner_text("#hint")
        assert errors == []
    finally:
        context.close()
        server.terminate()
        assert server.wait(60) == 0


@WIDTHS
def test_a_studio_that_was_ended_says_so_and_comes_back(visitor, width, height):
    server, address = start("--port", "0")
    me = visitor(width, height, address=address)
    me.welcomed()
    me.steps(60)
    me.page.click("#edit")
    me.page.wait_for_selector("#progress-words:has-text('step')")
    server.kill()
    server.wait()
    me.page.wait_for_selector("#status.error:has-text('does not answer')")
    assert not me.sees("#progress") and me.sees("#status")  # no bar is left standing
    me.shot(f"ended-{width}")
    server, _ = start("--port", address.rstrip("/").rpartition(":")[2])
    try:
        me.page.wait_for_selector("#status:has-text('press Edit again')")
        assert me.page.locator("#edit").is_enabled()
    finally:
        server.terminate()
        server.wait(60)
