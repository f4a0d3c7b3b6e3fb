"""What `--experiment rivals` writes for people: a page, a table in Markdown, and one contact sheet."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.bench.cases import Case
from sage.bench.files import inside, write_text
from sage.bench.frontier import Curve, Frontier
from sage.bench.legend import entry
from sage.bench.metrics import METRICS, Metric
from sage.bench.report import BOUND_NOTES, data_uri, embedded, kind_name, marked, named, number, ranged
from sage.bench.rivals import COSTS, PLAIN, RECOMMENDED, TITLE, Experiment
from sage.bench.scoring import DONE, Line
from sage.bench.search import Trial, best
from sage.bench.tables import Results
from sage.display.html import page
from sage.errors import SageError

PAGE, RECORD, SHEET, AUTO = "rivals.html", "rivals.md", "rivals.jpg", "auto.json"
COLUMNS = ("asked", "kept", "melted", "inside_psnr", "inside_ssim", "inside_features", "outside_psnr", "outside_ssim",
           "outside_features", "structure", "background_psnr", "background_lpips", "background_ssim", "clip_whole",
           "clip_edited")
WITHOUT = ("structure", "background_psnr", "background_lpips", "background_ssim")  # where there is a true edit
COMPARED = ("outside_psnr", "inside_psnr", "asked", "kept", "melted", "structure", "background_psnr", "clip_edited")
AXES = (("outside_psnr", "inside_psnr"), ("kept", "inside_psnr"), ("background_psnr", "clip_edited"),
        ("background_psnr", "background_ssim"))  # kept and changed: the first of which there is everything
NAMES = {"short": "short prompts", "full": "full prompts", "": "all prompts"}
SHEET_SIDE = 96
BY_KEY = {m.key: m for m in (*METRICS, *COSTS)}


def write_all(experiment: Experiment, facts: Mapping[str, str]) -> list[Path]:
    """Write the page, the table and the contact sheet into the experiment's folder.

    Args:
        facts: when, where and how it was made, by name.
    """
    out = experiment.place.out
    sheet = contact_sheet(experiment)
    pictures.save_picture(sheet, out / SHEET)
    write_text(out / RECORD, markdown(experiment, facts))
    own = Path(__file__).parent
    style = "".join((own / name).read_text(encoding="utf-8") for name in ("report.css", "rivals.css"))
    body = [_head(experiment, facts), _tables(experiment), _frontiers(experiment), _differences(experiment),
            _sheet(sheet), _melted(experiment), _searches(experiment)]
    write_text(out / PAGE, page(TITLE, "\n".join(body), style, "", "{}"))
    return [out / PAGE, out / RECORD, out / SHEET]


# ---- what is shown


def columns(results: Results) -> list[Metric]:
    """The figures of the tables, costs last."""
    with_truth = any(m.key == "inside_psnr" for m in results.metrics)
    shown = [m for m in results.metrics if m.key in COLUMNS and not (with_truth and m.key in WITHOUT)]
    costs = [m for m in COSTS if any(line.scores.get(m.key) is not None for line in results.lines)]
    return [*sorted(shown, key=lambda m: COLUMNS.index(m.key)), *costs]


def parts(experiment: Experiment) -> list[tuple[str, Results]]:
    """What the tables are made of: each wording of the prompts on its own, and all."""
    ways = experiment.wordings
    return [*((NAMES[way], experiment.results(way)) for way in reversed(ways) if len(ways) > 1),
            (NAMES[""] if ways else "all cases", experiment.results())]


def axes(results: Results, kind: int | None = None) -> tuple[str, str] | None:
    """What was kept and what was changed, of a kind of edit."""
    def has(key: str) -> bool:
        return results.mean(PLAIN, key, kind) is not None

    return next(((kept, changed) for kept, changed in AXES if has(kept) and has(changed)), None)


def frontier(experiment: Experiment, results: Results, title: str, kind: int | None = None) -> Frontier | None:
    """The picture of a kind of edit; None where nothing was measured of it."""
    found = axes(results, kind)
    if found is None:
        return None

    def place(label: str) -> tuple[float, float] | None:
        means = [results.mean(label, key, kind) if label in results.by_case else None for key in found]
        return None if None in means else tuple(m.mean * BY_KEY[key].scale  # type: ignore[return-value]
                                                for m, key in zip(means, found, strict=True))

    curves = [Curve(name, [at], [name], mark="bound") for name, label in
              (("plain, w = 1", PLAIN), ("sage as recommended", RECOMMENDED)) if (at := place(label))]
    for rival, chosen in experiment.chosen.items():
        labels = list(chosen.curve) or [chosen.label]
        known = [(label, at) for label in labels if (at := place(label))]
        if known:
            names = [f"{rival}, {chosen.strength} {chosen.curve.get(label, '')}" for label, _ in known]
            here = next((i for i, (label, _) in enumerate(known) if label == chosen.label), 0)
            curves.append(Curve(rival, [at for _, at in known], names, here))
    return Frontier(title, BY_KEY[found[0]].title, BY_KEY[found[1]].title, curves)


# ---- Markdown


def markdown(experiment: Experiment, facts: Mapping[str, str]) -> str:
    """The table to keep: what was measured, when, where and how."""
    text = [f"# {TITLE}\n", "".join(f"- {name}: {' '.join(value.split())}\n" for name, value in facts.items()),
            f"{protocol(experiment)}\n", f"![ten edits by every method]({SHEET})\n",
            "Means over the cases with 95 % bootstrap intervals; network calls count one edit alone.\n"]
    for name, results in parts(experiment):
        text += [f"## {name[0].upper()}{name[1:]}\n", _markdown_table(experiment, results)]
    results = experiment.results()
    text += [f"## Minus {experiment.ours}, paired\n",
             "Difference with its 95 % interval, and the share of cases won.\n",
             _markdown_differences(experiment, results), "## What the search chose\n", _markdown_chosen(experiment),
             f"{verdict(experiment)}\n"]
    return "\n".join(text)


def _markdown_table(experiment: Experiment, results: Results) -> str:
    shown = columns(results)
    rows = [["", *(m.title for m in shown)]]
    rows += [[label, *("" if (v := results.mean(label, m.key)) is None else
                       (number(v.mean, m) if m in COSTS else v.text(m)) for m in shown)]
             for label in rows_of(experiment, results)]
    return _rows(rows)


def rows_of(experiment: Experiment, results: Results) -> list[str]:
    """What rivals are held against, then each of them as chosen and as published."""
    rivals = (label for c in experiment.chosen.values() for label in (c.label, c.as_published))
    wanted = [*experiment.place.reference_names, *rivals]
    return [label for label in wanted if label in results.by_case]


def _markdown_differences(experiment: Experiment, results: Results) -> str:
    shown, ours = compared(results), experiment.ours
    rows = [["", *(m.title for m in shown)]]
    for label in rows_of(experiment, results):
        if label in (ours, "source", "autoencoder"):
            continue
        found = [results.compare(label, ours, m) for m in shown]
        rows.append([label, *("" if c is None else f"{c.difference.text(m, signed=True)}, {c.wins:.0%}"
                              for c, m in zip(found, shown, strict=True))])
    return _rows(rows)


def compared(results: Results) -> list[Metric]:
    """The figures in which rivals are compared."""
    with_truth = any(m.key == "inside_psnr" for m in results.metrics)
    return [BY_KEY[key] for key in COMPARED if BY_KEY[key] in results.metrics
            and not (with_truth and key in ("structure", "background_psnr"))]


def _markdown_chosen(experiment: Experiment) -> str:
    rows = [["", "settings", "score on the tuning cases", "of the published numbers"]]
    rows += [[name, shown(c.values), _score(best(c.trials).score), _score(c.trials[0].score)]
             for name, c in experiment.chosen.items()]
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def shown(values: Mapping[str, Any]) -> str:
    """Settings for people."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in values.items())


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def protocol(experiment: Experiment) -> str:
    """How the settings were found, in a few sentences."""
    p, place = experiment.place.protocol, experiment.place
    aim = " + ".join(f"{weight:.2g} {BY_KEY[key].title}" for key, weight in p.aim.items())
    left = "".join(f" {name} is left out: {why}." for name, why in experiment.unfit.items())
    return (f"Every method works with {p.steps} steps and has had {p.trials} trials on the same "
            f"{len(place.tuning.cases)} tuning cases, the first of them its published numbers; the search made {aim} "
            f"large. What is shown are {len(place.test.cases)} other cases. Rows called published are the settings of "
            f"the original code but for the number of steps.{left}")


def verdict(experiment: Experiment) -> str:
    """What `--method auto` is to take, and why."""
    found = experiment.ahead()
    calls = f"{experiment.cost_of(RECOMMENDED):.0f} network calls"
    if found is None:
        return (f"`--method auto` stays with sage: at no more than the {calls} of its recommended settings (a way back "
                "through the network counted as two) no other method is ahead of them with an interval that leaves out "
                "zero.")
    chosen, c = found
    own, d = experiment.cost_of(chosen.label), c.difference
    return (f"`--method auto` can take {chosen.rival} ({shown(chosen.values)}): at {own:.0f} network calls against "
            f"{calls} it is ahead of sage's recommended settings by {d.mean:.2f} [{d.low:.2f}, {d.high:.2f}] in what "
            f"the search makes large, in {c.wins:.0%} of the cases. {AUTO}, beside this, is for the model's folder.")


# ---- the page


def _head(experiment: Experiment, facts: Mapping[str, str]) -> str:
    failed = [line for line in experiment.lines if line.status != DONE]
    bad = f' <strong class="failed">{len(failed)} results failed.</strong>' if failed else ""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (f"<header><h1>{escape(TITLE)}</h1><p class='lead'>{len(experiment.chosen)} rivals, "
            f"{len(experiment.place.test.cases)} cases.{bad}</p><p>{escape(protocol(experiment))}</p>"
            f"<p>{escape(verdict(experiment)).replace('`', '')}</p>"
            f"<details><summary>About this run</summary><dl>{items}</dl></details>"
            '<nav><a href="#table">Table</a><a href="#frontiers">Frontiers</a><a href="#pairs">Differences</a>'
            '<a href="#sheet">Ten edits</a><a href="#melted">Melted</a><a href="#search">The search</a></nav></header>')


def _tables(experiment: Experiment) -> str:
    out = ['<h2 id="table">The table</h2><p>Means, with 95 % bootstrap intervals below them; the best rival of a '
           "column is marked.</p>"]
    for name, results in parts(experiment):
        shown_columns = columns(results)
        labels = rows_of(experiment, results)
        references = experiment.place.reference_names
        rivals = [label for label in labels if label not in references]
        body = "".join(_row(results, label, shown_columns, rivals) for label in rivals)
        bounds = "".join(_row(results, label, shown_columns, rivals) for label in labels if label in references)
        out.append(f'<div class="wide"><table><caption>{escape(name)}</caption>{_heads(shown_columns)}'
                   f'<tbody>{body}</tbody><tbody class="bounds">{bounds}</tbody></table></div>')
    return "\n".join(out)


def _heads(metrics: Iterable[Metric]) -> str:
    cells = "".join(f'<th scope="col" title="{escape(entry(m).says)}">{escape(_head_of(m))}&nbsp;'
                    f'{"&uarr;" if m.higher_is_better else "&darr;"}</th>' for m in metrics)
    return f'<thead><tr><td></td>{cells}</tr></thead>'


def _head_of(m: Metric) -> str:
    e = entry(m)
    place = {"Inside the edit": "inside ", "Outside the edit": "outside "}.get(e.group, "")
    return m.title if e.group == "Others" else f"{place}{e.head}"


def _row(results: Results, label: str, metrics: Sequence[Metric], rivals: Sequence[str]) -> str:
    cells = []
    for m in metrics:
        found = results.mean(label, m.key)
        means = {other: v.mean for other in rivals if (v := results.mean(other, m.key))}
        top = (max if m.higher_is_better else min)(means.values(), default=None)
        best_one = ' class="best"' if m not in COSTS and label in rivals and means.get(label) == top else ""
        interval = "" if found is None or m in COSTS else f"<small>{ranged(found, m)}</small>"
        cells.append("<td></td>" if found is None else f"<td{best_one}>{number(found.mean, m)}{interval}</td>")
    note = f"<small>{BOUND_NOTES[label]}</small>" if label in BOUND_NOTES else ""
    return f'<tr><th scope="row">{named(label)}{note}</th>{"".join(cells)}</tr>'


def _frontiers(experiment: Experiment) -> str:
    everything = experiment.results()
    wanted: list[tuple[str, Results, int | None]] = [
        *((f"all kinds, {name}", results, None) for name, results in parts(experiment)),
        *((kind_name(everything, kind), everything, kind) for kind in everything.kinds)]
    drawn = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{found.svg()}</figure>"
                    for title, results, kind in wanted
                    if (found := frontier(experiment, results, title, kind)))
    return ('<h2 id="frontiers">Frontiers</h2><p>Each method along its own strength, from the weakest on; up and to '
            "the right is better. The large dot is what the search chose. In colour are those that at some strength no "
            "other beats in both; pointing at a dot tells which it is.</p>"
            f'<div class="frontiers">{drawn}</div>')


def _differences(experiment: Experiment) -> str:
    results, ours = experiment.results(), experiment.ours
    metrics = compared(results)
    rows = []
    for label in rows_of(experiment, results):
        if label not in (ours, "source", "autoencoder"):
            cells = "".join(_difference(results, label, ours, m) for m in metrics)
            rows.append(f'<tr><th scope="row">{named(label)}</th>{cells}</tr>')
    return (f'<h2 id="pairs">Minus {escape(ours)}</h2><p>Each row minus {escape(ours)} as its search left it, over the '
            'same cases: the mean difference, its 95 % interval, and the share of cases won. <em class="better">Better'
            '</em> and <em class="worse">worse</em> are marked where the interval leaves out 0.</p>'
            '<div class="wide"><table>'
            f'{_heads(metrics)}<tbody>{"".join(rows)}</tbody></table></div>')


def _difference(results: Results, a: str, b: str, m: Metric) -> str:
    c = results.compare(a, b, m)
    if c is None:
        return "<td></td>"
    d = c.difference
    sure = "" if d.low <= 0 <= d.high else "better" if (d.mean > 0) == m.higher_is_better else "worse"
    return (f'<td class="{sure}">{number(d.mean, m, "+")}<small>{ranged(d, m, "+")}</small>'
            f"<small>better in {c.wins:.0%}</small></td>")


def _sheet(sheet: Image.Image) -> str:
    return ('<h2 id="sheet">Ten edits by every method</h2><p>One of each kind; a row is a method at its chosen '
            f'settings.</p><img class="sheet" alt="contact sheet" src="{data_uri(sheet, quality=80)}">')


def _melted(experiment: Experiment) -> str:
    """Of each rival the thing that is furthest from any true one of its form."""
    by_name = {case.name: case for case in experiment.place.test.cases}
    figures = []
    for rival, chosen in experiment.chosen.items():
        lines = [line for line in experiment.lines if line.configuration == chosen.label
                 and line.status == DONE and line.scores.get("melted") is not None]
        if lines:
            worst = max(lines, key=lambda line: line.scores["melted"] or 0)
            figures.append((worst.scores["melted"] or 0, rival, worst, by_name[worst.case]))
    if not figures:
        return ""
    cells = "".join(f"<figure>{_picture(experiment, line, rival)}<figcaption><b>{escape(rival)}</b> "
                    f'<span class="score">{value * BY_KEY["melted"].scale:.0f}</span><br>'
                    f'<span class="quiet">{marked(case.target_marked)}</span></figcaption></figure>'
                    for value, rival, line, case in sorted(figures, key=lambda found: -found[0]))
    return ('<h2 id="melted">What has melted most</h2><p>Of each method the result whose edited thing is furthest from '
            f'every true thing of that form, times 1000; the worst first.</p><div class="strip">{cells}</div>')


def _given_up(trial: Trial, first: Trial) -> str:
    return f"given up after {len(trial.each)} cases" if 0 < len(trial.each) < len(first.each) else ""


def _searches(experiment: Experiment) -> str:
    out = ['<h2 id="search">The search</h2><p>Every trial: its settings, and the mean score of the tuning cases. The '
           "first is the published numbers; the one that was chosen is marked. One that was far behind on the first "
           "cases was given up, and is said to be as far behind on all.</p>"]
    for name, chosen in experiment.chosen.items():
        won = best(chosen.trials)
        rows = "".join(f'<tr><th scope="row">{i}</th><td{" class=best" if trial is won else ""}>'
                       f'{_score(trial.score) or "not possible"}</td>'
                       f'<td>{escape(shown(trial.values)) or "nothing to search"}</td>'
                       f'<td class="quiet">{_given_up(trial, chosen.trials[0])}</td>'
                       f'<td class="fails">{f"{trial.failed} failed" if trial.failed else ""}</td></tr>'
                       for i, trial in enumerate(chosen.trials, start=1))
        strength = f"; its strength is {chosen.strength}" if chosen.strength else ""
        out.append(f'<details><summary>{escape(name)} <small>{escape(chosen.title)}{escape(strength)}: '
                   f'{escape(shown(chosen.values))}</small></summary><div class="wide trials"><table><tbody>{rows}'
                   "</tbody></table></div></details>")
    return "\n".join(out)


# ---- pictures


def contact_sheet(experiment: Experiment) -> Image.Image:
    """One case of each kind: the source, the true edit where it is known, and the results of every method."""
    cases = sampled(experiment)
    by_key = {(line.configuration, line.case): line for line in experiment.lines}
    side = SHEET_SIDE

    def cells(first: str, get: Any) -> list[tuple[str, Image.Image]]:
        return [(first if i == 0 else "", get(case) or Image.new("RGB", (side, side), "white"))
                for i, case in enumerate(cases)]

    rows = [[(_asked(case), experiment.place.test.source(case)) for case in cases]]
    if all(case.truth for case in cases):
        rows.append(cells("true edit", experiment.place.test.truth))
    others = [c.name for c in experiment.place.beside]
    for label in [RECOMMENDED, *others, *(c.label for c in experiment.chosen.values())]:
        name = "sage as recommended" if label == RECOMMENDED else label
        rows.append(cells(name, lambda case, label=label: _opened(experiment, by_key.get((label, case.name)))))
    return pictures.sheet(rows, side=side)


def sampled(experiment: Experiment) -> list[Case]:
    """One test case of each kind, the wordings in turn."""
    ways, found = experiment.wordings or [""], dict[int, list[Case]]()
    for case in experiment.place.test.cases:
        found.setdefault(case.kind, []).append(case)
    return [next((case for case in found[kind] if case.wording == ways[i % len(ways)]), found[kind][0])
            for i, kind in enumerate(sorted(found))]


def _asked(case: Case) -> str:
    """What an edit asks for, short enough for a picture's width."""
    words = case.instruction or f"{case.source} to {case.target}"
    return words.replace("what is described by ", "").replace("change ", "").replace("'", "")


def _opened(experiment: Experiment, line: Line | None) -> Image.Image | None:
    if line is None or line.status != DONE:
        return None
    try:
        return pictures.open_picture(inside(experiment.roots[line.configuration], line.picture))
    except SageError:
        return None


def _picture(experiment: Experiment, line: Line, name: str) -> str:
    image = _opened(experiment, line)
    return "" if image is None else embedded(image, name, lossless=True)
