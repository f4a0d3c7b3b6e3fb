"""The config.json files of a diffusers folder of FLUX.1 -> parameters; what these networks cannot do is refused."""

import math

from sage.models.flow.t5 import T5Params
from sage.models.flow.transformer import FluxParams
from sage.models.sd import configs
from sage.models.sd.configs import Config
from sage.models.sd.vae import VAEParams
from sage.sampling.levels import FlowParams

TRANSFORMER_FIXED = {"_class_name": "FluxTransformer2DModel", "patch_size": 1}
# The autoencoders of flows may shift their latents, and do without the convolutions between.
VAE_FIXED = {key: value for key, value in configs.VAE_FIXED.items()
             if key not in ("shift_factor", "use_quant_conv", "use_post_quant_conv")}
T5_FIXED = {"feed_forward_proj": "gated-gelu"}
SCHEDULER_FIXED = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": False, "shift_terminal": None,
    "time_shift_type": "exponential", "use_beta_sigmas": False, "use_exponential_sigmas": False,
    "use_karras_sigmas": False}
MLP_RATIO = 4  # which the format does not say
MOST_TOKENS = 2**20


def transformer_params(c: Config, latent_channels: int) -> FluxParams:
    """transformer/config.json -> parameters."""
    c.require(TRANSFORMER_FIXED)
    wide, heads, head = c.get("in_channels", 64, int), c.get("num_attention_heads", 24, int), (
        c.get("attention_head_dim", 128, int))
    if c.get("out_channels", wide, int) != wide:
        raise c.fail("out_channels", f"which is not supported: only the {wide} that go in; Fill, Canny and Depth "
                                     "models are another kind")
    return FluxParams(
        channels=latent_channels, patch=patch_of(c, wide, latent_channels), width=heads * head, heads=heads,
        mlp_width=MLP_RATIO * heads * head, depth=c.get("num_layers", 19, int),
        depth_single=c.get("num_single_layers", 38, int), context_width=c.get("joint_attention_dim", 4096, int),
        pooled_width=c.get("pooled_projection_dim", 768, int), axes=c.several("axes_dims_rope", (16, 56, 56), int, 3),
        guidance=c.get("guidance_embeds", False, bool))


def patch_of(c: Config, wide: int, latent_channels: int) -> int:
    """How many latents along each side make a token, of `wide` numbers."""
    patch = math.isqrt(max(wide, 0) // max(latent_channels, 1))
    if patch not in (1, 2, 4, 8) or patch**2 * latent_channels != wide:
        raise c.fail("in_channels", f"and tokens of so many numbers are no squares of the {latent_channels} channels "
                                    "of the latents; Fill, Canny and Depth models are not supported")
    return patch


def vae_params(c: Config) -> tuple[VAEParams, int]:
    """vae/config.json -> parameters, and the side of the pictures that the model was trained at."""
    side = c.several("sample_size", 1024, int)
    if not 1 <= min(side) <= max(side) <= 8 * configs.MAX_SIDE:
        raise c.fail("sample_size", f"where from 1 to {8 * configs.MAX_SIDE} is expected")
    return configs.vae_params(c, VAE_FIXED), max(side)


def t5_params(c: Config) -> T5Params:
    """text_encoder_2/config.json -> parameters."""
    c.require(T5_FIXED)
    params = T5Params(
        width=c.get("d_model", 512, int), head_width=c.get("d_kv", 64, int), heads=c.get("num_heads", 8, int),
        mlp_width=c.get("d_ff", 2048, int), layers=c.get("num_layers", 6, int),
        vocabulary=c.get("vocab_size", 32128, int), buckets=c.within("relative_attention_num_buckets", 32, 8, 1024),
        max_distance=c.within("relative_attention_max_distance", 128, 1, MOST_TOKENS),
        eps=c.within("layer_norm_epsilon", 1e-6, 0, 1))
    if params.max_distance <= params.buckets // 4:
        raise c.fail("relative_attention_max_distance", f"which {params.buckets} buckets are too many for")
    return params


def flow_params(c: Config, patch: int) -> FlowParams:
    """scheduler/scheduler_config.json -> how steps are shifted."""
    c.require(SCHEDULER_FIXED)
    d = FlowParams()
    params = FlowParams(
        dynamic=c.get("use_dynamic_shifting", False, bool), shift=c.within("shift", d.shift, 1e-3, 1e3),
        base_shift=c.within("base_shift", d.base_shift, -10, 10),
        max_shift=c.within("max_shift", d.max_shift, -10, 10),
        base_tokens=c.within("base_image_seq_len", d.base_tokens, 1, MOST_TOKENS),
        max_tokens=c.within("max_image_seq_len", d.max_tokens, 1, MOST_TOKENS), patch=patch)
    if params.base_tokens >= params.max_tokens:
        raise c.fail("max_image_seq_len", f"where more than base_image_seq_len, {params.base_tokens}, are expected")
    return params
