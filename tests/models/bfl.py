"""Our weights under the names of FLUX's authors: the way back, written apart from the tables under test."""

import re

import torch
from torch import Tensor

from tests.models import compvis

DOUBLE = {"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
          "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
          "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2"}
NORMS = {"norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm",
         "norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm"}
TOP = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear",
       **{f"time_text_embed.{ours}_embedder.linear_{i}": f"{theirs}_in.{layer}" for i, layer in
          ((1, "in_layer"), (2, "out_layer")) for ours, theirs in
          (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))}}


def transformer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The single file of a transformer."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name, leaf = key.rsplit(".", 1)
        if name in TOP:
            out[f"{TOP[name]}.{leaf}"] = value
        elif name == "norm_out.linear":
            scale, shift = value.chunk(2)
            out[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
        else:
            kind, i, rest = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", name).groups()
            out |= (_single if kind else _double)(state, name.removesuffix(f".{rest}"), i, rest, leaf, value)
    return out


def _double(state: dict[str, Tensor], block: str, i: str, rest: str, leaf: str, value: Tensor) -> dict[str, Tensor]:
    base = f"double_blocks.{i}"
    if rest in DOUBLE:
        return {f"{base}.{DOUBLE[rest]}.{leaf}": value}
    rest = rest.removeprefix("attn.")
    if rest in NORMS:
        return {f"{base}.{NORMS[rest]}.scale": value}
    if rest == "to_q":
        return {f"{base}.img_attn.qkv.{leaf}": torch.cat([state[f"{block}.attn.to_{n}.{leaf}"] for n in "qkv"])}
    if rest == "add_q_proj":
        return {f"{base}.txt_attn.qkv.{leaf}": torch.cat([state[f"{block}.attn.add_{n}_proj.{leaf}"] for n in "qkv"])}
    assert rest in ("to_k", "to_v", "add_k_proj", "add_v_proj"), rest
    return {}


def _single(state: dict[str, Tensor], block: str, i: str, rest: str, leaf: str, value: Tensor) -> dict[str, Tensor]:
    base = f"single_blocks.{i}"
    if rest in ("attn.norm_q", "attn.norm_k"):
        return {f"{base}.norm.{'query' if rest.endswith('q') else 'key'}_norm.scale": value}
    if rest == "proj_mlp":
        parts = [state[f"{block}.attn.to_{n}.{leaf}"] for n in "qkv"]
        return {f"{base}.linear1.{leaf}": torch.cat([*parts, value])}
    if rest in ("norm.linear", "proj_out"):
        return {f"{base}.{'modulation.lin' if rest == 'norm.linear' else 'linear2'}.{leaf}": value}
    assert rest in ("attn.to_q", "attn.to_k", "attn.to_v"), rest
    return {}


def autoencoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ae.safetensors."""
    levels = 1 + max(int(m[1]) for key in state if (m := re.match(r"encoder\.down_blocks\.(\d+)", key)))
    out = {}
    for key, value in state.items():
        squeezed = re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight", key)
        out[compvis.vae_key(key, levels)] = value[:, :, None, None] if squeezed else value
    return out
