"""`StableDiffusion`: the backbone of the 1.x and 2.x families and of smaller models of the same build."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sage.models.backbone import Text
from sage.models.latent import LatentModel
from sage.models.memory import Needs
from sage.models.sd.attention import TextKeysValues
from sage.models.sd.clip import CLIPText
from sage.models.sd.inversion import InversionNet
from sage.models.sd.tiles import SIDE
from sage.models.sd.unet import Time, UNet
from sage.models.sd.vae import VAE
from sage.models.sites import Block, Feature, Sites
from sage.prompts.tokens import Prompt, Prompts
from sage.sampling.levels import DiffusionSchedule, Level, ScheduleParams
from sage.sampling.steps import Prediction, from_output


@dataclass(frozen=True)
class Prepared:
    """Embedded prompts, and what the UNet makes of their tokens in `dtype`, the same at every step."""

    text: Text
    keys_values: TextKeysValues
    dtype: torch.dtype


class StableDiffusion(LatentModel):
    """Stable Diffusion 1.x, 2.x or a smaller model of the same build, frozen, on one device.

    Args:
        prediction_type: "epsilon" or "v_prediction".
        taught: the words that it knows, where they are few enough to be listed.
        inversion: the network that finds noise for a few-step generator, as its part "inversion".
        made_for: steps that the UNet was made for, as `DiffusionSchedule` has it.
        more: the other arguments of `LatentModel`.
    """

    family = "sd"
    distilled = False
    pass_takes = 650, 1000  # bytes of a pass and its gradient, a number of the first level: in float32, and below

    def __init__(self, *, unet: UNet, vae: VAE, text: CLIPText, tokenizer: Any, schedule: ScheduleParams,
                 prediction_type: str, taught: Sequence[str] = (), inversion: InversionNet | None = None,
                 made_for: int = 0, **more: Any):
        self.unet, self.text, self.schedule = unet, text, DiffusionSchedule(schedule, made_for)
        self.inversion = inversion
        super().__init__(vae=vae, prediction_type=prediction_type,
                         prompts=Prompts(tokenizer, text.params.max_length, taught), **more)
        self._times: dict[tuple[int, torch.dtype], Time] = {}  # the same in every pass and edit

    @property
    def network(self) -> UNet:
        """The UNet."""
        return self.unet

    @property
    def encoders(self) -> tuple[CLIPText, ...]:
        """The one of text."""
        return (self.text,)

    def networks(self) -> tuple[nn.Module, ...]:
        """Every network."""
        return (*super().networks(), *([] if self.inversion is None else [self.inversion]))

    def part(self, name: str) -> nn.Module | None:
        """The inversion network, under "inversion", where the model has one."""
        return self.inversion if name == "inversion" else None

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

    def blocks(self) -> tuple[Block, ...]:
        """Attention, feed-forward layers, and what lies below each level."""
        return self.unet.blocks()

    @torch.no_grad()
    def embed(self, prompts: Sequence[Prompt]) -> Text:
        """Prompts -> (B, max_length, width) float32; each as it would be alone."""
        place = next(self.text.parameters()).device

        def one(prompt: Prompt) -> Tensor:
            ids = torch.tensor([prompt.ids], device=place)
            return self._finite("encoding the prompt", self.text, lambda: self.text(ids).float()).to(self.device)

        return Text(self._each_alone(prompts, one))

    def needs(self, width: int, height: int) -> Needs:
        """What a picture of a size in pixels takes beyond the weights; measured on Stable Diffusion's networks."""
        size, wide = width * height, self.dtype == torch.float32
        tile = min(size, SIDE**2) if self.savings.tiles else size
        value, places, channels = self.dtype.itemsize, size // self.vae.factor**2, self.unet.params.channels
        attention: Counter[tuple[str, int]] = Counter()
        for site in self.sites():
            if site.place != "mid":  # queries of every place; as many keys, or a text's
                of_site = (2 if site.kind == "self" else 1) * places // 4**site.level * channels[site.level] * value
                attention[site.kind, site.level] += of_site
        of_vae = self.vae.params.channels[0] * self._dtype_of(self.vae).itemsize
        return Needs(attention=attention, autoencoder=13 * tile * of_vae,
                     # Below float32 the norms' inputs are float32 all the same.
                     network=self.pass_takes[not wide] * places * channels[0] * value)

    @torch.no_grad()
    def prepare(self, text: Text, guidance: float | None = None) -> Prepared:
        """What `predict` needs of embedded prompts, for as often as they are used."""
        tokens = text.tokens.double() if self.dtype == torch.float64 else text.tokens
        return Prepared(text, self._autocast(lambda: self.unet.text(tokens)), self.dtype)

    def predict(self, z: Tensor, level: Level, text: Text | Prepared) -> Prediction:
        """Predict what `z`, at `level`, is made of.

        Args:
            z: (B, 4, h, w) float32, with gradient if one is wanted; float64 where the network computes in that.
            text: of 1 or B prompts, with gradient if one is wanted; or B of them prepared.
        Returns:
            x0 and eps, each (B, 4, h, w), in the dtype of z.
        """
        words = text.text if isinstance(text, Prepared) else text.expand(len(z))

        def run() -> Tensor:
            ready = text.keys_values if isinstance(text, Prepared) and text.dtype == self.dtype else None
            context = words.tokens.to(z) if ready is None else ready
            return self.unet(z, self._time(int(level.t), words, z), context).to(z.dtype)

        output = self._finite(f"the UNet at timestep {level.t:g}", self.unet, run)
        return from_output(z, output, level, self.prediction_type)

    @torch.no_grad()
    def _time(self, t: int, text: Text, z: Tensor) -> Time:
        """What the network makes of a timestep, and of whatever else it is told with it."""
        if (t, self.dtype) not in self._times:
            self._times[t, self.dtype] = self.unet.time(t)
        return self._times[t, self.dtype]

    def fingerprint(self) -> str:
        """What the model is known by; see `LatentModel`."""
        return self._digest(self._facts(), {name: part for name, part in self._parts().items() if part is not None})

    def _parts(self) -> dict[str, nn.Module | None]:
        """The networks that a fingerprint is of."""
        return {"unet": self.unet, "vae": self.vae, "text": self.text, "inversion": self.inversion}

    def _facts(self) -> dict[str, Any]:
        """What a fingerprint is of, beside weights."""
        return {"prediction": self.prediction_type, "side": self.sample_size, "schedule": asdict(self.schedule.params)}
