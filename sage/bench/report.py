"""One HTML page for people, with everything in it: tables, comparisons, and each case as a strip of pictures.

It loads nothing from anywhere and needs its script only to choose and to sort: without it everything is shown.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from PIL import Image

from sage import image as pictures
from sage.bench.files import inside, write_text
from sage.bench.layout import Benchmark, Case
from sage.bench.metrics import METRICS, Metric
from sage.bench.scoring import DONE, Line
from sage.bench.tables import Comparison, Results
from sage.errors import SageError

REPORT = "report.html"
EMBEDDED = 256  # pixels; larger pictures are reduced to this


def write_report(path: Path, title: str, benchmark: Benchmark, results: Results, roots: Mapping[str, Path],
                 facts: dict[str, str] | None = None) -> Path:
    """Write the page of some results.

    Args:
        roots: for each configuration, what the pictures of its lines are relative to.
        facts: what else a reader should know of the run, by name.
    """
    strips = [case for case in benchmark.cases if any(case.name in results.by_case[c] for c in results.configurations)]
    body = [f"<h1>{escape(title)}</h1>", _facts(facts or {}, results, len(strips)), _tables(results),
            _comparisons(results), _controls(results)]
    body += ['<div id="cases">', *(_strip(benchmark, case, results, roots) for case in strips), "</div>"]
    write_text(path, PAGE.format(title=escape(title), style=STYLE, script=SCRIPT, body="\n".join(body),
                                 data=_data(results, strips)))
    return path


def _facts(facts: dict[str, str], results: Results, cases: int) -> str:
    failed = sum(len(results.failed(c)) for c in results.configurations)
    shown = facts | {"cases": str(cases), "configurations": ", ".join(results.configurations)}
    shown |= {"failed": f"{failed} of {len(results.lines)} results"} if failed else {}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in shown.items())
    return f'<dl>{items}</dl><p>Figures are means with bootstrap 95 % intervals over the cases.</p>'


# ---- tables


def _tables(results: Results) -> str:
    parts = ["<h2>Figures</h2>", f'<p class="script"><label>Kind <select id="kind-table">{_kinds(results)}</select>'
             "</label></p>"]
    for kind in (None, *results.kinds):
        name = "all" if kind is None else str(kind)
        heads = "".join(f"<th>{escape(m.title)} {_arrow(m)}</th>" for m in results.metrics)
        best = {m.key: _best(results, m, kind) for m in results.metrics}
        rows = []
        for c in results.configurations:
            cells = "".join(_cell(results, c, m, kind, c in best[m.key]) for m in results.metrics)
            failed = len(results.failed(c, kind))
            rows.append(f"<tr><th>{escape(c)}</th>{cells}<td>{failed or ''}</td></tr>")
        parts.append(f'<div class="wide"><table class="by-kind" data-kind="{name}"><caption>'
                     f"{escape(_kind(results, kind))}</caption><thead><tr><th></th>{heads}<th>failed</th></tr></thead>"
                     f"<tbody>{''.join(rows)}</tbody></table></div>")
    return "\n".join(parts)


def _cell(results: Results, c: str, m: Metric, kind: int | None, best: bool) -> str:
    found = results.mean(c, m.key, kind)
    text = "" if found is None else _lines(found.text(m))
    return f'<td{" class=best" if best else ""}>{text}</td>'


def _best(results: Results, m: Metric, kind: int | None) -> list[str]:
    """The configurations with the best mean; bounds, which edit nothing, do not compete."""
    means = {c: found.mean for c in results.configurations if c not in ("source", "autoencoder")
             and (found := results.mean(c, m.key, kind))}
    if not means:
        return []
    top = (max if m.higher_is_better else min)(means.values())
    return [c for c, mean in means.items() if mean == top]


def _comparisons(results: Results) -> str:
    if len(results.configurations) < 2:
        return ""
    options = "".join(f"<option>{escape(c)}</option>" for c in results.configurations)
    parts = ["<h2>Case by case</h2>",
             "<p>Differences to one configuration over the cases that both have, and the share of these cases in which "
             "the row's configuration is the better one, equal ones by half. An interval without 0 is in bold.</p>",
             f'<p class="script"><label>Compared with <select id="against">{options}</select></label></p>']
    pairs = {(p.a, p.b, p.metric): p for p in results.comparisons()}
    heads = "".join(f"<th>{escape(m.title)} {_arrow(m)}</th>" for m in results.metrics)
    for i, reference in enumerate(results.configurations):
        rows = []
        for c in results.configurations:
            if c != reference:
                cells = "".join(_difference(pairs, c, reference, m) for m in results.metrics)
                rows.append(f"<tr><th>{escape(c)}</th>{cells}</tr>")
        parts.append(f'<div class="wide"><table class="against" data-index="{i}"><caption>minus {escape(reference)}'
                     f"</caption><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")
    return "\n".join(parts)


def _difference(pairs: dict[tuple[str, str, str], Comparison], a: str, b: str, m: Metric) -> str:
    turned = (a, b, m.key) not in pairs
    p = pairs.get((b, a, m.key) if turned else (a, b, m.key))
    if p is None:
        return "<td></td>"
    d, wins = (p.difference.negated(), 1 - p.wins) if turned else (p.difference, p.wins)
    sure = " class=best" if d.low > 0 or d.high < 0 else ""
    return f"<td{sure}>{_lines(d.text(m, signed=True))}<br>better in {wins:.0%}</td>"


def _lines(text: str) -> str:
    """A mean, and its interval below it."""
    mean, interval = text.split(" ", 1)
    return f"{mean}<br><small>{interval}</small>"


def _arrow(m: Metric) -> str:
    return "&uarr;" if m.higher_is_better else "&darr;"


def _kind(results: Results, kind: int | None) -> str:
    return "all kinds" if kind is None else f"{kind} {results.names[kind]}"


def _kinds(results: Results) -> str:
    return '<option value="all">all kinds</option>' + "".join(
        f'<option value="{k}">{escape(_kind(results, k))}</option>' for k in results.kinds)


# ---- strips


def _controls(results: Results) -> str:
    metrics = "".join(f'<option value="{m.key}">{escape(m.title)}</option>' for m in results.metrics)
    chosen = _first_edit(results)
    configurations = "".join(f'<option value="{i}"{" selected" if c == chosen else ""}>{escape(c)}</option>'
                             for i, c in enumerate(results.configurations))
    return (f'<h2>Pictures</h2><p class="script"><label>Kind <select id="kind">{_kinds(results)}</select></label> '
            f'<label>by <select id="metric">{metrics}</select></label> '
            f'<label>of <select id="configuration">{configurations}</select></label> '
            '<label>order <select id="order"><option value="worst">worst first</option>'
            '<option value="best">best first</option><option value="own">as in the benchmark</option></select></label> '
            '<span id="count"></span></p>')


def _first_edit(results: Results) -> str:
    edits = [c for c in results.configurations if c not in ("source", "autoencoder")]
    return (edits or results.configurations)[0]


def _strip(benchmark: Benchmark, case: Case, results: Results, roots: Mapping[str, Path]) -> str:
    figures = []
    for name, load in (("source", benchmark.source), ("true edit", benchmark.truth)):
        try:
            image = load(case)
        except SageError as error:
            figures.append(_figure(name, f"<p>{escape(str(error))}</p>"))
            continue
        if image is not None:
            figures.append(_figure(name, _img(image, name)))
    for i, c in enumerate(results.configurations):
        line = results.by_case[c].get(case.name)
        if line is not None and c != "source":
            value = f'<span class="score" data-configuration="{i}"></span>'
            figures.append(_figure(c, _result(line, roots[c], c), value))
    return (f'<section data-case="{escape(case.name)}" data-kind="{case.kind}"><h3>'
            f"{escape(_kind(results, case.kind))}, case {escape(case.name)}</h3>"
            f"<p>{_marked(case.source_marked)}<br>&rarr; {_marked(case.target_marked)}</p>"
            f'<div class="strip">{"".join(figures)}</div></section>')


def _figure(name: str, inner: str, after: str = "") -> str:
    return f"<figure>{inner}<figcaption>{escape(name)}<br>{after}</figcaption></figure>"


def _result(line: Line, root: Path, name: str) -> str:
    if line.status != DONE:
        return f'<p class="failed">failed: {escape(line.reason)}</p>'
    try:
        return _img(pictures.open_picture(inside(root, line.picture)), name)
    except SageError as error:
        return f'<p class="failed">{escape(str(error))}</p>'


def _img(image: Image.Image, name: str) -> str:
    kind, options = "png", {"optimize": True}
    if max(image.size) > EMBEDDED:
        image.thumbnail((EMBEDDED, EMBEDDED), Image.Resampling.LANCZOS)
        kind, options = "jpeg", {"quality": 85}
    data = io.BytesIO()
    image.save(data, kind.upper(), **options)
    text = base64.b64encode(data.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/{kind};base64,{text}">'


def _marked(text: str) -> str:
    return re.sub(r"\[(.*?)\]", r"<mark>\1</mark>", escape(text))


def _data(results: Results, cases: Iterable[Case]) -> str:
    """The scores for the script: a row of configurations, each a row of figures, for every case."""
    def row(case: Case, c: str) -> list[float | None]:
        line = results.by_case[c].get(case.name)
        return [line.scores.get(m.key) if line else None for m in results.metrics]

    metrics = [{"key": m.key, "scale": m.scale, "decimals": m.decimals, "up": m.higher_is_better}
               for m in METRICS if m in results.metrics]
    scores = {case.name: [row(case, c) for c in results.configurations] for case in cases}
    # As text in a page: no "</script>" or comment may begin in it.
    return json.dumps({"metrics": metrics, "scores": scores}).replace("<", "\\u003c")


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
{body}
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</html>
"""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1, h2, h3 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 3rem; } h3 { font-size: 1rem; margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dt { color: #666; } dd { margin: 0; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .87em; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
tbody th, thead th:first-child { text-align: left; white-space: nowrap; } .best { font-weight: 700; }
td { white-space: nowrap; } small { font-weight: 400; color: #555; } .wide { overflow-x: auto; }
select { font: inherit; margin-right: 1rem; } .script { display: none; }
section { border-top: 1px solid #ddd; padding: 1rem 0; } section p { margin: .3rem 0; }
mark { background: #ffe9a8; border-radius: 2px; padding: 0 .1em; }
.strip { display: flex; flex-wrap: wrap; gap: .7rem; } figure { margin: 0; width: 160px; }
img { width: 160px; image-rendering: pixelated; display: block; background: #eee; }
figcaption { font-size: .8em; color: #444; overflow-wrap: anywhere; } .failed { color: #a00; overflow-wrap: anywhere; }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id), all = selector => [...document.querySelectorAll(selector)];
for (const p of all(".script")) p.style.display = "block";
const only = (selector, keep) => { for (const e of all(selector)) e.hidden = !keep(e); };

const kindTable = get("kind-table"), against = get("against");
const showTable = () => only("table.by-kind", t => t.dataset.kind === kindTable.value);
kindTable.onchange = showTable; showTable();
if (against) {
  const showPairs = () => only("table.against", t => Number(t.dataset.index) === against.selectedIndex);
  against.onchange = showPairs; showPairs();
}

const cases = get("cases"), sections = [...cases.children];
function show() {
  const kind = get("kind").value, order = get("order").value, c = Number(get("configuration").value);
  const m = data.metrics.findIndex(m => m.key === get("metric").value), metric = data.metrics[m];
  const value = section => m < 0 ? null : data.scores[section.dataset.case][c][m];
  const sign = (metric && metric.up ? 1 : -1) * (order === "worst" ? 1 : -1);
  const rank = (a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  };
  const sorted = order === "own" ? sections : [...sections].sort(rank);
  let shown = 0;
  for (const section of sorted) {
    section.hidden = kind !== "all" && section.dataset.kind !== kind;
    shown += !section.hidden;
    for (const span of section.querySelectorAll(".score")) {
      const v = m < 0 ? null : data.scores[section.dataset.case][Number(span.dataset.configuration)][m];
      span.textContent = v === null ? "" : (v * metric.scale).toFixed(metric.decimals);
    }
  }
  cases.replaceChildren(...sorted);
  get("count").textContent = shown + " cases";
}
for (const id of ["kind", "metric", "configuration", "order"]) get(id).onchange = show;
show();
"""
