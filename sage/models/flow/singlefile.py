"""The transformer of FLUX.1 in the layout of its authors, one file: read off names and shapes, at any width.

    img_in, txt_in, time_in, vector_in, guidance_in    embeddings
    double_blocks.i.*, single_blocks.i.*               blocks; queries, keys and values are one weight
    final_layer.*                                      the way out

Autoencoder and text encoders lie in files of their own.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from sage.errors import ModelError
from sage.models.flow.transformer import FluxParams
from sage.models.sd.renames import Rename, Rows, apply, single_vae, thirds
from sage.models.sd.singlefile import count
from sage.models.sd.vae import VAEParams
from sage.models.weights import Stored, renamed, some

PREFIX = "model.diffusion_model."
BLOCKS = ("double_blocks.", "single_blocks.")
FLUX_2 = ("double_stream_modulation_img.", "single_stream_modulation.")
AXES = (2, 7, 7)  # sixteenths of a head, as in FLUX.1: the shapes do not tell
SCALING, SHIFT, CHANNELS = 0.3611, 0.1159, 16  # of its autoencoder

EMBEDDINGS = (
    (r"^img_in\.", "x_embedder."),
    (r"^txt_in\.", "context_embedder."),
    (r"^(time|guidance|vector)_in\.in_layer\.", r"time_text_embed.\1_embedder.linear_1."),
    (r"^(time|guidance|vector)_in\.out_layer\.", r"time_text_embed.\1_embedder.linear_2."),
    (r"\.time_embedder\.", ".timestep_embedder."),
    (r"\.vector_embedder\.", ".text_embedder."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
    (r"^final_layer\.linear\.", "proj_out."),
)
DOUBLE = (
    (r"^double_blocks\.", "transformer_blocks."),
    (r"\.img_mod\.lin\.", ".norm1.linear."),
    (r"\.txt_mod\.lin\.", ".norm1_context.linear."),
    (r"\.img_attn\.qkv\.", ".attn.to_*."),
    (r"\.txt_attn\.qkv\.", ".attn.add_*_proj."),
    (r"\.img_attn\.norm\.(query|key)_norm\.scale$", r".attn.norm_\1.weight"),
    (r"\.txt_attn\.norm\.(query|key)_norm\.scale$", r".attn.norm_added_\1.weight"),
    (r"\.img_attn\.proj\.", ".attn.to_out.0."),
    (r"\.txt_attn\.proj\.", ".attn.to_add_out."),
    (r"\.img_mlp\.0\.", ".ff.net.0.proj."),
    (r"\.img_mlp\.2\.", ".ff.net.2."),
    (r"\.txt_mlp\.0\.", ".ff_context.net.0.proj."),
    (r"\.txt_mlp\.2\.", ".ff_context.net.2."),
)
SINGLE = (
    (r"^single_blocks\.", "single_transformer_blocks."),
    (r"\.modulation\.lin\.", ".norm.linear."),
    (r"\.norm\.(query|key)_norm\.scale$", r".attn.norm_\1.weight"),
    (r"\.linear2\.", ".proj_out."),
)
SHORT = ((r"norm_(added_)?query\.", r"norm_\1q."), (r"norm_(added_)?key\.", r"norm_\1k."))


def is_flux(tensors: Mapping[str, Stored]) -> bool:
    """Whether a file holds a transformer in this layout."""
    return any(key.removeprefix(PREFIX).startswith(BLOCKS) for key in tensors)


def take_apart(path: Path, tensors: Mapping[str, Stored],
               latent_channels: int = CHANNELS) -> tuple[FluxParams, dict[str, Stored]]:
    """The parameters of a transformer, and its tensors under our names.

    Args:
        latent_channels: of its autoencoder.
    Raises:
        ModelError: a model of another kind, or names and shapes that no such file has.
    """
    stored = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    if len(stored) < len(tensors):
        raise ModelError(f"{path} holds weights twice, with {PREFIX} before their names and without")
    if any(key.startswith(FLUX_2) for key in stored):
        raise ModelError(f"{path} is a FLUX.2 checkpoint; FLUX.1 is supported")
    try:
        params = _params(stored, latent_channels)
        wide, out = stored["img_in.weight"].shape[1], stored["final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise ModelError(f"{path} is not all of a FLUX.1 transformer: {error} is missing") from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"{path} has weights of shapes that no FLUX.1 transformer has") from error
    if wide != out or params.token_width != out:
        raise ModelError(f"{path} takes tokens of {wide} numbers and gives {out}, where {params.token_width} are "
                         "expected; Fill, Canny and Depth models are not supported")
    return params, renamed(stored, names(params))


def _params(t: Mapping[str, Stored], latent_channels: int) -> FluxParams:
    width, head = t["img_in.weight"].shape[0], t["double_blocks.0.img_attn.norm.query_norm.scale"].shape[0]
    return FluxParams(
        channels=latent_channels, patch=math.isqrt(t["final_layer.linear.weight"].shape[0] // latent_channels),
        width=width, heads=width // head, mlp_width=t["double_blocks.0.img_mlp.0.weight"].shape[0],
        depth=count(t, r"double_blocks\.(\d+)\."), depth_single=count(t, r"single_blocks\.(\d+)\."),
        context_width=t["txt_in.weight"].shape[1], pooled_width=t["vector_in.in_layer.weight"].shape[1],
        axes=tuple(head * share // sum(AXES) for share in AXES),
        qkv_bias="double_blocks.0.img_attn.qkv.bias" in t, guidance="guidance_in.in_layer.weight" in t)


def names(params: FluxParams) -> Rename:
    """The authors' names for the weights of a transformer."""
    width, all_rows = params.width, 3 * params.width + params.mlp_width

    def rename(key: str) -> str | tuple[Rows, ...]:
        if m := re.fullmatch(r"single_blocks\.(\d+)\.linear1\.(weight|bias)", key):
            block, leaf = f"single_transformer_blocks.{m[1]}", m[2]
            qkv = (Rows(f"{block}.attn.to_{letter}.{leaf}", i * width, (i + 1) * width, all_rows)
                   for i, letter in enumerate("qkv"))
            return *qkv, Rows(f"{block}.proj_mlp.{leaf}", 3 * width, all_rows, all_rows)
        name = apply((DOUBLE if key.startswith("double") else SINGLE if key.startswith("single") else EMBEDDINGS)
                     + SHORT, key)
        if name.startswith("norm_out."):  # shift and scale, and ours are scale and shift
            return Rows(name, 1, 2, 2), Rows(name, 0, 1, 2)
        return thirds(name) if "*" in name else name

    return rename


def autoencoder(path: Path, tensors: Mapping[str, Stored]) -> tuple[VAEParams, dict[str, Stored]]:
    """The same of the autoencoder's file.

    Raises:
        ModelError: something else.
    """
    try:
        levels = count(tensors, r"encoder\.down\.(\d+)\.")
        params = VAEParams(
            channels=tuple(tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
            layers_per_block=count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
            latent_channels=tensors["decoder.conv_in.weight"].shape[1],
            groups=math.gcd(32, tensors["encoder.conv_in.weight"].shape[0]),
            scaling=SCALING, shift=SHIFT, quant_convs=False)
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path} is no autoencoder of FLUX.1: it holds {some(tensors)}") from error
    return params, renamed(dict(tensors), single_vae(levels))
