"""The seam: an object with exactly the members of `Backbone`, and nothing else of ours, can be edited with."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sage
import sage.pictures
from sage.commands import main as cli
from sage.method import METHODS, method
from sage.models.backbone import MEMBERS, Backbone, Text
from sage.models.memory import Needs
from sage.models.savings import Savings
from sage.models.sites import Feature, Site, Sites
from sage.prompts.tokens import Prompts
from sage.sampling.levels import DiffusionSchedule
from sage.sampling.steps import Prediction, with_noise
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
SIDE, WIDTH = 64, 8


class Finder(torch.nn.Module):
    """What TurboEdit asks of a part "inversion"."""

    def noise(self, x0: Tensor, reconstruction: Tensor, level, text: Text) -> tuple[Tensor, Tensor]:
        return x0 - reconstruction, torch.zeros_like(x0) - level.t / 1000


class Fake:
    """One attention layer of each kind on pixels of 8: a self-attention, a cross-attention, a feature."""

    name, family, prediction_type, distilled = "fake", "fake", "epsilon", False
    device, dtype, sample_size = torch.device("cpu"), torch.float32, SIDE
    pixel_multiple, savings, recommends, schedule = 8, Savings(), {}, DiffusionSchedule()

    def __init__(self, tokenizer) -> None:
        self.prompts = Prompts(tokenizer, 77)
        g = torch.Generator().manual_seed(0)
        self._embedding = torch.randn(99, WIDTH, generator=g)
        self._in, self._out = torch.randn(4, WIDTH, generator=g), torch.randn(WIDTH, 4, generator=g) / 4
        self._features = tuple(Feature() for _ in range(8))
        for i, feature in enumerate(self._features):
            feature.path, feature.place = f"block.{i}", "up"
        self._sites = Sites(Site(f"{place}.{kind}", kind, 0, place, 2, WIDTH // 2)
                            for place in ("down", "up") for kind in ("self", "cross"))

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        z = torch.nn.functional.avg_pool2d(x, 8)
        z = torch.cat([z, z.mean(1, keepdim=True)], dim=1)
        return z if generator is None else z + 0.01 * torch.randn(z.shape, generator=generator)

    def decode(self, z: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(z[:, :3], scale_factor=8)

    def embed(self, prompts) -> Text:
        return Text(torch.stack([self._embedding[list(prompt.ids)] for prompt in prompts]))

    def prepare(self, text: Text, guidance: float | None = None) -> Text:
        return text

    def predict(self, z: Tensor, level, text: Text) -> Prediction:
        b, _, h, w = z.shape
        x = z.flatten(2).transpose(1, 2) @ self._in
        for site in self._sites:
            context = x if site.kind == "self" else text.expand(b).tokens
            heads = [t.reshape(b, -1, 2, WIDTH // 2).transpose(1, 2) for t in (x, context, context)]
            q, k, v = site.projected(*heads)
            x = x + site.out((site.map(q, k) @ v).transpose(1, 2).reshape(b, h * w, WIDTH))
        x = (x @ self._out).transpose(1, 2).reshape(b, 4, h, w)
        for feature in self._features:
            x = feature(x)
        return with_noise(z, torch.tanh(x + level.t / 1000), level)

    def sites(self) -> Sites:
        return self._sites

    def features(self) -> tuple[Feature, ...]:
        return self._features

    def blocks(self) -> tuple[()]:
        return ()

    def part(self, name: str):
        return Finder() if name == "inversion" else None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        return 4, size[1] // 8, size[0] // 8

    def needs(self, width: int, height: int) -> Needs:
        return Needs(autoencoder=1, network=1, attention={("self", 0): 1, ("cross", 0): 1})

    def save(self, savings: Savings) -> None:
        self.savings = savings

    def full_precision(self, *, dtype=torch.float32):
        return nullcontext()

    def fingerprint(self) -> str:
        return "f" * 64


@pytest.fixture(scope="module")
def fake(tmp_path_factory) -> Fake:
    tokenizer = small.make(tmp_path_factory.mktemp("fake") / "tokenizer").tokenizer
    return Fake(tokenizer)


def settings(name: str, model: Fake):
    """The method's own defaults for the model, of few steps."""
    found = method(name)
    values = found.defaults(model).as_dict() | {"steps": 4}
    return found.Settings.from_dict({name: value for name, value in values.items() if name in found.Settings.names()})


def test_the_fake_has_the_members_of_the_seam_and_no_more(fake):
    members = set(MEMBERS)
    own = {name for name in (*vars(Fake), *vars(fake)) if not name.startswith("_")}
    assert own == members and isinstance(fake, Backbone)


@pytest.mark.parametrize("name", [name for name in METHODS if method(name).does("edit")])
def test_every_method_edits_with_it(fake, name, tmp_path):
    if why := method(name).fits(fake):
        pytest.skip(why)
    config = settings(name, fake)
    seen = []
    result = sage.edit(fake, small.picture(), SOURCE, TARGET, config, watch=seen.append)
    assert torch.isfinite(result.latents).all() and result.image.size == (64, 64)
    assert seen and seen[-1].z.shape == (1, 4, 8, 8)
    trajectory = sage.invert(fake, small.picture(), SOURCE, config)
    path = sage.save_trajectory(trajectory, tmp_path / "t.safetensors", fake)
    again = sage.edit(fake, small.picture(), SOURCE, TARGET, config, trajectory=sage.load_trajectory(path, fake))
    assert torch.equal(again.latents, result.latents)


def test_an_explanation_of_it_is_written(fake, tmp_path):
    from sage.explain import Explanation
    config = settings("sage", fake)
    explanation = Explanation(fake, small.picture(), SOURCE, TARGET, config)
    result = sage.edit(fake, small.picture(), SOURCE, TARGET, config, watch=explanation)
    assert explanation.write(tmp_path, result).is_file()


def test_it_runs_in_a_batch_and_in_the_benchmark(fake, tmp_path):
    from sage.batch.runner import run_batch
    from sage.batch.table import read_table
    from sage.bench.configs import configuration
    from sage.bench.engine import ModelEngine
    from sage.bench.stilllife import write_stilllife
    small.picture().save(tmp_path / "p.png")
    (tmp_path / "t.csv").write_text(f"picture,source,target,method,steps\np.png,{SOURCE},{TARGET},plain,3\n"
                                    f"p.png,{SOURCE},{TARGET},sdedit,3\n")
    lines, _ = run_batch(fake, read_table(tmp_path / "t.csv"), tmp_path / "out")
    assert [line.status for line in lines] == ["done", "done"]
    benchmark = write_stilllife(tmp_path / "b", 1, 64, 1)
    engine, case = ModelEngine(fake), replace(
        benchmark.cases[0], source_marked=SOURCE, target_marked=TARGET)
    (outcome,) = engine.make(configuration("plain:steps=3"), [case], [small.picture()], [None])
    assert outcome.picture is not None and engine.describe()["model"] == "fake"


def test_the_studio_edits_with_it(tmp_path):
    from sage.studio.requests import EditRequest
    from sage.studio.service import Studio
    small.make(tmp_path / "tokenizer")
    small.picture().save(tmp_path / "p.png")
    (tmp_path / "own.py").write_text(OWN.format(folder=str(tmp_path / "tokenizer")))
    studio = Studio([f"{tmp_path}/own.py:load"], folder=tmp_path / "studio")
    try:
        studio.take("somebody", tmp_path / "p.png", "p.png")
        job = studio.edit("somebody", EditRequest("load", SOURCE, TARGET, settings("plain", studio.model)))
        assert job.result(300).path.is_file() and studio.words(SOURCE, TARGET, settings("sage", studio.model))
    finally:
        studio.close()


OWN = """
from transformers import CLIPTokenizer
from tests.models.test_backbone import Fake

def load(device, dtype):
    return Fake(CLIPTokenizer.from_pretrained({folder!r}))

def nothing(device, dtype):
    return object()
"""


def test_the_command_line_takes_a_backbone_of_one_s_own(tmp_path, capsys):
    small.make(tmp_path / "tokenizer")
    small.picture().save(tmp_path / "p.png")
    (tmp_path / "own.py").write_text(OWN.format(folder=str(tmp_path / "tokenizer")))
    command = ["edit", f"{tmp_path}/p.png", "--source", SOURCE, "--target", TARGET, "--method", "plain", "--steps", "2",
               "--out", f"{tmp_path}/e.png"]
    assert cli.main([*command, "--model", f"{tmp_path}/own.py:load"]) == 0
    assert sage.pictures.read_settings(tmp_path / "e.png")["model"] == "fake"
    for name, said in (("nothing", "gives a object without"), ("none", "has nothing called 'none'")):
        assert cli.main([*command, "--model", f"{tmp_path}/own.py:{name}"]) == 2
        assert said in capsys.readouterr().err
    assert cli.main([*command, "--model", f"{tmp_path}/gone.py:load"]) == 2
    assert "there is no file" in capsys.readouterr().err
