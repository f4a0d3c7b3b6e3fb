"""`sage methods [NAME]`: the methods there are, and what one of them can be told."""

import argparse
import json
import textwrap
from collections.abc import Callable
from typing import Any

from sage.display import console
from sage.method import METHODS, Method, method
from sage.settings import annotations
from sage.trajectory.label import flag


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
    """
    parser = command("methods", run, "list the methods, or tell what one of them does and can be told")
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"{', '.join(METHODS)}, or path/to/file.py:Class")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> None:
    """Print them."""
    names = [args.name] if args.name else list(METHODS)
    found = {name: facts(method(name)) for name in names}
    if args.json:
        print(json.dumps(found))
    elif args.name:
        print(page(args.name, found[args.name]))
    else:
        print("\n".join(line(name, of) for name, of in found.items()))
        print("\nN is --steps. sage methods NAME tells the settings of one; sage edit --method NAME edits by it.")


def facts(found: Method) -> dict[str, Any]:
    """What is to be known of a method, as JSON values."""
    kinds = annotations(found.Settings)
    settings = {f.name: {"group": heading, "help": f.metadata["help"], "default": getattr(found.Settings(), f.name),
                         "choices": list(f.metadata["choices"]), "type": _kind(kinds[f.name])}
                for heading, members in found.Settings.groups().items() for f in members}
    return {"title": found.title, "paper": found.paper, "about": found.about, "good_at": found.good_at,
            "reads": sorted(found.reads), "beside": list(found.beside), "calls": found.calls,
            "edits": found.does("edit"), "generates": found.does("generate"), "presets": list(found.presets),
            "published": dict(found.published), "settings": settings}


def line(name: str, of: dict[str, Any]) -> str:
    """A method in a line or two."""
    does = " and ".join(word for word, can in (("edits", of["edits"]), ("generates", of["generates"])) if can)
    head = f"{name:12} {of['title']}" + (f" (arXiv {of['paper']})" if of["paper"] else "")
    rest = f"{does}; reads {', '.join(of['reads'])}" + (f"; network calls {of['calls']}" if of["calls"] else "")
    also = f"also: {', '.join(f'+{more}' for more in of['beside'])}" if of["beside"] else ""
    good_at = f"good at {of['good_at']}" if of["good_at"] else ""
    return "\n".join([*_wrapped(head), *(told for part in (of["about"], good_at, rest, also)
                                         for told in _wrapped(part, " " * 13))])


def page(name: str, of: dict[str, Any]) -> str:
    """A method with its settings."""
    lines, group = [line(name, of)], ""
    if of["presets"]:
        taken = "".join(f"; of --published with sage {task}: {name}" for task, name in of["published"].items())
        lines += _wrapped(f"presets: {', '.join(of['presets'])}{taken}", " " * 13)
    for field, about in of["settings"].items():
        if about["group"] != group:
            group = about["group"]
            lines += ["", f"{group}:"]
        default = "" if about["default"] in (None, {}) else f" [{about['default']}]"
        what = f"{{{','.join(about['choices'])}}}" if about["choices"] else about["type"]
        lines.append(f"  {flag(field)} {what}")
        lines += _wrapped(about["help"] + default, " " * 6)
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, console.width(), initial_indent=indent, subsequent_indent=indent or " " * 13,
                         break_on_hyphens=False)


def _kind(annotation: Any) -> str:
    return {int: "N", float: "X", str: "TEXT", bool: "yes|no", int | None: "N"}.get(annotation, "PHRASES")
