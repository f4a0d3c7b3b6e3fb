"""The seam between methods and a network: `Backbone`, what any model has to offer, and the values that pass through it.

Whatever has these members can be edited with (docs/porting.md).  `predict` returns (x0, eps): past this seam nobody has
to know whether a network predicts the noise, v or a flow.  A backbone knows no method and no settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sage.models.memory import Needs
from sage.models.savings import Savings
from sage.models.sites import Block, Feature, Sites
from sage.prompts.tokens import Prompt, Prompts
from sage.sampling.levels import Level, Schedule
from sage.sampling.steps import Prediction


@dataclass(frozen=True, eq=False)
class Text:
    """Embedded prompts.

    Attributes:
        tokens: (B, M, D) float32, an embedding a token.
        pooled: (B, P) float32, of the prompts as wholes; None for networks that do not ask for it.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def cat(texts: "Iterable[Text]") -> "Text":
        """Texts one after the other, as one batch."""
        texts = list(texts)
        pooled = [t.pooled for t in texts if t.pooled is not None]
        return Text(torch.cat([t.tokens for t in texts]), torch.cat(pooled) if pooled else None)

    def mean(self) -> "Text":
        """One prompt's worth: the mean of all, token by token."""
        return Text(self.tokens.mean(dim=0, keepdim=True),
                    None if self.pooled is None else self.pooled.mean(dim=0, keepdim=True))

    def rows(self, rows: Sequence[int]) -> "Text":
        """Some of the prompts."""
        rows = list(rows)
        return Text(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    def expand(self, batch: int) -> "Text":
        """One prompt for each of `batch` pictures."""
        return self if len(self) == batch else Text(self.tokens.expand(batch, -1, -1), None if self.pooled is None
                                                    else self.pooled.expand(batch, -1))

    def mix(self, other: "Text", share: float) -> "Text":
        """(1 - share) self + share other; below 0 and above 1 too."""
        pooled = None if self.pooled is None or other.pooled is None else torch.lerp(self.pooled, other.pooled, share)
        return Text(torch.lerp(self.tokens, other.tokens, share), pooled)

    def slerp(self, other: "Text", share: float) -> "Text":
        """Some of the way to another text on the arc between them, each prompt's embedding taken as one vector."""
        def arc(a: Tensor, b: Tensor) -> Tensor:
            cos = torch.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
            angle = cos.acos().reshape(-1, *[1] * (a.dim() - 1))
            if not angle.all():  # there is no arc between what points one way
                return torch.lerp(a, b, share)
            return ((1 - share) * angle).sin() / angle.sin() * a + (share * angle).sin() / angle.sin() * b

        pooled = None if self.pooled is None or other.pooled is None else arc(self.pooled, other.pooled)
        return Text(arc(self.tokens, other.tokens), pooled)

    def __add__(self, other: "Text") -> "Text":
        pooled = None if self.pooled is None or other.pooled is None else self.pooled + other.pooled
        return Text(self.tokens + other.tokens, pooled)

    def __sub__(self, other: "Text") -> "Text":
        pooled = None if self.pooled is None or other.pooled is None else self.pooled - other.pooled
        return Text(self.tokens - other.tokens, pooled)


@runtime_checkable
class Backbone(Protocol):
    """What an edit needs of a model.

    Attributes:
        name: for people, and in the settings of an edit.
        family: the kind of network, such as "sd".
        device, dtype: where and in what it computes; latents and what is made of them are float32.
        sample_size: side in pixels of the pictures it was trained on.
        distilled: guidance is an input of the network, and one pass is enough.
        prediction_type: what the network itself gives, "epsilon", "v_prediction" or "flow", for methods that reckon
            with its output (`sage.sampling.steps.to_output`); all others go by `Prediction`.
        prompts: its tokenizer.
        savings: what is done at present to need less memory.
        recommends: settings by the name of a method, plain values that came with the model; by "generate/NAME" those
            for pictures from nothing; under "auto" a "method" and its "settings" for who names none (`sage.auto`).
    """

    name: str
    family: str
    device: torch.device
    dtype: torch.dtype
    sample_size: int
    distilled: bool
    prediction_type: str
    prompts: Prompts
    savings: Savings
    recommends: Mapping[str, Mapping[str, Any]]

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""
        ...

    @property
    def pixel_multiple(self) -> int:
        """Sides of pictures must be multiples of this."""
        ...

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w) float32 latents: the mean, or a sample with a CPU generator."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) latents -> (B, 3, H, W) float32 in about [-1, 1]."""
        ...

    def embed(self, prompts: Sequence[Prompt]) -> Text:
        """Prompts -> text for `prepare` and `predict`, one row each."""
        ...

    def prepare(self, text: Text, guidance: float | None = None) -> Any:
        """What `predict` makes of a text that it will be given often; `guidance` for distilled networks."""
        ...

    def predict(self, z: Tensor, level: Level, text: Any) -> Prediction:
        """What latents at `level` are made of under a text, prepared or not; differentiable in z."""
        ...

    def sites(self) -> Sites:
        """Every attention layer, in the order of a forward pass."""
        ...

    def features(self) -> tuple[Feature, ...]:
        """What the residual blocks pass on, in the order of a forward pass; none where there are no such blocks."""
        ...

    def blocks(self) -> tuple[Block, ...]:
        """What a cache may pass over, in the order of a forward pass; none where everything is always computed."""
        ...

    def part(self, name: str) -> nn.Module | None:
        """A further network that a method asks for, None where this model has none."""
        ...

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of (width, height) pixels."""
        ...

    def needs(self, width: int, height: int) -> Needs:
        """What a picture of a size in pixels takes beyond the weights."""
        ...

    def save(self, savings: Savings) -> None:
        """Need this much less memory from now on."""
        ...

    def full_precision(self, *, dtype: torch.dtype = torch.float32) -> AbstractContextManager[None]:
        """Context in which the network computes in float32 whatever the model's dtype, or in float64.

        In the latter `predict` takes float64 latents, and gives what is.
        """
        ...

    def fingerprint(self) -> str:
        """What the model is known by: the same for the same weights and configuration, SHA-256 in hex."""
        ...


MEMBERS = tuple(name for name in (*Backbone.__annotations__, *vars(Backbone)) if not name.startswith("_"))
