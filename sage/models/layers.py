"""Linear and Conv2d as torch has them, faster where torch leaves a processor's speed unused; same numbers to rounding.

Float32 on a CPU only, and only with frozen weights; everything else is torch's own layer.

- Large products go to oneDNN, which takes weights as they lie; torch's choice, MKL, is up to two times slower on AMD.
- Convolutions can be packed: their weights are then kept in oneDNN's own layout as well, once for each direction,
  instead of being brought into it at every call.  This doubles or triples their memory, and is for small networks.
"""

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Below this many multiplications the call itself costs more than the better product saves.
LARGE = 2**25


def _operator(name: str):
    """An operator of oneDNN, None where this torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(getattr(torch.ops.mkldnn, name, None), "default", None)


PRODUCT = _operator("_linear_pointwise")
CONVOLUTION, PACK = _operator("_convolution_pointwise"), _operator("_reorder_convolution_weight")


def _plain_float32(x: Tensor, weight: Tensor) -> bool:
    return (x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not weight.requires_grad
            and not torch.is_autocast_enabled("cpu"))


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
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return PRODUCT(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None]:
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
    def forward(ctx, x: Tensor, forth: Tensor, back: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.back, ctx.padding = back, padding
        return _convolve(x, forth, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        return _convolve(g, ctx.back, None, ctx.padding), None, None, None, None


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return CONVOLUTION(x, packed, bias, padding, (1, 1), (1, 1), 1, "none", [], "")


def pack(network: nn.Module) -> None:
    """Let the convolutions of a frozen network pack their weights when they are first used.

    Only those of 3 x 3 with as many places out as in, whose gradient is one of them too; those of 1 x 1 gain nothing.
    """
    for module in network.modules():
        if isinstance(module, Conv2d):
            shape = module.kernel_size, module.stride, module.padding
            module.packs = None not in (PACK, CONVOLUTION) and shape == ((3, 3), (1, 1), (1, 1))
