"""The page of the studio: its layout, and what happens when something is done on it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from sage.studio.components import lay_out
from sage.studio.handlers import Handlers
from sage.studio.parts import refuse_addresses
from sage.studio.service import Studio

HERE = Path(__file__).parent
CSS = (HERE / "studio.css").read_text(encoding="utf-8")
FONT = ("ui-sans-serif", "system-ui", "sans-serif")  # of the visitor's own machine: nothing is fetched from elsewhere
THEME = gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=FONT, radius_size="sm",
                       font_mono=("ui-monospace", "Consolas", "monospace"))
AGE = 24 * 3600  # seconds that uploaded files are kept


def build(studio: Studio) -> gr.Blocks:
    """The page, ready to be launched."""
    refuse_addresses()
    with gr.Blocks(title="SAGE studio", analytics_enabled=False, delete_cache=(3600, AGE), fill_width=False) as page:
        ui = lay_out(studio)
        _wire(page, studio, ui)
    return page


def _wire(page: gr.Blocks, studio: Studio, ui) -> None:
    on = Handlers(studio, ui)
    # What needs the model waits in one queue, and is worked one at a time; all else is answered at once.
    queued = {"concurrency_id": "studio", "concurrency_limit": 1, "api_visibility": "private"}
    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    forms = [ui.method, ui.settings, ui.make.method, ui.make.settings]
    form = [ui.picture, ui.source, ui.target, ui.model, ui.truncate, ui.status, ui.words, ui.method, ui.settings]
    results = [ui.result, ui.caption, ui.download, ui.look, ui.inside]
    inputs = [ui.source, ui.target, ui.model, ui.truncate, ui.settings]
    edited = {"fn": on.edit, "inputs": inputs, "outputs": [*results, ui.status, ui.history, ui.edit, ui.cancel],
              "show_progress": "minimal", "show_progress_on": ui.status, **queued}

    ui.picture.upload(on.dropped, ui.picture, form, **at_once)
    ui.picture.clear(on.cleared, None, None, **at_once)
    # One event, so that the last change is answered last.
    gr.on([ui.source.change, ui.target.change, ui.settings.input], on.compared, [ui.source, ui.target, ui.settings],
          ui.words, trigger_mode="always_last", **at_once)
    ui.words.input(on.corrected, [ui.words, ui.settings], ui.settings, trigger_mode="always_last", **at_once)
    ui.model.input(on.model_picked, [ui.model, ui.settings, ui.make.settings], [ui.model, ui.status, *forms],
                   show_progress_on=ui.status, **queued)
    ui.method.input(on.method_picks("edit"), [ui.method, ui.settings, ui.source, ui.target],
                    [ui.status, ui.method, ui.settings, ui.words], **at_once)
    ui.recommended.click(on.recommends("edit"), [ui.model, ui.settings], [ui.status, ui.method, ui.settings],
                         show_progress_on=ui.status, **queued)

    edits = [ui.edit.click(**edited, api_name="edit")]
    if hasattr(ui, "examples"):
        picked = ui.examples.select(on.chosen, None, [*form, *results], **at_once)
        # Each click is edited: what was running ends for it.
        edits.append(picked.then(**edited, api_name=False, trigger_mode="multiple"))
    looks = ui.look.click(on.look, None, [ui.inside, ui.status, ui.look, ui.cancel], show_progress="minimal",
                          show_progress_on=ui.status, **queued)
    ui.cancel.click(on.cancel, None, [ui.status, ui.edit, ui.cancel], cancels=[*edits, looks], **at_once)
    ui.history.select(on.returned, None, [*form, *results], **at_once)
    _wire_making(ui, on, queued, at_once)
    page.unload(on.left)


def _wire_making(ui: SimpleNamespace, on: Handlers, queued: dict[str, Any], at_once: dict[str, Any]) -> None:
    make = ui.make
    inputs = [make.prompt, make.negative, make.width, make.height, ui.model, make.truncate, make.settings]
    made = make.go.click(on.make, inputs, [make.result, make.caption, make.download, make.status, make.go, make.cancel],
                         show_progress="minimal", show_progress_on=make.status, **queued)
    make.cancel.click(on.cancel_making, None, [make.status, make.go, make.cancel], cancels=[made], **at_once)
    make.method.input(on.method_picks("generate"), [make.method, make.settings, make.prompt, make.negative],
                      [make.status, make.method, make.settings], **at_once)
    make.recommended.click(on.recommends("generate"), [ui.model, make.settings],
                           [make.status, make.method, make.settings], show_progress_on=make.status, **queued)
