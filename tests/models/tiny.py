"""Whole models, tiny, as diffusers and transformers write them: folders to load, break and serve."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from tests.models import compvis, oracle

# Widths of 64 and groups of 32, so that a single file, which says neither heads nor groups, can hold them too.
UNETS = {"1.x": UNetParams(channels=(32, 64), attention=(True, False), heads=(8, 8), context_width=64),
         "2.x": UNetParams(channels=(64, 128), attention=(True, False), heads=(1, 2), context_width=64,
                           linear_projection=True, upcast_attention=True),
         "XL": UNetParams(channels=(64, 64, 128), attention=(False, True, True), heads=(1, 1, 2),
                          transformer_depth=(1, 1, 2), layers_per_block=1, context_width=128, linear_projection=True,
                          pooled_width=24, size_width=256)}
VAE = VAEParams(channels=(32, 64), layers_per_block=1)
TEXTS = {"1.x": CLIPTextParams(width=64, mlp_width=128, heads=1, layers=2, vocabulary=600, max_length=77),
         "2.x": CLIPTextParams(width=64, mlp_width=128, heads=1, layers=2, vocabulary=600, max_length=77,
                               activation="gelu")}
TEXTS["XL"], TEXT_2 = TEXTS["1.x"], replace(TEXTS["2.x"], projection=24)
BASES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
         "text_encoder_2": "model"}


def parts(folder):
    """The folders of weights that a checkpoint has: there is one text encoder more in XL."""
    return [part for part in BASES if (folder / part).is_dir()]


@dataclass(frozen=True)
class Tiny:
    """A model on disk, and the oracle's modules that hold its weights."""

    folder: Path
    family: str
    unet: torch.nn.Module
    vae: torch.nn.Module
    text: torch.nn.Module
    text_2: torch.nn.Module | None = None

    def single_file(self, path: Path, metadata: dict[str, str] | None = None) -> Path:
        stored = compvis.checkpoint(self.unet.state_dict(), self.vae.state_dict(), oracle.text_state(self.text),
                                    self.family, UNETS[self.family].layers_per_block,
                                    None if self.text_2 is None else oracle.text_state(self.text_2))
        save_file({key: value.contiguous() for key, value in stored.items()}, path, metadata)
        return path


def tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    """A CLIP vocabulary of single letters, and of "!" first as in the real one."""
    folder.mkdir(parents=True)
    letters = ["!", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}))
    assert CLIPTokenizer.from_pretrained(str(folder))("cat").input_ids == [len(tokens) - 2, len(tokens) - 3,
                                                                          len(tokens) - 1]


def make(folder: Path, family: str = "1.x", prediction: str = "epsilon", scheduler: object = None) -> Tiny:
    """Write a model with `save_pretrained`, its text encoders under the published names."""
    torch.manual_seed(0)
    unet = oracle.shaken(oracle.unet(UNETS[family], sample_size=16))
    vae = oracle.shaken(oracle.vae(replace(VAE, scaling=0.13025) if family == "XL" else VAE))
    # The end mark is said to be 2, as in the published files: transformers then takes the highest number for it.
    texts = {"text_encoder": oracle.shaken(oracle.text(TEXTS[family], end=2 if family == "XL" else 1))}
    if family == "XL":
        texts["text_encoder_2"] = oracle.shaken(oracle.text(TEXT_2, end=2), seed=1)
        tokenizer(folder / "tokenizer_2", "!")
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    for part, text in texts.items():
        text.save_pretrained(folder / part)
        save_file(oracle.text_state(text), folder / part / "model.safetensors")
    scheduler = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        set_alpha_to_one=False, prediction_type=prediction)
    scheduler.save_pretrained(folder / "scheduler")
    tokenizer(folder / "tokenizer")
    kind = "StableDiffusionXLPipeline" if family == "XL" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return Tiny(folder, family, unet, vae, *texts.values())


def weights(folder: Path, part: str, variant: str = "") -> Path:
    return folder / part / f"{BASES[part]}{variant}.safetensors"


def rewrite(path: Path, change) -> None:
    """Load a weight file, let `change` edit the dictionary, and write it back."""
    state = load_file(path)
    change(state)
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def configure(path: Path, **values) -> None:
    """Edit a config.json; None takes a key out."""
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
