"""The table of a batch: CSV or JSON lines -> rows, each checked as far as it can be without its picture and a model."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sage.commands.flags import reader
from sage.display.console import did_you_mean
from sage.errors import SageError, SettingsError
from sage.files import read_plain
from sage.method import DEFAULTS, Method, able, check_task, method
from sage.pictures import WRITTEN
from sage.pictures.metadata import check_prompt
from sage.prompts.instructions import follow, instructed
from sage.settings import Phrases, Settings, annotations

REQUIRED, NAMES, METHOD = ("picture", "source", "target"), ("out", "name", "id"), "method"
INSTRUCTION = "instruction"  # may stand in the place of the target
DEFAULT = DEFAULTS["edit"]
COMMENTS = ("comment", "comments", "note", "notes", "remark", "remarks")
# 2,5 and 0,125, but not 1,000, which is one to some and a thousand to others
DECIMAL_COMMA = re.compile(r"([+-]?(?:0|\d+(?!,\d{3}$))),(\d+)")
SHEET = re.compile(r"contact-sheet(-\d+)?\.png", re.IGNORECASE)
MOST_ROWS, MOST_WRONG = 100_000, 1000  # in all, and of those that cannot be made: a table with more is refused
MAX_TABLE, MAX_CELL, MAX_NAME = 256 * 2**20, 2**16, 120  # bytes of a file; characters of a cell; bytes of a name


class TableError(SageError):
    """A table that is wrong as a whole."""


@dataclass(frozen=True)
class Row:
    """An edit that a table asks for.

    Attributes:
        number: 1 is the first one below the header.
        line: of the file, on which it begins or ends.
        out: where the edit goes, below the folder of the batch.
        method: what edits, as `sage.method.method` finds it.
        settings: those that the row has of its own.
        notes: what is to be said of it when it is made.
        wrong: why it cannot be made, "" if nothing is known to be wrong; the other values are then not to be used.
    """

    number: int
    line: int
    picture: Path = Path()
    source: str = ""
    target: str = ""
    out: str = ""
    method: str = DEFAULT
    settings: Mapping[str, Any] = field(default_factory=dict)
    wrong: str = ""
    notes: tuple[str, ...] = ()


def columns_of(default: str = DEFAULT) -> tuple[str, ...]:
    """Every column that a table may have: settings are those of any known method, and of the default one."""
    owners = [method(name).Settings for name in dict.fromkeys((default, *able("edit")))]
    settings = dict.fromkeys(name for owner in owners for name in owner.names())
    return tuple(dict.fromkeys((*REQUIRED, INSTRUCTION, *NAMES, METHOD, *settings)))


def read_table(path: Path, default: str = DEFAULT) -> list[Row]:
    """Rows of a .csv or .tsv file with a header, or of a .jsonl file with an object a line; blank ones are left out.

    Columns are picture, source and target, or in its place an instruction that makes one of the source by the grammar;
    out, name or id for the file to write; method; and the settings of the row's method.  Those that begin with #, or
    are called comment, note or remark, are left alone.  Numbers may have a decimal comma.  Pictures are found from the
    table's folder.

    Args:
        default: the method of rows that name none.  A table is perhaps a stranger's: it may name a method that is
            known, but a file with a method in it only where this is that very file.
    Raises:
        TableError: missing, too large, not UTF-8, empty, without the columns it needs, with more than MOST_ROWS rows,
            or with more than MOST_WRONG that cannot be made.
    """
    known = columns_of(default)
    read = _json_lines if path.suffix.lower() in (".jsonl", ".ndjson") else _csv
    cells = list(islice(read(path, _text(path), known), MOST_ROWS + 1))
    if len(cells) > MOST_ROWS:
        raise TableError(f"{path} has more than {MOST_ROWS} rows: make several tables of it")
    if not cells:
        raise TableError(f"{path} has no rows")
    columns = {_column(name) for _, found in cells if not isinstance(found, str) for name in found}
    if missing := [name for name in REQUIRED if name not in columns
                   and not (name == "target" and INSTRUCTION in columns)]:
        if not columns:
            raise TableError(f"{path}, line {cells[0][0]}: {cells[0][1]}")
        raise TableError(f"{path} has no column {' and no column '.join(missing)}; it needs {', '.join(REQUIRED)} "
                         f"or {INSTRUCTION}, and may have {', '.join((*NAMES, METHOD))} or any setting")
    rows, taken, wrong = list[Row](), dict[str, int](), 0
    for number, (line, found) in enumerate(cells, start=1):
        row = _row(number, line, found, path.parent, known, default)
        if not row.wrong:
            key = unicodedata.normalize("NFC", row.out).casefold()  # as the least exact of file systems compares
            if key in taken:
                row = Row(number, line, wrong=f"{row.out} is also the name of row {taken[key]}")
            taken.setdefault(key, number)
        rows.append(row)
        wrong += bool(row.wrong)
        if wrong > MOST_WRONG:
            raise TableError(f"{path}: more than {MOST_WRONG} rows cannot be made, the last one on line {line}: "
                             f"{row.wrong}")
    return rows


def _text(path: Path) -> str:
    try:
        return read_plain(path, TableError, MAX_TABLE, "give a .csv or .jsonl table").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


# ---- lines -> cells by column, or what is wrong with them


Cells = Iterator[tuple[int, dict[str, Any] | str]]


def _csv(path: Path, text: str, known: Sequence[str]) -> Cells:
    """Cells as texts, empty ones left out; with the delimiter that parts the header into what it needs."""
    head = text.lstrip().partition("\n")[0].lower()
    delimiter = max(",;\t", key=lambda d: len({*REQUIRED} & {_column(name.strip(' "\r')) for name in head.split(d)}))
    limit = csv.field_size_limit(MAX_TABLE)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next((cells for cells in lines if any(cells)), [])
        names = [_column(cell) for cell in header]
        if strange := [name for name in names if name not in known and not _is_comment(name)]:
            raise TableError(f"{path}: {_no_column(strange[0], known)} (begin the names of comments with #)")
        if twice := [name for name in names if names.count(name) > 1 and not _is_comment(name)]:
            raise TableError(f"{path} has the column {twice[0]} twice")
        missing = {name: "" for name in names}
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names):
                yield lines.line_num, f"it has {len(cells)} cells, and the header {len(names)}"
            else:
                row = missing | dict(zip(names, cells, strict=False))
                yield lines.line_num, {k: v for k, v in row.items() if not _is_comment(k)}
    except csv.Error as error:
        raise TableError(f"{path}, line {lines.line_num}: no CSV ({error}); text with quotes in it is written "
                         '"in quotes, with each "" of its own doubled"') from error
    finally:
        csv.field_size_limit(limit)


def _json_lines(path: Path, text: str, known: Sequence[str]) -> Cells:
    for line, words in enumerate(text.split("\n"), start=1):
        if words.strip():
            try:
                found = json.loads(words, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                yield line, f"it is no JSON object ({getattr(error, 'msg', None) or str(error)[:80]})"
                continue
            yield line, found if isinstance(found, dict) else "it is no JSON object"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands in it twice")
    return dict(pairs)


def _column(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def _is_comment(column: str) -> bool:
    return column.startswith("#") or column in COMMENTS


def _no_column(name: str, known: Sequence[str]) -> str:
    """What is said of one that there is not, with the one that may be meant."""
    near = did_you_mean(_column(name), known) or (
        f": there are {', '.join((*REQUIRED, INSTRUCTION, *NAMES, METHOD))} and any setting")
    return f"there is no column {name[:40]!r}{near}"


# ---- cells -> a row


def _row(number: int, line: int, found: dict[str, Any] | str, folder: Path, known: Sequence[str], default: str) -> Row:
    try:
        if isinstance(found, str):
            raise TableError(found)
        cells = {}
        for name, value in found.items():
            column = _column(name)
            if column not in known and not _is_comment(column):
                raise TableError(_no_column(name, known))
            if column in cells:
                raise TableError(f"it has {column} twice")
            cells[column] = value
        texts = {name: _plain(name, cells.pop(name, None)) for name in (*REQUIRED, INSTRUCTION, *NAMES, METHOD)}
        if not texts["picture"]:
            raise TableError("picture is empty: give the path of one")
        chosen = _method(texts[METHOD] or default, default)
        source = check_prompt("source", texts["source"])
        target, notes = _target(texts, source)
        return Row(number, line, folder / texts["picture"], source, target, _out(number, texts),
                   texts[METHOD] or default, _settings(chosen, cells), notes=notes)
    except SageError as error:
        return Row(number, line, wrong=str(error))


def _target(texts: Mapping[str, str], source: str) -> tuple[str, tuple[str, ...]]:
    """The target prompt of a row, its own or what its instruction makes of the source prompt; and what to say of it."""
    if not (instruction := texts[INSTRUCTION]):
        return check_prompt("target", texts["target"]), ()
    if texts["target"].strip():
        raise TableError(f"it has a target and an {INSTRUCTION}, which makes one: give one of them")
    target = check_prompt("target", follow(instruction, source))
    return target, (instructed(instruction, target),)


def _method(name: str, default: str) -> Method:
    if name != default and ".py:" in name:
        raise TableError(f"its method is a file, {name[:60]}: a table may not say which code is run; give it with "
                         "--method")
    found = method(name)
    check_task(found, "edit")
    return found


def _settings(chosen: Method, cells: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a row, read as the flags of its method are."""
    owner, settings = chosen.Settings, {}
    for name, value in cells.items():
        if _is_comment(name) or not _says(owner, name, value):
            continue
        if name not in owner.names():
            raise TableError(f"{chosen.name} has no setting {name}: it has {', '.join(owner.names())}")
        settings[name] = _setting(owner, name, value)
    owner().but(**settings)
    return settings


def _plain(name: str, value: Any) -> str:
    """A cell that holds a text of one line; numbers are good for names."""
    if name in NAMES and type(value) is int:
        value = str(value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TableError(f"{name} is {str(value)[:40]}: must be a text")
    if len(value) > MAX_CELL:
        raise TableError(f"{name} has {len(value)} characters")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r" for c in value):
        raise TableError(f"{name} holds a control character")
    return value if name in ("source", "target") else value.strip()


def _says(owner: type[Settings], name: str, value: Any) -> bool:
    """An empty cell says nothing, and null only where it is what none is."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None or annotations(owner).get(name) == Phrases


def _setting(owner: type[Settings], name: str, value: Any) -> Any:
    """A text as its flag reads it, but with a decimal comma too; any other JSON value as it is."""
    if not isinstance(value, str):
        return value
    text, read = value.strip(), reader(owner, name)
    if read is float and (parts := DECIMAL_COMMA.fullmatch(text)):
        text = ".".join(parts.groups())
    try:
        return read(text[:MAX_CELL])
    except SettingsError as error:
        raise TableError(f"{name}: {str(error)[:200]}") from error
    except ValueError as error:
        raise TableError(f"{name} is {text[:40]!r}: must be a number") from error


def _out(number: int, texts: Mapping[str, str]) -> str:
    """The name below the folder: as the row says, or of the row's number and its picture's name."""
    name = next((texts[column] for column in NAMES if texts[column]), "")
    if not name:
        stem = Path(texts["picture"]).stem
        stem = "".join(c if c.isalnum() or c in "-_. " else "_" for c in stem).strip(" .")
        name = f"{number:04d}-{stem.encode()[:MAX_NAME - 12].decode(errors='ignore')}"
    if not name.lower().endswith(tuple(WRITTEN)):
        name += ".png"
    if SHEET.fullmatch(name):
        raise TableError(f"{name} is the name of the contact sheet")
    if any(len(part.encode()) > MAX_NAME or part.strip(" .") != part for part in name.split("/")):
        raise TableError(f"{name[:60]!r} is no usable name for a file: it is too long, or has blanks or dots at an end")
    return name
