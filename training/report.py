"""`make train-report`: what the bundled model reaches on held-out scenes -> weights/stilllife/REPORT.md and two sheets.

Autoencoder, inversion and back, 64 prompts that name everything drawn from noise, for the encoder and the eye to judge,
and edits against the truth: each asked for in full and in short.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import sage
from sage import pictures
from sage.bench.encoder import load_encoder
from sage.editing import check_prompts, invert_batch
from sage.files import written_whole
from sage.machine.allocator import keep_freed_memory
from sage.method import method
from sage.methods.sage import SAGE, Settings
from sage.models.backbone import Backbone
from sage.sampling.levels import downwards
from sage.sampling.steps import walk
from sage.stilllife import ATTRIBUTES, KINDS, render, varied_scene
from sage.stilllife.prompts import prompt
from training import cases, drawn

REPORTED = 1000  # first seed of the reported edits; settings were chosen on others


@torch.no_grad()
def autoencoder(model: Backbone, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """PSNR in dB of the autoencoder, and of DDIM inversion and back through it, against the pictures; (count,) each."""
    scenes, side = [varied_scene(seed, held_out=True) for seed in range(count)], model.sample_size
    images = [pictures.from_pixels(render(scene, side)) for scene in scenes]
    prompts = [prompt(scene) for scene in scenes]
    config = Settings(reconstruction="none", replace=None, blend=None, self_level=0, cross_level=0)
    rows = []
    for start in tqdm(range(0, count, 20), desc="inversion and back", unit="batch"):
        part = images[start:start + 20]
        plans = [check_prompts(model, p, p, config) for p in prompts[start:start + 20]]
        trajectory = invert_batch(model, part, plans, config)
        text = model.prepare(model.embed(trajectory.source))
        levels = model.schedule.levels(config.steps, config.spacing, tuple(trajectory.noise.shape[-2:]))
        *_, back = walk(lambda z, level, text=text: model.predict(z, level, text), trajectory.noise, downwards(levels))
        for z in (trajectory.latents[0], back):
            x = model.decode(z)
            rows.append([cases.psnr(np.asarray(pictures.to_picture(x[i:i + 1])), np.asarray(picture),
                                    np.ones((side, side), bool)) for i, picture in enumerate(part)])
    return np.concatenate(rows[0::2]), np.concatenate(rows[1::2])


def prompted(model: Backbone, out: Path, count: int = 64, columns: int = 8) -> list[str]:
    """Lines of Markdown: what is shown of what was asked for; the pictures go to prompts.webp."""
    of = drawn.scenes(count)
    texts, config = [prompt(scene) for scene in of], method("plain").recommended(model, "generate")
    found = drawn.made(model, texts, config)
    cells = [(text, Image.fromarray(picture)) for text, picture in zip(texts, found, strict=True)]
    _kept(pictures.sheet([cells[i:i + columns] for i in range(0, count, columns)], side=192), out / "prompts.webp")
    rows = drawn.hits(load_encoder(), found, of)
    shares = {name: 100 * np.array([row[name] for row in rows if name in row]) for name in ATTRIBUTES}
    everything = 100 * np.array([hit for row in rows for hit in row.values()])
    return [f"- {count} prompts that name everything, {config.steps} steps, w = {config.guidance_scale:g}: "
            f"{cell(everything)} % of what they name is read off the pictures: "
            + ", ".join(f"{name.replace('_', ' ')} {values.mean():.0f}" for name, values in shares.items())]


def configurations(model: Backbone) -> dict[str, Settings]:
    """What is compared: the recommended settings, the same without reconstruction, and plain sampling."""
    best = SAGE().recommended(model)
    bare = best.but(reconstruction="none", replace=None, blend=None)
    return {"recommended": best,
            "recommended without reconstruction": best.but(reconstruction="none"),
            f"w = {best.guidance_scale:g} alone": bare,
            "plain, w = 1": bare.but(guidance_scale=1.0)}


def measured(model: Backbone, sample: list[cases.Case]) -> dict[str, list[Image.Image]]:
    """What every configuration, and doing nothing, makes of the cases; and the bound that the autoencoder sets."""
    results = {"autoencoder of the true edit": [], "untouched source": [case.source for case in sample]}
    for case in sample:
        x = pictures.to_tensor(case.truth, (model.sample_size,) * 2)
        results["autoencoder of the true edit"].append(pictures.to_picture(model.decode(model.encode(x))))
    trajectories: dict = {}
    for name, config in configurations(model).items():
        results[name] = cases.run(model, sample, config, trajectories=trajectories, name=name)
    return results


def cell(values: np.ndarray) -> str:
    mean, low, high = cases.interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def tables(sample: list[cases.Case], results: dict[str, list[Image.Image]]) -> list[str]:
    """Lines of Markdown: all results, paired differences, and the kinds."""
    table = {name: cases.scores(sample, edited) for name, edited in results.items()}
    best, plain = table["recommended"], table["plain, w = 1"]
    lines = ["| | outside the changed pixels | inside | ", "|---|---|---|"]
    lines += [f"| {name} | {cell(s[:, 0])} | {cell(s[:, 1])} |" for name, s in table.items()]
    lines += ["", "Paired differences, recommended minus:", "", "| | outside | inside |", "|---|---|---|"]
    for name in list(table)[3:]:
        other = table[name]
        lines.append(f"| {name} | {cell(best[:, 0] - other[:, 0])} | {cell(best[:, 1] - other[:, 1])} |")
    lines += ["", "By kind, recommended | plain:", "", "| kind | outside | inside | plain outside | plain inside |",
              "|---|---|---|---|---|"]
    for kind, label in enumerate(KINDS):
        rows = np.array([case.edit.kind == kind for case in sample])
        lines.append(f"| {kind} {label} | " + " | ".join(
            f"{np.nanmean(t[rows, side]):.1f}" for t in (best, plain) for side in (0, 1)) + " |")
    return lines


def sheet_of(sample: list[cases.Case], results: dict[str, list[Image.Image]], count: int = 30) -> Image.Image:
    """The first cases: source, truth, and two results each."""
    cells = [[(case.prompts.source, case.source), (case.prompts.target, case.truth),
              ("recommended", results["recommended"][i]), ("plain, w = 1", results["plain, w = 1"][i])]
             for i, case in enumerate(sample[:count])]
    return pictures.sheet([[cell for case in cells[i:i + 2] for cell in case] for i in range(0, len(cells), 2)],
                          side=160)


def _kept(sheet: Image.Image, path: Path) -> None:
    """Half the bytes of a lossless one: it stays in every clone."""
    with written_whole(path) as file:
        sheet.save(file, "WEBP", quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="stilllife")
    parser.add_argument("--out", type=Path, default=Path("weights/stilllife"))
    parser.add_argument("--reconstructions", type=int, default=200)
    parser.add_argument("--each", type=int, default=7, help="edits of each kind")
    args = parser.parse_args()
    keep_freed_memory()
    model = sage.load_model(args.model)

    vae, back = autoencoder(model, args.reconstructions)
    lines = ["# What the bundled model reaches", "",
             "Made by `make train-report`; all scenes are held out from training. PSNR in dB, mean and bootstrap 95 % "
             "interval.", "", f"- Autoencoder, {len(vae)} pictures: {cell(vae)}",
             f"- DDIM inversion and back, 50 steps, guidance 1: {cell(back)}; "
             f"{cell(vae - back)} below the autoencoder", *prompted(model, args.out), ""]
    for length in ("full", "short"):
        sample = cases.draw(range(REPORTED, REPORTED + args.each), short=length == "short", side=model.sample_size)
        results = measured(model, sample)
        lines += [f"## {len(sample)} edits, {len(sample) // 10} of each kind, {length} prompts", "",
                  *tables(sample, results), "", f"![edits, {length} prompts](edits-{length}.webp)", ""]
        _kept(sheet_of(sample, results), args.out / f"edits-{length}.webp")
    settings = {k: v for k, v in SAGE().recommended(model).as_dict().items() if v != Settings().as_dict()[k]}
    lines += [f"Recommended settings, where they differ from the defaults: `{json.dumps(settings)}`", "",
              "![64 prompts](prompts.webp)", ""]
    text = "\n".join(lines)
    (args.out / "REPORT.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
