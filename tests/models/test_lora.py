"""LoRA files of every layout are W + scale (alpha / r) B A; what does not fit is refused, a repeat needs the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sage
from sage.commands import main as cli
from sage.errors import ModelError, SettingsError
from sage.models.lora import merge
from sage.models.loras import are_loras, read_lora
from sage.pictures.metadata import read_record
from tests import small
from tests.models import compvis, tiny
from tests.models.test_xl import pipeline

RANK = 3
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
LAYERS = {"unet": (f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0", "mid_block.attentions.0.proj_in",
                   "up_blocks.0.resnets.0.conv1", "add_embedding.linear_1", "down_blocks.0.downsamplers.0.conv"),
          "text": ("text_model.encoder.layers.1.self_attn.q_proj", "text_model.encoder.layers.0.mlp.fc1"),
          "text_2": ("text_model.encoder.layers.0.self_attn.out_proj",)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("lora") / "tiny", "XL")


@pytest.fixture(scope="module")
def folder(made):
    return made.folder


@pytest.fixture(scope="module")
def plain(folder):
    return sage.load_model(folder, device="cpu")


def factors(model, seed: int = 0) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """Random A and B of each layer."""
    g, made = torch.Generator().manual_seed(seed), {}
    for part, names in LAYERS.items():
        for name in names:
            out, *into = getattr(model, part).get_submodule(name).weight.shape
            ups = (out, RANK, 1, 1) if into[1:] else (out, RANK)
            made[part, name] = torch.randn(RANK, *into, generator=g), torch.randn(ups, generator=g)
    return made


def sgm(name: str) -> str:
    """A name of a diffusers UNet as that of a single file, by the tests' own way back."""
    return compvis.unet_key(f"{name}.weight", 1, {"0", "1"}).removesuffix(".weight")


def kohya(made, name_of=lambda name: name) -> dict[str, torch.Tensor]:
    begins, state = {"unet": "lora_unet_", "text": "lora_te1_", "text_2": "lora_te2_"}, {}
    for (part, name), (down, up) in made.items():
        key = begins[part] + (name_of(name) if part == "unet" else name).replace(".", "_")
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(6.0)}
    return state


def peft(made, ends=("lora_A.weight", "lora_B.weight")) -> dict[str, torch.Tensor]:
    begins = {"unet": "unet", "text": "text_encoder", "text_2": "text_encoder_2"}
    return {f"{begins[part]}.{name}.{end}": value for (part, name), pair in made.items()
            for end, value in zip(ends, pair, strict=True)}


def processors(made) -> dict[str, torch.Tensor]:
    """The first layout of diffusers, of attention alone."""
    state = {}
    for (part, name), pair in made.items():
        if part == "unet" and ".attn1." in name:
            layer = re.sub(r"\.(to_\w+?)(\.0)?$", r".processor.\1_lora", name)
            state |= {f"unet.{layer}.{way}.weight": value for way, value in zip(("down", "up"), pair, strict=True)}
    return state


LAYOUTS = {"kohya": (kohya, 6 / RANK), "kohya, names of a single file": (lambda made: kohya(made, sgm), 6 / RANK),
           "peft": (peft, 1.0), "diffusers": (lambda made: peft(made, ("lora.down.weight", "lora.up.weight")), 1.0),
           "processors": (processors, 1.0)}


def written(path: Path, state, metadata=None) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_formula(folder, plain, tmp_path, layout):
    made, (write, factor) = factors(plain), LAYOUTS[layout]
    state = write(made)
    model = sage.load_model(folder, device="cpu", lora=f"{written(tmp_path / 'x.safetensors', state)}:0.5")
    changed = 0
    for part in LAYERS:
        for name, weight in getattr(plain, part).named_parameters():
            ours = dict(getattr(model, part).named_parameters())[name]
            layer = name.removesuffix(".weight")
            if (part, layer) in made and (layout != "processors" or ".attn1." in layer):
                down, up = made[part, layer]
                difference = torch.einsum("or,r...->o...", up.flatten(1), down).reshape(weight.shape)
                assert torch.allclose(ours, weight + 0.5 * factor * difference, atol=1e-5)
                changed += not torch.equal(ours, weight)
            else:
                assert torch.equal(ours, weight), name
    assert changed == len(state) // (3 if layout.startswith("kohya") else 2)
    assert model.fingerprint() != plain.fingerprint()


def test_alpha_of_the_metadata(folder, plain, tmp_path):
    made, name = factors(plain), LAYERS["unet"][0]
    of = {"unet.r": RANK, "unet.lora_alpha": 12, "text_encoder.lora_alpha": 3, "text_encoder.r": RANK}
    path = written(tmp_path / "x.safetensors", peft(made), {"lora_adapter_metadata": json.dumps(of)})
    model = sage.load_model(folder, device="cpu", lora=[path])
    down, up = made["unet", name]
    before = plain.unet.get_submodule(name).weight
    assert torch.allclose(model.unet.get_submodule(name).weight, before + 12 / RANK * up @ down, atol=1e-5)
    path = written(path, peft(made), {"lora_adapter_metadata": json.dumps(of | {"unet.use_rslora": True})})
    with pytest.raises(ModelError, match="rslora"):
        sage.load_model(folder, device="cpu", lora=[path])
    for lie in (10**400, "many", [1], {}):
        path = written(path, peft(made), {"lora_adapter_metadata": json.dumps(of | {"unet.lora_alpha": lie})})
        with pytest.raises(ModelError, match="its alphas is damaged"):
            merge(plain, read_lora(path))


def test_several_add_up_and_a_scale_of_none_is_none(folder, plain, tmp_path):
    one, two = (written(tmp_path / f"{seed}.safetensors", kohya(factors(plain, seed))) for seed in (0, 1))
    a, b = (sage.load_model(folder, device="cpu", lora=files) for files in ((one, f"{two}:-1"), (f"{two}:-1", one)))
    name = LAYERS["unet"][0]
    assert torch.allclose(a.unet.get_submodule(name).weight, b.unet.get_submodule(name).weight, atol=1e-5)
    assert [lora.scale for lora in a.loras] == [1.0, -1.0]
    none = sage.load_model(folder, device="cpu", lora=f"{one}:0")
    assert torch.equal(none.unet.get_submodule(name).weight, plain.unet.get_submodule(name).weight)


@pytest.mark.parametrize(("change", "said"), (
    (lambda s: s | {"lora_unet_nowhere_to_q.lora_down.weight": torch.zeros(3, 4)}, "1 of its 10 layers are not in it"),
    (lambda s: {k: v for k, v in s.items() if "to_q.lora_up" not in k}, "lacks its up"),
    (lambda s: {k: v[:2] if "to_q.lora_down" in k else v for k, v in s.items()}, "make no weight"),
    (lambda s: {k: v[:9] if "to_q.lora_up" in k else v for k, v in s.items()}, "for another model"),
    (lambda s: {k: v / 0 if "to_q.lora_up" in k else v for k, v in s.items()}, "not finite"),
    (lambda s: {k: v.long() if "to_q.lora_up" in k else v for k, v in s.items()}, "no floating-point"),
    (lambda s: {k: v.expand(2) if "to_q.alpha" in k else v for k, v in s.items()}, "not one number"),
    (lambda s: s | {"lora_unet_x.hada_w1_a": torch.zeros(1)}, "LoHa"),
    (lambda s: s | {"lora_unet_x.dora_scale": torch.zeros(1)}, "DoRA"),
    (lambda s: {"conv_in.weight": torch.zeros(1)}, "no LoRA of a known layout"),
    (lambda s: {}, "holds nothing")))
def test_what_does_not_fit_is_refused(folder, plain, tmp_path, change, said):
    state = change(kohya(factors(plain)))
    before = {name: p.clone() for name, p in plain.unet.named_parameters()}
    from sage.models.lora import merge
    with pytest.raises(ModelError) as caught:
        merge(plain, read_lora(written(tmp_path / "x.safetensors", state)))
    assert said in str(caught.value) and "\n" not in str(caught.value) and plain.loras == ()
    assert "not finite" in said or all(torch.equal(p, before[name]) for name, p in plain.unet.named_parameters())


def test_names_and_scales(tmp_path, plain):
    path = written(tmp_path / "a:b.safetensors", kohya(factors(plain)))
    assert read_lora(path).scale == 1.0 and read_lora(f"{path}:-0.25").scale == -0.25
    for wrong in (f"{path}:nan", f"{path}:1e9"):
        with pytest.raises(SettingsError, match="scale"):
            read_lora(wrong)
    for wrong, said in ((tmp_path / "x.pt", "can run programs"), (tmp_path / "x.safetensors", "does not exist")):
        with pytest.raises(ModelError, match=said):
            read_lora(wrong)


def test_a_record_names_only_scales_that_can_be():
    honest = {"name": "a.safetensors", "sha256": "0", "scale": 1}
    assert are_loras([honest]) and not are_loras(honest)
    for lie in (10**400, float("nan"), float("inf"), -1e9, True, "1", None):
        assert not are_loras([honest | {"scale": lie}]), lie


def test_an_edit_is_made_again_with_the_same_files(folder, plain, tmp_path, capsys):
    path = written(tmp_path / "style.safetensors", kohya(factors(plain)))
    small.picture(32, 32).save(tmp_path / "in.png")
    command = ["edit", f"{tmp_path}/in.png", "--model", str(folder), "--method", "sdedit", "--steps", "2", "--quiet",
               "--source", "a cat", "--target", "a dog"]
    assert cli.main([*command, "--lora", f"{path}:0.1", "--out", f"{tmp_path}/a.png"]) == 0
    (lora,) = read_record(tmp_path / "a.png")["lora"]
    assert lora == read_lora(f"{path}:0.1").as_dict() and lora["scale"] == 0.1
    again = [*command, "--config-from", f"{tmp_path}/a.png"]
    assert cli.main([*again, "--out", f"{tmp_path}/b.png"]) == 2
    assert "style.safetensors" in (said := capsys.readouterr().err) and "--lora style.safetensors:0.1" in said
    assert cli.main([*again, "--lora", f"{path}:0.1", "--out", f"{tmp_path}/b.png"]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    written(path, kohya(factors(plain, 1)))
    assert cli.main([*again[:-4], "--config-from", f"{tmp_path}/a.png", "--lora", f"{path}:0.1", "--json",
                     "--out", f"{tmp_path}/c.png"]) == 0
    assert "files of the same name, and others" in capsys.readouterr().out


def test_diffusers_and_peft_merge_the_same(made, folder, plain, tmp_path):
    pytest.importorskip("peft")
    path = written(tmp_path / "x.safetensors", peft({k: pair for k, pair in factors(plain).items() if k[0] == "unet"}))
    pipe = pipeline(made)
    pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    model, theirs = sage.load_model(folder, device="cpu", lora=f"{path}:0.7"), pipe.unet.state_dict()
    assert all(torch.allclose(p, theirs[name], atol=1e-5) for name, p in model.unet.named_parameters())
