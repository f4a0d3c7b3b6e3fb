"""A result as what makes it again: a command, and Python."""

import shlex
from typing import Any

from sage.method import method_of
from sage.models.backbone import Backbone
from sage.pictures.metadata import settings_in
from sage.settings import Factors, Phrases, Settings, annotations
from sage.studio.words import factors_text, phrases_text
from sage.trajectory.label import flag

TASKS = {True: ("edit", "sage.edit"), False: ("generate", "sage.generate")}


def changed(record: dict[str, Any], model: Backbone | None) -> dict[str, Any]:
    """The settings of a record that differ from those that its model recommends, by name.

    Args:
        model: the one of the record; with another, or none, all settings are given, whatever is recommended.
    """
    settings = settings_in(record)
    if model is None or model.name != record["model"]:
        return {name: getattr(settings, name) for name in settings.names()}
    usual = method_of(settings).recommended(model, record.get("task", "edit"))
    return {name: getattr(settings, name) for name in settings.names()
            if getattr(settings, name) != getattr(usual, name)}


def as_command(record: dict[str, Any], model: Backbone | None, name: str = "edit.png") -> str:
    """The command line that makes the same picture.

    Args:
        name: the result's file, in which is what no flag can say.
    """
    edited = "picture" in record
    if _asked(record) or _remade(record):  # which no flag can say
        return shlex.join(["sage", "edit", record["picture"]["name"], "--config-from", name])
    words = ["sage", TASKS[edited][0]]
    words += [record["picture"]["name"], "--source", record["source"], "--target", record["target"]] if edited else []
    words += ["--model", record["model"], "--method", record["method"]]
    if not edited:
        words += ["--width", str(record["size"][0]), "--height", str(record["size"][1])]
        words += ["--negative", record["negative"]] if record["negative"] else []
    cls = type(settings_in(record))
    for name, value in changed(record, model).items():
        if value is not None or annotations(cls)[name] == Phrases:  # which alone have a word for none
            words.append(f"{flag(name)}={_text(cls, name, value)}")
    words += ["--truncate"] if record["truncate"] else []
    words += [] if edited else ["--", record["target"]]
    return shlex.join(words)


def as_python(record: dict[str, Any], model: Backbone | None, name: str = "edit.png") -> str:
    """Python that makes the same picture.

    Args:
        name: the result's file, in which is what no flag can say.
    """
    edited = "picture" in record
    given = ", ".join(f"{name}={value!r}" for name, value in changed(record, model).items())
    lines = ["import sage", "", f"model = sage.load_model({record['model']!r})",
             f"settings = sage.method({record['method']!r}).recommended(model"
             + ("" if edited else ", 'generate'") + ")" + (f".but({given})" if given else "")]
    more = ", truncate=True" if record["truncate"] else ""
    if edited:
        picture, asked, remade = repr(record["picture"]["name"]), _asked(record), _remade(record)
        if asked or remade:
            lines[1:1] = [f"from sage.pictures.metadata import {'asked_in, ' if asked else ''}read_record",
                          *(["from sage.pictures.originals import original"] if remade else [])]
            lines.append(f"record = read_record({name!r})")
        if remade:
            lines.append(f"picture = original(record, {picture})  # scaled, and with what was put into it")
            picture = "picture"
        if asked:
            lines.append("asked = asked_in(record)  # what prompts do not say")
        lines += [f"result = sage.edit(model, {picture}, {record['source']!r},",
                  f"                   {record['target']!r}, settings{', **asked' if asked else ''}{more})"]
    else:
        lines += [f"[result] = sage.generate(model, {record['target']!r}, settings, negative={record['negative']!r},",
                  f"                         width={record['size'][0]}, height={record['size'][1]}{more})"]
    return "\n".join([*lines, 'result.image.save("result.png")', ""])


def _asked(record: dict[str, Any]) -> bool:
    """Whether more was asked for than prompts say."""
    return any(name in record for name in ("mask", "moves", "edits"))


def _remade(record: dict[str, Any]) -> bool:
    """Whether the picture that was edited is not the one in its file."""
    return "composed" in record or "scaled" in record.get("picture", {})


def _text(cls: type[Settings], name: str, value: Any) -> str:
    kind = annotations(cls)[name]
    if kind == Phrases:
        return phrases_text(value)
    if kind == Factors:
        return factors_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, str) else repr(value)
