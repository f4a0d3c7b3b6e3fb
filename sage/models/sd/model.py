"""`StableDiffusion`: the backbone of the 1.x and 2.x families and of smaller models of the same build."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sage.errors import NumericsError
from sage.models.backbone import Text
from sage.models.memory import Needs
from sage.models.savings import Savings
from sage.models.sd.attention import TextKeysValues
from sage.models.sd.clip import CLIPText
from sage.models.sd.tiles import SIDE
from sage.models.sd.unet import Time, UNet
from sage.models.sd.vae import VAE
from sage.models.sites import Feature, Sites
from sage.models.weights import CAST
from sage.prompts.tokens import Prompt, Prompts
from sage.sampling.levels import DiffusionSchedule, Level, ScheduleParams
from sage.sampling.steps import Prediction, from_output

SAMPLE = 64  # numbers of each weight that the fingerprint looks at

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """Embedded prompts (B, M, width), and what the UNet makes of them in `dtype`, the same at every step."""

    embedding: Tensor
    text: TextKeysValues
    dtype: torch.dtype


class StableDiffusion:
    """Stable Diffusion 1.x, 2.x or a smaller model of the same build, frozen, on one device.

    Latents and everything computed from them outside the networks are float32.  Below float32 the networks run under
    `torch.autocast`, their norms in float32.

    Args:
        prediction_type: "epsilon" or "v_prediction".
        sample_size: side in pixels of the pictures it was trained on.
        recommends: settings by the name of a method, plain values that came with the model.
        taught: the words that it knows, where they are few enough to be listed.
    """

    family = "sd"
    distilled = False

    def __init__(self, *, unet: UNet, vae: VAE, text: CLIPText, tokenizer: Any,
                 schedule: ScheduleParams, prediction_type: str, name: str, sample_size: int, device: torch.device,
                 dtype: torch.dtype,
                 recommends: Mapping[str, Mapping[str, Any]] | None = None, taught: Sequence[str] = ()):
        self.unet, self.vae, self.text = unet, vae, text
        for network in (unet, vae, text):
            network.eval().requires_grad_(False)
        self.prompts = Prompts(tokenizer, text.params.max_length, taught)
        self.schedule, self.prediction_type = DiffusionSchedule(schedule), prediction_type
        self.name, self.sample_size, self.device, self.dtype = name, sample_size, torch.device(device), dtype
        self.recommends = recommends or {}
        self.savings = Savings()
        self._times: dict[tuple[int, torch.dtype], Time] = {}  # the same in every pass and edit

    @property
    def recommended(self) -> Any:
        """Settings of SAGE for this model, as versions before 0.2 had them: now `method("sage").recommended(model)`."""
        warnings.warn('model.recommended is now sage.method("sage").recommended(model)', DeprecationWarning,
                      stacklevel=2)
        return import_module("sage.method").method("sage").recommended(self)

    @property
    def pixel_multiple(self) -> int:
        """Sides of pictures must be multiples of this."""
        return self.vae.factor * self.unet.side_multiple

    def sites(self) -> Sites:
        """Every attention layer, in the order of a forward pass."""
        return self.unet.sites()

    def features(self) -> tuple[Feature, ...]:
        """What the residual blocks pass on, in the order of a forward pass."""
        return self.unet.features()

    def part(self, name: str) -> nn.Module | None:
        """Nothing beside the three networks."""
        return None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of (width, height) pixels."""
        return self.vae.params.latent_channels, size[1] // self.vae.factor, size[0] // self.vae.factor

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1] -> (B, 4, h, w) float32 latents; a sample when a generator is given."""
        state = None if generator is None else generator.get_state()

        def run() -> Tensor:
            if generator is not None and state is not None:
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
    def embed(self, prompts: Sequence[Prompt]) -> Text:
        """Prompts -> (B, max_length, width) float32; each as it would be alone."""
        place = next(self.text.parameters()).device

        def one(prompt: Prompt) -> Tensor:
            ids = torch.tensor([prompt.ids], device=place)
            return self._finite("encoding the prompt", self.text, lambda: self.text(ids).float()).to(self.device)

        known = {prompt: one(prompt) for prompt in dict.fromkeys(prompts)}
        return Text(torch.cat([known[prompt] for prompt in prompts]))

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
        """Need this much less memory from now on."""
        if savings.text and not self.savings.text:
            self.text.to("cpu", torch.float32)
        elif self.savings.text and not savings.text:
            for layer in self.text.modules():
                if not any(layer.children()):
                    layer.to(self.device, self.dtype if isinstance(layer, CAST) else torch.float32)
        self.savings = savings

    @torch.no_grad()
    def prepare(self, text: Text, guidance: float | None = None) -> Prepared:
        """What `predict` needs of embedded prompts, for as often as they are used."""
        return Prepared(text.tokens, self._autocast(lambda: self.unet.text(text.tokens)), self.dtype)

    def predict(self, z: Tensor, level: Level, text: Text | Prepared) -> Prediction:
        """Predict what `z`, at `level`, is made of.

        Args:
            z: (B, 4, h, w) float32, with gradient if one is wanted.
            text: of 1 or B prompts, with gradient if one is wanted; or B of them prepared.
        Returns:
            x0 and eps, each (B, 4, h, w) float32.
        """
        def run() -> Tensor:
            if isinstance(text, Prepared):
                context = text.text if text.dtype == self.dtype else text.embedding
            else:
                context = text.expand(len(z)).tokens
            return self.unet(z, self._time(int(level.t)), context).float()

        output = self._finite(f"the UNet at timestep {level.t:g}", self.unet, run)
        return from_output(z, output, level, self.prediction_type)

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

    def _autocast(self, run: Callable[[], T]) -> T:
        with torch.autocast(self.device.type, self.dtype if self.dtype != torch.float32 else torch.bfloat16,
                            enabled=self.dtype != torch.float32):
            return run()

    @torch.no_grad()
    def fingerprint(self) -> str:
        """SHA-256 in hex over the configurations, and the name, shape and evenly spread numbers of every weight.

        The numbers count as float16: a checkpoint has one fingerprint on every device, loaded in float32 or float16.
        In bfloat16, which keeps fewer digits, it has another.
        """
        networks: dict[str, UNet | VAE | CLIPText] = {"unet": self.unet, "vae": self.vae, "text": self.text}
        said = {"prediction": self.prediction_type, "side": self.sample_size, "schedule": asdict(self.schedule.params),
                **{name: asdict(network.params) for name, network in networks.items()}}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for network in networks.values():
            weights = sorted(network.named_parameters(), key=lambda pair: pair[0])
            digest.update(json.dumps([(name, list(p.shape)) for name, p in weights]).encode())
            digest.update(torch.cat([_sample(p) for _, p in weights]).cpu().numpy().tobytes())
        return digest.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    return weight.flatten()[::max(1, weight.numel() // SAMPLE)].half()
