"""What has to hold for every method, on a small network of random weights.  A new method needs one row in ROWS."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sage
from sage.bench.engine import Counted
from sage.editing import check_prompts, edit_batch
from sage.errors import SettingsError
from sage.inversion import exact
from sage.inversion.reconstruction import ddim_reconstruction
from sage.job import Job
from sage.method import DEFAULTS, METHODS, Request, method_of
from sage.pictures.metadata import make_record, settings_in
from sage.prompts.plan import Plan
from sage.settings import Cached, Settings, annotations
from tests import small
from tests.models import flux

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
STEPS = 3
SIZE = (64, 96)


@dataclass(frozen=True)
class Row:
    """What a method's tests need to be told of it.

    Attributes:
        base: settings under which it does all that it can.
        plainly: changes of them under which, at guidance scale 1 and with equal prompts, it reconstructs.
        bound: what it then gives: "inversion" there and back, the same by a "solver" of its own, the "picture" itself,
            or the "reconstruction" that the trajectory holds, to the last bit.
        others: for each setting of its own that is no choice, another value.
        beside: settings without which a change of a setting, or of it to one value ("name=value"), shows nothing.
        silent: changes ("name=value") or settings that show nothing on these networks, and why.
        targets: changes ("name=value") that show only under another target prompt.
        calls: by a clause of its `calls` the settings that it speaks of, and what is counted there: calls of the
            network, and ways back, for 4 steps of which a strength of 0.75 takes 3.
        wordy, asked: settings, and members of a request, with which it asks for all of its `texts`.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    plainly: Mapping[str, Any] = field(default_factory=dict)
    bound: str = "inversion"
    others: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    calls: Mapping[str, tuple[Mapping[str, Any], int, int]] = field(default_factory=dict)
    wordy: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)


# Settings of sage.inversion.anchors
ANCHORED = dict(null_text_steps=2, null_text_rate=0.1, null_text_tolerance=10.0, negative_empty=0.4,
                proximal_quantile=0.6, proximal_rate=0.5, proximal_below=300.0, proximal_margin=0, fixed_point_rounds=1,
                fixed_point_tolerance=0.1, fixed_point_damping=0.5)
WITH_ANCHORS = {"negative_empty": dict(inversion="negative"), "null_text_steps": dict(inversion="null-text"),
                "inversion=null-text": dict(null_text_steps=2),  # where ten take seconds
                **dict.fromkeys(("null_text_rate", "null_text_tolerance", "null_text_branches"),
                                dict(inversion="null-text", null_text_steps=2)),
                **dict.fromkeys(("proximal_quantile", "proximal_of", "proximal_kind", "proximal_hold", "proximal_rate",
                                 "proximal_below", "proximal_margin"), dict(inversion="proximal")),
                "proximal_from": dict(inversion="proximal", null_text_steps=2, null_text_rate=0.1),
                **dict.fromkeys(("fixed_point_rounds", "fixed_point_tolerance", "fixed_point_damping"),
                                dict(inversion="fixed-point"))}
# Networks of random weights make nothing that looks right, and it would be made again.
LENIENT = {"most_spread": 1e9, "most_drift": 1e9}
# Settings of the group Preserved
PRESERVED = dict(preserve_scale=1e5, preserve_limit=0.001, preserve_level=0, preserve_fraction=0.4)
WITH_PRESERVATION = dict.fromkeys(("preserve_limit", "preserve_level", "preserve_fraction"),
                                  dict(preserve_scale=1e5))
BLENDED = dict(blend=("cat", "dog"), blend_threshold=0.8, cross_level=0)
OWN_SPACING = {"spacing": "refused: the steps of a flow have a spacing of their own"}
FEW = dict(steps=4, strength=0.75, guidance_scale=2.0, cross_level=0, self_level=0)
ROUNDS = dict(fixed_point_rounds=3, fixed_point_tolerance=0.0)
OF_FLOWS = {"guidance_by": "of a flow alone: tests/methods/test_flows.py"}
ROWS = {
    "sage": Row(
        calls={"3 N,": ({}, 12, 4), "4 N + 1 with uni": (dict(inversion="uni"), 17, 4),
               "N rounds + 3 N + 1": (dict(inversion="fixed-point", **ROUNDS), 25, 4)},
        base=dict(cross_level=0, reconstruction_scale=10.0, replace_fraction=0.5, blend_fraction=0.5,
                  reweight={"mat": 1.3}, pairing="level", noise_fraction=0.1, **LENIENT),
        plainly=dict(reconstruction="none", blend=None, noise_fraction=0.0, reweight={}),
        others=dict(reconstruction_scale=20.0, loss_gain=300.0, step_limit=0.001, self_level=0, guided_steps=2,
                    replace=None, replace_fraction=0.9, noise_fraction=0.3, reconstruction_mask_floor=0.2,
                    guidance_mask_floor=0.3, retries=1, most_spread=0.01, most_drift=0.01, fixed_point_rounds=1,
                    fixed_point_tolerance=0.1, fixed_point_damping=0.5),
        beside={"most_spread": dict(retries=1), "most_drift": dict(retries=1, reweight={}, steps=4),
                "retries": dict(most_spread=0.01), "decay": dict(guided_steps=4),
                "spare": dict(cross_level=1, self_level=1),
                **dict.fromkeys(exact.Implicit.names(), dict(inversion="fixed-point"))},
        silent={"middle": "it has a level of its own here: tests/test_published.py"},
        targets={"spare=removed": "a mat"}),
    "masactrl": Row(
        calls={"4 N": ({}, 16, 0), "5 N under": (dict(source_text="source"), 20, 0)},
        base=dict(first_step=1, first_block=0.3),
        plainly=dict(source_text="source"), asked=dict(negative="a mat"),  # which is not the source's empty prompt
        others={**ANCHORED, **dict(first_step=2, first_block=0.7, foreground=("cat", "dog"), foreground_threshold=0.6,
                                   cross_level=1)},
        beside={**WITH_ANCHORS, **dict.fromkeys(("foreground", "keys"), dict(source_text="source")),
                "proximal_from": WITH_ANCHORS["proximal_from"] | dict(source_text="source"),
                **dict.fromkeys(("foreground_threshold", "cross_level"), dict(source_text="source",
                                                                              foreground=("cat", "dog"))),
                "negative_empty": dict(inversion="negative", source_text="source"),
                "inversion=negative": dict(source_text="source")}),  # the empty prompt is the source's own
    "pnp": Row(
        calls={"5 N": ({}, 20, 0), "4 N with direct": (dict(inversion="direct"), 16, 0)},
        plainly=dict(feature_fraction=0.0, attention_fraction=0.0), wordy=dict(negative_prompt="a mat"),
        others=dict(feature_fraction=0.2, feature_layer=1, attention_fraction=1.0, first_block=0.8,
                    negative_prompt="dog")),
    "plain": Row(calls={"3 N": ({}, 12, 0), "2 N at": (dict(guidance_scale=1.0), 8, 0)},
                 others=dict(eta=0.5)),
    "p2p": Row(
        calls={"5 N": ({}, 20, 0), "4 N with": (dict(inversion="proximal"), 16, 0),
               "N rounds + 3 N + 1": (dict(inversion="fixed-point", **ROUNDS), 25, 0),
               "17 N at most": (dict(inversion="null-text", null_text_tolerance=0.0), 68, 40)},
        base=dict(cross_level=0, cross_fraction=0.75, self_fraction=0.5, blend=("cat", "dog"), blend_threshold=0.8,
                  reweight={"mat": 1.5}),
        plainly=dict(reweight={}, blend=None),
        others=ANCHORED | PRESERVED | dict(
                    cross_start=0.3, word_starts={"dog": 0.5}, word_fractions={"on": 0.3}, self_start=0.3,
                    self_fraction=1.0, self_level=2, cross_fraction=0.2, blend_start=0.8,
                    blend_except=("mat", "mat"), except_threshold=0.9),
        beside=WITH_ANCHORS | WITH_PRESERVATION | {"except_threshold": dict(blend_except=("mat", "mat")),
                               "word_starts": dict(carry="replace"), "reweight_steps": dict(cross_fraction=0.3)}),
    "edict": Row(calls={"6 strength N": ({}, 18, 0), "8 strength N": (dict(guided_from="empty"), 24, 0),
                        "10 with": (dict(guided_from="empty", attention="source"), 30, 0)},
                 base=dict(attention="source", strength=0.75), bound="picture",
                 others=dict(strength=0.5, mixing=0.8, cross_fraction=0.3, self_fraction=0.3)),
    "bdia": Row(calls={"3 strength N - 2": ({}, 7, 0), "4 strength N - 2": (dict(guided_from="empty"), 10, 0)},
                bound="picture", others=dict(strength=0.5, gamma=0.7)),
    # On networks of random weights the rounds converge at short steps alone, and a gradient of 0.1 is far too much.
    "fixed-point": Row(calls={"strength N (rounds + 2) + 1": (ROUNDS, 16, 0),
                              "(2 rounds + 2) + 2": (dict(guided_from="empty", **ROUNDS), 26, 0)},
                       base=dict(steps=40, strength=0.1, fixed_point_rounds=60, fixed_point_tolerance=1e-5),
                       bound="picture",
                       others=dict(strength=0.15, fixed_point_rounds=1, fixed_point_tolerance=0.1,
                                   fixed_point_damping=0.5)),
    "pix2pix-zero": Row(calls={"6 N": ({}, 24, 8)},
                        base=dict(noise_rounds=1, noise_shifts=2, cross_guidance=1e-3, direction="sentences"),
                        asked=dict(sentences=(("a cat", "the cat"), ("a dog", "the dog"))),
                        others=dict(cross_guidance=0.01, autocorrelation=5.0, divergence=5.0, noise_rounds=2,
                                    noise_shifts=1)),
    "sdedit": Row(calls={"2 strength N": ({}, 6, 0)},
                  plainly=dict(strength=0.0), bound="picture", others=dict(strength=0.3)),
    "ddpm": Row(
        calls={"N + 2 strength N": ({}, 10, 0), "N + 3 strength N": (dict(carry="refine"), 13, 0),
               "N more": (dict(source_guidance_scale=2.0), 14, 0)},
        base=dict(carry="refine", cross_fraction=0.6, self_fraction=0.5, reweight={"mat": 1.5}, self_level=1),
        plainly=dict(reweight={}), bound="picture",
        others=PRESERVED | dict(
                    strength=0.4, source_guidance_scale=2.0, eta=0.5, self_level=0, cross_start=0.4,
                    word_starts={"dog": 0.4}, word_fractions={"on": 0.3}, self_start=0.4, self_fraction=1.0),
        beside=WITH_PRESERVATION | {"word_starts": dict(carry="replace"), "reweight_steps": dict(cross_fraction=0.3),
                                    "carry=none": dict(reweight={})}),
    "turbo": Row(
        calls={"2 N, and N of the inversion network": ({}, 12, 0),
               "3 N with a mask": (dict(blend="auto", cross_level=0), 16, 0), "1 more": (dict(frozen_steps=1), 13, 0),
               "1 a correction": (dict(corrections=2), 14, 0)},
        base=dict(spacing="leading", blend=("cat", "dog"), blend_threshold=0.7, cross_level=0),
        plainly=dict(blend=None), bound="reconstruction", asked=dict(edits=("a pig on a mat", "a cat on a rug")),
        others=dict(strength=0.5, frozen_steps=1, iterations=1, corrections=1, mask_blur=1.0, blend_threshold=0.4)),
    "turbo-ddpm": Row(
        calls={"3 strength N": ({}, 9, 0)},
        base=dict(strength=1.0, spacing="leading"), plainly=dict(last_limit=0.0), bound="picture",
        others=PRESERVED | dict(strength=0.5, shift=100, last_limit=1e-4, last_norm=1e-2, cross_level=1),
        beside=WITH_PRESERVATION | dict.fromkeys(("mask_from", "blend_threshold", "blend_fraction"), BLENDED) | {
            "cross_level": BLENDED | dict(mask_from="attention")}),
    "regiondrag": Row(
        calls={"3 strength N": (dict(guidance_scale=1.0), 9, 0), "4 strength N": ({}, 12, 0)},
        base=dict(strength=0.75), bound="picture", others=dict(strength=0.5),
        silent=dict.fromkeys(("until", "drag_class", "alpha", "margin", "vacated", "unnamed"),
                             "nothing is moved here: tests/methods/test_regiondrag.py")),
    "ledits": Row(
        calls={"N + N (1 + concepts)": ({}, 12, 0),
               "N more": (dict(source_text="source", source_guidance_scale=2.0), 20, 0)},
        base=dict(cross_level=2, mask_quantile=0.5, steps=6), bound="picture", wordy=dict(add={"dog": 3.0}),
        others=dict(add={"dog": 3.0}, remove={"mat": 3.0}, mask_quantile=0.8, quantiles={"dog": 0.9}, warmup=1,
                    cooldown=3, skip=0.6, source_guidance_scale=2.0),
        beside={"quantiles": dict(add={"dog": 3.0}), "guidance_scale": dict(add={})}),
    "infedit": Row(
        calls={"5 strength N": ({}, 15, 0), "4 strength N": (dict(mutual="no"), 12, 0)},
        base=dict(cross_level=0, blend=("cat", "dog"), blend_threshold=0.8, reweight={"mat": 1.5}, steps=6,
                  strength=0.9),
        plainly=dict(reweight={}, blend=None), bound="picture",
        others=dict(strength=0.5, source_guidance_scale=2.0, eta=0.5, self_level=2, cross_start=0.4,
                    word_starts={"dog": 0.4}, word_fractions={"on": 0.3}, self_start=0.4, self_fraction=1.0),
        beside={"word_starts": dict(carry="replace"), "reweight_steps": dict(cross_fraction=0.3)}),
    "flowedit": Row(
        calls={"3 strength N": ({}, 9, 0), "4 strength N": (dict(source_guidance_scale=2.0), 12, 0),
               "as often for each": (dict(averages=2), 18, 0)},
        plainly=dict(source_guidance_scale=1.0), bound="picture",
        others=PRESERVED | dict(strength=0.3, source_guidance_scale=2.0, averages=2, sampled_fraction=0.3),
        beside=WITH_PRESERVATION, silent=OF_FLOWS),
    "eedit": Row(
        calls={"strength N / inv_skip + 2 strength N": (dict(inv_skip=2), 8, 0)},
        base=dict(stop=2), plainly=dict(eta=1.0, stop=4), bound="picture",
        others=dict(eta=0.3, gamma=0.2, start=1, stop=3, strength=0.5, source_guidance_scale=3.0, fwd_skip=2),
        beside={"source_guidance_scale": dict(invert_under="source"),
                **dict.fromkeys(("whole_by", "reuse"), dict(steps=7, inv_skip=2, fresh_threshold=2))},
        silent={**OF_FLOWS,
                **dict.fromkeys(("mask_timestep", "drag_class", "t_prime_ratio", "alpha", "put_back", "blur", "exact",
                                 "region_bonus", "mask_cells", "vacated", "unnamed"),
                                "no mask and nothing moved here: tests/methods/test_eedit.py"),
                **dict.fromkeys(("grid", "text_offset", "twice_gated", "held_gates", "held_modulation"),
                                "of flows: likewise"),
                "cache_type": "both draw the same", "invert_under=empty": "the default"}),
    "uni-edit": Row(calls={"3 strength N + 1": ({}, 10, 0)},
                    base=dict(strength=0.8), others=dict(strength=0.3)),
    "rf-inversion": Row(
        calls={"3 strength N": ({}, 9, 0), "2 strength N": (dict(guidance_scale=1.0), 6, 0),
               "strength N more": (dict(source_guidance_scale=2.0), 12, 0)},
        base=dict(stop=0.75, decay=1.0), plainly=dict(gamma=0.0, eta=0.0, source_guidance_scale=1.0),
        others=dict(strength=0.5, gamma=0.2, eta=0.5, start=0.5, stop=0.5, decay=0.0, source_guidance_scale=2.0),
        silent=OF_FLOWS | {"conventions": "refused: of a flow alone"}),
    "rf-solver": Row(
        calls={"4 strength N and 2": (dict(guidance_by="input", shared_steps=1), 14, 0),
               "6 strength N": (dict(shared_steps=1), 20, 0)},
        base=dict(shared_steps=2), plainly=dict(shared_steps=0), bound="solver",
        others=dict(strength=0.5, shared_steps=1, first_block=0.1), silent=OWN_SPACING),
    "fireflow": Row(
        calls={"2 strength N + 2 and 1": (dict(guidance_by="input"), 9, 0), "3 strength N + 3 and 1": ({}, 13, 0)},
        base=dict(shared_steps=2), plainly=dict(shared_steps=0), bound="solver",
        others=dict(strength=0.5, shared_steps=1, first_block=0.1), silent=OWN_SPACING),
    "kv-edit": Row(
        calls={"strength N whole, and 2 strength N": ({}, 9, 0)},
        others=dict(strength=0.5, source_guidance_scale=2.0, renewed=0.5),
        silent=OWN_SPACING | dict.fromkeys(("pairing", "conventions", "mask_cells", "attn_scale"),
                                           "shows where there is a mask: tests/methods/test_flows.py")),
}
UNPUBLISHED = {"plain": "a baseline: its paper edits no picture",
               "regiondrag": "its paper's has an IP-Adapter: docs/eedit.md says what differs"}
OTHERS = dict(steps=5, eta=0.7, guidance_scale=3.0, size=96, seed=1, reweight={"dog": 3.0}, cross_level=1,
              blend=("mat", "mat"), blend_fraction=0.25, blend_threshold=0.6, cross_fraction=0.2)
BESIDE = {"seed": dict(encode="sample"), "blend_match": dict(blend=("on a", "on a")), "fit": dict(size=96)}


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    model = small.make(tmp_path_factory.mktemp("every") / "tokenizer").model
    model.inversion = small.inversion(model)
    return model


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return flux.make(tmp_path_factory.mktemp("every flow") / "words", guidance=False)[0]


@pytest.fixture
def model(diffusion, flow, name):
    """A network that the method fits: a flow only where it fits no other (tests/models/test_flux.py has all)."""
    return flow if sage.method(name).fits(diffusion) else diffusion


@pytest.fixture(scope="module")
def edited(diffusion, flow):
    """The edit of the picture, made once for all tests that compare with it."""
    @cache
    def result_of(key: str, name: str, target: str, size: tuple[int, int]) -> sage.EditResult:
        model = flow if sage.method(name).fits(diffusion) else diffusion
        return sage.edit(model, small.picture(*size), SOURCE, target,
                         sage.method(name).Settings.from_dict(json.loads(key)))

    return lambda settings, target=TARGET, size=SIZE: result_of(json.dumps(settings.as_dict()),
                                                                method_of(settings).name, target, size)


def names() -> list[str]:
    return [name for name in METHODS if sage.method(name).edits]


every = pytest.mark.parametrize("name", names())


def settings_of(name: str, **changes: Any) -> Settings:
    found = sage.method(name).Settings
    given = {"steps": STEPS, "guidance_scale": 2.0, **ROWS[name].base, **changes}
    if "guidance_scale" not in found.names():  # the words alone make the edit
        given.pop("guidance_scale")
    return found.from_dict(given)


def picture(seed: int = 0) -> Image.Image:
    return small.picture(*SIZE, seed)


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_every_method_has_a_row():
    assert set(ROWS) == set(names())


@every
def test_it_says_what_it_is(name):
    found = sage.method(name)
    assert found.name == name and found.title and found.about and found.calls and found.reads
    assert found.paper.count(".") == 1 and len(found.paper) == 10
    assert all(f.metadata["help"] for f in found.Settings.fields())
    assert all(found.preset(preset) for preset in found.presets)
    assert all(found.as_published(task) and task in DEFAULTS for task in found.published)
    assert ("published" in found.presets) != (name in UNPUBLISHED)
    assert type(found).__doc__ and found.Settings.__doc__


@every
def test_the_network_is_asked_as_often_as_it_says(model, name):
    found = sage.method(name)
    z0 = torch.randn(1, *model.latent_shape((32, 32)), generator=torch.Generator().manual_seed(3))
    for clause, (changes, calls, gradients) in ROWS[name].calls.items():
        counted, given = Counted(model), {**FEW, **changes}
        settings = found.defaults(model).but(**{key: v for key, v in given.items() if key in found.Settings.names()})
        list(sage.run(name, counted, z0, SOURCE, TARGET, settings))
        assert clause in found.calls and counted.counted.tolist() == [calls, gradients], clause


@every
def test_equal_prompts_and_scale_one_reconstruct(model, name):
    settings = settings_of(name, guidance_scale=1.0, **ROWS[name].plainly)
    result = sage.edit(model, picture(), SOURCE, SOURCE, settings)
    clean = result.trajectory.latents[0]
    if ROWS[name].bound == "picture":
        assert distance(result.latents, clean) < 1e-4
    elif ROWS[name].bound == "reconstruction":
        assert torch.equal(result.latents, result.trajectory.reconstructions[-1])
        assert distance(result.latents, clean) > 1e-3
    else:  # to what inversion and sampling alone make of it
        back = there_and_back(model, result.trajectory, ROWS[name].bound == "solver")
        assert distance(back, clean) > 1e-3
        assert distance(result.latents, back) < 1e-4
        theirs = ddim_reconstruction(model, result.trajectory)
        assert max(abs(a - b) for a, b in zip(result.image.tobytes(), theirs.tobytes(), strict=True)) <= 1


def there_and_back(model, path, solver: bool = False) -> Tensor:
    from sage.sampling.steps import walk
    found, source, size = sage.method(path.origin.method), path.origin.source[0], tuple(path.noise.shape[-2:])
    with torch.no_grad():
        if solver:
            *_, z = found.back(Job(found, model, path.config, [Plan(source, source)], path.latents[0]), path)
            return z
        _, down = found.edges(model, path.config, size)
        text = model.embed(path.origin.source)
        *_, z = walk(lambda z, level: model.predict(z, level, text), path.noise, down)
    return z


@every
def test_pictures_of_a_batch_are_each_as_if_alone(model, name):
    settings = settings_of(name)
    of_words = {dict: {}, tuple: "auto"}  # in place of the words of one prompt
    kinds = {name: type(getattr(settings, name)) for name in settings.names()}
    settings = settings.but(**{name: of_words[kind] for name, kind in kinds.items() if kind in of_words})
    pairs = [(SOURCE, TARGET), ("a dog or a mat", "a mat")]
    images, plans = [picture(seed) for seed in range(2)], [check_prompts(model, *pair, settings) for pair in pairs]
    together = edit_batch(model, images, plans, settings)
    for image, pair, ours in zip(images, pairs, together, strict=True):
        alone = sage.edit(model, image, *pair, settings)
        assert distance(ours.latents, alone.latents) < 1e-3
        assert ours.notes == alone.notes
        if alone.masks:
            assert all(map(torch.equal, ours.masks, alone.masks))
        else:  # it may change everywhere, beside others
            assert all((m == 1).all() for m in ours.masks)


@every
def test_a_trajectory_from_a_file_gives_what_a_fresh_one_gives(model, edited, name, tmp_path):
    settings = settings_of(name)
    fresh = edited(settings)
    target = TARGET if sage.method(name).follows_target(settings) else None
    made = sage.invert(model, picture(), SOURCE, settings, target=target)
    loaded = sage.load_trajectory(sage.save_trajectory(made, tmp_path / "t.safetensors", model), model)
    again = sage.edit(model, picture(), SOURCE, TARGET, settings, trajectory=loaded)
    assert torch.equal(again.latents, fresh.latents) and again.image.tobytes() == fresh.image.tobytes()


# ---- every setting does something


def _swept() -> list[Any]:
    """One other value of each setting; of what methods share on the first that has it. All else is slow."""
    swept, first = [], dict[tuple[type, str], str]()
    for name in names():
        owner, row = sage.method(name).Settings, ROWS[name]
        for f in owner.fields():
            if f.name in Cached.names():
                continue  # the same for every method: below, and tests/guidance/test_caching.py
            now = getattr(settings_of(name), f.name)
            values = [v for v in f.metadata["choices"] if v != now] or (
                [not now] if annotations(owner)[f.name] is bool else [{**OTHERS, **row.others}.get(f.name, "missing")])
            values = [v for v in values if not {f.name, f"{f.name}={v}"} & set(row.silent)]
            told_by = next(c for c in owner.__mro__ if f.name in vars(c).get("__annotations__", {}))
            late = values and first.setdefault((told_by, f.name), name) != name
            swept += [pytest.param(name, f.name, value, id=f"{name}-{f.name}={value}",
                                   marks=[pytest.mark.slow] if late or value != values[0] else []) for value in values]
    return swept


@pytest.mark.parametrize("name, setting, value", _swept())
def test_every_setting_changes_something(edited, name, setting, value):
    size = SIZE if setting == "most_drift" else (32, 48)  # of a small picture nothing drifts

    def told(settings, target):
        result = edited(settings, target, size)
        return result.image.tobytes(), result.latents.numpy().tobytes(), result.notes

    assert value != "missing", f"ROWS[{name!r}].others says no other value of {setting}"
    known = {**BESIDE, **ROWS[name].beside}
    settings = settings_of(name, **known.get(f"{setting}={value}", known.get(setting, {})))
    assert getattr(settings, setting) != value
    target = ROWS[name].targets.get(f"{setting}={value}", TARGET)
    assert told(settings, target) != told(settings.but(**{setting: value}), target)


# ---- a cache


@every
def test_a_cache_of_whole_steps_is_none_to_the_bit(edited, name):
    settings = settings_of(name, cache="none")
    dense, ours = edited(settings), edited(settings.but(cache="eedit", inv_skip=1, fresh_threshold=1))
    assert torch.equal(ours.latents, dense.latents) and ours.image.tobytes() == dense.image.tobytes()


@pytest.mark.slow
@every
def test_every_method_edits_with_a_cache(model, name):
    dense = settings_of(name)
    settings = dense.but(cache="eedit", inv_skip=2, fresh_threshold=3)
    result = sage.edit(model, picture(), SOURCE, TARGET, settings)
    assert torch.isfinite(result.latents).all() and hooks(model) == 0
    again = sage.edit(model, picture(), SOURCE, TARGET, type(settings).from_dict(settings.as_dict()))
    assert torch.equal(again.latents, result.latents)


# ---- nothing is left behind


def hooks(model) -> int:
    parts = [part for part in vars(model).values() if isinstance(part, nn.Module)]
    modules = itertools.chain.from_iterable(part.modules() for part in parts)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) + len(m._backward_pre_hooks)
               + ("forward" in vars(m)) for m in modules)


@every
def test_no_hook_is_left_on_any_module(model, name):
    settings = settings_of(name)

    def stop(step: sage.Step) -> None:
        raise KeyboardInterrupt

    assert hooks(model) == 0
    sage.edit(model, picture(), SOURCE, TARGET, settings)
    assert hooks(model) == 0
    with pytest.raises(KeyboardInterrupt):
        sage.edit(model, picture(), SOURCE, TARGET, settings, watch=stop)
    assert hooks(model) == 0 and torch.is_grad_enabled()
    assert not any(p.requires_grad or p.grad is not None for p in model.network.parameters())


@every
def test_steps_left_in_the_middle_leave_nothing(model, name):
    steps = sage.run(name, model, small_latents(model), SOURCE, TARGET, settings_of(name))
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()
    assert hooks(model) == 0 and torch.is_grad_enabled()


# ---- repeated, and held to what was recorded


@every
def test_the_record_repeats_the_edit_to_the_byte(model, edited, name, tmp_path):
    path = tmp_path / "in.png"
    picture().save(path)
    settings = settings_of(name)
    result = edited(settings)
    known_as = {"name": "in.png", "sha256": "0" * 64}
    record = json.loads(json.dumps(make_record(model, SOURCE, TARGET, settings, known_as, savings=result.savings)))
    read = settings_in(record)
    assert read == settings and record["method"] == name
    again = sage.edit(model, Image.open(path), record["source"], record["target"], read, savings=result.savings)
    assert again.image.tobytes() == result.image.tobytes() and torch.equal(again.latents, result.latents)


def small_latents(model, batch: int = 1) -> Tensor:
    return torch.randn(batch, *model.latent_shape((64, 96)), generator=torch.Generator().manual_seed(3))


@every
def test_given_noises_and_embeddings_are_those_drawn_and_made(model, name, monkeypatch):
    """Without them the network is given no word: its encoder is asked for the empty prompt alone, to know its width."""
    row, z0, tagged, texts, embedded = ROWS[name], small_latents(model), dict[Any, Any](), dict[str, Any](), []
    settings, request = settings_of(name, **row.wordy), Request(SOURCE, TARGET, **row.asked)
    for draw in ("noise", "whole"):
        ordinary = getattr(Job, draw)
        monkeypatch.setattr(Job, draw, lambda self, *tag, ordinary=ordinary: kept(tag, ordinary(self, *tag)))

    def kept(tag, value):
        tagged[tag] = torch.as_tensor(value)
        return value

    def asked(self, which, embed, ordinary=Job._text):
        texts[which] = ordinary(self, which, embed)
        return texts[which]

    def embed(prompts):
        assert [prompt.text for prompt in prompts] == [""] and not embedded, f"embeds {prompts[0].text!r}"
        embedded.append(prompts)
        return width

    monkeypatch.setattr(Job, "_text", asked)
    want = [step.z for step in sage.run(name, model, z0, SOURCE, TARGET, settings, request=request)]
    monkeypatch.undo()
    drawn = list(tagged.values())
    assert bool(drawn) == sage.method(name).random(settings)
    assert all(any(which == told or (told[-1] == ":" and which.startswith(told)) for which in texts)
               for told in sage.method(name).texts)
    width = model.embed([model.prompts.parse("")])
    monkeypatch.setattr(model, "embed", embed)
    got = [step.z for step in sage.run(name, model, z0, SOURCE, TARGET, settings, drawn or None, texts=texts,
                                       request=request)]
    monkeypatch.undo()
    assert len(got) == len(want) and all(map(torch.equal, got, want))
    with pytest.raises(SettingsError, match=f"no method reads an embedded prompt 'sorce': {name} reads source"):
        next(sage.run(name, model, z0, SOURCE, TARGET, settings, texts={"sorce": width}))
    if drawn:
        with pytest.raises(SettingsError, match="asks for more"):
            list(sage.run(name, model, z0, SOURCE, TARGET, settings, drawn[:-1], request=request))
        other = [step.z for step in sage.run(name, model, z0, SOURCE, TARGET, settings, [
            n.flip(-1) if n.dim() else 1 + n % 3 for n in drawn], request=request)]
        assert not torch.equal(other[-1], want[-1])


# ---- what does not fit


@every
def test_what_does_not_fit_is_refused_in_one_line(model, name, tmp_path):
    settings = settings_of(name)
    found, image = sage.method(name), picture()
    trajectory = sage.invert(model, image, SOURCE, settings, target=TARGET if found.follows_target(settings) else None)
    unread = {"mask": image, "reference": image, "points": ((0, 0, 1, 1),), "edits": ("a",),
              "sentences": (("a",), ("b",))}
    shape = (1, 1, *small_latents(model).shape[2:])
    attempts = [
        lambda: sage.edit(model, image, "", TARGET, settings),
        lambda: sage.edit(model, image, SOURCE, " ", settings),
        lambda: sage.edit(model, image, SOURCE, "word " * 200, settings),
        lambda: sage.edit(model, Path("a.png"), SOURCE, TARGET, settings),
        lambda: sage.edit(model, image, SOURCE, TARGET, settings, method=next(n for n in METHODS if n != name)),
        lambda: sage.edit(model, picture(1), SOURCE, TARGET, settings, trajectory=trajectory),
        lambda: sage.edit(model, image, "a pig on a mat", TARGET, settings, trajectory=trajectory),
        lambda: sage.edit(model, image, SOURCE, TARGET, settings.but(spacing="trailing"), trajectory=trajectory),
        lambda: settings.but(nonsense=1), lambda: settings.but(steps=0), lambda: settings.but(steps="many"),
        lambda: found.preset("nonsense"), lambda: sage.method(f"{name}+nonsense"),
        *(lambda given=given: sage.edit(model, image, SOURCE, TARGET, settings, **{given: unread[given]})
          for given in unread if given not in found.reads),
        *([lambda: list(sage.run(name, model, small_latents(model), SOURCE, TARGET, settings, [torch.zeros(shape)]))]
          if found.random(settings) else [])]
    for attempt in attempts:
        with pytest.raises(sage.SageError) as error:
            attempt()
        said = str(error.value)
        assert "\n" not in said and 10 < len(said) < 1000, said


def test_what_is_read_of_a_request_is_a_member_of_it():
    for name in names():
        assert sage.method(name).reads <= set(Request.__dataclass_fields__)
