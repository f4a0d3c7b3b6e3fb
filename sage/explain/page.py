"""What an explanation writes: PNG files, and one page that holds everything and loads nothing from anywhere."""

import base64
import io
import json
from html import escape
from pathlib import Path

from PIL import Image

from sage import pictures
from sage.display.html import page
from sage.editing import EditResult
from sage.errors import PictureError
from sage.explain import PAGE, heat
from sage.explain.watching import PROMPTS, Progress, Rebuilt, Watched, WordMap
from sage.files import written_whole
from sage.method import method_of

LOSSLESS = 128  # pixels: larger predictions are embedded in the page with some loss
ROW, SMALL = 10, 128  # steps side by side in a PNG, and their size in pixels
ORDINALS = {0: "first", 1: "second", 2: "third"}
NONE = '<div class="none">none in this edit</div>'


def write(seen: Watched, folder: Path, result: EditResult, rebuilt: Rebuilt, progress: Progress | None = None) -> Path:
    """`Explanation.write`."""
    autoencoder, back = rebuilt
    if len(result.trajectory.latents) == 1:  # nothing was carried to noise
        back = None
    given = [("input", seen.picture), ("autoencoder alone", autoencoder), ("inversion and back", back),
             ("edit", result.image)]
    files = {"predictions.png": seen.strip(progress), "mask.png": _over_steps(seen, "mask"),
             "difference.png": _over_steps(seen, "difference"), "gradient.png": _over_steps(seen, "gradient"),
             "words-source.png": _words_sheet(seen.word_maps("source")),
             "words-target.png": _words_sheet(seen.word_maps("target")), "curves.png": _curves(seen),
             "reconstructions.png": pictures.sheet([[cell for cell in given if cell[1] is not None]])}
    page = _page(seen, result, autoencoder, back)
    for name, picture in files.items():
        if picture is not None:
            pictures.save_picture(picture, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier explanation, and not of this one
    try:
        with written_whole(folder / PAGE) as out:
            out.write(page.encode())
    except OSError as error:
        raise PictureError(f"{folder / PAGE} cannot be written ({error.strerror or error})") from error
    return folder / PAGE


# ---- PNG files


def _over_steps(seen: Watched, quantity: str) -> Image.Image | None:
    """A picture a step, and the scale where there is one; None if there is nothing at any step."""
    cells = [(f"step {i + 1}", found) for i in seen.steps if (found := getattr(seen, quantity)(i)) is not None]
    if not cells:
        return None
    if quantity != "mask":
        cells.append(("scale", heat.bar(seen.scale(quantity), SMALL)))
    return pictures.sheet([cells[i:i + ROW] for i in range(0, len(cells), ROW)], side=SMALL)


def _words_sheet(maps: list[WordMap]) -> Image.Image | None:
    if not maps:
        return None
    cells = [(f"{m.word} (to {m.share:.2%})", m.picture) for m in maps]
    return pictures.sheet([cells[i:i + ROW] for i in range(0, len(cells), ROW)], side=SMALL)


def _curves(seen: Watched) -> Image.Image | None:
    drawn = [chart.picture() for chart in seen.charts() if not chart.empty]
    if not drawn:
        return None
    image = Image.new("RGB", (drawn[0].width, sum(d.height for d in drawn)), "white")
    for i, d in enumerate(drawn):
        image.paste(d, (0, i * d.height))
    return image


# ---- the page


def _page(seen: Watched, result: EditResult, autoencoder: Image.Image, back: Image.Image | None) -> str:
    own = Path(__file__).parent
    body = [_head(seen, result), _given(seen, result, autoencoder, back), _through(seen), _charts(seen),
            _strip(seen), _words(seen), _settings(result)]
    return page(f"{seen.prompts['target'].text} - inside the edit", "\n".join(body),
                (own / "page.css").read_text(encoding="utf-8") + SCALE, (own / "page.js").read_text(encoding="utf-8"),
                _data(seen))


def _head(seen: Watched, result: EditResult) -> str:
    lines = "".join(f'<dt>{name}</dt><dd>{_prompt(seen, name)}</dd>' for name in ("source", "target"))
    notes = [f"Note: {note}." for note in result.notes]
    if seen.attempts > 1:
        notes.append(f"The edit was made {seen.attempts} times; what follows is of the one that was kept, made "
                     f"{ORDINALS.get(result.attempt, f'as number {result.attempt + 1}')}.")
    return ('<header><p class="over">Inside the edit</p>'
            f'<dl class="prompts">{lines}</dl>{"".join(f"<p class=note>{escape(n)}</p>" for n in notes)}'
            '<nav><a href="#steps">Step by step</a><a href="#curves">Curves</a><a href="#strip">Predictions</a>'
            '<a href="#words">Words</a><a href="#settings">Settings</a></nav></header>')


def _prompt(seen: Watched, name: str) -> str:
    """A prompt whose edited words are marked."""
    return " ".join(f"<mark>{escape(word)}</mark>" if edited else escape(word) for word, _, edited in seen.words(name))


def _given(seen: Watched, result: EditResult, autoencoder: Image.Image, back: Image.Image | None) -> str:
    shown = [("input", "what was given", seen.picture), ("edit", "what came out", result.image),
             ("autoencoder alone", "encoded and decoded: the best that any edit can keep", autoencoder),
             ("inversion and back", "to noise and back under the source prompt, without any guidance", back)]
    return f'<section class="row">{"".join(_figure(*one) for one in shown)}</section>'


def _through(seen: Watched) -> str:
    """The slider, and what it moves."""
    if not seen.steps:
        return f'<h2 id="steps">Step by step</h2>{NONE}'
    at = len(seen.steps) // 2  # where there is most to see
    p = seen.predictions(seen.steps[at]) if seen.decoded else None
    few = "" if len(seen.decoded) in (0, len(seen.steps)) else (
        f" Decoding takes time: predictions are shown at {len(seen.decoded)} of the {len(seen.signal)} steps, the "
        "nearest one each time.")
    thin = "" if len(seen.steps) == len(seen.signal) else f" {len(seen.steps)} of {len(seen.signal)} steps are drawn."
    figures = [_figure(f"prediction, {name}", text, getattr(p, name, None), f"predicted-{name}") for name, text in (
        ("source", "the clean picture seen in the noise under the source prompt"),
        ("target", "the same under the target prompt"), ("guided", "what the step moves towards"))]
    for name, title, text in (("mask", "blending mask", "faded: held to the inversion, cannot change"),
                              ("difference", "guidance difference", "where the prompts disagree"),
                              ("gradient", "gradient", "what a gradient took out, to keep the unmentioned")):
        found = next((picture for i in (*seen.steps[at:], *seen.steps) if (picture := getattr(seen, name)(i))), None)
        scale = "" if name == "mask" or found is None else _scale(seen, name)
        figures.append(_figure(title, text, found, name, scale))
    return (f'<h2 id="steps">Step by step</h2><p>From noise to the picture: {len(seen.signal)} steps of the guided way '
            f"back.{few}{thin}</p>"
            f'<div class="controls"><button id="play" type="button">Play</button><input id="step" type="range" min="0" '
            f'max="{len(seen.steps) - 1}" value="{at}" aria-label="step">'
            f'<output id="now">step {seen.steps[at] + 1} of {len(seen.signal)}</output></div>'
            f'<section class="grid">{"".join(figures)}</section>')


def _scale(seen: Watched, quantity: str) -> str:
    top = heat.number(seen.scale(quantity))
    title = "root mean square over the channels, in units of the latents; one place in 200 is beyond the scale"
    return f'<span class="scale" title="{title}"><span>0</span><i></i><span>{top}</span></span>'


def _charts(seen: Watched) -> str:
    drawn = []
    for chart in seen.charts():
        inner = NONE if chart.empty else chart.svg()
        drawn.append(f'<figure class="chart"><figcaption><b>{chart.title}</b> <span>{chart.unit}</span></figcaption>'
                     f"{inner}</figure>")
    return f'<h2 id="curves">Over the steps</h2><section class="charts">{"".join(drawn)}</section>'


def _strip(seen: Watched) -> str:
    head = '<h2 id="strip">The predicted clean picture over the steps</h2>'
    if not seen.decoded:
        return head + NONE
    rows = []
    for name in seen.predicted:
        cells = "".join(f'<td><img class="predicted-{name}" data-step="{i}" alt="{name}, step {i + 1}"></td>'
                        for i in seen.decoded)
        rows.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{i + 1}</th>' for i in seen.decoded)
    return (f"{head}<p>A click on a picture goes to its step.</p>"
            f'<div class="wide"><table><thead><tr><th>step</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
            "</table></div>")


def _words(seen: Watched) -> str:
    parts = ['<h2 id="words">Words</h2><p>Where the picture looks at each word: cross-attention as it was applied, '
             f"mean over steps, heads and sites{_grid(seen)}, sum over a word's tokens. Each map has its own scale, "
             "from 0 to the share below it, the attention of the place that looks most. "
             '<span class="scale"><span>0</span><i></i><span>share</span></span></p>']
    for name in PROMPTS:
        cells = "".join(
            f'<figure{" class=edited" if m.edited else ""}>{_img(m.picture, m.word)}<figcaption>'
            f"<b>{escape(m.word)}</b> <span>{m.share:.2%}</span></figcaption></figure>" for m in seen.word_maps(name))
        parts.append(f'<h3>{name}</h3><section class="words">{cells or NONE}</section>')
    return "".join(parts)


def _grid(seen: Watched) -> str:
    found = next((looks for name in PROMPTS if (looks := seen.looks(name)) is not None), None)
    return "" if found is None else f" that see the picture as {found.shape[-1]} × {found.shape[-2]} places"


def _settings(result: EditResult) -> str:
    method = method_of(result.settings)
    items = "".join(f"<dt>{name}</dt><dd>{escape(json.dumps(value, ensure_ascii=False))}</dd>"
                    for name, value in {"method": method.where, **result.settings.as_dict()}.items())
    return f'<details id="settings"><summary>Settings</summary><dl class="settings">{items}</dl></details>'


def _data(seen: Watched) -> str:
    """The frames of the slider, for the script."""
    predicted = {name: {i: _uri(picture) for i in seen.decoded
                        if (picture := getattr(seen.predictions(i), name)) is not None} for name in seen.predicted}
    maps = {name: [None if (found := getattr(seen, name)(i)) is None else _uri(found) for i in seen.steps]
            for name in ("mask", "difference", "gradient")}
    frames = {"steps": seen.steps, "decoded": seen.decoded, "predicted": predicted, "maps": maps,
              "signal": [seen.signal[i] for i in seen.steps], "total": len(seen.signal)}
    return json.dumps(frames)


def _figure(title: str, text: str, image: Image.Image | None, name: str = "", after: str = "") -> str:
    if image is None:
        return f"<figure>{NONE}<figcaption><b>{escape(title)}</b></figcaption></figure>"
    id = f' id="{name}"' if name else ""
    return (f'<figure{id}>{_img(image, title)}<figcaption><b>{escape(title)}</b> <span>{escape(text)}</span>{after}'
            "</figcaption></figure>")


def _img(image: Image.Image, alt: str) -> str:
    return f'<img alt="{escape(alt, quote=True)}" src="{_uri(image)}">'


def _uri(image: Image.Image) -> str:
    data = io.BytesIO()
    few = image.getcolors(256) is not None
    small = max(image.size) <= LOSSLESS
    image.save(data, "WEBP", method=4, **({"lossless": True} if few or small else {"quality": 88}))
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


SCALE = f".scale i {{ background: linear-gradient(90deg, {heat.CSS}); }}\n"
