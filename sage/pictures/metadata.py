"""The settings record that goes inside an edited picture: made, and read back.  Imports no torch.

`sage edit` and the studio write the same record, so that either repeats what the other made.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sage import __version__, pictures
from sage.config import EditConfig
from sage.errors import PictureError, PromptError
from sage.prompts.tokens import check_text

if TYPE_CHECKING:
    from sage.models.sd.model import StableDiffusion

PREDICTIONS = ("epsilon", "v_prediction")


def make_record(model: "StableDiffusion", source: str, target: str, config: EditConfig, picture: dict[str, str],
                truncate: bool = False, prediction_type: str | None = None) -> dict[str, Any]:
    """All that is needed to repeat an edit, as JSON values.

    Args:
        picture: its `identity`.
        prediction_type: where the user overrode the checkpoint's own word.
    """
    return {"source": source, "target": target, "model": model.name, "config": config.as_dict(),
            "prediction_type": prediction_type, "truncate": truncate, "picture": picture, "made": made_by(model)}


def made_by(model: "StableDiffusion") -> dict[str, Any]:
    """On what an edit by this model is computed."""
    return {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch."), "versions": versions()}


def versions() -> dict[str, str]:
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
    record = pictures.read_settings(path)
    types = {"source": str, "target": str, "model": str, "config": dict, "picture": dict, "made": dict,
             "truncate": bool}
    picture = record.get("picture")
    wrong = [name for name, kind in types.items() if not isinstance(record.get(name), kind)]
    wrong += ["picture"] if not wrong and not all(isinstance(picture.get(k), str) for k in ("name", "sha256")) else []
    wrong += ["prediction_type"] if record.get("prediction_type") not in (None, *PREDICTIONS) else []
    if wrong:
        raise PictureError(f"{path}: the settings of the edit in it are damaged ({', '.join(wrong)})")
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
