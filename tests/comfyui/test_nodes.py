"""The nodes keep ComfyUI's contract, and give what the public functions give."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import comfyui
import sage
from comfyui import nodes
from sage.pictures.metadata import read_record
from tests import small

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"
EDITS = sorted(set(comfyui.NODE_CLASS_MAPPINGS) - {"SAGE load model"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("comfy") / "tokenizer").model


@pytest.fixture(scope="module")
def image():
    pictures = [np.array(small.picture(64, 64, seed)) for seed in (0, 1)]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def defaults(node) -> dict:
    """What ComfyUI sends for every widget that nobody touched."""
    found = {}
    for name, (kind, *options) in node.INPUT_TYPES()["optional"].items():
        if kind != "MASK":
            found[name] = options[0]["default"] if "default" in (options or [{}])[0] else kind[0]
    return found


@pytest.mark.parametrize("name", comfyui.NODE_CLASS_MAPPINGS)
def test_the_contract(name):
    node = comfyui.NODE_CLASS_MAPPINGS[name]
    assert comfyui.NODE_DISPLAY_NAME_MAPPINGS[name].startswith("SAGE: ") and node.CATEGORY == "SAGE"
    assert callable(getattr(node(), node.FUNCTION)) and len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    given = node.INPUT_TYPES()
    assert {"required"} <= given.keys() <= {"required", "optional", "hidden"}
    json.dumps(given)  # the page gets them as JSON
    for kind, *options in [*given["required"].values(), *given.get("optional", {}).values()]:
        about = options[0] if options else {}
        if isinstance(kind, list):
            assert kind and about.get("default", kind[0]) in kind
        elif kind in ("INT", "FLOAT"):
            assert type(about["default"]) is {"INT": int, "FLOAT": float}[kind]
            assert about["min"] <= about["default"] <= about["max"] and about["step"] > 0
            assert all(math.isfinite(about[limit]) for limit in ("min", "max"))
        else:
            assert kind in ("STRING", "BOOLEAN", "MASK", "IMAGE", "SAGE_MODEL")


@pytest.mark.parametrize("name", EDITS)
def test_untouched_widgets_change_nothing(name):
    node = comfyui.NODE_CLASS_MAPPINGS[name]
    assert nodes.changed(sage.method(node.METHOD).Settings, defaults(node)) == {}
    assert (nodes.MASK in node.INPUT_TYPES()["optional"]) == ("mask" in sage.method(node.METHOD).reads)


def test_a_model_is_loaded_by_its_place(monkeypatch):
    seen = []
    monkeypatch.setattr(sage, "load_model", lambda *args, **more: seen.append((args, more)) or "model")
    load = nodes.LoadModel().load
    assert load("stilllife") == ("model",)
    assert load(nodes.NAMES, " /a/b ", "x.safetensors:0.5\n\ny.safetensors", "cpu", "float32") == ("model",)
    assert seen == [(("stilllife", None, None), {"lora": []}),
                    (("/a/b", "cpu", "float32"), {"lora": ["x.safetensors:0.5", "y.safetensors"]})]


def test_an_edit_is_that_of_the_library(model, image, tmp_path):
    node, info = comfyui.NODE_CLASS_MAPPINGS["SAGE p2p"], {}
    values = defaults(node) | {"steps": 2, "reweight": "mat:1.5"}
    out, settings = node().edit(model, image, SOURCE, TARGET, extra_pnginfo=info, **values)
    assert out.shape == image.shape and out.dtype == torch.float32 and 0 <= out.min() and out.max() <= 1
    config = sage.method("p2p").recommended(model).but(steps=2, reweight={"mat": 1.5})
    for i in range(2):
        theirs = sage.edit(model, small.picture(64, 64, i), SOURCE, TARGET, config).image
        assert np.array_equal((out[i] * 255).round().numpy(), np.asarray(theirs))
    assert json.loads(settings) == info["sage"] and info["sage"]["settings"] == config.as_dict()
    text = PngImagePlugin.PngInfo()
    for key in info:  # as ComfyUI's node that saves does
        text.add_text(key, json.dumps(info[key]))
    Image.fromarray((out[0] * 255).byte().numpy()).save(tmp_path / "x.png", pnginfo=text)
    assert read_record(tmp_path / "x.png")["method"] == "p2p"


def test_a_mask_is_where_the_picture_may_change(model, image):
    node = comfyui.NODE_CLASS_MAPPINGS["SAGE flowedit"]
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    values = defaults(node) | {"steps": 3}
    out = node().edit(model, image[:1], SOURCE, TARGET, may_change=mask, **values)[0]
    config = sage.method("flowedit").recommended(model).but(steps=3)
    half = Image.fromarray((mask[0] * 255).byte().numpy())
    theirs = sage.edit(model, small.picture(), SOURCE, TARGET, config, mask=half).image
    assert np.array_equal((out[0] * 255).round().numpy(), np.asarray(theirs))
