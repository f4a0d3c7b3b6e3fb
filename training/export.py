"""The trained averages -> a diffusers folder in float16, which `sage.load_model` reads like any other."""

import filecmp
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from sage.models.flow.transformer import FluxParams
from sage.models.folders import SHARED
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams
from sage.prompts import vocabulary
from sage.sampling.levels import FlowParams, ScheduleParams
from training import tokenizer
from training.data import SIDE
from training.networks import CLEAN, FLOW_SCHEDULE, FLOWING, SCHEDULE, assemble, assemble_flow

SETTINGS = "settings.json"
KEPT = ("vae", "text_encoder", "tokenizer")  # what a model may have of the one that taught it


def unet_config(p: UNetParams, latent_side: int) -> dict:
    cross = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in p.attention]
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": p.size_width,
            "projection_class_embeddings_input_dim": p.added_width,
            "transformer_layers_per_block": p.depths} if p.pooled_width else {}  # as XL is
    return {
        "_class_name": "UNet2DConditionModel", "sample_size": latent_side, "in_channels": p.in_channels,
        "out_channels": p.out_channels, "block_out_channels": p.channels, "down_block_types": cross,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(cross)],
        "mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": p.layers_per_block,
        "attention_head_dim": p.heads, "cross_attention_dim": p.context_width, "norm_num_groups": p.groups,
        "norm_eps": p.norm_eps, "use_linear_projection": p.linear_projection, "upcast_attention": p.upcast_attention,
        "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
        "center_input_sample": False, **told}


def vae_config(p: VAEParams, side: int) -> dict:
    return {
        "_class_name": "AutoencoderKL", "sample_size": side, "in_channels": 3, "out_channels": 3,
        "latent_channels": p.latent_channels, "block_out_channels": p.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(p.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(p.channels), "layers_per_block": p.layers_per_block,
        "norm_num_groups": p.groups, "scaling_factor": p.scaling, "act_fn": "silu"}


def text_config(p: CLIPTextParams) -> dict:
    projected = {"projection_dim": p.projection} if p.projection else {}
    return {
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"], **projected,
        "model_type": "clip_text_model", "hidden_size": p.width,
        "intermediate_size": p.mlp_width, "num_attention_heads": p.heads, "num_hidden_layers": p.layers,
        "vocab_size": p.vocabulary, "max_position_embeddings": p.max_length, "hidden_act": p.activation,
        "layer_norm_eps": 1e-5}


def scheduler_config(p: ScheduleParams) -> dict:
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": p.train_steps, "beta_start": p.beta_start,
        "beta_end": p.beta_end, "beta_schedule": p.beta_schedule, "steps_offset": p.steps_offset,
        "set_alpha_to_one": p.set_alpha_to_one, "clip_sample": False, "prediction_type": "v_prediction"}


def transformer_config(p: FluxParams) -> dict:
    return {
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": p.token_width,
        "num_layers": p.depth, "num_single_layers": p.depth_single, "attention_head_dim": p.width // p.heads,
        "num_attention_heads": p.heads, "joint_attention_dim": p.context_width,
        "pooled_projection_dim": p.pooled_width, "guidance_embeds": p.guidance, "axes_dims_rope": p.axes}


def flow_config(p: FlowParams) -> dict:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": p.shift,
        "use_dynamic_shifting": p.dynamic, "base_shift": p.base_shift, "max_shift": p.max_shift,
        "base_image_seq_len": p.base_tokens, "max_image_seq_len": p.max_tokens}


def export(out: Path, weights: Path, course: str = CLEAN, settings_of: Path | None = None) -> None:
    """Write the model trained under `out` into the folder `weights`, replacing the networks there.

    Args:
        course: the training whose UNet and text encoder are written.
        settings_of: a model whose settings are recommended for it where the folder has none.
    """
    model = assemble(out, course)
    networks = {"unet": (model.unet, unet_config(model.unet.params, SIDE // model.vae.factor)),
                "vae": (model.vae, vae_config(model.vae.params, SIDE)),
                "text_encoder": (model.text, text_config(model.text.params))}
    _write(out, weights, networks, scheduler_config(SCHEDULE), course)
    if settings_of is not None and not (weights / SETTINGS).exists() and (settings_of / SETTINGS).is_file():
        shutil.copy(settings_of / SETTINGS, weights / SETTINGS)


def export_flow(out: Path, weights: Path, of: Path | None = None) -> None:
    """The same of the flow; settings are recommended where the folder has none: the family's own are of FLUX.1.

    Args:
        of: the model that its latents and words are of; parts that are the same are left to it where it lies beside.
    """
    model = assemble_flow(out)
    networks = {"transformer": (model.transformer, transformer_config(model.transformer.params)),
                "vae": (model.vae, vae_config(model.vae.params, SIDE)),
                "text_encoder": (model.text, text_config(model.text.params))}
    _write(out, weights, networks, flow_config(FLOW_SCHEDULE), FLOWING)
    if not (weights / SETTINGS).exists():
        write_json(weights / SETTINGS, {"generate/plain": {"steps": 25, "guidance_scale": 3.0}})
    if of is not None and of.resolve().parent == weights.resolve().parent:
        _share(weights, of.resolve())


def _share(weights: Path, lender: Path) -> None:
    """Leave to a model beside this one what both have, byte for byte."""
    same = [part for part in KEPT if _equal(weights / part, lender / part)]
    write_json(weights / SHARED, dict.fromkeys(same, lender.name))
    for part in same:
        shutil.rmtree(weights / part)


def _equal(ours: Path, theirs: Path) -> bool:
    names = sorted(path.name for path in ours.iterdir())
    return (theirs.is_dir() and names == sorted(path.name for path in theirs.iterdir())
            and not any(filecmp.cmpfiles(ours, theirs, names, shallow=False)[1:]))


def _write(out: Path, weights: Path, networks: Mapping[str, tuple[nn.Module, dict]], scheduler: dict,
           course: str) -> None:
    """Networks with their configurations, the scheduler's, the tokenizer, the words it was made of, and the history."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (weights / "tokenizer").mkdir(parents=True, exist_ok=True)
        shutil.copy(out / "tokenizer" / name, weights / "tokenizer" / name)
    (weights / vocabulary.FILE).write_text("".join(f"{word}\n" for word in tokenizer.taught()))
    history = {name: json.loads((out / f"{name}.jsonl").read_text().splitlines()[-1])
               for name in ("autoencoder", course)}
    write_json(weights / "scheduler" / "scheduler_config.json", scheduler)
    for part, (module, config) in networks.items():
        write_network(weights / part, module, config, "model" if part == "text_encoder" else "diffusion_pytorch_model")
    write_history(weights, history)


def write_network(folder: Path, module: nn.Module, config: dict, base: str = "diffusion_pytorch_model") -> None:
    """Its configuration, and its weights in float16."""
    write_json(folder / "config.json", config)
    temporary = folder / ".partial"
    save_file({k: v.half().contiguous() for k, v in module.state_dict().items()}, temporary, {"format": "pt"})
    temporary.chmod(0o644)  # readable to all, whatever the library thinks
    temporary.replace(folder / f"{base}.fp16.safetensors")


def write_history(weights: Path, history: Mapping[str, object]) -> None:
    """training.json: how the networks were made, and on what."""
    write_json(weights / "training.json", {**history, "torch": torch.__version__, "python": platform.python_version(),
                                           "machine": machine()})


def write_json(path: Path, values: Mapping[str, object]) -> None:
    """In a folder that is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def machine() -> str:
    """What it was trained on, as far as a reader needs to know."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}"
