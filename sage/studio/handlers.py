"""What happens on the page: from components to the studio, and back."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from sage.config import EditConfig
from sage.errors import SageError, SettingsError
from sage.studio import form
from sage.studio.clock import Cancelled, seconds
from sage.studio.components import about
from sage.studio.examples import MODEL, examples
from sage.studio.parts import inside, running, said
from sage.studio.service import EditRequest, Studio
from sage.studio.visit import Entry, Visit

Changes = dict[Any, Any]


class Handlers:
    """One method an event; each returns new values for some of the components of `ui`."""

    def __init__(self, studio: Studio, ui: SimpleNamespace):
        self.studio, self.ui = studio, ui

    # ---- the picture

    def dropped(self, given: tuple[Path, str] | None, request: gr.Request) -> Changes:
        """A picture was dropped: it is the one to edit, and may hold settings."""
        who, ui = request.session_hash, self.ui
        if given is None:
            return {}
        try:
            record = self.studio.take(who, *given)
        except SageError as error:
            return {ui.status: said(str(error), "error"), ui.picture: shown(self.studio.visit(who))}
        if record is None:
            return {ui.status: ""}
        visit = self.studio.visit(who)
        wanted = record["picture"]
        note = f"The settings of this edit of {wanted['name']} are restored."
        if visit.picture.identity["sha256"] != wanted["sha256"]:
            note += f" To repeat it, drop {wanted['name']}; what is here now is the edit itself."
        return self._restored(record, visit, note)

    def cleared(self, request: gr.Request) -> None:
        self.studio.visit(request.session_hash).picture = None

    def _restored(self, record: dict[str, Any], visit: Visit, note: str) -> Changes:
        ui, name, config = self.ui, record["model"], EditConfig.from_dict(record["config"])
        kind = "done"
        if name not in self.studio.places:
            name, kind = self.studio.name, "note"
            note += f" It was made with {record['model']}, which this studio does not have."
        if record.get("prediction_type"):
            kind = "note"
            note += f" It took the model to predict {record['prediction_type']}, which cannot be set here."
        return {ui.picture: shown(visit), ui.source: record["source"], ui.target: record["target"],
                ui.model: name, ui.truncate: record["truncate"], ui.status: said(note, kind),
                ui.words: self.studio.words(record["source"], record["target"], config),
                **dict(zip(ui.settings, form.values(config), strict=True))}

    def chosen(self, event: gr.SelectData, request: gr.Request) -> Changes:
        """An example was clicked: it is edited at once.

        Raises:
            gr.Error: its model cannot be loaded.
        """
        examples_ = examples(self.studio.folder)
        example = examples_[event.index if 0 <= event.index < len(examples_) else 0]
        who = request.session_hash
        try:
            config = self.studio.recommended.get(MODEL) or self.studio.use(MODEL)
        except SageError as error:
            raise gr.Error(str(error), print_exception=False) from None
        self.studio.take(who, example.path, example.name)
        record = {"model": MODEL, "config": config.as_dict(), "source": example.source, "target": example.target,
                  "truncate": False}
        return self._restored(record, self.studio.visit(who), "")

    def returned(self, event: gr.SelectData, request: gr.Request) -> Changes:
        """An earlier edit of this visit was clicked."""
        who, ui = request.session_hash, self.ui
        visit = self.studio.visit(who)
        try:
            entry = self.studio.restore(who, len(visit.entries) - 1 - int(event.index))
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        note = "The settings of this edit are restored."
        if visit.picture.identity["sha256"] != entry.record["picture"]["sha256"]:
            note += f" {entry.record['picture']['name']} is not remembered any more: drop it again."
        return {**self._restored(entry.record, visit, note), **self._result(entry, visit)}

    # ---- settings

    def compared(self, source: str, target: str, *settings: Any) -> Changes:
        """The prompts or the phrases were changed: show what differs."""
        try:
            return {self.ui.words: self.studio.words(source or "", target or "", form.config(settings))}
        except SageError as error:
            return {self.ui.words: {"problem": str(error)}}

    def corrected(self, words: Any) -> list[str]:
        """The words panel was changed: replace, blend and reweight as text."""
        words = words if isinstance(words, dict) else {}
        return [str(words.get(name, "none"))[:4096] for name in ("replace", "blend", "reweight")]

    def recommended(self, model: str) -> Changes:
        """Another model was picked, or its own settings wanted."""
        ui = self.ui
        try:
            config = self.studio.use(model)
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        return {ui.model: gr.Dropdown(info=about(self.studio)),
                ui.status: said(f"The settings that {model} recommends."),
                **dict(zip(ui.settings, form.values(config), strict=True))}

    # ---- edits

    def edit(self, request: gr.Request, source: str, target: str, model: str, truncate: bool,
             *settings: Any) -> Iterator[Changes]:
        """Edit, with progress."""
        ui, who = self.ui, request.session_hash
        yield {ui.edit: gr.Button(interactive=False), ui.cancel: gr.Button(interactive=True),
               ui.status: said("Starting", "done")}
        ready = {ui.edit: gr.Button(interactive=True), ui.cancel: gr.Button(interactive=False)}
        try:
            wanted = EditRequest(model, source or "", target or "", form.config(settings), bool(truncate))
            work = self.studio.edit(who, wanted)
            while True:
                yield {ui.status: running(next(work))}
        except StopIteration as done:
            entry: Entry = done.value
            visit = self.studio.visit(who)
            yield {**ready, **self._result(entry, visit),
                   ui.status: said(story(entry), "note" if entry.notes else "done"),
                   ui.history: gr.Gallery([(str(e.path), e.record["target"]) for e in reversed(visit.entries)],
                                          visible=True)}
        except Cancelled:
            yield {**ready, ui.status: said("Cancelled.", "note")}
        except SageError as error:
            yield {**ready, ui.status: said(str(error), "error")}

    def cancel(self, request: gr.Request) -> Changes:
        self.studio.visit(request.session_hash).cancel()
        return {self.ui.edit: gr.Button(interactive=True), self.ui.cancel: gr.Button(interactive=False),
                self.ui.status: said("Cancelled.", "note")}

    def look(self, request: gr.Request) -> Iterator[Changes]:
        """Show what happened inside the edit that is shown."""
        ui, who = self.ui, request.session_hash
        visit = self.studio.visit(who)
        ready = {ui.look: gr.Button(interactive=True), ui.cancel: gr.Button(interactive=False)}
        yield {ui.look: gr.Button(interactive=False), ui.cancel: gr.Button(interactive=True)}
        try:
            if visit.shown is None:
                raise SettingsError("there is no edit to look into yet")
            work = self.studio.look_inside(who, visit.shown)
            while True:
                yield {ui.status: running(next(work))}
        except StopIteration as done:
            yield {**ready, ui.inside: inside(done.value), ui.status: said(
                "What happened inside is shown below. The edit was made again for it.")}
        except Cancelled:
            yield {**ready, ui.status: said("Cancelled.", "note")}
        except SageError as error:
            yield {**ready, ui.status: said(str(error), "error")}

    def _result(self, entry: Entry, visit: Visit) -> Changes:
        ui, visit.shown = self.ui, entry
        return {ui.result: tuple(map(str, entry.eyes)), ui.look: gr.Button(interactive=True), ui.inside: "",
                ui.download: gr.DownloadButton(value=str(entry.path), interactive=True)}

    def left(self, request: gr.Request) -> None:
        self.studio.leave(request.session_hash)


def story(entry: Entry) -> str:
    """How an edit went, in one line."""
    text = f"Done in {seconds(entry.took)}"
    text += "" if entry.saved is None else f": the inversion was at hand, which spared {seconds(entry.saved)}"
    return ". ".join([text, *entry.notes]) + "."


def shown(visit: Visit) -> str | None:
    """The visitor's picture as a file for the page; None where there is none, or where they have left."""
    with suppress(Cancelled):
        return str(visit.show(visit.picture)) if visit.picture else None
    return None
