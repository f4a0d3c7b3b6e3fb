"""The networks of the published protocols, from the hub, its cache, or a folder.

    piebench    structure: keys of DINO ViT-B/8       CLIP ViT-L/14       LPIPS on SqueezeNet 1.1
    magicbrush  DINO: class token of DINO ViT-S/16    CLIP ViT-B/32
    dragbench   points: DIFT of Stable Diffusion 2.1  CLIP ViT-B/32       LPIPS on AlexNet
                where it is at hand, else DINOv2-base
    tficon                                            CLIP ViT-B/32       LPIPS on VGG 16

A folder given instead holds folders named as the repositories (dino-vitb8, ...) and torchvision's files of the networks
that LPIPS compares by (squeezenet1_1-b8a52dc0.pth, ...).
Weights are safetensors where there are any; what exists as a pickle only is opened as bare tensors (weights_only),
which runs nothing.  Pictures are resized by Pillow or by torch's plain interpolation, never by a processor of
transformers or by torchvision, both of which have changed how they resize.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sage.bench.lpips import NETS, Lpips
from sage.bench.metrics import Array, Extractors
from sage.errors import ModelError
from sage.files import check_plain, open_plain

HUB = "hub"
SIDE, LONGEST, SHORTER = 224, 480, 256  # pixels
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
SQUEEZENET = NETS["squeeze"].file
TORCHVISION = "https://download.pytorch.org/models/"
LINS = "functional/image/lpips_models"  # in torchmetrics
REMEMBERED = 64  # pictures and prompts whose vectors are kept: a batch has every source more than once
MAPS = 4  # and of those whose maps of features are
DINOV2_SIDE, DIFT_SIDE = 840, 768  # pixels
DIFT_TIME, DIFT_BLOCK, DIFT_NOISES = 261, 1, 8


@dataclass(frozen=True)
class Network:
    """A repository on the Hugging Face hub; `revision` "" is its newest state, which is named in the results."""

    repo: str
    revision: str = ""

    @property
    def name(self) -> str:
        return self.repo.rpartition("/")[2]


DINO_B8 = Network("facebook/dino-vitb8")
DINO_S16 = Network("facebook/dino-vits16", "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd")
CLIP_L14 = Network("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_B32 = Network("openai/clip-vit-base-patch32", "c237dc49a33fc61debc9276459120b7eac67e7ef")
DINOV2 = Network("facebook/dinov2-base")
SD21 = Network("stabilityai/stable-diffusion-2-1")


@dataclass(frozen=True)
class Protocol:
    """The networks of one benchmark.

    Attributes:
        clip: for pictures and prompts.
        dino: a vision transformer; None for none.
        lpips: a name of `sage.bench.lpips.NETS`; "" for none.
    """

    clip: Network
    dino: Network | None = None
    lpips: str = ""


PROTOCOLS = {"piebench": Protocol(CLIP_L14, DINO_B8, "squeeze"), "magicbrush": Protocol(CLIP_B32, DINO_S16),
             "dragbench": Protocol(CLIP_B32, DINOV2, "alex"), "tficon": Protocol(CLIP_B32, lpips="vgg")}


def load_extractors(protocol: str, where: str | Path, device: str | None = None) -> Extractors:
    """The networks of a protocol.

    Args:
        protocol: a name of `PROTOCOLS`.
        where: "hub", or a folder that holds them.
        device: cuda where there is one by default.
    Raises:
        ModelError: not there, no network, or not what they should be.
    """
    from sage.models.fetch import DEFAULT_ENDPOINT, check_environment  # imported even so: transformers reads it too
    if where == HUB:
        check_environment(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = PROTOCOLS[protocol]
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "numpy", "pillow")}
    # LPIPS first: of what may be missing it is said soonest.
    lpips = _lpips(asked.lpips, where, place, versions) if asked.lpips else None
    more: dict[str, Any] = {}
    if protocol == "dragbench":
        more = _points(where, place, versions)
    elif asked.dino:
        vit = _vit(_found(asked.dino, where, versions), place)
        more = {"keys": _remembering(_keys(vit))} if protocol == "piebench" else {
            "cls": _remembering(_class_token(vit))}
    image, text = _clip(_found(asked.clip, where, versions, TOKENIZER), place, floor=protocol == "piebench")
    return Extractors(lpips=lpips, image=image, text=text, versions=versions, **more)


# ---- finding and loading


def _found(network: Network, where: str | Path, versions: dict[str, str], more: tuple[str, ...] = ()) -> Path:
    """The folder of a network, whose version is added to `versions`."""
    if where == HUB:
        folder = _cached(network, more) or _fetched(network, more)
        versions[network.repo] = folder.name
        return folder
    folder = Path(where) / network.name
    weights = next((folder / name for name in (WEIGHTS, PICKLE) if os.path.isfile(folder / name)), None)
    if weights is None or not os.path.isfile(folder / "config.json"):
        raise ModelError(f"{folder} is no folder with config.json and {WEIGHTS}: copy {network.repo} there, or give "
                         "--extractors hub")
    for path in folder.iterdir():  # whatever transformers may open
        if not path.is_dir():
            check_plain(path, ModelError)
    versions[network.repo] = f"{weights.name}, SHA-256 {_sha256(weights)}"
    return folder


def _cached(network: Network, more: tuple[str, ...]) -> Path | None:
    """The folder in the hub's cache if it is whole."""
    from huggingface_hub import snapshot_download
    try:
        folder = Path(snapshot_download(network.repo, revision=network.revision or None, local_files_only=True))
    except (OSError, ValueError):
        return None
    there = {path.name for path in folder.iterdir()}
    return folder if {"config.json", *more[:2]} <= there and there & {WEIGHTS, PICKLE} else None


def _fetched(network: Network, more: tuple[str, ...]) -> Path:
    """The folder in the hub's cache, downloaded."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    try:
        # Asked for first, since this fails at once where there is no network.
        info = HfApi(library_name="sage").model_info(network.repo, revision=network.revision or None, timeout=30)
        listed = {file.rfilename for file in info.siblings or ()}
        files = ["config.json", WEIGHTS if WEIGHTS in listed else PICKLE, *more]
        return Path(snapshot_download(network.repo, revision=info.sha, allow_patterns=files))
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        at = f" --revision {network.revision}" if network.revision else ""
        raise ModelError(f"{network.repo} is not in the hub's cache and cannot be fetched ({type(error).__name__}): "
                         f"run `hf download {network.repo}{at}` where there is a network, or give --extractors a "
                         f"folder that holds {network.name}/") from error


def _pretrained(kind: Any, folder: Path, **changes: Any) -> Any:
    """A model of transformers in float32, from a folder, strictly."""
    from transformers.utils.logging import disable_progress_bar
    disable_progress_bar()
    safe = (folder / WEIGHTS).is_file()
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True, **changes)
        extra = {"add_pooling_layer": False} if kind.__name__ == "ViTModel" else {}
        model, info = kind.from_pretrained(folder, config=config, local_files_only=True, use_safetensors=safe,
                                           weights_only=True, dtype=torch.float32, attn_implementation="eager",
                                           output_loading_info=True, **extra)
    except Exception as error:  # transformers raises nearly anything on files that are not what they should be
        raise ModelError(f"{folder} holds no {kind.__name__} that can be loaded ({_line(error)})") from error
    if lacking := sorted(info["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(lacking)} weights of a {kind.__name__}, such as {lacking[0]}")
    return model.eval().requires_grad_(False)


def _vit(folder: Path, device: torch.device) -> Any:
    from transformers import ViTModel
    # The original's epsilon; the configuration on the hub says 1e-12.
    model = _pretrained(ViTModel, folder, layer_norm_eps=1e-6).to(device)
    if model.config.image_size != SIDE:
        raise ModelError(f"{folder} takes pictures of {model.config.image_size} pixels, and must take {SIDE}")
    return model


def _points(where: str | Path, device: torch.device, versions: dict[str, str]) -> dict[str, Any]:
    """What finds the points of one picture in another: DIFT where its model is at hand, else DINOv2."""
    if folder := _diffusion(where):
        import sage
        model = sage.load_model(folder, device=str(device))
        versions["features"] = f"DIFT (2306.03881) of {model.name}, weights {model.fingerprint()[:12]}"
        return {"features": _mapped(_dift(model)), "side": DIFT_SIDE}
    from transformers import Dinov2Model
    dinov2 = _pretrained(Dinov2Model, _found(DINOV2, where, versions)).to(device)
    versions["features"] = f"{DINOV2.repo}, since {SD21.repo} is not at hand, whose DIFT the published figures are of"
    return {"features": _mapped(lambda picture, prompt: _patches(dinov2, picture)), "side": DINOV2_SIDE}


def _diffusion(where: str | Path) -> Path | None:
    """Where Stable Diffusion 2.1 lies: in the folder, or of the hub's among the models that were fetched."""
    from sage.models.known import weights_dir
    folder = weights_dir() / "sd-2.1" if where == HUB else Path(where) / SD21.name
    return folder if os.path.isfile(folder / "unet" / "config.json") else None


def _lpips(name: str, where: str | Path, device: torch.device,
           versions: dict[str, str]) -> Callable[[Array, Array], float]:
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.origin:
        raise ModelError("LPIPS needs torchmetrics: pip install 'sage-edit[eval]'")
    net, (title, _, _, file) = Lpips(name), NETS[name]
    lins = _tensors(Path(package.origin).parent / LINS / f"{name}.pth")
    if where == HUB:
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        if not path.is_file():
            _download(TORCHVISION + file, path)
    else:
        path = Path(where) / file
        if not os.path.isfile(path):
            raise ModelError(f"{path} is missing: download {TORCHVISION}{file} to there, or give --extractors hub")
    try:
        net.load_published(_tensors(path), lins)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(f"{path} does not hold the weights of {title} ({_line(error)})") from error
    versions["LPIPS"] = (f"{title}, SHA-256 {_sha256(path)}; layers of torchmetrics "
                         f"{metadata.version('torchmetrics')}, normalised as in 1.2")
    net = net.eval().requires_grad_(False).to(device)

    def distance(x: Array, y: Array) -> float:
        with torch.no_grad():
            return float(net(*(_tensor(p, device) for p in (x, y))))
    return distance


def _download(url: str, path: Path) -> None:
    """Fetch a file whose name ends in the beginning of its SHA-256."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        if offline:
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{path.name} cannot be fetched ({_line(error)}): download {url} to {path.parent}, or give "
                         "--extractors a folder that holds it") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle that may hold nothing else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        raise ModelError(f"{path} is damaged, or holds more than tensors, and was not opened") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds no table of tensors")
    return state


def _sha256(path: Path) -> str:
    with open_plain(path, ModelError) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:160] or type(error).__name__


# ---- what they see


def _tensor(picture: Array, device: torch.device) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W) float32, the values as they are."""
    return torch.from_numpy(np.array(picture, np.float32).transpose(2, 0, 1)[None].copy()).to(device)


def _normalised(x: Tensor, means_and_deviations: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (x.new_tensor(v)[:, None, None] for v in means_and_deviations)
    return (x - mean) / deviation


def resized_shape(height: int, width: int, shorter: int = SIDE, longest: int = LONGEST) -> tuple[int, int]:
    """Height and width with the shorter side at `shorter`, or if that makes the longer one too long, less."""
    short, long = sorted((height, width))
    new_short, new_long = shorter, int(shorter * long / short)
    if new_long > longest:
        new_short, new_long = int(longest * new_short / new_long), longest
    return (new_short, new_long) if height <= width else (new_long, new_short)


def cropped(picture: Array, shorter: int, floor: bool = False) -> Array:
    """The middle 224 x 224 pixels of a picture, after its shorter side is made `shorter` with Pillow's bicubic.

    Args:
        floor: of an odd rest the smaller half is left out before them, as transformers' CLIPProcessor does; else
            halves are rounded to even numbers, as torchvision does.
    """
    image = Image.fromarray(picture)
    height, width = resized_shape(image.height, image.width, shorter, 2**31)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = ((side - SIDE) // 2 if floor else round((side - SIDE) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))


# ---- what they say


def _keys(vit: Any) -> Callable[[Array], Array]:
    """Keys of the last block, all tokens, heads side by side.

    Like the published code it hands over values of 0 to 255 where the network wants 0 to 1.
    """
    # Its name depends on the version of transformers.
    layer = [module for name, module in vit.named_modules() if name.rpartition(".")[2] in ("k_proj", "key")][-1]

    def keys(picture: Array) -> Array:
        x, found = _tensor(picture, vit.device), []
        x = torch.nn.functional.interpolate(x, resized_shape(*x.shape[2:]), mode="bilinear", align_corners=False,
                                            antialias=False)
        handle = layer.register_forward_hook(lambda module, args, out: found.append(out))
        try:
            vit(_normalised(x, IMAGENET), interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return found[0][0].cpu().numpy()
    return keys


def _class_token(vit: Any) -> Callable[[Array], Array]:
    def token(picture: Array) -> Array:
        x = _normalised(_tensor(cropped(picture, SHORTER), vit.device) / 255, IMAGENET)
        return vit(x).last_hidden_state[0, 0].cpu().numpy()
    return token


def _patches(dinov2: Any, picture: Array) -> Array:
    """(C, 60, 60) features of the patches of a picture at 840 pixels a side, pixels in [-1, 1] as RegionDrag has them.

    The published code gives the network pixels in [-1, 1], not by ImageNet's means; so it is here.
    """
    x = torch.nn.functional.interpolate(_tensor(picture, dinov2.device) / 127.5 - 1, (DINOV2_SIDE, DINOV2_SIDE))
    with torch.no_grad():
        tokens = dinov2(x).last_hidden_state[0, 1:]
    side = DINOV2_SIDE // dinov2.config.patch_size
    return tokens.T.reshape(-1, side, side).cpu().numpy()


def _dift(model: Any) -> Callable[[Array, str], Array]:
    """Features of a diffusion's UNet at a little noise, the mean of several (Tang et al. 2306.03881)."""
    level = model.schedule.level(DIFT_TIME)

    @torch.no_grad()
    def features(picture: Array, prompt: str) -> Array:
        from sage.pictures.tensors import to_tensor
        multiple = model.pixel_multiple
        height, width = (max(side // multiple, 1) * multiple for side in picture.shape[:2])
        z = model.encode(to_tensor(Image.fromarray(picture), (width, height)))
        text = model.prepare(model.embed([model.prompts.parse(prompt, truncate=True)]))
        found: list[Tensor] = []
        handle = model.unet.up_blocks[DIFT_BLOCK].register_forward_hook(
            lambda module, inputs, output: found.append(output.float().cpu()))
        generator = torch.Generator().manual_seed(0)
        try:
            for _ in range(DIFT_NOISES):
                noise = torch.randn(z.shape, generator=generator).to(z)
                model.predict(level.signal * z + level.noise * noise, level, text)
        finally:
            handle.remove()
        return torch.cat(found).mean(0).numpy()
    return features


def _mapped(function: Callable[[Array, str], Array]) -> Callable[[Array, str], Array]:
    """The same function, which computes nothing twice in a row of a few pictures."""
    @lru_cache(MAPS)
    def of(data: bytes, shape: tuple[int, ...], prompt: str) -> Array:
        return function(np.frombuffer(data, np.uint8).reshape(shape), prompt)
    return lambda picture, prompt: of(np.ascontiguousarray(picture, np.uint8).tobytes(), picture.shape, prompt)


def _clip(folder: Path, device: torch.device, floor: bool) -> tuple[Callable[[Array], Array], Callable[[str], Array]]:
    """The two towers of a CLIP model, into their common space; `floor` as of `cropped`."""
    from transformers import CLIPModel, CLIPTokenizer
    model = _pretrained(CLIPModel, folder).to(device)
    for name in TOKENIZER[:2]:  # without which transformers makes a tokenizer that knows no word
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise ModelError(f"{folder} holds no tokenizer that can be loaded ({_line(error)})") from error
    if model.config.vision_config.image_size != SIDE:
        raise ModelError(f"{folder} takes pictures of {model.config.vision_config.image_size} pixels, and must take "
                         f"{SIDE}")
    room = model.config.text_config.max_position_embeddings

    def image(picture: Array) -> Array:
        x = _normalised(_tensor(cropped(picture, SIDE, floor), device) / 255, OPENAI)
        return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)[0].cpu().numpy()

    @lru_cache(REMEMBERED)
    def text(prompt: str) -> Array:
        tokens = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=room).to(device)
        out = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return model.text_projection(out.pooler_output)[0].cpu().numpy()
    return _remembering(image), text


def _remembering(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function, which computes nothing twice in a row of some pictures."""
    @lru_cache(REMEMBERED)
    def of(data: bytes, shape: tuple[int, ...]) -> Array:
        return function(np.frombuffer(data, np.uint8).reshape(shape))
    return lambda picture: of(np.ascontiguousarray(picture, np.uint8).tobytes(), picture.shape)
