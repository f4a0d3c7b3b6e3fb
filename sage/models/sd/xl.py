"""`StableDiffusionXL`: the backbone of Stable Diffusion XL, of its students, and of smaller models of the same build.

    tokens = [CLIP-L's, ViT-bigG's], each what enters its last layer       (B, 77, 768 + 1280)
    e = time(t) + added(pooled, sizes),  pooled = ViT-bigG's end mark, projected

(Podell et al. 2307.01952, sec. 2.1 and 2.2).  The sizes are those of the picture as it is worked: height and width, no
crop, height and width again, as diffusers' pipeline has them where nobody says otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sage.errors import SettingsError
from sage.models.backbone import Text
from sage.models.sd.clip import CLIPText
from sage.models.sd.model import StableDiffusion
from sage.models.sd.unet import Time
from sage.prompts.tokens import Prompt, Prompts


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL, frozen, on one device.

    Args:
        text, tokenizer: the encoder whose tokens are edited, and its tokenizer.
        text_2, tokenizer_2: the encoder whose end mark is the pooled text too, and its tokenizer, which pads otherwise.
        empty_is_zero: an empty prompt is all zeros, as it was in training, and not what the encoders make of it.
        more: the other arguments of `StableDiffusion`.
    """

    family = "sdxl"
    # 1.7 times as much is kept for the way back as of Stable Diffusion's UNet, counted on shapes; not measured.
    pass_takes = 1100, 1700

    def __init__(self, *, text_2: CLIPText, tokenizer_2: Any, empty_is_zero: bool = True, **more: Any):
        self.text_2, self.empty_is_zero = text_2, empty_is_zero
        self._prompts_2 = Prompts(tokenizer_2, text_2.params.max_length)
        super().__init__(**more)

    @property
    def encoders(self) -> tuple[CLIPText, ...]:
        """Both of text."""
        return self.text, self.text_2

    @torch.no_grad()
    def embed(self, prompts: Sequence[Prompt]) -> Text:
        """Prompts -> (B, max_length, width of both) tokens and (B, projection) pooled, float32; each as alone."""
        own = {prompt: self._embedded(prompt) for prompt in dict.fromkeys(prompts)}
        return Text.cat(own[prompt] for prompt in prompts)

    def _embedded(self, prompt: Prompt) -> Text:
        if self.empty_is_zero and not prompt.text:
            width, params = self.text.params.width + self.text_2.params.width, self.text_2.params
            return Text(torch.zeros(1, len(prompt.ids), width, device=self.device),
                        torch.zeros(1, params.projection, device=self.device))
        # Of a prompt that is too long for the second encoder the beginning counts.
        other = self._prompts_2.parse(prompt.text, truncate=True)
        first, _ = self._states(self.text, prompt.ids)
        second, last = self._states(self.text_2, other.ids)
        end = len(self._prompts_2.tokens(other)) - 1
        pooled = self._finite("encoding the prompt", self.text_2, lambda: self.text_2.pooled(last, end).float())
        return Text(torch.cat([first, second], dim=-1).to(self.device), pooled.to(self.device))

    def _states(self, encoder: CLIPText, ids: tuple[int, ...]) -> tuple[Tensor, ...]:
        """What enters the last layer of an encoder, and its normalised output, (1, N, width) float32."""
        place = next(encoder.parameters()).device

        def run() -> Tensor:
            return torch.stack(encoder.states(torch.tensor([ids], device=place))).float()

        return self._finite("encoding the prompt", encoder, run).unbind()

    @torch.no_grad()
    def _time(self, t: int, text: Text, z: Tensor) -> Time:
        if text.pooled is None:
            raise SettingsError(f"{self.name} needs the pooled text beside its tokens: give both, as `embed` does")
        height, width = (side * self.vae.factor for side in z.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=z.device)
        return self.unet.time(t, self.unet.added(text.pooled, sizes))

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"empty is zero": self.empty_is_zero}

    def _parts(self) -> dict[str, nn.Module | None]:
        return super()._parts() | {"text_2": self.text_2}
