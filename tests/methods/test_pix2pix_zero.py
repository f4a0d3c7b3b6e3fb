"""pix2pix-zero is held to a rendition of its benchmark's code, step by step, and its parts to what they must do.

The rendition is written apart from the method's file, over diffusers' UNet2DConditionModel: two passes, every reference
map kept, the gradient by autograd.
"""

import pytest
import torch
import torch.nn.functional as F

import sage
from sage.errors import SageError, SettingsError
from sage.guidance.whiteness import autocorrelation, divergence
from sage.job import Job
from sage.method import Request
from sage.methods.pix2pix_zero import shifts
from sage.prompts.sentences import read_sentences
from sage.stilllife.sentences import sentences
from tests import small
from tests.methods.p2p_original import ALPHAS, ddim
from tests.methods.precise import EXACT, in_float64

ZERO = sage.method("pix2pix-zero")
SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
N = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("zero") / "tokenizer")


def latents(model, size=(128, 128)):
    return torch.randn(1, *model.latent_shape(size), generator=torch.Generator().manual_seed(5))


class Maps:
    """Keeps the probabilities of every layer of a kind, attn1 or attn2, in the graph.

    Args:
        lent: by the layer's name, probabilities that it has in the place of its own.
    """

    def __init__(self, found, name, kind="attn2", lent=None):
        self.found, self.name, self.kind, self.lent = found, name, kind, lent or {}

    def __call__(self, attn, x, encoder_hidden_states=None, **_):
        context = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2).flatten(0, 1)
                   for t in (attn.to_q(x), attn.to_k(context), attn.to_v(context)))
        maps = self.lent.get(self.name, (q @ k.transpose(-1, -2) * attn.scale).softmax(-1))
        if self.kind in self.name:
            self.found[self.name] = maps
        out = (maps @ v).unflatten(0, (-1, attn.heads)).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def alike(x, rolls):
    loss = 0.0
    for channel in x[0]:
        n = channel[None, None]
        while True:
            by = next(rolls)
            for side in (2, 3):
                loss = loss + (n * torch.roll(n, by, side)).mean() ** 2
            if n.shape[2] <= 8:
                break
            n = F.avg_pool2d(n, 2)
    return loss


def unlike_normal(x):
    return x.var() + x.mean() ** 2 - 1 - torch.log(x.var() + 1e-7)


def descended(loss, x, rate):
    x = x.clone().requires_grad_()
    loss(x).backward()
    return (x - rate * x.grad).detach()


def original(unet, texts, z0, rolls, direct, w=7.5, gamma=0.1, rounds=5, ends=True):
    """`ends`: the way to noise has its first step and its last, as in the benchmark's code and not in the authors'."""
    found, kept, k, rolls = {}, dict(unet.attn_processors), 1000 // N, iter(rolls)
    unet.set_attn_processor({name: Maps(found, name) for name in kept})
    unet.requires_grad_(False)
    src, d = texts["source"], texts["target"] - texts["source"]
    net = lambda z, t, c: unet(z, t, encoder_hidden_states=c).sample  # noqa: E731
    try:
        path = [z0]
        for t in range(1, 1000, k) if ends else range(1 + k, 1000 - k, k):
            with torch.no_grad():
                e = net(path[-1], t, src)
            for _ in range(rounds):
                for _ in range(5):
                    e = descended(lambda x: alike(x, rolls), e, 20.0 / 5)
                e = descended(unlike_normal, e, 20.0)
            path.append(ddim(path[-1], e, ALPHAS[t - 1], ALPHAS[min(t + k - 1, 999)]))
        references, offsets, z = [], [], path[-1]
        for i, t in enumerate(reversed(range(1, 1000, k))):
            with torch.no_grad():
                e = net(torch.cat([z, z]), t, torch.cat([src, src]))
            references.append({name: m.detach() for name, m in found.items()})
            z = ddim(z, e[:1] + w * (e[1:] - e[:1]), ALPHAS[t], ALPHAS[max(t - k, 0)])
            offsets.append(path[-2 - i] - z if direct else torch.zeros_like(z))
            z = z + offsets[-1]
        z, steps, both = path[-1], [], torch.cat([src, src + d])
        for i, t in enumerate(reversed(range(1, 1000, k))):
            x = torch.cat([z, z]).requires_grad_()
            net(x, t, both)
            loss = sum(((m - references[i][name]) ** 2).sum((1, 2)).mean(0) for name, m in found.items())
            loss.backward()
            x = (x - gamma * x.grad).detach()
            with torch.no_grad():
                e = net(x, t, both)
            z = ddim(x[:1], e[:1] + w * (e[1:] - e[:1]), ALPHAS[t], ALPHAS[max(t - k, 0)]) + offsets[i]
            steps.append((z, loss.item()))
        return path, steps
    finally:
        unet.set_attn_processor(kept)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def embedded(model):
    return {name: model.embed([model.prompts.parse(prompt)]) for name, prompt in
            (("source", SOURCE), ("target", TARGET), ("empty", ""))}


@pytest.mark.parametrize("changes", (dict(inversion="direct", noise_rounds=1),
                                     pytest.param(dict(noise_rounds=2), marks=pytest.mark.slow),
                                     pytest.param(dict(cross_guidance=0.0, noise_rounds=0), marks=pytest.mark.slow),
                                     pytest.param(dict(conventions="authors", noise_rounds=1),
                                                  marks=pytest.mark.slow)))
def test_every_step_is_that_of_the_benchmarks_code(made, changes):
    """In float64, where differences of up to 3e-13 are left."""
    model, z0 = made.model, latents(made.model)  # of a side of 32
    rounds = changes.get("noise_rounds", 5)
    draw = torch.Generator().manual_seed(1)
    least = int("conventions" in changes)  # the authors never shift by 0
    rolls = [int(torch.randint(least, side // 2, (), generator=draw)) for _ in range(N * rounds * 5 * 4)
             for side in (32, 16, 8)]
    settings = ZERO.preset("published", **{"steps": N, "guidance_scale": 2.0} | changes)
    kept, paths = ZERO.invert, []
    ZERO.invert = lambda job: paths.append(kept(job)) or paths[0]
    try:
        with in_float64(model, made.unet):
            texts = embedded(model)
            path, steps = original(made.unet, {name: text.tokens for name, text in texts.items()}, z0.double(), rolls,
                                   changes.get("inversion") == "direct", 2.0, changes.get("cross_guidance", 0.1),
                                   rounds, "conventions" not in changes)
            ours = list(sage.run(ZERO, model, z0, SOURCE, TARGET, settings, rolls, texts=texts))
    finally:
        del ZERO.invert
    assert len(path) == 1 + N - 2 * ("conventions" in changes)
    assert max(relative(a, b) for a, b in zip(paths[0].latents, path, strict=True)) < EXACT
    for step, (z, loss) in zip(ours, steps, strict=True):
        assert relative(step.z, z) < EXACT
        assert step.loss[0] == pytest.approx(loss, rel=EXACT)


def test_what_the_authors_leave_out_cannot_be_put_back_onto(made):
    settings = ZERO.preset("authors", steps=N, inversion="direct", noise_rounds=0)
    with pytest.raises(SettingsError, match="the trajectory has 4 latents, and 5 steps need 6"):
        next(sage.run(ZERO, made.model, latents(made.model), SOURCE, TARGET, settings))


# ---- the noise


@pytest.mark.slow
def test_regularised_noise_is_nearer_to_white_noise(made):
    z0 = latents(made.model)
    for settings in (ZERO.Settings(steps=10), ZERO.preset("published", steps=10)):
        seen = {}
        for rounds in (0, 5):
            kept, paths = ZERO.invert, []
            ZERO.invert = lambda job, kept=kept, paths=paths: paths.append(kept(job)) or paths[0]
            try:
                list(sage.run(ZERO, made.model, z0, SOURCE, TARGET, settings.but(noise_rounds=rounds)))
            finally:
                del ZERO.invert
            noise = paths[0].noise
            seen[rounds] = sum(autocorrelation(noise, lambda rows, by=by: by).item() for by in (1, 2, 3))
        assert seen[5] < seen[0]


def test_what_is_white_has_little_of_both_losses():
    white = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(white[..., :8, :8], size=(32, 32), mode="bilinear")
    assert (autocorrelation(white, lambda rows: 1) < 0.1 * autocorrelation(smooth, lambda rows: 1)).all()
    assert (divergence(white) < 0.01).all() and (divergence(2 * white) > 1).all()
    asked = []
    autocorrelation(white, lambda rows: asked.append(rows) or 1)
    assert asked == [32, 16, 8] * 4
    alone = torch.cat([autocorrelation(x[None], lambda rows: 2) for x in smooth])
    assert torch.allclose(autocorrelation(smooth, lambda rows: 2), alone)
    assert autocorrelation(white[..., :6], lambda rows: 1).isfinite().all()


def test_shifts_that_cannot_be_are_refused(made):
    settings = ZERO.Settings(steps=N)
    for wrong in (torch.tensor(0), torch.tensor(1.5), torch.tensor(99), torch.zeros(1, 4, 16, 16)):
        with pytest.raises(SettingsError, match="one whole number from 1 to 7"):
            next(sage.run(ZERO, made.model, latents(made.model, (64, 64)), SOURCE, TARGET, settings, [wrong]))


def test_by_no_place_is_shifted_as_in_the_benchmarks_code_alone(made):
    z0, least = latents(made.model, (64, 64)), {}
    for name, settings in (("consistent", ZERO.Settings()), *((p, ZERO.preset(p)) for p in ("published", "authors"))):
        job = Job(ZERO, made.model, settings, [], z0)
        least[name] = min(shifts(job, n)(16) for n in range(200))
    assert least == {"consistent": 1, "published": 0, "authors": 1}


# ---- the sentences


def test_sentences_of_the_rendered_world_differ_in_the_words_alone():
    for old, new in (("red", "blue"), ("mug", "mushroom"), ("brick wall", "forest"), ("photo", "sketch"),
                     ("cup", "teapot"), ("teapot", "cup")):
        before, after = sentences(old, new)
        assert 20 <= len(before) == len(after) <= 100
        for a, b in zip(before, after, strict=True):
            assert f" {old} " in f" {a} ".replace(",", " ") and f" {new} " in f" {b} ".replace(",", " ")
            same = [[w for w in f" {text},".replace(",", " , ").replace(f" {phrase} ", " ").split()
                     if w not in ("a", "an")] for text, phrase in ((a, old), (b, new))]
            assert same[0] == same[1]
    assert sentences("teapot", "kettle") == sentences("", "") == ((), ())
    assert sentences("red", "blue") == sentences(" Red ", "BLUE")


def test_articles_agree_and_nothing_dangles():
    for text in (*sentences("red", "orange")[1], *sentences("orange", "red")[1], *sentences("striped", "")[1]):
        assert "a orange" not in text and "an red" not in text and "  " not in text and ",," not in text
    for text in sentences("", "brick wall")[0]:
        assert "brick wall" not in text and text == text.strip(" ,") and not text.endswith((" a", " in front of"))


def run(made, settings, target=TARGET, source=SOURCE, **request):
    *_, last = sage.run(ZERO, made.model, latents(made.model, (64, 64)), source, target, settings,
                        request=Request(source, target, **request))
    return last.z


def test_sentences_lead_where_their_means_lie(made):
    model, settings = made.model, ZERO.Settings(steps=2, guidance_scale=2.0)
    own = (("a cat", "a cat on a mat"), ("a dog", "a dog on a mat", "a dog or a dog"))
    embed = lambda texts: model.embed([model.prompts.parse(text) for text in texts]).tokens.mean(0)  # noqa: E731
    d = embed(own[1]) - embed(own[0])
    source = model.embed([model.prompts.parse(SOURCE)])
    texts = {"source": source, "target": type(source)(source.tokens + d)}
    *_, expected = sage.run(ZERO, model, latents(model, (64, 64)), "", "", settings, texts=texts)
    found = run(made, settings, sentences=own)
    assert relative(found, expected.z) < 1e-5
    assert relative(found, run(made, settings)) > 1e-3


def test_without_sentences_the_prompts_lead_and_it_is_said(made):
    settings = ZERO.Settings(steps=2, guidance_scale=2.0, direction="sentences")
    result = sage.edit(made.model, small.picture(), SOURCE, TARGET, settings)
    assert result.notes == ("there are no sentences with 'cat' or 'dog': the edit leads from prompt to prompt; give "
                            "sentences of your own",)
    plain = sage.edit(made.model, small.picture(), SOURCE, TARGET, settings.but(direction="prompts"))
    assert torch.equal(plain.latents, result.latents) and not plain.notes
    own = sage.edit(made.model, small.picture(), SOURCE, TARGET, settings, sentences=(("a cat",), ("a dog",)))
    assert not own.notes and not torch.equal(own.latents, plain.latents)


def test_equal_prompts_lead_nowhere(made):
    settings = ZERO.Settings(steps=2, guidance_scale=7.5, cross_guidance=0.0, inversion="direct")
    *_, last = sage.run(ZERO, made.model, z0 := latents(made.model, (64, 64)), SOURCE, SOURCE, settings)
    assert relative(last.z, z0) < 1e-5


HOSTILE = {
    "none.txt": (None, "does not exist: give a file of sentences"), "empty.txt": (b"\n \n", "has 0 sentences"),
    "binary.txt": (b"\xff\xfe\x00", "is not UTF-8"), "zero.txt": (b"a\0b", "zero bytes"),
    "long.txt": (b"x" * 5000, "has 5000 characters"), "vast.txt": (b"a\n" * 2**20, "more than 1 MB"),
    "many.txt": (b"\n".join(b"a %d" % i for i in range(3000)), "has 3000 sentences"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_of_sentences_are_refused_in_one_line(tmp_path, name):
    raw, said = HOSTILE[name]
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(SageError, match=said) as error:
        read_sentences(tmp_path / name)
    assert "\n" not in str(error.value)


def test_lines_of_a_file_are_sentences(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes("\ufeffa  cat\r\n\r\na dog\na cat\n".encode())
    assert read_sentences(path) == ("a cat", "a dog")
    with pytest.raises(SettingsError, match="is a folder: give a file of sentences"):
        read_sentences(tmp_path)


@pytest.mark.parametrize("given", ((("a",),), (("a",), ()), (("a",), (1,)), ("a", "b"), (("a",), ("b" * 9999,))))
def test_sentences_that_are_none_are_refused(made, given):
    with pytest.raises(SageError):
        run(made, ZERO.Settings(steps=2), sentences=given)
