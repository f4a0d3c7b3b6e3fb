"""MasaCtrl and plug-and-play are held to renditions of their original code, step by step.

The renditions are written apart from the methods' files, over diffusers' UNet2DConditionModel.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sage
from sage.editing import check_prompts
from sage.errors import SettingsError
from sage.job import TEXTS
from tests import small
from tests.methods.p2p_original import ALPHAS, ddim, word_positions
from tests.methods.precise import EXACT, in_float64

MASACTRL, PNP = sage.method("masactrl"), sage.method("pnp")
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("pnp") / "tokenizer")


class Attention:
    """A processor for every layer, numbered in the order of a forward pass; `edit` makes (q, k, v) the output."""

    def __init__(self, owner, name: str, number: int):
        self.owner, self.cross, self.number = owner, "attn2" in name, number

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                   for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        out = self.owner.edit(q, k, v, attn.scale, self.cross, self.number)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def attend(q, k, v, scale, allowed=None):
    scores = q @ k.transpose(-1, -2) * scale
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


class Original:
    """What both share: inversion with the label ahead, and hooks on the layers."""

    def __init__(self, made, layers: int):
        self.unet, self.step, self.on = made.unet, 0, False
        names = [name for part in ("down_blocks", "mid_block", "up_blocks") for name in self.unet.attn_processors
                 if name.startswith(part)]
        numbers = {name: n for n, name in enumerate(n for n in names if "attn1" in n)}
        self.layers = layers
        self.processors = {name: Attention(self, name, numbers.get(name, -1)) for name in self.unet.attn_processors}

    def net(self, z, t, texts):
        return self.unet(z, t, encoder_hidden_states=texts).sample

    def inverted(self, z0, text):
        path, k = [z0], 1000 // N
        for t in range(1, 1000, k):
            path.append(ddim(path[-1], self.net(path[-1], t, text), ALPHAS[max(t - k, 0)], ALPHAS[t]))
        return path

    def run(self, *arguments):
        kept = dict(self.unet.attn_processors)
        self.unet.set_attn_processor(self.processors)
        try:
            with torch.no_grad():
                return self.sampled(*arguments)
        finally:
            self.unet.set_attn_processor(kept)


class MasaCtrl(Original):
    def __init__(self, made, layers, first_layer, first_step=4, direct=False, union=False, marks=None, source="empty",
                 masks=None, quantile=None, kind="l0"):
        super().__init__(made, layers)
        self.quantile, self.kind = quantile, kind
        self.masks = masks
        self.first_layer, self.first_step, self.direct, self.union = first_layer, first_step, direct, union
        self.marks, self.source, self.heard = marks, source, []

    def edit(self, q, k, v, scale, cross, number):
        if self.on and cross and q.shape[2] == 16:
            self.heard.append((q @ k.transpose(-1, -2) * scale).softmax(-1).mean(1))
        if cross or not self.on or number < self.first_layer or self.step < self.first_step:
            return attend(q, k, v, scale)
        out = []
        for row in range(4):
            if row % 2 == 0:
                out.append(attend(q[row:row + 1], k[row:row + 1], v[row:row + 1], scale))
                continue
            keys, values = (torch.cat([t[row - 1:row], t[row:row + 1]], 2) if self.union else t[row - 1:row]
                            for t in (k, v))
            if self.masks is not None:
                out.append(self._within_masks(q[row:row + 1], keys, values, scale))
                continue
            if self.marks is None:
                out.append(attend(q[row:row + 1], keys, values, scale))
                continue
            side = int(q.shape[2] ** 0.5)
            m_s, m_t = (self._mask(which, side) for which in (2, 3))
            every = torch.cat([m_s, m_t]) if self.union else m_s
            fore, back = (attend(q[row:row + 1], keys, values, scale, every == inside) for inside in (True, False))
            m = m_t.float()[:, None]
            out.append(fore * m + back * (1 - m))
        return torch.cat(out)

    def _within_masks(self, q, k, v, scale):
        """The original's arithmetic: what is left out is given the least number, the foreground's keys 1 more."""
        side = int(q.shape[2] ** 0.5)
        m_s, m_t = (F.interpolate(m[None, None], (side, side)).flatten() for m in self.masks)
        scores, least = q @ k.transpose(-1, -2) * scale, torch.finfo(q.dtype).min
        fore, back = ((scores + m_s.masked_fill(m_s == out, least)).softmax(-1) @ v for out in (0, 1))
        return fore * m_t[:, None] + back * (1 - m_t[:, None])

    def _proximal(self, change):
        threshold = change.abs().quantile(self.quantile) if self.quantile > 0 else -self.quantile
        change = change - change.clamp(-threshold, threshold)
        if self.kind == "l1":
            change = torch.where(change > 0, change - threshold, change)
            change = torch.where(change < 0, change + threshold, change)
        return change

    def _mask(self, row, side):
        seen = torch.stack([h[row] for h in self.heard]).mean(0)[:, self.marks[row - 2]].sum(-1)
        seen = (seen - seen.min()) / (seen.max() - seen.min())
        return F.interpolate((seen >= 0.1).float().reshape(1, 1, 4, 4), (side, side)).flatten() > 0.5

    def sampled(self, z0, texts, w):
        k, under = 1000 // N, texts[self.source]
        path = self.inverted(z0, under)
        z, found = path[-1].repeat(2, 1, 1, 1), []
        self.on = True
        for self.step, t in enumerate(reversed(range(1, 1000, k))):
            self.heard = []
            away = texts.get("away", texts["empty"])
            of_source = away if self.quantile is None else under
            eps = self.net(z.repeat(2, 1, 1, 1), t, torch.cat([of_source, away, under, texts["target"]]))
            change, scales = eps[2:] - eps[:2], w
            if self.quantile is not None:  # the source at scale 1; of the target's guidance what is small is left out
                change, scales = torch.cat([change[:1], self._proximal(change[1:])]), torch.tensor([1.0, w])
                scales = scales[:, None, None, None]
            z = ddim(z, eps[:2] + scales * change, ALPHAS[t], ALPHAS[max(t - k, 0)])
            if self.direct:
                z = torch.cat([path[-2 - self.step], z[1:]])
            found.append(z[1:])
        return path, found


class PnP(Original):
    def __init__(self, made, layers, first_layer, direct, resnet):
        super().__init__(made, layers)
        self.first_layer, self.direct, self.conv = first_layer, direct, resnet.conv2

    def edit(self, q, k, v, scale, cross, number):
        if self.on and not cross and number >= self.first_layer and self.step < int(N * 0.5):
            q, k = q[[0, 0, 0]], k[[0, 0, 0]]
        return attend(q, k, v, scale)

    def sampled(self, z0, texts, w):
        k = 1000 // N
        times = [*range(1, 1000, k)]
        path = self.inverted(z0, texts["source"])
        lend = path[1:]
        if not self.direct:
            z, lend = path[-1], []
            for t in reversed(times):
                z = ddim(z, self.net(z, t, texts["source"]), ALPHAS[t], ALPHAS[max(t - k, 0)])
                lend.insert(0, z)
        hook = self.conv.register_forward_hook(
            lambda module, given, out: out[[0, 0, 0]] if self.on and self.step < int(N * 0.8) else None)
        z, found, self.on = lend[-1], [], True
        for self.step, t in enumerate(reversed(times)):
            eps = self.net(torch.cat([lend[-1 - self.step], z, z]), t,
                           torch.cat([texts["empty"], texts["negative"], texts["target"]]))
            z = ddim(z, eps[1:2] + w * (eps[2:] - eps[1:2]), ALPHAS[t], ALPHAS[max(t - k, 0)])
            found.append(z)
        hook.remove()
        return path, found


def worst(made, method, theirs, settings, request=None, precise=False):
    model = made.model
    z0 = torch.randn(1, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(5))
    texts = {name: model.embed([model.prompts.parse(prompt)]) for name, prompt in
             (("source", SOURCE), ("target", TARGET), ("empty", ""), ("negative", "a mat"))}
    theirs_of = {name: text.tokens for name, text in texts.items()}
    texts = {name: text for name, text in texts.items() if name in (*TEXTS, *method.texts)}
    if request is not None and request.negative:
        texts = {name: texts[name] for name in ("source", "target")}
        theirs_of["away"] = theirs_of["negative"] = model.embed([model.prompts.parse(request.negative)]).tokens
    with in_float64(made.model, made.unet) if precise else nullcontext():
        given = (z0.double(), {name: text.double() for name, text in theirs_of.items()}) if precise else (z0, theirs_of)
        path, found = theirs.run(*given, settings.guidance_scale)
        ours = [step.z for step in sage.run(method, model, z0, SOURCE, TARGET, settings, texts=texts, request=request)]
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, found, strict=True))


LAYERS = 10  # of the small network: three on the way down, one in the middle, six on the way up
MARKS = dict(foreground=("cat", "dog"), source_text="source")


@pytest.mark.parametrize("theirs, ours", (
    ({}, {}), (dict(direct=True), dict(inversion="direct")),
    (dict(direct=True, source="source"), dict(inversion="direct", source_text="source")),
    (dict(union=True), dict(keys="both")),
    (dict(marks=True, source="source"), MARKS),
    (dict(marks=True, source="source", union=True), MARKS | dict(keys="both")),
    (dict(first_step=0, first_layer=0), dict(first_step=0, first_block=0.0))))
def test_every_step_of_masactrl_is_that_of_the_original_code(made, theirs, ours):
    if "marks" in theirs:
        theirs = theirs | {"marks": [word_positions(made.tokenizer, SOURCE, "cat"),
                                     word_positions(made.tokenizer, TARGET, "dog")]}
    settings = MASACTRL.preset("published", **{"steps": N, "guidance_scale": 2.0, "first_block": 0.6} | ours)
    original = MasaCtrl(made, LAYERS, **{"first_layer": 6} | theirs)
    assert worst(made, MASACTRL, original, settings, precise=True) < EXACT


@pytest.mark.parametrize("theirs, ours", (
    pytest.param(dict(quantile=0.6), {}, marks=pytest.mark.slow),
    pytest.param(dict(quantile=0.6, kind="l1"), dict(proximal_kind="l1"), marks=pytest.mark.slow),
    (dict(quantile=-0.3), dict(proximal_quantile=-0.3))))
def test_every_step_of_proximal_masactrl_is_that_of_its_authors_code(made, theirs, ours):
    """The quantile is of the target's guidance alone, away from the empty prompt; the source is as it is predicted."""
    settings = MASACTRL.preset("proximal", steps=N, guidance_scale=2.0, first_block=0.6, **ours)
    for of, least, most in (("target", 0.0, 2e-5), ("both", 1e-3, 10.0)):
        original = MasaCtrl(made, LAYERS, first_layer=6, source="source", **theirs)
        assert least <= worst(made, MASACTRL, original, settings.but(proximal_of=of)) < most


@pytest.mark.parametrize("preset, seen, size, bytes_of", (
    ("published", lambda image: image.resize((64, 64), Image.Resampling.LANCZOS), (128, 64), np.trunc),
    ("proximal", lambda image: image.crop((32, 0, 96, 64)), (64, 64), np.rint)))
def test_masactrl_brings_pictures_to_size_and_back_as_its_codes_do(made, preset, seen, size, bytes_of):
    """Its own squashes them and truncates what comes out; that of its proximal kind crops, and rounds."""
    settings, image = MASACTRL.preset(preset, steps=1), small.picture(128, 64)
    result = sage.edit(made.model, image, SOURCE, TARGET, settings)
    alone = sage.edit(made.model, seen(image), SOURCE, TARGET, settings)
    assert result.image.size == size and torch.equal(result.latents, alone.latents)
    values = made.model.decode(alone.latents)[0].permute(1, 2, 0).detach().numpy() * np.float32(127.5) + 127.5
    assert np.array_equal(np.asarray(alone.image), bytes_of(values.clip(0, 255)))


def region(top: int, left: int, height: int, width: int) -> torch.Tensor:
    """A mask of 64 x 64 pixels."""
    mask = torch.zeros(64, 64)
    mask[top:top + height, left:left + width] = 1
    return mask


# The smaller one has a place at 16 x 16 and none at 8 x 8: there no key is left for the foreground.
MASKS = {"large": (region(10, 10, 30, 30), region(20, 16, 30, 30)), "small": (region(4, 4, 3, 3), region(8, 4, 30, 20))}


@pytest.mark.parametrize("direct", (False, True))
@pytest.mark.parametrize("masks", MASKS)
def test_masks_that_are_given_are_used_as_in_the_original_code(made, masks, direct):
    settings = MASACTRL.preset("published", steps=N, guidance_scale=2.0, first_block=0.6,
                               inversion="direct" if direct else "ddim")
    request = sage.Request(SOURCE, TARGET, foregrounds=tuple(
        Image.fromarray((m * 255).byte().numpy()) for m in MASKS[masks]))
    original = MasaCtrl(made, LAYERS, first_layer=6, direct=direct, masks=MASKS[masks])
    assert worst(made, MASACTRL, original, settings, request) < 2e-5


@pytest.mark.parametrize("foregrounds, said", (
    ((Image.new("L", (64, 64)),), "there are 1 foregrounds: give two pictures"),
    ((torch.zeros(64, 64),) * 2, "the foreground is Tensor: give a PIL picture")))
def test_foregrounds_that_are_none_are_refused(made, foregrounds, said):
    with pytest.raises(SettingsError, match=said):
        sage.edit(made.model, small.picture(), SOURCE, TARGET, MASACTRL.Settings(steps=1), foregrounds=foregrounds)


@pytest.mark.slow
def test_a_negative_prompt_is_guided_from_and_no_more(made):
    """The source branch stays under the empty prompt."""
    request = sage.Request(SOURCE, TARGET, negative="a mat")
    settings = MASACTRL.preset("published", steps=N, guidance_scale=2.0, first_block=0.6)
    assert worst(made, MASACTRL, MasaCtrl(made, LAYERS, first_layer=6), settings, request) < 2e-5
    settings = PNP.preset("published", steps=N, guidance_scale=2.0, feature_layer=3)
    original = PnP(made, LAYERS, 5, False, made.unet.up_blocks[1].resnets[1])
    assert worst(made, PNP, original, settings, request) < 2e-5


@pytest.mark.parametrize("inversion", ("ddim", "direct"))
def test_every_step_of_plug_and_play_is_that_of_the_original_code(made, inversion):
    settings = PNP.preset("published", steps=N, guidance_scale=2.0, inversion=inversion, feature_layer=3)
    original = PnP(made, LAYERS, 5, inversion == "direct", made.unet.up_blocks[1].resnets[1])
    assert worst(made, PNP, original, settings, precise=True) < EXACT


def test_a_target_of_no_words_is_the_source_branch(made):
    """The paper's check: queries of the same latents under the same prompt find their own keys."""
    model, settings = made.model, MASACTRL.Settings(steps=4)
    z0 = torch.randn(1, *model.latent_shape((64, 64)), generator=torch.Generator().manual_seed(5))
    *_, step = sage.run("masactrl", model, z0, "", "", settings)
    *_, plain = sage.run("plain", model, z0, "", "", sage.method("plain").Settings(steps=4, guidance_scale=1.0))
    assert ((step.z - plain.z).norm() / plain.z.norm()).item() < 1e-5


def test_what_cannot_be_is_said(made):
    with pytest.raises(SettingsError, match="give source_text=source too"):
        MASACTRL.Settings(foreground="auto")
    plan = check_prompts(made.model, SOURCE, SOURCE, MASACTRL.Settings(foreground="auto", source_text="source"))
    assert any("there is no foreground" in note for note in plan.notes)
    with pytest.raises(SettingsError, match="feature_layer is 9: the decoder of small has 8"):
        sage.edit(made.model, small.picture(), SOURCE, TARGET, PNP.Settings(steps=1, feature_layer=9))
