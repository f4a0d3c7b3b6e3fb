"""What is where on the page."""

from types import SimpleNamespace

import gradio as gr

from sage.method import DEFAULTS
from sage.studio import form
from sage.studio.examples import MODEL, examples
from sage.studio.parts import Form, Picture, Words
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
            ui.model = gr.Dropdown(list(studio.places), value=studio.name, label="Model", elem_id="model",
                                   info=about(studio), filterable=False)
    with gr.Tabs(elem_id="tasks"):
        with gr.Tab("Edit a picture", elem_id="edit-tab"):
            _editing(ui, studio)
        with gr.Tab("From text", elem_id="make-tab"):
            ui.make = _making(studio)
    return ui


def about(studio: Studio) -> str:
    """One line on the model in memory."""
    return f"{studio.model.sample_size} px. Settings are under Advanced."


def about_method(studio: Studio, task: str, name: str) -> str:
    """One line on a method, and what it costs."""
    found = studio.found(name, task)
    return found.about[:1].upper() + found.about[1:] + "."


def _menu(studio: Studio, task: str, label: str, elem_id: str) -> gr.Dropdown:
    name = DEFAULTS[task]
    return gr.Dropdown([(f"{found.title} ({found.name})", found.name) for found in studio.usable(task)], value=name,
                       label=label, elem_id=elem_id, info=about_method(studio, task, name), filterable=False)


def _editing(ui: SimpleNamespace, studio: Studio) -> None:
    settings = studio.recommended("edit", DEFAULTS["edit"])
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            _prompts(ui, studio)
            with gr.Accordion("Words that differ", open=True, elem_id="words-panel"):
                ui.words = Words(compare(studio.model.prompts, "", "", settings), elem_id="words")
        with gr.Column(min_width=320):
            _results(ui)
    if MODEL in studio.places:
        ui.examples = gr.Gallery([(str(e.path), e.title) for e in examples(studio.folder)], label="Try one", columns=6,
                                 height="auto", object_fit="contain", allow_preview=False, buttons=[],
                                 interactive=False, elem_id="examples", elem_classes="pixels", format="png")
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        ui.recommended = gr.Button("Back to the model's recommended settings", size="sm", elem_id="recommended")
        ui.settings = Form(form.shown(settings), "set", elem_id="settings")
        ui.truncate = gr.Checkbox(False, label="truncate", elem_id="set-truncate",
                                  info="Cut prompts that are too long for the model.")
    ui.inside = gr.HTML(elem_id="inside")


def _prompts(ui: SimpleNamespace, studio: Studio) -> None:
    ui.picture = Picture(label="Picture", sources=["upload", "clipboard"], type="filepath", height=320, buttons=[],
                         elem_id="picture", elem_classes="pixels", format="png",
                         placeholder="Drop a picture here, or an edit made earlier to have its settings back")
    ui.source = gr.Textbox(label="What it shows", placeholder="a cat on a sofa", lines=2, max_lines=5,
                           elem_id="source", max_length=4096)
    ui.target = gr.Textbox(label="What it shall show", placeholder="a dog on a sofa", lines=2, max_lines=5,
                           elem_id="target", max_length=4096)
    ui.method = _menu(studio, "edit", "Method", "method")
    with gr.Row():
        ui.edit = gr.Button("Edit", variant="primary", size="lg", elem_id="edit")
        ui.cancel = gr.Button("Cancel", variant="stop", size="lg", elem_id="cancel", interactive=False)
    ui.status = gr.HTML(elem_id="status")


def _results(ui: SimpleNamespace) -> None:
    ui.result = gr.ImageSlider(label="Before and after", buttons=["fullscreen"], interactive=False, elem_id="result",
                               format="png", elem_classes="pixels", max_height=560)
    ui.caption = gr.HTML(elem_id="caption")
    with gr.Row():
        ui.download = gr.DownloadButton("Download PNG", interactive=False, elem_id="download")
        ui.look = gr.Button("Look inside", interactive=False, elem_id="look")
    ui.history = gr.Gallery(label="Your edits of this visit: click one to have its settings back", columns=6,
                            height="auto", object_fit="contain", allow_preview=False, buttons=[], interactive=False,
                            elem_id="history", elem_classes="pixels", format="png", visible=False)


def _making(studio: Studio) -> SimpleNamespace:
    """The tab that makes pictures of words alone."""
    ui, side = SimpleNamespace(), studio.model.sample_size
    settings = studio.recommended("generate", DEFAULTS["generate"])
    with gr.Row(equal_height=False):
        with gr.Column(min_width=320):
            ui.prompt = gr.Textbox(label="What it shall show", placeholder="a red mug on grass", lines=3, max_lines=5,
                                   elem_id="make-prompt", max_length=4096)
            ui.negative = gr.Textbox(label="What it shall not show", placeholder="nothing in particular", lines=1,
                                     max_lines=3, elem_id="make-negative", max_length=4096)
            ui.method = _menu(studio, "generate", "Method", "make-method")
            with gr.Row():
                ui.width = gr.Number(side, label="Width", precision=0, minimum=8, elem_id="make-width", min_width=100)
                ui.height = gr.Number(side, label="Height", precision=0, minimum=8, elem_id="make-height",
                                      min_width=100)
            with gr.Row():
                ui.go = gr.Button("Make", variant="primary", size="lg", elem_id="make")
                ui.cancel = gr.Button("Cancel", variant="stop", size="lg", elem_id="make-cancel", interactive=False)
            ui.status = gr.HTML(elem_id="make-status")
        with gr.Column(min_width=320):
            ui.result = gr.Image(label="Picture", buttons=["fullscreen"], interactive=False, elem_id="make-result",
                                 format="png", elem_classes="pixels", height=420)
            ui.caption = gr.HTML(elem_id="make-caption")
            ui.download = gr.DownloadButton("Download PNG", interactive=False, elem_id="make-download")
    with gr.Accordion("Advanced", open=False, elem_id="make-advanced"):
        ui.recommended = gr.Button("Back to the model's recommended settings", size="sm", elem_id="make-recommended")
        ui.settings = Form(form.shown(settings, "generate"), "make-set", elem_id="make-settings")
        ui.truncate = gr.Checkbox(False, label="truncate", elem_id="make-set-truncate",
                                  info="Cut prompts that are too long for the model.")
    return ui
