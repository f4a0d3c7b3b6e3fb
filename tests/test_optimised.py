"""Every short cut together changes an edit by rounding only: the same latents to 1e-4 as by the plain way."""

from contextlib import contextmanager

import pytest
import torch

import sage
from sage import EditConfig, kit
from sage.editing import edit
from sage.guidance import hooks, masks
from sage.guidance.blend import BlendingMask
from sage.job import Job
from sage.models import layers
from sage.models.loading import load_model
from sage.models.sd.model import StableDiffusion
from sage.models.sites import Site
from sage.pictures import open_picture
from tests import small

SOURCE = "a photograph of a big shiny blue mug in the centre, with a tiny green cone next to it, on stone tiles"
TARGET = SOURCE.replace("blue", "yellow")
SETTINGS = {
    "recommended": {},
    "attention mask, replacement": dict(mask_from="attention", replace="auto", replace_fraction=0.5),
    "reweighted everywhere": dict(reweight={"yellow": 1.5}, reweight_passes="all", guided_steps=1),
    "cross": dict(reconstruction="cross"),
    "latent": dict(reconstruction="latent"),
    "replaced maps": dict(reconstruction="replace"),
    "l2": dict(map_loss="l2", reconstruction_scale=200.0),
}


class OneByOne(BlendingMask):
    """Of passes that are not made together: what each has looked at is taken as it passes."""

    @contextmanager
    def listen(self, wanted=True):
        if not (self.used and self.sites and wanted):
            yield None
            return
        heard: list[list] = []
        with hooks.hooked((site.map, lambda m, i, out: heard.append(out)) for site in self.sites):
            yield heard

    def add(self, tap, *branches):
        if tap is None:
            return
        size = len(self.sites)
        for i, name in enumerate(branches):
            self.attention[name] += masks.token_attention(tap[i * size:(i + 1) * size], self.tokens[name], *self.grid)


@pytest.fixture
def plainly(monkeypatch):
    """Everything the long way: torch's own layers, maps at every site, keys and time anew in every pass, two passes."""
    monkeypatch.setattr("sage.models.loading.make_fast", lambda model: None)
    monkeypatch.setattr(layers, "PRODUCT", None)
    monkeypatch.setattr(Site, "tapped", property(lambda site: True))
    monkeypatch.setattr(StableDiffusion, "prepare", lambda model, text, guidance=None: text)
    monkeypatch.setattr(StableDiffusion, "_time", lambda model, t, *_: torch.tensor(float(t)))
    monkeypatch.setattr(kit, "listen", lambda sites, last=False: hooks.listen(sites))
    monkeypatch.setattr(kit, "BlendingMask", OneByOne)
    monkeypatch.setattr(Job, "together", lambda job, level, **branches: {
        name: job.predict(z, level, text, name) for name, (z, text) in branches.items()})


@pytest.fixture(scope="module")
def fast():
    """The bundled model, with large products from small ones on, so that they are tried too."""
    model, kept = load_model("stilllife", device="cpu"), layers.LARGE
    layers.LARGE = 2**20
    few = dict(steps=3, guided_steps=2, guidance_scale=1.25, retries=0)
    configs = {name: sage.method("sage").recommended(model).but(**few | change) for name, change in SETTINGS.items()}
    yield lambda name: (configs[name], edit(model, open_picture("examples/mug.png"), SOURCE, TARGET, configs[name]))
    layers.LARGE = kept


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name in ("cross", "latent", "l2") else name for name in SETTINGS])
def test_the_bundled_model_s_edit(fast, request, name):
    config, result = fast(name)
    request.getfixturevalue("plainly")
    plain = edit(load_model("stilllife", device="cpu"), open_picture("examples/mug.png"), SOURCE, TARGET, config)
    assert not torch.equal(result.latents, plain.latents)  # they did go different ways
    # rounding, of which every guided step of the shipped strength makes ten times as much and more: so there are few
    assert ((result.latents - plain.latents).norm() / plain.latents.norm()).item() < 1e-4
    assert result.losses == pytest.approx(plain.losses, rel=1e-3)


def test_an_edit_by_a_random_network_of_stable_diffusion_s_build(tmp_path, request):
    config = EditConfig(steps=4, guidance_scale=2.0, reconstruction_scale=1.0, guided_steps=2)
    model = small.make(tmp_path / "tokenizer").model
    result = edit(model, small.picture(), "a cat on a mat", "a dog on a mat", config)
    request.getfixturevalue("plainly")
    plain = edit(model, small.picture(), "a cat on a mat", "a dog on a mat", config)
    assert ((result.latents - plain.latents).norm() / plain.latents.norm()).item() < 1e-4
