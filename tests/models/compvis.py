"""Our weights under the names of a CompVis single file: the way back, written apart from the tables under test."""

import re

import torch
from torch import Tensor

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
TOP = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
       "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
       "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}


def resnet(rest: str) -> str:
    leaf, weight = rest.rsplit(".", 1)
    return f"{RESNET[leaf]}.{weight}"


def unet_key(key: str, layers: int, attention_up: set[str]) -> str:
    leaf, weight = key.rsplit(".", 1)
    if leaf in TOP:
        return f"{TOP[leaf]}.{weight}"
    if m := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", key):
        return f"middle_block.{MIDDLE[m[1]]}.{m[2] if m[1] == 'attentions.0' else resnet(m[2])}"
    way, level, kind, entry, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key).groups()
    number = int(level) * (layers + 1) + int(entry) + (way == "down")
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{weight}"
    if kind == "upsamplers":
        place = 2 if level in attention_up else 1
        return f"output_blocks.{int(level) * (layers + 1) + layers}.{place}.conv.{weight}"
    blocks = "input_blocks" if way == "down" else "output_blocks"
    return f"{blocks}.{number}.0.{resnet(rest)}" if kind == "resnets" else f"{blocks}.{number}.1.{rest}"


def vae_key(key: str, levels: int) -> str:
    key = re.sub(r"decoder\.up_blocks\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", key)
    for ours, theirs in (("encoder.down_blocks", "encoder.down"), ("samplers.0.conv", "sample.conv"),
                         ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
                         ("mid_block.attentions.0", "mid.attn_1"), (".resnets.", ".block."),
                         ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"), ("group_norm", "norm"),
                         ("to_out.0", "proj_out"), (".to_", ".")):
        key = key.replace(ours, theirs)
    return key


def openclip(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    out, projection = {}, state.get("text_projection.weight")
    for key, value in state.items():
        if key == "text_projection.weight":
            continue
        key = key.removeprefix("text_model.").removeprefix("embeddings.").removeprefix("encoder.")
        if "k_proj" in key or "v_proj" in key:
            continue
        if "q_proj" in key:
            value = torch.cat([state[f"text_model.encoder.{key}".replace("q_proj", f"{n}_proj")] for n in "qkv"])
            key = key.replace("self_attn.q_proj.", "attn.in_proj_")
        for ours, theirs in (("position_embedding.weight", "positional_embedding"), ("final_layer_norm", "ln_final"),
                             ("layers.", "transformer.resblocks."), ("layer_norm", "ln_"), ("fc1", "c_fc"),
                             ("fc2", "c_proj"), ("self_attn.", "attn.")):
            key = key.replace(ours, theirs)
        out[key] = value
    if projection is not None:
        return out | {"text_projection": projection.T, "logit_scale": torch.zeros(())}
    # The last layer is stored and never used.
    out |= {k.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}."): v.clone() for k, v in out.items()
            if f"resblocks.{layers - 1}." in k}
    width = state["text_model.final_layer_norm.weight"].shape[0]
    return out | {"text_projection": torch.zeros(width, width), "logit_scale": torch.zeros(())}


def checkpoint(unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor], family: str,
               layers: int, text_2: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A whole single file, with the buffers that such files carry along."""
    up = {m[1] for key in unet if (m := re.match(r"up_blocks\.(\d+)\.attentions\.", key))}
    levels = 1 + max(int(m[1]) for key in vae if (m := re.match(r"encoder\.down_blocks\.(\d+)", key)))
    out = {f"model.diffusion_model.{unet_key(k, layers, up)}": v for k, v in unet.items()}
    for key, value in vae.items():
        squeezed = ".attentions.0.to_" in key and key.endswith("weight")
        out[f"first_stage_model.{vae_key(key, levels)}"] = value[:, :, None, None] if squeezed else value
    if family in ("1.x", "XL"):
        prefix = "cond_stage_model." if family == "1.x" else "conditioner.embedders.0."
        out |= {f"{prefix}transformer.{k}": v for k, v in text.items()}
        out[f"{prefix}transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if family != "1.x":
        prefix = "cond_stage_model.model." if family == "2.x" else "conditioner.embedders.1.model."
        text = text if text_2 is None else text_2
        depth = 1 + max(int(m[1]) for key in text if (m := re.search(r"layers\.(\d+)\.", key)))
        out |= {f"{prefix}{k}": v for k, v in openclip(text, depth).items()}
    if family == "XL":  # whose files hold nothing else
        return out
    return out | {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000),
                  "model_ema.decay": torch.zeros(()), "model_ema.num_updates": torch.zeros(()),
                  "model_ema.diffusion_modelout2weight": torch.zeros(3)}
