"""A pipeline of diffusers that is loaded -> a backbone on its networks.  Nothing of diffusers is imported.

A pipeline is read as a folder is: its configurations, the names of its weights, its tokenizers, with the same refusals.
Our networks then hold its very tensors.  Only what works in float32 here and does not there is copied: norms, which are
small, and in float16 the autoencoder of XL, unless it is brought to float32 in the pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sage.errors import ModelError
from sage.models.backbone import Backbone
from sage.models.flow import loading as flow
from sage.models.flow.t5 import T5Params
from sage.models.sd import loading as sd
from sage.models.sd.clip import CLIPTextParams
from sage.models.sd.configs import Config
from sage.models.weights import Held, Stored


@dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline as what a model's parts are taken from (`sage.models.folders.Source`)."""

    pipe: Any

    @property
    def path(self) -> Path:
        """What to call it."""
        return Path(type(self.pipe).__name__)

    def config(self, file: str) -> Config:
        """What the pipeline, or a part of it, says of itself."""
        part = file.partition("/")[0]
        config = self.pipe.config if part == "model_index.json" else self._part(part).config
        values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        return Config(self.path / part, values)

    def holds(self, part: str) -> bool:
        """Whether it has such a part."""
        return part == "model_index.json" or getattr(self.pipe, part, None) is not None

    def tensors(self, part: str) -> dict[str, Stored]:
        """The weights of a part, themselves."""
        place = self.path / part
        # Of tensors under two names, as T5's embeddings, both; what is no parameter is no weight.
        named = self._part(part).named_parameters(remove_duplicate=False)
        return {key: Held.of(place, key, value.detach()) for key, value in named}

    def tokenizer(self, part: str, text: CLIPTextParams) -> Any:
        """One of its tokenizers, checked against the encoder."""
        return self._fitting(part, text.vocabulary)

    def t5_tokenizer(self, part: str, t5: T5Params, most: int) -> tuple[Any, int]:
        """Its tokenizer of T5, and how many tokens a prompt may have."""
        found = self._fitting(part, t5.vocabulary)
        return found, min(int(found.model_max_length), most)

    def recommends(self) -> Mapping[str, Mapping[str, Any]]:
        """Nothing: pipelines hold no settings of ours."""
        return {}

    def words(self) -> tuple[str, ...]:
        """Nothing, likewise."""
        return ()

    def _fitting(self, part: str, vocabulary: int) -> Any:
        found = self._part(part)
        if len(found) > vocabulary:
            raise ModelError(f"{self.path / part} has {len(found)} tokens, the text encoder {vocabulary}")
        return found

    def _part(self, part: str) -> Any:
        found = getattr(self.pipe, part, None)
        if found is None:
            raise ModelError(f"the {self.path} has no {part}: load the whole pipeline")
        return found


def from_pipeline(pipe: Any, name: str = "") -> Backbone:
    """A model on the networks of a loaded pipeline: StableDiffusionPipeline, StableDiffusionXLPipeline or FluxPipeline.

    Its device and dtype are the pipeline's, whose weights it shares: what changes them, such as training or moving the
    pipeline to another device, changes or breaks this model too.  Of LoRA, those count that are fused.

    Args:
        name: what to call it; the pipeline's class by default.
    Raises:
        ModelError: another pipeline, one that is not whole, or whose parts lie on several devices or in several dtypes.
    """
    source = Pipeline(pipe)
    of_flow = source.holds("transformer") and not source.holds("unet")
    if not of_flow and not source.holds("unet"):
        raise ModelError(f"{source.path} is no pipeline of Stable Diffusion, SDXL or FLUX.1: it has neither unet nor "
                         "transformer")
    device, dtype = _where(source, "transformer" if of_flow else "unet")
    called = name or str(source.path)
    if of_flow:
        return flow.load_flux(flow.open_source(source), called, device, dtype, shared=True)
    opened = sd.open_source(source)
    return opened.backbone(**sd.load_parts(opened, device, dtype, shared=True), name=called)


def _where(source: Pipeline, network: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of all parts, for a copy would be made of any other.

    Raises:
        ModelError: they differ, or are none that a model can have.
    """
    parts = [part for part in (network, "vae", "text_encoder", "text_encoder_2") if source.holds(part)]
    large = [stored.read() for part in parts for stored in source.tensors(part).values() if len(stored.shape) > 1]
    devices, dtypes = {t.device for t in large}, {t.dtype for t in large}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        raise ModelError(f"the parts of the {source.path} lie on {', '.join(sorted(map(str, devices)))}: move it to "
                         "one device, without offloading")
    own = next(iter(source.tensors(network).values())).read().dtype
    # An autoencoder of XL may have been brought to float32 already, as it is here.
    if dtypes - {own} - ({torch.float32} if own == torch.float16 else set()) or own not in (
            torch.float32, torch.float16, torch.bfloat16):
        raise ModelError(f"the parts of the {source.path} are {', '.join(sorted(map(str, dtypes)))}: bring it to one "
                         "of float32, float16 and bfloat16")
    return devices.pop(), own
