"""The settings record that goes inside a picture: made, and read back.  Imports no torch.

    {"version": 2, "method": "p2p", "settings": {...}, "savings": {...}, "source": ..., "target": ..., "model": ...}

The command line and the studio write the same record, so that either repeats what the other made.  Version 1, of when
there was one method, has "config" in place of "method" and "settings"; it is read as version 2.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import __version__, pictures
from sage.errors import PictureError, PromptError, SettingsError
from sage.method import method, method_of
from sage.models.savings import Savings
from sage.prompts.tokens import check_text
from sage.settings import Settings

if TYPE_CHECKING:
    from sage.models.backbone import Backbone

PREDICTIONS = ("epsilon", "v_prediction")
VERSION = 2


def make_record(model: "Backbone", source: str, target: str, settings: Settings, picture: dict[str, str],
                truncate: bool = False, prediction_type: str | None = None,
                savings: Savings = Savings(), **more: Any) -> dict[str, Any]:
    """All that is needed to repeat an edit, as JSON values.

    Args:
        picture: its `identity`.
        prediction_type: where the user overrode the checkpoint's own word.
        savings: what was done to need less memory.
        more: what else the method reads, as JSON values.
    """
    return {"version": VERSION, "method": method_of(settings).where, "settings": settings.as_dict(), "source": source,
            "target": target, "model": model.name, "prediction_type": prediction_type, "truncate": truncate,
            "savings": savings.as_dict(), "picture": picture, "made": made_by(model), **more}


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


def versions() -> dict[str, str]:
    """What an edit is made with: the versions of SAGE and torch."""
    return {"sage": __version__, "torch": metadata.version("torch")}


def identity(path: Path, name: str | None = None) -> dict[str, str]:
    """What a picture file is known by: its name, or `name` instead, and the hash of its bytes.

    Raises:
        PictureError: it cannot be read, though it may have been a moment ago.
    """
    try:
        with path.open("rb") as file:
            return {"name": name or path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise PictureError(f"{path} cannot be read ({error.strerror or error})") from error


def read_record(path: str | Path) -> dict[str, Any]:
    """The settings that `sage edit` stored in a picture, their types checked.

    Raises:
        PictureError: none there, or not what `sage edit` writes.
    """
    record = upgraded(pictures.read_settings(path))
    if record.get("version", VERSION) != VERSION:
        raise PictureError(f"{path}: the settings of the edit in it are of version {str(record['version'])[:20]}, "
                           "which this version of SAGE does not know")
    types = {"source": str, "target": str, "model": str, "method": str, "settings": dict, "savings": dict,
             "picture": dict, "made": dict, "truncate": bool}
    picture: Any = record.get("picture")
    wrong = [name for name, kind in types.items() if not isinstance(record.get(name), kind)]
    wrong += ["picture"] if not wrong and not all(isinstance(picture.get(k), str) for k in ("name", "sha256")) else []
    wrong += ["prediction_type"] if record.get("prediction_type") not in (None, *PREDICTIONS) else []
    if wrong:
        raise PictureError(f"{path}: the settings of the edit in it are damaged ({', '.join(wrong)})")
    if ".py:" in record["method"]:  # a stranger's picture shall not say which code is run
        raise PictureError(f"{path} was made by a method of someone's own, {record['method'][:60]}: give it with "
                           "--method")
    try:
        settings_in(record)
        Savings.from_dict(record["savings"])
    except SettingsError as error:
        raise PictureError(f"{path}: the settings of the edit in it are damaged: {error}") from error
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
