"""The studio in a real browser: everything a visitor does, from the dropped picture to the file they take home.

    make test-ui
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sage.commands import main as cli
from sage.pictures import read_settings

gradio = pytest.importorskip("gradio", reason="the extra `ui` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

ROOT = Path(__file__).resolve().parents[2]
MUG = ROOT / "examples" / "mug.png"
SOURCE = "a photograph of a big shiny blue mug in the centre, with a tiny green cone next to it, on stone tiles"
TARGET = SOURCE.replace("blue", "yellow")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
PATIENCE = 120_000  # milliseconds: the machine may be busy
SHOTS = os.environ.get("SAGE_SCREENSHOTS")  # a folder to leave pictures of the page in


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A studio of its own, started as a user starts it, with an environment that would open it up."""
    env = os.environ | {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/",
                        "GRADIO_ANALYTICS_ENABLED": "True"}
    server = subprocess.Popen([sys.executable, "-m", "sage", "ui", "--port", "0", "--model", "stilllife", "--max-steps",
                               "60"], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert (found := re.search(r"http://127\.0\.0\.1:\d+/", line)), line
        yield found[0]
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

    def visit(width: int = 1280, height: int = 900) -> "Visitor":
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        opened.append(context)
        return Visitor(context.new_page(), address)

    yield visit
    for context in opened:
        context.close()


class Visitor:
    """What a person does on the page."""

    def __init__(self, page, address: str):
        self.page, self.hosts, self.errors = page, set(), []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda r: self.hosts.add(r.url.split("/")[2]) if r.url.startswith("http") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#edit")
        page.wait_for_selector("#examples img, #picture")

    def drop(self, path: Path) -> None:
        self.page.set_input_files("#picture input[type=file]", str(path))
        self.page.wait_for_selector("#picture .image-frame img, #status .error")

    def describe(self, source: str, target: str) -> None:
        self.page.fill("#source textarea", source)
        self.page.fill("#target textarea", target)

    def edit(self) -> str:
        """Press Edit, wait for the end, and read what is said."""
        before = self.page.evaluate("""() => {
            window.pressed = false;
            const seen = new MutationObserver(() => { window.pressed = true; });
            seen.observe(document.querySelector("#edit"), {attributes: true, attributeFilter: ["disabled"]});
            return document.querySelector("#status .status")?.innerText ?? "";
        }""")
        self.page.click("#edit")
        self.page.wait_for_function("before => window.pressed || (document.querySelector('#status .status')"
                                    "?.innerText ?? '') != before", arg=before)
        return self.ended()

    def ended(self) -> str:
        self.page.wait_for_selector("#edit:not([disabled])")
        self.page.wait_for_selector("#status .status:not(:has(.bar))")
        return self.said()

    def said(self) -> str:
        line = self.page.locator("#status .status")
        return line.inner_text().strip() if line.count() else ""

    def download(self, path: Path) -> Path:
        with self.page.expect_download() as got:
            self.page.click("#download")
        got.value.save_as(path)
        return path

    def setting(self, name: str):
        return self.page.locator(f"#set-{name} input, #set-{name} textarea").first

    def wait_setting(self, name: str, value: str) -> None:
        self.page.wait_for_function("([name, value]) => document.querySelector("
                                    "`#set-${name} textarea, #set-${name} input`).value == value", arg=[name, value])

    def method(self, name: str) -> None:
        self.page.click("#method input")
        self.page.get_by_role("option", name=f"({name})").click()

    def advanced(self) -> None:
        self.page.click("#advanced > button")
        self.page.wait_for_selector("#set-steps")

    def shot(self, name: str) -> None:
        if SHOTS:
            self.page.wait_for_timeout(800)
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def repeated(png: Path, picture: Path, out: Path) -> bool:
    """Whether `sage edit` makes the very same file from the settings inside."""
    assert cli.main(["edit", str(picture), "--config-from", str(png), "--out", str(out), "--quiet"]) == 0
    return out.read_bytes() == png.read_bytes()


def test_from_dropped_picture_to_a_file_that_repeats_the_edit(visitor, tmp_path):
    me = visitor()
    me.shot("empty")
    me.drop(MUG)
    me.describe(SOURCE, TARGET)
    me.page.wait_for_selector("#words .prompt span.differs:has-text('blue')")
    me.page.wait_for_selector("#words .prompt button.differs:has-text('yellow')")
    me.page.click("#edit")
    me.page.wait_for_selector("#status:has-text('left')")  # progress with phase and time left
    assert re.search(r"(Inverting|Editing), step \d+ of 20, [\d. min]+ s left", me.said())
    me.shot("running")
    assert re.fullmatch(r"Done in [\d. min]+ s\.", me.ended())
    me.shot("done")

    first = me.download(tmp_path / "mug-edit.png")
    assert read_settings(first)["picture"]["name"] == "mug.png"
    assert repeated(first, MUG, tmp_path / "again.png")

    # A second edit of the same picture, with a word reweighted by its slider, reuses the inversion and says so.
    me.describe(SOURCE, SOURCE.replace("blue", "red"))
    me.page.wait_for_selector("#words .weight:has-text('red')")
    slider = me.page.locator("#words .weight:has-text('red') input")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    me.advanced()
    me.wait_setting("reweight", "red:1.5")
    assert "the inversion was at hand, which spared" in me.edit()
    second = me.download(tmp_path / "second.png")
    assert read_settings(second)["settings"]["reweight"] == {"red": 1.5}
    assert repeated(second, MUG, tmp_path / "second-again.png")

    # History: the older of the two gives its settings back, and its picture.
    assert me.page.locator("#history .thumbnail-item").count() == 2
    me.page.locator("#history .thumbnail-item").nth(1).click()
    me.page.wait_for_function("document.querySelector('#target textarea').value.includes('yellow')")
    me.wait_setting("reweight", "none")
    assert me.download(tmp_path / "first.png").read_bytes() == first.read_bytes()
    assert me.errors == [] and len(me.hosts) == 1  # nothing was asked of any other server


def test_a_dropped_edit_restores_its_settings(visitor, tmp_path):
    made = tmp_path / "made.png"
    assert cli.main(["edit", str(MUG), "--model", "stilllife", "--source", SOURCE, "--target", TARGET, "--steps", "4",
                     "--guided-steps", "3", "--blend", "blue mug,yellow mug", "--seed", str(2**60 + 1), "--reweight",
                     "yellow:1.25", "--guidance-scale", "1.3333333333333333", "--out", str(made), "--quiet"]) == 0
    me = visitor()
    me.drop(made)
    me.page.wait_for_selector("#status:has-text('are restored')")
    assert "drop mug.png" in me.said()
    me.page.locator("#picture .icon-button-wrapper button").first.click()  # takes the picture away
    me.drop(MUG)
    me.page.wait_for_selector("#status .status", state="detached")
    assert me.page.input_value("#source textarea") == SOURCE
    me.edit()
    again = me.download(tmp_path / "made-edit.png")
    assert read_settings(again) == read_settings(made) and again.read_bytes() == made.read_bytes()


def test_cancel(visitor):
    me = visitor()
    me.drop(MUG)
    me.describe(SOURCE, TARGET)
    me.advanced()
    me.setting("steps").fill("60")
    me.page.click("#edit")
    me.page.wait_for_selector("#status:has-text('step')")
    me.page.click("#cancel")
    me.page.wait_for_selector("#status:has-text('Cancelled')")
    me.page.wait_for_timeout(2000)
    assert me.said() == "Cancelled." and me.page.locator("#edit").is_enabled()
    me.setting("steps").fill("2")
    assert me.edit().startswith("Done")


def test_a_bad_picture_and_other_mistakes_are_one_line(visitor, tmp_path):
    me = visitor()
    assert me.edit() == "there is no picture yet: drop one, or take an example"
    bad = tmp_path / "bad.png"
    bad.write_bytes(MUG.read_bytes()[:700])
    me.drop(bad)
    me.page.wait_for_selector("#status .error:has-text('bad.png')")
    assert "damaged" in me.said() and str(tmp_path) not in me.said() and "Traceback" not in me.page.content()
    me.shot("bad")
    me.drop(MUG)
    me.page.wait_for_selector("#status .status", state="detached")
    assert "source prompt is empty" in me.edit()
    me.describe(SOURCE, TARGET)
    me.advanced()
    me.setting("steps").fill("61")
    assert me.edit() == "steps is 61: this studio allows at most 60"
    me.setting("steps").fill("2")
    me.setting("replace").fill("tree, house")
    said = me.edit()
    assert said.startswith("Done") and "replace was left out" in said and "'tree' is not in the prompt" in said
    assert "Traceback" not in me.page.content() and str(ROOT) not in me.page.content()


def test_two_visitors_at_once_each_get_their_own(visitor, tmp_path):
    other = tmp_path / "other.png"
    Image.open(MUG).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
    pair = [(visitor(), MUG, TARGET), (visitor(), other, SOURCE.replace("blue", "red"))]
    for me, picture, target in pair:
        me.drop(picture)
        me.describe(SOURCE, target)
    for me, _, _ in pair:
        me.page.click("#edit")
    for me, picture, target in pair:
        me.page.wait_for_selector("#status:has-text('Done')")
        me.ended()
        got = me.download(tmp_path / f"{picture.stem}-edit.png")
        record = read_settings(got)
        assert record["picture"]["name"] == picture.name and record["target"] == target
        assert repeated(got, picture, tmp_path / "check.png")
        assert me.page.locator("#history .thumbnail-item").count() == 1


def test_an_example_runs_at_once_and_can_be_looked_into(visitor):
    me = visitor()
    me.page.locator("#examples .thumbnail-item").first.click()
    me.page.wait_for_selector("#status:has-text('Done')")
    assert me.page.locator("#result img").count() >= 2
    me.page.click("#look")
    inside = me.page.frame_locator("#inside iframe")
    inside.locator("#step").wait_for()
    for wanted in ("autoencoder alone", "inversion and back", "blending mask", "guidance difference",
                   "what a gradient took out", "Guidance difference", "prediction, guided"):
        assert inside.get_by_text(wanted).first.is_visible(), wanted
    before = inside.locator("#now").inner_text()
    inside.locator("#step").fill("0")
    assert inside.locator("#now").inner_text() != before and "step 1 of 20" in inside.locator("#now").inner_text()
    me.shot("inside")
    assert me.errors == []


def test_all_settings_are_there_with_help(visitor):
    from sage import EditConfig
    from sage.studio.form import shown
    me = visitor()
    me.advanced()
    text = me.page.inner_text("#advanced")
    for heading, members in shown(EditConfig())["groups"]:
        assert heading in text
        for f in members:
            assert f["name"] in text and f["help"] in text and f["range"] in text, f["name"]
    me.shot("advanced")
    me.setting("guidance_scale").fill("9")
    me.page.click("#recommended")
    me.page.wait_for_selector("#status:has-text('recommends')")
    assert me.setting("guidance_scale").input_value() == "1.25"


def test_phrases_are_corrected_in_the_words_panel(visitor):
    me = visitor()
    me.describe("a cat on a sofa", "a dog on a sofa")
    me.page.wait_for_selector("#words .differs:has-text('dog')")
    me.advanced()
    me.page.select_option("#words .phrases >> nth=0 >> select", "pair")
    me.wait_setting("replace", "cat, dog")
    me.page.select_option("#words .phrases >> nth=1 >> select", "none")
    me.wait_setting("blend", "none")
    me.page.click("#words .prompt button:has-text('sofa')")
    slider = me.page.locator("#words .weight:has-text('sofa') input")
    slider.fill("0.5")
    me.wait_setting("reweight", "sofa:0.5")
    me.setting("reweight").fill("")
    me.setting("reweight").press_sequentially("dog:3")
    me.page.wait_for_selector("#words .weight:has-text('dog') output:has-text('3')")


def test_text_of_a_stranger_is_text(visitor, tmp_path):
    """A prompt out of somebody's picture is shown, and never runs."""
    from sage import EditConfig
    from sage.pictures import save_picture
    evil = "a cat <img src=x onerror=document.title='owned'>"
    record = {"source": evil, "target": evil + " dog", "model": "<b>mine</b>", "config": EditConfig().as_dict(),
              "prediction_type": None, "truncate": False, "picture": {"name": "<i>x</i>.png", "sha256": "0"},
              "made": {}}
    me = visitor()
    me.drop(save_picture(Image.new("RGB", (32, 32)), tmp_path / "evil.png", record))
    me.page.wait_for_selector("#status:has-text('<b>mine</b>')")
    assert "<i>x</i>.png" in me.said()
    me.page.wait_for_selector("#words .prompt")
    assert me.page.title() == "SAGE studio" and me.page.locator("#status i, #words img").count() == 0


def test_a_narrow_screen(visitor):
    me = visitor(390, 844)
    me.page.locator("#examples .thumbnail-item").first.click()
    me.page.wait_for_selector("#status:has-text('Done')")
    assert me.page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#picture", "#source", "#edit", "#result", "#download", "#words"):
        box = me.page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, name
    me.shot("narrow")


def test_another_method_brings_its_own_form_and_keeps_the_words(visitor, tmp_path):
    me = visitor()
    me.drop(MUG)
    me.describe(SOURCE, TARGET)
    me.advanced()
    me.setting("steps").fill("3")
    me.setting("reweight").fill("yellow:1.5")
    me.page.focus("#model input")
    me.page.keyboard.press("Tab")  # touching the model's box changes nothing
    me.page.wait_for_timeout(1500)
    assert me.setting("steps").input_value() == "3" and me.setting("reweight").input_value() == "yellow:1.5"
    me.method("p2p")
    me.page.wait_for_selector("#set-self_level", state="detached")
    me.wait_setting("reweight", "yellow:1.5")
    me.setting("steps").fill("2")
    assert me.edit().startswith("Done")
    record = read_settings(me.download(tmp_path / "p2p.png"))
    settings = record["settings"]
    assert (record["method"], settings["steps"], settings["reweight"]) == ("p2p", 2, {"yellow": 1.5})
    assert repeated(tmp_path / "p2p.png", MUG, tmp_path / "again.png")
    me.method("sdedit")
    me.page.wait_for_selector("#words .weight, #words .phrases", state="detached")
    me.method("sage")
    me.wait_setting("steps", "3")  # as it was left
    assert me.errors == []


def test_a_second_example_is_edited_too_and_no_result_stands_beside_other_prompts(visitor):
    me = visitor()
    me.page.locator("#examples .thumbnail-item").first.click()
    me.page.wait_for_selector("#status:has-text('step')")
    me.page.locator("#examples .thumbnail-item").nth(1).click()
    me.page.wait_for_selector("#status:has-text('Done')")
    me.ended()
    target = me.page.input_value("#target textarea")
    assert "mug" in target and target in me.page.inner_text("#caption")


def test_a_picture_from_text(visitor, tmp_path):
    me = visitor()
    me.page.get_by_role("tab", name="From text").click()
    me.page.fill("#make-prompt textarea", "a red mug on grass")
    me.page.click("#make-advanced > button")
    me.page.fill("#make-set-steps input", "3")
    me.page.fill("#make-set-seed input", str(2**60 + 1))
    me.page.click("#make")
    me.page.wait_for_selector("#make-status:has-text('Done')")
    assert me.page.locator("#make-result img").count() == 1
    me.shot("from-text")
    with me.page.expect_download() as got:
        me.page.click("#make-download")
    got.value.save_as(tmp_path / "made.png")
    record = read_settings(tmp_path / "made.png")
    assert record["task"] == "generate" and record["settings"]["seed"] == 2**60 + 1 and record["size"] == [64, 64]
    assert cli.main(["generate", "--config-from", str(tmp_path / "made.png"), "--out", str(tmp_path / "again.png"),
                     "--quiet"]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "made.png").read_bytes()
