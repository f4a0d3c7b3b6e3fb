import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from sage.bench import report
from sage.bench.cases import read_benchmark, write_mapping
from sage.bench.configs import CONFIGURATIONS
from sage.bench.legend import GROUPS, LEGEND
from sage.bench.metrics import METRICS
from sage.bench.report import write_report
from sage.bench.runner import run
from sage.bench.scoring import DONE, Line
from sage.bench.tables import Results
from tests.bench.world import StubEngine, make_benchmark, picture

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Every element with its attributes and text; unbalanced tags are an error."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.found if e["tag"] == tag and all(e.get(k) == v for k, v in attributes.items())]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return make_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_benchmark(folder / "benchmark", 3)
    benchmark = read_benchmark(folder / "benchmark")
    evil = [*benchmark.cases[:2], type(benchmark.cases[2])(**{
        **vars(benchmark.cases[2]), "name": '"><script>alert(1)</script>', "source_marked": "a </script><b>[cat]</b>"})]
    write_mapping(folder / "benchmark", evil)
    benchmark = read_benchmark(folder / "benchmark")
    configurations = [CONFIGURATIONS[n] for n in ("source", "plain", "guidance")]
    engine = StubEngine(fails=[benchmark.cases[1].name])
    lines = run(benchmark, configurations, engine, folder / "out", batch=3)
    path = folder / "out/report.html"
    write(path, benchmark, lines, folder / "out")
    return benchmark, lines, path


def write(path, benchmark, lines, root):
    results = Results(lines)
    write_report(path, "A <run>", benchmark, results, dict.fromkeys(results.configurations, root), {"model": "m&m"})


def has(element, name):
    return name in (element.get("class") or "").split()


def test_everything_is_in_the_page(made):
    benchmark, lines, path = made
    page = Page(path.read_text())
    assert page.all("h1")[0]["text"] == "A <run>"
    assert page.all("p", **{"class": "lead"})[0]["text"] == "3 cases, 1 method and 2 bounds. 3 of 9 results failed."
    assert page.all("dl")[0]["text"] == "modelm&m"
    assert [t["data-kind"] for t in page.all("div") if has(t, "by-kind")] == ["all", "0", "1", "2"]
    mean = Results(lines).mean("plain", "inside_psnr").mean
    table = next(t["text"] for t in page.all("div") if has(t, "by-kind"))
    assert f"{mean:.2f}" in table and table.index("guidance") < table.index("Bounds") < table.index("plain")
    assert [s["data-kind"] for s in page.all("section")] == ["0", "1", "2"]
    strips = [f["text"] for f in page.all("figcaption") if not f["text"].endswith("is better")]
    assert strips == ["source", "true edit", "plain", "guidance"] * 3
    assert "failed: it is too hard" in page.all("section")[1]["text"]
    assert len(page.all("img")) == 3 * 4 - 2


def test_one_table_of_each_sort_is_shown_at_first(made):
    """Also without the script."""
    page = Page(made[2].read_text())
    for name, count in (("by-kind", 4), ("against", 3)):
        tables = [t for t in page.all("div") if has(t, name)]
        assert ["hidden" in t for t in tables] == [False] + [True] * (count - 1)
    options = [o["text"] for o in page.all("select", id="against")]
    assert options == ["plainguidancesource"]


def fake(name, values, key="inside_psnr"):
    return [Line(name, f"{i:012d}", i, DONE, scores={key: v}) for i, v in enumerate(values)]


def rows(tmp_path, benchmark, lines):
    """Of the first table of figures and the first of comparisons: each row's head, and its first cell's class."""
    write(tmp_path / "page.html", benchmark, lines, tmp_path)
    page = Page((tmp_path / "page.html").read_text())
    heads = [i for i, e in enumerate(page.found) if e["tag"] == "th" and e.get("scope") == "row"]
    return [(page.found[i]["text"], next(e.get("class") or "" for e in page.found[i:] if e["tag"] == "td"))
            for i in heads], page


def test_the_best_method_is_marked_and_bounds_do_not_compete(benchmark, tmp_path):
    lines = fake("good", [20, 21, 22, 23, 24]) + fake("bad", [10, 11, 13, 14, 15]) + fake("source", [30] * 5) + fake(
        "plain", [20, 22, 21, 23, 24])
    found, page = rows(tmp_path, benchmark, lines)
    assert [(name.removesuffix("the target prompt and nothing else"), kind) for name, kind in found[:4]] == [
        ("good", "best"), ("bad", ""), ("sourcethe untouched picture", ""), ("plain", "")]
    against = next(t for t in page.all("div") if has(t, "against"))
    assert "minus plain" in against["text"]
    # A zero within the interval marks nothing.
    assert found[-12:][:3] == [("good", ""), ("bad", "worse"), ("source", "better")]
    wins = [e["text"] for e in page.all("small", **{"class": "wins"})][:3]
    assert wins == ["better in 50%", "better in 0%", "better in 100%"]


def test_settings_stand_below_a_name(benchmark, tmp_path):
    found, _ = rows(tmp_path, benchmark, fake("plain:steps=3,guidance_scale=2", [1, 2]))
    assert found == [("plain steps=3, guidance_scale=2", "")] * 3


def test_less_is_better_where_it_is(benchmark, tmp_path):
    lines = fake("a", [5, 6, 7, 8], "inside_lpips") + fake("plain", [1, 2, 3, 4], "inside_lpips")
    assert rows(tmp_path, benchmark, lines)[0][-2:] == [("a", "worse"), ("plain", "better")]


def test_charts_show_the_best_first_and_every_figure_is_explained(benchmark, tmp_path):
    lines = fake("bad", [1, 2]) + fake("good", [3, 4]) + fake("source", [9, 9])
    write(tmp_path / "page.html", benchmark, lines, tmp_path)
    page = Page((tmp_path / "page.html").read_text())
    assert [e["text"] for e in page.all("span", **{"class": "name"})] == ["good", "bad", "source"]
    assert [e["class"] for e in page.all("li")] == ["best", "", "bound beyond"]
    assert [e["text"] for e in page.all("span", **{"class": "ends"})] == ["1.002.504.00"]  # the axis below
    assert "mean squared difference in decibels" in page.all("details", id="legend")[0]["text"]
    assert set(LEGEND) == {m.key for m in METRICS} and {e.group for e in LEGEND.values()} == set(GROUPS)


@pytest.mark.parametrize("side, limit, size, lossless", [(32, 4000, 32, True), (32, 1, 32, False),
                                                         (600, 4000, 256, False)])
def test_pictures_are_kept_small(tmp_path, monkeypatch, side, limit, size, lossless):
    monkeypatch.setattr(report, "LOSSLESS", limit)
    benchmark = make_benchmark(tmp_path / "benchmark", 1)
    given = picture(3, side)
    monkeypatch.setattr(type(benchmark), "source", lambda self, case: given.copy())
    write(tmp_path / "page.html", benchmark, fake("a", [1]), tmp_path)
    text = Page((tmp_path / "page.html").read_text()).all("img")[0]["src"].partition(",")[2]
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.format == "WEBP" and image.size == (size, size)
    assert (side == size and image.convert("RGB").tobytes() == given.tobytes()) == lossless


def test_nothing_is_loaded_from_anywhere(made):
    text = made[2].read_text()
    page = Page(text)
    assert all(i["src"].startswith("data:image/webp;base64,") for i in page.all("img"))
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:)", text)
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def test_what_a_benchmark_says_is_text(made):
    benchmark, _, path = made
    page = Page(path.read_text())
    assert len(page.all("script")) == 2 and not page.all("b")
    assert page.all("section")[2]["data-case"] == benchmark.cases[2].name
    assert "a </script><b>cat</b>" in page.all("section")[2]["text"]
    assert {m["text"] for m in page.all("mark")} == {"cat", "cab"}


def test_the_script_is_given_every_score(made):
    _, lines, path = made
    data = json.loads(Page(path.read_text()).all("script", type="application/json")[0]["text"])
    keys = [m["key"] for m in data["metrics"]]
    for line in lines:
        row = data["scores"][line.case][["source", "plain", "guidance"].index(line.configuration)]
        assert row == [line.scores.get(key) for key in keys]


def test_the_same_run_gives_the_same_page(made, tmp_path):
    benchmark, lines, path = made
    write(tmp_path / "again.html", benchmark, lines, path.parent)
    assert (tmp_path / "again.html").read_bytes() == path.read_bytes()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(page, tmp_path):
    """A page as its script leaves it."""
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=2000", "--dump-dom",
                           page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser(made, tmp_path):
    """The page as its script leaves it, at first and after choices."""
    _, lines, path = made

    def shown(choices=""):
        page = tmp_path / "page.html"
        page.write_text(path.read_text().replace("</html>", f"<script>{choices}</script></html>"))
        dom = opened(page, tmp_path)
        sections = [s for s in dom.all("section") if "hidden" not in s]
        tables = [t for t in dom.all("div") if has(t, "wide") and "hidden" not in t]
        return [int(s["data-kind"]) for s in sections], [t.get("data-kind") or t["data-index"] for t in tables], dom

    def order(metric, reverse):
        values = {line.kind: line.scores[metric] for line in lines
                  if line.configuration == "guidance" and line.status == "done"}
        return [*sorted(values, key=values.get, reverse=reverse), 1]  # the failed one last

    kinds, tables, dom = shown()
    assert kinds == order("inside_psnr", reverse=False) and tables == ["all", "0"]
    assert dom.all("span", id="count")[0]["text"] == "3 cases"
    scores = {line.scores["inside_psnr"] for line in lines if line.status == "done" and line.configuration != "source"}
    assert {s["text"] for s in dom.all("span", **{"class": "score"})} == {f"{v:.2f}" for v in scores} | {""}
    assert shown("get('order').value = 'best'; show()")[0] == order("inside_psnr", reverse=True)
    assert shown("get('metric').value = 'background_mse'; show()")[0] == order("background_mse", reverse=True)
    assert shown("get('order').value = 'own'; show()")[0] == [0, 1, 2]
    assert shown("get('kind').value = '2'; show(); kindTable.value = '1'; showTable()")[:2] == ([2], ["1", "0"])
    assert shown("against.selectedIndex = 1; showPairs()")[1] == ["all", "1"]

    def heads(choices):
        cells = [e for e in shown(choices)[2].all("th", scope="row")]
        return [e["text"].removesuffix("the target prompt and nothing else") for e in cells[:3]]

    column = "const head = all('thead th[data-up]')[0];"
    assert heads("") == ["guidance", "sourcethe untouched picture", "plain"]
    assert heads(column + "sortTable(head)") == ["guidance", "plain", "sourcethe untouched picture"]
    assert heads(column + "sortTable(head); sortTable(head)") == heads("")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [390, 1366])
def test_nothing_sticks_out_of_the_window(made, tmp_path, width):
    """On a phone too; wide tables scroll in their own frame."""
    frame = tmp_path / "frame.html"
    (tmp_path / "page.html").write_text(made[2].read_text().replace("</html>", """<script>
        parent.postMessage([document.documentElement.scrollWidth, innerWidth], "*")</script></html>"""))
    frame.write_text(f"""<body><iframe src="page.html" style="width:{width}px;height:800px;border:0"></iframe>
        <p id="seen"></p><script>onmessage = e => seen.textContent = e.data.join()</script></body>""")
    assert opened(frame, tmp_path).all("p", id="seen")[0]["text"] == f"{width},{width}"
