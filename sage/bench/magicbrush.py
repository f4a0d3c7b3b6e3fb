"""MagicBrush's dev and test sets, read with suspicion from the folder that their authors distribute.

    edit_sessions.json         {session: [{input, output, instruction}, ...]}
    global_descriptions.json   {session: {picture: what it shows}}               the prompts
    local_descriptions.json    {session: {picture: what its edit has made}}      the captions of CLIP-T
    images/SESSION/            the pictures

A case is one turn: from the true picture before it to the true picture after it, which the authors call single-turn and
whose mean is "all turns".  Results are named as their evaluation wants them: SESSION/SESSION_1.png, and from the second
turn on SESSION/SESSION_inde_2.png.  Their other setting, SESSION_iter_2.png, starts each turn from one's own result of
the turn before; such pictures are scored where a folder holds them, as "final turn", and are not made here.

The masks are not read: no figure of the protocol needs them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sage.bench.cases import MAX_TEXT, Benchmark, Case
from sage.bench.files import BenchmarkError, inside, read_table

SESSIONS, GLOBAL, LOCAL, IMAGES = "edit_sessions.json", "global_descriptions.json", "local_descriptions.json", "images"
MAX_TURNS = 9
TURNS = ("", "first turn", "second turn", "third turn", *(f"turn {i}" for i in range(4, MAX_TURNS + 1)))


@dataclass(frozen=True)
class Turn(Case):
    """One edit of a session; its kind is its number, from 1.

    Attributes:
        session: the session's name.
        caption: what the edit makes, in a few words.
        iterated: from one's own result of the turn before, not from the true picture.
    """

    session: str = ""
    caption: str = ""
    iterated: bool = False

    @property
    def stem(self) -> str:
        how = "" if self.kind == 1 else "iter_" if self.iterated else "inde_"
        return f"{self.session}/{self.session}_{how}{self.kind}"


def is_magicbrush(folder: str | Path) -> bool:
    """Whether a folder looks like MagicBrush's, not like PIE-Bench's."""
    return os.path.isfile(Path(folder) / SESSIONS)


def read_magicbrush(folder: str | Path, prompts: bool = True) -> Benchmark:
    """Read the turns of all sessions, each from the true picture before it.

    Args:
        prompts: whether the descriptions of whole pictures are needed, as they are to edit.
    Raises:
        BenchmarkError: not there, too large, damaged, or with something in it that does not belong there.
    """
    folder = Path(folder)
    sessions, captions = (read_table(folder / name, "sessions") for name in (SESSIONS, LOCAL))
    shown = read_table(folder / GLOBAL, "sessions") if prompts else {}
    cases = []
    for session, turns in sessions.items():
        if not isinstance(turns, list) or not 1 <= len(turns) <= MAX_TURNS:
            raise BenchmarkError(f"{folder / SESSIONS}: session {session[:40]!r} must be a list of 1 to {MAX_TURNS} "
                                 "turns")
        cases += [_turn(folder, session, number, turn, shown, captions) for number, turn in enumerate(turns, start=1)]
    mapping = (SESSIONS, LOCAL, GLOBAL) if prompts else (SESSIONS, LOCAL)
    return Benchmark(folder, tuple(cases), TURNS, mapping, IMAGES, IMAGES, "magicbrush")


def final_turns(benchmark: Benchmark) -> Benchmark:
    """The last turn of every session, each from one's own result of the turn before."""
    last = {turn.session: replace(turn, iterated=turn.kind > 1) for turn in benchmark.cases if isinstance(turn, Turn)}
    return replace(benchmark, cases=tuple(last.values()))


def _turn(folder: Path, session: str, number: int, turn: Any, shown: Mapping, captions: Mapping) -> Turn:
    def fail(what: str) -> BenchmarkError:
        return BenchmarkError(f"{folder / SESSIONS}: session {session[:40]!r}, turn {number}: {what}")

    def text(name: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > MAX_TEXT or any("\ud800" <= c <= "\udfff" for c in value):
            raise fail(f"{name} must be text of at most {MAX_TEXT} characters")
        return value

    def described(file: str, table: Mapping, name: str) -> str:
        of_session = table.get(session)
        value = of_session.get(name) if isinstance(of_session, dict) else None
        if value is None:
            raise fail(f"{file} says nothing of {name[:80]!r}")
        return text(f"what {file} says", value)

    if len(session) > 100 or "/" in session:
        raise fail("its name must be at most 100 characters, without slashes")
    if not isinstance(turn, dict):
        raise fail("it must be a table")
    before, after = (text(key, turn.get(key)) for key in ("input", "output"))
    source, target = ((described(GLOBAL, shown, name) for name in (before, after)) if shown else ("", ""))
    case = Turn(name=f"{session}-{number}", kind=number, picture=f"{session}/{before}", source_marked=source,
                target_marked=target, runs=(), instruction=text("instruction", turn.get("instruction", "")),
                truth=f"{session}/{after}", session=session, caption=described(LOCAL, captions, after))
    for path in (case.picture, f"{session}/{after}", case.stem):
        inside(folder / IMAGES, path)
    return case
