"""Joint attention of text and picture, seen as two sites: what a place sees of the picture, and what of the text.

Over the keys of both, softmax is a mixture of two: with s, the share of a place's attention that goes to the text,

    softmax(Q [K_t; K_i]^T / sqrt(d)) [V_t; V_i] = s A_t V_t + (1 - s) A_i V_i
    A_t = softmax(Q K_t^T / sqrt(d)),   A_i = softmax(Q K_i^T / sqrt(d))

A_t is a map like those of cross-attention, A_i like those of self-attention, each of its rows a distribution: what is
done to such maps elsewhere can be done to these.  The text's own queries go the fused way always.

A bias on the picture's keys, added to the scores of all queries, changes s and A_i alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage.models.sites import Projection, Site


class JointAttention(nn.Module):
    """Attention of text and picture to both, without weights.

    Args:
        path, level, place, heads, width: of its sites.
    Attributes:
        image: the site of what places see of the picture, "self".
        text: the site of what they see of the text, "cross".
        bias: (b, N), what is added to scores on the picture's keys, for b pictures in turn; None for nothing.
    """

    def __init__(self, path: str, level: int, place: str, heads: int, width: int):
        super().__init__()
        self.image = Site(f"{path}.image", "self", level, place, heads, width)
        self.text = Site(f"{path}.text", "cross", level, place, heads, width)
        self.bias: Tensor | None = None

    def forward(self, text: Projection, image: Projection) -> tuple[Tensor, Tensor]:
        """(B, H, T, D) of the text and (B, H, N, D) of the picture -> (B, T, H D) and (B, N, H D), heads merged."""
        q, k, v = self.image.projected(*image)
        q, k_text, v_text = self.text.projected(q, text.keys, text.values)
        keys, values = torch.cat([k_text, k], dim=2), torch.cat([v_text, v], dim=2)
        bias = None if self.bias is None else self.bias.to(q).repeat(len(q) // len(self.bias), 1)[:, None, None]
        of_all = None if bias is None else F.pad(bias, (k_text.shape[2], 0))  # (B, 1, 1, T + N)
        if not (self.image.tapped or self.text.tapped):
            both = F.scaled_dot_product_attention(torch.cat([text.queries, q], dim=2), keys, values, of_all)
            to_text, to_image = both.split([text.queries.shape[2], q.shape[2]], dim=2)
        else:
            to_text = F.scaled_dot_product_attention(text.queries, keys, values, of_all)
            share = _share(q, keys, k_text.shape[2], of_all)
            to_image = share * _seen(self.text, q, k_text, v_text) + (1 - share) * _seen(self.image, q, k, v, bias)
        return self.text.out(_merged(to_text)), self.image.out(_merged(to_image))


def _seen(site: Site, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    if not site.tapped:
        return F.scaled_dot_product_attention(q, k, v, bias)
    a = site.map(q, k)
    if bias is not None:
        a = a * bias.exp()
        a = a / a.sum(dim=-1, keepdim=True)
    return a.to(v.dtype) @ v


def _share(q: Tensor, keys: Tensor, text: int, bias: Tensor | None) -> Tensor:
    """(B, H, N, 1): how much of each query's attention goes to the first `text` keys: theirs is a value of 1."""
    ones = torch.zeros(keys.shape[2], q.shape[-1], dtype=q.dtype, device=q.device)
    ones[:text] = 1
    return F.scaled_dot_product_attention(q, keys, ones.expand(*keys.shape[:2], -1, -1), bias)[..., :1]


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
