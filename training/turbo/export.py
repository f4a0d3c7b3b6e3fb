"""Student, inversion network and the teacher's other parts -> a folder that `sage.load_model` reads."""

import json
import platform
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from sage.models.sd.inversion import InversionNet
from sage.models.sd.loading import INVERSION
from sage.models.sd.unet import UNet
from training.export import machine, unet_config
from training.turbo.teacher import Teacher

KEPT = ("vae", "text_encoder", "tokenizer")
FILES = ("words.txt",)
# Four calls each: TurboEdit's own chain, and the nearest that `plain` has to it.
SETTINGS = {"turbo": {"steps": 4}, "turbo-ddpm": {"steps": 4, "strength": 0.75},
            "generate/turbo": {"steps": 4},
            "generate/plain": {"steps": 4, "spacing": "trailing", "guidance_scale": 1.0, "eta": 1.0}}


def export(given: Path, weights: Path, teacher: Teacher, student: UNet, inversion: InversionNet,
           history: dict[str, object]) -> None:
    """Write the folder `weights`, replacing what is there.

    Args:
        given: the teacher's folder, of which the other parts are copied.
        history: what stands in training.json of how they were made.
    """
    for part in KEPT:
        shutil.copytree(given / part, weights / part, dirs_exist_ok=True)
    for name in FILES:
        if (given / name).exists():
            shutil.copy(given / name, weights / name)
    side = teacher.model.sample_size // teacher.model.vae.factor
    scheduler = json.loads((given / "scheduler" / "scheduler_config.json").read_text())
    _json(weights / "scheduler" / "scheduler_config.json", scheduler | {"prediction_type": "v_prediction"})
    _json(weights / "settings.json", SETTINGS)
    for part, network in (("unet", student), (INVERSION, inversion)):
        _json(weights / part / "config.json", unet_config(network.params, side))
        temporary = weights / part / ".partial"
        save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, temporary, {"format": "pt"})
        temporary.chmod(0o644)  # readable to all, whatever the library thinks
        temporary.replace(weights / part / "diffusion_pytorch_model.fp16.safetensors")
    _json(weights / "training.json", history | {"torch": torch.__version__, "python": platform.python_version(),
                                                "machine": machine()})


def _json(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")
