"""EDICT, BDIA and fixed-point inversion: held to renditions of their codes step by step, and to what they promise.

The renditions are written apart from the methods' files, over diffusers' UNet2DConditionModel; their latents are in
float64, as EDICT's and BDIA's own code has them, and in EDICT's code the network too.  BDIA and fixed-point inversion
are in float64 altogether, where differences of up to 1e-13 are left.
"""

from copy import deepcopy
from difflib import SequenceMatcher
from types import SimpleNamespace

import pytest
import torch

import sage
from sage import kit
from sage.errors import SettingsError
from sage.prompts.words import paired
from sage.sampling.levels import DiffusionSchedule, ScheduleParams
from sage.trajectory.kinds import Pair
from tests import small
from tests.methods.noises_original import CONSISTENT
from tests.methods.precise import EMBEDDED, EXACT, in_float64, time_features

EDICT, BDIA, FIXED, SAGE = (sage.method(name) for name in ("edict", "bdia", "fixed-point", "sage"))
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N, FEW = 10, 5
W = 1.5
CLOSE = 1e-4  # relative: what rounding becomes in ten steps there and ten back, measured at up to 3.4e-5 in EDICT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("exact") / "tokenizer")


def calling(unet, dtype):
    """A network in a precision of its own, with latents in float64 around it."""
    def call(z, t, encoder_hidden_states):
        with pytest.MonkeyPatch.context() as patch:
            if dtype == torch.float64:
                patch.setattr(EMBEDDED, time_features)
            return SimpleNamespace(sample=unet(z.to(dtype), t, encoder_hidden_states.to(dtype)).sample.double())

    call.processors = unet
    return call


def latents(model, seed=5, batch=1):
    return torch.randn(batch, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(seed))


def embedded(model, source=SOURCE, target=TARGET):
    return {name: model.embed([model.prompts.parse(prompt)]) for name, prompt in
            (("source", source), ("target", target), ("empty", ""))}


def there_and_back(method, model, z0, source, target, settings, **given):
    """The trajectory and the latents of each step."""
    kept, paths = method.invert, []
    method.invert = lambda job: paths.append(kept(job)) or paths[0]
    try:
        steps = [step.z for step in sage.run(method, model, z0, source, target, settings, **given)]
    finally:
        del method.invert
    return paths[0], steps


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# ---- the originals


class Lending:
    """The last maps of a branch are kept, and given to the next one in their place."""

    def __init__(self, name, where):
        self.cross, self.where, self.last = "attn2" in name, where, None

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if self.where.save:
            self.last = maps
        if self.where.use and self.cross and self.where.cross:
            taken = self.last.index_select(-1, self.where.indices)
            maps = maps * (1 - self.where.mask) + taken * self.where.mask
        if self.where.use and not self.cross and self.where.self_:
            maps = self.last
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))


def alpha(t):
    """The share of signal at a timestep that need not be whole; the originals' own scheduler has it in float64."""
    if t < 0:
        return CONSISTENT[0]
    low, rem = int(t // 1), t - t // 1
    high = low + (rem > 0)
    return CONSISTENT[low] * rem + CONSISTENT[high] * (1 - rem) if rem else CONSISTENT[low]


class Coupled:
    """coupled_stablediffusion of EDICT's code."""

    def __init__(self, unet, texts, steps, strength, p, w, p2p=None, windows=(1.0, 1.0)):
        self.unet, self.p, self.w, self.steps = unet, p, w, steps
        self.texts = {name: text.tokens.double() for name, text in texts.items()}
        self.times = list(range(0, 1000, 1000 // steps))[::-1][steps - int(steps * strength):]
        self.where = SimpleNamespace(save=False, use=False, cross=True, self_=True, mask=None, indices=None)
        self.p2p, self.windows = p2p, windows
        if p2p:
            ids, length = p2p, len(p2p[0])
            self.where.mask, self.where.indices = torch.zeros(length), torch.zeros(length, dtype=torch.long)
            for name, a0, a1, b0, b1 in SequenceMatcher(None, *ids).get_opcodes():
                if name == "equal" or (name == "replace" and a1 - a0 == b1 - b0):
                    self.where.mask[b0:b1] = 1
                    self.where.indices[b0:b1] = torch.arange(a0, a1)

    def net(self, z, t, name):
        return self.unet(z, t, encoder_hidden_states=self.texts[name]).sample

    def eps(self, z, t, name, i):
        nothing = self.net(z, t, "empty")
        if self.p2p and name == "target":
            self.where.save = True
            self.net(z, t, "source")
            self.where.save, self.where.use = False, True
            self.where.cross, self.where.self_ = (i < round(f * len(self.times)) for f in self.windows)
        found = self.net(z, t, name)
        self.where.use = False
        return nothing + self.w * (found - nothing)

    def run(self, z0):
        kept = dict(self.unet.processors.attn_processors)
        self.unet.processors.set_attn_processor({name: Lending(name, self.where) for name in kept})
        try:
            with torch.no_grad():
                return self._run(z0.double())
        finally:
            self.unet.processors.set_attn_processor(kept)

    def _run(self, z0):
        pair, inverted, steps, n = [z0, z0], [z0], [], len(self.times)
        for j, t in enumerate(self.times[::-1]):
            pair[1] = (pair[1] - (1 - self.p) * pair[0]) / self.p
            pair[0] = (pair[0] - (1 - self.p) * pair[1]) / self.p
            quotient = (alpha(t) / alpha(t - 1000 / self.steps)) ** 0.5
            for which in (0, 1):
                which = (which + (n - j - 1) + 1) % 2
                e = self.eps(pair[1 - which], t, "source", None)
                pair[which] = (quotient * pair[which] + (1 - alpha(t)) ** 0.5 * e
                               - quotient * (1 - alpha(t - 1000 / self.steps)) ** 0.5 * e)
            inverted.append(pair[0])
        for i, t in enumerate(self.times):
            quotient = (alpha(t) / alpha(t - 1000 / self.steps)) ** 0.5
            for which in (0, 1):
                which = (which + i) % 2
                e = self.eps(pair[1 - which], t, "target", i)
                pair[which] = (pair[which] / quotient - (1 - alpha(t)) ** 0.5 * e / quotient
                               + (1 - alpha(t - 1000 / self.steps)) ** 0.5 * e)
            pair[0] = self.p * pair[0] + (1 - self.p) * pair[1]
            pair[1] = (1 - self.p) * pair[0] + self.p * pair[1]
            steps.append(pair[0])
        return inverted, steps


CASES = {
    "own attention": ({}, {}),
    "the source's attention": (dict(p2p=True), dict(attention="source")),
    "for a while": (dict(p2p=True, windows=(0.75, 0.25)),
                    dict(attention="source", cross_fraction=0.75, self_fraction=0.25)),
    "all the way": (dict(strength=1.0), dict(strength=1.0)),
    "unmixed": (dict(p=1.0), dict(mixing=1.0)),
    "steps of no whole length": (dict(steps=12), dict(steps=12)),
}
PROMPTS = {"a word": (SOURCE, TARGET), "a word more": (SOURCE, "a dog on a mat or a cat")}


# Of each the greatest distance, more where the noisiest levels divide by least.
PRECISIONS = {"model": (torch.float32, CLOSE, 3 * CLOSE), "float64": (torch.float64, 2e-7, 2e-7)}


@pytest.mark.parametrize("case, prompts, precision", (
    *(pytest.param(case, "a word", "float64", marks=[] if case == "unmixed" else pytest.mark.slow)
      for case in CASES), pytest.param("the source's attention", "a word more", "float64", marks=pytest.mark.slow),
    pytest.param("own attention", "a word", "model", marks=pytest.mark.slow), ("all the way", "a word", "model")))
def test_every_step_is_that_of_edicts_code(made, case, prompts, precision):
    dtype, close, close_all_the_way = PRECISIONS[precision]
    double = calling(deepcopy(made.unet).to(dtype), dtype)
    theirs, ours = CASES[case]
    pair, model = PROMPTS[prompts], made.model
    if theirs.get("p2p"):
        theirs = theirs | {"p2p": [model.prompts.parse(prompt).ids for prompt in pair]}
    texts, z0 = embedded(model, *pair), latents(model)
    expected = Coupled(double, texts, **{"steps": N, "strength": 0.8, "p": 0.93, "w": W} | theirs).run(z0)
    settings = EDICT.preset("published", **{"steps": N, "guidance_scale": W, "precision": precision} | ours)
    path, steps = there_and_back(EDICT, model, z0, *pair, settings, texts=texts)
    assert len(steps) == len(expected[1]) and len(path.latents) == len(expected[0])
    for a, b in zip([*path.latents, *steps], [*expected[0], *expected[1]], strict=True):
        assert distance(a, b) < (close_all_the_way if case == "all the way" else close)


def bdia(unet, texts, z0, steps, strength, gamma, w):
    """BDIA's update as its code has it, written by differences; one prediction for each state."""
    times = [i * (1000 // steps) for i in range(int(steps * strength))]
    levels = [(0, alpha(-1)), *((t, alpha(t)) for t in times)]

    def towards(z, k, to, text):
        a, b = levels[k][1], levels[to][1]
        nothing, found = (unet(z, levels[k][0], encoder_hidden_states=texts[name].tokens.double()).sample
                          for name in ("empty", text))
        e = nothing + w * (found - nothing)
        return (b / a) ** 0.5 * z + (1 - b) ** 0.5 * e - (b / a) ** 0.5 * (1 - a) ** 0.5 * e

    with torch.no_grad():
        path = [z0.double(), towards(z0.double(), 0, 1, "source")]
        for k in range(1, len(times)):
            z = path[k]
            back, forth = towards(z, k, k - 1, "source") - z, towards(z, k, k + 1, "source") - z
            path.append((path[k - 1] - z - back) / gamma + z + forth)
        down = [path[-1], path[-2]]
        for k in range(len(times) - 1, 0, -1):
            z = down[-1]
            up, on = towards(z, k, k + 1, "target") - z, towards(z, k, k - 1, "target") - z
            down.append(gamma * (down[-2] - z) - gamma * up + z + on)
    return path, down[1:]


@pytest.mark.parametrize("gamma, strength", ((1.0, 0.8), (0.7, 1.0)))
def test_every_step_is_that_of_bdias_code(made, gamma, strength):
    model, z0 = made.model, latents(made.model)
    texts, settings = embedded(model), BDIA.preset("published", steps=FEW, gamma=gamma, strength=strength,
                                                   guidance_scale=W)
    with in_float64(model, made.unet):
        expected = bdia(made.unet, texts, z0, FEW, strength, gamma, W)
        path, steps = there_and_back(BDIA, model, z0, SOURCE, TARGET, settings, texts=texts)
    for a, b in zip([*path.latents, *steps], [*expected[0], *expected[1]], strict=True):
        assert distance(a, b) < EXACT


def test_as_published_bdia_has_its_network_in_float64(made):
    model, z0 = made.model, latents(made.model)
    texts, settings = embedded(model), BDIA.preset("published", steps=FEW, guidance_scale=W)
    expected = bdia(calling(deepcopy(made.unet).double(), torch.float64), texts, z0, FEW, 0.8, 1.0, W)
    found = {precision: there_and_back(BDIA, model, z0, SOURCE, TARGET, settings.but(precision=precision), texts=texts)
             for precision in (settings.precision, "model")}
    off = {precision: max(distance(a, b) for a, b in zip([*path.latents, *steps], [*expected[0], *expected[1]],
                                                         strict=True)) for precision, (path, steps) in found.items()}
    assert off["float64"] < 2e-7 < off["model"] < CLOSE


def test_every_step_is_that_of_a_fixed_point(made):
    model, z0 = made.model, latents(made.model)
    texts, settings = embedded(model), FIXED.Settings(steps=FEW, guidance_scale=2.0, fixed_point_rounds=3,
                                                      fixed_point_tolerance=0.0, fixed_point_damping=0.25)
    times = [0, *(1 + 200 * i for i in range(FEW))]
    a = [CONSISTENT[t] for t in times]

    def net(z, t, name):
        return made.unet(z, t, encoder_hidden_states=texts[name].tokens.double()).sample

    with in_float64(model, made.unet), torch.no_grad():
        path, e = [z0.double()], net(z0.double(), 0, "source")
        for k in range(FEW):
            x = lambda e, k=k: (a[k + 1] ** 0.5 * (path[k] - (1 - a[k]) ** 0.5 * e) / a[k] ** 0.5  # noqa: E731
                                + (1 - a[k + 1]) ** 0.5 * e)
            z = x(e)
            for _ in range(3):
                e = net(z, times[k + 1], "source")
                z = 0.75 * x(e) + 0.25 * z
            path.append(z)
        steps = []
        for k in range(FEW, 0, -1):
            c, t = net(z, times[k], "source"), net(z, times[k], "target")
            e = c + 2 * (t - c)
            z = a[k - 1] ** 0.5 * (z - (1 - a[k]) ** 0.5 * e) / a[k] ** 0.5 + (1 - a[k - 1]) ** 0.5 * e
            steps.append(z)
        ours = there_and_back(FIXED, model, z0, SOURCE, TARGET, settings, texts=texts)
    for a, b in zip([*ours[0].latents, *ours[1]], [*path, *steps], strict=True):
        assert distance(a, b) < EXACT


# ---- what they promise


ROUND_TRIPS = {
    "edict": dict(strength=0.8), "edict, source's attention": dict(strength=0.8, attention="source"),
    "edict, guided": dict(guided_from="empty"), "edict, published": dict(conventions="published", guided_from="empty"),
    "bdia": {}, "bdia, guided": dict(guided_from="empty"), "bdia, part of the way": dict(strength=0.5),
    "bdia, damped": dict(gamma=0.5),
    "bdia, published": dict(conventions="published", guided_from="empty", strength=0.8),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_the_way_back_under_the_source_prompt_ends_at_the_picture(made, case):
    method, model, z0 = sage.method(case.partition(",")[0]), made.model, latents(made.model, batch=2)
    settings = method.Settings(steps=N, guidance_scale=3.0, **ROUND_TRIPS[case])
    path, steps = there_and_back(method, model, z0, SOURCE, SOURCE, settings)
    assert distance(path.noise, z0) > 0.1
    if settings.guided_from == "empty" and getattr(settings, "attention", "own") == "own":  # one computation
        assert torch.equal(steps[-1], z0)
        assert all(distance(back, there) < 1e-6 for back, there in zip(steps, path.latents[-2::-1], strict=True))
    else:  # batches of another size are rounded otherwise
        assert distance(steps[-1], z0) < 1e-4


@pytest.mark.parametrize("case", ("edict", "bdia"))
def test_going_back_without_an_edit_gives_the_autoencoders_picture(made, case):
    model = made.model
    trajectory = sage.invert(model, small.picture(), SOURCE, sage.method(case).Settings(steps=N))
    back, bound = (f(model, trajectory).tobytes() for f in (sage.ddim_reconstruction, sage.vae_reconstruction))
    assert back == bound
    plain = sage.invert(model, small.picture(), SOURCE, sage.method("plain").Settings(steps=N))
    assert sage.ddim_reconstruction(model, plain).tobytes() != bound


def test_another_order_of_the_two_latents_leads_elsewhere(made):
    """What takes the first latent first at every step, as if they did not alternate, does not come back."""
    model, z0 = made.model, latents(made.model)
    settings = EDICT.Settings(steps=N, guided_from="empty", guidance_scale=3.0)
    path, _ = there_and_back(EDICT, model, z0, SOURCE, SOURCE, settings)
    turned = Pair(path.origin, path.latents, states=path.states[::-1])
    *_, last = sage.run(EDICT, model, z0, SOURCE, SOURCE, settings, trajectory=turned)
    assert distance(last.z, z0) > 1e-3


@pytest.mark.slow
def test_what_is_mixed_less_grows_less_on_the_way_to_noise(made):
    """Unmixing divides by p: with many steps the latents part, as EDICT's paper says of a small p."""
    apart = {}
    for p in (0.8, 0.93):
        path, _ = there_and_back(EDICT, made.model, latents(made.model), SOURCE, TARGET,
                                 EDICT.Settings(steps=2 * N, mixing=p))
        apart[p] = distance(*path.states)
    assert apart[0.8] > 2 * apart[0.93]


def test_rounds_bring_the_inversion_to_where_sampling_retraces_it(made):
    model, z0 = made.model, latents(made.model)
    lost, left = [], []
    for rounds in (1, 2, 4, 50):
        settings = FIXED.Settings(steps=40, strength=0.1, guidance_scale=1.0, fixed_point_rounds=rounds,
                                  fixed_point_tolerance=1e-6)
        path, steps = there_and_back(FIXED, model, z0, SOURCE, SOURCE, settings)
        left.append(max(r.item() for r in path.residuals))
        lost.append(distance(steps[-1], z0))
    assert left == sorted(left, reverse=True) and left[-1] < 1e-5
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-4 < 1e-3 < lost[0]


def test_a_batch_settles_picture_by_picture(made):
    model, z0 = made.model, torch.cat([latents(made.model), 3 * latents(made.model, 6)])
    settings = FIXED.Settings(steps=40, strength=0.1, fixed_point_tolerance=1e-4)
    together, _ = there_and_back(FIXED, model, z0, SOURCE, TARGET, settings)
    for row in (0, 1):
        alone, _ = there_and_back(FIXED, model, z0[row:row + 1], SOURCE, TARGET, settings)
        assert distance(together.noise[row], alone.noise[0]) < 1e-5
        assert all(abs(a[row] - b[0]) < 1e-5 for a, b in zip(together.residuals, alone.residuals, strict=True))


def test_what_has_not_settled_is_said(made):
    model = made.model
    hasty = FIXED.Settings(steps=4, fixed_point_rounds=1, fixed_point_tolerance=1e-6)
    trajectory = sage.invert(model, small.picture(), SOURCE, hasty)
    for given in (None, trajectory):
        notes = sage.edit(model, small.picture(), SOURCE, TARGET, hasty, trajectory=given).notes
        assert any("of 4 steps of the inversion have not settled" in note for note in notes)
    patient = hasty.but(steps=40, strength=0.1, fixed_point_rounds=100, fixed_point_tolerance=1e-3)
    assert not sage.edit(model, small.picture(), SOURCE, TARGET, patient).notes
    p2p = sage.method("p2p").Settings(steps=4, inversion="fixed-point", fixed_point_rounds=1, blend=None)
    assert "have not settled" in sage.edit(model, small.picture(), SOURCE, TARGET, p2p).notes[0]


def test_an_editor_of_two_branches_takes_a_fixed_points_trajectory(made):
    model, p2p = made.model, sage.method("p2p+fixed-point").recommended(made.model).but(steps=4, cross_level=0)
    settings = FIXED.Settings(steps=4)
    trajectory = sage.invert(model, small.picture(), SOURCE, settings)
    fresh = sage.edit(model, small.picture(), SOURCE, TARGET, p2p)
    again = sage.edit(model, small.picture(), SOURCE, TARGET, p2p, trajectory=trajectory)
    assert torch.equal(fresh.latents, again.latents)
    with pytest.raises(SettingsError, match="strength=0.5"):
        sage.edit(model, small.picture(), SOURCE, TARGET, p2p,
                  trajectory=sage.invert(model, small.picture(), SOURCE, settings.but(strength=0.5)))
    with pytest.raises(SettingsError, match="made by ddim"):
        sage.edit(model, small.picture(), SOURCE, TARGET, p2p, trajectory=sage.invert(
            model, small.picture(), SOURCE, sage.method("plain").Settings(steps=4)))


@pytest.mark.slow
def test_sage_takes_a_fixed_points_way_too(made):
    """It leads back where DDIM's does not, and what is heard on it is what its latents give."""
    model, z0, texts = made.model, latents(made.model), embedded(made.model)
    settings = SAGE.Settings(steps=20, inversion="fixed-point", fixed_point_rounds=60, fixed_point_tolerance=1e-6,
                             guidance_scale=1.0, blend=None, replace=None, reconstruction="none")
    (_, back), (_, off) = (there_and_back(SAGE, model, z0, SOURCE, SOURCE, s)
                           for s in (settings, settings.but(inversion="ddim")))
    assert distance(back[-1], z0) < 1e-3 < 10 * distance(back[-1], z0) < distance(off[-1], z0)

    guided = settings.but(reconstruction="self", guided_steps=2, self_level=0)
    path, _ = there_and_back(SAGE, model, z0, SOURCE, TARGET, guided)
    sites, (up, _) = model.sites().at(path.wanted[0].where), SAGE.edges(model, guided, z0.shape[-2:])
    assert [k for k, heard in enumerate(path.heard[0]) if heard] == [18, 19]
    with kit.listen(sites) as tap:
        model.predict(path.latents[18], up[18][0], texts["source"])
    for heard, again in zip(path.heard[0][18], tap.pop(), strict=True):
        assert torch.allclose(heard.map(), again.map(), atol=1e-6)


def test_one_step_of_bdia_is_said_to_change_nothing(made):
    settings = BDIA.Settings(steps=4, strength=0.25)
    result = sage.edit(made.model, small.picture(), SOURCE, TARGET, settings)
    assert torch.equal(result.latents, result.trajectory.latents[0]) and "comes back as it is" in result.notes[0]
    assert not sage.edit(made.model, small.picture(), SOURCE, TARGET, settings.but(strength=0.5)).notes


def test_tokens_are_paired_as_difflib_pairs_them():
    assert paired((0, 5, 6, 9, 9), (0, 7, 6, 9, 9)) == (0, 1, 2, 3, 4)
    assert paired((0, 5, 6, 9, 9), (0, 7, 8, 6, 9)) == (0, -1, -1, 2, 3)
    assert paired((0, 5, 6, 9, 9), (0, 6, 9, 9, 9))[:3] == (0, 2, 3)


@pytest.mark.parametrize("steps", (10, 12, 30, 50, 1000))
def test_the_grid_of_multiples_steps_as_far_as_edict_does(steps):
    up, down = DiffusionSchedule(ScheduleParams()).multiples(steps)
    assert down == tuple((b, a) for a, b in reversed(up)) and [there.t for _, there in up] == [
        *range(0, 1000, 1000 // steps)]
    for here, there in up:
        assert here.alpha == pytest.approx(alpha(there.t - 1000 / steps).item(), rel=1e-12)


def test_what_cannot_be_is_refused(made, tmp_path):
    model = small.make(tmp_path / "tokenizer", schedule=ScheduleParams(zero_terminal_snr=True)).model
    settings = EDICT.Settings(steps=4, spacing="trailing")
    with pytest.raises(SettingsError, match="no signal to divide by"):
        sage.edit(model, small.picture(), SOURCE, TARGET, settings)
    assert torch.isfinite(sage.edit(model, small.picture(), SOURCE, TARGET, settings.but(strength=0.5)).latents).all()
    path, _ = there_and_back(EDICT, made.model, latents(made.model), SOURCE, TARGET, EDICT.Settings(steps=4))
    with pytest.raises(SettingsError, match="does not hold the two states"):
        next(sage.run(EDICT, made.model, latents(made.model), SOURCE, TARGET, EDICT.Settings(steps=4),
                      trajectory=Pair(path.origin, path.latents)))
    made.model.schedule, kept = SimpleNamespace(levels=made.model.schedule.levels), made.model.schedule
    try:
        for method in (EDICT, BDIA, sage.method("pix2pix-zero")):
            with pytest.raises(SettingsError, match="has no timesteps"):
                next(sage.run(method, made.model, latents(made.model), SOURCE, TARGET, method.preset("published")))
    finally:
        made.model.schedule = kept
