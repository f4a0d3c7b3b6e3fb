"""The download, against a small hub on this machine: whole, resumed, checked, and every way in which it can fail."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
from filelock import FileLock
from safetensors.torch import load_file, save_file

from sage.errors import ModelError
from sage.models import fetch as fetching
from sage.models import known, loading
from sage.models.fetch import fetch
from tests.models import flux, tiny
from tests.models import hub as hubs

MODEL = dataclasses.replace(known.KNOWN["sd-1.5"], revision="0123456789abcdef" * 2 + "01234567")
UNET, VAE = (f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae"))
CHUNK = 1 << 16


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository as they are: the networks twice, and much that nobody needs here."""
    folder = tiny.make(tmp_path_factory.mktemp("repository") / "files").folder
    for part in tiny.parts(folder):
        state = {key: value.half() for key, value in load_file(tiny.weights(folder, part)).items()}
        save_file(state, tiny.weights(folder, part, ".fp16"))
    for junk in ("v1-5-pruned.ckpt", "README.md", "safety_checker/model.safetensors", "unet/notes.json"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"x" * 1000)
    return folder


@pytest.fixture
def hub(repository, monkeypatch):
    monkeypatch.setitem(known.KNOWN, MODEL.name, MODEL)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda _: None)
    for name in ("HF_ENDPOINT", "HF_TOKEN", "SAGE_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    hub = hubs.Hub(repository, MODEL.repo, MODEL.revision)
    yield hub
    hub.close()


def refusal(*args, **kwargs) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def visible(weights: Path) -> list[str]:
    return [p.name for p in weights.iterdir() if not p.name.startswith(".")]


def test_download_then_load(hub, tmp_path, capsys, monkeypatch):
    folder = fetch("sd-1.5", tmp_path, hub.url, progress=False)
    assert folder == tmp_path / "sd-1.5"
    got = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert got == {*fetching.SD.configs, "tokenizer/tokenizer_config.json", "fetched.json", UNET, VAE,
                   "text_encoder/model.fp16.safetensors"}
    assert all((folder / name).read_bytes() == (hub.folder / name).read_bytes() for name in got - {"fetched.json"})
    error = capsys.readouterr().err
    assert error.count(MODEL.licence) == 1 and MODEL.licence_url in error and MODEL.repo in error
    record = json.loads((folder / "fetched.json").read_text())
    assert record["revision"] == MODEL.revision and len(record["files"][UNET]["sha256"]) == 64

    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path))
    asked = len(hub.requests)
    assert loading._load_parts("sd-1.5", device="cpu")["name"] == "sd-1.5"
    assert fetch("sd-1.5") == folder  # it is there: nothing is asked again
    assert len(hub.requests) == asked


def test_full_precision_where_there_is_no_half(hub, repository, tmp_path):
    bare = shutil.copytree(repository, tmp_path / "bare")
    for part in tiny.parts(bare):
        tiny.weights(bare, part, ".fp16").unlink()
    hub.folder = bare
    folder = fetch("sd-1.5", tmp_path, hub.url, progress=False)
    assert tiny.weights(folder, "unet").is_file()


def test_endpoint_from_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert fetch("runwayml/stable-diffusion-v1-5", tmp_path, progress=False).is_dir()


def test_a_cut_connection_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cut = {UNET}
    folder = fetch("sd-1.5", tmp_path, hub.url, progress=False)
    size = (folder / UNET).stat().st_size
    assert size > 4 * CHUNK and len(hub.ranges[UNET]) == 1
    assert hub.served[UNET] < 1.5 * size  # what was in flight is sent twice, no more


def test_killed_and_started_again(hub, tmp_path):
    hub.stall = UNET
    code = ("import dataclasses, sys, huggingface_hub.constants as c\n"
            f"c.DOWNLOAD_CHUNK_SIZE = {CHUNK}\n"
            "from sage.models import known\n"
            f"known.KNOWN['sd-1.5'] = dataclasses.replace(known.KNOWN['sd-1.5'], revision='{MODEL.revision}')\n"
            "from sage.models.fetch import fetch\n"
            "fetch('sd-1.5', sys.argv[1], sys.argv[2])")
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path, hub.url], cwd=Path(__file__).parents[2],
                               stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(300)
    part = tmp_path / ".sd-1.5.partial" / f"{UNET}.part"
    while part.stat().st_size < 2 * CHUNK:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert visible(tmp_path) == []

    begun, small, hub.stall = part.stat().st_size, hub.served["model_index.json"], None
    folder = fetch("sd-1.5", tmp_path, hub.url, progress=False)
    assert hub.ranges[UNET] == [f"bytes={begun}-"]
    assert hub.served["model_index.json"] == small  # whole files are not fetched again
    assert (folder / UNET).read_bytes() == (hub.folder / UNET).read_bytes()


def test_leftovers_of_another_commit_are_not_used(hub, tmp_path):
    partial = tmp_path / ".sd-1.5.partial"
    (partial / "unet").mkdir(parents=True)
    (partial / "fetched.json").write_text(json.dumps({"revision": "f" * 40}))
    (partial / "unet" / "config.json").write_text("{}")
    folder = fetch("sd-1.5", tmp_path, hub.url, progress=False)
    assert (folder / "unet" / "config.json").read_bytes() == (hub.folder / "unet" / "config.json").read_bytes()


@pytest.mark.parametrize("name", (UNET, "unet/config.json"))
def test_damaged_transfer(hub, tmp_path, name):
    hub.damage = {name}
    message = refusal("sd-1.5", tmp_path, hub.url, progress=False)
    assert name in message and "damaged" in message and visible(tmp_path) == []
    hub.damage = set()
    assert fetch("sd-1.5", tmp_path, hub.url, progress=False).is_dir()


@pytest.mark.parametrize(("status", "error", "said"), (
    (401, "GatedRepo", "gated"), (401, "RepoNotFound", "hf auth login"), (403, "GatedRepo", "gated"),
    (403, None, "403"), (404, "RepoNotFound", "sd-legacy/stable-diffusion-v1-5"),
    (404, "RevisionNotFound", "not there any more"), (410, None, "answers 410")))
def test_refusals_of_the_hub(hub, tmp_path, status, error, said):
    hub.status, hub.error = status, error
    message = refusal("sd-1.5", tmp_path, hub.url, progress=False)
    assert said in message and MODEL.repo in message and visible(tmp_path) == []


def test_repository_that_lacks_a_file(hub, repository, tmp_path):
    hub.folder = shutil.copytree(repository, tmp_path / "bare")
    (hub.folder / "vae" / "config.json").unlink()
    assert "does not hold vae/config.json" in refusal("sd-1.5", tmp_path / "weights", hub.url, progress=False)


def test_no_network(hub, tmp_path):
    hub.close()
    message = refusal("sd-1.5", tmp_path, hub.url, progress=False)
    assert "no network" in message and hub.url in message and "so will stilllife, which is bundled" in message


def test_server_that_dies_in_the_middle(hub, tmp_path, monkeypatch):
    def die(*args, **kwargs):
        hub.close()
        raise fetching.HTTPError("connection reset")

    monkeypatch.setattr(fetching, "http_get", die)
    assert "no network" in refusal("sd-1.5", tmp_path, hub.url, progress=False) and visible(tmp_path) == []


def test_offline(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        assert "HF_HUB_OFFLINE" in refusal("sd-1.5", tmp_path, hub.url, progress=False)
    finally:
        huggingface_hub.close_session()


def test_full_disk(hub, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetching, "http_get", full)
    assert "is full" in refusal("sd-1.5", tmp_path, hub.url, progress=False)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "needs" in refusal("sd-1.5", tmp_path, hub.url, progress=False)


def test_unwritable_place(hub, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be fetched" in refusal("sd-1.5", tmp_path / "file" / "weights", hub.url, progress=False)


def test_names(hub, tmp_path, monkeypatch):
    for place in ("CHECKOUT", "PACKAGE"):  # as if the bundled model had been lost
        monkeypatch.setattr(known, place, tmp_path / "none")
    message = refusal("sd-9", tmp_path, hub.url)
    assert "'sd-9'" in message and all(name in message for name in known.KNOWN)
    assert "comes with the repository" in refusal("stilllife", tmp_path / "none", hub.url)
    (tmp_path / "sd-1.5").mkdir()
    assert "move it away" in refusal("sd-1.5", tmp_path, hub.url)
    assert hub.requests == []


def test_two_at_once(hub, tmp_path):
    with FileLock(tmp_path / ".sd-1.5.lock"):
        assert "another process" in refusal("sd-1.5", tmp_path, hub.url, progress=False)


def test_a_users_token_stays_with_the_hub(hub, tmp_path, monkeypatch):
    seen = {}
    real = fetching.http_get

    def spy(url, *args, headers, **kwargs):
        seen[url] = headers
        return real(url.replace("localhost", "127.0.0.1"), *args, headers=headers, **kwargs)

    monkeypatch.setattr(fetching, "http_get", spy)
    monkeypatch.setattr(fetching, "build_hf_headers", lambda **_: {"authorization": "Bearer secret"})
    address, hub.url = hub.url, hub.url.replace("127.0.0.1", "localhost")  # storage on another host than the hub
    fetch("sd-1.5", tmp_path, address, progress=False)
    assert all(("authorization" in headers) == ("localhost" not in url) for url, headers in seen.items())
    assert any("localhost" in url for url in seen)


@pytest.fixture
def flux_hub(hub, tmp_path):
    """The same of FLUX.1: a transformer in several files, and beside it the authors' own file of it."""
    folder = flux.write(tmp_path / "repository").folder
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    index, names = {}, sorted(state)
    for i in (1, 2):
        name = f"diffusion_pytorch_model-{i:05}-of-00002.safetensors"
        part = {key: state[key] for key in names[i - 1::2]}
        save_file(part, folder / "transformer" / name)
        index |= dict.fromkeys(part, name)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}))
    (folder / "flux1-schnell.safetensors").write_bytes(b"x" * 1000)
    model = known.KNOWN["flux-schnell"]
    made = hubs.Hub(folder, model.repo, model.revision)
    yield made
    made.close()


def test_a_flux_whose_transformer_is_in_several_files(flux_hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SAGE_WEIGHTS", str(tmp_path / "weights"))
    folder = fetch("black-forest-labs/FLUX.1-schnell", endpoint=flux_hub.url, progress=False)
    got = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert "flux1-schnell.safetensors" not in got and "tokenizer_2/tokenizer_config.json" in got
    assert len([name for name in got if name.startswith("transformer/")]) == 4
    assert "33.7 GB, licence Apache 2.0" in capsys.readouterr().err
    assert loading.load_model("flux-schnell", device="cpu").family == "flux"


def test_a_flux_that_lacks_a_part_of_its_weights(flux_hub, tmp_path):
    (flux_hub.folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert "does not hold transformer/diffusion_pytorch_model-00002-of-00002.safetensors" in refusal(
        "flux-schnell", tmp_path / "weights", flux_hub.url, progress=False)


def test_a_gated_flux_says_what_to_do(flux_hub, tmp_path):
    flux_hub.status, flux_hub.error = 401, "GatedRepo"
    message = refusal("flux-dev", tmp_path / "weights", flux_hub.url, progress=False)
    assert "accept its licence at" in message and "FLUX.1-dev" in message and "hf auth login" in message
