"""Linear, Conv2d and GroupNorm as torch has them, faster or more accurate where torch's own fall short on a CPU.

Float32 only, the first two with frozen weights only, and equal to torch's to rounding; everything else is torch's own,
what is traced too.

- Large products go to oneDNN, which takes weights as they lie; torch's choice, MKL, is up to two times slower on AMD.
- Convolutions can be packed: their weights are then kept in oneDNN's own layout as well, once for each direction,
  instead of being brought into it at every call.  This doubles or triples their memory, and is for small networks.
- Group norms take the variance in two passes.  In channels-last memory torch takes E[x^2] - E[x]^2, each summed in one
  run, which cancels: 1e-4 is lost at 256 x 256 places where the mean is 5 deviations, 3e-3 where it is 20.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.jit._trace import is_tracing

# Below this many multiplications the call itself costs more than the better product saves.
LARGE = 2**25

# Up to this many numbers a picture, a norm is fastest in contiguous memory, in which torch's is accurate.
FEW = 2**15

# Places whose sum float32 takes in one run.
PART = 2**10

Padding = str | tuple[int, ...]


def _operator(name: str) -> Any:
    """An operator of oneDNN, None where this torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, name, None), "default", None)


PRODUCT = _operator("_linear_pointwise")
CHANNEL_MOMENTS = torch.ops.aten.batch_norm_update_stats.default  # in two passes
CONVOLUTION, PACK = _operator("_convolution_pointwise"), _operator("_reorder_convolution_weight")


def _plain_float32(x: Tensor, weight: Tensor) -> bool:
    return (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not weight.requires_grad
            and not torch.is_autocast_enabled("cpu") and not is_tracing())


class Linear(nn.Linear):
    """`torch.nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if PRODUCT is None or x.numel() * self.out_features < LARGE or not _plain_float32(x, self.weight):
            return super().forward(x)
        if not (x.requires_grad and torch.is_grad_enabled()):  # a function of autograd's costs time to enter
            return PRODUCT(x, self.weight, self.bias, "none", [], "")
        return _Product.apply(x, self.weight, self.bias)


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return PRODUCT(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return PRODUCT(g.contiguous(), ctx.saved_tensors[0].t(), None, "none", [], ""), None, None


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, undilated and in one group."""

    packs = False
    _packed: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.packs or not _plain_float32(x, self.weight):
            return super().forward(x)
        # Packed weights are those of one very tensor: others may have taken its place.
        if self._packed is None or self._packed[0] is not self.weight:
            self._packed = self._pack(x)
        _, forth, back = self._packed
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _convolve(x, forth, self.bias, self.padding)
        return _PackedConvolution.apply(x, forth, back, self.bias, self.padding)

    def _pack(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights, and both packed, in the layouts that are best for inputs of the size of `x`."""
        weight = self.weight.detach()
        both = weight, weight.flip(2, 3).transpose(0, 1).contiguous()
        return (self.weight, *(PACK(w, self.padding, self.stride, (1, 1), 1, (len(x), w.shape[1], *x.shape[2:]))
                               for w in both))


class _PackedConvolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Tensor, back: Tensor, bias: Tensor | None, padding: Padding) -> Tensor:
        ctx.back, ctx.padding = back, padding
        return _convolve(x, forth, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _convolve(g, ctx.back, None, ctx.padding), None, None, None, None


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, padding: Padding) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return CONVOLUTION(x, packed, bias, padding, (1, 1), (1, 1), 1, "none", [], "")


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` with weight and bias, accurate in every memory layout.

    Below float32 the rounding of the input outweighs what torch's variance loses; on other devices torch is accurate.
    """

    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight, self.bias
        if (x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4 or x.is_contiguous()
                or is_tracing()):
            return torch.group_norm(x, self.num_groups, w, b, self.eps)
        if x.shape[1:].numel() <= FEW:
            y = torch.group_norm(x.contiguous(), self.num_groups, w, b, self.eps)
            return y.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
            return _GroupNorm.apply(x, self.num_groups, w, b, self.eps)
        return _normalise(x, self.num_groups, w, b, self.eps)[0]


class _GroupNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, rstd = _normalise(x, groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (batch, channels), places = x.shape[:2], x.shape[2:].numel()
        wanted = [True, *ctx.needs_input_grad[2:4]]  # torch's kernel crashes where the first is not
        x_, w_, b_ = torch.ops.aten.native_group_norm_backward(
            g.contiguous(memory_format=torch.channels_last), x, mean, rstd, weight, batch, channels, places, ctx.groups,
            wanted)
        return x_, None, w_, b_, None


def _normalise(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, H, W) in channels-last memory -> the same, normalised; (B, G) means; (B, G) 1 / sqrt(variance + eps).

    Channels are summed up in equal parts of the picture, and joined by var = E[var of a part] + var[mean of a part]
    (Chan, Golub and LeVeque 1983), so that no sum runs over more than `PART` numbers, as nearly as the sides divide.
    """
    batch, channels, height, width = x.shape
    parts = next(n for n in range(-(-height * width // PART), height * width + 1) if height * width % n == 0)
    runs = x.permute(0, 2, 3, 1).reshape(batch * parts, -1, channels).unbind()
    means, variances = zip(*(CHANNEL_MOMENTS(run, None, None, 0.0) for run in runs), strict=True)
    shape = batch, parts, groups, channels // groups
    between, mean = torch.var_mean(torch.stack(means).view(shape), dim=(1, 3), correction=0, keepdim=True)
    within = torch.stack(variances).view(shape).mean(dim=(1, 3), keepdim=True)
    rstd = (within + between + eps).rsqrt()  # (B, 1, G, 1)
    scale = weight.view(groups, -1) * rstd  # (B, 1, G, C / G)
    shift = bias.view(groups, -1) - mean * scale
    y = torch.addcmul(shift.view(batch, channels, 1, 1), x, scale.view(batch, channels, 1, 1))
    return y, mean.view(batch, groups), rstd.view(batch, groups)


def pack(network: nn.Module) -> None:
    """Let the convolutions of a frozen network pack their weights when they are first used.

    Only those of 3 x 3 with as many places out as in, whose gradient is one of them too; those of 1 x 1 gain nothing.
    """
    for module in network.modules():
        if isinstance(module, Conv2d):
            shape = module.kernel_size, module.stride, module.padding
            module.packs = None not in (PACK, CONVOLUTION) and shape == ((3, 3), (1, 1), (1, 1))
