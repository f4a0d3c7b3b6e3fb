"""At full size, on the meta device: our names and shapes are those of the four published checkpoints."""

import pytest
import torch

from sage.models.sd import renames
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.singlefile import take_apart
from sage.models.sd.unet import UNet, UNetParams
from sage.models.sd.vae import VAE, VAEParams
from sage.models.weights import Stored
from tests.models import compvis, oracle

TWO = {"heads": (5, 10, 20, 20), "context_width": 1024, "linear_projection": True}
UNETS = {"sd-1.4": UNetParams(), "sd-1.5": UNetParams(), "sd-2.1-base": UNetParams(**TWO),
         "sd-2.1": UNetParams(**TWO, upcast_attention=True)}
TEXT_2 = CLIPTextParams(width=1024, mlp_width=4096, heads=16, layers=23, activation="gelu")
TEXTS = {"sd-1.4": CLIPTextParams(), "sd-1.5": CLIPTextParams(), "sd-2.1-base": TEXT_2, "sd-2.1": TEXT_2}
PARAMETERS = {"1": (859_520_964, 123_060_480, 196), "2": (865_910_724, 340_387_840, 372)}


def shapes(state) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", UNETS)
def test_names_and_shapes(name):
    unet_total, text_total, text_keys = PARAMETERS[name[3]]
    with torch.device("meta"):
        unet, vae, text = UNet(UNETS[name]), VAE(VAEParams()), CLIPText(TEXTS[name])
        theirs = oracle.unet(UNETS[name]), oracle.vae(VAEParams()), oracle.text(TEXTS[name])
    assert shapes(unet.state_dict()) == shapes(theirs[0].state_dict())
    assert shapes(vae.state_dict()) == shapes(theirs[1].state_dict())
    assert shapes(text.state_dict()) == shapes(oracle.text_state(theirs[2]))
    assert [len(m.state_dict()) for m in (unet, vae, text)] == [686, 248, text_keys]
    assert [count(m) for m in (unet, vae, text)] == [unet_total, 83_653_863, text_total]


@pytest.mark.parametrize(("name", "family"), (("sd-1.5", "1.x"), ("sd-2.1", "2.x")))
def test_single_file_is_recognised_from_its_shapes(name, family, tmp_path):
    with torch.device("meta"):
        networks = UNet(UNETS[name]), VAE(VAEParams()), CLIPText(TEXTS[name])
        stored = compvis.checkpoint(*(m.state_dict() for m in networks), family=family, layers=2)
    tensors = {key: Stored(tmp_path, None, key, tuple(value.shape), "F16") for key, value in stored.items()}
    file = take_apart(tmp_path, tensors)
    assert (file.family, file.unet, file.vae, file.text) == (family, UNETS[name], VAEParams(), TEXTS[name])
    for part, network in zip(("unet", "vae", "text"), networks, strict=True):
        ours = {key: s.shape[:2] if s.shape[2:] == (1, 1) else s.shape for key, s in file.tensors[part].items()}
        theirs = {key: s[:2] if s[2:] == (1, 1) else s for key, s in shapes(network.state_dict()).items()}
        assert ours == theirs


def test_old_names():
    assert renames.folder_vae("decoder.mid_block.attentions.0.proj_attn.bias") == \
        "decoder.mid_block.attentions.0.to_out.0.bias"
    assert renames.folder_text("text_model.embeddings.position_ids") is None
    assert renames.folder_text("final_layer_norm.bias") == "text_model.final_layer_norm.bias"
