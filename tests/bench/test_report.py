import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from sage.bench.configs import CONFIGURATIONS
from sage.bench.layout import read_benchmark, write_mapping
from sage.bench.report import write_report
from sage.bench.runner import run
from sage.bench.tables import Results
from tests.bench.world import StubEngine, make_benchmark

VOID = {"meta", "img", "br"}


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


def test_everything_is_in_the_page(made):
    benchmark, lines, path = made
    page = Page(path.read_text())
    assert page.all("h1")[0]["text"] == "A <run>"
    assert "m&m" in page.all("dl")[0]["text"] and "3 of 9 results" in page.all("dl")[0]["text"]
    tables = page.all("table", **{"class": "by-kind"})
    assert [t["data-kind"] for t in tables] == ["all", "0", "1", "2"]
    mean = Results(lines).mean("plain", "inside_psnr").mean
    assert f"{mean:.2f}" in tables[0]["text"]
    assert len(page.all("table", **{"class": "against"})) == 3
    assert [s["data-kind"] for s in page.all("section")] == ["0", "1", "2"]
    captions = [f["text"] for f in page.all("figcaption")]
    assert captions == ["source", "true edit", "plain", "guidance"] * 3
    assert "failed: it is too hard" in page.all("section")[1]["text"]
    assert len(page.all("img")) == 3 * 4 - 2


def test_nothing_is_loaded_from_anywhere(made):
    text = made[2].read_text()
    page = Page(text)
    assert all(i["src"].startswith("data:image/png;base64,") for i in page.all("img"))
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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_in_a_browser(made, tmp_path):
    """The page as its script leaves it, at first and after choices."""
    _, lines, path = made

    def shown(choices=""):
        page = tmp_path / "page.html"
        page.write_text(path.read_text().replace("</html>", f"<script>{choices}</script></html>"))
        done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/p",
                               "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
        dom = Page(done.stdout)
        sections = [s for s in dom.all("section") if "hidden" not in s]
        tables = [t for t in dom.all("table") if "hidden" not in t]
        return [int(s["data-kind"]) for s in sections], [t.get("data-kind") or t["data-index"] for t in tables], dom

    def order(metric, reverse):
        values = {line.kind: line.scores[metric] for line in lines
                  if line.configuration == "plain" and line.status == "done"}
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
