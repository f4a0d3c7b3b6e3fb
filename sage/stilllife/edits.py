"""Edits whose true result is known: two scenes that differ in what an edit changes, and two prompts that say so.

The kinds are those of PIE-Bench, by the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np

import sage.stilllife.captions as captions
import sage.stilllife.prompts as prompts
from sage.stilllife.camera import place_things
from sage.stilllife.captions import join
from sage.stilllife.render import render
from sage.stilllife.scenes import AROUND, ATTRIBUTES, MAIN, SECOND, Scene, is_held_out, sample_companion, sample_scene
from sage.stilllife.varied import nameable, relation, sample_accompanied, sample_varied_scene, within_frame

KINDS = (
    "mixed",
    "change object",
    "add object",
    "delete object",
    "change content",
    "change pose",
    "change colour",
    "change material",
    "change background",
    "change style",
)
_CHANGED = {
    1: (("form",),),
    4: (("second_form",), ("second_colour",)),
    5: (("tilt",), ("position",)),
    6: (("colour",),),
    7: (("material",),),
    8: (("background",), ("floor",)),
    9: (("style",),),
    0: (
        ("form", "colour"),
        ("form", "material"),
        ("form", "background"),
        ("colour", "material"),
        ("colour", "size"),
        ("colour", "floor"),
        ("colour", "background"),
        ("colour", "style"),
        ("material", "position"),
        ("material", "tilt"),
        ("material", "style"),
        ("background", "floor"),
    ),
}
THRESHOLD = 8 / 255  # a pixel has changed when a channel differs by more
LEAST_CHANGE = 0.01  # share of pixels that an edit must change


def changed_pixels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two pictures (h, w, 3) in [0, 1] differ by more than THRESHOLD in any channel: bool (h, w)."""
    return (np.abs(a - b) > THRESHOLD).any(-1)


def dilate(mask: np.ndarray) -> np.ndarray:
    """A bool mask (h, w) grown by one pixel in all eight directions."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    out = rows.copy()
    out[:, 1:] |= rows[:, :-1]
    out[:, :-1] |= rows[:, 1:]
    return out


@dataclass(frozen=True)
class Prompts:
    """Two prompts that ask for an edit.

    source_words, target_words: the phrases in which they differ, in order; where one prompt has a clause that the
    other lacks, the other's are empty. blend_words: the noun phrases that name the edited thing in the two prompts
    ("" where it is absent), or None when the edit is not of one thing.
    """

    source: str
    target: str
    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    blend_words: tuple[str, str] | None


@dataclass(frozen=True)
class EditCase:
    """An edit and its true result, asked for in two ways.

    full: prompts that name everything; short: prompts of just the noun and what changes.
    """

    kind: int
    source: Scene
    target: Scene
    full: Prompts
    short: Prompts

    @property
    def source_prompt(self) -> str:
        return self.full.source

    @property
    def target_prompt(self) -> str:
        return self.full.target

    @property
    def source_words(self) -> tuple[str, ...]:
        return self.full.source_words

    @property
    def target_words(self) -> tuple[str, ...]:
        return self.full.target_words

    @property
    def blend_words(self) -> tuple[str, str] | None:
        return self.full.blend_words

    def pictures(self, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """The true pictures of source and target, each float32 (size, size, 3) in [0, 1]."""
        return render(self.source, size), render(self.target, size)

    def mask(self, size: int = 64) -> np.ndarray:
        """Where the true pictures differ, grown by one pixel: bool (size, size)."""
        return dilate(changed_pixels(*self.pictures(size)))


def variants(scene: Scene, attribute: str) -> Iterator[Scene]:
    """All scenes that differ from `scene` in just this attribute."""
    old = scene.attributes()[attribute]
    main, second = scene.main, scene.second
    for value in {**MAIN, **SECOND, **AROUND}[attribute]:
        change: dict[str, Any] = {attribute.removeprefix("second_"): value}
        if value == old:
            continue
        if attribute == "form" and value == "ball" and main.tilt == "tilted":
            continue
        if attribute == "tilt" and main.form == "ball":
            continue
        if attribute == "colour" and second and value == second.colour:
            continue
        if attribute == "position" and second and value == second.side:
            continue
        if attribute == "second_colour" and value == main.colour:
            continue
        if attribute in MAIN:
            yield replace(scene, main=replace(main, **change))
        elif attribute in SECOND:
            yield replace(scene, second=replace(second, **change))
        else:
            yield replace(scene, **change)


Sampler = Callable[[np.random.Generator], Scene]
Accompanier = Callable[[np.random.Generator, Scene], Scene]


def _propose(kind: int, rng: np.random.Generator, sample: Sampler,
             accompany: Accompanier) -> tuple[Scene, list[Scene], tuple[str, ...]]:
    """A source scene, its possible targets, and the attributes in which they differ."""
    scene = sample(rng)
    if kind in (2, 3):
        without = replace(scene, second=None)
        with_second = accompany(rng, scene)
        pair = (without, with_second) if kind == 2 else (with_second, without)
        return pair[0], [pair[1]], ("second_form", "second_colour")
    if kind == 4 and scene.second is None:
        scene = accompany(rng, scene)
    changed = _CHANGED[kind][int(rng.integers(len(_CHANGED[kind])))]
    targets = [scene]
    for attribute in changed:
        targets = [variant for t in targets for variant in variants(t, attribute)]
    return scene, targets, changed


def _edited_words(source: list, target: list) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The phrases in which two captions in pieces differ; neighbouring pieces make one phrase."""
    same = SequenceMatcher(None, source, target, autojunk=False)
    runs = [op for op in same.get_opcodes() if op[0] != "equal"]
    words = [
        [" ".join(w for _, w in source[i:j] if w != ",") for _, i, j, _, _ in runs],
        [" ".join(w for _, w in target[i:j] if w != ",") for _, _, _, i, j in runs],
    ]
    old, new = (tuple(w for w in of if w) for of in words)
    return old, new


def _blend_words(source: list, target: list, changed: tuple[str, ...]) -> tuple[str, str] | None:
    for group in (MAIN, SECOND):
        if set(changed) <= set(group):
            old, new = (" ".join(w for a, w in p if a in group and a != "position") for p in (source, target))
            return old, new
    return None


def _accompanied(rng: np.random.Generator, scene: Scene) -> Scene:
    return replace(scene, second=sample_companion(rng, scene.main))


def _is_plain(source: Scene, target: Scene, changed: tuple[str, ...]) -> bool:
    """Whether both scenes are of a main thing and at most a tiny one, in the frame, and have words for the change that
    tell which thing is meant."""
    for scene in (source, target):
        present = {a for a in changed if scene.attributes()[a] != "none"}
        if scene.second and relation(scene) != "beside" or not present <= nameable(scene):
            return False
        if "second_form" in changed and scene.second and scene.second.form == scene.main.form:
            return False
        if not all(within_frame(thing) for thing in place_things(scene)):
            return False
    return True


def prompts_of(source: list, target: list, changed: tuple[str, ...]) -> Prompts:
    """The prompts of two captions in pieces that differ in the attributes `changed`."""
    return Prompts(join(source), join(target), *_edited_words(source, target), _blend_words(source, target, changed))


def asked(source: Scene, target: Scene, wording: prompts.Wording, also: frozenset[str] = frozenset()) -> Prompts:
    """The prompts that name the noun, what changes, and the attributes `also` where the scenes have names for them."""
    a, b = source.attributes(), target.attributes()
    changed = tuple(name for name in ATTRIBUTES if a[name] != b[name])
    wording = replace(wording, say_upright="tilt" in changed)
    keep = {"form", *changed, *(also & prompts.everything(source, wording) & prompts.everything(target, wording))}
    if "second_colour" in keep:  # which is nothing without it
        keep.add("second_form")
    return prompts_of(prompts.phrases(source, wording, keep), prompts.phrases(target, wording, keep), changed)


def edit_case(kind: int, seed: int, held_out: bool = True, varied: bool = False) -> EditCase:
    """The edit of a kind (index into KINDS) and a seed (an integer >= 0); the same at every call.

    Both scenes are held out, or with `held_out` False neither is. With `varied` things stand at free places and the
    full prompts are worded as people write too. Raises ValueError for an unknown kind.
    """
    if kind not in range(len(KINDS)):
        raise ValueError(f"kind {kind!r} is not one of 0 to {len(KINDS) - 1}")
    rng = np.random.default_rng((6 if varied else 2, kind, int(held_out), seed))
    sample, accompany = (
        (sample_varied_scene, sample_accompanied) if varied else (sample_scene, _accompanied)
    )
    wording = (prompts if varied else captions).draw_wording(rng)
    while True:
        source, targets, changed = _propose(kind, rng, sample, accompany)
        targets = [t for t in targets if is_held_out(t) == held_out and (not varied or _is_plain(source, t, changed))]
        if is_held_out(source) != held_out or not targets:
            continue
        target = targets[int(rng.integers(len(targets)))]
        if changed_pixels(render(source), render(target)).mean() > LEAST_CHANGE:
            break
    # Saying "upright" only where the tilt changes keeps every other edit's prompts apart in just its own words.
    wording = replace(wording, say_upright="tilt" in changed)
    if varied:
        keep = prompts.everything(source, wording) | prompts.everything(target, wording)
        full = [prompts.phrases(scene, wording, keep & nameable(scene)) for scene in (source, target)]
    else:
        full = [captions.phrases(scene, wording) for scene in (source, target)]
    short = asked(source, target, prompts.draw_wording(np.random.default_rng((7, kind, int(held_out), seed))))
    return EditCase(kind, source, target, prompts_of(full[0], full[1], changed), short)
