"""LEDITS++ against diffusers' LEditsPPPipelineStableDiffusion on a tiny model, step by step, and what its parts do."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion
from diffusers.pipelines.ledits_pp import pipeline_leditspp_stable_diffusion as module
from PIL import Image
from torch import Tensor

import sage
from sage.commands.checks import check_phrases
from sage.editing import check_prompts
from sage.errors import PromptError, SettingsError
from sage.models.sites import Site
from sage.sampling.levels import DiffusionSchedule, Level, downwards
from sage.sampling.steps import Prediction, ancestral, reaching, second_order
from tests import small

LEDITS = sage.method("ledits")
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N, SKIP = 10, 0.2
ALPHAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("ledits") / "tokenizer")


class DDIM(DDIMScheduler):
    """Its add_noise takes no timesteps that are floats, which is what the pipeline gives."""

    def add_noise(self, x, noise, timesteps):
        return super().add_noise(x, noise, timesteps.long())


def drawn(count: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(1, 4, 16, 16, generator=g) for _ in range(count)]


def off(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def tokenized(ordinary):
    """A tokenizer that tells lengths without padding, as those did that the pipeline was written with."""
    def call(self, *texts, **more):
        out = ordinary(self, *texts, **more)
        if more.get("return_length"):
            out["length"] = out["attention_mask"].sum(dim=1)
        return out

    return call


class Theirs:
    """The pipeline's run: clean latents, noises, noisy end, and latents after each step."""

    def __init__(self, made, monkeypatch, solver: str, inverted: dict, **edit):
        scheduler = DDIM(**ALPHAS, clip_sample=False, set_alpha_to_one=False) if solver == "ddpm" else (
            DPMSolverMultistepScheduler(**ALPHAS, algorithm_type="sde-dpmsolver++", solver_order=2))
        monkeypatch.setattr(type(made.tokenizer), "__call__", tokenized(type(made.tokenizer).__call__))
        made.unet.register_to_config(sample_size=16)  # as a folder has it
        made.vae.register_to_config(sample_size=64)
        pipe = LEditsPPPipelineStableDiffusion(made.vae, made.text, made.tokenizer, made.unet, scheduler, None, None,
                                               requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        noises = iter(drawn(N))
        monkeypatch.setattr(module, "randn_tensor", lambda **_: next(noises))
        kept, picture = dict(made.unet.attn_processors), small.picture()
        try:
            self.z0, _ = pipe.encode_image(picture, dtype=torch.float32)
            pipe.invert(picture, num_inversion_steps=N, skip=SKIP, **inverted)
            self.zs, self.noise, self.steps = pipe.zs, pipe.init_latents, []

            def hear(pipe, i, t, kwargs):
                self.steps.append(kwargs["latents"].clone())
                return kwargs

            pipe(**edit, output_type="latent", callback_on_step_end=hear)
        finally:
            made.unet.set_attn_processor(kept)


EDITS = {
    "target": (dict(guidance_scale=5.0), dict(editing_prompt=TARGET, edit_guidance_scale=5.0)),
    "two, one taken away": (
        dict(add={"a dog": 4.0}, remove={"mat": 3.0}, quantiles={"mat": 0.71}, mask_quantile=0.83),
        dict(editing_prompt=["a dog", "mat"], edit_guidance_scale=[4.0, 3.0], reverse_editing_direction=[False, True],
             edit_threshold=[0.83, 0.71])),  # no whole number of places, which rounding would decide of
    "attention alone": (dict(masks="attention"), dict(editing_prompt=TARGET, use_cross_attn_mask=True,
                                                      use_intersect_mask=False)),
    "difference alone": (dict(masks="difference", mask_quantile=0.62),
                         dict(editing_prompt=TARGET, use_intersect_mask=False, edit_threshold=0.62)),
    "window": (dict(warmup=2, cooldown=6, masks="difference"),
               dict(editing_prompt=TARGET, edit_warmup_steps=2, edit_cooldown_steps=6, use_intersect_mask=False)),
    "mask": (dict(), dict(editing_prompt=TARGET, user_mask=True)),
    "led from another prompt": (dict(guidance_scale=5.0), dict(editing_prompt=TARGET, edit_guidance_scale=5.0,
                                                               negative_prompt="a mat")),
}


@pytest.mark.parametrize("solver, inverted", (("second-order", ""), ("ddpm", SOURCE)))
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] if "alone" in case else [])
                                  for case in EDITS])
def test_every_step_is_that_of_diffusers(made, monkeypatch, case, inverted, solver):
    changes, edit = EDITS[case]
    request = sage.Request(negative=edit.get("negative_prompt", ""))
    if edit.get("user_mask"):
        white = Image.new("L", (64, 64))
        white.paste(255, (0, 0, 40, 64))
        mask = torch.zeros(1, 1, 16, 16)
        mask[..., :10] = 1
        request, edit = sage.Request(mask=white), edit | dict(user_mask=mask)
    theirs = Theirs(made, monkeypatch, solver, dict(source_prompt=inverted, source_guidance_scale=3.5), **edit)
    settings = LEDITS.preset("published", **dict(steps=N, skip=SKIP, solver=solver,
                                                 source_text="source" if inverted else "empty") | changes)
    paths, kept = [], LEDITS.invert
    monkeypatch.setattr(LEDITS, "invert", lambda job: paths.append(kept(job)) or paths[-1])
    steps = [step.z for step in sage.run(LEDITS, made.model, theirs.z0, SOURCE, TARGET, settings, drawn(N),
                                         request=request)]
    assert off(paths[0].noise, theirs.noise) < 1e-6
    assert all(off(a, b) < 2e-5 for a, b in zip(paths[0].noises[:-1], theirs.zs[:-1], strict=True))
    assert len(steps) == N and all(off(a, b) < 2e-5 for a, b in zip(steps, theirs.steps, strict=True))


def test_the_grids_are_those_of_the_two_schedulers():
    schedule = DiffusionSchedule()
    assert [level.t for level in schedule.cleanest(10, 12, True)] == [0, *range(77, 762, 76)]
    assert [level.t for level in schedule.cleanest(10, 12, False)] == [0, *range(1, 749, 83)]
    assert schedule.cleanest(10, 12, True)[0] == Level(0, 1.0, 0.0)


# ---- exactness


def run(made, source=SOURCE, target=TARGET, **changes):
    settings = LEDITS.Settings(**dict(steps=5) | changes)
    z0 = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return z0, [step for step in sage.run(LEDITS, made.model, z0, source, target, settings)]


@pytest.mark.parametrize("solver", ("second-order", "ddpm"))
@pytest.mark.parametrize("changes", (dict(), dict(source_text="empty"), dict(source_guidance_scale=2.5),
                                     dict(skip=0.0), dict(spacing="linspace")))
def test_nothing_to_change_gives_the_picture_back(made, solver, changes):
    z0, steps = run(made, target=SOURCE, solver=solver, **changes)
    assert off(steps[-1].z, z0) < 1e-5
    z0, steps = run(made, solver=solver, warmup=5, **changes)
    assert off(steps[-1].z, z0) < 1e-5


def test_concepts_of_scale_zero_change_nothing_and_signs_lead_apart(made):
    z0, steps = run(made, add={"a dog": 0.0})
    assert off(steps[-1].z, z0) < 1e-5
    z0, (added, *_) = run(made, add={"a dog": 2.0})
    _, (removed, *_) = run(made, remove={"a dog": 2.0})
    assert torch.allclose(added.guided.eps - added.source.eps, removed.source.eps - removed.guided.eps, atol=1e-5)
    assert (added.guided.eps != added.source.eps).any()


def test_a_concept_stays_inside_its_mask(made):
    _, (step, *_) = run(made, masks="attention", mask_quantile=0.8)
    inside = step.mask.expand_as(step.z) > 0
    assert 0.15 < step.mask.mean() < 0.3
    changed = (step.guided.eps - step.source.eps).abs()
    assert changed[~inside].max() < 1e-6 < 1e-2 < changed[inside].mean()


def test_attention_is_read_at_16_places_a_side(made):
    assert LEDITS.defaults(made.model).cross_level == 0 == sage.method("ledits").recommended(made.model).cross_level
    large = copy.copy(made.model)
    large.sample_size = 256
    assert LEDITS.defaults(large).cross_level == 2


def test_places_are_told_by_the_words_that_are_new(made):
    _, (whole, *_) = run(made, masks="attention", add={TARGET: 5.0})
    _, (new, *_) = run(made, masks="attention")
    _, (twice, *_) = run(made, source="a dog on a dog", target="a cat on a cat", masks="attention")
    assert not torch.equal(whole.mask, new.mask) and not torch.equal(new.mask, twice.mask)


# ---- the solver


def test_the_first_order_step_is_ddpms():
    """mean = n' / n e^-h z + s' (1 - e^-2h) x0, deviation = n' sqrt(1 - e^-2h)."""
    x0, eps = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    for here, there in downwards(DiffusionSchedule().levels(12)):
        z = here.signal * x0 + here.noise * eps
        shrink = there.noise * here.signal / (there.signal * here.noise)  # e^-h
        mean, deviation = ancestral(Prediction(x0, eps), here, there)
        assert torch.allclose(mean, there.noise / here.noise * shrink * z + there.signal * (1 - shrink**2) * x0)
        assert deviation == pytest.approx(there.noise * (1 - shrink**2) ** 0.5, rel=1e-9)


def test_second_order_steps_are_those_of_diffusers():
    scheduler = DPMSolverMultistepScheduler(**ALPHAS, algorithm_type="sde-dpmsolver++", solver_order=2,
                                            timestep_spacing="leading")
    scheduler.set_timesteps(12)
    g = torch.Generator().manual_seed(1)
    levels = DiffusionSchedule().cleanest(12, 12, True)
    z, before, edges = torch.randn(1, 4, 8, 8, generator=g), None, downwards(levels)
    assert [here.t for here, _ in edges] == scheduler.timesteps.tolist()
    for i, (here, there) in enumerate(edges):
        eps, noise = torch.randn(2, 1, 4, 8, 8, generator=g)
        theirs = scheduler.step(eps, int(here.t), z, variance_noise=noise).prev_sample
        p = Prediction((z - here.noise * eps) / here.signal, eps)
        q = second_order(p, before, edges[i - 1][0], here, there) if 0 < i < 11 else p
        mean, deviation = ancestral(q, here, there)
        assert off(mean + deviation * noise, theirs) < 1e-5
        z, before = theirs, p
    assert deviation == 0 and reaching(q, here, there)[1] == 1.0


# ---- what does not fit


def test_a_prompt_that_only_drops_words_is_told_so(made):
    plan = check_prompts(made.model, "a cat on a mat", "a cat", LEDITS.Settings())
    assert "no word of the target prompt is new" in plan.notes[-1]
    assert not check_prompts(made.model, SOURCE, TARGET, LEDITS.Settings()).notes
    _, (step, *_) = run(made, target="a cat", masks="attention")
    assert (step.mask == 1).all()
    plan = check_prompts(made.model, SOURCE, TARGET, LEDITS.Settings(quantiles={"dog": 0.5}))
    assert plan.notes == ("quantiles names 'dog', which is neither added nor taken away",)


@pytest.mark.parametrize("changes, error, said", (
    (dict(add={"dog": 2.0}, remove={"dog": 1.0}), SettingsError, "'dog' is to be added and taken away"),
    (dict(add={"dog": 2.0}, quantiles={"dog": 1.5}), SettingsError, "must be at most 1"),
    (dict(add={" ": 2.0}), PromptError, "a concept is empty"),
    (dict(add={"dog " * 200: 2.0}), PromptError, "too many for this model")))
def test_what_is_no_concept_is_refused(made, changes, error, said):
    with pytest.raises(error, match=said):
        check_prompts(made.model, SOURCE, TARGET, LEDITS.Settings(**changes))


def test_concepts_need_not_stand_in_a_prompt():
    check_phrases(SOURCE, [TARGET], LEDITS.Settings(add={"a red hat": 2.0}))
    with pytest.raises(PromptError, match="'a red hat' is not in the prompt"):
        check_phrases(SOURCE, [TARGET], sage.method("p2p").Settings(reweight={"a red hat": 2.0}))


def test_attention_of_too_few_places_is_refused(made, monkeypatch):
    monkeypatch.setattr(Site, "grid", lambda self, height, width: (1, 4))
    with pytest.raises(SettingsError, match="1 x 4 places, too few to say where"):
        run(made, steps=2)
