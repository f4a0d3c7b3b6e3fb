"""What diffusers folders of every family have in common: weight files, tokenizers, recommended settings.

`Source` is what a model's parts are taken from: a `Folder`, or a pipeline that is loaded (sage.models.pipelines).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sage.auto import AUTO, read_auto
from sage.errors import ModelError
from sage.models.known import PICKLES, pickled
from sage.models.sd import configs
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.tokenizer import CLIPTokenizer, read_tokenizer
from sage.models.weights import Stored, open_weights
from sage.prompts.vocabulary import read_words

SHARED = "shared.json"


class Source(Protocol):
    """What the parts of a model are taken from.

    Attributes:
        path: where it is, or what to call it, for errors.
    """

    @property
    def path(self) -> Path:
        """See above."""
        ...

    def config(self, file: str) -> configs.Config:
        """The configuration that is called, in a folder, such as "unet/config.json"."""
        ...

    def holds(self, part: str) -> bool:
        """Whether there is such a part, as "text_encoder_2"."""
        ...

    def tensors(self, part: str) -> dict[str, Stored]:
        """The weights of a part, under the names that they are stored by."""
        ...

    def tokenizer(self, part: str, text: CLIPTextParams) -> Any:
        """A tokenizer of CLIP, as "tokenizer_2"."""
        ...

    def recommends(self) -> Mapping[str, Mapping[str, Any]]:
        """Settings by the name of a method."""
        ...

    def words(self) -> tuple[str, ...]:
        """All words that the model was taught, where they are few."""
        ...


@dataclass(frozen=True)
class Folder:
    """A diffusers folder, some parts of which may be those of another beside it.

    In its shared.json, `{"vae": "stilllife"}` says that `vae/` is that of the folder stilllife beside this one.

    Attributes:
        half: the weights in half precision where there are both.
    """

    path: Path
    half: bool = False

    def place(self, name: str) -> Path:
        """Where a part, or a file of one, lies; it need not be there.

        Raises:
            ModelError: a shared.json that names no folder beside this one that has it.
        """
        own, part = self.path / name, Path(name).parts[0]
        if os.path.lexists(self.path / part) or not os.path.lexists(self.path / SHARED):
            return own
        shared = configs.Config(self.path / SHARED)
        if part not in shared.values:
            return own
        lender = shared.get(part, "", str)
        if not lender.isprintable() or lender in ("", "..") or Path(lender).name != lender:
            raise shared.fail(part, "which is no name of a folder beside this one")
        if not os.path.isdir(there := self.path.resolve().parent / lender / part):
            raise ModelError(f"{shared.path}: {part} is that of {lender}, which has to lie beside {self.path.name}, "
                             f"and {there} does not exist")
        return there.parent / name

    def config(self, file: str) -> configs.Config:
        """One of its configurations."""
        return configs.Config(self.place(file))

    def holds(self, part: str) -> bool:
        """Whether there is a folder or file of this name."""
        return os.path.lexists(self.place(part))

    def tensors(self, part: str) -> dict[str, Stored]:
        """The weights of a part; only headers are read."""
        base = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        return open_weights(weight_files(self.place(part), base, self.half))

    def tokenizer(self, part: str, text: CLIPTextParams) -> CLIPTokenizer:
        """One of its tokenizers of CLIP."""
        return load_tokenizer(self.place(part), text)

    def recommends(self) -> dict[str, dict[str, Any]]:
        """Settings that lie in the folder."""
        return recommended(self.path)

    def words(self) -> tuple[str, ...]:
        """Words that lie in the folder."""
        return tuple(read_words(self.path))


def recommended(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings by the name of a method, or generate/NAME for pictures from nothing, as a folder recommends them.

    They are in settings.json.  In edit_config.json, of which older folders have one, are those of SAGE.  What auto.json
    holds is under "auto".
    """
    auto = read_auto(folder)
    more = {} if auto is None else {AUTO: auto}
    if os.path.lexists(folder / "settings.json"):
        settings = configs.Config(folder / "settings.json").values
        if wrong := [name for name, values in settings.items() if not isinstance(values, dict)]:
            raise ModelError(f"{folder / 'settings.json'}: {wrong[0]} must be an object of settings")
        return settings | more
    old = folder / "edit_config.json"
    return ({"sage": configs.Config(old).values} if os.path.lexists(old) else {}) | more


def weight_files(folder: Path, base: str, half: bool) -> list[Path]:
    """The files of one network in a diffusers folder: one or several, the half-precision ones if `half`.

    Raises:
        ModelError: none there, pickles only, or an index that names files elsewhere.
    """
    whole = [folder / f"{base}.safetensors", folder / f"{base}.safetensors.index.json"]
    fp16 = [folder / f"{base}.fp16.safetensors", folder / f"{base}.safetensors.index.fp16.json",
            folder / f"{base}.fp16.safetensors.index.json"]
    path = next((p for p in (fp16 + whole if half else whole + fp16) if os.path.lexists(p)), None)
    if path is None:
        if found := sorted(p for p in folder.glob("*") if p.suffix.lower() in PICKLES):
            raise pickled(found[0])
        raise ModelError(f"{whole[0]} does not exist")
    return [path] if path.suffix == ".safetensors" else _shards(path)


def _shards(index: Path) -> list[Path]:
    names = configs.Config(index).get("weight_map", {}, dict).values()
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or set("/\\") & set(name) or (
                not name.isprintable()):
            raise ModelError(f"{index} names {name!r}, which is no .safetensors file beside it")
    if not names:
        raise ModelError(f"{index} names no files")
    return [index.parent / name for name in sorted(set(names))]


def load_tokenizer(folder: Path, text: CLIPTextParams, pad: str | None = None) -> CLIPTokenizer:
    """The tokenizer in `folder`, or in its tokenizer/.

    Args:
        pad: the padding token, where the folder's own word is not to be taken.
    Raises:
        ModelError: no or damaged files, or tokens that the text encoder does not have.
    """
    inner = folder / "tokenizer"
    return read_tokenizer(inner if os.path.isdir(inner) else folder, text.vocabulary, pad)
