"""The trained averages -> a diffusers folder in float16, which `sage.load_model` reads like any other."""

import json
import platform
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from sage.prompts import vocabulary
from sage.sampling.levels import ScheduleParams
from training import tokenizer
from training.data import SIDE
from training.networks import CLEAN, SCHEDULE, assemble


def unet_config(p: UNetParams, latent_side: int) -> dict:
    cross = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in p.attention]
    return {
        "_class_name": "UNet2DConditionModel", "sample_size": latent_side, "in_channels": p.in_channels,
        "out_channels": p.out_channels, "block_out_channels": p.channels, "down_block_types": cross,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(cross)],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": p.layers_per_block,
        "attention_head_dim": p.heads, "cross_attention_dim": p.context_width, "norm_num_groups": p.groups,
        "norm_eps": p.norm_eps, "use_linear_projection": p.linear_projection, "upcast_attention": p.upcast_attention,
        "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
        "center_input_sample": False}


def vae_config(p: VAEParams, side: int) -> dict:
    return {
        "_class_name": "AutoencoderKL", "sample_size": side, "in_channels": 3, "out_channels": 3,
        "latent_channels": p.latent_channels, "block_out_channels": p.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(p.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(p.channels), "layers_per_block": p.layers_per_block,
        "norm_num_groups": p.groups, "scaling_factor": p.scaling, "act_fn": "silu"}


def text_config(p: CLIPTextParams) -> dict:
    return {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": p.width,
        "intermediate_size": p.mlp_width, "num_attention_heads": p.heads, "num_hidden_layers": p.layers,
        "vocab_size": p.vocabulary, "max_position_embeddings": p.max_length, "hidden_act": p.activation,
        "layer_norm_eps": 1e-5}


def scheduler_config(p: ScheduleParams) -> dict:
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": p.train_steps, "beta_start": p.beta_start,
        "beta_end": p.beta_end, "beta_schedule": p.beta_schedule, "steps_offset": p.steps_offset,
        "set_alpha_to_one": p.set_alpha_to_one, "clip_sample": False, "prediction_type": "v_prediction"}


def export(out: Path, weights: Path, course: str = CLEAN) -> None:
    """Write the model trained under `out` into the folder `weights`, replacing the networks there.

    Args:
        course: the training whose UNet and text encoder are written.
    """
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (weights / "tokenizer").mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "tokenizer" / name, weights / "tokenizer" / name)
    (weights / vocabulary.FILE).write_text("".join(f"{word}\n" for word in tokenizer.taught()))
    model = assemble(out, course)
    history = {name: json.loads((out / f"{name}.jsonl").read_text().splitlines()[-1])
               for name in ("autoencoder", course)}
    side = SIDE // model.vae.factor
    configs = {"vae": vae_config(model.vae.params, SIDE), "unet": unet_config(model.unet.params, side),
               "text_encoder": text_config(model.text.params),
               "scheduler": scheduler_config(SCHEDULE)}
    for part, config in configs.items():
        (weights / part).mkdir(exist_ok=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (weights / part / name).write_text(json.dumps(config, indent=2) + "\n")
    for part, module in (("vae", model.vae), ("unet", model.unet), ("text_encoder", model.text)):
        base = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        temporary = weights / part / ".partial"
        save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, temporary, {"format": "pt"})
        temporary.chmod(0o644)  # readable to all, whatever the library thinks
        temporary.replace(weights / part / f"{base}.fp16.safetensors")
    history |= {"torch": torch.__version__, "python": platform.python_version(), "machine": machine()}
    (weights / "training.json").write_text(json.dumps(history, indent=2) + "\n")


def machine() -> str:
    """What it was trained on, as far as a reader needs to know."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
