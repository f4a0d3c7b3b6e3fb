"""A picture-and-text encoder of the still-life world: what networks trained on photographs cannot judge.

    picture -> one vector in the space of prompts, a read-out of every attribute, and features on several grids

Its picture side is a residual network with one learned query for each attribute, which gathers by attention what that
attribute needs from the coarsest grid; its text side is CLIP's, small.  A folder holds it as

    config.json                     EncoderParams, and under "accuracy" how often it reads held-out pictures right
    model.fp16.safetensors
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from sage import quality
from sage.bench.metrics import Array, Extractors
from sage.errors import ModelError
from sage.models.folders import load_tokenizer
from sage.models.known import installed
from sage.models.sd.clip import CLIPText, CLIPTextParams
from sage.models.sd.configs import Config
from sage.models.sd.loading import open_folder
from sage.models.weights import fill, open_weights
from sage.pictures import from_pixels, to_tensor, working_size
from sage.prompts.tokens import Prompts
from sage.stilllife.render import render
from sage.stilllife.scenes import VALUES
from sage.stilllife.varied import sample_varied_scene

BUNDLED = "stilllife"  # the model beside whose networks it lies
FOLDER, CONFIG, WEIGHTS = "encoder", "config.json", "model.fp16.safetensors"
TRUE_THINGS = 96  # of each form, to which others are held
REMEMBERED = 256  # pictures whose features are kept: sources and truths come again with every configuration
MOST = 4096  # of any number in a configuration


@dataclass(frozen=True)
class EncoderParams:
    """What tells one encoder from another.

    Attributes:
        channels: of the grids, each half as fine as the one before; the last but one has 16 cells a side.
        blocks: residual blocks on each.
        heads: of the attention that reads attributes out.
        width: of the space that pictures and prompts share.
        side: of the pictures in pixels; those of another size are resized to this.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 2)
    groups: int = 8
    heads: int = 4
    width: int = 128
    text: CLIPTextParams = field(default_factory=lambda: CLIPTextParams(
        width=128, mlp_width=512, heads=4, layers=2, vocabulary=512, max_length=77))
    side: int = 64

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.blocks) or self.side >> len(self.channels) != 8:
            raise ValueError(f"pictures of {self.side} pixels do not become grids of 8 cells a side in "
                             f"{len(self.channels)} steps of {len(self.blocks)}")


class Block(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Stage(nn.Module):
    """Half the resolution, then residual blocks."""

    def __init__(self, c_in: int, c_out: int, kernel: int, blocks: int, groups: int):
        super().__init__()
        self.down = nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2)
        self.blocks = nn.ModuleList(Block(c_out, groups) for _ in range(blocks))
        self.norm = nn.GroupNorm(groups, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return F.relu(self.norm(x))


class Readers(nn.Module):
    """One query for each attribute, attending to a grid of features that know their place."""

    def __init__(self, width: int, heads: int, cells: int):
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(cells, width) * 0.1)
        self.queries = nn.Parameter(torch.randn(len(VALUES), width) * 0.5)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, attributes, C)."""
        tokens = rearrange(grid, "b c h w -> b (h w) c") + self.place
        q = rearrange(self.queries, "n (h d) -> h n d", h=self.heads).expand(len(grid), -1, -1, -1)
        k, v = (rearrange(f(tokens), "b n (h d) -> b h n d", h=self.heads) for f in (self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q.to(k), k, v)
        x = self.to_out(rearrange(out, "b h n d -> b n (h d)"))
        return self.norm_out(x + self.fc2(F.gelu(self.fc1(self.norm(x)))))


class EncoderNet(nn.Module):
    """Both towers.  Pictures are (B, 3, side, side) in [-1, 1], prompts (B, N) int64 token ids."""

    def __init__(self, params: EncoderParams):
        super().__init__()
        p = self.params = params
        self.stages = nn.ModuleList(
            Stage(c_in, c, kernel, blocks, p.groups) for c_in, c, kernel, blocks in
            zip((3, *p.channels), p.channels, (5, *[3] * len(p.channels)), p.blocks, strict=False))
        last = p.channels[-1]
        self.readers = Readers(last, p.heads, (p.side >> len(p.channels)) ** 2)
        self.readouts = nn.ModuleDict({name: nn.Linear(last, len(values)) for name, values in VALUES.items()})
        self.to_common = nn.Linear(last * len(VALUES), p.width)
        self.text = CLIPText(p.text)
        self.text_to_common = nn.Linear(p.text.width, p.width)

    def features(self, x: Tensor) -> list[Tensor]:
        """The grids, fine to coarse: (B, C, side / 2, side / 2) to (B, C, 8, 8)."""
        grids = []
        for stage in self.stages:
            x = stage(x)
            grids.append(x)
        return grids

    def image(self, grid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The coarsest grid -> (B, width) in the common space, and for each attribute (B, values) logits."""
        return self.told(self.readers(grid))

    def told(self, read: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of what the readers have gathered, (B, attributes, C)."""
        logits = {name: self.readouts[name](read[:, i]) for i, name in enumerate(VALUES)}
        return self.to_common(read.flatten(1)), logits

    def last_hidden(self, ids: Tensor, ends: Tensor) -> Tensor:
        """(B, text width): the state of each prompt's end token, which stands at `ends` (B,)."""
        return self.text(ids)[torch.arange(len(ids), device=ids.device), ends]


def true_things(name: str, value: str, side: int) -> Iterator[Array]:
    """Pictures, uint8, of things of a form that look otherwise in all else; the same ones at every call.

    Args:
        name: "form" of the main thing, or "second_form".
        value: the form.
    """
    rng = np.random.default_rng((9, list(VALUES).index(name), VALUES[name].index(value)))
    for _ in range(TRUE_THINGS):
        while (scene := sample_varied_scene(rng)).attributes()[name] != value:
            pass
        yield np.asarray(from_pixels(render(scene, side)))


def normalised(grid: Tensor) -> Tensor:
    """(B, C, h, w) with the vector of every cell made one long."""
    return grid / (grid.norm(dim=1, keepdim=True) + 1e-10)


class Encoder:
    """A trained network seen through the questions that the benchmark asks.  Pictures are (H, W, 3).

    Attributes:
        accuracy: for each set of held-out pictures the share that is read right, by attribute, and their number under
            "pictures".
    """

    def __init__(self, net: EncoderNet, prompts: Prompts, accuracy: dict[str, dict[str, float]]):
        self.net, self.prompts, self.accuracy = net, prompts, accuracy
        self._seen: OrderedDict[bytes, tuple[list[Tensor], Tensor, dict[str, Tensor], Tensor]] = OrderedDict()
        self._true: dict[tuple[str, str], Array] = {}

    def keys(self, picture: Array) -> Array:
        """(256, C): the features of a 16 x 16 grid, whose self-similarity is the picture's structure."""
        grids = self._see(picture)[0]
        return rearrange(grids[-2][0], "c h w -> (h w) c").numpy()

    def distance(self, x: Array, y: Array) -> float:
        """LPIPS's formula with these features and no weights, of float32 pictures in [-1, 1]:

            sum over grids of the mean over cells of |f / |f| - g / |g||^2
        """
        pairs = zip(self._see(x)[0], self._see(y)[0], strict=True)
        return sum(float((normalised(f) - normalised(g)).square().sum(dim=1).mean()) for f, g in pairs)

    def image(self, picture: Array) -> Array:
        """The picture in the common space."""
        return self._see(picture)[1][0].numpy()

    @torch.no_grad()
    def text(self, prompt: str) -> Array:
        """A prompt in the common space; what is too long is cut."""
        ids = self.prompts.parse(prompt, truncate=True).ids
        end = ids.index(self.prompts.tokenizer.eos_token_id)
        hidden = self.net.last_hidden(torch.tensor([ids[:end + 1]]), torch.tensor([end]))
        return self.net.text_to_common(hidden)[0].numpy()

    def attributes(self, picture: Array) -> dict[str, str]:
        """What the picture shows, each attribute by its most probable value."""
        return {name: value for name, (value, _) in self.read(picture).items()}

    def read(self, picture: Array) -> dict[str, tuple[str, float]]:
        """What the picture shows: of each attribute the most probable value, and how probable it is."""
        shares = {name: logits[0].softmax(dim=-1) for name, logits in self._see(picture)[2].items()}
        return {name: (VALUES[name][int(p.argmax())], float(p.max())) for name, p in shares.items()}

    def melted(self, picture: Array, name: str, value: str) -> float:
        """How far what is gathered for a form is from every true thing of that form: 1 - cos to the nearest.

        Args:
            name: "form" or "second_form".
            value: the form.
        """
        if (name, value) not in self._true:
            things = true_things(name, value, self.net.params.side)
            self._true[name, value] = np.stack([_gathered(self._look(picture)[3], name) for picture in things])
        return float(1 - (self._true[name, value] @ _gathered(self._see(picture)[3], name)).max())

    def extractors(self) -> Extractors:
        return Extractors(keys=self.keys, lpips=self.distance, image=self.image, text=self.text,
                          attributes=self.attributes, melted=self.melted, distance="features", similarity="prompt",
                          versions={"encoder": self.describe()})

    def describe(self) -> str:
        """Which encoder it is and how far its read-out can be trusted."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.net.state_dict().items()):
            digest.update(name.encode() + weight.numpy().tobytes())
        parts = [f"still-life encoder {digest.hexdigest()[:12]}"]
        for which, right in self.accuracy.items():
            shares = {name: right[name] for name in VALUES}
            each = ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items())
            parts.append(f"reads {np.mean(list(shares.values())):.2%} of the attributes of {int(right['pictures'])} "
                         f"{which} right ({each})")
        return "; ".join(parts)

    def _see(self, picture: Array) -> tuple[list[Tensor], Tensor, dict[str, Tensor], Tensor]:
        """Features, vector, read-outs and what they are read from: of a picture, uint8, or float32 in [-1, 1]."""
        key = hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), key=str(picture.shape).encode()).digest()
        if key in self._seen:
            self._seen.move_to_end(key)
        else:
            self._seen[key] = self._look(picture)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return self._seen[key]

    @torch.no_grad()
    def _look(self, picture: Array) -> tuple[list[Tensor], Tensor, dict[str, Tensor], Tensor]:
        grids = self.net.features(prepared(picture, self.net.params.side))
        read = self.net.readers(grids[-1])
        return grids, *self.net.told(read), read


def _gathered(read: Tensor, name: str) -> Array:
    """(C,), one long: what the readers have gathered to tell an attribute by."""
    vector = read[0, list(VALUES).index(name)].numpy()
    return vector / np.linalg.norm(vector)


def prepared(picture: Array, side: int) -> Tensor:
    """(H, W, 3), uint8 or float32 in [-1, 1] -> (1, 3, side, side) in [-1, 1]: averaged down as the renderer does."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
    if x.shape[2:] == (side, side):
        return x
    if min(x.shape[2:]) >= side:
        return F.interpolate(x, (side, side), mode="area")
    return F.interpolate(x, (side, side), mode="bicubic", align_corners=False).clamp(-1, 1)


# ---- folders


def as_config(params: EncoderParams, accuracy: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The values of config.json."""
    text = params.text
    return {"channels": list(params.channels), "blocks": list(params.blocks), "groups": params.groups,
            "heads": params.heads, "width": params.width, "side": params.side, "text_width": text.width,
            "text_mlp_width": text.mlp_width, "text_heads": text.heads, "text_layers": text.layers,
            "vocabulary": text.vocabulary, "max_length": text.max_length, "accuracy": accuracy}


def bundled() -> Path | None:
    """The folder of the encoder that comes with the bundled model, None where it is not."""
    model = installed(BUNDLED)
    return model / FOLDER if model and (model / FOLDER / CONFIG).is_file() else None


def load_encoder(folder: str | Path | None = None) -> Encoder:
    """The encoder that comes with the bundled model, or another in the same layout, on the CPU in float32.

    Args:
        folder: holds config.json and the weights, and beside it lies the tokenizer's folder.
    Raises:
        ModelError: not there, damaged, or not what it should be.
    """
    folder = Path(folder) if folder is not None else bundled()
    if folder is None:
        raise ModelError("the encoder comes with the model stilllife, and is not on this disk")
    params, accuracy = _read(Config(folder / CONFIG))
    net = fill(lambda: EncoderNet(params), open_weights([folder / WEIGHTS]), str(folder), torch.device("cpu"),
               torch.float32)
    tokenizer = load_tokenizer(folder.parent / "tokenizer", params.text)
    return Encoder(net, Prompts(tokenizer, params.text.max_length), accuracy)


def unlike_still_lifes(image: Image.Image) -> str:
    """What is to be said of a picture, upright RGB, that is no rendered still life: whose description is no use then.

    It goes by what the bundled model's autoencoder makes of it, as the notes of edits do; "" where it is not here.
    """
    model = installed(BUNDLED)
    if model is None:
        return ""
    opened = open_folder(model)
    vae: Any = opened.parts["vae"].load(torch.device("cpu"), torch.float32)
    multiple = vae.factor * 2 ** (len(opened.unet.channels) - 1)
    x = to_tensor(image, working_size(*image.size, opened.side, multiple))
    with torch.no_grad():
        [said] = quality.unlike(BUNDLED, x, vae.decode(vae.encode(x)))
    return said


def _read(config: Config) -> tuple[EncoderParams, dict[str, dict[str, float]]]:
    """Parameters and accuracies, checked."""
    def number(key: str, default: int | None = None) -> int:
        value = config.values.get(key, default)
        if type(value) is not int or not 1 <= value <= MOST:
            raise config.fail(key, f"and must be a whole number from 1 to {MOST}")
        return value

    def numbers(key: str) -> tuple[int, ...]:
        values = config.values.get(key)
        if not isinstance(values, list) or len(values) not in (3, 4) or not all(
                type(v) is int and 1 <= v <= MOST for v in values):
            raise config.fail(key, f"and must be three or four whole numbers from 1 to {MOST}")
        return tuple(values)

    text = CLIPTextParams(number("text_width"), number("text_mlp_width"), number("text_heads"), number("text_layers"),
                          number("vocabulary"), number("max_length"))
    values = (numbers("channels"), numbers("blocks"), number("groups"), number("heads"), number("width"), text,
              number("side", 64))
    try:
        params = EncoderParams(*values)
    except ValueError as error:
        raise ModelError(f"{config.path}: {error}") from error
    pairs = [*((c, params.groups) for c in params.channels), (params.channels[-1], params.heads),
             (text.width, text.heads)]
    if any(a % b for a, b in pairs) or max(*params.blocks, text.layers) > 64:
        raise ModelError(f"{config.path}: channels, heads and groups that do not divide each other, or too many layers")
    return params, _read_accuracy(config)


def _read_accuracy(config: Config) -> dict[str, dict[str, float]]:
    accuracy = config.values.get("accuracy")
    if not isinstance(accuracy, dict) or not accuracy or not all(
        isinstance(right, dict) and right.keys() == {*VALUES, "pictures"}
        and all(type(v) in (int, float) and v >= 0 for v in right.values())
        and right["pictures"] < 1e9 and all(right[name] <= 1 for name in VALUES) for right in accuracy.values()):
        raise config.fail("accuracy", "and must give for each set of pictures their number and every attribute's share")
    return accuracy
