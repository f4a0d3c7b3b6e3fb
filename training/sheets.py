"""Pictures of how a training goes: reconstructions, and samples under held-out captions.

    python -m training.sheets [--out runs/stilllife]      # from the latest checkpoints, while the training runs
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sage.models.backbone import Backbone, Text
from sage.models.sd.vae import VAE
from sage.pictures import save_picture, sheet, to_picture
from sage.sampling.levels import Level, downwards
from sage.sampling.steps import Prediction, classifier_free, walk
from sage.stilllife import varied_scene
from sage.stilllife.captions import join
from sage.stilllife.prompts import draw_wording, everything, phrases
from training.networks import CLEAN, FLOWING, assemble, assemble_flow

HELD_OUT_PROMPTS = 5000  # the first held-out seed of the captions that are drawn


def prompts(count: int) -> list[str]:
    """Captions of held-out scenes in varied wording: every second one names everything, the others a part."""
    texts = []
    for i in range(count):
        scene, rng = varied_scene(HELD_OUT_PROMPTS + i, held_out=True), np.random.default_rng(i)
        wording = draw_wording(rng)
        texts.append(join(phrases(scene, wording, everything(scene, wording) if i % 2 == 0 else None)))
    return texts


@torch.no_grad()
def from_noise(model: Backbone, texts: list[str], steps: int = 50, w: float = 3.0) -> list[Image.Image]:
    """Pictures sampled under prompts, guided away from the empty prompt with scale `w`."""
    images, shape = [], model.latent_shape((model.sample_size, model.sample_size))
    edges = downwards(model.schedule.levels(steps, "leading", shape[1:]))
    for start in range(0, len(texts), 16):
        part = texts[start:start + 16]
        text = model.embed([model.prompts.parse(p) for p in part])
        empty = model.embed([model.prompts.parse("")]).expand(len(part))

        def guided(z: Tensor, level: Level, text: Text = text, empty: Text = empty) -> Prediction:
            return classifier_free(model.predict(z, level, empty), model.predict(z, level, text), w)

        noise = torch.randn((len(part), *shape), generator=torch.Generator().manual_seed(start))
        *_, z = walk(guided, noise.to(model.device), edges)
        x = model.decode(z)
        images += [to_picture(x[i:i + 1]) for i in range(len(part))]
    return images


def samples(model: Backbone, path: Path, count: int = 24, columns: int = 8) -> None:
    """A sheet of pictures drawn from noise, titled by their prompts."""
    cells = list(zip(texts := prompts(count), from_noise(model, texts), strict=True))
    save_picture(sheet([cells[i:i + columns] for i in range(0, count, columns)], side=192), path)


@torch.no_grad()
def reconstructions(vae: VAE, x: Tensor, path: Path) -> None:
    """Pictures (B, 3, H, W) in [-1, 1] above what the autoencoder makes of them."""
    y = vae.decode(vae.encode(x))
    rows = [[("", to_picture(t[i:i + 1])) for i in range(len(t))] for t in (x, y)]
    save_picture(sheet(rows, side=128), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/stilllife"))
    parser.add_argument("--course", choices=(CLEAN, FLOWING), default=CLEAN)
    args = parser.parse_args()
    done = json.loads((args.out / f"{args.course}.jsonl").read_text().splitlines()[-1])["done"]
    path = args.out / f"samples-{args.course}-{done:07d}.png"
    samples(assemble_flow(args.out) if args.course == FLOWING else assemble(args.out), path)
    print(path)


if __name__ == "__main__":
    main()
