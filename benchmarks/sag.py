"""Self-Attention Guidance against none, on the bundled model: `python -m benchmarks.sag`, some minutes on one core.

Held-out scenes are made from their captions at every guidance scale and SAG scale, picture i from the same noise in all
of them.  The encoder of the still-life benchmark reads which attributes came out as the caption has them; sharpness is

    mean |4 y - y_left - y_right - y_above - y_below|,   y luminance in [0, 1]

beside that of the same scenes as rendered, and as the autoencoder gives them back.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import sage
from sage import pictures
from sage.bench.encoder import Encoder, load_encoder
from sage.bench.files import write_text
from sage.bench.machine import machine, today, versions
from sage.bench.metrics import Metric
from sage.bench.tables import interval
from sage.method import Request
from sage.methods.sag import Settings
from sage.models.backbone import Backbone
from sage.stilllife import caption, held_out_scene, render
from sage.stilllife.scenes import Scene

FIRST = 7000  # held-out seed: no other experiment looks at these scenes
SCALES, WEIGHTS = (0.0, 0.5, 0.75, 1.0), (1.0, 3.0, 7.5)
BATCH = 24
METRICS = (Metric("attributes", "attributes right, %", 1e2, True, 1),
           Metric("sharpness", "sharpness x 1000", 1e3, True, 1),
           Metric("saturation", "saturation, %", 1e2, True, 1))

Pictures = Sequence[Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sag", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stilllife"))
    parser.add_argument("--scenes", metavar="N", type=int, default=24, help="held-out captions [24]")
    parser.add_argument("--steps", metavar="N", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, encoder = sage.load_model("stilllife", device="cpu"), load_encoder()
    scenes = [held_out_scene(FIRST + i) for i in range(args.scenes)]

    rendered = [pictures.from_pixels(render(scene)) for scene in scenes]
    bounds = {"as rendered": rendered, "and through the autoencoder": [through(model, picture) for picture in rendered]}
    made = {(w, scale): generated(model, scenes, Settings(steps=args.steps, guidance_scale=w, sag_scale=scale))
            for w, scale in tqdm(list(product(WEIGHTS, SCALES)), unit="configuration")}

    sheet = pictures.sheet([[(name_of((w, scale)), picture) for picture in made[w, scale][:10]]
                            for w, scale in made], side=96)
    pictures.save_picture(sheet, args.out / "sag.png")
    write_text(args.out / "sag.md", report(scenes, bounds, made, encoder, args.steps))
    print(args.out / "sag.md")


def generated(model: Backbone, scenes: Sequence[Scene], settings: Settings) -> list[Image.Image]:
    """A picture of each scene's caption, each from the noise of its own seed."""
    requests, found = [Request(target=caption(scene)) for scene in scenes], []
    for start in range(0, len(requests), BATCH):
        part = requests[start:start + BATCH]
        found += sage.generate_batch(model, part, settings, range(start, start + len(part)), (model.sample_size,) * 2)
    return [result.image for result in found]


def through(model: Backbone, picture: Image.Image) -> Image.Image:
    """A picture encoded and decoded."""
    return pictures.to_picture(model.decode(model.encode(pictures.to_tensor(picture, picture.size))))


def right(encoder: Encoder, scene: Scene, picture: Image.Image) -> float:
    """Share of the scene's attributes that the picture shows."""
    seen, wanted = encoder.attributes(np.asarray(picture)), scene.attributes()
    return float(np.mean([seen[name] == value for name, value in wanted.items()]))


def sharpness(picture: Image.Image) -> float:
    """Mean absolute Laplacian of the luminance in [0, 1]."""
    y = np.asarray(picture.convert("L"), np.float64) / 255
    laplacian = 4 * y[1:-1, 1:-1] - y[1:-1, :-2] - y[1:-1, 2:] - y[:-2, 1:-1] - y[2:, 1:-1]
    return float(np.abs(laplacian).mean())


def saturation(picture: Image.Image) -> float:
    """Mean saturation in [0, 1], as HSV has it."""
    return float(np.asarray(picture.convert("HSV"))[..., 1].mean() / 255)


def report(scenes: Sequence[Scene], bounds: dict[str, Pictures], made: dict[tuple[float, float], Pictures],
           encoder: Encoder, steps: int) -> str:
    """The tables, in Markdown."""
    def values(found: Pictures) -> list[list[float]]:
        return [[right(encoder, scene, picture) for scene, picture in zip(scenes, found, strict=True)],
                [sharpness(picture) for picture in found], [saturation(picture) for picture in found]]

    def row(name: str, found: Sequence[Sequence[float]], signed: bool = False) -> list[str]:
        return [name, *(interval(v).text(metric, signed) for v, metric in zip(found, METRICS, strict=True))]

    measured = {cell: values(found) for cell, found in made.items()}
    rows = [*(row(name, values(found)) for name, found in bounds.items()),
            *(row(name_of(cell), found) for cell, found in measured.items())]
    differences = [row(name_of(cell), np.array(found) - measured[cell[0], 0.0], signed=True)
                   for cell, found in measured.items() if cell[1]]
    heads = ["", *(metric.title for metric in METRICS)]
    return "\n".join([
        "# Self-Attention Guidance against none\n",
        f"{len(scenes)} held-out captions, {steps} steps, picture i from the same noise in every row; "
        f"{today()}; {machine()}, float32; {versions()}. {encoder.describe()}.\n",
        "![ten of the pictures](sag.png)\n", "Mean and 95 % interval over the captions.\n", table(heads, rows),
        "Minus none (SAG 0) at the same w, paired.\n", table(heads, differences)])


def name_of(cell: tuple[float, float]) -> str:
    return "w {:g}, SAG {:g}".format(*cell)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    main()
