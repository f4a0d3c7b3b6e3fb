"""SAG against diffusers' StableDiffusionSAGPipeline on a tiny model, step by step, and what each of its parts does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionSAGPipeline
from torch import Tensor, nn

import sage
from sage.errors import SettingsError
from sage.guidance.blur import gaussian_blur
from sage.guidance.masks import attended
from sage.methods import plain
from sage.methods.sag import SAG, Settings
from tests import small

PROMPT, NEGATIVE, SIZE = "a cat on a mat", "dog", dict(width=96, height=64)
SAMPLED = Settings(steps=3, guidance_scale=5.0, sag_scale=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sag") / "tokenizer"


@pytest.fixture(scope="module", params=("epsilon", "v_prediction"))
def both(request, folder) -> small.Small:
    return small.make(folder, prediction=request.param)


@pytest.fixture(scope="module")
def model(folder):
    return small.make(folder).model


def oracle(made: small.Small, settings: Settings, **given) -> tuple[list[Tensor], np.ndarray]:
    """diffusers' latents after every step, and its pictures (B, H, W, 3) in [0, 1]."""
    made.unet.register_to_config(attention_head_dim=list(made.unet.config.attention_head_dim))  # as a folder has it
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              steps_offset=1, set_alpha_to_one=False, prediction_type=made.model.prediction_type)
    pipeline = StableDiffusionSAGPipeline(made.vae, made.text, made.tokenizer, made.unet, scheduler, None, None,
                                          requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    steps = []
    pictures = pipeline(num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale,
                        sag_scale=settings.sag_scale, eta=settings.eta, output_type="np", **SIZE, **given,
                        callback=lambda i, t, z: steps.append(z.clone())).images
    return steps, pictures


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("eta", (0.0, 0.6))
@pytest.mark.parametrize("w", (0.5, 1.0, 5.0))
@pytest.mark.parametrize("scale", (pytest.param(0.0, marks=pytest.mark.slow), 0.8))
def test_every_step_is_that_of_diffusers(both, w, scale, eta):
    settings = SAMPLED.but(guidance_scale=w, sag_scale=scale, eta=eta)
    expected, pictures = oracle(both, settings, prompt=PROMPT, negative_prompt=NEGATIVE, num_images_per_prompt=2,
                                generator=torch.Generator().manual_seed(3))
    seen = []
    results = sage.generate(both.model, PROMPT, settings, negative=NEGATIVE, count=2, **SIZE, watch=seen.append,
                            generator=torch.Generator().manual_seed(3))
    assert len(seen) == len(expected) == 3
    for step, theirs in zip(seen, expected, strict=True):
        assert distance(step.z, theirs) < 2e-5
    for result, theirs in zip(results, pictures, strict=True):
        assert result.image.size == (96, 64)
        ours = (result.pixels[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1)
        assert np.abs(ours - theirs).max() < 1e-4
        assert np.abs(np.asarray(result.image) - 255 * theirs).max() < 0.6


def test_given_latents_and_embeddings_are_taken_as_diffusers_takes_them(both):
    z = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(1))
    text, empty = (both.model.embed([both.model.prompts.parse(prompt) for prompt in prompts])
                   for prompts in ((PROMPT, "a dog"), ("", "")))
    expected, _ = oracle(both, SAMPLED, latents=z, prompt_embeds=text.tokens, negative_prompt_embeds=empty.tokens)
    results = sage.generate(both.model, text, SAMPLED, negative=empty, latents=z, **SIZE)
    assert distance(torch.cat([r.latents for r in results]), expected[-1]) < 2e-5
    *_, last = sage.run("sag", both.model, z, "", text, SAMPLED, texts={"empty": empty})
    assert torch.equal(last.z, torch.cat([r.latents for r in results]))


# ---- what it is made of


def test_nothing_but_guidance_remains_at_scale_zero(model):
    def latents(config):
        return sage.generate(model, PROMPT, config)[0].latents

    alone = latents(plain.Settings(steps=3, guidance_scale=5.0))
    assert torch.equal(latents(SAMPLED.but(sag_scale=0.0)), alone)
    assert distance(latents(SAMPLED), alone) > 1e-3


def test_a_place_is_attended_to_where_the_queries_give_it_more_than_its_share():
    maps = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2], [0.1, 0.4, 0.5]])  # queries by keys: sums 1.2, 0.9, 0.9
    assert attended(maps[None, None]).tolist() == [[True, False, False]]
    heads = torch.stack([maps, maps.flip(1)])[None]  # the mean of both is 1.05, 0.9, 1.05
    assert attended(heads).tolist() == [[True, False, True]]


def test_a_blur_keeps_what_is_flat_and_spreads_a_point():
    x = torch.zeros(1, 2, 11, 13)
    x[0, 0, 5, 6] = 1
    x[0, 1] = 3
    blurred = gaussian_blur(x, 9, 1.0)
    assert torch.allclose(blurred[0, 1], x[0, 1]) and blurred[0, 0].sum().item() == pytest.approx(1)
    assert (blurred[0, 0, 5, 6] / blurred[0, 0, 5, 7]).item() == pytest.approx(np.exp(0.5), rel=1e-5)
    assert blurred[0, 0, 5, 11] == 0 and blurred[0, 0, 5, 10] > 0


def test_what_does_not_fit_is_refused(model, folder):
    with pytest.raises(SettingsError, match="too small to be blurred"):
        next(SAG().generate(SimpleNamespace(settings=SAMPLED, z0=torch.zeros(1, 4, 4, 8))))  # of a shallow network
    with pytest.raises(SettingsError, match="sag edits no picture; these do: sage"):
        sage.edit(model, small.picture(), PROMPT, "a dog", method="sag")
    without = small.make(folder).model
    without.sites = lambda: type(model.sites())(s for s in model.sites() if s.place != "mid")
    assert SAG().fits(without) == "it has no self-attention in the middle" and SAG().fits(model) == ""


def test_no_hook_is_left(model):
    def hooks() -> int:
        return sum(len(m._forward_hooks) for m in nn.ModuleList([model.unet]).modules())

    before = hooks()
    sage.generate(model, PROMPT, SAMPLED)
    assert hooks() == before
