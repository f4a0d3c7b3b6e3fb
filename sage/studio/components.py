"""What is where on the page."""

from types import SimpleNamespace
from typing import Any

import gradio as gr

from sage.config import EditConfig
from sage.studio import form
from sage.studio.examples import MODEL, examples
from sage.studio.parts import Picture, Words
from sage.studio.service import Studio
from sage.studio.words import compare

TITLE = """<header><h1>SAGE studio</h1><p>Edit a picture by rewriting its description: say what it shows, then say
what it shall show, with as few words changed as possible.</p></header>"""


def lay_out(studio: Studio) -> SimpleNamespace:
    """Every component of the page that something happens to, by name; inside a gr.Blocks."""
    ui = SimpleNamespace()
    with gr.Row(elem_id="head", equal_height=False):
        gr.HTML(TITLE, min_height=0)
        with gr.Column(scale=0, min_width=340):
            ui.model = gr.Dropdown(list(studio.places), value=studio.model.name, label="Model", elem_id="model",
                                   info=about(studio), filterable=False)
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            _prompts(ui, studio)
        with gr.Column(min_width=320):
            _results(ui)
    if MODEL in studio.places:
        ui.examples = gr.Gallery([(str(e.path), e.title) for e in examples(studio.folder)], label="Try one", columns=6,
                                 height="auto", object_fit="contain", allow_preview=False, buttons=[],
                                 interactive=False, elem_id="examples", elem_classes="pixels", format="png")
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        ui.recommended = gr.Button("Back to the model's recommended settings", size="sm", elem_id="recommended")
        ui.settings = _settings(studio.model.recommended)
        ui.truncate = gr.Checkbox(False, label="truncate", elem_id="set-truncate",
                                  info="Cut prompts that are too long for the model.")
    ui.inside = gr.HTML(elem_id="inside")
    return ui


def about(studio: Studio) -> str:
    """One line on the model in memory."""
    c = studio.model.recommended
    return (f"{studio.model.sample_size} px; recommended: {c.steps} steps, guidance {c.guidance_scale:g}. Its settings "
            "are under Advanced.")


def _prompts(ui: SimpleNamespace, studio: Studio) -> None:
    ui.picture = Picture(label="Picture", sources=["upload", "clipboard"], type="filepath", height=320, buttons=[],
                         elem_id="picture", elem_classes="pixels", format="png",
                         placeholder="Drop a picture here, or an edit made earlier to have its settings back")
    ui.source = gr.Textbox(label="What it shows", placeholder="a cat on a sofa", lines=2, max_lines=5,
                           elem_id="source", max_length=4096)
    ui.target = gr.Textbox(label="What it shall show", placeholder="a dog on a sofa", lines=2, max_lines=5,
                           elem_id="target", max_length=4096)
    with gr.Row():
        ui.edit = gr.Button("Edit", variant="primary", size="lg", elem_id="edit")
        ui.cancel = gr.Button("Cancel", variant="stop", size="lg", elem_id="cancel", interactive=False)
    ui.status = gr.HTML(elem_id="status")
    with gr.Accordion("Words that differ", open=True, elem_id="words-panel"):
        ui.words = Words(compare(studio.model.prompts, "", "", studio.model.recommended), elem_id="words")


def _results(ui: SimpleNamespace) -> None:
    ui.result = gr.ImageSlider(label="Before and after", buttons=["fullscreen"], interactive=False, elem_id="result",
                               format="png", elem_classes="pixels", max_height=560)
    with gr.Row():
        ui.download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        ui.look = gr.Button("Look inside", interactive=False, elem_id="look")
    ui.history = gr.Gallery(label="Your edits of this visit: click one to have its settings back", columns=6,
                            height="auto", object_fit="contain", allow_preview=False, buttons=[], interactive=False,
                            elem_id="history", elem_classes="pixels", format="png", visible=False)


def _settings(config: EditConfig) -> list[Any]:
    """A component a field of EditConfig, in the order of the fields, under the headings of its groups."""
    made: dict[str, Any] = {}
    shown = dict(zip(form.NAMES, form.values(config), strict=True))
    groups: dict[str, list] = {}
    for f in form.FIELDS:
        groups.setdefault(f.metadata["group"], []).append(f)
    for group, members in groups.items():
        with gr.Group(elem_classes="settings"):
            gr.HTML(f"<h3>{group.capitalize()}</h3>")
            with gr.Row(equal_height=True):
                for f in members:
                    made[f.name] = _setting(f, shown[f.name])
    return [made[name] for name in form.NAMES]


def sentence(text: str) -> str:
    """A help text of EditConfig as a sentence; the w of the paper stays a w."""
    return f"{text}." if text[1] == ":" else f"{text[0].upper()}{text[1:]}."


def _setting(f: Any, value: Any) -> Any:
    text = f.metadata["help"]
    common = {"label": f.name, "info": sentence(text), "min_width": 260, "elem_id": f"set-{f.name}"}
    kind = form.kind(f)
    if kind == "choice":
        return gr.Dropdown(list(f.metadata["choices"]), value=value, filterable=False, **common)
    if kind in ("number", "whole"):
        return gr.Number(value, step=1 if kind == "whole" else 0.1, **common)
    return gr.Textbox(value, max_lines=1, **common)
