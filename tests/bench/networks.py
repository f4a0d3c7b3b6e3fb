"""The networks of the published protocols, tiny and random, as a folder that `--extractors` takes."""

import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from sage.bench.extractors import CLIP_B32, CLIP_L14, DINO_B8, DINO_S16, DINOV2
from sage.bench.lpips import NETS
from tests.models.tiny import tokenizer

TEXT = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=58,
            max_position_embeddings=77, bos_token_id=56, eos_token_id=57, pad_token_id=57)
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224,
              patch_size=56)


def make_networks(folder: Path) -> Path:
    torch.manual_seed(0)
    for dino, clip in ((DINO_B8, CLIP_L14), (DINO_S16, CLIP_B32)):
        config = ViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
                           image_size=224, patch_size=32)
        _shaken(ViTModel(config, add_pooling_layer=False)).save_pretrained(folder / dino.name)
        _shaken(CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))).save_pretrained(
            folder / clip.name)
        tokenizer(folder / "tokenizer")
        shutil.copytree(folder / "tokenizer", folder / clip.name, dirs_exist_ok=True)
        shutil.rmtree(folder / "tokenizer")
    for net in NETS.values():
        torch.save({f"features.{key}": value for key, value in net.features().state_dict().items()}
                   | {"classifier.1.weight": torch.zeros(1000, 512, 1, 1)}, folder / net.file)
    patches = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=28)
    _shaken(Dinov2Model(patches)).save_pretrained(folder / DINOV2.name)
    return folder


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """No weight at its initial value of 0 or 1, and none too small to matter."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model
