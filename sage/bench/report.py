"""One HTML page for people, with everything in it: figures, comparisons, and each case as a strip of pictures.

It loads nothing from anywhere, and needs its script only to choose and to sort.
"""

import base64
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.bench.cases import Benchmark, Case
from sage.bench.files import inside, write_text
from sage.bench.legend import GROUPS, HEADLINES, SHOWN_FIRST, entry
from sage.bench.metrics import METRICS, Metric
from sage.bench.scoring import DONE, Line
from sage.bench.tables import Interval, Results
from sage.display.html import page
from sage.errors import SageError

REPORT = "report.html"
EMBEDDED = 256  # pixels; larger pictures are reduced to this
LOSSLESS = 4000  # pictures in a page; of more, each is compressed with some loss
ROWS, BASELINES = 8, 12  # methods in the charts, and to compare with; the tables have all

BOUND_NOTES = {"source": "the untouched picture", "autoencoder": "the true edit through the autoencoder",
               "pixels": "plain pixels, moved, filled or pasted", "plain": "the target prompt and nothing else"}


@dataclass(frozen=True)
class Run:
    """What the parts of a page are made from."""

    benchmark: Benchmark
    results: Results
    roots: Mapping[str, Path]
    lossless: bool

    @property
    def bounds(self) -> list[str]:
        """What stands apart in every table: what a method should be seen against."""
        return [c for c in self.results.configurations if c in BOUND_NOTES]

    @property
    def methods(self) -> list[str]:
        return [c for c in self.results.configurations if c not in BOUND_NOTES]

    @property
    def baselines(self) -> list[str]:
        """What others may be compared with, the likeliest first."""
        plain = [c for c in self.bounds if c == "plain"]
        return [*plain, *self.methods[:BASELINES], *(c for c in self.bounds if c not in plain)]


def write_report(path: Path, title: str, benchmark: Benchmark, results: Results, roots: Mapping[str, Path],
                 facts: Mapping[str, str] | None = None) -> Path:
    """Write the page of some results.

    Args:
        roots: for each configuration, what the pictures of its lines are relative to.
        facts: what else a reader should know of the run, by name.
    """
    shown = [case for case in benchmark.cases if any(case.name in results.by_case[c] for c in results.configurations)]
    run = Run(benchmark, results, roots, len(shown) * (len(results.configurations) + 2) <= LOSSLESS)
    body = [_head(title, facts or {}, run, len(shown)), _charts(run), _tables(run), _comparisons(run), _legend(run),
            _controls(run), '<div id="cases">', *(_strip(case, run) for case in shown), "</div>"]
    own = Path(__file__).parent
    write_text(path, page(title, "\n".join(body), (own / "report.css").read_text(), (own / "report.js").read_text(),
                          _data(run, shown)))
    return path


def _head(title: str, facts: Mapping[str, str], run: Run, cases: int) -> str:
    failed = sum(len(run.results.failed(c)) for c in run.results.configurations)
    lead = f"{cases} {'case' if cases == 1 else 'cases'}, {_counted(run)}"
    bad = (f' <strong class="failed">{failed} of {len(run.results.lines)} results failed.</strong>' if failed else "")
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (f'<header><h1>{escape(title)}</h1><p class="lead">{lead}.{bad}</p><details><summary>About this run'
            f"</summary><dl>{items}</dl></details>"
            '<nav><a href="#figures">Figures</a> <a href="#pairs">Case by case</a> <a href="#legend">Legend</a> '
            '<a href="#pictures">Pictures</a></nav></header>')


def _counted(run: Run) -> str:
    names = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((len(run.methods), "method"),
                                                                 (len(run.bounds), "bound")) if n]
    return " and ".join(names)


# ---- charts


def _charts(run: Run) -> str:
    """The first figures to see: for each a row of intervals, the best method on top and the bounds below."""
    by_key = {m.key: m for m in run.results.metrics}
    chosen = [by_key[key] for key in HEADLINES if key in by_key][:SHOWN_FIRST]
    return f'<div class="charts">{"".join(_chart(m, run) for m in chosen)}</div>'


def _chart(m: Metric, run: Run) -> str:
    means = {c: found for c in run.results.configurations if (found := run.results.mean(c, m.key))}
    sign = -1 if m.higher_is_better else 1
    methods = sorted((c for c in run.methods if c in means), key=lambda c: sign * means[c].mean)
    bounds = [c for c in run.bounds if c in means]
    rows = [*methods[:ROWS], *bounds]
    # The source outside the edit is perfect: on its scale no two methods could be told apart.
    scaled = [means[c] for c in rows if c != "source"] or list(means.values())
    low, high = min(v.low for v in scaled), max(v.high for v in scaled)
    span = high - low or 1.0
    best = _best(run, m, None)

    def row(c: str) -> str:
        v = means[c]
        place = [min(max(100 * (x - low) / span, 0), 100) for x in (v.low, v.mean, v.high)]
        kind = "bound" if c in bounds else "best" if c in best else ""
        kind += " beyond" if not low <= v.mean <= high else ""
        return (f'<li class="{kind}"><span class="name">{named(c)}</span>'
                f'<span class="track" title="{v.text(m)}">'
                f'<i class="range" style="left:{place[0]:.1f}%;width:{place[2] - place[0]:.1f}%"></i>'
                f'<i class="dot" style="left:{place[1]:.1f}%"></i></span>'
                f'<span class="value">{number(v.mean, m)}</span></li>')

    ends = "".join(f"<i>{number(x, m)}</i>" for x in (low, (low + high) / 2, high))
    axis = f'<p class="axis"><span></span><span class="ends">{ends}</span></p>'
    more = f"<p>and {len(methods) - ROWS} more below</p>" if len(methods) > ROWS else ""
    e = entry(m)
    return (f'<figure class="chart"><figcaption>{escape(e.group)}: {escape(e.head)} <small>{_better(m)}</small>'
            f'</figcaption><ol>{"".join(row(c) for c in rows)}</ol>{axis}{more}</figure>')


# ---- tables


def _tables(run: Run) -> str:
    parts = ['<h2 id="figures">Figures</h2><p>Means over the cases, with 95 % bootstrap intervals below them; the best '
             'method of a column is marked. A click on a column sorts by it; a table wider than the window scrolls '
             'sideways.</p><p class="script"><label>Kind of edit '
             f'<select id="kind-table">{_kinds(run.results)}</select></label></p>']
    width = len(run.results.metrics) + 2
    apart = f'<tr class="apart"><th colspan="{width}">Bounds: what to see the methods against</th></tr>'
    for kind in (None, *run.results.kinds):
        body = ""
        for group, names in (("", run.methods), ("bounds", run.bounds)):
            if names:
                rows = "".join(_row(run, c, kind) for c in names)
                body += f'<tbody class="{group}">{apart if group else ""}{rows}</tbody>'
        name = "all" if kind is None else str(kind)
        hidden = "" if kind is None else " hidden"
        parts.append(f'<div class="wide by-kind" data-kind="{name}"{hidden}><table><caption>'
                     f'{escape(kind_name(run.results, kind))}</caption>{_heads(run.results.metrics, "failed")}{body}'
                     "</table></div>")
    return "\n".join(parts)


def _heads(metrics: Sequence[Metric], *last: str) -> str:
    """Two rows: groups of figures, and the figures."""
    groups = "".join(f'<th colspan="{len(list(members))}" scope="colgroup" title="{escape(GROUPS.get(group, ""))}">'
                     f"{escape(group)}</th>" for group, members in groupby(metrics, key=lambda m: entry(m).group))
    heads = "".join(f'<th scope="col" title="{escape(_says(m))}" data-up="{int(m.higher_is_better)}">'
                    f"{escape(entry(m).head)}&nbsp;{_arrow(m)}</th>" for m in metrics)
    after = "".join(f'<th scope="col" title="cases without a result" data-up="0">{name}</th>' for name in last)
    return (f"<thead><tr><td></td>{groups}{'<td></td>' * len(last)}</tr>"
            f'<tr><th scope="col"></th>{heads}{after}</tr></thead>')


def _row(run: Run, c: str, kind: int | None) -> str:
    cells = []
    for m in run.results.metrics:
        found = run.results.mean(c, m.key, kind)
        best = ' class="best"' if c in _best(run, m, kind) else ""
        cells.append("<td></td>" if found is None else f'<td{best} data-value="{found.mean:.9g}">'
                     f"{number(found.mean, m)}<small>{ranged(found, m)}</small></td>")
    failed = len(run.results.failed(c, kind))
    note = f"<small>{BOUND_NOTES[c]}</small>" if c in BOUND_NOTES else ""
    return (f'<tr><th scope="row">{named(c)}{note}</th>{"".join(cells)}<td data-value="{failed}">{failed or ""}</td>'
            "</tr>")


def _best(run: Run, m: Metric, kind: int | None) -> list[str]:
    """The methods with the best mean of several; bounds do not compete."""
    means = {c: found.mean for c in run.methods if (found := run.results.mean(c, m.key, kind))}
    if len(means) < 2:
        return []
    top = (max if m.higher_is_better else min)(means.values())
    return [c for c, mean in means.items() if mean == top]


def _comparisons(run: Run) -> str:
    if len(run.results.configurations) < 2:
        return ""
    options = "".join(f"<option>{escape(c)}</option>" for c in run.baselines)
    parts = ['<h2 id="pairs">Case by case</h2><p>Each configuration minus one of them, over the cases that both have: '
             "the mean difference with its 95 % interval, and the share of cases in which it is the better of the two, "
             'equal ones by half. <em class="better">Better</em> and <em class="worse">worse</em> are marked where the '
             'interval leaves out 0.</p><p class="script"><label>Compared with <select id="against">'
             f"{options}</select></label></p>"]
    for i, reference in enumerate(run.baselines):
        rows = "".join(f'<tr><th scope="row">{named(c)}</th>'
                       f'{"".join(_difference(run.results, c, reference, m) for m in run.results.metrics)}</tr>'
                       for c in (*run.methods, *run.bounds) if c != reference)
        parts.append(f'<div class="wide against" data-index="{i}"{" hidden" if i else ""}><table><caption>minus '
                     f"{escape(reference)}</caption>{_heads(run.results.metrics)}<tbody>{rows}</tbody></table></div>")
    return "\n".join(parts)


def _difference(results: Results, a: str, b: str, m: Metric) -> str:
    p = results.compare(a, b, m)
    if p is None:
        return "<td></td>"
    d, sure = p.difference, ""
    if d.low > 0 or d.high < 0:
        sure = "better" if (d.mean > 0) == m.higher_is_better else "worse"
    return (f'<td class="{sure}" data-value="{d.mean:.9g}">{number(d.mean, m, "+")}<small>{ranged(d, m, "+")}</small>'
            f'<small class="wins" style="--wins:{100 * p.wins:.0f}%">better in {p.wins:.0%}</small></td>')


def _legend(run: Run) -> str:
    parts = []
    for group, members in groupby(run.results.metrics, key=lambda m: entry(m).group):
        items = "".join(f"<dt>{escape(entry(m).head)}</dt><dd>{escape(entry(m).says)}; {_better(m)}</dd>"
                        for m in members)
        parts.append(f"<h3>{escape(group)}</h3><p>{escape(GROUPS.get(group, ''))}</p><dl>{items}</dl>")
    return ('<details id="legend"><summary>Legend: what the figures mean</summary>' + "".join(parts) + "</details>")


def named(configuration: str) -> str:
    """A configuration's name, with its settings smaller and below."""
    name, _, settings = escape(configuration).partition(":")
    return name + (f" <small>{settings.replace(',', ', ')}</small>" if settings else "")


def number(value: float, m: Metric, sign: str = "") -> str:
    """A value in the units of the tables."""
    return f"{value * m.scale:{sign}.{m.decimals}f}"


def ranged(found: Interval, m: Metric, sign: str = "") -> str:
    """An interval in them."""
    return f"{number(found.low, m, sign)} to {number(found.high, m, sign)}"


def _arrow(m: Metric) -> str:
    return "&uarr;" if m.higher_is_better else "&darr;"


def _better(m: Metric) -> str:
    return "more is better" if m.higher_is_better else "less is better"


def _says(m: Metric) -> str:
    return f"{entry(m).group}: {entry(m).says}; {_better(m)}"


def kind_name(results: Results, kind: int | None) -> str:
    """What a kind of edit is called; None is all of them."""
    return "all kinds" if kind is None else results.names[kind]


def _kinds(results: Results) -> str:
    return '<option value="all">all kinds</option>' + "".join(
        f'<option value="{k}">{escape(kind_name(results, k))}</option>' for k in results.kinds)


# ---- strips


def _controls(run: Run) -> str:
    metrics = "".join(f'<option value="{m.key}">{escape(entry(m).group)}: {escape(entry(m).head)}</option>'
                      for m in run.results.metrics)
    chosen = next(iter(run.methods), None) or next((c for c in run.bounds if c == "plain"), None)
    configurations = "".join(
        f'<option value="{i}"{" selected" if c == chosen else ""}>{escape(c)}</option>'
        for i, c in enumerate(run.results.configurations))
    return ('<h2 id="pictures">Pictures</h2><div class="script controls">'
            '<label>Order <select id="order"><option value="worst">worst first</option><option value="best">best first'
            '</option><option value="own">the benchmark\'s own</option></select></label> '
            f'<label>by <select id="metric">{metrics}</select></label> '
            f'<label>of <select id="configuration">{configurations}</select></label> '
            f'<label>kind <select id="kind">{_kinds(run.results)}</select></label> '
            '<span id="count"></span></div><p class="script">Below each result is its figure. A click enlarges a row.'
            "</p>")


def _strip(case: Case, run: Run) -> str:
    figures = []
    for name, get in (("source", run.benchmark.source), ("true edit", run.benchmark.truth)):
        try:
            image = get(case)
        except SageError as error:
            figures.append(_figure(name, f"<p>{escape(str(error))}</p>", "given"))
            continue
        if image is not None:
            figures.append(_figure(name, embedded(image, name, run.lossless), "given"))
    for i, c in enumerate(run.results.configurations):
        line = run.results.by_case[c].get(case.name)
        if line is not None and c != "source":
            value = f'<span class="score" data-configuration="{i}"></span>'
            figures.append(_figure(c, _result(line, c, run), "", value))
    kind = kind_name(run.results, case.kind)
    return (f'<section data-case="{escape(case.name)}" data-kind="{case.kind}"><h3>{escape(kind)} '
            f'<small>{escape(case.name)}</small></h3><p>{marked(case.source_marked)}</p>'
            f"<p>&rarr; {marked(case.target_marked)}</p>"
            f'<div class="strip">{"".join(figures)}</div></section>')


def _figure(name: str, inner: str, kind: str, after: str = "") -> str:
    return f'<figure class="{kind}">{inner}<figcaption>{after}{named(name)}</figcaption></figure>'


def _result(line: Line, name: str, run: Run) -> str:
    if line.status != DONE:
        return f'<p class="failed">failed: {escape(line.reason)}</p>'
    try:
        return embedded(pictures.open_picture(inside(run.roots[name], line.picture)), name, run.lossless)
    except SageError as error:
        return f'<p class="failed">{escape(str(error))}</p>'


def embedded(image: Image.Image, name: str, lossless: bool) -> str:
    """A picture as an element, reduced if it is large."""
    options: dict[str, Any] = {"lossless": True}
    if max(image.size) > EMBEDDED:
        image.thumbnail((EMBEDDED, EMBEDDED), Image.Resampling.LANCZOS)
        lossless = False
    if not lossless:
        options = {"quality": 85}
    return f'<img alt="{escape(name)}" src="{data_uri(image, **options)}">'


def data_uri(image: Image.Image, **options: Any) -> str:
    """A picture as an address that holds it.

    Args:
        options: of Pillow's WebP writer.
    """
    data = io.BytesIO()
    image.save(data, "WEBP", method=4, **options)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def marked(text: str) -> str:
    """A prompt, as HTML, with what stands in brackets marked."""
    return re.sub(r"\[(.*?)\]", r"<mark>\1</mark>", escape(text))


def _data(run: Run, cases: Iterable[Case]) -> str:
    """The scores for the script: a row of configurations, each a row of figures, for every case."""
    results = run.results

    def row(case: Case, c: str) -> list[float | None]:
        line = results.by_case[c].get(case.name)
        return [line.scores.get(m.key) if line else None for m in results.metrics]

    metrics = [{"key": m.key, "scale": m.scale, "decimals": m.decimals, "up": m.higher_is_better}
               for m in METRICS if m in results.metrics]
    scores = {case.name: [row(case, c) for c in results.configurations] for case in cases}
    return json.dumps({"metrics": metrics, "scores": scores})
