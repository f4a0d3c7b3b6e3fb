"""LPIPS on SqueezeNet 1.1, as PIE-Bench measures it: the learned distance of two pictures.

    sum over layers of mean over places of  w . (f / |f| - g / |g|)^2

with the activations f and g of both pictures at one layer and learned weights w of its channels.  torchmetrics, which
holds the weights w, computes the same but takes the network from torchvision, whose builds are tied to one build of
torch each; so the network stands here, under torchvision's names.  Like torchmetrics 1.2, with which the published
tables were made, 1e-10 is added to |f|; later versions add 1e-8 to |f|^2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (1, 4, 7, 9, 10, 11, 12)  # the layers after which activations are compared
CHANNELS = (64, 128, 256, 384, 384, 512, 512)
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


class Lpips(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], twice -> their distances (B,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet()
        self.lins = nn.ParameterList(nn.Parameter(torch.zeros(c)) for c in CHANNELS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f = torch.cat([x, y])
        f, distance, lins = (f - self.shift) / self.scale, x.new_zeros(len(x)), iter(self.lins)
        for i, layer in enumerate(self.features):
            f = layer(f)
            if i in TAPS:
                a, b = (f / (f.norm(dim=1, keepdim=True) + EPS)).chunk(2)
                distance = distance + torch.einsum("bchw,c->bhw", (a - b) ** 2, next(lins)).mean((1, 2))
        return distance

    def load_published(self, features: dict[str, Tensor], lins: dict[str, Tensor]) -> None:
        """Fill in torchvision's weights of SqueezeNet 1.1 and torchmetrics' of the layers.

        Raises:
            KeyError, RuntimeError: not such weights.
        """
        self.features.load_state_dict(
            {key.removeprefix("features."): value for key, value in features.items() if key.startswith("features.")})
        for i, lin in enumerate(self.lins):
            lin.data.copy_(lins[f"lin{i}.model.1.weight"].view_as(lin))
