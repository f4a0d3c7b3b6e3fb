"""The same settings on the same machine give the same bytes; other company or another number of threads, rounding."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sage
from sage import EditConfig, pictures
from sage.editing import check_prompts, edit_batch
from tests import small

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = {"recommended": {}, "sampled": {"encode": "sample", "noise_fraction": 0.1, "seed": 7},
           "cross": {"reconstruction": "cross"}}
ALONE = """
import hashlib, json, sys
import torch
torch.set_num_threads(int(sys.argv[1]))
import sage
from tests.hardening.faults.test_determinism import latents
model = sage.load_model("stilllife", device="cpu")
print(json.dumps({"sha256": hashlib.sha256(latents(model).numpy().tobytes()).hexdigest(),
                  "latents": latents(model).flatten().tolist()}))
"""


def latents(model) -> torch.Tensor:
    """Of an edit of the bundled example by the bundled model."""
    picture = pictures.open_picture(ROOT / "examples" / "mug.png")
    return sage.edit(model, picture, "a big shiny blue mug", "a big shiny red mug",
                     sage.method("sage").recommended(model).but(steps=4, retries=0)).latents


def alone(threads: int, seed: str) -> dict:
    done = subprocess.run([sys.executable, "-c", ALONE, str(threads)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": str(threads)}, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("same") / "tokenizer").model


@pytest.mark.parametrize("name", CONFIGS)
def test_twice_in_one_process_is_the_same(model, name):
    config = EditConfig(steps=2, cross_level=1, **CONFIGS[name])
    once, again = (sage.edit(model, small.picture(), "a cat on a mat", "a dog on a mat", config) for _ in range(2))
    assert torch.equal(once.latents, again.latents) and once.image.tobytes() == again.image.tobytes()


@pytest.mark.slow
def test_two_processes_give_the_same_bytes():
    assert alone(1, "0")["sha256"] == alone(1, "12345")["sha256"]


def test_company_changes_only_rounding(model):
    config = EditConfig(steps=3, cross_level=1, reconstruction_scale=1.0)
    images = [small.picture(seed=i) for i in range(3)]
    plans = [check_prompts(model, "a cat on a mat", f"a {thing} on a mat", config) for thing in ("dog", "fox", "hen")]
    together = edit_batch(model, images, plans, config)
    for image, plan, result in zip(images, plans, together, strict=True):
        single = edit_batch(model, [image], [plan], config)[0]
        assert (single.latents - result.latents).abs().max() < 1e-3 * single.latents.abs().max()


@pytest.mark.slow
def test_another_number_of_threads_changes_only_rounding():
    one, two = (torch.tensor(alone(threads, "0")["latents"]) for threads in (1, 2))
    assert (one - two).abs().max() < 1e-3 * one.abs().max()


def test_hash_of_what_is_equal():
    """The comparison itself can fail."""
    x = torch.zeros(4)
    assert hashlib.sha256(x.numpy().tobytes()).digest() != hashlib.sha256((x + 1e-30).numpy().tobytes()).digest()
