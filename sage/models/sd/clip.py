"""The text encoder of CLIP: token ids -> one embedding a token (Radford et al. 2021).

Stable Diffusion 1.x uses OpenAI's ViT-L/14 text tower whole; 2.x the first 23 of the 24 layers of OpenCLIP's ViT-H.
XL uses ViT-L/14 and OpenCLIP's ViT-bigG/14: of both what enters the last layer, of the second the end mark, projected.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sage.models.layers import Linear


@dataclass(frozen=True)
class CLIPTextParams:
    """What tells one text encoder from another; the defaults are Stable Diffusion 1.x.

    Attributes:
        activation: "quick_gelu", x sigmoid(1.702 x), as OpenAI trained; or "gelu", the exact one, as OpenCLIP did.
        projection: numbers that the end mark is projected to; 0 where it is not.
    """

    width: int = 768
    mlp_width: int = 3072
    heads: int = 12
    layers: int = 12
    vocabulary: int = 49408
    max_length: int = 77
    activation: str = "quick_gelu"
    projection: int = field(default=0, metadata={"later": True})


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which is nearly the exact one."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class CLIPEmbeddings(nn.Module):
    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.token_embedding = nn.Embedding(p.vocabulary, p.width)
        self.position_embedding = nn.Embedding(p.max_length, p.width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[:ids.shape[1]]


class CLIPAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.heads = p.heads
        self.q_proj = Linear(p.width, p.width)
        self.k_proj = Linear(p.width, p.width)
        self.v_proj = Linear(p.width, p.width)
        self.out_proj = Linear(p.width, p.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(f(x), "b n (h d) -> b h n d", h=self.heads)
                   for f in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(out, "b h n d -> b n (h d)"))


class CLIPMLP(nn.Module):
    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.activation = ACTIVATIONS[p.activation]
        self.fc1 = Linear(p.width, p.mlp_width)
        self.fc2 = Linear(p.mlp_width, p.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class CLIPLayer(nn.Module):
    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(p.width)
        self.self_attn = CLIPAttention(p)
        self.layer_norm2 = nn.LayerNorm(p.width)
        self.mlp = CLIPMLP(p)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.layers = nn.ModuleList(CLIPLayer(p) for _ in range(p.layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters the last layer, and what leaves it."""
        before = x
        for layer in self.layers:
            before, x = x, layer(x)
        return before, x


class CLIPTextModel(nn.Module):
    def __init__(self, p: CLIPTextParams):
        super().__init__()
        self.embeddings = CLIPEmbeddings(p)
        self.encoder = CLIPEncoder(p)
        self.final_layer_norm = nn.LayerNorm(p.width)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        before, last = self.encoder(self.embeddings(ids))
        return before, self.final_layer_norm(last)


class CLIPText(nn.Module):
    """Token ids -> text embedding; the outer shell only carries the `text_model.` of the checkpoints' key names."""

    def __init__(self, params: CLIPTextParams):
        super().__init__()
        self.params = params
        self.text_model = CLIPTextModel(params)
        if params.projection:
            self.text_projection = Linear(params.width, params.projection, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, N <= max_length) int64 token ids -> (B, N, width): the last hidden state, layer-normalised."""
        return self.states(ids)[1]

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and before it (B, N, width), what enters the last layer, as it is."""
        return self.text_model(ids)

    def pooled(self, last: Tensor, end: int) -> Tensor:
        """(B, N, width) of `forward`, and where the end mark stands -> (B, projection): the prompt as a whole."""
        return self.text_projection(last[:, end])
