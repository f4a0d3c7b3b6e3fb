"""`LatentModel`: what the backbones share that work on an autoencoder's latents: its ends, numerics, and memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sage.errors import NumericsError
from sage.models.loras import Lora
from sage.models.savings import Savings
from sage.models.sd.vae import VAE
from sage.models.weights import CAST
from sage.prompts.tokens import Prompts

SAMPLE = 64  # numbers of each weight that the fingerprint looks at
SMALL = 2**28  # bytes of all weights, up to which they may be held several times

T = TypeVar("T")


class LatentModel:
    """Frozen networks on one device: one that predicts, an autoencoder, and encoders of text.

    Latents and everything computed from them outside the networks are float32, or float64 where a method asks for it.
    Below float32 the networks run under `torch.autocast`, their norms in float32.

    Args:
        prompts: the tokenizer whose tokens the network sees.
        prediction_type: what the network gives.
        sample_size: side in pixels of the pictures it was trained on.
        recommends: settings by the name of a method, plain values that came with the model.
    Attributes:
        loras: what is merged into the weights (`sage.models.lora`).
    """

    family: str

    def __init__(self, *, vae: VAE, prompts: Prompts, prediction_type: str, name: str, sample_size: int,
                 device: torch.device, dtype: torch.dtype, recommends: Mapping[str, Mapping[str, Any]] | None = None):
        self.vae = vae
        for module in self.networks():
            module.eval().requires_grad_(False)
        self.prompts, self.prediction_type = prompts, prediction_type
        self.name, self.sample_size, self.device, self.dtype = name, sample_size, torch.device(device), dtype
        self.recommends = recommends or {}
        self.savings = Savings()
        self.loras: tuple[Lora, ...] = ()

    @property
    def network(self) -> nn.Module:
        """The network that predicts."""
        raise NotImplementedError

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """Those of text."""
        raise NotImplementedError

    def networks(self) -> tuple[nn.Module, ...]:
        """Every network."""
        return self.network, self.vae, *self.encoders

    @property
    def small(self) -> bool:
        """Whether a CPU computes in float32 by weights so few that it may hold them several times, to be faster."""
        return (self.device.type == "cpu" and self.dtype == torch.float32
                and sum(p.nbytes for network in self.networks() for p in network.parameters()) <= SMALL)

    def part(self, name: str) -> nn.Module | None:
        """Nothing beside these networks."""
        return None

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of (width, height) pixels."""
        return self.vae.params.latent_channels, size[1] // self.vae.factor, size[0] // self.vae.factor

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1] -> (B, C, h, w) float32 latents; a sample when a generator is given."""
        state = None if generator is None else generator.get_state()

        def run() -> Tensor:
            if generator is not None and state is not None:
                generator.set_state(state)
            return self.vae.encode(x.to(self.device), generator, self.savings.tiles).float()

        return self._finite("encoding the picture", self.vae, run)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) latents -> (B, 3, H, W) float32 in about [-1, 1]."""
        def run() -> Tensor:
            return self.vae.decode(z.to(self.device), self.savings.tiles).float()

        return self._finite("decoding the latents", self.vae, run)

    def save(self, savings: Savings) -> None:
        """Need this much less memory from now on."""
        for encoder in self.encoders:
            if savings.text and not self.savings.text:
                encoder.to("cpu", torch.float32)
            elif self.savings.text and not savings.text:
                for layer in encoder.modules():
                    if not any(layer.children()):
                        layer.to(self.device, self.dtype if isinstance(layer, CAST) else torch.float32)
        self.savings = savings

    @contextmanager
    def full_precision(self, *modules: nn.Module, dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Context in which `modules`, by default what predicts, compute in `dtype` whatever the model's own."""
        kept = [(m, name, p) for module in modules or (self.network,) for m in module.modules()
                for name, p in m.named_parameters(recurse=False)]
        before, self.dtype = self.dtype, dtype
        # New parameters, not new data in the old ones: a graph made inside may be walked back after the context.
        for m, name, p in kept:
            setattr(m, name, nn.Parameter(p.to(dtype), requires_grad=False))
        try:
            yield
        finally:
            self.dtype = before
            for m, name, p in kept:
                setattr(m, name, p)

    def _each_alone(self, prompts: Sequence[T], encode: Callable[[T], Tensor]) -> Tensor:
        """What `encode` makes of each prompt by itself, (1, ...) -> (B, ...); of equal ones once."""
        known = {prompt: encode(prompt) for prompt in dict.fromkeys(prompts)}
        return torch.cat([known[prompt] for prompt in prompts])

    def _finite(self, stage: str, module: nn.Module, run: Callable[[], Tensor]) -> Tensor:
        """`run()` in the module's dtype; if that is not finite, once more in float32; then NumericsError."""
        with_gradient = torch.is_grad_enabled()  # a listener may have ended it on the way
        dtype = self._dtype_of(module)
        out = self._autocast(run, dtype)
        if not torch.isfinite(out).all() and _below_float32(dtype):
            with self.full_precision(module), torch.set_grad_enabled(with_gradient):
                out = self._autocast(run)
        if not torch.isfinite(out).all():
            raise NumericsError(f"{stage} gave numbers that are not finite, in float32 too: nothing was written; "
                                "try smaller guidance and reconstruction scales")
        return out

    def _dtype_of(self, module: nn.Module) -> torch.dtype:
        """What a network computes in: the model's dtype, for an autoencoder that overflows in it float32."""
        return self.vae.params.dtype(self.dtype) if module is self.vae else self.dtype

    def _autocast(self, run: Callable[[], T], dtype: torch.dtype | None = None) -> T:
        dtype = dtype or self.dtype
        low = _below_float32(dtype)
        with torch.autocast(self.device.type, dtype if low else torch.bfloat16, enabled=low):
            return run()

    @torch.no_grad()
    def _digest(self, facts: Mapping[str, Any], networks: Mapping[str, nn.Module]) -> str:
        """SHA-256 in hex over facts, and the name, shape and evenly spread numbers of every weight.

        The numbers count as float16: a checkpoint has one fingerprint on every device, loaded in float32 or float16.
        In bfloat16, which keeps fewer digits, it has another.
        """
        merged = {"lora": [(lora.sha256, lora.scale) for lora in self.loras]} if self.loras else {}
        said = {**facts, **merged, **{name: told(network.params) for name, network in networks.items()}}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        for network in networks.values():
            weights = sorted(network.named_parameters(), key=lambda pair: pair[0])
            digest.update(json.dumps([(name, list(p.shape)) for name, p in weights]).encode())
            digest.update(torch.cat([_sample(p) for _, p in weights]).half().cpu().numpy().tobytes())
        return digest.hexdigest()


def told(params: Any) -> dict[str, Any]:
    """The fields of parameters by name.

    Those that were added later are left out at their defaults, so that fingerprints of before hold.
    """
    return {f.name: value for f in fields(params)
            if (value := getattr(params, f.name)) != f.default or not f.metadata.get("later")}


def _below_float32(dtype: torch.dtype) -> bool:
    return dtype.itemsize < torch.float32.itemsize


def _sample(weight: Tensor) -> Tensor:
    step = max(1, weight.numel() // SAMPLE)
    if not weight.is_contiguous():
        return weight.flatten()[::step]
    return weight.as_strided((-(-weight.numel() // step),), (step,), weight.storage_offset())  # one call: they are many
