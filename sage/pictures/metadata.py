"""The settings record that goes inside a picture: made, and read back.  Imports no torch.

    {"version": 2, "method": "p2p", "settings": {...}, "savings": {...}, "source": ..., "target": ..., ...}

"picture" is as `sage.pictures.originals` has it, which says too when "composed" is there.  "lora" is there where files
were merged into the model, each by its name, the hash of its bytes and its scale.
A picture made from nothing has "task": "generate", its prompt as "target", and "negative", "size" and "batch" in place
of "source" and "picture".  The command line and the studio write the same record, so that either repeats what the other
made.  Version 1, of when there was one method, has "config" in place of "method" and "settings", and is read as
version 2.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import __version__, pictures
from sage.errors import PictureError, PromptError, SettingsError
from sage.method import method, method_of
from sage.models.loras import are_loras
from sage.models.savings import Savings
from sage.pictures.masks import mask_of_text, mask_text
from sage.pictures.originals import is_identity, pastes_in
from sage.pictures.regions import Move
from sage.prompts.tokens import check_text
from sage.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from sage.models.backbone import Backbone

PREDICTIONS = ("epsilon", "v_prediction")
VERSION, NOTHING_SAVED = 2, Savings()
MAX_MOVES = MAX_EDITS = 16
SHARED = {"target": str, "model": str, "method": str, "settings": dict, "savings": dict, "made": dict, "truncate": bool}
TYPES: dict[str, dict[str, type]] = {"edit": {"source": str, "picture": dict, **SHARED},
                                     "generate": {"negative": str, "size": list, "batch": int, **SHARED}}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "picture": is_identity,
    "size": lambda value: len(value) == 2 and all(type(side) is int and side > 0 for side in value),
    "batch": lambda value: type(value) is int and value > 0}


def make_record(model: "Backbone", source: str, target: str, settings: Settings, picture: dict[str, str],
                truncate: bool = False, prediction_type: str | None = None,
                savings: Savings = NOTHING_SAVED, **more: Any) -> dict[str, Any]:
    """All that is needed to repeat an edit, as JSON values.

    Args:
        picture: its `originals.identity`.
        prediction_type: where the user overrode the checkpoint's own word.
        savings: what was done to need less memory.
        more: what else the method reads, as JSON values.
    """
    return _record(model, settings, truncate, prediction_type, savings, source=source, target=target, picture=picture,
                   **more)


def make_generation_record(model: "Backbone", prompt: str, negative: str, settings: Settings, size: tuple[int, int],
                           truncate: bool = False, prediction_type: str | None = None, savings: Savings | None = None,
                           batch: int = 1) -> dict[str, Any]:
    """All that is needed to make a picture again from nothing, as JSON values.

    Args:
        settings: its seed the picture's own.
        size: (width, height) in pixels.
        batch: pictures that were made at once with it.
    """
    return _record(model, settings, truncate, prediction_type, savings or Savings(), task="generate", target=prompt,
                   negative=negative, size=list(size), batch=batch)


def _record(model: "Backbone", settings: Settings, truncate: bool, prediction_type: str | None, savings: Savings,
            **asked: Any) -> dict[str, Any]:
    loras = [lora.as_dict() for lora in getattr(model, "loras", ())]
    return {"version": VERSION, "method": method_of(settings).where, "settings": settings.as_dict(), **asked,
            **({"lora": loras} if loras else {}),
            "model": model.name, "prediction_type": prediction_type, "truncate": truncate, "savings": savings.as_dict(),
            "made": made_by(model)}


def asked_as_text(mask: "Image.Image | None" = None, moves: Sequence[Move] = (), paste: bool = False,
                  edits: Sequence[str] = ()) -> dict[str, Any]:
    """What was asked for beside both prompts, as the JSON values of a record; what was not is left out.

    Args:
        mask: 0 and 255, of the picture's size.
        paste: whether the picture's own pixels were pasted around it.
        edits: further targets.
    """
    said: dict[str, Any] = {} if mask is None else {"mask": mask_text(mask)}
    if moves:
        said["moves"] = [[mask_text(move.source), mask_text(move.target)] for move in moves]
    if edits:
        said["edits"] = list(edits)
    return said | {"paste": True} if paste else said


def asked_in(record: dict[str, Any]) -> dict[str, Any]:
    """What `asked_as_text` put into a record, as `sage.edit` takes it.

    Raises:
        PictureError: it is damaged.
    """
    asked: dict[str, Any] = {"mask": mask_of_text(record["mask"])} if "mask" in record else {}
    if "moves" in record:
        pairs = record["moves"]
        if not isinstance(pairs, list) or not 0 < len(pairs) <= MAX_MOVES or not all(
                isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise PictureError("the moves in the settings are damaged")
        asked["moves"] = tuple(Move(*map(mask_of_text, pair)) for pair in pairs)
    if "edits" in record:
        edits = record["edits"]
        if not isinstance(edits, list) or not 0 < len(edits) <= MAX_EDITS or not all(
                isinstance(edit, str) and edit.strip() for edit in edits):
            raise PictureError("the further edits in the settings are damaged")
        asked["edits"] = tuple(check_text(edit, "further target prompt") for edit in edits)
    if len({mask.size for mask in masks_in(asked)}) > 1 or (record.get("paste") and "mask" not in asked):
        raise PictureError("the masks in the settings are damaged")
    return asked | {"paste": True} if record.get("paste") is True else asked


def masks_in(asked: Mapping[str, Any]) -> "list[Image.Image]":
    """All masks of what is asked for beside prompts, those of the moves too."""
    own = [asked["mask"]] if "mask" in asked else []
    return own + [mask for move in asked.get("moves", ()) for mask in (move.source, move.target)]


def settings_in(record: dict[str, Any]) -> Settings:
    """The settings of the method that a record names.

    Raises:
        SettingsError: an unknown method, or settings that are none of it.
    """
    return method(record["method"]).Settings.from_dict(record["settings"])


def upgraded(record: dict[str, Any]) -> dict[str, Any]:
    """A record of any version as one of version 2."""
    if "version" not in record and "config" in record:
        record = {"version": VERSION, "method": "sage", "settings": record["config"], "savings": {}, **record}
        del record["config"]
    return record


def made_by(model: "Backbone") -> dict[str, Any]:
    """On what an edit by this model is computed."""
    return {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."), "versions": versions()}


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is to be said of a picture that is made again on something else than `made_by` told then."""
    differ = [f"{name} {str(then[name])[:20]} then, {now[name]} now" for name in ("device", "dtype")
              if then.get(name, now[name]) != now[name]]
    return [f"the result may differ a little from the earlier one: {'; '.join(differ)}"] if differ else []


def versions() -> dict[str, str]:
    """What an edit is made with: the versions of SAGE and torch."""
    return {"sage": __version__, "torch": metadata.version("torch")}


def read_record(path: str | Path, task: str | None = None, trusted: str = "") -> dict[str, Any]:
    """The settings that `sage edit` or `sage generate` stored in a picture, their types checked.

    Args:
        task: "edit" or "generate", if only a record of that will do.
        trusted: path/to/file.py:Class of the user's own method, the only one of the kind that a picture may name.
    Raises:
        PictureError: none there, or not what these write.
    """
    record = upgraded(pictures.read_settings(path))
    if record.get("version", VERSION) != VERSION:
        raise PictureError(f"{path}: the settings in it are of version {str(record['version'])[:20]}, which this "
                           "version of SAGE does not know")
    own = record.get("task", "edit")
    if not isinstance(own, str) or own not in TYPES:
        raise PictureError(f"{path}: the settings in it are damaged (task)")
    if task is not None and own != task:
        raise PictureError(f"{path} is an edit: sage edit repeats it" if own == "edit" else
                           f"{path} was made from nothing: sage generate repeats it")
    wrong = [name for name, kind in TYPES[own].items() if not isinstance(record.get(name), kind)]
    wrong += [] if wrong else [name for name, fine in CHECKS.items() if name in TYPES[own] and not fine(record[name])]
    wrong += [] if are_loras(record.get("lora", [])) else ["lora"]
    wrong += ["prediction_type"] if record.get("prediction_type") not in (None, *PREDICTIONS) else []
    if wrong:
        raise PictureError(f"{path}: the settings in it are damaged ({', '.join(wrong)})")
    # A stranger's picture shall not say which code is run.
    if ".py:" in record["method"] and record["method"] != trusted:
        raise PictureError(f"{path} was made by a method of someone's own, {record['method'][:60]}: give it with "
                           "--method")
    try:
        settings_in(record)
        asked_in(record)
        pastes_in(record)
        Savings.from_dict(record["savings"])
    except (PictureError, PromptError, SettingsError) as error:
        raise PictureError(f"{path}: the settings in it are damaged: {error}") from error
    return record


def check_prompt(name: str, text: str | None) -> str:
    """`text` as it is, if it can be the source or target prompt of any model.

    Raises:
        PromptError: missing, empty, far too long, or not valid text.
    """
    if text is None:
        raise PromptError(f"--{name} is missing: say what the picture {'shows' if name == 'source' else 'shall show'}")
    if not text.strip():
        raise PromptError(f"the {name} prompt is empty: describe the picture in a few words")
    return check_text(text, f"{name} prompt")
