"""diffusers' and transformers' modules of the same shapes as ours: what the parity tests measure against."""

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sage.models.flow.t5 import T5Params
from sage.models.flow.transformer import FluxParams
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams

# Small kin of every family: the topology that tells them apart, and no more.
UNETS = {
    "1.x": UNetParams(channels=(32, 64, 64, 64), heads=(8, 8, 8, 8), context_width=24),
    "2.x": UNetParams(channels=(32, 64, 96, 96), heads=(1, 2, 4, 4), context_width=32, linear_projection=True),
    "2.1": UNetParams(channels=(32, 64), attention=(True, False), heads=(2, 4), context_width=32,
                      linear_projection=True, upcast_attention=True, transformer_depth=2),
    "XL": UNetParams(channels=(32, 64, 96), attention=(False, True, True), heads=(1, 2, 3), transformer_depth=(1, 2, 3),
                     context_width=40, linear_projection=True, pooled_width=20, size_width=8),
    "stilllife": UNetParams(channels=(64, 128, 192), attention=(True, True, True), layers_per_block=1, heads=(4, 4, 6),
                            context_width=48),
}
VAES = {
    "sd": VAEParams(channels=(32, 64, 64, 64)),
    "stilllife": VAEParams(channels=(32, 64, 96), layers_per_block=1, scaling=0.9),
    "flux": VAEParams(channels=(32, 64), latent_channels=16, scaling=0.3611, shift=0.1159, quant_convs=False),
}
FLUXES = {
    "dev": FluxParams(channels=4, width=64, heads=2, mlp_width=256, depth=2, depth_single=3, context_width=24,
                      pooled_width=20, axes=(4, 14, 14)),
    "schnell": FluxParams(channels=4, width=96, heads=3, mlp_width=384, depth=1, depth_single=2, context_width=32,
                          pooled_width=24, axes=(8, 12, 12), guidance=False),
    "patch 1": FluxParams(channels=4, patch=1, width=32, heads=2, mlp_width=128, depth=1, depth_single=1,
                          context_width=16, pooled_width=16, axes=(4, 6, 6), guidance=False),
}
T5S = {"one": T5Params(width=24, head_width=8, heads=4, mlp_width=40, layers=3, vocabulary=99)}
TEXTS = {
    "1.x": CLIPTextParams(width=24, mlp_width=96, heads=3, layers=3, vocabulary=99, max_length=20),
    "2.x": CLIPTextParams(width=32, mlp_width=64, heads=4, layers=2, vocabulary=99, max_length=20, activation="gelu"),
    "XL": CLIPTextParams(width=32, mlp_width=64, heads=4, layers=3, vocabulary=99, max_length=20, activation="gelu",
                         projection=20),
}


def unet(p: UNetParams, **options) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in p.attention)
    if p.added_width:
        options |= {"addition_embed_type": "text_time", "addition_time_embed_dim": p.size_width,
                    "projection_class_embeddings_input_dim": p.added_width}
    return UNet2DConditionModel(
        in_channels=p.in_channels, out_channels=p.out_channels, block_out_channels=p.channels, down_block_types=down,
        up_block_types=tuple(d.replace("Down", "Up") for d in reversed(down)), layers_per_block=p.layers_per_block,
        attention_head_dim=p.heads, transformer_layers_per_block=p.transformer_depth,
        cross_attention_dim=p.context_width, norm_num_groups=p.groups, norm_eps=p.norm_eps,
        use_linear_projection=p.linear_projection, upcast_attention=p.upcast_attention, **options).eval()


def vae(p: VAEParams, **options) -> AutoencoderKL:
    n = len(p.channels)
    return AutoencoderKL(
        block_out_channels=p.channels, down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n, layers_per_block=p.layers_per_block,
        latent_channels=p.latent_channels, norm_num_groups=p.groups, scaling_factor=p.scaling,
        shift_factor=p.shift or None, use_quant_conv=p.quant_convs, use_post_quant_conv=p.quant_convs,
        **options).eval()


def noise(theirs: UNet2DConditionModel, z: torch.Tensor, t: torch.Tensor | float, context: torch.Tensor,
          told: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    """What diffusers' UNet gives, told pooled text and sizes or not."""
    more = {} if told is None else {"added_cond_kwargs": {"text_embeds": told[0], "time_ids": told[1]}}
    return theirs(z, t, encoder_hidden_states=context, **more).sample


def text(p: CLIPTextParams, end: int = 1) -> CLIPTextModel | CLIPTextModelWithProjection:
    made = CLIPTextModelWithProjection if p.projection else CLIPTextModel
    return made(CLIPTextConfig(
        hidden_size=p.width, intermediate_size=p.mlp_width, num_attention_heads=p.heads, num_hidden_layers=p.layers,
        vocab_size=p.vocabulary, max_position_embeddings=p.max_length, hidden_act=p.activation,
        projection_dim=p.projection or 512, bos_token_id=0, eos_token_id=end, pad_token_id=1)).eval()


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random biases and norm weights too: at their initial 0 and 1 many mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def text_state(module: CLIPTextModel) -> dict[str, torch.Tensor]:
    """Its weights under the names of the published checkpoints, which transformers 5 shortens."""
    return {key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}": value
            for key, value in module.state_dict().items() if not key.endswith("position_ids")}


def flux(p: FluxParams, **options) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=p.token_width, num_layers=p.depth, num_single_layers=p.depth_single,
        attention_head_dim=p.width // p.heads, num_attention_heads=p.heads, joint_attention_dim=p.context_width,
        pooled_projection_dim=p.pooled_width, guidance_embeds=p.guidance, axes_dims_rope=p.axes, **options).eval()


def t5(p: T5Params) -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=p.vocabulary, d_model=p.width, d_kv=p.head_width, d_ff=p.mlp_width, num_layers=p.layers,
        num_heads=p.heads, relative_attention_num_buckets=p.buckets, relative_attention_max_distance=p.max_distance,
        layer_norm_epsilon=p.eps, feed_forward_proj="gated-gelu", tie_word_embeddings=False)).eval()


def velocity(theirs: FluxTransformer2DModel, z: torch.Tensor, t: torch.Tensor, context: torch.Tensor,
             pooled: torch.Tensor, guidance: torch.Tensor | None, patch: int = 2) -> torch.Tensor:
    """What diffusers' transformer gives for latents (B, C, h, w), packed as its pipeline packs them."""
    b, c, h, w = z.shape
    rows, columns = h // patch, w // patch
    tokens = z.view(b, c, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)
    ids = torch.stack([torch.zeros(rows, columns), *torch.meshgrid(torch.arange(rows), torch.arange(columns),
                                                                   indexing="ij")], dim=-1).reshape(-1, 3)
    out = theirs(tokens, context, pooled, t, ids, torch.zeros(context.shape[1], 3), guidance).sample
    return out.view(b, rows, columns, c, patch, patch).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)
