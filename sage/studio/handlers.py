"""What happens on the page: from components to the studio, and back."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from sage.errors import SageError, SettingsError
from sage.method import DEFAULTS, method_of
from sage.pictures.metadata import settings_in
from sage.settings import Phrases, Settings
from sage.studio import form
from sage.studio.clock import Cancelled, Clock, seconds
from sage.studio.components import about, about_method
from sage.studio.examples import MODEL, examples
from sage.studio.parts import inside, running, said
from sage.studio.service import EditRequest, MakeRequest, Studio
from sage.studio.visit import Entry, Visit
from sage.studio.words import names_of, weights_of

Changes = dict[Any, Any]
PREFIX = {"edit": "set", "generate": "make-set"}  # of the names of a form's fields in the page


class Handlers:
    """One method an event; each returns new values for some of the components of `ui`."""

    def __init__(self, studio: Studio, ui: SimpleNamespace):
        self.studio, self.ui = studio, ui

    # ---- the picture

    def dropped(self, given: tuple[Path, str] | None, request: gr.Request) -> Changes:
        """A picture was dropped: it is the one to edit, and may hold settings."""
        who, ui = request.session_hash, self.ui
        if given is None:
            return {ui.status: gr.skip()}
        try:
            record = self.studio.take(who, *given)
        except SageError as error:
            return {ui.status: said(str(error), "error"), ui.picture: shown(self.studio.visit(who))}
        visit = self.studio.visit(who)
        if record is None:
            scaled = visit.picture.identity.get("scaled")
            note = f"The picture is large and was scaled down to {scaled} pixels." if scaled else ""
            return {ui.status: said(note, "note")}
        if "picture" not in record:  # made from text, here or by `sage generate`
            return {ui.source: record["target"], ui.status: said("The picture was made of this text: say what it shall "
                                                                 "show instead.")}
        wanted = record["picture"]
        note = f"The settings of this edit of {wanted['name']} are restored."
        if visit.picture.identity["sha256"] != wanted["sha256"]:
            note += f" To repeat it, drop {wanted['name']}; what is here now is the edit itself."
        return self._restored(record, visit, note)

    def cleared(self, request: gr.Request) -> None:
        self.studio.visit(request.session_hash).picture = None

    def _restored(self, record: dict[str, Any], visit: Visit, note: str) -> Changes:
        ui, name, config = self.ui, record["model"], settings_in(record)
        kind = "done"
        if name not in self.studio.places:
            name, kind = self.studio.name, "note"
            note += f" It was made with {record['model']}, which this studio does not have."
        if record.get("prediction_type"):
            kind = "note"
            note += f" It took the model to predict {record['prediction_type']}, which cannot be set here."
        visit.model = name
        return {ui.picture: shown(visit), ui.source: record["source"], ui.target: record["target"],
                ui.model: name, ui.truncate: record["truncate"], ui.status: said(note, kind),
                ui.words: self.studio.words(record["source"], record["target"], config),
                **self._form("edit", config)}

    def chosen(self, event: gr.SelectData, request: gr.Request) -> Changes:
        """An example was clicked: it is edited at once, and what is still running for the visitor ends."""
        examples_, ui = examples(self.studio.folder), self.ui
        example = examples_[event.index if 0 <= event.index < len(examples_) else 0]
        who = request.session_hash
        visit = self.studio.visit(who)
        visit.turn += 1
        visit.cancel()
        self.studio.take(who, example.path, example.name)
        if self.studio.name != MODEL:
            self.studio.use(MODEL)
        record = {"model": MODEL, "method": DEFAULTS["edit"], "source": example.source, "target": example.target,
                  "settings": self.studio.recommended("edit", DEFAULTS["edit"]).as_dict(), "truncate": False}
        return {**self._restored(record, visit, ""), ui.result: None, ui.caption: "", ui.inside: "",
                ui.download: gr.DownloadButton(interactive=False), ui.look: gr.Button(interactive=False)}

    def returned(self, event: gr.SelectData, request: gr.Request) -> Changes:
        """An earlier edit of this visit was clicked."""
        who, ui = request.session_hash, self.ui
        visit = self.studio.visit(who)
        try:
            entry = self.studio.restore(who, len(visit.entries) - 1 - int(event.index))
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        visit.turn += 1
        note = "The settings of this edit are restored."
        if visit.picture.identity["sha256"] != entry.record["picture"]["sha256"]:
            note += f" {entry.record['picture']['name']} is not remembered any more: drop it again."
        return {**self._restored(entry.record, visit, note), **self._result(entry, visit)}

    # ---- settings

    def _parts(self, task: str) -> SimpleNamespace:
        return self.ui if task == "edit" else self.ui.make

    def _form(self, task: str, config: Settings) -> Changes:
        """The menu and the form of a method."""
        ui, name = self._parts(task), method_of(config).name
        menu = gr.Dropdown([(f"{found.title} ({found.name})", found.name) for found in self.studio.usable(task)],
                           value=name, info=about_method(self.studio, task, name))
        return {ui.method: menu, ui.settings: form.shown(config, task) | {"prefix": PREFIX[task]}}

    def _read(self, shown: Any, task: str = "edit") -> Settings:
        """The settings in a form, whose method is one of ours whatever a client says."""
        shown = shown if isinstance(shown, dict) else {}
        return form.read(self.studio.found(shown.get("method"), task).Settings, shown.get("values"))

    def compared(self, source: str, target: str, shown: Any) -> Changes:
        """The prompts or the settings were changed: show what differs."""
        try:
            return {self.ui.words: self.studio.words(source or "", target or "", self._read(shown))}
        except SageError as error:
            return {self.ui.words: {"problem": str(error)}}

    def corrected(self, words: Any, shown: Any) -> Changes:
        """The words panel was changed: its phrases and factors as text into the form."""
        if not isinstance(words, dict) or not isinstance(shown, dict) or not isinstance(shown.get("values"), dict):
            return {self.ui.settings: gr.skip()}
        cls = self.studio.found(shown.get("method")).Settings
        phrases, wanted = names_of(cls, Phrases), words.get("phrases")
        given = {p["name"]: str(p.get("value", "none")) for p in wanted if isinstance(p, dict)
                 and p.get("name") in phrases} if isinstance(wanted, list) else {}
        given |= {name: str(words["weights"]) for name in [weights_of(cls)] if name and "weights" in words}
        values = {**shown["values"], **{name: text[:form.LONGEST] for name, text in given.items()}}
        return {self.ui.settings: {**shown, "values": values}}

    def model_picked(self, model: str, shown: Any, made: Any, request: gr.Request) -> Changes:
        """The model's box was touched.  Only another model brings other settings, and the words stay even then."""
        ui, visit = self.ui, self.studio.visit(request.session_hash)
        if model == (visit.model or next(iter(self.studio.places))) and self.studio.model is not None:
            return {ui.status: gr.skip()}
        try:
            self.studio.use(model)
            forms: Changes = {}
            for task, value in (("edit", shown), ("generate", made)):
                forms |= self._form(task, self._anew(task, value))
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        visit.model = model
        visit.forms.clear()
        return {ui.model: gr.Dropdown(info=about(self.studio)), **forms,
                ui.status: said(f"The settings that {model} recommends; what was said of words is kept.")}

    def _anew(self, task: str, shown: Any) -> Settings:
        """What is recommended for the method of a form, with the form's words where it can be read."""
        name = shown.get("method") if isinstance(shown, dict) else None
        found = self.studio.found(name, task)
        if found not in self.studio.usable(task):
            return self.studio.recommended(task, DEFAULTS[task])
        try:
            words = self._read(shown, task)
        except SettingsError:
            words = None
        return self.studio.recommended(task, found.name, words)

    def method_picks(self, task: str) -> Callable[..., Changes]:
        """What happens when a method is chosen."""
        def picked(name: str, shown: Any, source: str, target: str, request: gr.Request) -> Changes:
            return self._method_picked(task, name, shown, source, target, request)
        return picked

    def _method_picked(self, task: str, name: str, shown: Any, source: str, target: str,
                       request: gr.Request) -> Changes:
        """A method was chosen: its settings as they were left, else as recommended; words go along."""
        ui, visit = self._parts(task), self.studio.visit(request.session_hash)
        try:
            words, left = None, shown.get("method") if isinstance(shown, dict) else None
            if left == name:
                return {ui.status: gr.skip()}
            try:
                words = visit.forms[task, left] = self._read(shown, task)
            except SettingsError:
                pass  # what is not yet typed to its end is not kept
            config = visit.forms.get((task, name))
            config = self.studio.recommended(task, name, words) if config is None else config
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        found = {self.ui.words: self.studio.words(source or "", target or "", config)} if task == "edit" else {}
        return {**self._form(task, config), **found, ui.status: ""}

    def recommends(self, task: str) -> Callable[..., Changes]:
        """What happens when the model's own settings are wanted."""
        def recommended(model: str, shown: Any, request: gr.Request) -> Changes:
            return self._recommended(task, model, shown, request)
        return recommended

    def _recommended(self, task: str, model: str, shown: Any, request: gr.Request) -> Changes:
        """The model's own settings are wanted."""
        ui = self._parts(task)
        try:
            if self.studio.model is None or self.studio.name != model:
                self.studio.use(model)
            name = self.studio.found(shown.get("method") if isinstance(shown, dict) else None, task).name
            config = self.studio.recommended(task, name)
        except SageError as error:
            return {ui.status: said(str(error), "error")}
        self.studio.visit(request.session_hash).model = model
        return {**self._form(task, config), ui.status: said(f"The settings that {model} recommends.")}

    # ---- edits

    def edit(self, request: gr.Request, source: str, target: str, model: str, truncate: bool,
             shown: Any) -> Iterator[Changes]:
        """Edit, with progress."""
        ui, who = self.ui, request.session_hash
        visit = self.studio.visit(who)
        turn = visit.turn
        for changes in self._followed(ui, ui.edit, lambda: self.studio.edit(who, EditRequest(
                model, source or "", target or "", self._read(shown), bool(truncate)))):
            if isinstance(changes, Entry):
                gallery = gr.Gallery([(str(e.path), e.record["target"]) for e in reversed(visit.entries)], visible=True)
                yield {ui.history: gallery} | (self._result(changes, visit) if turn == visit.turn else {})
            else:
                yield changes

    def make(self, request: gr.Request, prompt: str, negative: str, width: Any, height: Any, model: str,
             truncate: bool, shown: Any) -> Iterator[Changes]:
        """Make a picture from text, with progress."""
        ui, who = self.ui.make, request.session_hash
        for changes in self._followed(ui, ui.go, lambda: self.studio.make(who, MakeRequest(
                model, prompt or "", negative or "", _side("width", width), _side("height", height),
                self._read(shown, "generate"), bool(truncate)))):
            if isinstance(changes, Entry):
                yield {ui.result: str(changes.eyes[1]), ui.caption: caption(changes),
                       ui.download: gr.DownloadButton(value=str(changes.path), interactive=True)}
            else:
                yield changes

    def _followed(self, ui: SimpleNamespace, button: gr.Button, begin: Any) -> Iterator[Changes | Entry]:
        """What to show of running work, and in the end what came of it."""
        yield {button: gr.Button(interactive=False), ui.cancel: gr.Button(interactive=True),
               ui.status: said("Starting", "done")}
        ready = {button: gr.Button(interactive=True), ui.cancel: gr.Button(interactive=False)}
        try:
            work = begin()
            while True:
                clock: Clock = next(work)
                yield {ui.status: running(clock)}
        except StopIteration as done:
            entry: Entry = done.value
            yield entry
            yield {**ready, ui.status: said(story(entry), "note" if entry.notes else "done")}
        except Cancelled:
            yield {**ready, ui.status: said("Cancelled.", "note")}
        except SageError as error:
            yield {**ready, ui.status: said(str(error), "error")}

    def cancel(self, request: gr.Request) -> Changes:
        return self._cancelled(self.ui, self.ui.edit, request)

    def cancel_making(self, request: gr.Request) -> Changes:
        return self._cancelled(self.ui.make, self.ui.make.go, request)

    def _cancelled(self, ui: SimpleNamespace, button: gr.Button, request: gr.Request) -> Changes:
        self.studio.visit(request.session_hash).cancel()
        return {button: gr.Button(interactive=True), ui.cancel: gr.Button(interactive=False),
                ui.status: said("Cancelled.", "note")}

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
                ui.caption: caption(entry), ui.download: gr.DownloadButton(value=str(entry.path), interactive=True)}

    def left(self, request: gr.Request) -> None:
        self.studio.leave(request.session_hash)


def _side(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise SettingsError(f"{name} is empty: give a whole number of pixels")
    return int(value)


def caption(entry: Entry) -> str:
    """What a result is of: prompts and method."""
    record = entry.record
    before = f'<s>{escape(record["source"])}</s> ' if "source" in record else ""
    return f'<p class="caption">{before}<b>{escape(record["target"])}</b> <i>{escape(record["method"])}</i></p>'


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
