"""`Method`: what an editing method is, and where the methods are.  Imports no torch.

A method is one file in sage/methods: a frozen dataclass of settings and two functions, a way to noise and a way back.
The way back is a generator of steps; the driver (sage.editing) runs it and knows no method.  docs/methods.md shows
how to write one.
"""

import inspect
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from sage.display.console import did_you_mean
from sage.errors import SettingsError
from sage.files import named_in_file
from sage.settings import Cached, Preserved, Searched, Settings

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sage.job import Job
    from sage.models.backbone import Backbone
    from sage.pictures.regions import Move
    from sage.prompts.plan import Plan
    from sage.prompts.tokens import Prompt, Prompts
    from sage.sampling.levels import Edges, Level
    from sage.sampling.steps import Prediction
    from sage.trajectory.kinds import Trajectory, Wanted


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Request:
    """What a user gave of one edit; a method says in `reads` which of it it looks at.

    Attributes:
        source, target: what the picture shows, and what it shall show.
        negative: what a picture made from nothing shall not show.
        edits: further phrases, each with a strength of its own, for methods that take several.
        mask: where the picture may change, white.
        reference: a picture that something is taken from.
        points: pairs of places (from x, from y, to x, to y) in pixels.
        moves: regions of the picture, and where what is in them shall be.
        foregrounds: two pictures, white where the foreground is in the picture, and where it shall be.
        sentences: two lists of sentences, with the old words and with the new.
    """

    source: str = ""
    target: str = ""
    negative: str = ""
    edits: tuple[str, ...] = ()
    mask: "Image.Image | None" = None
    reference: "Image.Image | None" = None
    points: tuple[tuple[float, float, float, float], ...] = ()
    moves: "tuple[Move, ...]" = ()
    foregrounds: "tuple[Image.Image, ...]" = ()
    sentences: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a way back, as a method yields it; watchers, the driver and the studio read it.

    Attributes:
        step: from 0 on; an edit that is made again by `retries` begins anew at 0.
        attempt: 0, or which of the retries it is of; filled in by the driver.
        z: (B, C, h, w) latents after the step.
        level: the noise level from which it started.
        source, target: what was predicted under each prompt; None where a method has no such branch.
        guided: what the latents moved towards.
        gradient: (B, C, h, w) what a gradient took out of the latents, None where it did nothing.
        loss: a number a picture, None where there was none.
        mask: (B, 1, h, w) in {0, 1}, where the picture could change; None without blending.
        looks: (B, M, h', w') by the name of a branch: how much each place looks at each token of its prompt, as
            applied, mean over heads and sites; filled in by the driver for who watches.
    """

    step: int
    z: "Tensor"
    level: "Level"
    source: "Prediction | None" = None
    target: "Prediction | None" = None
    guided: "Prediction | None" = None
    gradient: "Tensor | None" = None
    loss: tuple[float, ...] | None = None
    mask: "Tensor | None" = None
    looks: Mapping[str, "Tensor"] = field(default_factory=lambda: MappingProxyType({}))
    attempt: int = 0

    @property
    def x0_source(self) -> "Tensor | None":
        """(B, C, h, w) clean latents as predicted under the source prompt."""
        return None if self.source is None else self.source.x0

    @property
    def x0_target(self) -> "Tensor | None":
        """(B, C, h, w) clean latents as predicted under the target prompt."""
        return None if self.target is None else self.target.x0

    @property
    def x0(self) -> "Tensor | None":
        """(B, C, h, w) clean latents that the step moved towards."""
        return None if self.guided is None else self.guided.x0

    @property
    def difference(self) -> "Tensor | None":
        """(B, C, h, w) what the guidance scale multiplies, eps_target - eps_source."""
        return None if self.source is None or self.target is None else self.target.eps - self.source.eps

    @property
    def attention_source(self) -> "Tensor | None":
        """(B, M, h', w') how much each place looks at each token of the source prompt."""
        return self.looks.get("source")

    @property
    def attention_target(self) -> "Tensor | None":
        """(B, M, h', w') how much each place looks at each token of the target prompt."""
        return self.looks.get("target")


class Method(ABC, Generic[S]):
    """An editing method, or one that makes pictures from noise.

    Attributes:
        name: in commands, tables and settings, such as "p2p".
        title, paper: for people: what it is called, and its arXiv number.
        about: one sentence: what it does, and what it cannot.
        good_at: what it is good at, in one clause; docs/rivals.md has the figures.
        Settings: its settings.
        reads: which members of a `Request` it looks at.
        texts: names of embedded prompts, or of what is made of some, that it asks for by `Job.text`; one that ends in a
            colon stands for all names that begin so.
        presets: named changes to the settings, such as "published": those of the original code.
        published: by task, a key of `DEFAULTS`, which preset has the original code's settings for it, where that is
            another than "published".
        calls: how often the network is asked for one picture, as people read it: "N" for an inversion of N steps;
            without what SAGE's loss adds.  tests/methods/test_every.py counts them.
        strength: the setting that says how much of the picture may change, the more the larger; it is one of those that
            are searched (`Settings.searched`).
        keep: the setting that says how strongly the rest of the picture is kept, the more the larger, one that is
            searched too; "" where there is none.
        beside: what follows the plus in names under which it is compared with other methods besides its own: other
            inversions, and SAGE's loss.
        of_pictures: settings that play no part where a picture is made from nothing.
        edits: whether it edits pictures (sage.edit).
        generates: whether it makes pictures from noise (sage.generate).
        live: whether an edit takes so few calls that it can follow what is typed.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    about: ClassVar[str] = ""
    good_at: ClassVar[str] = ""
    Settings: ClassVar[type[Settings]]
    reads: ClassVar[frozenset[str]] = frozenset({"source", "target"})
    texts: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    published: ClassVar[Mapping[str, str]] = MappingProxyType({})
    calls: ClassVar[str] = ""
    strength: ClassVar[str] = "guidance_scale"
    keep: ClassVar[str] = ""
    beside: ClassVar[tuple[str, ...]] = ()
    of_pictures: ClassVar[frozenset[str]] = frozenset({"encode", "size", "fit", *Cached.names()})
    edits: ClassVar[bool] = True
    generates: ClassVar[bool] = False
    live: ClassVar[bool] = False
    variant: Mapping[str, Any] = MappingProxyType({})  # settings that a name such as "p2p+direct" stands for
    added: Mapping[str, Searched] = MappingProxyType({})  # what is searched of one such as "ddpm+sage" besides

    _where: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """A class of Method[Settings] has these settings."""
        for base in vars(cls).get("__orig_bases__", ()):
            if isinstance(settings := get_args(base)[0], type):
                cls.Settings = settings
        if "Settings" in vars(cls):
            _OWNERS[cls.Settings] = cls

    @property
    def where(self) -> str:
        """What finds it again: its name, or path/to/file.py:Class for a method that is not ours."""
        return self._where or self.name

    def does(self, task: str) -> bool:
        """Whether it is for "edit", or for "generate"."""
        return {"edit": self.edits, "generate": self.generates}[task]

    # ---- what it is made for

    def defaults(self, model: "Backbone") -> S:
        """Settings for a model whose maker recommends none."""
        return self.Settings()  # type: ignore[return-value]

    def recommended(self, model: "Backbone", task: str = "edit") -> S:
        """What the model's maker recommends for this method, else its defaults.

        Args:
            task: "edit" or "generate", for which there may be other settings, under "generate/NAME".
        """
        own = model.recommends.get(recommendation(self.name, task))
        found = self.defaults(model) if own is None else self.Settings.from_dict(own)
        return found.but(**self.variant)  # type: ignore[return-value]

    def preset(self, name: str, **changes: Any) -> S:
        """A preset with some settings changed.

        Raises:
            SettingsError: there is no such preset or setting.
        """
        if name not in self.presets:
            raise SettingsError(f"{self.name} has no preset {name!r}"
                                + (f": there is {', '.join(self.presets)}" if self.presets else ""))
        return self.Settings.from_dict({**self.presets[name], **self.variant, **changes})  # type: ignore[return-value]

    def as_published(self, task: str = "edit") -> S:
        """The settings that the original code has for a task.

        Args:
            task: a key of `DEFAULTS`, such as "drag".
        Raises:
            SettingsError: nobody knows them.
        """
        return self.preset(self.published.get(task, "published"))

    def fits(self, model: "Backbone") -> str:
        """Why a model cannot be used, in a few words; "" if it can."""
        return ""

    def suits(self, model: "Backbone", task: str = "edit") -> bool:
        """Whether pictures may come of it: to a student of few steps belong the methods alone that it recommends."""
        student = getattr(model.schedule, "made_for", 0) > 0
        return not self.fits(model) and (not student or recommendation(self.name, task) in model.recommends)

    # ---- what it does with two prompts

    def plan(self, prompts: "Prompts", source: "Prompt", target: "Prompt", settings: S) -> "Plan":
        """What it does to the attention, worked out from the prompts; PromptError for phrases that do not fit."""
        from sage.prompts.plan import make_plan
        return make_plan(prompts, source, target, settings)

    def worded(self, settings: S) -> bool:
        """Whether it pairs the words of both prompts, so that embeddings alone are not enough."""
        return False

    def notes(self, settings: S, plan: "Plan") -> tuple[str, ...]:
        """What a user should know of an edit before it is made."""
        return plan.notes

    # ---- the way to noise

    def inversion(self, settings: S) -> str:
        """The name of the way to noise; methods with equal names can share their trajectories."""
        return "ddim"

    def wants(self, settings: S) -> "tuple[Wanted, ...]":
        """Attention to be heard on the way to noise."""
        return ()

    def follows_target(self, settings: S) -> bool:
        """Whether the way to noise depends on the target prompt too."""
        return False

    def draws(self, settings: S) -> bool:
        """Whether the way to noise is random, so that another seed is another way."""
        return getattr(settings, "encode", "mean") == "sample"

    def edges(self, model: "Backbone", settings: S, size: tuple[int, int]) -> "tuple[Edges, Edges]":
        """The steps from clean to noisy and back, for latents of `size` (h, w)."""
        from sage.sampling.levels import downwards, upwards
        levels = model.schedule.levels(settings.steps, settings.spacing, size)  # type: ignore[attr-defined]
        return upwards(levels), downwards(levels)

    def path_steps(self, model: "Backbone", settings: S, size: tuple[int, int]) -> int:
        """How many steps the way to noise has, for latents of `size` (h, w)."""
        return len(self.edges(model, settings, size)[0])

    def invert(self, job: "Job[S]") -> "Trajectory":
        """Carry the picture to noise."""
        from sage.inversion.ddim import ddim_inversion
        return ddim_inversion(job, job.source, self.wants(job.settings))

    def inverted_under(self, settings: S, source: "Prompt", prompts: "Prompts") -> "Prompt":
        """The prompt that the way to noise follows, and under which plain sampling leads back."""
        return source

    def reconstructing(self, model: "Backbone", path: "Trajectory") -> AbstractContextManager[None]:
        """Context around the passes of plain sampling back, for inversions that change the network."""
        return nullcontext()

    def back(self, job: "Job[S]", path: "Trajectory") -> "Iterator[Tensor]":
        """The latents after each step of going back without an edit: what is lost on the way there and back."""
        from sage.sampling.steps import walk
        if path.retraced is not None:
            yield from path.retraced
            return
        under = self.inverted_under(job.settings, path.source[0], job.model.prompts)
        text = job.model.embed([under]).expand(len(path.noise))
        down = job.down[len(job.down) - (len(path.latents) - 1):]  # a way to noise need not have gone all the way
        with self.reconstructing(job.model, path):
            yield from walk(lambda z, level: job.predict(z, level, text), path.noise, down)

    # ---- the way back

    def edit(self, job: "Job[S]", path: "Trajectory") -> Iterator[Step]:
        """The steps of the way back, run without gradients; the last one's latents are the edit."""
        raise NotImplementedError

    def generate(self, job: "Job[S]") -> Iterator[Step]:
        """The steps from `job.z0`, which is noise, to a picture under the target prompt."""
        raise NotImplementedError

    def compares(self, settings: S) -> str:
        """What `Step.loss` measures, in a few words; "" where there is none."""
        return ""

    def random(self, settings: S) -> bool:
        """Whether the result depends on the seed."""
        return self.draws(settings)

    def gentler(self, settings: S) -> S | None:
        """Settings to try when a result looks wrong; None if there are none."""
        return None


class Uninverted(Method[S]):
    """A method that carries no picture to noise: it draws its noise, and begins at the picture itself."""

    def inversion(self, settings: S) -> str:
        """None."""
        return "none"

    def random(self, settings: S) -> bool:
        """It is."""
        return True

    def path_steps(self, model: "Backbone", settings: S, size: tuple[int, int]) -> int:
        """None."""
        return 0

    def invert(self, job: "Job[S]") -> "Trajectory":
        """The picture alone."""
        from sage.trajectory.kinds import Trajectory
        return Trajectory(origin=None, latents=(job.z0,))  # type: ignore[arg-type]  # the driver says of what


_OWNERS: dict[type[Settings], type[Method[Any]]] = {}

# Where each method is; imported when it is asked for.
METHODS: dict[str, str] = {
    "sage": "sage.methods.sage:SAGE",
    "plain": "sage.methods.plain:Plain",
    "sag": "sage.methods.sag:SAG",
    "sdedit": "sage.methods.sdedit:SDEdit",
    "masactrl": "sage.methods.masactrl:MasaCtrl",
    "pnp": "sage.methods.pnp:PlugAndPlay",
    "p2p": "sage.methods.p2p:PromptToPrompt",
    "ddpm": "sage.methods.ddpm:DDPM",
    "turbo": "sage.methods.turbo:Turbo",
    "turbo-ddpm": "sage.methods.turbo_ddpm:TurboDDPM",
    "regiondrag": "sage.methods.regiondrag:RegionDrag",
    "ledits": "sage.methods.ledits:LEdits",
    "infedit": "sage.methods.infedit:InfEdit",
    "flowedit": "sage.methods.flowedit:FlowEdit",
    "uni-edit": "sage.methods.uni_edit:UniEdit",
    "eedit": "sage.methods.eedit:EEdit",
    "rf-inversion": "sage.methods.rf_inversion:RFInversion",
    "rf-solver": "sage.methods.rf_solver:RFSolver",
    "fireflow": "sage.methods.fireflow:FireFlow",
    "kv-edit": "sage.methods.kv_edit:KVEdit",
    "pix2pix-zero": "sage.methods.pix2pix_zero:Pix2PixZero",
    "edict": "sage.methods.edict:EDICT",
    "bdia": "sage.methods.bdia:BDIA",
    "fixed-point": "sage.methods.fixed_point:FixedPoint",
}


LOSS = "sage"  # after a method's name: with SAGE's loss, of the settings in `Preserved`

# The methods where none is named, by command.
DEFAULTS = {"edit": "sage", "generate": "plain", "drag": "regiondrag", "compose": "ddpm"}


@cache
def able(task: str) -> tuple[str, ...]:
    """The names of the methods that do one of two things.

    Args:
        task: "edit" or "generate".
    """
    return tuple(name for name in METHODS if method(name).does(task))


def recommendation(name: str, task: str) -> str:
    """Under which key of `recommends` a model has settings for a method and a task, "edit" or "generate"."""
    return name if task == "edit" else f"{task}/{name}"


def readers(what: str) -> tuple[str, ...]:
    """The names of the methods that edit and look at a member of a `Request`."""
    return tuple(name for name in able("edit") if what in method(name).reads)


def check_task(found: Method[Any], task: str) -> None:
    """SettingsError for a method that edits no pictures, or makes none, naming those that do."""
    if not found.does(task):
        wanted = {"edit": "edits no picture", "generate": "makes no pictures from noise"}[task]
        raise SettingsError(f"{found.name} {wanted}; these do: {', '.join(able(task))}")


def check_request(method: Method[Any], request: Request) -> None:
    """SettingsError for what was given and the method does not look at, so that nothing is left out in silence."""
    given = [name for name in ("mask", "reference", "points", "moves", "foregrounds", "edits", "sentences")
             if getattr(request, name)]
    if unread := [name for name in given if name not in method.reads]:
        others = readers(unread[0])
        other = f"; these do: {', '.join(others)}" if others else ""
        raise SettingsError(f"{method.name} does not read {unread[0]}: it reads {', '.join(sorted(method.reads))}"
                            + other)


@cache
def method(name: str) -> Method[Any]:
    """A method by its name, or by where it is: `path/to/file.py:Class`.

    NAME+INVERSION is one with that inversion, NAME+sage one with SAGE's loss besides, and NAME+INVERSION+sage has both.

    Raises:
        SettingsError: there is none.
    """
    base, *more = name.split("+")
    if more and base in METHODS:
        return _with(base, more)
    where = METHODS.get(name)
    if where is None and ".py:" in name:
        return _from_file(name)
    if where is None:
        hint = did_you_mean(name, METHODS) or f": there are {', '.join(METHODS)}, or path/to/file.py:Class"
        raise SettingsError(f"no method is called {name[:40]!r}{hint}")
    module, _, cls = where.partition(":")
    return getattr(import_module(module), cls)()


def _with(name: str, more: Sequence[str]) -> Method[Any]:
    """A method with what follows in its name: an inversion, LOSS, or the one and then the other."""
    found = method(name)
    made = type(found)()
    if more[-1] == LOSS:
        if not issubclass(found.Settings, Preserved):
            takers = [n for n in able("edit") if issubclass(method(n).Settings, Preserved)]
            raise SettingsError(f"{name} cannot be given SAGE's loss besides: {', '.join(takers)} can")
        made.added = found.Settings.tried
        made.variant = {setting: span.at(0.5) for setting, span in made.added.items()}
        more = more[:-1]
    if more:
        inversion = "+".join(more)
        known = next((f.metadata["choices"] for f in found.Settings.fields() if f.name == "inversion"), ())
        if inversion not in known:
            has = f"it has {', '.join(known)}" if known else "its way to noise is its own"
            raise SettingsError(f"{name} has no inversion {inversion[:40]!r}: {has}")
        made.variant = {"inversion": inversion, **made.variant}
    return made


def _from_file(where: str) -> Method[Any]:
    path, _, name = where.rpartition(":")
    found = named_in_file(where, SettingsError)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise SettingsError(f"{path} has no Method called {name!r}")
    if missing := [a for a in ("name", "title") if not isinstance(getattr(found, a, None), str)]:
        raise SettingsError(f"{where}: the method has no {missing[0]}")
    if not (inspect.isclass(own := getattr(found, "Settings", None)) and issubclass(own, Settings)):
        raise SettingsError(f"{where}: the method has no Settings: derive it from Method[...] of a class of settings")
    try:
        made = found()
        made.Settings()
    except Exception as error:
        raise SettingsError(f"{where} cannot be made ({type(error).__name__}: {error})") from error
    found._where = where
    return made


def method_of(settings: Settings) -> Method[Any]:
    """The method whose settings these are.

    Raises:
        SettingsError: they are of none.
    """
    owner = _OWNERS.get(type(settings))
    if owner is None:
        raise SettingsError(f"{type(settings).__name__} are the settings of no method")
    return owner()
