"""PIE-Bench's layout on disk, read with suspicion and written so that other tools for it can read it.

    mapping_file.json            {name: {image_path, original_prompt, editing_prompt, editing_instruction,
                                  editing_type_id, blended_word, mask}}
    annotation_images/           the pictures, at their image_path
    true_edits/                  ours alone: the right results, where they are known

Ours alone too, in the mapping file: true_edit, blend_phrases, attributes, what the two scenes of a still life show, and
wording, how much its prompts say.
The edited words stand in [brackets] in both prompts.  A mask is a flat list start, length, start, length, ... over the
pixels in rows from the upper left, 0-based; 1 is where the edit may be.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sage import pictures
from sage.bench.files import BenchmarkError, inside, read_table, write_text
from sage.files import read_plain
from sage.method import Request
from sage.stilllife.edits import KINDS
from sage.stilllife.scenes import VALUES

MAPPING, PICTURES, TRUE_EDITS = "mapping_file.json", "annotation_images", "true_edits"
MAX_TEXT = 4096
WORDINGS = ("full", "short")  # prompts that name everything, and prompts of the noun and what changes

# Two annotations that the released SAGE mends before it runs.
MENDED_BLEND = {"And chair rock": "chair rock"}
MENDED_PROMPTS = {"0_random_140/000000000117.jpg": ("a [pink flower with yellow] center in the middle",
                                                    "a [blue flower with red] center in the middle")}


# ---- masks


def encode_mask(mask: np.ndarray) -> tuple[int, ...]:
    """A bool mask (H, W) -> start, length, start, length, ..."""
    flat = np.concatenate(([0], mask.astype(np.int8).ravel(), [0]))
    edges = np.flatnonzero(np.diff(flat))
    starts, ends = edges[0::2], edges[1::2]
    return tuple(int(v) for pair in zip(starts, ends - starts, strict=True) for v in pair)


def decode_mask(runs: Sequence[int], width: int, height: int, border: bool = False) -> np.ndarray:
    """The bool mask (height, width) of a flat list of runs.

    Args:
        border: also set the outermost pixels, as PIE-Bench does when it measures.  A run that goes past the last
            pixel is cut there, as PIE-Bench does too.
    Raises:
        BenchmarkError: a run that starts outside the picture.
    """
    flat = np.zeros(width * height, bool)
    for start, length in zip(runs[0::2], runs[1::2], strict=True):
        if start >= flat.size and length:
            raise BenchmarkError(f"the mask has a run at pixel {start} of a picture of {width} x {height}: it is the "
                                 "mask of another picture")
        flat[start:start + length] = True
    mask = flat.reshape(height, width)
    if border:
        mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


# ---- cases


@dataclass(frozen=True)
class Asked:
    """What a method is given of a case.

    Attributes:
        picture: the one to edit.
        request: with everything else.
        around, mask: what stays outside a mask, pixel by pixel; None where the result is taken as it is.
    """

    picture: Image.Image
    request: Request
    around: Image.Image | None = None
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Case:
    """One edit of a benchmark.

    Attributes:
        picture: below annotation_images/.
        source_marked, target_marked: prompts with the edited words in brackets.
        blended_word: a word of each prompt that names the edited thing, with a space between; or nothing.
        runs: the mask.
        truth: below true_edits/, or None where the right result is not known.
        phrases: what names the edited thing in each prompt, "" where it is absent; or None.  Unlike `blended_word` it
            can say several words, and that a thing is only in one prompt.
        attributes: of the source's scene and of the target's, all those of `sage.stilllife.scenes.VALUES`; or None
            where the pictures are no still lifes.
        wording: how much the prompts say, one of WORDINGS; "" where nobody tells.
    """

    name: str
    kind: int
    picture: str
    source_marked: str
    target_marked: str
    runs: tuple[int, ...]
    instruction: str = ""
    blended_word: str = ""
    truth: str | None = None
    phrases: tuple[str, str] | None = None
    attributes: tuple[Mapping[str, str], Mapping[str, str]] | None = None
    wording: str = ""

    @property
    def source(self) -> str:
        """The source prompt."""
        return _unmarked(self.source_marked)

    @property
    def target(self) -> str:
        """The target prompt."""
        return _unmarked(self.target_marked)

    @property
    def stem(self) -> str:
        """The picture's path without its ending: results are stored under it."""
        return str(PurePosixPath(self.picture).with_suffix(""))

    def asked(self, source: Image.Image, reads: Collection[str], worded: bool = True) -> Asked:
        """What a method is given that reads these members of a `sage.Request`, of the picture to edit.

        Args:
            worded: with the target prompt; else the source's in its place, so that no word asks for anything.
        """
        return Asked(source, Request(self.source, self.target if worded else self.source))

    def by_pixels(self, source: Image.Image) -> Image.Image:
        """The naive edit: plain pixels moved, filled or pasted; BenchmarkError where nothing is put elsewhere."""
        raise BenchmarkError("nothing is put elsewhere in this case: there are no plain pixels to do it with")

    def unchanged(self) -> "Case":
        """The edit of the same picture that asks for nothing: its right result is the source."""
        return replace(self, target_marked=self.source_marked, runs=(), blended_word="", phrases=None,
                       truth=None, attributes=self.attributes and (self.attributes[0], self.attributes[0]))

    def blend(self) -> tuple[str, str] | None:
        """The blending words, as tools for PIE-Bench take them: the first two of `blended_word`."""
        words = self.blended_word.split()
        return (words[0], words[1]) if len(words) > 1 else None

    def replace(self) -> tuple[str, str] | None:
        """The pair of phrases that the released SAGE replaces: the marked words, cut to those between equal ends."""
        a, b = (";".join(re.findall(r"\[([^]]*)\]", text)).replace(",", "").split()
                for text in (self.source_marked, self.target_marked))
        start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        back = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), 0)
        old, new = (" ".join(" ".join(words[start:len(words) - back]).replace(";", " ").split()) for words in (a, b))
        return (old, new) if old and new else None


def _unmarked(text: str) -> str:
    return text.replace("[", "").replace("]", "")


def mark(source: str, target: str, source_words: Sequence[str], target_words: Sequence[str]) -> tuple[str, str]:
    """Put the phrases in which two prompts differ, given in order, in brackets; one prompt may have none.

    Raises:
        ValueError: the prompts do not differ in just these phrases.
    """
    if not source_words or not target_words:
        marked = [_mark_each(text, words) for text, words in ((source, source_words), (target, target_words))]
        return marked[0], marked[1]
    # The words may stand elsewhere too: those are meant whose exchange turns one prompt into the other.
    gaps = range(1, len(source_words) + 2)
    first = "(.*?)" + "".join(rf"(?<!\w){re.escape(w)}(?!\w)(.*?)" for w in source_words)
    second = r"\1" + "".join(rf"{re.escape(w)}\{i}" for w, i in zip(target_words, gaps[1:], strict=True))
    found = re.fullmatch(f"{first}\0{second}", f"{source}\0{target}", re.DOTALL)
    if not found:
        raise ValueError(f"{source!r} and {target!r} do not differ in just {source_words} and {target_words}")
    first, second = (found[1] + "".join(f"[{w}]{gap}" for w, gap in zip(words, found.groups()[1:], strict=True))
                     for words in (source_words, target_words))
    return first, second


def _mark_each(text: str, words: Sequence[str]) -> str:
    for word in words:
        if text.count(word) != 1:
            raise ValueError(f"{word!r} is not just once in {text!r}")
        text = text.replace(word, f"[{word}]")
    return text


# ---- folders


@dataclass(frozen=True)
class Benchmark:
    """A folder of cases.

    Attributes:
        kinds: names of the kinds that cases may be of.
        mapping: the files that say what the cases are.
        pictures, truths: the folders of the pictures to edit and of the right results.
        protocol: by what it is measured: a name of `sage.bench.extractors.PROTOCOLS`, or "" where no published networks
            measure it.
    """

    folder: Path
    cases: tuple[Case, ...]
    kinds: Sequence[str] = KINDS
    mapping: tuple[str, ...] = (MAPPING,)
    pictures: str = PICTURES
    truths: str = TRUE_EDITS
    protocol: str = "piebench"

    @property
    def wordings(self) -> dict[str, frozenset[str]]:
        """The names of the cases of each wording that there is, in the order of `WORDINGS`."""
        named = {way: frozenset(case.name for case in self.cases if case.wording == way) for way in WORDINGS}
        return {way: names for way, names in named.items() if names}

    def source(self, case: Case) -> Image.Image:
        """The picture to edit; PictureError or BenchmarkError if it cannot be had."""
        return pictures.open_picture(inside(self.folder / self.pictures, case.picture))

    def ready(self, case: Case) -> Case:
        """The case with all that its edit and its figures take beside its picture and its truth, to be sent anywhere.

        Raises:
            SageError: something of it cannot be had.
        """
        return case

    def source_hash(self, case: Case) -> str:
        """SHA-256 of the file of the picture to edit."""
        return hashlib.sha256(read_plain(inside(self.folder / self.pictures, case.picture), BenchmarkError)).hexdigest()

    def mapping_hash(self) -> str:
        """SHA-256 of the mapping."""
        return hashlib.sha256(b"".join(read_plain(self.folder / name, BenchmarkError)
                                       for name in self.mapping)).hexdigest()

    def truth(self, case: Case) -> Image.Image | None:
        """The right result, None where it is not known."""
        return None if case.truth is None else pictures.open_picture(inside(self.folder / self.truths, case.truth))


def read_benchmark(folder: str | Path, mended: bool = True) -> Benchmark:
    """Read a benchmark's mapping file; its pictures are opened when asked for.

    Args:
        mended: with the two corrections of PIE-Bench's annotations that the released SAGE makes.
    Raises:
        BenchmarkError: not there, too large, damaged, or with something in it that does not belong there.
    """
    folder = Path(folder)
    path = folder / MAPPING
    entries = read_table(path, "edits")
    cases = tuple(_case(path, name, entry, mended) for name, entry in entries.items())
    stems: dict[str, str] = {}
    for case in cases:
        inside(folder / PICTURES, case.picture)
        if case.truth is not None:
            inside(folder / TRUE_EDITS, case.truth)
        if other := stems.get(case.stem.lower()):
            raise BenchmarkError(f"{path}: {other} and {case.name} are edits of the same picture file")
        stems[case.stem.lower()] = case.name
    return Benchmark(folder, cases)


def _case(path: Path, name: str, entry: Any, mended: bool) -> Case:
    def fail(what: str) -> BenchmarkError:
        return BenchmarkError(f"{path}: edit {name[:40]!r}: {what}")

    def text(key: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > MAX_TEXT or any("\ud800" <= c <= "\udfff" for c in value):
            raise fail(f"{key} must be text of at most {MAX_TEXT} characters")
        return value

    if not name or len(name) > 200 or not name.isprintable():
        raise fail("its name must be 1 to 200 printable characters")
    if not isinstance(entry, dict):
        raise fail("it must be a table")
    kind = str(entry.get("editing_type_id"))
    if kind not in [str(k) for k in range(len(KINDS))]:
        raise fail(f"editing_type_id must be 0 to {len(KINDS) - 1}")
    picture = text("image_path", entry.get("image_path"))
    source, target = (text(key, entry.get(key)) for key in ("original_prompt", "editing_prompt"))
    blended = text("blended_word", entry.get("blended_word", ""))
    if mended:
        blended = MENDED_BLEND.get(blended, blended)
        source, target = MENDED_PROMPTS.get(picture, (source, target))
    runs = entry.get("mask")
    if not isinstance(runs, list) or len(runs) % 2 or not all(type(v) is int and v >= 0 for v in runs):
        raise fail("mask must be a flat list of pairs start, length, none of them negative")
    if sum(runs[1::2]) > 2 * pictures.MAX_PIXELS or max(runs[0::2], default=0) > pictures.MAX_PIXELS:
        raise fail(f"mask has runs for more than {pictures.MAX_PIXELS // 10**6} million pixels")
    phrases = entry.get("blend_phrases")
    if phrases is not None:
        if not isinstance(phrases, list) or len(phrases) != 2 or not any(phrases):
            raise fail("blend_phrases must be a pair of phrases")
        phrases = (text("blend_phrases", phrases[0]), text("blend_phrases", phrases[1]))
    attributes = entry.get("attributes")
    if attributes is not None:
        if not isinstance(attributes, list) or len(attributes) != 2 or not all(map(_is_scene, attributes)):
            raise fail("attributes must be a pair of tables, each with a known value for every attribute of a scene")
        attributes = (attributes[0], attributes[1])
    wording = entry.get("wording", "")
    if wording not in ("", *WORDINGS):
        raise fail(f"wording must be {' or '.join(WORDINGS)}")
    truth = entry.get("true_edit")
    return Case(name=name, kind=int(kind), picture=picture, source_marked=source, target_marked=target,
                runs=tuple(runs), instruction=text("editing_instruction", entry.get("editing_instruction", "")),
                blended_word=blended, truth=None if truth is None else text("true_edit", truth), phrases=phrases,
                attributes=attributes, wording=wording)


def _is_scene(attributes: Any) -> bool:
    return isinstance(attributes, dict) and attributes.keys() == VALUES.keys() and all(
        attributes[name] in values for name, values in VALUES.items())


def write_mapping(folder: Path, cases: Iterable[Case]) -> None:
    """Write the mapping file of `cases`, whole or not at all."""
    entries = {}
    for case in cases:
        entries[case.name] = {
            "image_path": case.picture, "original_prompt": case.source_marked, "editing_prompt": case.target_marked,
            "editing_instruction": case.instruction, "editing_type_id": str(case.kind),
            "blended_word": case.blended_word, "mask": list(case.runs)}
        if case.truth is not None:
            entries[case.name]["true_edit"] = case.truth
        if case.phrases is not None:
            entries[case.name]["blend_phrases"] = list(case.phrases)
        if case.attributes is not None:
            entries[case.name]["attributes"] = [dict(scene) for scene in case.attributes]
        if case.wording:
            entries[case.name]["wording"] = case.wording
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    write_text(folder / MAPPING, f"{{\n{rows}\n}}\n")
