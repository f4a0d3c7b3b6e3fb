"""What a model is known by: a digest of what it is made of, taken in a moment from a sample of its weights."""

import hashlib
import json
from dataclasses import asdict

import torch
from torch import Tensor

from sage.models.sd.model import StableDiffusion

SAMPLE = 64  # numbers of each weight


@torch.no_grad()
def fingerprint(model: StableDiffusion) -> str:
    """SHA-256 in hex over the configurations, and over the name, the shape and evenly spread numbers of every weight.

    The numbers count as float16: a checkpoint has one fingerprint on every device, loaded in float32 or float16.  In
    bfloat16, which keeps fewer digits, it has another.
    """
    networks = {"unet": model.unet, "vae": model.vae, "text": model.text}
    said = {"prediction": model.prediction_type, "side": model.sample_size, "schedule": asdict(model.schedule_params),
            **{name: asdict(network.params) for name, network in networks.items()}}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for network in networks.values():
        weights = sorted(network.named_parameters(), key=lambda pair: pair[0])
        digest.update(json.dumps([(name, list(p.shape)) for name, p in weights]).encode())
        digest.update(torch.cat([_sample(p) for _, p in weights]).cpu().numpy().tobytes())
    return digest.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    return weight.flatten()[::max(1, weight.numel() // SAMPLE)].half()
