"""The studio over HTTP: pictures, edits, jobs and results of whoever asks, as JSON.

A visitor is known by a cookie; what they bring and what is made for them is theirs alone.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from sage import __version__, pictures
from sage.display.console import printable
from sage.errors import PictureError, SageError, SettingsError
from sage.method import DEFAULTS, method_of
from sage.pictures.metadata import MAX_MOVES
from sage.settings import Settings, Span, seed_of
from sage.studio import form, recipe
from sage.studio.answers import job_as, method_as, picture_as, png_of, record_as, result_as
from sage.studio.examples import WORLD, examples
from sage.studio.jobs import Full, Job
from sage.studio.requests import UPLOAD, EditRequest, MakeRequest
from sage.studio.service import Studio, Work
from sage.studio.visit import for_eyes

COOKIE = "sage-visit"
VARIANTS = 4
LOOK = 0.01  # seconds between looks at a job that is waited for
# Of a page that came out of an edit: it may run what it brought, and reach nothing.
ALONE = ("sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
         "script-src 'unsafe-inline'")
Task = Literal["edit", "generate"]
Texts = Annotated[str, Field(max_length=4096)]
Values = dict[str, bool | int | float | str | list[str] | dict[str, float] | None]
Pixels = Annotated[float, Field(ge=-1e6, le=1e6)]
Where = Annotated[list[Pixels], Field(min_length=2, max_length=4)] | str
Given = Annotated[bytes, Body(media_type="application/octet-stream")]


class Asked(BaseModel):
    """What is common to all that can be asked for.

    Attributes:
        settings: those that differ from what is recommended, by name; as text, as in a form, or as JSON values.
    """

    model: str | None = None
    method: str | None = None
    settings: Values = {}
    truncate: bool = False


class Edit(Asked):
    """An edit: `picture` and `mask` are keys of pictures that were sent before.

    Attributes:
        paste: whether outside the mask the picture's own pixels are put back.
        moves: from where to where a part of the picture is put: x, y, or left, top, right, bottom in its pixels, or the
            key of a mask.
        live: whether it is made while something is being changed: earlier live edits that have not ended are ended, and
            the next result takes its place among the results.
    """

    picture: str
    source: Texts
    target: Texts
    mask: str = ""
    paste: bool = False
    moves: Annotated[list[tuple[Where, Where]], Field(max_length=MAX_MOVES)] = []
    live: bool = False


class Compose(BaseModel):
    """Something of one picture, to be put into another.

    Attributes:
        mask: the key of a picture that is white where the thing is in `reference`.
        box: left, top, right, bottom in pixels of `picture`: what the thing shall fill.
    """

    picture: str
    reference: str
    mask: str
    box: Annotated[list[Pixels], Field(min_length=4, max_length=4)]


class Make(Asked):
    """A picture from text; sides in pixels, the model's own unless given."""

    prompt: Texts
    negative: Texts = ""
    width: int | None = None
    height: int | None = None


class Variants(Edit):
    """Edits that differ in one thing: the method's strength, the seed, the method, or any setting.

    Attributes:
        values: of it, at most four; default: four that are spread well.
    """

    axis: str = "strength"
    values: list[str | int | float] | None = Field(default=None, max_length=VARIANTS)


class Compared(BaseModel):
    """Two prompts and a form."""

    model: str | None = None
    source: Texts
    target: Texts
    method: str
    settings: Values = {}


def api(studio: Studio, framed: bool = False) -> FastAPI:
    """The API of a studio, under /api.

    Args:
        framed: whether its page is shown inside one of another site, for which cookies are to be marked.
    """
    app = FastAPI(title="SAGE", version=__version__, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
                  description="Edit a picture by rewriting its description. Send a picture, ask for an edit, follow "
                              "its job, fetch the result.")
    app.state.cookie = {"httponly": True, "samesite": "none", "secure": True, "partitioned": True} if framed else {
        "httponly": True, "samesite": "strict"}
    app.add_exception_handler(SageError, _refused)
    app.add_exception_handler(RequestValidationError, _misread)
    app.add_exception_handler(HTTPException, _unserved)
    asks = _Asks(studio)
    _add_pictures(app, studio)
    _add_work(app, studio, asks)
    _add_results(app, studio)
    _add_knowledge(app, studio, asks)
    return app


def visitor(request: Request, response: Response) -> str:
    """Who asks, by their cookie; somebody new is given one."""
    who = request.cookies.get(COOKIE, "")
    if not (len(who) == 32 and who.isalnum()):
        who = secrets.token_hex(16)
        response.set_cookie(COOKIE, who, **request.app.state.cookie)
    return who


Who = Annotated[str, Depends(visitor)]


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """A mistake is one line."""
    return JSONResponse({"error": str(error)}, status_code=503 if isinstance(error, Full) else 422)


async def _misread(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0]  # type: ignore[attr-defined]
    where = ".".join(str(part) for part in first["loc"][1:])
    said = printable(f"{where or 'the request'}: {first['msg'].lower()}")
    return JSONResponse({"error": said[:300]}, status_code=422)


async def _unserved(request: Request, error: Exception) -> JSONResponse:
    """What there is not, or is asked for in another way, is one line too."""
    status = error.status_code  # type: ignore[attr-defined]
    return JSONResponse({"error": str(error.detail).lower()}, status)  # type: ignore[attr-defined]


class _Asks:
    """What was asked for, as requests of the studio."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def config(self, task: Task, asked: Asked) -> Settings:
        """The settings that are meant: those that the model recommends, with changes."""
        method = asked.method or self.studio.usual(task, asked.model)
        return changed(self.studio.recommended(task, method, model=asked.model), asked.settings)

    def job(self, who: str, kind: str, asked: Asked, begin: Callable[[], Work[Any]]) -> dict[str, Any]:
        """What is asked for, as a job; of a model that was never loaded it begins with that.

        Args:
            begin: gives the work.
        """
        asked.model = model = asked.model or self.studio.name  # another may be loaded at any moment
        self.studio.check(model)
        work = begin() if self.studio.known(model) else self.studio.once_loaded(model, begin)
        return job_as(self.studio, self.studio.submit(who, kind, work))

    def edit(self, who: str, asked: Edit) -> EditRequest:
        return EditRequest(asked.model or self.studio.name, asked.source, asked.target, self.config("edit", asked),
                           asked.truncate, asked.picture, asked.mask, asked.paste,
                           self.studio.album.moved(who, asked.picture, asked.moves) if asked.moves else (), asked.live)

    def make(self, asked: Make) -> MakeRequest:
        return MakeRequest(asked.model or self.studio.name, asked.prompt, asked.negative, asked.width, asked.height,
                           self.config("generate", asked), asked.truncate)

    def variants(self, who: str, asked: Variants) -> list[EditRequest]:
        """As many edits as there are values of the axis."""
        one = replace(self.edit(who, asked), live=False)
        if asked.axis == "method":
            names = [str(name) for name in asked.values or self._methods(one)]
            return [replace(one, config=self.studio.recommended("edit", name, one.config, one.model))
                    for name in names]
        name = method_of(one.config).strength if asked.axis == "strength" else asked.axis
        values = asked.values or _spread(one.config, name)
        return [replace(one, config=changed(one.config, {name: value})) for value in values]

    def _methods(self, one: EditRequest) -> list[str]:
        """The method itself and the first others."""
        own = method_of(one.config).name
        return [own, *(m.name for m in self.studio.usable("edit", one.model) if m.name != own)][:VARIANTS]


def changed(base: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings with changes, as the texts of a form or as JSON values.

    Raises:
        SettingsError: a setting that there is not, or a value that is none of it.
    """
    base.but(**{name: getattr(base, name, None) for name in given})  # tells of names that there are not
    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    return base.from_dict(base.as_dict() | dict(given) | form.read_some(type(base), texts))


def _spread(config: Settings, name: str) -> Sequence[Any]:
    """Four values of a setting: its first seeds, its choices, or from low to high."""
    if name == "seed":
        return [seed_of(config) + i for i in range(VARIANTS)]
    searched = type(config).searched().get(name) or form.span_of(type(config), name)
    if not isinstance(searched, Span):
        choices = next((f.metadata["choices"] for f in config.fields() if f.name == name), ()) or searched
        if not choices:
            raise SettingsError(f"{name} has no range to choose from: give values")
        return list(choices)[:VARIANTS]
    return [searched.at((i + 0.5) / VARIANTS) for i in range(VARIANTS)]


@contextmanager
def _uploaded(data: bytes) -> Iterator[Path]:
    """A file of what was sent.

    Raises:
        PictureError: the disk has no room for it.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="upload-"))
            file.write(data)
            file.flush()
        except OSError as error:
            raise PictureError(f"the server cannot keep the file ({error.strerror}): tell whoever runs it") from error
        yield Path(file.name)


# ---- pictures


def _add_pictures(app: FastAPI, studio: Studio) -> None:
    @app.post("/api/pictures", tags=["pictures"])
    def bring(who: Who, data: Given = b"", name: str = "picture.png") -> dict[str, Any]:
        """Bring a picture, its file as the body; what it holds of an earlier edit is told."""
        with _uploaded(data) as path:
            record = studio.take(who, path, name)
        return picture_as(studio.visit(who).picture) | {"record": record and record_as(studio, who, record)}

    @app.post("/api/masks", tags=["pictures"])
    def bring_mask(who: Who, data: Given = b"", name: str = "mask.png") -> dict[str, Any]:
        """Bring a picture of where an edit may be, white there, black elsewhere; or one to put something in from."""
        with _uploaded(data) as path:
            return picture_as(studio.album.take_mask(who, path, name))

    @app.post("/api/pictures/of/{result}", tags=["pictures"])
    def use_result(who: Who, result: str) -> dict[str, Any]:
        """Take a result as the picture to edit next."""
        return picture_as(studio.use_result(who, result)) | {"record": None}

    @app.post("/api/compose", tags=["pictures"])
    def compose(who: Who, asked: Compose) -> dict[str, Any]:
        """Paste something of one picture into another: the paste as a picture, and the mask of the box it fills."""
        mask = studio.compose(who, asked.picture, asked.reference, asked.mask, asked.box)
        return picture_as(studio.visit(who).picture) | {"mask": mask}

    @app.get("/api/pictures/{key}/file", tags=["pictures"], response_class=Response)
    def picture_file(who: Who, key: str) -> Response:
        """A picture, whole, as a PNG."""
        return png_of(studio.album.picture(who, key).image)

    @app.get("/api/pictures/{key}", tags=["pictures"], response_class=Response)
    def picture(who: Who, key: str) -> Response:
        """A picture as it is shown, a PNG: neither too small nor too large for a page."""
        return png_of(for_eyes(studio.album.picture(who, key).image))

    @app.get("/api/pictures/{key}/seen", tags=["pictures"])
    def seen(who: Who, key: str) -> dict[str, str]:
        """What the model in memory makes of a picture: a description, and a note where it is none of its world."""
        return studio.seen(who, key)

    @app.get("/api/examples", tags=["pictures"])
    def list_examples() -> list[dict[str, Any]]:
        """Edits to try."""
        found = examples(studio.folder) if studio.places.keys() & WORLD else ()
        return [{"title": e.title, "source": e.source, "target": e.target, "url": f"api/examples/{i}"}
                for i, e in enumerate(found)]

    @app.get("/api/examples/{index}", tags=["pictures"], response_class=Response)
    def example_picture(index: int) -> Response:
        """The picture of an example."""
        found = examples(studio.folder) if studio.places.keys() & WORLD else ()
        if not 0 <= index < len(found):
            raise SettingsError("there is no such example")
        return png_of(for_eyes(pictures.open_picture(found[index].path)))

    @app.post("/api/examples/{index}", tags=["pictures"])
    def take_example(who: Who, index: int) -> dict[str, Any]:
        """Bring the picture of an example."""
        request = studio.example(who, index)
        return picture_as(studio.visit(who).picture) | {"source": request.source, "target": request.target}


# ---- work


def _add_work(app: FastAPI, studio: Studio, asks: _Asks) -> None:
    @app.post("/api/edit", status_code=202, tags=["work"])
    def edit(who: Who, asked: Edit) -> dict[str, Any]:
        """Ask for an edit: a job."""
        kind = "live" if asked.live else "edit"
        return asks.job(who, kind, asked, lambda: studio.editing(who, asks.edit(who, asked)))

    @app.post("/api/generate", status_code=202, tags=["work"])
    def generate(who: Who, asked: Make) -> dict[str, Any]:
        """Ask for a picture from text: a job."""
        return asks.job(who, "generate", asked, lambda: studio.making(who, asks.make(asked)))

    @app.post("/api/variants", status_code=202, tags=["work"])
    def variants(who: Who, asked: Variants) -> dict[str, Any]:
        """Ask for several edits that differ in one thing: a job with as many results."""
        return asks.job(who, "variants", asked, lambda: studio.varying(who, asks.variants(who, asked)))

    @app.post("/api/results/{key}/inside", status_code=202, tags=["work"])
    def look(who: Who, key: str) -> dict[str, Any]:
        """Ask what happened inside an edit: a job whose result is a page."""
        return job_as(studio, studio.look_inside(who, studio.entry(who, key)))

    @app.post("/api/model", status_code=202, tags=["work"])
    def choose(who: Who, name: Annotated[str, Body(embed=True)]) -> dict[str, Any]:
        """Ask for another model: a job."""
        studio.check(name)
        return job_as(studio, studio.choose(who, name))

    @app.get("/api/jobs/{key}", tags=["work"])
    async def status(who: Who, key: str, wait: Annotated[float, Query(ge=0, le=30)] = 0) -> dict[str, Any]:
        """How far a job is, and what came of it; one that nobody asks about is ended after a while.

        The answer comes at once, or with `wait` when the job has ended, or after so many seconds.
        """
        job, until = _own(studio, who, key), time.monotonic() + wait
        with suppress(asyncio.CancelledError):  # the server ends
            while not job.ended and time.monotonic() < until:
                await asyncio.sleep(LOOK)
        return job_as(studio, job)

    @app.delete("/api/jobs/{key}", tags=["work"])
    def cancel(who: Who, key: str) -> dict[str, Any]:
        """End a job: at once while it waits, at its next step while it works."""
        job = _own(studio, who, key)
        job.cancel()
        return job_as(studio, job)

    @app.get("/api/jobs/{key}/glimpse", tags=["work"], response_class=Response)
    def glimpse(who: Who, key: str) -> Response:
        """What the picture of a job looks like so far, a PNG; 204 before there is one."""
        png = _own(studio, who, key).glimpse
        return Response(png, media_type="image/png", headers={"cache-control": "no-store"}) if png else Response(
            status_code=204)

    @app.get("/api/jobs/{key}/page", tags=["work"], response_class=HTMLResponse)
    def page(who: Who, key: str) -> Response:
        """The page of a job that looked inside an edit."""
        job = _own(studio, who, key)
        if job.kind != "look" or job.state != "done":
            raise SettingsError("that job has no page")
        return HTMLResponse(job.result(), headers={"content-security-policy": ALONE})


def _own(studio: Studio, who: str, key: str) -> Job[Any]:
    if (job := studio.jobs.find(who, key)) is None:
        raise SettingsError("there is no such job, or it is forgotten")
    return job


# ---- results


def _add_results(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/results", tags=["results"])
    def results(who: Who) -> dict[str, Any]:
        """The visitor's results, the newest first, and their jobs that have not ended."""
        welcomed = studio.welcome(who)
        first = studio.first
        return {"results": [result_as(entry) for entry in reversed(studio.visit(who).results)],
                "jobs": [job.id for job in studio.jobs.of(who)], "welcome": welcomed is not None,
                "preparing": first is not None and first.state in ("waiting", "working")}

    @app.get("/api/results/{key}", tags=["results"], response_class=FileResponse)
    def file(who: Who, key: str) -> FileResponse:
        """A result: a PNG that holds its settings."""
        path = studio.entry(who, key).path
        return FileResponse(path, filename=path.name, media_type="image/png")

    @app.get("/api/results/{key}/{side}.png", tags=["results"], response_class=FileResponse)
    def eyes(who: Who, key: str, side: Literal["before", "after"]) -> FileResponse:
        """A result or what it was before, as a page shows it."""
        before, after = studio.entry(who, key).eyes
        return FileResponse(before if side == "before" else after, media_type="image/png",
                            headers={"cache-control": "private, max-age=3600"})

    @app.post("/api/results/{key}/restore", tags=["results"])
    def restore(who: Who, key: str) -> dict[str, Any]:
        """Take the settings of a result back."""
        entry = studio.restore(who, key)
        picture = studio.visit(who).picture
        return {"record": record_as(studio, who, entry.record), "picture": picture and picture_as(picture)}

    @app.get("/api/results/{key}/recipe", tags=["results"])
    def ways(who: Who, key: str) -> dict[str, str]:
        """What makes a result again: a command, and Python."""
        entry = studio.entry(who, key)
        given = entry.record, studio.model, entry.path.name
        return {"command": recipe.as_command(*given), "python": recipe.as_python(*given)}

    @app.get("/api/gallery", tags=["results"])
    def kept() -> list[dict[str, str]]:
        """What is kept on the disk of the server, the newest first; nothing unless it was told to keep."""
        return [{"name": path.name, "url": f"api/gallery/{path.name}"} for path in studio.gallery.paths()]

    @app.get("/api/gallery/{name}", tags=["results"], response_class=FileResponse)
    def kept_file(name: str) -> FileResponse:
        """One of them."""
        return FileResponse(studio.gallery.path(name), media_type="image/png")

    @app.post("/api/gallery/{name}", tags=["results"])
    def take_kept(who: Who, name: str) -> dict[str, Any]:
        """Take one of them back: its settings, and its picture if it is remembered."""
        path = studio.gallery.path(name)
        record = studio.take(who, path, path.name)
        return picture_as(studio.visit(who).picture) | {"record": record and record_as(studio, who, record)}


# ---- what there is


def _add_knowledge(app: FastAPI, studio: Studio, asks: _Asks) -> None:
    @app.get("/api/status", tags=["about"])
    def about(model: str | None = None) -> dict[str, Any]:
        """The models, the one in memory, the queue, and what may be asked for.

        Of another `model` that was loaded here before, its own size, words and usual methods.
        """
        name = model if model in studio.places and studio.known(model) else studio.name
        known, limits = studio.known(name), studio.limits
        return {"version": __version__, "models": list(studio.places), "model": name,
                "loaded": studio.model is not None and name == studio.name, "size": known.sample_size if known else 0,
                "words": list(known.prompts.taught) if known else [], "queue": studio.jobs.counts,
                "limits": {"steps": limits.steps, "retries": limits.retries, "pixels": limits.pixels,
                           "upload": UPLOAD, "variants": VARIANTS},
                "defaults": {task: studio.usual(task, name) for task in DEFAULTS}}

    @app.get("/api/methods", tags=["about"])
    def methods(task: Task = "edit", model: str | None = None) -> list[dict[str, Any]]:
        """The methods that a model can be used with: the one in memory, or another that was loaded here before."""
        return [method_as(m) for m in studio.usable(task, model)]

    @app.get("/api/methods/{name}", tags=["about"])
    def method_form(name: str, task: Task = "edit", model: str | None = None) -> dict[str, Any]:
        """A method's settings: help, kind, range and choices of each, and what is recommended for the model."""
        return form.shown(studio.recommended(task, name, model=model), task)

    @app.post("/api/words", tags=["about"])
    def words(asked: Compared) -> dict[str, Any]:
        """What differs between two prompts, and what the settings say of their words."""
        config = changed(studio.recommended("edit", asked.method, model=asked.model), asked.settings)
        return studio.words(asked.source, asked.target, config, asked.model)
