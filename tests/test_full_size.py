"""Slow: a whole short edit at the size of Stable Diffusion 1.4, random weights, from both checkpoint layouts."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sage
from benchmarks.speed.models import networks, picture, write_folder
from sage import EditConfig
from tests.models import compvis

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The same networks as a diffusers folder and as one file, which brings no tokenizer."""
    root, modules = tmp_path_factory.mktemp("full"), networks()
    folder = write_folder(root / "folder", modules)
    states = [modules[part].state_dict() for part in ("unet", "vae", "text_encoder")]
    stored = compvis.checkpoint(*states, "1.x", layers=2)
    save_file({k: v.contiguous() for k, v in stored.items()}, root / "model.safetensors")
    return folder, root / "model.safetensors"


def test_both_layouts_give_the_same_edit(layouts):
    folder, file = layouts
    config = EditConfig(steps=2, size=256, guidance_scale=2.0, replace_fraction=0.5)
    results = []
    for load in (lambda: sage.load_model(folder, device="cpu"),
                 lambda: sage.load_model(file, device="cpu", tokenizer=folder / "tokenizer")):
        model = load()
        assert len(model.sites()) == 32
        results.append(sage.edit(model, picture(300), source="a red ball on grass", target="a blue ball on grass",
                                 config=config))
        del model
    a, b = results
    assert a.image.size == (300, 300) and a.latents.shape == (1, 4, 32, 32)
    assert torch.isfinite(a.latents).all() and len(a.losses) == 2 and min(a.losses) > 0
    assert torch.equal(a.latents, b.latents)
    assert np.array_equal(np.asarray(a.image), np.asarray(b.image))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float16_on_a_gpu(layouts):
    result = sage.edit(sage.load_model(layouts[0]), picture(512), source="a red ball on grass",
                       target="a blue ball on grass", config=EditConfig(steps=4, size=512))
    assert torch.isfinite(result.latents).all() and min(result.losses) > 0
