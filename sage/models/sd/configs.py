"""The configurations of a diffusers folder or pipeline -> parameters, refusing by name what these networks cannot do.

A key that is absent has the default of the library that defines the format.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sage.errors import ModelError
from sage.files import parse_json, read_plain
from sage.models.known import made_for_few
from sage.models.sd.clip import ACTIVATIONS, CLIPTextParams
from sage.models.sd.unet import SIZES, UNetParams
from sage.models.sd.vae import VAEParams
from sage.sampling.levels import ScheduleParams

# What every supported model has; anything else under these keys is another architecture.
UNET_FIXED = {
    "act_fn": "silu", "mid_block_type": "UNetMidBlock2DCrossAttn", "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default", "attention_type": "default", "flip_sin_to_cos": True, "freq_shift": 0,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "resnet_out_scale_factor": 1.0, "conv_in_kernel": 3,
    "conv_out_kernel": 3, "center_input_sample": False, "only_cross_attention": False,
    "mid_block_only_cross_attention": None, "dual_cross_attention": False, "cross_attention_norm": None,
    "class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "time_embedding_dim": None, "time_embedding_act_fn": None,
    "timestep_post_act": None, "time_cond_proj_dim": None, "resnet_skip_time_act": False,
    "reverse_transformer_layers_per_block": None}
VAE_FIXED = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "shift_factor": None, "latents_mean": None,
    "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
SCHEDULER_FIXED = {"trained_betas": None, "thresholding": False}

MAX_BYTES = 2**23  # of a file: a thousand times what any needs, but for the index of many shards
MAX_WIDTH, MAX_LAYERS, MAX_LEVELS, MAX_SIDE, MAX_STEPS = 2**20, 100, 8, 1024, 10_000

UNET_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UNET_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")


class Config:
    """One JSON object whose values are checked as they are read.

    Args:
        path: the file that it is read from; what to call it where there are values.
        values: what it would hold.
    Raises:
        ModelError: a file that is missing or no JSON object, or a value that is not of the type asked for.
    """

    def __init__(self, path: Path, values: Mapping[str, Any] | None = None):
        self.path = path
        if values is not None:
            self.values = dict(values)
            return
        raw = read_plain(path, ModelError, MAX_BYTES)
        try:
            self.values = parse_json(raw.decode())
        except ValueError as error:
            raise ModelError(f"{path} is no readable JSON file ({error})") from error
        if not isinstance(self.values, dict):
            raise ModelError(f"{path} does not hold a JSON object")

    def fail(self, key: str, wanted: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {json.dumps(self.values.get(key), default=str)[:200]}, {wanted}")

    def get(self, key: str, default: Any, kind: type) -> Any:
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            raise self.fail(key, f"where {kind.__name__} is expected")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.fail(key, "which is no finite number")
        return value

    def within(self, key: str, default: Any, low: float, high: float) -> Any:
        """A number of the default's type, from `low` to `high`."""
        value = self.get(key, default, type(default))
        if not low <= value <= high:
            raise self.fail(key, f"where from {low:g} to {high:g} is expected")
        return value

    def several(self, key: str, default: Any, kind: type, length: int | None = None) -> tuple[Any, ...]:
        """A list, or one value that stands for `length` equal ones."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, (list, tuple)):
            values = tuple(value)
        else:
            values = (value,) * (length or 1)
        if not values or any(type(v) is not kind for v in values) or len(values) != (length or len(values)):
            raise self.fail(key, f"where {length or 'some'} of {kind.__name__} are expected")
        return values

    def uniform(self, key: str, default: int) -> int:
        """A number, given once or the same at every level."""
        values = self.several(key, default, int)
        if len(set(values)) > 1:
            raise self.fail(key, "which is not supported: it must be the same at every level")
        return values[0]

    def require(self, fixed: dict[str, Any]) -> None:
        for key, wanted in fixed.items():
            value = self.values.get(key, wanted)
            off = not (any(value) if isinstance(value, list) else value)
            if value != wanted and not (off and not wanted):
                raise self.fail(key, f"which is not supported: only {wanted!r} is")


def unet_params(c: Config) -> tuple[UNetParams, int]:
    """unet/config.json -> parameters, and the side of the latents that the UNet was trained at."""
    c.require(UNET_FIXED)
    channels = c.several("block_out_channels", (320, 640, 1280, 1280), int)
    down = c.several("down_block_types", UNET_DOWN, str, len(channels))
    up = c.several("up_block_types", UNET_UP, str, len(channels))
    if unknown := set(down) - {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise c.fail("down_block_types", f"and {min(unknown)} is not supported")
    if up != tuple(block.replace("Down", "Up") for block in reversed(down)):
        raise c.fail("up_block_types", "which is not supported: it must mirror down_block_types")
    # The format's `attention_head_dim` is the number of heads, unless `num_attention_heads` says so itself.
    heads = "attention_head_dim" if c.values.get("num_attention_heads") is None else "num_attention_heads"
    side = c.several("sample_size", 64, int)
    if not 1 <= min(side) <= max(side) <= MAX_SIDE:
        raise c.fail("sample_size", f"where from 1 to {MAX_SIDE} is expected")
    pooled, features = _added(c)
    return UNetParams(
        in_channels=c.get("in_channels", 4, int),
        out_channels=c.get("out_channels", 4, int),
        channels=channels,
        attention=tuple("CrossAttn" in block for block in down),
        layers_per_block=c.uniform("layers_per_block", 2),
        heads=c.several(heads, 8, int, len(channels)),
        transformer_depth=one_or_all(c.several("transformer_layers_per_block", 1, int, len(channels))),
        context_width=c.uniform("cross_attention_dim", 1280),
        groups=c.get("norm_num_groups", 32, int),
        norm_eps=c.within("norm_eps", 1e-5, 0, 1),
        linear_projection=c.get("use_linear_projection", False, bool),
        upcast_attention=c.get("upcast_attention", False, bool),
        pooled_width=pooled,
        size_width=features), max(side)


def _added(c: Config) -> tuple[int, int]:
    """The numbers of pooled text, and the features of each of the numbers that tell sizes, of XL; else 0."""
    if (kind := c.values.get("addition_embed_type")) is None:
        return 0, 0
    if kind != "text_time":
        raise c.fail("addition_embed_type", "which is not supported: only null and text_time are")
    features = c.within("addition_time_embed_dim", 256, 2, MAX_WIDTH)
    pooled = c.within("projection_class_embeddings_input_dim", 0, 0, MAX_WIDTH) - SIZES * features
    if features % 2 or pooled < 1:
        raise c.fail("projection_class_embeddings_input_dim", f"which {SIZES} numbers of {features} features each "
                                                              "leave no pooled text")
    return pooled, features


def one_or_all(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """A number that is the same at every level, or all of them."""
    return values[0] if len(set(values)) == 1 else values


def vae_params(c: Config, fixed: dict[str, Any] = VAE_FIXED) -> VAEParams:
    """vae/config.json -> parameters.

    Args:
        fixed: what the family's autoencoders have in common.
    """
    c.require(fixed)
    if (quant := c.get("use_quant_conv", True, bool)) != c.get("use_post_quant_conv", True, bool):
        raise c.fail("use_post_quant_conv", "which is not supported: it must be as use_quant_conv")
    channels = c.several("block_out_channels", (64,), int)
    for key, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if set(c.several(key, block, str, len(channels))) != {block}:
            raise c.fail(key, f"which is not supported: only {block} is")
    return VAEParams(
        channels=channels,
        layers_per_block=c.uniform("layers_per_block", 1),
        latent_channels=c.get("latent_channels", 4, int),
        groups=c.get("norm_num_groups", 32, int),
        scaling=c.within("scaling_factor", 0.18215, 1e-4, 1e4),
        shift=c.within("shift_factor", 0.0, -1e4, 1e4),
        quant_convs=quant)


def text_params(c: Config, projects: bool = False) -> CLIPTextParams:
    """text_encoder/config.json -> parameters.

    Args:
        projects: its end mark is projected; other encoders' files name a width for that too, and have no weights.
    """
    c.require({"layer_norm_eps": 1e-5})
    activation = c.get("hidden_act", "quick_gelu", str)
    if activation not in ACTIVATIONS:
        raise c.fail("hidden_act", f"which is not supported: {' or '.join(ACTIVATIONS)}")
    return CLIPTextParams(
        width=c.get("hidden_size", 512, int),
        mlp_width=c.get("intermediate_size", 2048, int),
        heads=c.get("num_attention_heads", 8, int),
        layers=c.get("num_hidden_layers", 12, int),
        vocabulary=c.get("vocab_size", 49408, int),
        max_length=c.get("max_position_embeddings", 77, int),
        activation=activation,
        projection=c.within("projection_dim", 512, 1, MAX_WIDTH) if projects else 0)


def schedule_params(c: Config) -> tuple[ScheduleParams, str]:
    """scheduler/scheduler_config.json -> the noise schedule, and the prediction type (epsilon where none is named).

    Which sampler the file names is of no account, nor what that sampler would clip; its noise levels are.
    """
    c.require(SCHEDULER_FIXED)
    d = ScheduleParams()
    prediction = c.get("prediction_type", "epsilon", str)
    if prediction not in ("epsilon", "v_prediction"):
        raise c.fail("prediction_type", "which is not supported: epsilon or v_prediction")
    betas = c.get("beta_schedule", d.beta_schedule, str)
    if betas not in ("linear", "scaled_linear"):
        raise c.fail("beta_schedule", "which is not supported: linear or scaled_linear")
    return ScheduleParams(
        train_steps=c.within("num_train_timesteps", d.train_steps, 1, MAX_STEPS),
        beta_start=c.within("beta_start", d.beta_start, 0, 1),
        beta_end=c.within("beta_end", d.beta_end, 0, 1),
        beta_schedule=betas,
        steps_offset=c.within("steps_offset", d.steps_offset, 0, MAX_STEPS),
        # The samplers of few-step students end without noise, whatever this says.
        set_alpha_to_one=c.get("set_alpha_to_one", d.set_alpha_to_one, bool) or is_student(c),
        zero_terminal_snr=c.get("rescale_betas_zero_snr", d.zero_terminal_snr, bool)), prediction


def is_student(c: Config) -> bool:
    """Whether a schedule is that of a network for few steps."""
    return made_for_few(c.get("_class_name", "", str), c.get("timestep_spacing", "leading", str),
                        c.get("rescale_betas_zero_snr", False, bool))


def is_ancestral(c: Config) -> bool:
    """Whether the sampler that a schedule names draws new noise at every step."""
    return "Ancestral" in c.get("_class_name", "", str)
