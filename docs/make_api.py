"""Writes docs/api.md from the docstrings: every public name of `sage`, and what methods and backbones are written with.

    python docs/make_api.py

Signatures are taken from the source as they were written, so that the page is the same on every version of Python.
"""

import ast
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sage.files import written_whole
from sage.settings import Settings

PAGE = Path(__file__).with_name("api.md")
HEAD = """\
# API

Made from the docstrings by `make docs`; what stands here is said there.  Shapes are (B, C, H, W): batch, channels,
height, width, with small letters for latents; (B, H, N, M) for attention: batch, heads, queries, keys.
"""
# Module, heading, what it is for.
ROOMS = (
    ("sage", "What a program uses", "`import sage`; each name is loaded when it is first used."),
    ("sage.settings", "Settings", "For methods: how their settings are written, and the groups that they share."),
    ("sage.kit", "What methods speak with", "`from sage import kit`."),
    ("sage.job", "What a method is given", ""),
    ("sage.models.backbone", "What a network has to offer", "[porting.md](porting.md) shows how one is brought."),
)
WIDTH = 100


def page() -> str:
    """The page in Markdown."""
    rooms, seen, anchors = [], {}, Counter()
    for module, heading, purpose in ROOMS:
        room, links, entries = import_module(module), [], []
        at = anchor(heading, anchors)
        for name in public(module):
            value, title = getattr(room, name), f"{module}.{name}"
            first = seen.setdefault(id(value), canonical(room, name)) if callable(value) else title
            text = described(name, value) if first == title else f"Another name of `{first}`."
            entries.append(f"### {title}\n\n{text}")
            links.append(f"[{name}](#{anchor(title, anchors)})")
        rooms.append((f"- **[{heading}](#{at})**, `{module}`: {', '.join(links)}",
                      "\n\n".join([f"## {heading}", *([purpose] if purpose else []), *entries])))
    return "\n\n".join([HEAD.rstrip(), "\n".join(links for links, _ in rooms), *(text for _, text in rooms)]) + "\n"


def canonical(room: ModuleType, name: str) -> str:
    """The name in full under which a class or function is described: the one it was defined with, if that is public."""
    own = getattr(getattr(room, name), "__name__", name)
    return f"{room.__name__}.{own if getattr(room, own, None) is getattr(room, name) else name}"


def public(module: str) -> list[str]:
    """The names a module offers: those of its `__all__`, else the classes and functions that it defines."""
    room = import_module(module)
    return list(getattr(room, "__all__", None) or (
        name for name, value in vars(room).items() if not name.startswith("_")
        and getattr(value, "__module__", None) == module and (inspect.isclass(value) or inspect.isfunction(value))))


def anchor(heading: str, taken: Counter[str]) -> str:
    """The name under which a heading can be linked to; equal ones are numbered."""
    plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    taken[plain] += 1
    return plain if taken[plain] == 1 else f"{plain}-{taken[plain] - 1}"


# ---- one name


def described(name: str, value: Any) -> str:
    """Signature, docstring, and for a class its fields and members."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        return markdown(inspect.getdoc(value))
    if inspect.isclass(value) and issubclass(value, Settings):
        return "\n\n".join([markdown(inspect.getdoc(value)), *tables(value), *members(value)])
    if inspect.isclass(value):
        return "\n\n".join([code(signature(name, value)), markdown(inspect.getdoc(value)), *members(value)])
    if inspect.isroutine(value):
        return f"{code(signature(name, value))}\n\n{markdown(inspect.getdoc(value))}"
    if isinstance(value, dict):
        return code("\n".join([f"{name} = {{", *(f"    {written(k)}: {written(v)}," for k, v in value.items()), "}"]))
    return code(f"{name} = {re.sub(r'[a-z_.]+[.](?=[A-Z])', '', repr(value))}")


def members(cls: type) -> Iterator[str]:
    """The public methods and properties that a class defines and describes."""
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        function = member.fget if isinstance(member, property) else getattr(
            member, "__func__", getattr(member, "func", member))
        if not inspect.isfunction(function) or not function.__doc__:
            continue
        source = Source(function)
        called = inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod))
        given = ", ".join(source.arguments(source.node, bound=not isinstance(member, staticmethod)))
        yield f"**`{name}{f'({given})' if called else ''}{source.returns()}`**  \n{markdown(inspect.getdoc(function))}"


def tables(cls: type[Settings]) -> Iterator[str]:
    """A table for each group of settings."""
    for heading, fields in cls.groups().items():
        rows = [f"| `{f.name}` | `{defaulted(f)}` | {meaning(f.metadata)} |" for f in fields]
        yield "\n".join([f"| {heading} | default | |", "|---|---|---|", *rows])


def defaulted(field: Any) -> str:
    """A field's default as it would be written."""
    return written(field.default_factory() if callable(field.default_factory) else field.default)


def meaning(metadata: Any) -> str:
    """A setting's help, with its choices or its range."""
    low, high = metadata["low"], metadata["high"]
    ends = [f"at least {low}"] * (low > float("-inf")) + [f"at most {high}"] * (high < float("inf"))
    more = ", ".join(f"`{choice}`" for choice in metadata["choices"]) or ", ".join(ends)
    return metadata["help"].replace("|", "\\|") + (f" ({more})" if more else "")


def written(value: Any) -> str:
    """A plain value as it would be written."""
    return '"' + value + '"' if isinstance(value, str) else repr(value)


# ---- signatures, as they stand in the source


class Source:
    """A function or a class as it was written."""

    def __init__(self, value: Any):
        self.text = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
        self.node: Any = ast.parse(self.text).body[0]

    def written(self, node: ast.AST) -> str:
        """What stands there, in one line."""
        return re.sub(r"\s+", " ", ast.get_source_segment(self.text, node) or "")

    def hint(self, node: ast.expr) -> str:
        """A type, without the quotes around what is not imported where it stands."""
        text = self.written(node)
        return text if "Literal" in text else text.replace('"', "")

    def arguments(self, node: ast.FunctionDef, bound: bool = False) -> list[str]:
        """The arguments with their types and defaults; of a bound one without the first."""
        a = node.args
        plain = a.posonlyargs + a.args
        defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
        found = [self.argument(arg, default) for arg, default in zip(plain, defaults, strict=True)][bound:]
        if a.vararg:
            found.append("*" + self.argument(a.vararg, None))
        elif a.kwonlyargs:
            found.append("*")
        found += [self.argument(arg, default) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        return found + (["**" + self.argument(a.kwarg, None)] if a.kwarg else [])

    def argument(self, arg: ast.arg, default: ast.expr | None) -> str:
        """One argument."""
        kind = f": {self.hint(arg.annotation)}" if arg.annotation else ""
        if default is None:
            return arg.arg + kind
        return f"{arg.arg}{kind}{' = ' if kind else '='}{self.written(default)}"

    def fields(self) -> dict[str, str]:
        """The public fields of a class by their names, with their types and defaults."""
        parts = [part for part in self.node.body if isinstance(part, ast.AnnAssign)
                 and not self.written(part.target).startswith("_") and "ClassVar" not in self.written(part.annotation)]
        return {self.written(part.target): f"{self.written(part.target)}: {self.hint(part.annotation)}"
                + (f" = {self.written(part.value)}" if part.value else "") for part in parts}

    def returns(self) -> str:
        """The arrow and the type of what is returned, if it is said."""
        return f" -> {self.hint(self.node.returns)}" if self.node.returns else ""


def signature(name: str, value: Any) -> str:
    """How a function is called, and how an object of a class is made: by __init__, or of its fields."""
    if not inspect.isclass(value):
        source = Source(value)
        return laid_out(name, source.arguments(source.node), source.returns())
    if "__init__" in vars(value) and not is_dataclass(value) and not getattr(value, "_is_protocol", False):
        source = Source(value.__init__)
        return laid_out(f"class {name}", source.arguments(source.node, bound=True), "")
    fields: dict[str, str] = {}
    for base in reversed(value.__mro__):
        if base.__module__.startswith("sage."):
            fields |= Source(base).fields()
    return laid_out(f"class {name}", [*fields.values()], "")


def laid_out(head: str, arguments: list[str], tail: str) -> str:
    """In one line, or an argument a line."""
    line = head if head.startswith("class ") and not arguments else f"{head}({', '.join(arguments)}){tail}"
    return line if len(line) <= WIDTH else f"{head}(\n    " + ",\n    ".join(arguments) + f",\n){tail}"


def code(text: str) -> str:
    return f"```python\n{text}\n```"


# ---- docstrings


def markdown(doc: str | None) -> str:
    """A docstring with its sections as lists; formulas, which are indented, stay as they are."""
    lines = (doc or "").splitlines()
    out: list[str] = []
    while lines:
        line = lines.pop(0)
        if not re.fullmatch(r"(Args|Attributes|Raises|Returns|Yields):", line):
            out.append(line)
            continue
        body: list[str] = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        out += ["", f"{line[:-1]}:", "", *items(textwrap.dedent("\n".join(body)).splitlines()), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def items(lines: list[str]) -> Iterator[str]:
    """`name: what` -> a list entry; what is indented goes on with the one before."""
    for line in lines:
        name, colon, rest = line.partition(":")
        if line.startswith(" "):
            yield f"  {line.strip()}"
        elif colon and re.fullmatch(r"[\w*., ]+", name):
            yield "- " + ", ".join(f"`{part.strip()}`" for part in name.split(",")) + f":{rest}"
        elif line:
            yield f"- {line}"


if __name__ == "__main__":
    with written_whole(PAGE) as out:
        out.write(page().encode())
    print(PAGE)
