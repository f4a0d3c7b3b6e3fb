"""Other people's names for our weights, as short tables: ours are those of today's diffusers folders.

A rename maps one stored name to ours, or to None where the weight is known and not needed; or to several, where
several of our weights are stored as one.  A name that no table knows passes unchanged, so that the strict check
reports it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple


class Rows(NamedTuple):
    """The rows of a stored weight that are one of ours: from `begin` to `end`, of `of` equal parts."""

    name: str
    begin: int
    end: int
    of: int


class Turned(NamedTuple):
    """One of our weights, stored with rows and columns the other way round."""

    name: str


Rename = Callable[[str], str | tuple[Rows, ...] | Turned | None]

# Buffers of the first text encoders' checkpoints; made anew by every version of the library.
DROP_TEXT = re.compile(r"(text_model\.)?embeddings\.position_ids$")

OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# Of a single file: what belongs to no network used here.  `model_ema.` holds moving averages of the UNet, which
# fine-tuned files often carry over unchanged from the model they started from.
DROP_SINGLE = ("model_ema.", "first_stage_model.loss.")
DROP_SINGLE_NAMES = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor", "global_step", "cond_stage_model.logit_scale"}
DROP_OPENCLIP = {"logit_scale", "text_projection", "attn_mask"}

UNET_TOP = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
            "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
            "out.0": "conv_norm_out", "out.2": "conv_out"}
UNET_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
               "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
UNET_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}

VAE_SINGLE = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)

OPENCLIP = (
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.attn\.in_proj_(weight|bias)$", r".self_attn.*_proj.\1"),
)


def thirds(name: str) -> tuple[Rows, ...]:
    """Queries, keys and values stored as one; `name` has a "*" in the place of their letter."""
    return tuple(Rows(name.replace("*", letter), i, i + 1, 3) for i, letter in enumerate("qkv"))


def apply(table: tuple[tuple[str, str], ...], key: str) -> str:
    """A name with every pattern of a table replaced, in their order."""
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def folder_unet(key: str) -> str | None:
    """Names of a diffusers UNet, which are ours."""
    return key


def folder_vae(key: str) -> str | None:
    """Names of a diffusers autoencoder; its attention was renamed once."""
    return re.sub(r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)",
                  lambda m: OLD_VAE_ATTENTION[m[0]], key)


def folder_text(key: str) -> str | None:
    """Names of a transformers text encoder; version 5 writes them without the outer `text_model.`."""
    if DROP_TEXT.match(key):
        return None
    return "text_model." + key if key.startswith(("embeddings.", "encoder.", "final_layer_norm.")) else key


def single_unet(layers: int) -> Rename:
    """Names of a CompVis UNet with `layers` ResBlocks a level, without `model.diffusion_model.`.

    Its blocks are one list: level b of the way down holds entries 1 + b (layers + 1) onwards, the last of them the
    halving; level b of the way up holds entries b (layers + 1) onwards.
    """
    def block(kind: str, number: int, part: str, rest: str) -> str:
        level, entry = divmod(number, layers + 1)
        leaf, _, weight = rest.rpartition(".")
        if leaf == "op":
            return f"down_blocks.{level}.downsamplers.0.conv.{weight}"
        if leaf == "conv":
            return f"up_blocks.{level}.upsamplers.0.conv.{weight}"
        if part == "0":
            return f"{kind}_blocks.{level}.resnets.{entry}.{UNET_RESNET.get(leaf, leaf)}.{weight}"
        return f"{kind}_blocks.{level}.attentions.{entry}.{rest}"

    def rename(key: str) -> str:
        leaf, _, weight = key.rpartition(".")
        if leaf in UNET_TOP:
            return f"{UNET_TOP[leaf]}.{weight}"
        if m := re.fullmatch(r"input_blocks\.0\.0\.(.+)", key):
            return f"conv_in.{m[1]}"
        if m := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", key):
            down = m[1] == "input"
            return block("down" if down else "up", int(m[2]) - down, m[3], m[4])
        if m := re.fullmatch(r"middle_block\.([012])\.((.+)\.(\w+))", key):
            rest = m[2] if m[1] == "1" else f"{UNET_RESNET.get(m[3], m[3])}.{m[4]}"
            return f"mid_block.{UNET_MIDDLE[m[1]]}.{rest}"
        return key

    return rename


def single_vae(levels: int) -> Rename:
    """Names of a CompVis autoencoder, without `first_stage_model.`; it counts the way up from the finest level."""
    def rename(key: str) -> str:
        return re.sub(r"(?<=\.up_blocks\.)\d+", lambda m: str(levels - 1 - int(m[0])), apply(VAE_SINGLE, key))

    return rename


def single_openclip(layers: int, projects: bool = False) -> Rename:
    """Names of an OpenCLIP text tower of which the first `layers` are used, without `cond_stage_model.model.`.

    Args:
        projects: its projection is used.
    """
    def rename(key: str) -> str | tuple[Rows, ...] | Turned | None:
        m = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if key == "text_projection" and projects:  # x P, and ours is x W^T
            return Turned("text_projection.weight")
        if key in DROP_OPENCLIP or (m and int(m[1]) >= layers):
            return None
        name = apply(OPENCLIP, key)
        return thirds(name) if "*" in name else name

    return rename
