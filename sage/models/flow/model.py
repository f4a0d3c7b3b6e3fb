"""`Flux`: the backbone of FLUX.1 and of smaller rectified flows of the same build."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sage.errors import SettingsError
from sage.models.backbone import Text
from sage.models.flow.attention import JointAttention
from sage.models.flow.t5 import T5Text
from sage.models.flow.transformer import FluxTransformer
from sage.models.latent import LatentModel
from sage.models.memory import Needs
from sage.models.sd.clip import CLIPText
from sage.models.sd.tiles import SIDE
from sage.models.sd.vae import VAE
from sage.models.sites import Block, Feature, Sites
from sage.prompts.tokens import Prompt, Prompts
from sage.sampling.levels import FlowParams, FlowSchedule, Level
from sage.sampling.steps import Prediction, from_output

SAVED = 14  # numbers a token, layer and width that are kept for the way back of a gradient: 12, and 13.4 in bfloat16
PLAINLY = 1.0  # embedded guidance where nobody says how much


@dataclass(frozen=True)
class Prepared:
    """Embedded prompts, and the guidance that the network is told."""

    text: Text
    guidance: float


class Flux(LatentModel):
    """FLUX.1 dev, schnell or a smaller model of the same build, frozen, on one device.

    Args:
        text: the encoder of the prompt as a whole.
        t5: the encoder of its tokens; None where `text` encodes these too.
        tokenizer: of `t5`, or of `text` where there is none.
        clip_tokenizer: of `text`, where there are two.
        tokens: of a prompt, marks included.
        taught: the words that it knows, where they are few enough to be listed.
        more: the other arguments of `LatentModel`.
    """

    family = "flux"

    def __init__(self, *, transformer: FluxTransformer, vae: VAE, text: CLIPText, t5: T5Text | None, tokenizer: Any,
                 clip_tokenizer: Any, tokens: int, schedule: FlowParams, taught: Sequence[str] = (), **more: Any):
        self.transformer, self.text, self.t5, self.schedule = transformer, text, t5, FlowSchedule(schedule)
        self.distilled = transformer.params.guidance
        prompts = Prompts(tokenizer, tokens, taught)
        self._clip_prompts = Prompts(clip_tokenizer, text.params.max_length) if t5 is not None else prompts
        self._places: Tensor | None = None
        super().__init__(vae=vae, prompts=prompts, prediction_type="flow", **more)

    @property
    def network(self) -> FluxTransformer:
        """The transformer."""
        return self.transformer

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """Those of text."""
        return (self.text,) if self.t5 is None else (self.text, self.t5)

    @property
    def pixel_multiple(self) -> int:
        """Sides of pictures must be multiples of this."""
        return self.vae.factor * self.transformer.params.patch

    def sites(self) -> Sites:
        """Two for every attention layer, of the picture and of the text, in the order of a forward pass."""
        return self.transformer.sites()

    def features(self) -> tuple[Feature, ...]:
        """None: there are no residual blocks of convolutions."""
        return ()

    def blocks(self) -> tuple[Block, ...]:
        """Attention, MLPs and modulations."""
        return self.transformer.blocks()

    @torch.no_grad()
    def embed(self, prompts: Sequence[Prompt]) -> Text:
        """Prompts -> (B, M, D) tokens and (B, P) pooled, float32; each as it would be alone.

        Padding takes part, as it did in training.  Of a prompt that is too long for the pooled text the beginning
        counts.
        """
        def encoded(encoder: CLIPText | T5Text, prompt: Prompt) -> Tensor:
            ids = torch.tensor([prompt.ids], device=next(encoder.parameters()).device)
            return self._finite("encoding the prompt", encoder, lambda: encoder(ids).float()).to(self.device)

        def of_whole(prompt: Prompt) -> Tensor:
            own = self._clip_prompts.parse(prompt.text, truncate=True)
            return encoded(self.text, own)[:, len(self._clip_prompts.tokens(own)) - 1]

        return Text(self._each_alone(prompts, lambda prompt: encoded(self.t5 or self.text, prompt)),
                    self._each_alone(prompts, of_whole))

    @torch.no_grad()
    def prepare(self, text: Text, guidance: float | None = None) -> Prepared:
        """Embedded prompts with the guidance that the network is told, 1 by default."""
        return Prepared(text, PLAINLY if guidance is None else guidance)

    def predict(self, z: Tensor, level: Level, text: Text | Prepared) -> Prediction:
        """Predict what `z`, at `level`, is made of.

        Args:
            z: (B, C, h, w) float32, with gradient if one is wanted; float64 where the network computes in that.
            text: of 1 or B prompts, with gradient if one is wanted; or prepared.
        Returns:
            x0 and eps, each (B, C, h, w), in the dtype of z.
        """
        given = text if isinstance(text, Prepared) else Prepared(text, PLAINLY)
        words = given.text.expand(len(z))
        if words.pooled is None:
            raise SettingsError(f"{self.name} needs the pooled text beside its tokens: give both, as `embed` does")

        def run() -> Tensor:
            with torch.autocast(self.device.type, enabled=False):  # it casts by itself
                out = self.transformer(z, level.t, words.tokens, words.pooled, given.guidance, self._places)
            return out.to(z.dtype)

        output = self._finite(f"the transformer at time {level.t:g}", self.transformer, run)
        return from_output(z, output, level, self.prediction_type)

    @contextmanager
    def computing(self, places: Tensor) -> Iterator[None]:
        """Context in which these tokens of the picture alone are computed: of the others the velocity is 0.

        Args:
            places: (n,) int64, counted row by row.
        """
        before, self._places = self._places, places
        try:
            yield
        finally:
            self._places = before

    @contextmanager
    def looking(self, bias: Tensor) -> Iterator[None]:
        """Context in which some of the picture's tokens are looked at more than they would be, or less.

        Args:
            bias: (b, N), added to all scores on their keys; of b pictures, whose branches follow one another.
        """
        joints = [module for module in self.transformer.modules() if isinstance(module, JointAttention)]
        for joint in joints:
            joint.bias = bias
        try:
            yield
        finally:
            for joint in joints:
                joint.bias = None

    def needs(self, width: int, height: int) -> Needs:
        """What a picture of a size in pixels takes beyond the weights."""
        size, p = width * height, self.transformer.params
        tile = min(size, SIDE**2) if self.savings.tiles else size
        value, places = 4 if self.dtype == torch.float32 else 2, size // self.pixel_multiple**2
        tokens, layers = places + self.prompts.max_length, p.depth + p.depth_single
        of_site = layers * p.width * value
        attention = {("self", p.level): 2 * places * of_site, ("cross", p.level): tokens * of_site}
        return Needs(attention=attention, autoencoder=13 * tile * self.vae.params.channels[0] * value,
                     network=SAVED * tokens * layers * p.width * value)

    def fingerprint(self) -> str:
        """What the model is known by; see `LatentModel`."""
        facts = {"prediction": self.prediction_type, "side": self.sample_size, "tokens": self.prompts.max_length,
                 "schedule": asdict(self.schedule.params)}
        networks: dict[str, nn.Module] = {"transformer": self.transformer, "vae": self.vae, "text": self.text}
        return self._digest(facts, networks if self.t5 is None else networks | {"t5": self.t5})
