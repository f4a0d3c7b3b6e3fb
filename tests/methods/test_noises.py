"""DDPM inversion, FlowEdit, UniEdit-Flow and InfEdit are held to renditions of their codes, step by step.

In float64, where differences of 2e-15 to 1e-13 are left.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

import sage
from sage.editing import check_prompts
from sage.errors import SettingsError
from sage.sampling.levels import Level
from tests import small
from tests.methods import noises_original as original
from tests.methods import preserved
from tests.methods.p2p_original import Options
from tests.methods.precise import EXACT, in_float64

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("noises") / "tokenizer")


def embedded(model, target: str = TARGET) -> dict:
    return {name: model.embed([model.prompts.parse(prompt)])
            for name, prompt in (("source", SOURCE), ("target", target), ("empty", ""))}


def net(made, target: str = TARGET) -> original.Net:
    return original.Net(made.unet, {name: text.tokens for name, text in embedded(made.model, target).items()})


def drawn(count: int, batch: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(11)
    return [torch.randn(batch, 4, 16, 16, generator=g) for _ in range(count)]


def picture(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(5))


def off(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


def held(found, wanted):
    """Of one length, and each latents those that are wanted."""
    assert all(off(a, b) < EXACT for a, b in zip(found, wanted, strict=True))


def ours(made, method: str, settings, noises=None, target: str = TARGET, **given) -> tuple[list, list]:
    """The latents of each step, and of the way to noise."""
    found, paths = sage.method(method), []
    kept = found.invert
    found.invert = lambda job: paths.append(kept(job)) or paths[-1]
    try:
        texts = {} if target != TARGET or given else embedded(made.model)
        steps = [step.z for step in sage.run(found, made.model, picture(), SOURCE, target, settings, noises,
                                             texts=texts, **given)]
    finally:
        del found.invert
    return steps, paths[0]


# ---- DDPM inversion

PLAIN = dict(steps=N, strength=0.8, source_guidance_scale=1.0, guidance_scale=3.0)
DDPM = {
    "plain": (PLAIN, {}),
    "guided": (PLAIN | dict(source_guidance_scale=3.5), {}),
    "eta": (PLAIN | dict(eta=0.6), {}),
    "refine": (PLAIN | dict(carry="refine", cross_fraction=0.4, self_fraction=0.6), dict(refine=True)),
    "replace": (PLAIN | dict(carry="replace", cross_fraction=0.4, self_fraction=0.6), dict(refine=False)),
}


@pytest.mark.parametrize("conventions", ("published", "consistent"))
@pytest.mark.parametrize("case", DDPM)
def test_every_step_of_ddpm_is_that_of_the_original_code(made, case, conventions):
    changes, options = DDPM[case]
    consistent = conventions == "consistent"
    settings = sage.method("ddpm").preset("published", **changes, conventions=conventions)
    control = None
    if options:
        o = Options(steps=4 if consistent else N, ours=consistent, **options)
        control = (made.tokenizer, SOURCE, TARGET, o)
    with in_float64(made.model, made.unet):
        theirs = original.ddpm(net(made), picture(), drawn(N), N, 1, settings.source_guidance_scale, 3.0, settings.eta,
                               consistent, control)
        steps, path = ours(made, "ddpm", settings, drawn(N))
    held(path.latents, theirs.xts)
    held(path.noises[:-1], theirs.zs[:0:-1])
    assert path.noises[-1].any() == consistent
    assert len(steps) == 4
    held(steps, [z[1:] for z in theirs.latents])


LOSS = dict(preserve_scale=3e4, preserve_limit=0.0, preserve_level=0)


@pytest.mark.parametrize("name", ("ddpm", "flowedit"))
def test_with_sages_loss_every_step_loses_the_gradient_of_the_difference_of_the_maps(made, name):
    n, text = N, embedded(made.model)["source"].tokens.double()
    shape = dict(steps=n, strength=0.8, source_guidance_scale=1.0, guidance_scale=3.0)

    def theirs(pull):
        if name == "ddpm":
            return [z[1:] for z in original.ddpm(net(made), picture().double(), drawn(n), n, 1, 1.0, 3.0, ours=True,
                                                 pull=pull).latents]
        return original.flowedit(net(made), picture().double(), drawn(n), n, 4, 0, 1, 1.0, 3.0, pull)

    with in_float64(made.model, made.unet):
        made_so = [(ours(made, name, sage.method(name).Settings(**shape, **loss), drawn(n))[0], theirs(pull))
                   for loss, pull in ((LOSS, preserved.pull(made.unet, text, 3e4, 4)), ({}, None))]
        for steps, want in made_so:
            assert len(steps) == 4
            held(steps, want)
        assert off(made_so[0][1][-1], made_so[1][1][-1]) > 0.01


@pytest.mark.parametrize("strength", (0.3, 1.0))
@pytest.mark.parametrize("w", (1.0, 4.0))
def test_noises_give_the_picture_back_exactly(made, strength, w):
    settings = sage.method("ddpm").Settings(steps=6, strength=strength, source_guidance_scale=w, guidance_scale=w)
    steps, path = ours(made, "ddpm", settings, target=SOURCE)
    assert off(steps[-1], picture()) < 1e-5
    assert all(off(a, b) < 1e-5 for a, b in zip(steps, path.latents[len(steps) - 1::-1], strict=True))


def test_the_last_noise_is_what_the_original_code_leaves_out(made):
    settings = sage.method("ddpm").preset("published", steps=6, guidance_scale=1.0, source_guidance_scale=1.0)
    steps, path = ours(made, "ddpm", settings, target=SOURCE)
    assert off(steps[-2], path.latents[1]) < 1e-5 < 1e-3 < off(steps[-1], picture()) < 0.1


def test_noises_of_other_seeds_are_other_ways_to_the_same_picture(made):
    found = []
    for seed in (0, 1):
        settings = sage.method("ddpm").Settings(steps=4, guidance_scale=3.0, seed=seed)
        found.append(ours(made, "ddpm", settings)[0][-1])
    assert off(*found) > 1e-2


def test_weights_without_carried_attention_are_noted(made):
    settings = sage.method("ddpm").Settings(reweight={"dog": 2.0})
    assert "reweight changes nothing" in check_prompts(made.model, SOURCE, TARGET, settings).notes[0]
    assert not check_prompts(made.model, SOURCE, TARGET, settings.but(carry="refine")).notes


def test_ddpm_as_published_sees_a_pictures_middle_square(made):
    settings, image = sage.method("ddpm").preset("published", steps=2), small.picture(96, 64)
    whole, middle = (sage.edit(made.model, seen, SOURCE, TARGET, settings)
                     for seen in (image, image.crop((16, 0, 80, 64))))
    assert torch.equal(whole.latents, middle.latents)


# ---- FlowEdit

FLOWEDIT = {
    "plain": dict(strength=0.8),
    "guided": dict(strength=0.8, source_guidance_scale=1.5, guidance_scale=5.5),
    "averages": dict(strength=0.5, averages=3),
    "sampled": dict(strength=0.8, sampled_fraction=0.3, guidance_scale=3.0),
    "sdedit": dict(strength=0.5, sampled_fraction=1.0, guidance_scale=3.0),
}


@pytest.mark.parametrize("case", FLOWEDIT)
def test_every_step_of_flowedit_is_that_of_its_formulas(made, case):
    n, settings = 6, sage.method("flowedit").Settings(**dict(steps=6, guidance_scale=1.0) | FLOWEDIT[case])
    n_max, n_min = round(settings.strength * n), round(settings.sampled_fraction * n)
    with in_float64(made.model, made.unet):
        theirs = original.flowedit(net(made), picture(), drawn(40), n, n_max, min(n_min, n_max), settings.averages,
                                   settings.source_guidance_scale, settings.guidance_scale)
        steps, _ = ours(made, "flowedit", settings, drawn(40))
    assert len(steps) == n_max
    held(steps, theirs)


@dataclass(frozen=True)
class Flow:
    """Levels of a flow, told to the network as whole timesteps."""

    times: tuple[float, ...] = (0.0, 0.1, 0.3, 0.6, 0.8, 1.0)

    def levels(self, steps, spacing, size):
        return tuple(Level(int(1000 * t), 1 - t, t) for t in self.times)


@pytest.fixture(scope="module")
def flowing(made):
    """The same network, its output taken for a velocity."""
    model = copy.copy(made.model)
    model.schedule, model.prediction_type = Flow(), "flow"
    made.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 77, 32))
    return small.Small(model, made.unet, made.vae, made.text, made.tokenizer)


def test_on_a_flow_flowedit_is_the_papers(flowing):
    settings = sage.method("flowedit").Settings(steps=5, strength=0.8, source_guidance_scale=1.5, guidance_scale=4.0)
    with in_float64(flowing.model, flowing.unet):
        theirs = original.flowedit_on_a_flow(net(flowing), picture(), drawn(4), Flow().times[4::-1], 1.5, 4.0)
        steps, _ = ours(flowing, "flowedit", settings, drawn(4))
    assert len(steps) == 4
    held(steps, theirs)


def test_equal_prompts_and_scales_move_nothing(made):
    settings = sage.method("flowedit").Settings(steps=5, strength=1.0, source_guidance_scale=3.0, guidance_scale=3.0)
    steps, _ = ours(made, "flowedit", settings, target=SOURCE)
    assert all(torch.equal(z, picture()) for z in steps)


# ---- UniEdit-Flow


@pytest.mark.parametrize("alpha, kind", ((0.6, "epsilon"), (1.0, "epsilon"), (0.6, "v_prediction")))
def test_every_step_of_uni_edit_is_that_of_the_original_code(made, tmp_path, alpha, kind):
    settings = sage.method("uni-edit").preset("published", steps=N, strength=alpha, guidance_scale=2.0)
    made = made if kind == "epsilon" else small.make(tmp_path / "tokenizer", prediction=kind)
    with in_float64(made.model, made.unet):
        up, down = original.uni_edit(net(made), picture(), N, alpha, 2.0, kind=kind)
        steps, path = ours(made, "uni-edit", settings)
    assert len(steps) == round(alpha * N)
    held(path.latents, up)
    held(steps, down)


@pytest.mark.parametrize("strength", (0.6, 1.0))
def test_on_a_flow_uni_edit_is_the_authors_for_flows(flowing, strength):
    settings = sage.method("uni-edit").Settings(steps=5, strength=strength, guidance_scale=2.0)
    with in_float64(flowing.model, flowing.unet):
        up, down = original.uni_edit_on_a_flow(net(flowing), picture(), Flow().times[:1 + round(5 * strength)], 2.0)
        steps, path = ours(flowing, "uni-edit", settings)
    held(path.latents, up)
    held(steps, down)


@pytest.mark.slow
def test_foresight_comes_nearer_to_the_picture_than_ddim(made):
    back = {}
    for method, more in (("plain", {}), ("uni-edit", dict(strength=1.0))):
        settings = sage.method(method).Settings(steps=50, guidance_scale=1.0, **more)
        back[method] = off(ours(made, method, settings, target=SOURCE)[0][-1], picture())
    assert back["uni-edit"] < 0.5 * back["plain"]


# ---- InfEdit

INFEDIT = {
    "": {},
    "less fresh noise": dict(eta=0.3),
    "no fresh noise": dict(eta=0.0, strength=1.0),
    "source guided": dict(source_guidance_scale=1.5),
    "blending": dict(blend=("cat", "dog"), blend_threshold=0.9, steps=8),
    "shares between steps": dict(cross_fraction=0.75, self_fraction=0.55, steps=10),
    "no attention carried": dict(cross_fraction=0.0, self_fraction=0.0, strength=1.0),
    "nothing to blend": dict(blend=None, steps=8),
    "a word of the source's": dict(blend=("cat", "cat"), blend_threshold=0.9, steps=8),
    "led from another prompt": dict(self_fraction=1.0, negative="a mat"),
    "words of other numbers": dict(blend=("mat", "dog"), blend_threshold=0.2, strength=0.75, steps=8,
                                   target="a dog dog on a mat"),
}


@pytest.mark.parametrize("case", INFEDIT)
def test_every_step_of_infedit_is_that_of_its_formulas(made, case):
    blend = dict(blend=("mat", "mat"), blend_threshold=0.99)  # without, there is no mutual branch
    changes = dict(steps=N) | blend | INFEDIT[case]
    target, negative = changes.pop("target", TARGET), changes.pop("negative", "")
    s = sage.method("infedit").preset("published", blend_match="words", **changes)
    with in_float64(made.model, made.unet):
        network = net(made, target)
        if negative:
            network.texts["negative"] = made.model.embed([made.model.prompts.parse(negative)]).tokens.double()
        theirs = original.infedit(network, made.tokenizer, SOURCE, target, picture(), drawn(s.steps + 1),
                                  s.steps, s.strength, s.eta, s.source_guidance_scale, s.guidance_scale,
                                  s.cross_fraction, s.self_fraction, s.blend, s.blend_threshold)
        steps, _ = ours(made, "infedit", s, drawn(s.steps + 1), target, request=sage.Request(negative=negative))
    held(steps, theirs)


def test_without_control_infedit_with_fresh_noise_is_flowedit(made):
    """Both share the noise between the branches; at eta 1 each step of both starts from the picture anew."""
    bare = dict(cross_fraction=0.0, self_fraction=0.0, blend=None, mutual="no", eta=1.0)
    s = sage.method("infedit").Settings(steps=6, strength=1.0, source_guidance_scale=1.0, guidance_scale=1.0, **bare)
    (first, *_), _ = ours(made, "infedit", s, drawn(6))
    levels = made.model.schedule.levels(6, "leading", (16, 16))
    flow = sage.method("flowedit").Settings(steps=6, strength=1.0, source_guidance_scale=1.0, guidance_scale=1.0)
    (moved, *_), _ = ours(made, "flowedit", flow, drawn(6))
    texts, noises = embedded(made.model), drawn(6)
    with torch.no_grad():
        z = levels[-1].signal * picture() + levels[-1].noise * noises[0]
        d = made.model.predict(z, levels[-1], texts["target"]) - made.model.predict(z, levels[-1], texts["source"])
    at = levels[-2]
    assert off(first, at.signal * (picture() + d.x0) + at.noise * noises[1]) < 1e-5
    assert off(moved, picture() + (at.signal - levels[-1].signal) * d.x0 + (at.noise - levels[-1].noise) * d.eps) < 1e-5


# ---- SDEdit


def test_every_step_of_sdedit_is_that_of_diffusers(made):
    made.unet.register_to_config(sample_size=16)  # as a folder has it
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              steps_offset=1, set_alpha_to_one=False)
    pipe = StableDiffusionImg2ImgPipeline(made.vae, made.text, made.tokenizer, made.unet, scheduler, None, None,
                                          requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    texts, theirs = embedded(made.model), []
    pipe(image=picture(), strength=0.75, num_inference_steps=10, guidance_scale=3.0, output_type="latent",
         prompt_embeds=texts["target"].tokens, negative_prompt_embeds=texts["empty"].tokens,
         generator=torch.Generator().manual_seed(11),
         callback_on_step_end=lambda pipe, i, t, kwargs: theirs.append(kwargs["latents"].clone()) or kwargs)
    settings = sage.method("sdedit").preset("published", steps=10, strength=0.75, guidance_scale=3.0)
    steps, _ = ours(made, "sdedit", settings, drawn(1))
    assert len(steps) == len(theirs) == 7 and all(off(a, b) < 2e-5 for a, b in zip(steps, theirs, strict=True))


# ---- presets


def test_pictures_are_given_out_as_the_original_codes_give_them():
    quantised = {name: sage.method(name).preset("published").quantise for name in (
        "ddpm", "ledits", "edict", "bdia", "pix2pix-zero", "infedit", "sdedit", "sag")}
    assert {name for name, how in quantised.items() if how == "truncate"} == {"ddpm"}  # all others round


def test_attention_is_carried_as_long_as_in_the_authors_code_and_in_the_benchmarks():
    ddpm = sage.method("ddpm")
    windows = {name: (len(s.cross_window(0.0, s.cross_fraction)), len(s.self_window))
               for name in ("published", "benchmark") for s in [ddpm.preset(name)]}
    assert windows == {"published": (60, 20), "benchmark": (20, 30)}


# ---- masks


@pytest.mark.parametrize("method", ("sage", "ddpm", "ledits", "flowedit", "infedit", "uni-edit"))
def test_outside_a_mask_nothing_changes(made, method):
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    found = sage.method(method)
    settings = found.Settings.from_dict(dict(steps=4, guidance_scale=4.0) | (
        dict(blend=None) if method in ("infedit", "sage") else {}))
    request = sage.Request(SOURCE, TARGET, mask=left)
    free, _ = ours(made, method, settings)
    steps, _ = ours(made, method, settings, request=request)
    assert off(free[-1][..., 8:], picture()[..., 8:]) > 1e-3
    assert off(steps[-1][..., 8:], picture()[..., 8:]) < 1e-6 < 1e-3 < off(steps[-1][..., :8], picture()[..., :8])


def test_a_mask_that_leaves_nothing_to_change_is_refused(made):
    for mask, said in ((Image.new("L", (64, 64)), "no white place"), ("mask.png", "the mask is str")):
        with pytest.raises(SettingsError, match=said):
            sage.edit(made.model, small.picture(), SOURCE, TARGET, sage.method("flowedit").Settings(steps=2), mask=mask)


@pytest.mark.parametrize("name", ("sdedit", "infedit"))
def test_no_noise_is_that_which_the_autoencoders_sample_is_drawn_with(made, name):
    """Which is that of the seed without a tag; without such a sample SDEdit's is, as it has been."""
    settings, tags = sage.method(name).preset("published", steps=N), []
    list(sage.run(name, made.model, picture(), SOURCE, TARGET, settings, lambda tag: tags.append(tag) or drawn(1)[0]))
    assert settings.encode == "sample" and tags and () not in tags
    tags.clear()
    list(sage.run("sdedit", made.model, picture(), SOURCE, TARGET, sage.method("sdedit").Settings(steps=N),
                  lambda tag: tags.append(tag) or drawn(1)[0]))
    assert tags == [()]
