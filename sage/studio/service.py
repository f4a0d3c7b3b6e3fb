"""The work behind the studio: one model, one edit at a time, and what each visitor may see of it.  Knows no Gradio."""

import secrets
import shutil
import sys
import tempfile
import traceback
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sage import pictures
from sage.config import EditConfig
from sage.editing import EditResult, edit_batch
from sage.errors import ModelError, PictureError, SageError, SettingsError, out_of_memory
from sage.explain import Explanation
from sage.inversion import Trajectory, recording_key
from sage.models.known import find_model
from sage.models.loading import load_model
from sage.models.sd.model import StableDiffusion
from sage.pictures.metadata import check_prompt, identity, make_record, read_record
from sage.prompts.plan import Plan, check_prompts
from sage.studio.cache import Cache
from sage.studio.clock import Cancelled, Clock, Pace
from sage.studio.visit import Entry, Picture, Visit, for_eyes
from sage.studio.words import compare

T = TypeVar("T")
TICK = 0.1  # seconds between two looks at running work
LONGEST_NAME = 80


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the machine.

    Attributes:
        pixels: of a picture.
        side: largest `size` to work at, in pixels; None for twice the model's own.
        edits: remembered per visitor.
        visits: remembered at a time; who came back least recently is forgotten first.
        memory: bytes of inversions kept for further edits, and of pictures.
    """

    pixels: int = 16_000_000
    side: int | None = None
    steps: int = 100
    retries: int = 3
    edits: int = 24
    visits: int = 64
    memory: int = 1 << 30


@dataclass(frozen=True)
class EditRequest:
    """One edit as a visitor wants it."""

    model: str
    source: str
    target: str
    config: EditConfig
    truncate: bool = False


class Studio:
    """One model in memory, and whoever comes to use it.

    Attributes:
        model: None after one could not be loaded, until another is.
        name: of the model that is in memory, or was last.

    Args:
        models: what the visitors can choose from, as `sage.load_model` takes it; the first is loaded at once.
        folder: where the visitors' files go.
    Raises:
        ModelError: one of the models is not there.
    """

    def __init__(self, models: Sequence[str], limits: Limits | None = None, folder: Path | None = None):
        self.limits = limits or Limits()
        self.places = {find_model(model)[0]: model for model in models}
        if not self.places:
            raise ModelError("no model is here: name one with --model")
        self.folder = folder or Path(tempfile.mkdtemp(prefix="sage-studio-"))
        self.trajectories: Cache[Trajectory] = Cache(self.limits.memory, lambda trajectory: trajectory.nbytes)
        self.pictures: Cache[Picture] = Cache(self.limits.memory // 4, lambda picture: picture.size)
        self.paces: dict[tuple, Pace] = {}
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock, self._words = Lock(), Lock()  # tokenizers cannot be shared by two threads at once
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sage-edit")
        self.recommended: dict[str, EditConfig] = {}
        self.name, place = next(iter(self.places.items()))
        self.model: StableDiffusion | None = self._worker.submit(load_model, place).result()
        self.recommended[self.name] = self.model.recommended

    # ---- visitors

    def visit(self, who: str) -> Visit:
        """The visit of the browser window `who`, begun if it is new."""
        with self._lock:
            if who not in self._visits:
                self._visits[who] = Visit(self.folder / secrets.token_hex(16), self.limits.edits)
            self._visits.move_to_end(who)
            old = [self._visits.popitem(last=False) for _ in range(len(self._visits) - self.limits.visits)]
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
        visit.end()
        self.trajectories.drop(lambda key: key[0] == who)
        self.pictures.drop(lambda key: key[0] == who)

    def close(self) -> None:
        """Stop the work and delete all files."""
        for who in list(self._visits):
            self.leave(who)
        self._worker.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- pictures

    def take(self, who: str, path: Path, name: str) -> dict[str, Any] | None:
        """Make an uploaded file the visitor's picture.

        Args:
            path: a file that this server has written.
            name: what the visitor calls it, of which no more than the last part is kept.
        Returns:
            The record of the edit that the file is the result of, checked; None for any other picture.  The picture
            that was edited takes its place if the visitor had brought it.
        Raises:
            PictureError: no picture, damaged, or too large; the visitor's picture is then as before.
        """
        name = "".join(c for c in name.replace("\\", "/").rpartition("/")[2] if c.isprintable())[-LONGEST_NAME:]
        name = name if name.strip(". ") else "picture.png"
        try:
            image = pictures.open_picture(path, self.limits.pixels)
            record = self._record_in(path)
        except PictureError as error:
            raise PictureError(str(error).replace(str(path), name)) from None
        picture = Picture(image, identity(path, name))
        self._show(who, picture)
        if record and (known := self.pictures.get((who, record["picture"]["sha256"]))):
            self._show(who, known)
        return record

    def _show(self, who: str, picture: Picture) -> None:
        self.visit(who).picture = picture
        self.pictures.put((who, picture.identity["sha256"]), picture)

    def _record_in(self, path: Path) -> dict[str, Any] | None:
        try:
            pictures.read_settings(path)
        except PictureError:
            return None  # a picture like any other
        record = read_record(path, "edit")
        try:
            EditConfig.from_dict(record["config"])
        except SettingsError as error:
            raise PictureError(f"{path}: the settings of the edit in it are damaged ({error})") from error
        return record

    def restore(self, who: str, index: int) -> Entry:
        """One of the visitor's own edits again; its picture becomes theirs, if it is still remembered."""
        visit = self.visit(who)
        if not 0 <= index < len(visit.entries):
            raise SettingsError("that edit is not remembered any more")
        entry = visit.entries[index]
        visit.picture = self.pictures.get((who, entry.record["picture"]["sha256"])) or visit.picture
        return entry

    # ---- edits

    def edit(self, who: str, request: EditRequest) -> Generator[Clock, None, Entry]:
        """Make one edit; a look at its clock every now and then, and what came of it in the end.

        Closing the generator stops the edit.

        Raises:
            Cancelled: `Visit.cancel` was called.
            SageError: it cannot be made, and why.
        """
        visit = self.visit(who)
        picture = self._checked(visit, request)
        clock = visit.clock = Clock([("invert", request.config.steps), ("edit", request.config.steps)])
        return (yield from self._watched(clock, self._edit, who, visit, picture, request, clock))

    def look_inside(self, who: str, entry: Entry) -> Generator[Clock, None, str]:
        """Make one of the visitor's edits again, watched: a page that shows what happened, as `sage edit --explain`.

        Watching changes nothing, but keeps and decodes every step: none is watched that was not asked to be.
        """
        visit = self.visit(who)
        picture = self.pictures.get((who, entry.record["picture"]["sha256"]))
        if picture is None:
            raise PictureError(f"{entry.record['picture']['name']} is not remembered any more: drop it again")
        record = entry.record
        request = EditRequest(record["model"], record["source"], record["target"],
                              EditConfig.from_dict(record["config"]), record["truncate"])
        clock = visit.clock = Clock([("edit", request.config.steps)])
        return (yield from self._watched(clock, self._look, who, visit, picture, request, clock))

    def use(self, name: str) -> EditConfig:
        """Load a model in the place of the one that is there, and say what settings it recommends.

        Raises:
            ModelError: it cannot be loaded; there is then no model, until one is chosen that can.
        """
        with _told():
            return self._worker.submit(self._load, name, Clock()).result()

    def words(self, source: str, target: str, config: EditConfig) -> dict[str, Any]:
        """`sage.studio.words.compare` with the present model's tokenizer."""
        with self._words:
            if self.model is None:  # one could not be loaded
                return {"problem": "there is no model: choose one"}
            return compare(self.model.prompts, source[:4096], target[:4096], config)

    def _watched(self, clock: Clock, work: Callable[..., T], *arguments: Any) -> Generator[Clock, None, T]:
        """Run in the worker's thread; one at a time, whoever asks."""
        future: Future[T] = self._worker.submit(work, *arguments)
        try:
            with _told():
                while not wait([future], timeout=TICK).done:
                    yield clock
                return future.result()
        finally:
            clock.cancel()
            future.cancel()

    def _checked(self, visit: Visit, request: EditRequest) -> Picture:
        """The picture to edit; SageError for whatever can be told without the model."""
        if visit.picture is None:
            raise PictureError("there is no picture yet: drop one, or take an example")
        for name in ("source", "target"):
            check_prompt(name, getattr(request, name))
        if request.model not in self.places:
            raise ModelError(f"this studio has no model {request.model[:60]!r}: choose one of {', '.join(self.places)}")
        for name in ("steps", "retries"):
            if getattr(request.config, name) > (most := getattr(self.limits, name)):
                raise SettingsError(f"{name} is {getattr(request.config, name)}: this studio allows at most {most}")
        return visit.picture

    def _edit(self, who: str, visit: Visit, picture: Picture, request: EditRequest, clock: Clock) -> Entry:
        self._load(request.model, clock)
        plan, key = self._plan(who, picture, request)
        clock.pace = self._pace(request.config)
        trajectory = self.trajectories.get(key)
        if trajectory is None:
            self.trajectories.spare(self.trajectories.largest)  # before another is made beside them
        else:
            clock.plan = (("edit", request.config.steps),)
        result = edit_batch(self.model, [picture.image], [plan], request.config, clock, trajectory)[0]
        record = make_record(self.model, request.source, request.target, request.config, picture.identity,
                             request.truncate)
        saved = None if trajectory is None else clock.pace.seconds.get("invert", 0.0) * request.config.steps
        with visit.lasting():  # of who has left nothing is kept
            self.trajectories.put(key, result.trajectory)
            path = visit.new_file(f"{Path(picture.identity['name']).stem}-edit.png")
            pictures.save_picture(result.image, path, record)
            entry = Entry(record, path, clock.elapsed, saved, result.notes)
            for image, eye in zip((picture.image, result.image), entry.eyes, strict=True):
                pictures.save_picture(for_eyes(image), eye)
            visit.remember(entry)
        return entry

    def _look(self, who: str, visit: Visit, picture: Picture, request: EditRequest, clock: Clock) -> str:
        self._load(request.model, clock)
        plan, key = self._plan(who, picture, request)
        clock.pace = self._pace(request.config)
        with self._words:
            seen = Explanation(self.model, picture.image, request.source, request.target, request.config,
                               truncate=request.truncate)
        result: EditResult = edit_batch(self.model, [picture.image], [plan], request.config, clock,
                                        self.trajectories.get(key), seen)[0]
        with self._words, tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return seen.write(folder, result, clock).read_text(encoding="utf-8")

    def _plan(self, who: str, picture: Picture, request: EditRequest) -> tuple[Plan, tuple]:
        """What to do, and the key of the inversion that it takes."""
        most = self.limits.side or 2 * self.model.sample_size
        if (request.config.size or 0) > most:
            raise SettingsError(f"size is {request.config.size}: this studio allows at most {most}")
        with self._words:
            plan = check_prompts(self.model, request.source, request.target, request.config, request.truncate)
        return plan, (who, self.model.name, picture.identity["sha256"], recording_key(request.config, [plan]))

    def _pace(self, config: EditConfig) -> Pace:
        key = (self.model.name, config.size, config.reconstruction)
        return self.paces.setdefault(key, Pace())

    def _load(self, name: str, clock: Clock) -> EditConfig:
        if name not in self.places:
            raise ModelError(f"this studio has no model {name[:60]!r}: choose one of {', '.join(self.places)}")
        if self.model is None or name != self.name:
            clock("load", 0, 1)
            self.trajectories.drop(lambda key: True)
            with self._words:
                self.model = None  # two would be a lot
                self.model, self.name = self._loaded(name), name
            self.recommended[name] = self.model.recommended
        return self.model.recommended

    def _loaded(self, name: str) -> StableDiffusion:
        try:
            return load_model(self.places[name])
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Outside the handler, which would keep alive what was loaded.
        raise ModelError(f"{name} does not fit into memory: choose another model")


@contextmanager
def _told() -> Iterator[None]:
    """Whatever goes wrong is one line for the visitor."""
    try:
        yield
    except (SageError, Cancelled):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise SettingsError("out of memory: try a smaller size") from None
        traceback.print_exception(error, file=sys.stderr)
        raise SageError("something went wrong on the server, and was written to its log") from None
