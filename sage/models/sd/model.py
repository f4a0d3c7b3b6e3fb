"""The seam between the method and a network: encode, decode, encode_text, prepare, denoise, schedule, sites.

Whatever implements these seven can be edited with (docs/porting.md).  `denoise` returns (x0, eps): nobody past this
file knows whether the network predicts the noise, v or a flow.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sage.config import EditConfig
from sage.errors import NumericsError
from sage.models.memory import Needs, Savings
from sage.models.sd.attention import AttentionMap, Text
from sage.models.sd.clip import CLIPText
from sage.models.sd.tiles import SIDE
from sage.models.sd.unet import Time, UNet
from sage.models.sd.vae import VAE
from sage.prompts.tokens import Prompt, Prompts
from sage.sampling.levels import Level, Schedule, ScheduleParams, make_schedule
from sage.sampling.steps import from_prediction


class Backbone(Protocol):
    """What the method needs of a model."""

    name: str
    device: torch.device
    recommended: EditConfig
    prompts: Prompts
    savings: Savings

    @property
    def pixel_multiple(self) -> int: ...
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def encode_text(self, prompt: Prompt) -> Tensor: ...
    def prepare(self, text: Tensor) -> Any: ...
    def denoise(self, z: Tensor, level: Level, text: Any) -> tuple[Tensor, Tensor]: ...
    def schedule(self, steps: int, spacing: str, grid: str) -> Schedule: ...
    def sites(self) -> list[AttentionMap]: ...
    def full_precision(self): ...
    def needs(self, width: int, height: int) -> Needs: ...
    def save(self, savings: Savings) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """Embedded prompts (B, M, width), and what the UNet makes of them in `dtype`, the same at every step."""

    embedding: Tensor
    text: Text
    dtype: torch.dtype


class StableDiffusion:
    """Stable Diffusion 1.x, 2.x or a smaller model of the same build, frozen, on one device.

    Latents and everything computed from them outside the networks are float32.  Below float32 the networks run under
    `torch.autocast`, their norms in float32.

    Args:
        prediction_type: "epsilon" or "v_prediction".
        sample_size: side in pixels of the pictures it was trained on.
        recommended: the EditConfig to use when the user gives none; by default chosen from the family.
    """

    def __init__(self, *, unet: UNet, vae: VAE, text: CLIPText, tokenizer, schedule: ScheduleParams,
                 prediction_type: str, name: str, sample_size: int, device: torch.device, dtype: torch.dtype,
                 recommended: EditConfig | None = None):
        self.unet, self.vae, self.text = (m.eval().requires_grad_(False) for m in (unet, vae, text))
        self.prompts = Prompts(tokenizer, text.params.max_length)
        self.schedule_params, self.prediction_type = schedule, prediction_type
        self.name, self.sample_size, self.device, self.dtype = name, sample_size, torch.device(device), dtype
        self.recommended = recommended or recommend(unet, sample_size)
        self.savings = Savings()
        self._times: dict[tuple[int, torch.dtype], Time] = {}  # the same in every pass and edit

    @property
    def pixel_multiple(self) -> int:
        """Sides of pictures must be multiples of this."""
        return self.vae.factor * self.unet.side_multiple

    def sites(self) -> list[AttentionMap]:
        """Every attention map, in the order of a forward pass."""
        return list(self.unet.sites())

    def schedule(self, steps: int, spacing: str = "leading", grid: str = "consistent") -> Schedule:
        return make_schedule(self.schedule_params, steps, spacing, grid)

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1] -> (B, 4, h, w) float32 latents; a sample when a generator is given."""
        state = generator.get_state() if generator is not None else None

        def run() -> Tensor:
            if generator is not None:
                generator.set_state(state)
            return self.vae.encode(x.to(self.device), generator, self.savings.tiles).float()

        return self._finite("encoding the picture", self.vae, run)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, 4, h, w) latents -> (B, 3, H, W) float32 in about [-1, 1]."""
        def run() -> Tensor:
            return self.vae.decode(z.to(self.device), self.savings.tiles).float()

        return self._finite("decoding the latents", self.vae, run)

    @torch.no_grad()
    def encode_text(self, prompt: Prompt) -> Tensor:
        """A prompt -> (1, max_length, width) float32."""
        place = next(self.text.parameters()).device
        ids = torch.tensor([prompt.ids], device=place)
        return self._finite("encoding the prompt", self.text, lambda: self.text(ids).float()).to(self.device)

    def needs(self, width: int, height: int) -> Needs:
        """What a picture of a size in pixels takes beyond the weights; measured on Stable Diffusion's networks."""
        size, wide = width * height, self.dtype == torch.float32
        tile = min(size, SIDE**2) if self.savings.tiles else size
        value, places, channels = 4 if wide else 2, size // self.vae.factor**2, self.unet.params.channels
        attention: Counter[tuple[str, int]] = Counter()
        for site in self.sites():
            if site.place != "mid":  # queries of every place; as many keys, or a text's
                of_site = (2 if site.kind == "self" else 1) * places // 4**site.level * channels[site.level] * value
                attention[site.kind, site.level] += of_site
        return Needs(attention=attention, autoencoder=13 * tile * self.vae.params.channels[0] * value,
                     # Below float32 the norms' inputs are float32 all the same.
                     network=(650 if wide else 1000) * places * channels[0] * value)

    def save(self, savings: Savings) -> None:
        """Need less memory from now on."""
        if savings.text and not self.savings.text:
            self.text.to("cpu", torch.float32)
        self.savings = savings

    @torch.no_grad()
    def prepare(self, text: Tensor) -> Prepared:
        """What `denoise` needs of embedded prompts (B, M, width), for as often as they are used."""
        return Prepared(text, self._autocast(lambda: self.unet.text(text)), self.dtype)

    def denoise(self, z: Tensor, level: Level, text: Tensor | Prepared) -> tuple[Tensor, Tensor]:
        """Predict what `z`, at `level`, is made of.

        Args:
            z: (B, 4, h, w) float32, with gradient if one is wanted.
            text: (1 or B, M, width) of `encode_text`, or B of them prepared.
        Returns:
            x0 and eps, each (B, 4, h, w) float32; z = sqrt(alpha) x0 + sqrt(1 - alpha) eps.
        """
        def run() -> Tensor:
            if isinstance(text, Prepared):
                context = text.text if text.dtype == self.dtype else text.embedding
            else:
                context = text.expand(z.shape[0], -1, -1)
            return self.unet(z, self._time(level.t), context).float()

        output = self._finite(f"the UNet at timestep {level.t}", self.unet, run)
        return from_prediction(z, output, level.alpha, self.prediction_type)

    @torch.no_grad()
    def _time(self, t: int) -> Time:
        if (t, self.dtype) not in self._times:
            self._times[t, self.dtype] = self.unet.time(t)
        return self._times[t, self.dtype]

    @contextmanager
    def full_precision(self, *modules: nn.Module) -> Iterator[None]:
        """Context in which `modules`, by default the UNet, compute in float32 whatever the model's dtype."""
        kept = [(m, name, p) for module in modules or (self.unet,) for m in module.modules()
                for name, p in m.named_parameters(recurse=False)]
        dtype, self.dtype = self.dtype, torch.float32
        # New parameters, not new data in the old ones: a graph made inside may be walked back after the context.
        for m, name, p in kept:
            setattr(m, name, nn.Parameter(p.float(), requires_grad=False))
        try:
            yield
        finally:
            self.dtype = dtype
            for m, name, p in kept:
                setattr(m, name, p)

    def _finite(self, stage: str, module: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        """`run()` in the model's dtype; if that is not finite, once more in float32; then NumericsError."""
        with_gradient = torch.is_grad_enabled()  # a listener may have ended it on the way
        out = self._autocast(run)
        if not torch.isfinite(out).all() and self.dtype != torch.float32:
            with self.full_precision(module), torch.set_grad_enabled(with_gradient):
                out = self._autocast(run)
        if not torch.isfinite(out).all():
            raise NumericsError(f"{stage} gave numbers that are not finite, in float32 too: nothing was written; "
                                "try smaller guidance and reconstruction scales")
        return out

    def _autocast(self, run: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(self.device.type, self.dtype if self.dtype != torch.float32 else torch.bfloat16,
                            enabled=self.dtype != torch.float32):
            return run()


def recommend(unet: UNet, sample_size: int) -> EditConfig:
    """Settings for a family: SD 1.x at 512 and 2.1-base as published, SD 2.1 at 768 as its authors' demo."""
    if sample_size >= 768:
        return EditConfig(self_level=2, cross_level=2, reconstruction_scale=50.0)
    levels = [level for level, has in enumerate(unet.params.attention) if has]
    return EditConfig(self_level=min(1, levels[-1]), cross_level=min(2, levels[-1]))
