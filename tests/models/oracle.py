"""diffusers' and transformers' modules of the same shapes as ours: what the parity tests measure against."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.unet import UNetParams
from sage.models.sd.vae import VAEParams

# Small kin of every family: the topology that tells them apart, and no more.
UNETS = {
    "1.x": UNetParams(channels=(32, 64, 64, 64), heads=(8, 8, 8, 8), context_width=24),
    "2.x": UNetParams(channels=(32, 64, 96, 96), heads=(1, 2, 4, 4), context_width=32, linear_projection=True),
    "2.1": UNetParams(channels=(32, 64), attention=(True, False), heads=(2, 4), context_width=32,
                      linear_projection=True, upcast_attention=True, transformer_depth=2),
    "stilllife": UNetParams(channels=(64, 128, 192), attention=(True, True, True), layers_per_block=1, heads=(4, 4, 6),
                            context_width=48),
}
VAES = {
    "sd": VAEParams(channels=(32, 64, 64, 64)),
    "stilllife": VAEParams(channels=(32, 64, 96), layers_per_block=1, scaling=0.9),
}
TEXTS = {
    "1.x": CLIPTextParams(width=24, mlp_width=96, heads=3, layers=3, vocabulary=99, max_length=20),
    "2.x": CLIPTextParams(width=32, mlp_width=64, heads=4, layers=2, vocabulary=99, max_length=20, activation="gelu"),
}


def unet(p: UNetParams, **options) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in p.attention)
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
        latent_channels=p.latent_channels, norm_num_groups=p.groups, scaling_factor=p.scaling, **options).eval()


def text(p: CLIPTextParams) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        hidden_size=p.width, intermediate_size=p.mlp_width, num_attention_heads=p.heads, num_hidden_layers=p.layers,
        vocab_size=p.vocabulary, max_position_embeddings=p.max_length, hidden_act=p.activation,
        bos_token_id=0, eos_token_id=1, pad_token_id=1)).eval()


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random biases and norm weights too: at their initial 0 and 1 many mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def text_state(module: CLIPTextModel) -> dict[str, torch.Tensor]:
    """Its weights under the names of the published checkpoints, which transformers 5 shortens."""
    return {key if key.startswith("text_model.") else f"text_model.{key}": value
            for key, value in module.state_dict().items() if not key.endswith("position_ids")}
