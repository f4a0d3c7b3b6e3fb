"""Pictures from nothing with a small model: seeds, batches, what can be given, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor

import sage
from sage.errors import NumericsError, SettingsError
from sage.method import Request
from sage.methods import plain, sag, turbo
from sage.models.savings import Savings
from tests import small

PROMPT = "a cat on a mat"
PLAIN = plain.Settings(steps=2, guidance_scale=4.0)
SETTINGS = {"plain": PLAIN.but(eta=0.8), "sag": sag.Settings(steps=2, guidance_scale=4.0, eta=0.8),
            "turbo": turbo.Settings(steps=2)}
every = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    model = small.make(tmp_path_factory.mktemp("generation") / "tokenizer").model
    model.inversion = small.inversion(model)
    return model


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def pixels(result: sage.Generated) -> np.ndarray:
    return np.asarray(result.image).astype(int)


def test_every_method_that_generates_is_tested_here():
    from sage.method import able
    assert set(able("generate")) == set(SETTINGS)


# ---- seeds and batches


@every
def test_a_picture_of_a_batch_is_the_one_that_is_made_alone_with_its_seed(model, name):
    settings = SETTINGS[name].but(seed=5)
    many = sage.generate(model, [PROMPT, "a dog"], settings, count=2)
    assert [result.settings.seed for result in many] == [5, 6, 5, 6]
    for result, prompt in zip(many, (PROMPT, PROMPT, "a dog", "a dog"), strict=True):
        (alone,) = sage.generate(model, prompt, result.settings)
        assert distance(result.latents, alone.latents) < 1e-5
        assert (pixels(result) == pixels(alone)).mean() > 0.999
    assert distance(many[0].latents, many[1].latents) > 0.1 and distance(many[0].latents, many[2].latents) > 0.01


@every
def test_the_same_again_to_the_bit_and_another_seed_another(model, name):
    first, second, third = (sage.generate(model, PROMPT, SETTINGS[name].but(seed=s))[0].latents for s in (1, 1, 2))
    assert torch.equal(first, second) and distance(first, third) > 0.1


def test_a_generator_is_one_for_all_or_one_a_picture(model):
    def made(generator) -> Tensor:
        results = sage.generate(model, PROMPT, PLAIN.but(eta=1), count=2, generator=generator)
        return torch.cat([result.latents for result in results])

    one, each = made(torch.Generator().manual_seed(7)), made([torch.Generator().manual_seed(s) for s in (7, 8)])
    assert distance(one[1:], each[1:]) > 0.1
    seeded = sage.generate(model, PROMPT, PLAIN.but(eta=1, seed=7), count=2)
    assert torch.equal(each, torch.cat([r.latents for r in seeded]))


def test_eta_draws_fresh_noise_at_each_step_and_none_at_zero(model):
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def made(**changes) -> Tensor:
        return sage.generate(model, PROMPT, PLAIN.but(**changes), latents=start)[0].latents

    assert torch.equal(made(seed=1), made(seed=2))
    assert distance(made(eta=1.0, seed=1), made(eta=1.0, seed=2)) > 5e-3


# ---- what can be given


def test_size_negative_prompt_and_latents(model):
    (wide,) = sage.generate(model, PROMPT, PLAIN, width=96)
    assert wide.image.size == (96, 64) and wide.pixels.shape == (1, 3, 64, 96) and wide.latents.shape == (1, 4, 16, 24)
    (usual,) = sage.generate(model, PROMPT, PLAIN)
    (led,) = sage.generate(model, PROMPT, PLAIN, negative="a dog")
    assert usual.image.size == (64, 64) and distance(led.latents, usual.latents) > 1e-3
    at_one = [sage.generate(model, PROMPT, PLAIN.but(guidance_scale=1), negative=n)[0].latents for n in ("", "a dog")]
    assert torch.equal(*at_one)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))  # that of seed 0
    assert torch.equal(sage.generate(model, PROMPT, PLAIN.but(seed=9), latents=noise)[0].latents, usual.latents)


def test_embedded_prompts_stand_for_words(model):
    text, negative = (model.embed([model.prompts.parse(p)]) for p in (PROMPT, "a dog"))
    (embedded,) = sage.generate(model, text, PLAIN, negative=negative)
    (words,) = sage.generate(model, PROMPT, PLAIN, negative="a dog")
    assert torch.equal(embedded.latents, words.latents)


def test_who_watches_sees_every_so_many_steps_and_may_end_it(model):
    seen, done = [], []
    results = sage.generate(model, PROMPT, PLAIN.but(steps=5), lambda *phase: done.append(phase), seen.append, every=2,
                            count=2)
    assert [step.step for step in seen] == [0, 2, 4] and seen[0].z.shape == (2, 4, 16, 16)
    assert torch.equal(seen[-1].z, torch.cat([r.latents for r in results]))
    assert done == [*(("generate", i, 5) for i in range(1, 6)), ("decode", 0, 1), ("decode", 1, 1)]

    def cancel(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sage.generate(model, PROMPT, PLAIN, cancel)
    assert not any(module._forward_hooks for module in model.unet.modules())


def test_savings_are_taken_for_this_picture_alone_and_told(model):
    before = model.savings
    (saving,) = sage.generate(model, PROMPT, PLAIN, width=96, height=96, savings=Savings(text=True, tiles=True))
    assert saving.savings == Savings(text=True, tiles=True) and model.savings == before
    (usual,) = sage.generate(model, PROMPT, PLAIN, width=96, height=96)
    assert torch.equal(saving.latents, usual.latents) and usual.savings == before


def test_memory_that_runs_out_is_met_with_the_same_noise_again(model, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    (usual,) = sage.generate(model, PROMPT, PLAIN.but(eta=1), generator=torch.Generator().manual_seed(3))
    predict, calls = model.predict, []

    def short(*args):
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return predict(*args)

    monkeypatch.setattr(model, "predict", short)
    (again,) = sage.generate(model, PROMPT, PLAIN.but(eta=1), generator=generator)
    assert torch.equal(again.latents, usual.latents) and len(calls) == 4
    assert "memory ran out while making the picture" in again.notes[-1]


# ---- what is refused


@pytest.mark.parametrize("given, said", (
    (dict(width=72), "width is 72: must be a multiple of 32 for this model, such as 64"),
    (dict(height=8192), "height is 8192: must be at most 4096"),
    (dict(count=0), "count is 0"),
    (dict(negative=["a", "b"]), "there are 1 prompts and 2 negative ones"),
    (dict(latents=torch.zeros(1, 4, 16, 24)), r"latents are of shape \(1, 4, 16, 24\)"),
    (dict(latents=torch.full((1, 4, 16, 16), torch.nan)), "not finite"),
    (dict(generator=[torch.Generator()] * 3), "1 pictures to make and 3 generators"),
    (dict(method="sage"), "these are settings of plain"),
))
def test_what_does_not_fit_is_one_line(model, given, said):
    with pytest.raises(SettingsError, match=said) as caught:
        sage.generate(model, PROMPT, PLAIN, **given)
    assert "\n" not in str(caught.value)


def test_embeddings_and_methods_that_do_not_fit_are_refused(model):
    text = model.embed([model.prompts.parse(PROMPT)])
    with pytest.raises(SettingsError, match="an embedded prompt is of shape"):
        sage.generate(model, type(text)(text.tokens[..., :8]), PLAIN)
    with pytest.raises(SettingsError, match="sage makes no pictures from noise; these do: plain, sag"):
        sage.generate(model, PROMPT, method="sage")
    with pytest.raises(SettingsError, match="one a picture"):
        sage.generate_batch(model, [Request(target=PROMPT)], PLAIN, [1, 2], (64, 64))


def test_numbers_that_overflow_are_an_error(model):
    with pytest.raises(NumericsError, match="not finite"):
        sage.generate(model, PROMPT, PLAIN, latents=torch.full((1, 4, 16, 16), 1e38))
