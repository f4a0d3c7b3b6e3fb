"""A loaded pipeline is edited with as the folder that it came from, and its weights are there once."""

import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

import sage
from sage.errors import ModelError
from tests import small
from tests.models import flux, tiny

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"


def pipeline(kind: str, folder):
    """A model on disk, and a pipeline of the same weights."""
    def words(name: str):
        return CLIPTokenizer.from_pretrained(str(folder / name))

    if kind == "flux":
        made = flux.write(folder)
        return folder, FluxPipeline(
            FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"), made.vae, made.text,
            words("tokenizer"), made.t5, PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer_2"),
            made.transformer)
    made = tiny.make(folder, "XL" if kind == "sdxl" else kind)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    if kind == "sdxl":
        return folder, StableDiffusionXLPipeline(made.vae, made.text, made.text_2, words("tokenizer"),
                                                 words("tokenizer_2"), made.unet, scheduler, add_watermarker=False)
    return folder, StableDiffusionPipeline(made.vae, made.text, words("tokenizer"), made.unet, scheduler, None, None,
                                           requires_safety_checker=False)


def pointers(network: torch.nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in network.parameters()}


@pytest.mark.parametrize("kind", ("2.x", "sdxl", "flux"))
def test_it_is_the_model_of_the_folder(kind, tmp_path):
    folder, pipe = pipeline(kind, tmp_path / "model")
    ours, loaded = sage.from_pipeline(pipe, "mine"), sage.load_model(folder, device="cpu")
    assert type(ours) is type(loaded) and ours.name == "mine" and ours.dtype == torch.float32
    assert ours.fingerprint() == loaded.fingerprint() and ours.prompts.max_length == loaded.prompts.max_length
    for own, other in zip(ours.networks(), loaded.networks(), strict=True):
        theirs = dict(other.named_parameters())
        assert own.params == other.params and all(torch.equal(p, theirs[n]) for n, p in own.named_parameters())
    parts = [getattr(pipe, name) for name in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
             if getattr(pipe, name, None) is not None]
    assert set().union(*map(pointers, ours.networks())) <= set().union(*map(pointers, parts))
    config = sage.method("sdedit").Settings(steps=2)
    a, b = (sage.edit(model, small.picture(32, 32), SOURCE, TARGET, config).latents for model in (ours, loaded))
    assert (a - b).norm() / b.norm() < 1e-5  # the folder's convolutions may be packed
    with torch.no_grad():
        parts[0].get_parameter(next(n for n, p in parts[0].named_parameters() if p.ndim > 1)).add_(1)
    assert ours.fingerprint() != loaded.fingerprint()  # it is the pipeline's own weight


def test_below_float32_norms_alone_are_copied(tmp_path):
    pipe = pipeline("2.x", tmp_path / "model")[1].to(torch.bfloat16)
    ours = sage.from_pipeline(pipe)
    assert ours.dtype == torch.bfloat16
    theirs = pointers(pipe.unet) | pointers(pipe.vae) | pointers(pipe.text_encoder)
    own = {name for network in ours.networks() for name, p in network.named_parameters()
           if p.untyped_storage().data_ptr() not in theirs}
    assert own and all("norm" in name for name in own)


def test_what_cannot_be_taken_is_refused(tmp_path):
    _, pipe = pipeline("2.x", tmp_path / "model")
    with pytest.raises(ModelError, match="neither unet nor transformer"):
        sage.from_pipeline(object())
    pipe.vae.to(torch.bfloat16)
    with pytest.raises(ModelError, match="float32, float16 and bfloat16"):
        sage.from_pipeline(pipe)
    pipe.vae.to("meta")
    with pytest.raises(ModelError, match="one device"):
        sage.from_pipeline(pipe)
    pipe.vae = None
    with pytest.raises(ModelError, match="no vae"):
        sage.from_pipeline(pipe)


def test_diffusers_is_not_imported():
    code = "import sys, sage.models.pipelines; assert not [n for n in sys.modules if n.startswith('diffusers')]"
    subprocess.run([sys.executable, "-c", code], check=True)
