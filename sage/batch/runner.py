"""Makes what is missing of a batch: one inversion for edits that can share it, each result safe before the next."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

import sage
from sage import pictures
from sage.batch.manifest import DONE, FAILED, Line, Manifest, failed, now
from sage.batch.table import MOST_WRONG, Row
from sage.bench.files import inside
from sage.editing import settings_for
from sage.errors import PictureError, SageError, out_of_memory
from sage.files import same_file
from sage.method import method
from sage.models.backbone import Backbone
from sage.pictures.metadata import make_record, read_record
from sage.pictures.originals import identity
from sage.prompts.plan import Plan
from sage.prompts.vocabulary import as_taught
from sage.settings import Settings
from sage.trajectory.fitting import sharing_key

Progress = Callable[[str, int, int], None]
Tell = Callable[[Line, bool], None]


@dataclass(frozen=True)
class Task:
    """A row with all that its edit depends on.

    Attributes:
        record: the settings to be stored in the edit.
    """

    row: Row
    path: Path
    plan: Plan
    config: Settings
    record: dict[str, Any]

    @property
    def digest(self) -> str:
        """Changes whenever the edit could, but for the versions of what makes it."""
        made = {name: self.record["made"][name] for name in ("device", "dtype")}
        record = {name: value for name, value in self.record.items() if name != "savings"}  # known only when it is made
        return hashlib.sha256(json.dumps(record | {"made": made}, sort_keys=True).encode()).hexdigest()

    @property
    def inversion(self) -> tuple:
        """Edits in which this is equal have the same inversion."""
        return self.record["picture"]["sha256"], sharing_key(self.config, [self.plan])

    def line(self, status: str, **more: Any) -> Line:
        """What became of it, now."""
        return Line(self.row.number, self.row.line, status, self.row.out, self.record["picture"]["name"],
                    self.row.source, self.row.target, digest=self.digest, time=now(), **more)


def run_batch(model: Backbone, rows: Sequence[Row], folder: Path, preset: str | None = None,
              changes: Mapping[str, Any] | None = None, truncate: bool = False, prediction_type: str | None = None,
              tell: Tell | None = None, progress: Progress | None = None) -> tuple[list[Line], list[Task]]:
    """Make the edits that a table asks for, and that are not there yet as it asks for them.

    Args:
        preset: of each row's method, to start from; default: what the model recommends for the method.
        changes: settings for all rows whose methods have them; those of a row win.
        tell: called with each row's line as it is known, and whether it was made now.
        progress: called with (phase, steps done, steps in all) of the row at work.
    Returns:
        A line for each row, in their order, and the tasks of those that are done.
    Raises:
        SageError: the folder cannot be written to, or another process is at work there.
    """
    tell, lines, tasks = tell or (lambda line, new: None), {}, []
    with Manifest(folder) as manifest:
        def settle(line: Line, new: bool = True) -> None:
            if new:
                manifest.append(line)
            lines[line.row] = line
            tell(line, new)

        hashes: dict[Path, dict[str, str]] = {}
        given, wrong = {row.picture for row in rows if not row.wrong}, 0
        for i, row in enumerate(rows):
            if progress:
                progress("read", i, len(rows))
            try:
                task = _task(model, row, folder, preset, changes or {}, truncate, prediction_type, hashes)
                old = manifest.done.get(row.out)
                if old and old.digest == task.digest and _intact(task.path, old):
                    settle(old if (old.row, old.line) == (row.number, row.line) else _moved(old, row), new=False)
                else:
                    _check_place(task.path, given, row.method)
            except SageError as error:
                settle(failed(row, str(error)))
                wrong += 1
                if wrong > MOST_WRONG:
                    raise PictureError(f"more than {MOST_WRONG} rows cannot be made, the last one on line {row.line}: "
                                       f"{error}") from error
                continue
            tasks.append(task)
        for group in _groups(task for task in tasks if task.row.number not in lines):
            for line in _made(model, group, prediction_type, truncate, progress):
                settle(line)
    done = [task for task in tasks if lines[task.row.number].status == DONE]
    return [lines[row.number] for row in rows], done


def _task(model: Backbone, row: Row, folder: Path, preset: str | None, changes: Mapping[str, Any], truncate: bool,
          prediction_type: str | None, hashes: dict[Path, dict[str, str]]) -> Task:
    """A row that can be made, as far as is known without its picture's pixels; SageError for one that cannot."""
    if row.wrong:
        raise PictureError(row.wrong)
    path = inside(folder, row.out)
    pictures.check_writable(path)
    if row.picture not in hashes:
        hashes[row.picture] = identity(row.picture)
    config = _settings(model, row, preset, changes)
    (source, target), said = as_taught(model.name, model.prompts.taught, row.source, row.target)
    row = replace(row, source=source, target=target, notes=(*row.notes, *said))
    plan = sage.check_prompts(model, row.source, row.target, config, truncate)
    return Task(row, path, plan, config, make_record(model, row.source, row.target, config, hashes[row.picture],
                                                     truncate, prediction_type))


def _settings(model: Backbone, row: Row, preset: str | None, changes: Mapping[str, Any]) -> Settings:
    base = settings_for(model, None if preset is None else method(row.method).preset(preset), row.method)
    return base.but(**{name: value for name, value in changes.items() if name in base.names()} | dict(row.settings))


def _check_place(path: Path, given: Iterable[Path], trusted: str) -> None:
    """PictureError for a place that holds something else than an edit."""
    if not os.path.exists(path):
        return
    if any(same_file(path, picture) for picture in given):
        raise PictureError(f"{path} is a picture to edit, and would be overwritten: give another name")
    try:
        read_record(path, "edit", trusted)
    except PictureError as error:
        raise PictureError(f"{path} exists and is no edit of ours: it is left alone; give another name") from error


def _intact(path: Path, line: Line) -> bool:
    try:
        return identity(path)["sha256"] == line.sha256
    except PictureError:
        return False


def _groups(tasks: Iterable[Task]) -> list[list[Task]]:
    """Tasks that share an inversion, together."""
    groups: dict[tuple, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.inversion, []).append(task)
    return list(groups.values())


def _made(model: Backbone, group: Sequence[Task], prediction_type: str | None, truncate: bool,
          progress: Progress | None) -> Iterator[Line]:
    """The lines of tasks that share an inversion, each once its edit is on the disk."""
    image, trajectory = None, None
    for task in group:
        began = time.monotonic()
        try:
            image = image or _opened(task)
            result = sage.edit(model, image, task.row.source, task.row.target, task.config, progress, trajectory,
                               truncate)
            pictures.save_picture(result.image, task.path, task.record | {"savings": result.savings.as_dict()})
        except SageError as error:
            yield task.line(FAILED, reason=str(error), seconds=_since(began))
            continue
        except Exception as error:
            if not out_of_memory(error):
                raise
            yield task.line(FAILED, reason="out of memory: try a smaller size", seconds=_since(began))
            continue
        trajectory = result.trajectory
        yield task.line(DONE, notes=(*task.row.notes, *result.notes), seconds=_since(began),
                        sha256=identity(task.path)["sha256"])


def _opened(task: Task) -> Image.Image:
    image = pictures.open_picture(task.row.picture)
    if identity(task.row.picture) != task.record["picture"]:
        raise PictureError(f"{task.row.picture} was changed while the batch was at work: run it again")
    return image


def _moved(line: Line, row: Row) -> Line:
    """The line of an edit that stands elsewhere in the table now."""
    return Line(**line.as_dict() | {"row": row.number, "line": row.line, "notes": tuple(line.notes)})


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
