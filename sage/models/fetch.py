"""Downloads a known model into weights/, once; after that nothing here is needed any more.

Files gather in weights/.NAME.partial, each one checked against the hub's hash before it counts, and the folder gets
its name when all of them are there: what is called weights/NAME is whole.  A download that was stopped, even killed,
goes on at the byte where it was.

`huggingface_hub` does the talking.  Its `hf_hub_download` starts every interrupted file anew, so the transfer below
it, `http_get`, is called with the file that has been begun.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from sage.errors import ModelError, disk_full
from sage.files import check_plain, parse_json, read_plain, written_whole
from sage.models.known import AT_HAND, KnownModel, installed, known_model, unknown, weights_dir

try:
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.file_download import http_get
    from huggingface_hub.hf_api import RepoSibling
    from huggingface_hub.utils import build_hf_headers, get_session, tqdm
except ValueError as _error:  # it reads the environment as it is imported
    _given = ", ".join(sorted(name for name in os.environ if name.startswith("HF_"))) or "HF_..."
    raise ModelError(f"nothing can be fetched ({_error}): correct what is wrong among {_given} in the "
                     "environment") from _error

RECORD = "fetched.json"
MAX_RECORD = 2**20  # bytes of it
DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Layout:
    """What is needed of a repository: whole files, files if they are there, and weights by the beginning of their name.

    Weights can be in several files, and then have an index.
    """

    configs: tuple[str, ...]
    weights: tuple[str, ...]
    optional: tuple[str, ...] = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")


CONFIGS = ("model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "text_encoder/config.json",
           "tokenizer/vocab.json", "tokenizer/merges.txt")
WEIGHTS = ("vae/diffusion_pytorch_model", "text_encoder/model")
SD = Layout((*CONFIGS, "unet/config.json"), ("unet/diffusion_pytorch_model", *WEIGHTS))
LAYOUTS = {  # by family, where it is not that of Stable Diffusion 1.x and 2.x
    "XL": Layout(
        (*SD.configs, "text_encoder_2/config.json", "tokenizer_2/vocab.json", "tokenizer_2/merges.txt"),
        (*SD.weights, "text_encoder_2/model"),
        (*Layout.optional, "tokenizer_2/tokenizer_config.json", "tokenizer_2/special_tokens_map.json")),
    "flux": Layout(
        (*CONFIGS, "transformer/config.json", "text_encoder_2/config.json", "tokenizer_2/tokenizer.json"),
        ("transformer/diffusion_pytorch_model", *WEIGHTS, "text_encoder_2/model"),
        (*Layout.optional, "tokenizer_2/tokenizer_config.json")),
}
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors")


def fetch(name: str, weights: str | Path | None = None, endpoint: str | None = None, progress: bool = True) -> Path:
    """Download a known model, unless it is there; go on where an earlier try stopped.

    Args:
        weights: folder to hold the model's folder; `weights_dir()` by default.
        endpoint: the hub's address; $HF_ENDPOINT or the public one by default.
        progress: a bar per file on stderr, where that is a terminal.
    Returns:
        The model's folder.
    Raises:
        ModelError: unknown name, no network, gone or gated repository, damaged transfer, full disk.
    """
    model = known_model(name)
    if model is None:
        raise unknown(name)
    weights = Path(weights) if weights else weights_dir()
    if there := installed(model.name, weights):
        return there
    target, partial = weights / model.name, weights / f".{model.name}.partial"
    if not model.repo:
        raise ModelError(f"{model.name} comes with the repository and is not fetched; restore weights/{model.name}")
    if target.exists():
        raise ModelError(f"{target} is there but is no whole model; move it away and fetch again")
    endpoint = endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    check_environment(endpoint)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(weights / f".{model.name}.lock", timeout=0):
            _fetch(model, partial, target, endpoint, progress)
    except Timeout as error:
        raise ModelError(f"{model.name} is being fetched by another process") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError) as error:
        raise _explained(error, model, endpoint) from error
    except OSError as error:
        if disk_full(error):
            raise ModelError(f"the disk of {weights} is full; what has been fetched is kept") from error
        raise ModelError(f"{model.name} cannot be fetched: {_line(error)}") from error
    return target


def check_environment(endpoint: str) -> None:
    """ModelError for an address, a token or a proxy with which nothing can be asked of the hub."""
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and endpoint.isprintable()
    except ValueError:  # of the port, or of brackets
        fine = False
    if not fine or " " in endpoint:
        raise ModelError(f"the hub's address is {public(endpoint)[:80]!r} (HF_ENDPOINT): it must be one such as "
                         f"{DEFAULT_ENDPOINT}")
    try:
        token = build_hf_headers(library_name="sage").get("authorization", "")
    except (OSError, ValueError) as error:
        raise ModelError(f"the token for the hub cannot be read ({_line(error)}): correct HF_TOKEN") from error
    if not token.isascii() or not token.isprintable():
        raise ModelError("the token for the hub holds letters that no token has: correct HF_TOKEN")
    try:
        get_session()
    except Exception as error:  # the library for HTTP raises what it likes
        raise ModelError(f"the proxy in the environment cannot be used ({_line(error)}): correct HTTPS_PROXY, "
                         "HTTP_PROXY and ALL_PROXY") from error


def public(endpoint: str) -> str:
    """An address without the user and password that may stand in it."""
    scheme, slashes, rest = endpoint.partition("://")
    return (scheme + slashes if slashes else "") + (rest or scheme).rpartition("@")[2]


def _fetch(model: KnownModel, partial: Path, target: Path, endpoint: str, progress: bool) -> None:
    print(f"{model.name}: {model.repo} at {model.revision[:7]}, {model.download / 1e9:.1f} GB, licence {model.licence} "
          f"({model.licence_url})", file=sys.stderr)
    api = HfApi(endpoint=endpoint, library_name="sage")
    info = api.model_info(model.repo, revision=model.revision, files_metadata=True, timeout=30)
    if info.sha != model.revision:
        raise ModelError(f"{public(endpoint)} gives commit {info.sha} for {model.revision}")
    files = choose_files({file.rfilename: file for file in info.siblings or ()}, model)

    _begin(partial, model)
    missing = sum((file.size or 0) - _size(partial / name) - _size(_part(partial / name))
                  for name, file in files.items())
    if missing > (free := shutil.disk_usage(partial).free):
        raise ModelError(f"{model.name} needs {missing / 1e9:.2f} GB more, the disk of {partial.parent} has "
                         f"{free / 1e9:.2f} GB free")
    for name, file in files.items():
        _download(model, partial, name, file, endpoint, progress)
    _write_record(partial, model, {name: {"size": f.size, **dict([_digest(f)])} for name, f in files.items()})
    os.replace(partial, target)


def choose_files(listed: dict[str, RepoSibling], model: KnownModel) -> dict[str, RepoSibling]:
    """Of all that a repository holds, what is needed: configurations, tokenizer, and each network's weights once.

    They are taken in half precision where the repository has that, for half the bytes.

    Raises:
        ModelError: the repository lacks one of them.
    """
    layout = LAYOUTS.get(model.family, SD)
    needed = [*layout.configs, *(name for base in layout.weights for name in _weights(base, listed))]
    if lacking := [name for name in needed if name not in listed]:
        raise ModelError(f"{model.repo} does not hold {', '.join(lacking[:9])}")
    return {name: listed[name] for name in (*needed, *(n for n in layout.optional if n in listed))}


def _weights(base: str, listed: Iterable[str]) -> list[str]:
    """The files that hold the weights of a network, there or not."""
    listed = set(listed)
    for name in (f"{base}.fp16.safetensors", f"{base}.safetensors"):
        if name in listed:
            return [name]
    shards = sorted(name for name in listed if name.startswith(base) and SHARD.fullmatch(name.removeprefix(base)))
    if not shards:
        return [f"{base}.safetensors"]
    total = shards[0][-len("00000.safetensors"):-len(".safetensors")]
    return [f"{base}.safetensors.index.json",
            *(f"{base}-{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1))]


def _begin(partial: Path, model: KnownModel) -> None:
    """Empty the folder if what it holds is of another commit."""
    try:
        begun = parse_json(read_plain(partial / RECORD, ModelError, MAX_RECORD).decode())
    except (ModelError, ValueError):
        begun = {}
    if not isinstance(begun, dict) or begun.get("revision") != model.revision:
        shutil.rmtree(partial)
        partial.mkdir()
        _write_record(partial, model, {})


def _write_record(folder: Path, model: KnownModel, files: dict[str, dict[str, Any]]) -> None:
    record = {"name": model.name, "repo": model.repo, "revision": model.revision, "licence": model.licence,
              "licence_url": model.licence_url, "files": files}
    with written_whole(folder / RECORD) as out:  # half a record would lose everything fetched so far
        out.write((json.dumps(record, indent=2) + "\n").encode())


def _download(model: KnownModel, partial: Path, name: str, file: RepoSibling, endpoint: str, progress: bool) -> None:
    """Fetch one file, check it, and only then give it its name."""
    done = partial / name
    if done.is_file():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(model.repo, name, revision=model.revision, endpoint=endpoint)
    meta = get_hf_file_metadata(url, endpoint=endpoint, library_name="sage")
    headers = build_hf_headers(library_name="sage")
    if urlsplit(meta.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the storage behind the hub has no business with the user's token
    part = _part(done)
    if file.size is not None and _size(part) > file.size:
        part.unlink()
    if os.path.lexists(part):
        check_plain(part, ModelError)
    with part.open("ab") as out:
        http_get(meta.location, out, resume_size=out.tell(), headers=headers, expected_size=file.size,
                 displayed_filename=name, tqdm_class=tqdm if progress else _Silent)
        out.flush()
        os.fsync(out.fileno())
    kind, wanted = _digest(file)
    if (found := _hash(part, kind)) != wanted:
        part.unlink()
        raise ModelError(f"{model.repo}: {name} arrived damaged ({kind} {found[:12]} instead of {wanted[:12]}); "
                         "fetch again")
    part.rename(done)


class _Silent(tqdm):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "disable": True})


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(file: RepoSibling) -> tuple[str, str]:
    """The hub's word for a file's content: the sha256 of large files, the git blob's sha1 of small ones."""
    if file.lfs is not None:
        return "sha256", file.lfs.sha256
    if file.blob_id is None:
        raise ModelError(f"the hub gives no hash for {file.rfilename}")
    return "sha1", file.blob_id


def _hash(path: Path, kind: str) -> str:
    digest = hashlib.new(kind)
    if kind == "sha1":  # git hashes a header along
        digest.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _explained(error: Exception, model: KnownModel, endpoint: str) -> ModelError:
    endpoint = public(endpoint)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    copies = f", from {' or '.join(model.mirrors)}" if model.mirrors else ""
    elsewhere = f"give --model a folder or file of it{copies}"
    if isinstance(error, OfflineModeIsEnabled):
        return ModelError(f"{model.name} cannot be fetched: HF_HUB_OFFLINE is set; {AT_HAND}")
    if status in (401, 403):
        return ModelError(f"{model.repo} refuses the download ({status}): it is gated, private or gone; accept its "
                          f"licence at {endpoint}/{model.repo} and log in with `hf auth login`, or {elsewhere}")
    if status == 404:
        return ModelError(f"{model.repo} at {model.revision[:7]} is not there any more ({status}): {elsewhere}")
    if status is not None:
        return ModelError(f"{endpoint} answers {status} for {model.repo}; try again later")
    return ModelError(f"no network: cannot reach {endpoint} ({_line(error)}); what has been fetched is kept; "
                      f"{AT_HAND}")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
