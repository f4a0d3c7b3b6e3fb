"""LPIPS: the learned distance of two pictures (Zhang et al. 1801.03924).

    sum over layers of mean over places of  w . (f / |f| - g / |g|)^2

with the activations f and g of both pictures at one layer and learned weights w of its channels.  torchmetrics, which
holds the weights w, computes the same but takes the networks from torchvision, whose builds are tied to one build of
torch each; so the networks stand here, under torchvision's names.  PIE-Bench measures with SqueezeNet 1.1, DragBench
with AlexNet, TF-ICON with VGG 16.  Like torchmetrics 1.2, with which PIE-Bench's published tables were made, 1e-10 is
added to |f|; later versions add 1e-8 to |f|^2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


class Fire(nn.Module):
    def __init__(self, c_in: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], dim=1)


def squeezenet() -> nn.Sequential:
    """The convolutions of SqueezeNet 1.1, torchvision's `features`."""
    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256),
        Fire(512, 64, 256))


def alexnet() -> nn.Sequential:
    """The convolutions of AlexNet, torchvision's `features` but for the last pooling, after which nothing is heard."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU())


def vgg16() -> nn.Sequential:
    """The convolutions of VGG 16, likewise."""
    layers: list[nn.Module] = []
    c_in = 3
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(c_in, channels, 3, padding=1), nn.ReLU()]
            c_in = channels
    return nn.Sequential(*layers)


class Net(NamedTuple):
    """A network that LPIPS compares by.

    Attributes:
        title: for people.
        features: makes its convolutions.
        taps: the layers after which activations are compared, and how many channels each has.
        file: torchvision's weights, whose name ends in the beginning of their SHA-256.
    """

    title: str
    features: Callable[[], nn.Sequential]
    taps: dict[int, int]
    file: str


NETS = {
    "squeeze": Net("SqueezeNet 1.1", squeezenet, {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512},
                   "squeezenet1_1-b8a52dc0.pth"),
    "alex": Net("AlexNet", alexnet, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}, "alexnet-owt-7be5be79.pth"),
    "vgg": Net("VGG 16", vgg16, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}, "vgg16-397923af.pth")}


class Lpips(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], twice -> their distances (B,).

    Args:
        net: a name of `NETS`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "squeeze") -> None:
        super().__init__()
        self.features, self.taps = NETS[net].features(), NETS[net].taps
        self.lins = nn.ParameterList(nn.Parameter(torch.zeros(c)) for c in self.taps.values())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f = torch.cat([x, y])
        f, distance, lins = (f - self.shift) / self.scale, x.new_zeros(len(x)), iter(self.lins)
        for i, layer in enumerate(self.features):
            f = layer(f)
            if i in self.taps:
                a, b = (f / (f.norm(dim=1, keepdim=True) + EPS)).chunk(2)
                distance = distance + torch.einsum("bchw,c->bhw", (a - b) ** 2, next(lins)).mean((1, 2))
        return distance

    def load_published(self, features: dict[str, Tensor], lins: dict[str, Tensor]) -> None:
        """Fill in torchvision's weights of the network and torchmetrics' of the layers.

        Raises:
            KeyError, RuntimeError: not such weights.
        """
        self.features.load_state_dict(
            {key.removeprefix("features."): value for key, value in features.items() if key.startswith("features.")})
        for i, lin in enumerate(self.lins):
            lin.data.copy_(lins[f"lin{i}.model.1.weight"].view_as(lin))
