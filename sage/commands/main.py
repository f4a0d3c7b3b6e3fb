"""`sage`: the parser of all commands, and how each of them ends.  No tensors.

Whatever the user gave is checked before torch is even imported, so that a mistake is answered at once.  A mistake is
one line on stderr and exit status 2; Ctrl-C leaves no half-written file and exits with 130.  Every
other command has a file of its own beside this one.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from sage import __version__
from sage.commands.about import add_commands as add_about_commands
from sage.commands.batch import add_command as add_batch_command
from sage.commands.bench import add_commands as add_bench_commands
from sage.commands.caption import add_command as add_caption_command
from sage.commands.compose import add_command as add_compose_command
from sage.commands.doctor import add_command as add_doctor_command
from sage.commands.drag import add_command as add_drag_command
from sage.commands.edit import add_command as add_edit_command
from sage.commands.flags import named_method, with_recorded
from sage.commands.generate import add_command as add_generate_command
from sage.commands.grid import add_command as add_grid_command
from sage.commands.invert import add_command as add_invert_command
from sage.commands.methods import add_command as add_methods_command
from sage.commands.ui import add_commands as add_ui_commands
from sage.display import console
from sage.display.help import Help
from sage.errors import SageError, disk_full, of_the_machine
from sage.machine.allocator import keep_freed_memory
from sage.machine.threads import sleep_while_waiting
from sage.method import METHODS, method

EXAMPLES = """
examples:
  sage edit mug.png --source "a blue mug" --target "a red mug" --model stilllife
  sage edit --help          # what a command takes
  sage ui                   # the same in a browser
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # any file name can be printed: as its bytes, or escaped
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding == "utf-8" else "backslashreplace")
    try:
        given = list(sys.argv[1:] if argv is None else argv)
        if given[:1] == ["help"]:  # as other tools have it
            given = [*given[1:], "--help"]
        given = with_recorded(given)
        parser = make_parser(given)
        if not given:
            parser.print_help()
            return 0
        args = parser.parse_args(given)
        keep_freed_memory()
        sleep_while_waiting()
        status = args.run(args) or 0
        if sys.stdout:
            sys.stdout.flush()
        return status
    except SageError as error:
        return console.fail(str(error))
    except KeyboardInterrupt:
        print("sage: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `sage info ... | head`: whoever read has had enough
        _abandon_stdout()
        return 141
    except Exception as error:
        if not (said := of_the_machine(error)):
            raise
        if disk_full(error):
            _abandon_stdout()
        return console.fail(said)


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, and fail no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, which names what is nearest to what was typed."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("type", None, named)  # what is read by no other type is a name
        self.register("type", int, whole_number)
        self.register("type", float, number)

    def add_subparsers(self, **options: Any) -> Any:
        """As argparse's; what stands behind a command's name is read by that command."""
        self.register("type", None, str)
        return super().add_subparsers(**options)

    def error(self, message: str):
        sys.exit(console.fail(f"{message} (see {self.prog} --help)"))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's, but here and not in the parser above it an unknown flag is an error."""
        known, rest = super().parse_known_args(args, namespace)
        if strange := next((word.partition("=")[0] for word in rest if word.startswith("-")), None):
            self.error(f"there is no {strange}{self._instead_of(strange)}")
        if rest:
            self.error(f"{rest[0]!r} stands behind no flag that takes it")
        return known, rest

    def _instead_of(self, strange: str) -> str:
        """What somebody may have had in mind who gave a flag that there is not."""
        if chosen := self._defaults.get("method"):
            field = strange.removeprefix("--").replace("-", "_")
            if having := [name for name in METHODS if field in method(name).Settings.names()]:
                return f" of {chosen}: it is of --method {', '.join(having)}"
        return console.did_you_mean(strange, self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if near := console.did_you_mean(str(value), map(str, action.choices)):
                raise argparse.ArgumentError(action, f"there is no {value!r}{near}") from None
            raise error


# ---- arguments


def named(text: str) -> str:
    """What names a file, a folder or a model; an empty one names nothing, and is not taken for none given."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name one, or leave it out")
    return text


def whole_number(text: str) -> int:
    """An int; argparse's own error speaks of Python's types."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number") from None


def number(text: str) -> float:
    """A float, likewise."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number") from None


def make_parser(argv: Sequence[str] = ()) -> Parser:
    """The parser of all commands; the method that `argv` names says which settings are flags."""
    chosen = named_method(argv)
    parser = Parser(prog="sage", description="Edit a real picture by rewriting its description.", epilog=EXAMPLES,
                    formatter_class=Help, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sage {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, **options: Any) -> Parser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False,
                                  formatter_class=Help, **options)
        sub.set_defaults(run=run)
        return sub

    add_edit_command(command, chosen)
    add_drag_command(command, chosen)
    add_compose_command(command, chosen)
    add_invert_command(command, chosen)
    add_generate_command(command, chosen)
    add_batch_command(command, chosen)
    add_caption_command(command)
    add_grid_command(command, chosen)
    add_about_commands(command)
    add_doctor_command(command)
    add_methods_command(command)
    add_bench_commands(command)
    add_ui_commands(command)
    return parser
