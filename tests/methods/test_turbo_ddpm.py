"""TurboEdit by edit-friendly noises is held to its formulas with diffusers' UNet and DDPM scheduler, in float64."""

import pytest
import torch
from diffusers import DDPMScheduler

import sage
from tests import small
from tests.methods.noises_original import CONSISTENT
from tests.methods.precise import EXACT, in_float64
from tests.methods.preserved import drawn_to

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("turbo") / "tokenizer")


def latents(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def off(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def original(made, z0, noises, times, shift, w, limit, preserve=(0.0, 0)):
    """The three branches of the paper in one batch, with the scheduler's mean in the place of its formula."""
    scheduler = DDPMScheduler(**BETAS, prediction_type="epsilon")
    scheduler.alphas_cumprod = CONSISTENT  # in float64, and not float32
    scheduler.set_timesteps(timesteps=times)
    scheduler._get_variance = lambda *args, **options: torch.tensor(0.0)
    text = torch.cat([made.model.embed([made.model.prompts.parse(p)]).tokens for p in (SOURCE, SOURCE, TARGET)]).to(z0)
    drawn = dict(zip([t for t in times if t > shift], noises, strict=True))  # rows of one tensor, the noisiest first
    stored = [scheduler.add_noise(z0, drawn[t], torch.tensor([t - shift])) if t in drawn else z0 for t in times]
    z, found = stored[0], []
    for i, t in enumerate(times):
        x = torch.cat([stored[i], z, z])
        eps = made.unet(x, t, text).sample
        recorded, source, target = scheduler.step(eps, t, x).prev_sample.chunk(3)
        u = (stored[i + 1] if i + 1 < len(times) else z0) - recorded
        k = min(1.0, limit / u.norm().item()) if limit and i + 1 == len(times) else 1.0
        scale, drawn = preserve
        pull = drawn_to(made.unet, text[:1], 256, t, stored[i], z, scale * (1 - i / len(times))) if 0 < i < drawn else 0
        z = source + k * u + w * (target - source) - pull
        found.append(z)
    return found


@pytest.mark.parametrize("preset, changes, times, shift, w", [
    ("published", {}, [799, 599, 399, 199], 200, 1.5),
    ("published-3", {}, [799, 499, 199], 200, 1.5),
    ("published", dict(shift=0, guidance_scale=1.0), [799, 599, 399, 199], 0, 1.0),
    ("published", dict(steps=4, strength=0.75, shift=100, guidance_scale=2.0), [749, 499, 249], 100, 2.0)])
@pytest.mark.parametrize("limit", (15.5, 5.0))
def test_every_step_is_that_of_the_formulas(made, preset, changes, times, shift, w, limit):
    settings = sage.method("turbo-ddpm").preset(preset, **changes, **{} if limit == 15.5 else {"last_norm": limit})
    noises = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(t)) for t in times if t > shift]
    with in_float64(made.model, made.unet):
        got = [step.z for step in sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET, settings, noises)]
        want = original(made, latents(), noises, times, shift, w, limit)
    assert len(got) == len(want) == len(times)
    assert max(off(a, b) for a, b in zip(got, want, strict=True)) < EXACT
    assert off(got[-1], latents()) > 0.05


@pytest.mark.parametrize("fraction, drawn", ((1.0, 4), (0.75, 3)))
def test_with_sages_loss_every_step_loses_the_gradient_of_the_difference_of_the_maps(made, fraction, drawn):
    """The first step of all has nothing to lose: both branches begin with the same latents."""
    settings = sage.method("turbo-ddpm").preset("published", preserve_scale=3e4, preserve_limit=0.0,
                                                preserve_level=0, preserve_fraction=fraction)
    times = [799, 599, 399, 199]
    noises = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(t)) for t in times if t > 200]
    with in_float64(made.model, made.unet):
        got = [step.z for step in sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET, settings, noises)]
        want = original(made, latents(), noises, times, 200, 1.5, 15.5, (3e4, drawn))
        without = original(made, latents(), noises, times, 200, 1.5, 15.5)
    assert max(off(a, b) for a, b in zip(got, want, strict=True)) < EXACT
    assert torch.equal(want[0], without[0]) and off(want[drawn - 1], without[drawn - 1]) > 0.02


def test_without_shift_limit_and_pseudo_guidance_it_is_edit_friendly_inversion(made):
    """`ddpm` from the same noises, but for its last step, which ends at the schedule's cleanest level."""
    few = sage.method("turbo-ddpm").Settings(shift=0, guidance_scale=1.0, last_limit=0.0)
    many = sage.method("ddpm").Settings(steps=4, spacing="trailing", strength=0.75, guidance_scale=1.0)
    noises = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    ours = [s.z for s in sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET, few, noises[2::-1])]
    theirs = [s.z for s in sage.run("ddpm", made.model, latents(), SOURCE, TARGET, many, noises)]
    assert len(ours) == len(theirs) == 3
    assert max(off(a, b) for a, b in zip(ours[:-1], theirs[:-1], strict=True)) < 1e-4
    assert off(ours[-1], theirs[-1]) < 0.1


def test_the_limit_of_the_last_noise_goes_with_the_size_of_the_picture(made):
    def last(**changes):
        settings = sage.method("turbo-ddpm").Settings(**changes)
        return list(sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET, settings))[-1].z

    norm = 0.05 * latents()[0].numel() ** 0.5
    assert torch.allclose(last(last_limit=0.05), last(last_limit=0.0, last_norm=norm), atol=1e-5)
    assert torch.allclose(last(last_limit=0.05), last(last_limit=0.1, last_norm=norm), atol=1e-5)
    assert off(last(last_limit=0.05), last(last_limit=0.1)) > 1e-2


def test_equal_prompts_give_the_picture_unless_the_last_noise_is_shortened(made):
    def last(**changes):
        settings = sage.method("turbo-ddpm").Settings(**changes)
        return [s.z for s in sage.run("turbo-ddpm", made.model, latents(), SOURCE, SOURCE, settings)][-1]

    assert off(last(last_limit=0.0), latents()) < 1e-4
    assert off(last(last_limit=0.01), latents()) > 1e-2


def test_outside_the_mask_are_the_recorded_latents(made):
    settings = sage.method("turbo-ddpm").Settings(blend="auto", blend_threshold=0.5)
    steps = list(sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET, settings))
    outside = (steps[-1].mask == 0).expand_as(latents())
    assert outside.any() and not outside.all()
    assert torch.equal(steps[-1].z[outside], latents()[outside])
    assert off(steps[-1].z[~outside], latents()[~outside]) > 0.05

    difference = sum((step.target.eps - step.source.eps).abs().mean(1, keepdim=True) for step in steps)
    greatest = torch.nn.functional.max_pool2d(difference, 3, 1, 1)
    assert torch.equal(steps[-1].mask, (greatest > 0.5 * greatest.max()).float())

    early = [step.mask is None for step in sage.run("turbo-ddpm", made.model, latents(), SOURCE, TARGET,
                                                    settings.but(blend_fraction=0.33))]
    assert early == [False, True, True]


def test_a_flow_is_refused(made, monkeypatch):
    monkeypatch.setattr(made.model, "prediction_type", "flow")
    with pytest.raises(sage.SageError, match="turbo-ddpm cannot edit with small: it is a flow"):
        sage.edit(made.model, small.picture(), SOURCE, TARGET, method="turbo-ddpm")
