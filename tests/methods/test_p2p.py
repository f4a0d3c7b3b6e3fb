"""Prompt-to-prompt is held to a rendition of its original code, step by step, and its parts to what they must do."""

import pytest
import torch

import sage
from sage.editing import check_prompts
from sage.errors import PromptError, SettingsError
from sage.guidance.proximal import proximal
from sage.guidance.rewrites import refinement, word_swap
from sage.models.backbone import Text
from sage.prompts.tokens import Span
from sage.prompts.words import aligned, changed_words
from tests import small
from tests.methods import p2p_original as original
from tests.methods import preserved
from tests.methods.precise import EXACT, in_float64

P2P = sage.method("p2p")
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("p2p") / "tokenizer")


def both(made, source, target, options, settings):
    """The original's run and ours, from the same latents and embeddings."""
    model, tokenizer = made.model, made.tokenizer
    z0 = torch.randn(1, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(5))
    texts = {name: model.embed([model.prompts.parse(prompt)]) for name, prompt in
             (("source", source), ("target", target), ("empty", ""))}
    theirs = original.edit(made.unet, tokenizer, z0, source, target, {n: t.tokens for n, t in texts.items()}, options)
    path = []
    ours = []
    kept = P2P.invert

    def invert(job):
        path.append(kept(job))
        return path[-1]

    P2P.invert = invert
    try:
        for step in sage.run(P2P, model, z0, source, target, settings, texts=texts):
            ours.append(step.z)
    finally:
        del P2P.invert
    return theirs, path[0], ours


def worst(theirs, path, ours) -> float:
    pairs = [*zip(path.latents, theirs.inverted, strict=True),
             *((a, b[1:]) for a, b in zip(ours, theirs.latents, strict=True))]
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


N = 5
CLOSE = 2e-5  # in float32, of ten steps there and ten back, what rounding becomes: measured at up to 1.7e-5


CASES = {
    "refine": ({}, {}),
    "scale 7.5": (dict(w=7.5), dict(guidance_scale=7.5)),
    "replace": (dict(refine=False), dict(carry="replace")),
    "reweight": (dict(equalizer={"dog": 2.0, "mat": 0.5}), dict(reweight={"dog": 2.0, "mat": 0.5})),
    "turned round": (dict(equalizer={"dog": -1.0}), dict(reweight={"dog": -1.0})),
    "whole words": (dict(equalizer={"dog": 2.0, "on a": 3.0}, cross={"default_": (0.0, 0.8), "dog": (0.3, 0.5)}),
                    dict(reweight={"dog": 2.0, "on a": 3.0}, cross_fraction=0.8, word_starts={"dog": 0.3},
                         word_fractions={"dog": 0.5})),
    "windows": (dict(cross={"default_": (0.2, 0.8), "dog": (0.0, 0.3), "on": (0.5, 0.4)}, self_=(0.1, 0.35)),
                dict(cross_start=0.2, cross_fraction=0.8, word_starts={"on": 0.5},
                     word_fractions={"dog": 0.3, "on": 0.4}, self_start=0.1, self_fraction=0.35)),
    "blend": (dict(blend=("cat", "dog"), th=(0.9, 0.3)), dict(blend=("cat", "dog"), blend_threshold=0.9)),
    "several words": (dict(blend=("cat mat", "dog mat"), th=(0.9, 0.3)),
                      dict(blend=("cat mat", "dog mat"), blend_threshold=0.9)),
    "subtract": (dict(blend=("cat", "dog"), subtract=("mat", "mat"), th=(0.3, 0.95), equalizer={"dog": 3.0}),
                 dict(blend=("cat", "dog"), blend_except=("mat", "mat"), blend_threshold=0.3, except_threshold=0.95,
                      reweight={"dog": 3.0})),
    "direct": (dict(inversion="direct", blend=("cat", "dog"), th=(0.9, 0.3)),
               dict(inversion="direct", blend=("cat", "dog"), blend_threshold=0.9)),
    "negative": (dict(inversion="negative"), dict(inversion="negative")),
    "negative, interpolated": (dict(inversion="negative", interpolate=0.3),
                               dict(inversion="negative", negative_empty=0.3)),
    "proximal": (dict(inversion="proximal"), dict(inversion="proximal")),
    "proximal, hard, held": (
        dict(inversion="proximal", prox="hard", hold="path", eta=0.8, recon_t=600, quantile=0.9),
        dict(inversion="proximal", proximal_kind="hard", proximal_hold="path", proximal_rate=0.8, proximal_below=600.0,
             proximal_quantile=0.9)),
    "proximal, of a size, held early": (
        dict(inversion="proximal", quantile=-0.05, hold="path", recon_t=-600),
        dict(inversion="proximal", proximal_quantile=-0.05, proximal_hold="path", proximal_below=-600.0)),
    "proximal, held to the picture": (
        dict(inversion="proximal", hold="picture", eta=1.0, radius=0, quantile=0.8, interpolate=0.2),
        dict(inversion="proximal", proximal_hold="picture", proximal_margin=0, proximal_quantile=0.8,
             negative_empty=0.2)),
    "proximal, from what is fitted": (
        dict(inversion="proximal", prox_from="null-text", inner=2, hold="path", recon_t=600),
        dict(inversion="proximal", proximal_from="null-text", null_text_steps=2, proximal_hold="path",
             proximal_below=600.0)),
    "null-text": (dict(inversion="null-text", inner=3, epsilon=1e-2, blend=("cat", "dog"), th=(0.9, 0.3)),
                  dict(inversion="null-text", null_text_steps=3, null_text_tolerance=1e-2, blend=("cat", "dog"),
                       blend_threshold=0.9)),
    "null-text, one fit ends early": (dict(inversion="null-text", inner=3, epsilon=0.3),  # the first, its error .17
                                      dict(inversion="null-text", null_text_steps=3, null_text_tolerance=0.3)),
    "null-text, single branch": (dict(inversion="null-text", inner=2, single_branch=True),
                                 dict(inversion="null-text", null_text_steps=2, null_text_branches="source")),
}

# Nine seconds each; another fit is always made.
LONG = ("null-text", "null-text, single branch", "proximal, from what is fitted")


COMMAS = {"whole words": "a dog, a dog on a mat"}  # other target prompts


def compared(made, case: str, steps: int, consistent: bool = False) -> float:
    theirs, ours = CASES[case]
    given = {"steps": steps, "guidance_scale": 2.0} | ours
    settings = P2P.Settings(**{"blend": None} | given) if consistent else P2P.preset("published", **given)
    options = original.Options(**{"steps": steps, "w": 2.0, "ours": consistent} | theirs)
    return worst(*both(made, SOURCE, TARGET if consistent else COMMAS.get(case, TARGET), options, settings))


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] if case in LONG else [])
                                  for case in CASES])
def test_every_step_is_that_of_the_original_code(made, case):
    with in_float64(made.model, made.unet):
        assert compared(made, case, N) < EXACT


def test_in_float32_it_is_so_but_for_rounding(made):
    assert compared(made, "blend", 10) < CLOSE


@pytest.mark.parametrize("case", ("refine", "replace", "reweight", "windows", "subtract", "null-text"))
def test_our_own_conventions_are_those_that_they_say(made, case):
    with in_float64(made.model, made.unet):
        assert compared(made, case, N, consistent=True) < EXACT


def test_with_sages_loss_every_step_loses_the_gradient_of_the_difference_of_the_maps(made):
    text = made.model.embed([made.model.prompts.parse(SOURCE)]).tokens.double()
    with in_float64(made.model, made.unet):
        options, settings = (dict(w=2.0, steps=N), dict(guidance_scale=2.0, steps=N, preserve_level=0,
                                                        preserve_limit=0.0))
        found, without = (both(made, SOURCE, TARGET, original.Options(**options, pull=pull),
                               P2P.preset("published", **settings, preserve_scale=scale))
                          for scale, pull in ((3e4, preserved.pull(made.unet, text, 3e4, N)), (0.0, None)))
        assert worst(*found) < EXACT and worst(*without) < EXACT
        assert off(found[0].latents[-1], without[0].latents[-1]) > 0.01


def test_as_published_the_middle_square_of_a_picture_is_edited(made):
    settings = P2P.preset("published", steps=1)
    result = sage.edit(made.model, small.picture(96, 64), SOURCE, TARGET, settings)
    alone = sage.edit(made.model, small.picture(96, 64).crop((16, 0, 80, 64)), SOURCE, TARGET, settings)
    assert result.image.size == (64, 64) and torch.equal(result.latents, alone.latents)


# ---- the words


def test_refinement_takes_the_longest_common_subsequence():
    assert aligned((0, 5, 6, 9), (0, 6, 7, 9), 6) == (0, 2, -1, 3, 4, 5)
    assert aligned((0, 1, 2, 1, 9), (0, 1, 9), 4) == (0, 1, 4, 3)  # of two that fit, the first
    assert aligned((0, 1, 9), (0, 1, 3, 1, 9), 5) == (0, 1, -1, -1, 2)
    carry, keep = refinement((0, 2, -1, 3), 4)
    assert carry.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]] and keep.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("source, target", (("a cat on a mat", "a dog on a mat"), ("a cat", "a fat cat on a mat"),
                                            ("", ""), ("a dog on a mat by a cat", "a cat by a mat"),
                                            ("a a b a", "b a a b a")))
def test_alignment_is_that_of_the_original(made, source, target):
    prompts, n = made.model.prompts, 77
    ours = aligned(prompts.tokens(prompts.parse(source)), prompts.tokens(prompts.parse(target)), n)
    mapping, there = original.refine_map(made.tokenizer, source, target, n)
    assert tuple(mapping) == ours and [float(i >= 0) for i in ours] == there.tolist()


@pytest.mark.parametrize("shifted", (True, False))
@pytest.mark.parametrize("source, target", (("a cat on a mat", "a mat on a cat"),
                                            ("a mat is on a dog", "a cat is on a mat"), ("a cat", "a cat"),
                                            ("cat on a mat", "dog on a dog")))
def test_word_swap_is_that_of_the_original(made, source, target, shifted):
    prompts = made.model.prompts
    changed = changed_words(prompts, prompts.parse(source), prompts.parse(target))
    carry, keep = word_swap(changed, 77, shifted)
    theirs = original.swap_matrix(made.tokenizer, source, target, 77, shifted)
    assert torch.equal(carry, torch.from_numpy(theirs).float())
    assert torch.equal(keep, (carry.sum(0) == 0).float() if shifted else torch.zeros(77))


def test_behind_the_last_change_the_original_is_out_of_step():
    changed = (Span((2,), (2, 3)),)  # one token becomes two
    ours, theirs = word_swap(changed, 8)[0], word_swap(changed, 8, shifted=False)[0]
    assert ours[:, 4].nonzero().tolist() == [[3]] and theirs[:, 4].nonzero().tolist() == [[4]]
    assert ours[2].tolist() == theirs[2].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]


def test_prompts_of_unequal_counts_are_refined_and_it_is_said(made):
    settings = P2P.Settings(carry="replace")
    plan = check_prompts(made.model, "a cat", "a fat cat", settings)
    assert plan.replace == () and "have not equally many words" in plan.notes[0]
    assert check_prompts(made.model, SOURCE, TARGET, settings).replace == (Span((2,), (2, 3, 4)),)


@pytest.mark.parametrize("change, error, said", (
    (dict(word_fractions={"pig": 0.5}), PromptError, "'pig' is not in the prompt"),
    (dict(blend_except=("pig", "dog")), PromptError, "'pig' is not in the prompt"),
    (dict(blend_except="auto"), SettingsError, "blend_except is auto"),
    (dict(word_starts={"dog": 2.0}), SettingsError, "must be at most 1")))
def test_words_that_are_not_there_are_refused(made, change, error, said):
    with pytest.raises(error, match=said):
        check_prompts(made.model, SOURCE, TARGET, P2P.Settings(**change))


def test_embeddings_without_words_are_refused(made):
    model = made.model
    z0, texts = torch.zeros(1, *model.latent_shape((64, 64))), [model.embed([model.prompts.parse(SOURCE)]), TARGET]
    for given, name in ((texts, "source"), (texts[::-1], "target")):
        with pytest.raises(SettingsError, match=f"goes by the words of both prompts: give the {name} prompt itself"):
            next(sage.run(P2P, model, z0, *given, P2P.preset("published", steps=2)))


# ---- the anchors


def test_proximal_maps_are_those_of_their_formulas():
    kappa = 1.0
    delta = torch.tensor([-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    assert proximal(delta, kappa).tolist() == [-2, -1, -0.5, 0, 0, 0, 0, 0, 0.5, 1, 2]
    assert proximal(delta, kappa, "hard").tolist() == [-3, -2, -1.5, 0, 0, 0, 0, 0, 1.5, 2, 3]
    # option l1: entries between -kappa and 0 change their sign
    assert proximal(delta, kappa, "l1").tolist() == [-1, 0, 0.5, 0, 0, 0, 0, 0, 0.5, 0, 1]
    drawn = torch.randn(2, 3, 4)
    theirs, _ = original._prox(drawn.reshape(2, 1, 3, 4), original.Options(prox="l1"))
    assert torch.allclose(proximal(drawn, drawn.abs().quantile(0.75), "l1"), theirs[:, 0])


def test_the_arc_between_two_texts_keeps_to_both():
    g = torch.Generator().manual_seed(0)
    a, b = (Text(torch.randn(2, 5, 8, generator=g)) for _ in range(2))
    assert torch.allclose(a.slerp(b, 0).tokens, a.tokens, atol=1e-6)
    assert torch.allclose(a.slerp(b, 1).tokens, b.tokens, atol=1e-6)
    assert torch.allclose(a.slerp(b, 0.3).tokens[:1], original.arc(0.3, a.tokens[:1], b.tokens[:1]), atol=1e-5)
    assert torch.equal(a.slerp(a, 0.3).tokens, a.tokens)


def run(made, **changes):
    model = made.model
    settings = P2P.Settings(**{"steps": 6, "guidance_scale": 4.0, "blend": None} | changes)
    z0 = torch.randn(1, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(5))
    return z0, [step.z for step in sage.run(P2P, model, z0, SOURCE, SOURCE, settings)]


def off(z0, z) -> float:
    return ((z - z0).norm() / z0.norm()).item()


@pytest.mark.slow
def test_each_anchor_holds_the_picture_better_than_none(made):
    """With equal prompts the target is the source branch, and all that is lost is lost by guidance."""
    z0, plain = run(made)
    for inversion in ("negative", "proximal", "null-text"):
        _, held = run(made, inversion=inversion, null_text_rate=0.1)
        assert off(z0, held[-1]) < 0.9 * off(z0, plain[-1]), inversion


@pytest.mark.parametrize("name, inversion, said", (
    ("p2p", "direct", "has 2 latents, and 3 steps need 4"), ("p2p", "proximal", "has 2 latents, and 3 steps need 4"),
    ("pnp", "direct", "has 2 latents, and 3 steps need 4"), ("p2p", "null-text", "has no 3 fitted empty prompts")))
def test_a_way_to_noise_from_elsewhere_has_to_have_what_is_held_to(made, name, inversion, said):
    z0 = torch.zeros(1, *made.model.latent_shape((64, 64)))
    settings = sage.method(name).preset("published", steps=3, inversion=inversion)
    with pytest.raises(SettingsError, match=said):
        next(sage.run(name, made.model, z0, SOURCE, TARGET, settings, trajectory=sage.Trajectory(None, (z0, z0))))


def test_names_stand_for_inversions():
    for inversion in P2P.Settings.__dataclass_fields__["inversion"].metadata["choices"]:
        found = sage.method(f"p2p+{inversion}")
        assert found.preset("published").inversion == inversion and found.name == found.where == "p2p"
    with pytest.raises(SettingsError, match="p2p has no inversion 'x': it has ddim, null-text"):
        sage.method("p2p+x")


def test_names_add_sages_loss():
    both = sage.method("p2p+direct+sage")
    assert both.variant == {"inversion": "direct", "preserve_scale": 14100.0} and both.where == "p2p"
    assert sage.method("p2p").variant == {} == sage.method("p2p").added
    assert sage.method("ddpm+sage").preset("published").preserve_scale == 14100
    with pytest.raises(SettingsError, match="^masactrl cannot be given SAGE's loss besides: p2p, ddpm, turbo-ddpm, "
                                            "flowedit can$"):
        sage.method("masactrl+sage")
    for name in ("p2p+sage+direct", "p2p+", "p2p++sage", "ddpm+direct+sage"):
        with pytest.raises(SettingsError, match="has no inversion"):
            sage.method(name)


def test_a_fit_is_made_again_where_its_settings_change(made):
    model, picture = made.model, small.picture()
    settings = P2P.Settings(steps=2, inversion="null-text", null_text_steps=1)
    path = sage.invert(model, picture, SOURCE, settings)
    with pytest.raises(SettingsError, match="guidance_scale=7.5, not 3"):
        sage.edit(model, picture, SOURCE, TARGET, settings.but(guidance_scale=3.0), trajectory=path)
    with pytest.raises(SettingsError, match="made by null-text, and this edit needs ddim"):
        sage.edit(model, picture, SOURCE, TARGET, settings.but(inversion="direct"), trajectory=path)
    shared = sage.invert(model, picture, SOURCE, sage.method("plain").Settings(steps=2))
    sage.edit(model, picture, SOURCE, TARGET, settings.but(inversion="direct"), trajectory=shared)
    with pytest.raises(SettingsError, match="conventions=consistent, not published"):
        sage.edit(model, picture, SOURCE, TARGET, settings.but(inversion="direct", conventions="published"),
                  trajectory=shared)
