"""The work behind the studio: one model, one edit at a time, and what each visitor may see of it.  Knows no HTTP."""

import math
import re
import secrets
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from sage import pictures
from sage.bench.encoder import Encoder, bundled, load_encoder
from sage.editing import EditResult, check_prompts, edit_batch, settings_for, task_of
from sage.errors import ModelError, PictureError, SettingsError, out_of_memory
from sage.explain import Explanation
from sage.generation import generate
from sage.method import DEFAULTS, Method, Request, able, check_request, method, method_of
from sage.models.backbone import Backbone
from sage.models.compiled import Compiled, compile_networks
from sage.models.known import find_model
from sage.models.loading import load_model
from sage.models.savings import Savings
from sage.notes import unlike
from sage.pictures.framing import framed
from sage.pictures.masks import pasted
from sage.pictures.metadata import (
    asked_as_text,
    asked_in,
    check_prompt,
    make_generation_record,
    make_record,
    read_record,
    settings_in,
)
from sage.pictures.originals import identity
from sage.prompts.plan import Plan
from sage.prompts.vocabulary import as_taught, unknown_words
from sage.settings import Settings
from sage.stilllife.describe import described
from sage.studio.advice import Advice, advice
from sage.studio.album import Album, Picture, plain
from sage.studio.cache import Cache
from sage.studio.clock import Clock, Pace
from sage.studio.examples import WORLD, examples
from sage.studio.gallery import Gallery
from sage.studio.glimpse import Glimpses
from sage.studio.jobs import Job, Jobs
from sage.studio.requests import EditRequest, Limits, MakeRequest
from sage.studio.visit import Entry, Visit, first_change, for_eyes
from sage.studio.words import carried, compare, fitting, instructed
from sage.trajectory.fitting import sharing_key
from sage.trajectory.kinds import Trajectory

TASKS = ("edit", "generate")
HOUSE = ""  # the visitor that is the studio itself
T = TypeVar("T")
Work = Callable[[Job[Any]], T]  # what a job does
LONGEST_PROMPT = 4096


class Studio:
    """One model in memory, and whoever comes to use it.

    Attributes:
        model: None after one could not be loaded, until another is.
        name: of the model that is in memory, or was last.
        methods: by name those for each task, "edit" and "generate".

    Args:
        models: what the visitors can choose from, as `sage.load_model` takes it; the first is loaded at once.
        folder: where the visitors' files go.
        gallery: a folder in which all results are kept too, and stay; None for none.
        compiled: have networks compiled for this CPU where that can be done (`sage.models.compiled`).
    Raises:
        ModelError: one of the models is not there.
    """

    def __init__(self, models: Sequence[str], limits: Limits | None = None, folder: Path | None = None,
                 gallery: Path | None = None, compiled: bool = False):
        self.limits, self.compiled = limits or Limits(), compiled
        self._graphs: Compiled | None = None
        self.places = {find_model(model)[0]: model for model in models}
        if not self.places:
            raise ModelError("no model is here: name one with --model")
        self.gallery = Gallery(gallery)
        self.folder = folder or Path(tempfile.mkdtemp(prefix="sage-studio-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trajectories: Cache[Trajectory] = Cache(self.limits.memory, lambda trajectory: trajectory.nbytes)
        self.album = Album(self.limits.memory // 4, self.limits.pixels, self.folder)
        self.paces: dict[tuple[Any, ...], Pace] = {}
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock, self._words = Lock(), Lock()  # tokenizers cannot be shared by two threads at once
        self.jobs = Jobs(self.limits.waiting, self.limits.patience)
        self.first: Job[Entry] | None = None
        self.methods: dict[str, dict[str, Method[Any]]] = {task: {name: method(name) for name in able(task)}
                                                           for task in TASKS}
        self._advice: dict[str, Advice] = {}
        self.name = next(iter(self.places))
        self.model: Backbone | None = None
        self.use(self.name)

    # ---- visitors

    def visit(self, who: str) -> Visit:
        """The visit of the browser window `who`, begun if it is new."""
        with self._lock:
            if who not in self._visits:
                self._visits[who] = Visit(self.folder / secrets.token_hex(16), self.limits.edits)
            self._visits.move_to_end(who)
            guests = [key for key in self._visits if key != HOUSE]
            old = [(key, self._visits.pop(key)) for key in guests[:max(0, len(guests) - self.limits.visits)]]
            visit = self._visits[who]
        for key, gone in old:
            self._forget(key, gone)
        return visit

    def leave(self, who: str) -> None:
        """Forget a visitor, and stop what is running for them."""
        with self._lock:
            visit = self._visits.pop(who, None)
        if visit:
            self._forget(who, visit)

    def _forget(self, who: str, visit: Visit) -> None:
        for job in self.jobs.of(who):
            job.cancel()
        visit.end()
        self.trajectories.drop(lambda key: key[0] == who)
        self.album.forget(who)

    def close(self) -> None:
        """Stop the work and delete all files."""
        for who in list(self._visits):
            self.leave(who)
        self.jobs.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the first edit

    def begin(self) -> None:
        """Make the first example's edit, which every visitor finds finished; nothing where its model is not here.

        Made again as if somebody typed, it has graphs compiled before anybody does.
        """
        if self.name in WORLD:
            example = self.example(HOUSE, 0)
            self.first = self.edit(HOUSE, example)
            made = [self.first, *([self.edit(HOUSE, replace(example, live=True))] if self._graphs else [])]
            for job in made:
                job.asked = math.inf  # nobody asks about it, and it is wanted

    def example(self, who: str, index: int) -> EditRequest:
        """One of the examples, its picture brought, as an edit at the recommended settings."""
        found = examples(self.folder)
        example = found[index if 0 <= index < len(found) else 0]
        self.take(who, example.path, example.name)
        return EditRequest(self.name, example.source, example.target, self.recommended("edit", self.usual("edit")),
                           picture=self.visit(who).picture.key)

    def welcome(self, who: str) -> Entry | None:
        """The first edit as the visitor's own, where it is made and they have none; None otherwise."""
        if self.first is None or self.first.state != "done" or self.visit(who).results:
            return None
        entry = self.first.result()
        self._show(who, self.album.picture(HOUSE, entry.record["picture"]["sha256"]))
        visit = self.visit(who)
        with visit.lasting():
            path = visit.new_file(entry.path.name)
            for old in (entry.path, *entry.eyes):
                shutil.copy(old, path.parent / old.name)
            mine = replace(entry, path=path)
            visit.remember(mine)
        return mine

    # ---- pictures

    def take(self, who: str, path: Path, name: str) -> dict[str, Any] | None:
        """Make an uploaded file the visitor's picture.

        Args:
            path: a file that this server has written.
            name: what the visitor calls it, of which no more than the last part is kept.
        Returns:
            The record of the edit that the file is the result of, or of how it was made from text, checked; None for
            any other picture.  The picture that was edited takes its place if the visitor had brought it.
        Raises:
            PictureError: no picture, damaged, or too large; the visitor's picture is then as before.
        """
        name = plain(name)
        try:
            picture = self.album.open(path, name)
            record = _record_in(path)
        except PictureError as error:
            raise PictureError(str(error).replace(str(path), name)) from None
        self._show(who, picture)
        if record and "picture" in record:
            self.visit(who).restored = record
            with suppress(PictureError):
                self._show(who, self.album.edited_in(who, record))
        return record

    def compose(self, who: str, picture: str, reference: str, mask: str, box: Sequence[float]) -> str:
        """`Album.compose`; what comes of it is the visitor's picture.

        Returns:
            The key of the mask that is white in the box.
        """
        self.visit(who).picture, place = self.album.compose(who, picture, reference, mask, box)
        return place

    def seen(self, who: str, key: str) -> dict[str, str]:
        """What a model of a small world makes of a picture.

        Returns:
            source: what the picture shows, "" where nobody can tell; note: what is to be said of a picture that is none
            of that world, or "".
        """
        picture, model = self.album.picture(who, key), self.model
        if model is None or not model.prompts.taught:
            return {"source": "", "note": ""}
        image = pictures.normalise(picture.image)
        size = task_of(model, [image], self.recommended("edit", DEFAULTS["edit"])).size
        with torch.no_grad():
            [note] = unlike(model, [image], model.encode(pictures.to_tensor(image, size)), size)
        if note or bundled() is None:
            return {"source": "", "note": note}
        source, unsure = described(_encoder().read(np.asarray(image)))
        guessed = "form" in unsure or unknown_words(model.prompts.taught, [source])
        return {"source": "" if guessed else source, "note": ""}

    def _show(self, who: str, picture: Picture) -> None:
        self.visit(who).picture = self.album.put(who, picture)

    def use_result(self, who: str, key: str) -> Picture:
        """Make one of the visitor's results their picture."""
        entry = self.entry(who, key)
        picture = Picture(pictures.open_picture(entry.path), identity(entry.path))
        self._show(who, picture)
        return picture

    def entry(self, who: str, key: str) -> Entry:
        """One of the visitor's results by its key.

        Raises:
            SettingsError: it is not remembered.
        """
        found = next((entry for entry in self.visit(who).results if entry.key == key), None)
        if found is None:
            raise SettingsError("that result is not remembered any more")
        return found

    def restore(self, who: str, key: str) -> Entry:
        """One of the visitor's own edits again; its picture becomes theirs, if it is still remembered."""
        visit, entry = self.visit(who), self.entry(who, key)
        if "picture" in entry.record:
            with suppress(PictureError):
                self._show(who, self.album.edited_in(who, entry.record))
            visit.restored = entry.record
        return entry

    def _remember(self, visit: Visit, entry: Entry) -> Entry:
        """Keep a result, in the gallery too; of a gallery that has no room it gets a note."""
        if not entry.live and visit is not self._visits.get(HOUSE) and (note := self.gallery.keep(entry.path)):
            entry = replace(entry, notes=(*entry.notes, note))
        visit.remember(entry)
        return entry

    # ---- edits

    def edit(self, who: str, request: EditRequest) -> Job[Entry]:
        """Make one edit, when it is its turn; the visitor's live edits that have not ended are ended for it.

        Raises:
            SageError: it cannot be made, and why; what only the model tells is an error of the job.
        """
        return self.submit(who, "live" if request.live else "edit", self.editing(who, request))

    def variants(self, who: str, requests: Sequence[EditRequest]) -> Job[list[Entry]]:
        """Make several edits of one picture, one after the other; what they can share of an inversion is made once."""
        return self.submit(who, "variants", self.varying(who, requests))

    def editing(self, who: str, request: EditRequest) -> Work[Entry]:
        """The work of `edit`; raises what that raises."""
        visit = self.visit(who)
        picture = self._edited(who, visit, request)
        return lambda job: self._edit(who, visit, picture, request, job)

    def varying(self, who: str, requests: Sequence[EditRequest]) -> Work[list[Entry]]:
        """The work of `variants`; raises what that raises."""
        visit = self.visit(who)
        picture = [self._edited(who, visit, request) for request in requests][0]

        def work(job: Job[list[Entry]]) -> list[Entry]:
            made = []
            job.parts = len(requests)
            for job.part, request in enumerate(requests, 1):
                job.clock.begin()
                made.append(self._edit(who, visit, picture, request, job))
            return made

        return work

    def submit(self, who: str, kind: str, work: Work[T]) -> Job[T]:
        """Put a piece of a visitor's work at the end of the queue; an edit ends their live ones."""
        if kind in ("edit", "live"):
            for job in self.jobs.of(who):
                if job.kind == "live":
                    job.cancel()
        return self.jobs.submit(who, kind, Clock(), work)

    def once_loaded(self, model: str, begin: Callable[[], Work[T]]) -> Work[T]:
        """Work for a model that was never in memory: only when it is can be told which settings it recommends.

        Args:
            begin: gives the work; what it raises is an error of the job.
        """
        def work(job: Job[T]) -> T:
            self._load(model, job.clock)
            return begin()(job)

        return work

    def look_inside(self, who: str, entry: Entry) -> Job[str]:
        """Make one of the visitor's edits again, watched: a page that shows what happened, as `sage edit --explain`.

        Watching changes nothing, but keeps and decodes every step: none is watched that was not asked to be.
        """
        record = entry.record
        if "picture" not in record:
            raise SettingsError("a picture from text has no inside to look into: take an edit")
        picture, clock = self.album.edited_in(who, record), Clock()
        request = EditRequest(record["model"], record["source"], record["target"], settings_in(record),
                              record["truncate"], mask=self.album.mask_in(who, record), paste="paste" in record,
                              moves=asked_in(record).get("moves", ()))
        return self.jobs.submit(who, "look", clock, lambda job: self._look(who, entry, picture, request, clock))

    def choose(self, who: str, name: str) -> Job[None]:
        """Load a model in the place of the one that is there, when it is its turn.

        A model that cannot be loaded is the job's ModelError; there is then none, until one is chosen that can.
        """
        clock = Clock()
        return self.jobs.submit(who, "model", clock, lambda job: self._load(name, clock))

    def use(self, name: str) -> None:
        """`choose`, waited for."""
        self.jobs.do(self._load, name, Clock())

    def known(self, model: str | None = None) -> Advice | None:
        """What a model, or else the one in memory, recommends; None of one that was never loaded here."""
        return self._advice.get(self.name if model is None else model)

    def usable(self, task: str, model: str | None = None) -> list[Method[Any]]:
        """The methods for a task that suit a model, or else the one in memory.

        Raises:
            SettingsError: it was never loaded here.
            ModelError: this studio does not have it.
        """
        return list(self._told(model).suited[task])

    def recommended(self, task: str, name: str, words: Settings | None = None, model: str | None = None) -> Settings:
        """What a model, or else the one in memory, recommends for a method.

        Args:
            words: settings whose phrases and factors are kept.
        Raises:
            SettingsError: this studio has no such method, or the model cannot be used with it or was never loaded here.
        """
        settings = self._told(model).recommended(task, self.found(name, task).name)
        return settings if words is None else carried(settings, words)

    def usual(self, task: str, model: str | None = None) -> str:
        """The method that a task begins with: for edits the one that is recorded for the model, else everybody's."""
        known = self.known(model)
        return known.usual(task) if known else DEFAULTS[task]

    def _told(self, model: str | None) -> Advice:
        self.check(self.name if model is None else model)
        if (known := self.known(model)) is None:
            raise SettingsError(f"{(model or self.name)[:60]!r} was not loaded here yet: choose it as the model")
        return known

    def found(self, name: Any, task: str = "edit") -> Method[Any]:
        """A method by the name that a visitor sends: one of ours, never a file."""
        if not isinstance(name, str) or name not in self.methods[task]:
            raise SettingsError(f"this studio has no method {str(name)[:60]!r}: choose one of "
                                f"{', '.join(self.methods[task])}")
        return self.methods[task][name]

    def words(self, source: str, target: str, config: Settings, model: str | None = None) -> dict[str, Any]:
        """`sage.studio.words.compare` with the tokenizer of a model, or else of the one in memory."""
        with self._words:
            if model is None and self.model is None:  # one could not be loaded
                return {"problem": "there is no model: choose one"}
            source, target = source[:LONGEST_PROMPT], target[:LONGEST_PROMPT]
            return compare(self._told(model).prompts, source, target, config) | {
                "instructed": instructed(source, target)}

    def _edited(self, who: str, visit: Visit, request: EditRequest) -> Picture:
        """The picture to edit; SageError for whatever can be told without the model."""
        if request.picture:
            visit.picture = self.album.picture(who, request.picture)
        if visit.picture is None:
            raise PictureError("there is no picture yet: drop one, or take an example")
        for name in ("source", "target"):
            check_prompt(name, getattr(request, name))
        self._check(request, "edit")
        mask = self.album.picture(who, request.mask).image if request.mask else None
        check_request(method_of(request.config), Request(mask=mask, moves=request.moves))
        if request.paste and mask is None:
            raise SettingsError("there is no mask to paste around: mark where the picture may change")
        return visit.picture

    def check(self, model: str) -> None:
        """ModelError for a model that this studio does not have."""
        if model not in self.places:
            raise ModelError(f"this studio has no model {model[:60]!r}: choose one of {', '.join(self.places)}")

    def _check(self, request: EditRequest | MakeRequest, task: str) -> None:
        self.check(request.model)
        for name in ("steps", "retries"):
            if getattr(request.config, name, 0) > (most := getattr(self.limits, name)):
                raise SettingsError(f"{name} is {getattr(request.config, name)}: this studio allows at most {most}")
        self.found(method_of(request.config).name, task)

    def _check_side(self, name: str, side: int | None) -> None:
        if (side or 0) > (most := self.limits.side or 2 * self.model.sample_size):
            raise SettingsError(f"{name} is {side}: this studio allows at most {most}")

    def _edit(self, who: str, visit: Visit, picture: Picture, request: EditRequest, job: Job[Any]) -> Entry:
        clock = job.clock
        self._load(request.model, clock)
        again = visit.restored
        if again and not (request.is_of(again) and picture.is_of(again)):
            again = None
        said: tuple[str, ...] = ()
        if again is None:
            (source, target), said = as_taught(self.name, self.model.prompts.taught, request.source, request.target)
            request = replace(request, source=source, target=target)
        request, plan, left_out = self._planned(request)
        key = self._key(who, picture, request, plan)
        trajectory = self.trajectories.get(key)
        if trajectory is None:
            self.trajectories.spare(self.trajectories.largest)  # before another is made beside them
        self._foresee(clock, picture, request, inverted=trajectory is not None)
        savings = Savings.from_dict(again["savings"]) if again else None
        mask = self.album.mask(who, request.mask, picture.image.size)
        (shown,), _ = framed([picture.image], (), request.config)
        seen = Glimpses(self.model, job.show, shown.size, clock.pace.seconds.get("glimpse", 0.0))
        # A file that is to repeat an edit to the byte is torch's: graphs round otherwise.
        with self._graphs.served() if self._graphs and request.live else nullcontext():
            result = self._made(picture, plan, request, clock, trajectory, mask, watch=seen, savings=savings)
        if seen.cost:
            clock.pace.seconds["glimpse"] = seen.cost
        record = make_record(self.model, request.source, request.target, request.config,
                             truncate=request.truncate, savings=result.savings,
                             **asked_as_text(mask, request.moves, request.paste), **picture.as_record())
        saved = None if trajectory is None else clock.pace.seconds.get("invert", 0.0) * (len(trajectory.latents) - 1)
        with visit.lasting():  # of who has left nothing is kept
            self.trajectories.put(key, result.trajectory)
            path = visit.new_file(f"{Path(picture.identity['name']).stem}-edit.png")
            pictures.save_picture(result.image, path, record)
            entry = Entry(record, path, clock.elapsed, saved, (*said, *left_out, *result.notes),
                          first_change(shown, result.image), request.live)
            for image, eye in zip((shown, result.image), entry.eyes, strict=True):
                pictures.save_picture(for_eyes(image), eye, quick=True)
            return self._remember(visit, entry)

    def _look(self, who: str, entry: Entry, picture: Picture, request: EditRequest, clock: Clock) -> str:
        self._load(request.model, clock)
        request, plan, _ = self._planned(request)
        with self._words:
            seen = Explanation(self.model, picture.image, request.source, request.target, request.config,
                               truncate=request.truncate)
        trajectory = self.trajectories.get(self._key(who, picture, request, plan))
        mask = self.album.mask(who, request.mask, picture.image.size)
        self._foresee(clock, picture, request, inverted=trajectory is not None)
        result = self._made(picture, plan, request, clock, trajectory, mask, watch=seen,
                            savings=Savings.from_dict(entry.record["savings"]))
        with self._words, tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return seen.write(folder, result, clock).read_text(encoding="utf-8")

    def _made(self, picture: Picture, plan: Plan, request: EditRequest, clock: Clock, trajectory: Trajectory | None,
              mask: Image.Image | None, **more: Any) -> EditResult:
        asked = Request(request.source, request.target, mask=mask, moves=request.moves)
        result = edit_batch(self.model, [picture.image], [plan], request.config, clock, trajectory, requests=[asked],
                            **more)[0]
        if not request.paste:
            return result
        (original,), (asked,) = framed([pictures.normalise(picture.image)], [asked], request.config)
        return replace(result, image=pasted(result.image, original, asked.mask))

    def _planned(self, request: EditRequest) -> tuple[EditRequest, Plan, tuple[str, ...]]:
        """The edit without words that are not in its prompts any more, its plan, and what was left out."""
        self._check_side("size", getattr(request.config, "size", None))
        settings_for(self.model, request.config, None)

        def check(config: Settings) -> Plan:
            return check_prompts(self.model, request.source, request.target, config, request.truncate)

        with self._words:
            config, left_out = fitting(check, request.config)
            return replace(request, config=config), check(config), left_out

    def _key(self, who: str, picture: Picture, request: EditRequest, plan: Plan) -> tuple:
        """Of the inversion that an edit takes."""
        return who, self.name, picture.key, sharing_key(request.config, [plan]), bool(self._graphs and request.live)

    def _foresee(self, clock: Clock, picture: Picture, request: EditRequest, inverted: bool) -> None:
        """Tell the clock what is ahead, and how fast that went before."""
        config, way = request.config, method_of(request.config)
        size = task_of(self.model, [picture.image], config).size
        latents = self.model.latent_shape(size)[1:]
        up, down = way.path_steps(self.model, config, latents), len(way.edges(self.model, config, latents)[1])
        ahead = (("invert", 0 if inverted else up), ("edit", down))
        clock.plan = tuple((phase, steps) for phase, steps in ahead if steps)
        chosen = tuple(getattr(config, f.name) for f in config.fields() if f.metadata["choices"])
        clock.pace = self.paces.setdefault((self.name, way.name, size, chosen), Pace())

    # ---- pictures from text

    def make(self, who: str, request: MakeRequest) -> Job[Entry]:
        """Make a picture of a prompt from noise; as `edit`, of which it knows nothing."""
        return self.submit(who, "generate", self.making(who, request))

    def making(self, who: str, request: MakeRequest) -> Work[Entry]:
        """The work of `make`; raises what that raises."""
        visit = self.visit(who)
        check_prompt("target", request.prompt)
        self._check(request, "generate")
        return lambda job: self._make(visit, request, job)

    def _make(self, visit: Visit, request: MakeRequest, job: Job[Any]) -> Entry:
        clock = job.clock
        self._load(request.model, clock)
        (prompt,), said = as_taught(self.name, self.model.prompts.taught, request.prompt)
        request, side = replace(request, prompt=prompt), self.model.sample_size
        config, size = request.config, (request.width or side, request.height or side)
        for name, side in zip(("width", "height"), size, strict=True):
            self._check_side(name, side)
        chosen = tuple(getattr(config, f.name) for f in config.fields() if f.metadata["choices"])
        clock.plan = (("generate", getattr(config, "steps", 0)),)
        clock.pace = self.paces.setdefault((self.name, method_of(config).name, size, chosen), Pace())
        with ExitStack() as words:
            words.enter_context(self._words)

            def report(phase: str, done: int, total: int) -> None:
                words.close()  # the prompts are read
                clock(phase, done, total)

            seen = Glimpses(self.model, job.show, size, clock.pace.seconds.get("glimpse", 0.0))
            made = generate(self.model, request.prompt, config, report, seen, negative=request.negative, width=size[0],
                            height=size[1], truncate=request.truncate)[0]
        if seen.cost:
            clock.pace.seconds["glimpse"] = seen.cost
        record = make_generation_record(self.model, request.prompt, request.negative, config, size, request.truncate,
                                        savings=made.savings)
        with visit.lasting():
            path = visit.new_file(f"{_name_of(request.prompt)}.png")
            pictures.save_picture(made.image, path, record)
            entry = Entry(record, path, clock.elapsed, None, (*said, *made.notes))
            pictures.save_picture(for_eyes(made.image), entry.eyes[1], quick=True)
            return self._remember(visit, entry)

    def _load(self, name: str, clock: Clock) -> None:
        self.check(name)
        if self.model is None or name != self.name:
            clock("load", 0, 1)
            self.trajectories.drop(lambda key: True)
            with self._words:
                self.model = None  # two would be a lot
                model = self._loaded(name)
                self._advice[name] = advice(model, {task: found.values() for task, found in self.methods.items()})
                self.model, self.name = model, name
                self._graphs = compile_networks(model, serving=False) if self.compiled else None

    def _loaded(self, name: str) -> Backbone:
        try:
            return load_model(self.places[name])
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Outside the handler, which would keep alive what was loaded.
        raise ModelError(f"{name} does not fit into memory: choose another model")


@lru_cache(1)
def _encoder() -> Encoder:
    return load_encoder()


def _record_in(path: Path) -> dict[str, Any] | None:
    """What stands in a picture's file; None in one like any other."""
    try:
        pictures.read_settings(path)
    except PictureError:
        return None
    return read_record(path)


def _name_of(prompt: str) -> str:
    """A file's name from the first words of a prompt."""
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower())[:8])[:60] or "picture"
