"""What can be told of a request before its model is there.  Imports no torch."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.errors import ModelError, PromptError, SettingsError
from sage.files import numbered
from sage.models.known import KnownModel, find_model, installed, known_model
from sage.prompts.vocabulary import as_taught, read_words
from sage.settings import Blending, Factors, Phrases, Settings, annotations

OUT = Path("out")  # where files go that were given no name


def in_folder(out: str | None) -> bool:
    """Whether files get names of our own: no file is named, or a folder is."""
    return out is None or out.endswith(("/", os.sep)) or os.path.isdir(out)


def outputs(out: str | None, name: str, number: int) -> tuple[Path, ...]:
    """Where pictures go: names of our own are never those of files that exist, the user's are taken as given.

    Args:
        out: a file or a folder, as the user gave it.
        name: what to call a picture otherwise.
    Raises:
        SettingsError: `out` has no ending, and is no folder that is there.
    """
    if out is None or in_folder(out):
        folder = OUT if out is None else Path(out)
        free = (path for path in numbered(folder / name) if not os.path.lexists(path))
        return tuple(next(free) for _ in range(number))
    path = Path(out)
    if not path.suffix:
        raise SettingsError(f"--out {out} is no folder that is there, and has no ending: {out}{Path(name).suffix} is a "
                            f"file, {out}/ a new folder")
    if number == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, number + 1))


def check_tokenizer(folder: str | None) -> None:
    """ModelError for a tokenizer's folder that is none."""
    if folder is not None and not os.path.isdir(folder):
        raise ModelError(f"--tokenizer {folder} is no folder")


def check_phrases(source: str, targets: Sequence[str], config: Settings) -> None:
    """PromptError for a phrase that cannot be in its prompt, whatever the model's tokenizer makes of it."""
    def squeezed(text: str) -> str:
        return "".join(unicodedata.normalize("NFC", text).lower().split())

    kinds, values = annotations(type(config)), vars(config)
    words = isinstance(config, Blending) and config.blend_match == "words"  # an absent word then counts for nothing
    pairs = [values[name] for name, kind in kinds.items() if kind == Phrases and isinstance(values.get(name), tuple)
             and not (words and name == "blend")]
    factors = [phrase for name, kind in kinds.items() if kind == Factors and name not in config.free
               for phrase in values[name]]
    wanted = [(source, a) for a, _ in pairs]
    wanted += [(target, b) for target in targets for b in (*(b for _, b in pairs), *factors)]
    for prompt, phrase in wanted:
        if squeezed(phrase) not in squeezed(prompt):
            raise PromptError(f"the phrase {phrase!r} is not in the prompt {prompt!r}")


def must_fetch(model: str) -> bool:
    """Whether a model has to be downloaded first.

    Raises:
        ModelError: neither a known name nor there.
    """
    known = known_model(model)
    if known is not None and known.repo and installed(known.name) is None:
        return True
    find_model(model)
    return False


def check_model(model: str, image: Image.Image, prompts: Sequence[str], changes: dict[str, Any], truncate: bool,
                tokenizer: str | None) -> bool:
    """What is known of a model, held against an edit before gigabytes are fetched for nothing.

    Returns:
        whether it has to be downloaded first.
    Raises:
        SageError: there is no such model, or it cannot do this.
    """
    fetch, known = must_fetch(model), known_model(model)
    if known is not None and known.repo:
        if size := changes.get("size"):
            pictures.working_size(*image.size, size, known.multiple)
        check_words(known, prompts, truncate)
    check_tokenizer(tokenizer)
    return fetch


def as_taught_by(model: str, *prompts: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`sage.prompts.vocabulary.as_taught` for a model that is not loaded; as they are where it lists no words."""
    try:
        known = read_words(find_model(model)[1])
    except ModelError:  # told when it is loaded
        known = ()
    return as_taught(model, known, *prompts)


def check_words(known: KnownModel, prompts: Sequence[str], truncate: bool) -> None:
    """PromptError for a prompt with more words than the model takes, unless it may be cut."""
    for prompt in prompts:
        if len(prompt.split()) > known.words and not truncate:
            raise PromptError(f"the prompt has {len(prompt.split())} words, more than the {known.words} tokens that "
                              "this model takes: shorten it, or have it cut with --truncate")
