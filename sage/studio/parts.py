"""Parts of the page that Gradio has not: a picture that only takes uploads, the words panel, the line of status."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import component_meta
from gradio.blocks import Block
from gradio.context import LocalContext
from gradio.data_classes import ImageData

from sage.studio.clock import Clock

HERE = Path(__file__).parent
component_meta.create_or_modify_pyi = lambda *_: None  # would write a .pyi file beside this one at every start
NOT_OURS = "only pictures that were dropped on this page are opened"


class Picture(gr.Image):
    """A picture as it was uploaded: the path of the file that this server wrote, and the visitor's name for it."""

    is_template = True  # looks like a gr.Image

    def preprocess(self, payload: ImageData | None) -> tuple[Path, str] | None:
        if payload is None:
            return None
        # The path is the client's word: it serves to find our own file, and nothing else is opened.
        if payload.path not in LocalContext.blocks.get().upload_file_set:
            raise gr.Error(NOT_OURS, print_exception=False)
        return Path(payload.path), payload.orig_name or Path(payload.path).name


class Words(gr.HTML):
    """The two prompts word by word, what differs marked; see words.js."""

    def __init__(self, value: dict[str, Any] | None = None, **options: Any):
        super().__init__(value, html_template='<div class="words"></div>',
                         js_on_load=(HERE / "words.js").read_text(encoding="utf-8"), **options)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


class Form(gr.HTML):
    """The settings of a method, each with its help and range; see form.js and `sage.studio.form.shown`."""

    def __init__(self, value: dict[str, Any] | None = None, prefix: str = "", **options: Any):
        super().__init__((value or {}) | {"prefix": prefix}, html_template='<div class="form-of-settings"></div>',
                         js_on_load=(HERE / "form.js").read_text(encoding="utf-8"), **options)

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}


def refuse_addresses() -> None:
    """Let no component fetch what a client sends the address of, which Gradio would do for any of them."""
    move = Block.async_move_resource_to_block_cache

    async def moved(self: Block, where: str | Path | None) -> str | None:
        if where is not None and "://" in str(where):
            raise gr.Error(NOT_OURS, print_exception=False)
        return await move(self, where)

    if move.__name__ != moved.__name__:
        Block.async_move_resource_to_block_cache = moved


def running(clock: Clock) -> str:
    """How far an edit is."""
    return (f'<div class="status" role="status"><p>{escape(str(clock))}</p><div class="bar">'
            f'<i style="width:{100 * clock.share:.1f}%"></i></div></div>')


def said(text: str, kind: str = "done") -> str:
    """One line: "done", "note" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="status {kind}" role="{role}"><p>{escape(text)}</p></div>' if text else ""


def inside(page: str) -> str:
    """A whole page in a frame of its own, which can reach nothing outside."""
    return f'<iframe class="inside" sandbox="allow-scripts" title="Inside the edit" srcdoc="{escape(page)}"></iframe>'
