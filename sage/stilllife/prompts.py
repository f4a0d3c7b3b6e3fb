"""Captions as people write them: from one noun to everything, with or without articles, sentences or lists.

A wording is drawn apart from what it words, so that two scenes captioned with the same wording differ only in the
words of the attributes that differ.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from sage.stilllife.captions import ADJECTIVES, CLAUSES, join
from sage.stilllife.scenes import ATTRIBUTES, Scene
from sage.stilllife.varied import nameable, relation

# Synonyms; a value that is absent here is its own word. No word serves two attributes.
WORDS = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "block"),
    "mug": ("mug", "cup"),
    "purple": ("purple", "violet"),
    "matte": ("matte", "plain"),
    "shiny": ("shiny", "glossy"),
    "striped": ("striped", "stripy"),
    "checkered": ("checkered", "chequered", "checked"),
    "large": ("large", "big", "huge"),
    "small": ("small", "little"),
    "tilted": ("tilted", "leaning"),
    "left": ("on the left", "at the left", "on the left side"),
    "middle": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "at the right", "on the right side"),
    "wooden": ("wooden planks", "wooden boards", "a wooden floor"),
    "stone": ("stone tiles", "stone slabs", "a stone floor"),
    "grass": ("grass", "a lawn"),
    "grey wall": ("grey wall", "gray wall"),
    "photo": ("photo", "photograph"),
    "cartoon": ("cartoon", "comic"),
    "sketch": ("pencil sketch", "sketch", "pencil drawing"),
    "night": ("night scene", "night view"),
}
FIRST_WORD = 0.6  # how often the first synonym is taken; the others share the rest

_ADJECTIVES = (*ADJECTIVES, ("colour", "material", "size", "tilt"))
# What stands before and after the second thing's words; in a list, only what tells where it is.
_SECOND = {
    "beside": (("with a tiny", "next to it"), ("next to it a tiny", ""), ("with a tiny", "beside it"),
               ("and a tiny", "")),
    "behind": (("with a", "behind it"), ("behind it a", ""), ("in front of a", ""), ("and a", "behind it")),
    "before": (("with a", "in front of it"), ("in front of it a", ""), ("behind a", ""), ("and a", "in front of it")),
}
_LISTED_SECOND = {"beside": ("tiny", ""), "behind": ("", "behind it"), "before": ("", "in front of it")}
_BACKGROUND = (("{}", "behind"), ("in front of {}", ""), ("against {}", ""), ("{}", "in the background"),
               ("with {}", "behind it"))
_LEADS = ("a picture of", "an image of", "there is")


@dataclass(frozen=True)
class Wording:
    """How a caption is worded: indices into the templates, one number in [0, 1) for each attribute's synonym, and how
    much is said, as an order of the attributes and the share of them that is named."""

    article: str = "a"
    listed: bool = False
    commas: bool = True
    adjectives: int = 0
    clauses: int = 0
    second: int = 0
    background: int = 0
    lead: str = ""
    style_last: bool = False
    style_article: bool = True
    say_upright: bool = False
    synonyms: tuple[float, ...] = (0.0,) * len(ATTRIBUTES)
    order: tuple[str, ...] = field(default=ATTRIBUTES)
    share: float = 0.999


CANONICAL = Wording()


def draw_wording(rng: np.random.Generator) -> Wording:
    """A random wording; always takes the same number of draws."""
    return Wording(
        article=("a", "the", "")[int(rng.choice(3, p=(0.55, 0.3, 0.15)))],
        listed=bool(rng.random() < 0.2),
        commas=bool(rng.random() < 0.6),
        adjectives=int(rng.integers(len(_ADJECTIVES))),
        clauses=int(rng.integers(len(CLAUSES))),
        second=int(rng.integers(4)),
        background=int(rng.integers(len(_BACKGROUND))),
        lead=_LEADS[int(rng.integers(len(_LEADS)))] if rng.random() < 0.1 else "",
        style_last=bool(rng.random() < 0.4),
        style_article=bool(rng.random() < 0.6),
        say_upright=bool(rng.random() < 0.25),
        synonyms=tuple(float(u) for u in rng.random(len(ATTRIBUTES))),
        order=tuple(ATTRIBUTES[i] for i in rng.permutation(len(ATTRIBUTES))),
        share=float(rng.random()),
    )


def _sayable(scene: Scene, wording: Wording) -> list[str]:
    """The attributes that a caption may name beside the form, in the wording's order; a second thing's form comes
    before its colour, which is nothing without it."""
    names = [a for a in wording.order if a in nameable(scene) and a != "form"]
    upright = scene.main.tilt == "upright"
    if upright and (not wording.say_upright or scene.main.form == "ball"):
        names.remove("tilt")
    places = sorted(i for i, a in enumerate(names) if a.startswith("second_"))
    for i, name in zip(places, ("second_form", "second_colour"), strict=False):
        names[i] = name
    return names


def named(scene: Scene, wording: Wording) -> frozenset[str]:
    """The attributes that the wording names: their number is spread evenly from the form alone to all there are."""
    names = _sayable(scene, wording)
    return frozenset(["form", *names[: int(wording.share * (len(names) + 1))]])


def everything(scene: Scene, wording: Wording) -> frozenset[str]:
    """All attributes that the scene has names for; that it is upright only where the wording would say so."""
    return frozenset(["form", *_sayable(scene, wording)])


def _word(value: str, u: float) -> str:
    words = WORDS.get(value, (value,))
    if u < FIRST_WORD or len(words) == 1:
        return words[0]
    return words[1 + int((u - FIRST_WORD) / (1 - FIRST_WORD) * (len(words) - 1))]


def _words(scene: Scene, wording: Wording, keep: Collection[str]) -> dict[str, str]:
    """The words of the attributes to be named."""
    values = scene.attributes()
    u = dict(zip(ATTRIBUTES, wording.synonyms, strict=True))
    return {a: _word(values[a], u[a]) for a in ATTRIBUTES if a in keep and values[a] != "none"}


def _determined(article: str, words: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A noun phrase with its article."""
    if article == "a":
        article = "an" if words[0][1][0] in "aeiou" else "a"
    return [("", article), *words] if article else words


def _second_pieces(scene: Scene, words: dict[str, str], wording: Wording) -> list[tuple[str, str]]:
    how = relation(scene)
    before, after = _LISTED_SECOND[how] if wording.listed else _SECOND[how][wording.second]
    noun = [(a, words[a]) for a in ("second_colour", "second_form") if a in words]
    if before.endswith(" a") and noun[0][1][0] in "aeiou":
        before += "n"
    return [("second", before), *noun, ("second", after)]


def _clauses(scene: Scene, words: dict[str, str], wording: Wording) -> dict[str, list[tuple[str, str]]]:
    clauses = {}
    if "position" in words:
        clauses["position"] = [("position", words["position"])]
    if "floor" in words:
        floor = ("floor", words["floor"].removeprefix("a ") if wording.listed else words["floor"])
        clauses["floor"] = [floor] if wording.listed else [("", "on"), floor]
    if "background" in words:
        noun = ("background", words["background"])
        before, after = ("", "") if wording.listed else _BACKGROUND[wording.background]
        if before == "{}" and not wording.commas:  # which nothing would part from what comes before
            before = "with {}"
        clauses["background"] = [("", before.format(wording.article or "a")), noun, ("", after)]
    if "second_form" in words:
        clauses["second"] = _second_pieces(scene, words, wording)
    return clauses


def phrases(scene: Scene, wording: Wording = CANONICAL, keep: Collection[str] | None = None) -> list[tuple[str, str]]:
    """The caption in pieces: (attribute, words). Joined by spaces and punctuated, they are the caption.

    Words that belong to no attribute have the attribute "", those around the second thing "second"; a comma is a piece
    of its own. `keep` names the attributes to mention (the form always is), by default those that the wording names.
    Raises ValueError when it holds an unknown name.
    """
    keep = named(scene, wording) if keep is None else {"form", *keep}
    if unknown := set(keep) - set(ATTRIBUTES):
        raise ValueError(f"attribute {sorted(unknown)[0]!r} is not one of {', '.join(ATTRIBUTES)}")
    words = _words(scene, wording, keep)
    article = "" if wording.listed else wording.article
    subject = [(a, words[a]) for a in (*_ADJECTIVES[wording.adjectives], "form") if a in words]
    pieces = _determined(article, subject)
    style = [("style", words["style"])] if "style" in words else []
    if style and wording.style_article:
        style = _determined("a", style)
    if style and not wording.style_last:
        pieces = [*style, ("", ",") if wording.listed else ("", "of"), *pieces]
    elif wording.lead and not style and not wording.listed:
        pieces = [("", wording.lead), *pieces]
    clauses = _clauses(scene, words, wording)
    for place, name in enumerate(n for n in CLAUSES[wording.clauses] if n in clauses):
        if wording.listed or (wording.commas and (place or name in ("second", "background"))):
            pieces.append(("second" if name == "second" else "", ","))
        pieces += clauses[name]
    if style and wording.style_last:
        pieces += [("", ","), *style]
    return [(a, w) for a, w in pieces if w]


def prompt(scene: Scene, rng: np.random.Generator | None = None, keep: Collection[str] | None = None) -> str:
    """A caption in lowercase words: the canonical wording of everything, or with `rng` a random wording of a part.

    `keep` names the attributes to mention instead (the form always is). Raises ValueError for unknown names.
    """
    wording = CANONICAL if rng is None else draw_wording(rng)
    return join(phrases(scene, wording, keep))
