"""Models of transformers that a user names: found on this disk, and loaded without pickles or code of theirs."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sage.errors import ModelError, SageError, out_of_memory
from sage.files import check_plain, check_safetensors, parse_json, read_plain

CONFIG = "config.json"
MOST = 2**23  # bytes of it
LONGEST = 1000  # characters of a description
NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # of a model on the hub


def found_folder(where: str | Path, what: str) -> tuple[Path, str]:
    """The folder of a model, and its kind, as its configuration has it: "" for none.

    Args:
        where: a folder, or the name of a model in the hub's cache; nothing is fetched.
        what: "captioning model", for errors.
    Raises:
        ModelError: not there, or without weights in safetensors.
    """
    folder = Path(where) if os.path.isdir(where) else _cached(str(where), what)
    with said_by(folder):
        for path in folder.iterdir():  # whatever transformers may open
            if not path.is_dir():
                (check_safetensors if path.suffix == ".safetensors" else check_plain)(path, ModelError)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is no {what}: it has no {CONFIG}")
    try:
        config = parse_json(read_plain(folder / CONFIG, ModelError, MOST, f"give a {what}").decode())
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} is damaged: get the model again") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} has no weights in .safetensors files, and others are not opened, as they may hold "
                         "code: get them in safetensors")
    kind = config.get("model_type") if isinstance(config, dict) else None
    return folder, kind if isinstance(kind, str) else ""


def _cached(name: str, what: str) -> Path:
    from huggingface_hub import snapshot_download
    if NAME.fullmatch(name):
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            pass
    raise ModelError(f"no {what} is at {name[:200]}: give its folder, or the name of one that `hf download` has got")


def loaded(kind: Any, folder: Path, device: str | None = None, dtype: Any = None) -> Any:
    """A part of the model in a folder; a network in float32 or `dtype`, without gradients.

    Args:
        kind: an Auto class of transformers.
        device: of a network; cuda where there is one by default.
    Raises:
        ModelError: it cannot be loaded.
    """
    import torch

    from sage.models.loading import choose_device
    if not kind.__name__.startswith("AutoModel"):
        with said_by(folder):
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    place = choose_device(device)
    with said_by(folder):
        model, info = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                                           dtype=dtype or torch.float32, output_loading_info=True)
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(lacking)} weights of a {type(model).__name__}, such as {lacking[0]}")
    return model.eval().requires_grad_(False).to(place)


@contextmanager
def said_by(folder: Path) -> Iterator[None]:
    """Context in which what transformers raises, which is nearly anything, is one line."""
    try:
        yield
    except SageError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the model in {folder} cannot be used ({why})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which transformers keeps its bars and advice to itself."""
    from transformers.utils import logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def taken_as_text(text: str) -> bool:
    """Whether it can be a description."""
    return 0 < len(text) <= LONGEST and text.isprintable()
