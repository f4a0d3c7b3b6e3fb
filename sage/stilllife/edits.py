"""Edits whose true result is known: two scenes that differ in what an edit changes, and two prompts that say so.

The kinds are those of PIE-Bench, by the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sage.stilllife.captions import draw_wording, join, phrases
from sage.stilllife.render import render
from sage.stilllife.scenes import AROUND, MAIN, SECOND, Scene, is_held_out, sample_companion, sample_scene

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
class EditCase:
    """An edit and its true result.

    source_words, target_words: the phrases in which the prompts differ, in order; where one prompt has a clause that
    the other lacks, the other's are empty. blend_words: the noun phrases that name the edited thing in the two prompts
    ("" where it is absent), or None when the edit is not of one thing.
    """

    kind: int
    source: Scene
    target: Scene
    source_prompt: str
    target_prompt: str
    source_words: tuple[str, ...]
    target_words: tuple[str, ...]
    blend_words: tuple[str, str] | None

    def pictures(self, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """The true pictures of source and target, each float32 (size, size, 3) in [0, 1]."""
        return render(self.source, size), render(self.target, size)

    def mask(self, size: int = 64) -> np.ndarray:
        """Where the true pictures differ, grown by one pixel: bool (size, size)."""
        return dilate(changed_pixels(*self.pictures(size)))


def _variants(scene: Scene, attribute: str) -> Iterator[Scene]:
    """All scenes that differ from `scene` in just this attribute."""
    old = scene.attributes()[attribute]
    main, second = scene.main, scene.second
    for value in {**MAIN, **SECOND, **AROUND}[attribute]:
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
            yield replace(scene, main=replace(main, **{attribute: value}))
        elif second and attribute in SECOND:
            yield replace(scene, second=replace(second, **{attribute.removeprefix("second_"): value}))
        else:
            yield replace(scene, **{attribute: value})  # type: ignore[arg-type]


def _propose(kind: int, rng: np.random.Generator) -> tuple[Scene, list[Scene], tuple[str, ...]]:
    """A source scene, its possible targets, and the attributes in which they differ."""
    scene = sample_scene(rng)
    if kind in (2, 3):
        without = replace(scene, second=None)
        with_second = replace(scene, second=sample_companion(rng, scene.main))
        pair = (without, with_second) if kind == 2 else (with_second, without)
        return pair[0], [pair[1]], ("second_form", "second_colour")
    if kind == 4 and scene.second is None:
        scene = replace(scene, second=sample_companion(rng, scene.main))
    changed = _CHANGED[kind][int(rng.integers(len(_CHANGED[kind])))]
    targets = [scene]
    for attribute in changed:
        targets = [variant for t in targets for variant in _variants(t, attribute)]
    return scene, targets, changed


def _edited_words(source: list, target: list) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The phrases in which two captions in pieces differ; neighbouring pieces make one phrase."""
    if len(source) != len(target):
        of_second = [[w for a, w in p if a.startswith("second") and w != ","] for p in (source, target)]
        old, new = (tuple([" ".join(words)] if words else []) for words in of_second)
        return old, new
    runs: list[list[int]] = []
    for i, (s, t) in enumerate(zip(source, target, strict=True)):
        if s != t:
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
    old, new = (tuple(" ".join(p[i][1] for i in run) for run in runs) for p in (source, target))
    return old, new


def _blend_words(source: list, target: list, changed: tuple[str, ...]) -> tuple[str, str] | None:
    for group in (MAIN, SECOND):
        if set(changed) <= set(group):
            old, new = (" ".join(w for a, w in p if a in group and a != "position") for p in (source, target))
            return old, new
    return None


def edit_case(kind: int, seed: int, held_out: bool = True) -> EditCase:
    """The edit of a kind (index into KINDS) and a seed (an integer >= 0); the same at every call.

    Both scenes are held out, or with `held_out` False neither is. Raises ValueError for an unknown kind.
    """
    if kind not in range(len(KINDS)):
        raise ValueError(f"kind {kind!r} is not one of 0 to {len(KINDS) - 1}")
    rng = np.random.default_rng((2, kind, int(held_out), seed))
    wording = draw_wording(rng)
    while True:
        source, targets, changed = _propose(kind, rng)
        targets = [t for t in targets if is_held_out(t) == held_out]
        if is_held_out(source) != held_out or not targets:
            continue
        target = targets[int(rng.integers(len(targets)))]
        if changed_pixels(render(source), render(target)).mean() > LEAST_CHANGE:
            break
    # Saying "upright" only where the tilt changes keeps every other edit's prompts apart in just its own words.
    wording = replace(wording, say_upright="tilt" in changed)
    s, t = phrases(source, wording), phrases(target, wording)
    source_words, target_words = _edited_words(s, t)
    return EditCase(
        kind=kind,
        source=source,
        target=target,
        source_prompt=join(s),
        target_prompt=join(t),
        source_words=source_words,
        target_words=target_words,
        blend_words=_blend_words(s, t, changed),
    )
