"""At full size, on the meta device: our names and shapes are those of the published checkpoints."""

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
    assert (file.family, file.unet, file.vae, *file.texts) == (family, UNETS[name], VAEParams(), TEXTS[name])
    for part, network in zip(("unet", "vae", "text"), networks, strict=True):
        ours = {key: s.shape[:2] if s.shape[2:] == (1, 1) else s.shape for key, s in file.tensors[part].items()}
        theirs = {key: s[:2] if s[2:] == (1, 1) else s for key, s in shapes(network.state_dict()).items()}
        assert ours == theirs


# Stable Diffusion XL, and its students of the same networks

XL = UNetParams(channels=(320, 640, 1280), attention=(False, True, True), heads=(5, 10, 20), context_width=2048,
                transformer_depth=(1, 2, 10), linear_projection=True, pooled_width=1280, size_width=256)
XL_VAE = VAEParams(scaling=0.13025, upcast=True)
XL_TEXTS = CLIPTextParams(), CLIPTextParams(width=1280, mlp_width=5120, heads=20, layers=32, activation="gelu",
                                            projection=1280)
XL_NAMES = ("unet", "vae", "text", "text_2")


def of_xl() -> tuple[torch.nn.Module, ...]:
    with torch.device("meta"):
        return UNet(XL), VAE(XL_VAE), *map(CLIPText, XL_TEXTS)


def test_names_and_shapes_of_xl():
    ours = of_xl()
    with torch.device("meta"):
        theirs = oracle.unet(XL), oracle.vae(XL_VAE), *map(oracle.text, XL_TEXTS)
    for our, their in zip(ours, theirs, strict=True):
        state = oracle.text_state(their) if isinstance(our, CLIPText) else their.state_dict()
        assert shapes(our.state_dict()) == shapes(state)
    assert [len(m.state_dict()) for m in ours] == [1680, 248, 196, 517]
    assert [count(m) for m in ours] == [2_567_463_684, 83_653_863, 123_060_480, 694_659_840]
    assert len([s for s in ours[0].sites() if s.kind == "self"]) == 70


def test_single_file_of_xl_is_recognised_from_its_shapes(tmp_path):
    networks = of_xl()
    unet, vae, *texts = (m.state_dict() for m in networks)
    with torch.device("meta"):
        stored = compvis.checkpoint(unet, vae, texts[0], "XL", 2, texts[1])
    assert len(stored) == 2515  # as in sd_xl_base_1.0.safetensors
    tensors = {key: Stored(tmp_path, None, key, tuple(value.shape), "F16") for key, value in stored.items()}
    file = take_apart(tmp_path, tensors)
    assert (file.family, file.unet, file.vae, file.texts) == ("XL", XL, XL_VAE, XL_TEXTS)
    for part, network in zip(XL_NAMES, networks, strict=True):
        ours = {key: s.shape[:2] if s.shape[2:] == (1, 1) else s.shape for key, s in file.tensors[part].items()}
        theirs = {key: s[:2] if s[2:] == (1, 1) else s for key, s in shapes(network.state_dict()).items()}
        assert ours == theirs


def test_old_names():
    assert renames.folder_vae("decoder.mid_block.attentions.0.proj_attn.bias") == \
        "decoder.mid_block.attentions.0.to_out.0.bias"
    assert renames.folder_text("text_model.embeddings.position_ids") is None
    assert renames.folder_text("final_layer_norm.bias") == "text_model.final_layer_norm.bias"
