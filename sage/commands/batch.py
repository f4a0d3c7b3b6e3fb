"""`sage batch`: a table of edits -> a folder of pictures, a manifest and contact sheets.

Exit status: 0 if every row is done, 1 if some could not be, 2 if the table or the folder is wrong as a whole.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sage import pictures
from sage.batch.manifest import DONE, MANIFEST, Line, Manifest, failed
from sage.batch.table import Row, read_table
from sage.commands.checks import check_tokenizer, must_fetch
from sage.commands.flags import DEFAULT_MODEL, add_method, add_model, add_ways, given_for_all
from sage.commands.running import load
from sage.display import console
from sage.method import Method
from sage.pictures.metadata import versions

EPILOG = """
the table: CSV with a header, or JSON lines; one row an edit
  picture,source,target,name,steps
  cat.jpg,a cat on a sofa,a dog on a sofa,dog,50

picture is found from the table's folder. A column instruction, such as "make the cat black", may stand in the place of
target: as --instruction of sage edit, it makes the target of what the source says. out, name or id say what the edit is
called, below DIR. A column method names what edits the row [--method], and any setting of that method is a column too,
with a value as its flag takes it; an empty cell means the flag's value where the method has such a setting, or the
model's own. Columns that begin with # or are called comment are left alone; numbers may have a decimal comma. A batch
that was stopped goes on when it is started again; rows that have changed are made again.
"""


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("batch", run, "edit as a table says; killed at any moment, it goes on from there",
                     usage="%(prog)s TABLE --out DIR [FLAGS]", epilog=EPILOG)
    add = parser.add_argument
    add("table", metavar="TABLE", help="a .csv or .jsonl file")
    add("--out", metavar="DIR", required=True, help="the folder for the edits, manifest.jsonl and the contact sheets")
    add_ways(parser, "what became of every row")
    add_model(parser)
    add_method(parser, chosen)


def run(args: argparse.Namespace) -> int:
    """Make the batch, say where everything is, and what could not be made."""
    began, changes = time.monotonic(), given_for_all(args)
    rows, folder = read_table(Path(args.table), args.method), Path(args.out)
    pictures.check_writable(folder / "contact-sheet.png")
    name = args.model or DEFAULT_MODEL
    fetch = must_fetch(name)
    check_tokenizer(args.tokenizer)

    with Said(len(rows), args) as said:
        lines, sheets = _done(rows, folder, changes, name, fetch, said, args)
    bad = sum(line.status != DONE for line in lines)
    if args.json:
        print(json.dumps({
            "out": str(folder), "manifest": str(folder / MANIFEST), "sheets": [str(path) for path in sheets],
            "rows": len(lines), "made": said.made, "kept": len(lines) - bad - said.made, "failed": bad,
            "results": [line.as_dict() for line in lines], "seconds": round(time.monotonic() - began, 2),
            "versions": versions()}))
    if bad:
        print(f"sage: {bad} of {len(lines)} rows failed", file=sys.stderr)
    return 1 if bad else 0


def _done(rows: Sequence[Row], folder: Path, changes: dict[str, Any], model: str, fetch: bool, said: "Said",
          args: argparse.Namespace) -> tuple[list[Line], list[Path]]:
    """What became of each row, and the contact sheets."""
    if all(row.wrong for row in rows):  # no model is needed to say so
        lines = [failed(row, row.wrong) for row in rows]
        with Manifest(folder) as manifest:
            for line in lines:
                manifest.append(line)
                said.tell(line, True)
        return lines, []
    loaded, _ = load(model, args.prediction_type, fetch, args, said.note)
    from sage.batch.runner import run_batch
    from sage.batch.sheets import write_sheets
    lines, tasks = run_batch(loaded, rows, folder, "published" if args.published else None, changes, args.truncate,
                             args.prediction_type, said.tell, said.progress)
    sheets = write_sheets(tasks, folder, loaded.prompts, said.progress)
    for path in sheets:
        said.path(path)
    return lines, sheets


class Said:
    """What is said meanwhile: paths on stdout; notes, what is wrong and a bar of rows on stderr."""

    def __init__(self, rows: int, args: argparse.Namespace):
        self.folder, self.as_json, self.quiet, self.made = Path(args.out), args.json, args.quiet, 0
        self.rows, self.shown, self.bar = rows, sys.stderr.isatty() and not args.quiet, None

    def _show(self) -> None:
        """Begin the bar, if there is none: what is said before the first row has the terminal to itself."""
        if self.shown and self.bar is None:
            from tqdm import tqdm  # only where a bar is wanted
            self.bar = tqdm(total=self.rows, desc="batch", unit="row")

    def progress(self, phase: str, done: int, total: int) -> None:
        self._show()
        if self.bar is not None:
            self.bar.set_postfix_str(f"{phase} {done}/{total}")

    def tell(self, line: Line, new: bool) -> None:
        """A row is settled."""
        self._show()
        where = f"row {line.row} (line {line.line})"
        if line.status == DONE:
            self.made += new
            self.path(self.folder / line.out)
            for message in line.notes if new else ():
                self.note(f"{where}: {message}")
        else:
            self._line(sys.stderr, console.printable(f"sage: error: {where}: {line.reason}"))
        if self.bar is not None:
            self.bar.update(1)

    def note(self, message: str) -> None:
        if not self.quiet:
            self._line(sys.stderr, console.printable(f"sage: note: {message}"))

    def path(self, path: Path) -> None:
        if not self.as_json:
            self._line(sys.stdout, str(path))

    def _line(self, stream: Any, text: str) -> None:
        if self.bar is None:
            print(text, file=stream, flush=True)
        else:
            self.bar.write(text, file=stream)  # with the bar out of the way
            stream.flush()

    def __enter__(self) -> "Said":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
