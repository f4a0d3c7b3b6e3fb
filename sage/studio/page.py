"""The page of the studio: its layout, and what happens when something is done on it."""

from pathlib import Path

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
    form = [ui.picture, ui.source, ui.target, ui.model, ui.truncate, ui.status, ui.words, *ui.settings]
    results = [ui.result, ui.download, ui.look, ui.inside]
    inputs = [ui.source, ui.target, ui.model, ui.truncate, *ui.settings]
    edited = {"fn": on.edit, "inputs": inputs, "outputs": [*results, ui.status, ui.history, ui.edit, ui.cancel],
              "show_progress": "minimal", "show_progress_on": ui.status, **queued}

    ui.picture.upload(on.dropped, ui.picture, form, **at_once)
    ui.picture.clear(on.cleared, None, None, **at_once)
    by_name = {box.label: box for box in ui.settings}
    phrases = [by_name[name] for name in ("replace", "blend", "reweight")]
    # One event, so that the last change is answered last; and none when a box was filled in from the panel, whose
    # sliders may have moved on meanwhile.
    typed = [ui.source.change, ui.target.change, *(happens for box in phrases for happens in (box.input, box.blur))]
    gr.on(typed, on.compared, [ui.source, ui.target, *ui.settings], ui.words, trigger_mode="always_last", **at_once)
    ui.words.input(on.corrected, ui.words, phrases, trigger_mode="always_last", **at_once)
    for happens in (ui.model.input, ui.recommended.click):
        happens(on.recommended, ui.model, [ui.model, ui.status, *ui.settings], show_progress_on=ui.status, **queued)

    edits = [ui.edit.click(**edited, api_name="edit")]
    if hasattr(ui, "examples"):
        picked = ui.examples.select(on.chosen, None, form, **at_once)
        edits.append(picked.success(**edited, api_name=False))
    looks = ui.look.click(on.look, None, [ui.inside, ui.status, ui.look, ui.cancel], show_progress="minimal",
                          show_progress_on=ui.status, **queued)
    ui.cancel.click(on.cancel, None, [ui.status, ui.edit, ui.cancel], cancels=[*edits, looks], **at_once)
    ui.history.select(on.returned, None, [*form, *results], **at_once)
    page.unload(on.left)
