"""A number that is not finite, in any stage: one NumericsError that says what to do, and no picture."""

import pytest
import torch

import sage
from sage import EditConfig
from sage.commands import main as cli
from sage.errors import NumericsError
from tests import small
from tests.hardening.faults.stages import STAGES, STEPS, wrong

CONFIG = EditConfig(steps=STEPS, cross_level=1, reconstruction_scale=1.0)
PROMPTS = "a cat on a mat", "a dog on a mat"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("numbers") / "tokenizer").model


def spoilt(value: float, everywhere: bool):
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        (x if everywhere else x.flatten()[:1]).fill_(value)
        return x
    return change


@pytest.mark.parametrize("value, everywhere", [(float("nan"), False), (float("inf"), True)])
@pytest.mark.parametrize("stage", STAGES)
def test_it_is_noticed_in_every_stage(model, stage, value, everywhere):
    with wrong(model, stage, spoilt(value, everywhere)), pytest.raises(NumericsError, match="not finite") as caught:
        sage.edit(model, small.picture(), *PROMPTS, CONFIG)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", ("encode", "gradient", "decode"))
def test_the_command_line_says_so_and_writes_nothing(model, stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sage, "load_model", lambda *_, **__: model, raising=False)
    small.picture().save("p.png")
    (tmp_path / "m.safetensors").touch()
    with wrong(model, stage, spoilt(float("nan"), True)):
        assert cli.main(["edit", "p.png", "--source", PROMPTS[0], "--target", PROMPTS[1], "--model", "m.safetensors",
                         "--steps", str(STEPS), "--cross-level", "1", "--out", "out/e.png"]) == 2
    error = capsys.readouterr().err
    assert "not finite" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_nothing_wrong_is_nothing_said(model):
    for stage in STAGES:
        with wrong(model, stage, lambda x: x):
            assert sage.edit(model, small.picture(), *PROMPTS, CONFIG).latents.isfinite().all()
