"""A whole edit at the size of Stable Diffusion 1.4, with random weights: seconds by phase and peak memory.

Speed and memory do not depend on the weights; the picture that comes out means nothing.

    python -m benchmarks.full_size --size 512 --steps 50        # float16 on a GPU, float32 on a CPU
"""

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import sage
from sage.config import EditConfig
from sage.models.clip import CLIPText, CLIPTextParams
from sage.models.unet import UNet, UNetParams
from sage.models.vae import VAE, VAEParams
from sage.sampling.schedule import ScheduleParams
from training.export import scheduler_config, text_config, unet_config, vae_config
from training.tokenizer import train as train_tokenizer


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """The three networks of Stable Diffusion 1.x, float16, randomly initialised."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        return {"unet": UNet(UNetParams()).half(), "vae": VAE(VAEParams()).half(),
                "text_encoder": CLIPText(CLIPTextParams()).half()}


def write_folder(folder: Path, modules: dict[str, nn.Module]) -> Path:
    """Write networks as a diffusers folder, with the tokenizer of the still-life captions."""
    unet, vae, text = (modules[part] for part in ("unet", "vae", "text_encoder"))
    configs = {"unet": unet_config(unet.params, 64), "vae": vae_config(vae.params, 512),
               "text_encoder": text_config(text.params)}
    for part, module in modules.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(configs[part]))
        base = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(module.state_dict(), folder / part / f"{base}.fp16.safetensors")
    (folder / "scheduler").mkdir()
    scheduler = scheduler_config(ScheduleParams()) | {"prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    train_tokenizer(folder / "tokenizer", captions=500)
    return folder


def picture(size: int) -> Image.Image:
    """A deterministic picture of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def measure(model, size: int, steps: int) -> dict[str, float]:
    """Edit once and say how long each phase took and what it held at most."""
    config = EditConfig(steps=steps, size=size)
    started: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        started.setdefault(phase, time.perf_counter())

    start = time.perf_counter()
    result = sage.edit(model, picture(size), source="a red ball on grass", target="a blue ball on grass",
                       config=config, progress=progress)
    end = time.perf_counter()
    assert torch.isfinite(result.latents).all()
    peak = (torch.cuda.max_memory_allocated() if model.device.type == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {"seconds": end - start, "inversion": started["edit"] - started["invert"],
            "sampling": started["decode"] - started["edit"], "peak_GiB": peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default=None)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        write_folder(Path(folder) / "model", networks())
        start = time.perf_counter()
        model = sage.load_model(Path(folder) / "model", dtype=args.dtype)
        row = {"device": str(model.device), "dtype": str(model.dtype), "size": args.size, "steps": args.steps,
               "load": time.perf_counter() - start} | measure(model, args.size, args.steps)
    print(json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    main()
