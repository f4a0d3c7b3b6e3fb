"""`make train-report`: what the bundled model reaches on held-out scenes -> weights/stilllife/REPORT.md and two sheets.

Autoencoder, inversion and back, 64 prompts drawn from noise for the eye to judge, and edits against the truth.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import sage
from sage import pictures
from sage.allocator import keep_freed_memory
from sage.config import EditConfig
from sage.inversion import invert_batch
from sage.models.sd.model import StableDiffusion
from sage.prompts.plan import check_prompts
from sage.sampling.steps import walk
from sage.stilllife import KINDS, caption, held_out_scene, render
from training import cases, sheets

REPORTED = range(1000, 1007)  # seeds of the reported edits; settings were chosen on others


@torch.no_grad()
def autoencoder(model: StableDiffusion, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """PSNR in dB of the autoencoder, and of DDIM inversion and back through it, against the pictures; (count,) each."""
    images = [pictures.from_pixels(render(held_out_scene(seed))) for seed in range(count)]
    prompts = [caption(held_out_scene(seed)) for seed in range(count)]
    config = EditConfig(reconstruction="none", replace=None, blend=None, self_level=0, cross_level=0)
    rows = []
    for start in tqdm(range(0, count, 20), desc="inversion and back", unit="batch"):
        part = images[start:start + 20]
        plans = [check_prompts(model, p, p, config) for p in prompts[start:start + 20]]
        trajectory = invert_batch(model, part, plans, config)
        edges = model.schedule(config.steps, config.spacing, config.grid).sampling
        *_, back = walk(lambda z, level, t=trajectory: model.denoise(z, level, t.text), trajectory.noise, edges)
        for z in (trajectory.latents[0], back):
            x = model.decode(z)
            rows.append([cases.psnr(np.asarray(pictures.to_picture(x[i:i + 1])), np.asarray(picture),
                                    np.ones((64, 64), bool)) for i, picture in enumerate(part)])
    return np.concatenate(rows[0::2]), np.concatenate(rows[1::2])


def configurations(model: StableDiffusion) -> dict[str, EditConfig]:
    """What is compared: the recommended settings, the same without reconstruction, and plain sampling."""
    best = model.recommended
    bare = best.but(reconstruction="none", replace=None, blend=None)
    return {"recommended": best,
            "recommended without reconstruction": best.but(reconstruction="none"),
            f"w = {best.guidance_scale:g} alone": bare,
            "plain, w = 1": bare.but(guidance_scale=1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stilllife")
    parser.add_argument("--out", type=Path, default=Path("weights/stilllife"))
    parser.add_argument("--reconstructions", type=int, default=200)
    args = parser.parse_args()
    keep_freed_memory()
    model = sage.load_model(args.model)

    vae, back = autoencoder(model, args.reconstructions)
    sheets.samples(model, args.out / "prompts.png", count=64)

    sample = cases.draw(REPORTED)
    bounds = {"autoencoder of the true edit": [], "untouched source": [case.source for case in sample]}
    for case in sample:
        x = pictures.to_tensor(case.truth, (64, 64))
        bounds["autoencoder of the true edit"].append(pictures.to_picture(model.decode(model.encode(x))))
    results = dict(bounds)
    trajectories: dict = {}
    for name, config in tqdm(configurations(model).items(), desc="edits"):
        results[name] = cases.run(model, sample, config, trajectories=trajectories)
    table = {name: cases.scores(sample, edited) for name, edited in results.items()}

    def cell(values: np.ndarray) -> str:
        mean, low, high = cases.interval(values)
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"

    lines = ["# What the bundled model reaches", "",
             "Made by `make train-report`; all scenes are held out from training. PSNR in dB, mean and bootstrap 95 % "
             "interval.", "", f"- Autoencoder, {len(vae)} pictures: {cell(vae)}",
             f"- DDIM inversion and back, 50 steps, guidance 1: {cell(back)}; "
             f"{cell(vae - back)} below the autoencoder", "",
             f"## {len(sample)} edits, {len(sample) // 10} of each kind", "",
             "| | outside the changed pixels | inside | ", "|---|---|---|"]
    lines += [f"| {name} | {cell(s[:, 0])} | {cell(s[:, 1])} |" for name, s in table.items()]
    best, plain = table["recommended"], table["plain, w = 1"]
    lines += ["", "Paired differences, recommended minus:", "", "| | outside | inside |", "|---|---|---|"]
    for name in list(configurations(model))[1:]:
        other = table[name]
        lines.append(f"| {name} | {cell(best[:, 0] - other[:, 0])} | {cell(best[:, 1] - other[:, 1])} |")
    lines += ["", "By kind, recommended | plain:", "", "| kind | outside | inside | plain outside | plain inside |",
              "|---|---|---|---|---|"]
    for kind, label in enumerate(KINDS):
        rows = np.array([case.edit.kind == kind for case in sample])
        lines.append(f"| {kind} {label} | " + " | ".join(
            f"{np.nanmean(t[rows, side]):.1f}" for t in (best, plain) for side in (0, 1)) + " |")
    settings = {k: v for k, v in model.recommended.as_dict().items() if v != EditConfig().as_dict()[k]}
    lines += ["", f"Recommended settings, where they differ from the defaults: `{json.dumps(settings)}`", "",
              "![64 prompts](prompts.png)", "", "![edits](edits.png)", ""]
    shown = [i for i, case in enumerate(sample) if i < 30]
    cells = [[(f"{sample[i].edit.source_prompt}", sample[i].source), (sample[i].edit.target_prompt, sample[i].truth),
              ("recommended", results["recommended"][i]), ("plain, w = 1", results["plain, w = 1"][i])] for i in shown]
    rows = [[cell for case in cells[i:i + 2] for cell in case] for i in range(0, len(cells), 2)]
    pictures.save_picture(pictures.sheet(rows, side=160), args.out / "edits.png")
    text = "\n".join(lines)
    (args.out / "REPORT.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
