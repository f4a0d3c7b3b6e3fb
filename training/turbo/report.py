"""`python -m training.turbo.report`: what student and inversion network reach, beside what they shall.

    student     attributes read right, beside the teacher of 25 steps: within 3 points
                PSNR to where the teacher's way from the same latents ends: above 22 dB at 999, 30 dB at 249
                sharpness (mean gradient of the pictures): at least 90 % of the teacher's
                a word changed under frozen noise changes what it names: in more than 85 %
    inversion   noise of each step: deviation 0.9 to 1.1, none above 6, neighbours' correlation below 0.1
                four steps reconstruct to within 2 dB of the autoencoder, better at each step, and at least 5 dB above
                DDIM inversion of four steps and back

`--steps 1` is for the single-step precursor, of whose reconstruction nothing is asked: it is there to be compared.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sage
from sage import pictures
from sage.bench.encoder import Encoder, load_encoder
from sage.editing import check_prompts, invert_batch
from sage.machine.allocator import keep_freed_memory
from sage.method import method
from sage.models.sd.model import StableDiffusion
from sage.sampling.levels import downwards
from sage.sampling.steps import walk
from sage.stilllife import ATTRIBUTES, render
from sage.stilllife.edits import asked, variants
from sage.stilllife.prompts import CANONICAL, prompt
from training import cases
from training.drawn import AT_ONCE, Pictures, made, right, scenes
from training.turbo.student import solve, way
from training.turbo.teacher import ANCHORS, Teacher, clean

Line = tuple[str, str, str, bool | None]  # what, reached, wanted, whether it is


def sharpness(found: Pictures) -> np.ndarray:
    """(N,) the mean absolute difference of neighbours, in grey levels."""
    grey = [picture.astype(np.float32).mean(axis=-1) for picture in found]
    return np.array([(np.abs(np.diff(g, axis=0)).mean() + np.abs(np.diff(g, axis=1)).mean()) / 2 for g in grey])


@torch.no_grad()
def endpoints(teacher: Teacher, student: StableDiffusion, count: int, w: float) -> dict[int, np.ndarray]:
    """By anchor the PSNR of the decoded student to where the guided teacher's way leads, (count,) each."""
    found: dict[int, list[float]] = {anchor: [] for anchor in ANCHORS}
    side, held = student.sample_size, scenes(count)
    for start in tqdm(range(0, count, AT_ONCE), desc="endpoints"):
        texts = [prompt(scene) for scene in held[start:start + AT_ONCE]]
        request = teacher.model.embed([teacher.model.prompts.parse(t) for t in texts])
        empty = teacher.model.embed([teacher.model.prompts.parse("")] * len(texts))
        generator = torch.Generator().manual_seed(start)
        z = torch.randn(len(texts), *student.latent_shape((side, side)), generator=generator).to(student.device)
        levels = way(teacher, ANCHORS[0])

        def guided(z: Tensor, level, request=request, empty=empty):
            plain = teacher.model.predict(z, level, empty)
            return plain + w * (teacher.model.predict(z, level, request) - plain)

        states = solve(guided, z * levels[0].noise, levels)
        truth = student.decode(states[-1])
        for k, level in enumerate(levels):
            if level.t in found and k < len(levels) - 1:
                g = student.decode(clean(student.unet, states[k], level, request.tokens))
                found[int(level.t)] += [cases.psnr(*(_pixels(x[i]) for x in (g, truth)), np.ones((side, side), bool))
                                        for i in range(len(texts))]
    return {anchor: np.array(values) for anchor, values in found.items()}


def _pixels(x: Tensor) -> np.ndarray:
    return np.asarray(pictures.to_picture(x[None]))


def changed(count: int) -> list[tuple[str, str, str, str]]:
    """Pairs of full prompts that differ in one attribute, its name, and its new value."""
    found: list[tuple[str, str, str, str]] = []
    rng = np.random.default_rng(7)
    for number, scene in enumerate(scenes(4 * count)):
        attribute = ATTRIBUTES[number % len(ATTRIBUTES)]
        options = list(variants(scene, attribute)) if scene.attributes()[attribute] != "none" else []
        if options and len(found) < count:
            target = options[int(rng.integers(len(options)))]
            pair = asked(scene, target, CANONICAL, frozenset(ATTRIBUTES))
            if pair.source != pair.target:
                found.append((pair.source, pair.target, attribute, target.attributes()[attribute]))
    return found


def correlation(noise: Tensor) -> float:
    """Of neighbours, in the direction in which it is greater."""
    z = noise - noise.mean()
    return max(abs((z[..., 1:] * z[..., :-1]).mean() / z.square().mean()),
               abs((z[..., 1:, :] * z[..., :-1, :]).mean() / z.square().mean())).item()


@torch.no_grad()
def reconstructions(model: StableDiffusion, count: int, steps: int) -> tuple[dict[str, np.ndarray], Tensor]:
    """PSNR by what was done, (count,) each, and (steps, count, C, h, w) noises."""
    turbo, plain = method("turbo"), method("plain")
    few = turbo.recommended(model).but(noise="drawn", steps=steps)
    ddim = plain.Settings(steps=len(ANCHORS), spacing="trailing", guidance_scale=1.0)
    side, held, rows, noises = model.sample_size, scenes(count), {}, []
    for start in tqdm(range(0, count, AT_ONCE), desc="reconstructions"):
        part = held[start:start + AT_ONCE]
        images = [pictures.from_pixels(render(scene, side)) for scene in part]

        def note(name: str, z: Tensor, images=images) -> None:
            x = model.decode(z)
            rows.setdefault(name, []).extend(cases.psnr(_pixels(x[i]), np.asarray(image), np.ones((side, side), bool))
                                             for i, image in enumerate(images))

        plans = [check_prompts(model, text, text, few) for text in map(prompt, part)]
        path = invert_batch(model, images, plans, few)
        note("autoencoder", path.latents[0])
        for k, z in enumerate(path.reconstructions, start=1):  # type: ignore[attr-defined]
            note(f"after step {k}", z)
        noises.append(torch.stack(path.noises))  # type: ignore[attr-defined]
        back = invert_batch(model, images, [check_prompts(model, p.source.text, p.source.text, ddim) for p in plans],
                            ddim)
        text = model.embed(back.source)
        levels = model.schedule.levels(ddim.steps, ddim.spacing, tuple(back.noise.shape[-2:]))
        *_, z = walk(lambda z, level, text=text: model.predict(z, level, text), back.noise, downwards(levels))
        note("DDIM inversion and back", z)
    return {name: np.array(values) for name, values in rows.items()}, torch.cat(noises, dim=1)


def student_lines(teacher: Teacher, student: StableDiffusion, encoder: Encoder, count: int, w: float) -> list[Line]:
    """The student's acceptance."""
    held, four = scenes(count), method("turbo").recommended(student, "generate")
    texts = [prompt(scene) for scene in held]
    many = method("plain").Settings(steps=25, guidance_scale=w)
    ours, theirs = made(student, texts, four), made(teacher.model, texts, many)
    lines: list[Line] = []
    lost = 100 * (right(encoder, theirs, held) - right(encoder, ours, held))
    lines.append(("attributes read right, %", f"{100 * right(encoder, ours, held).mean():.1f} (teacher "
                  f"{100 * right(encoder, theirs, held).mean():.1f}), lost {_cell(lost)}", "lost <= 3",
                  bool(lost.mean() <= 3)))
    for anchor, values in endpoints(teacher, student, count, w).items():
        least = {999: 22, 249: 30}.get(anchor)
        lines.append((f"endpoint from {anchor}, dB", _cell(values), f"> {least}" if least else "",
                      bool(values.mean() > least) if least else None))
    share = 100 * sharpness(ours) / sharpness(theirs).mean()
    lines.append(("sharpness, % of the teacher's", _cell(share), ">= 90", bool(share.mean() >= 90)))
    pairs = changed(count)
    before, after = (made(student, [pair[k] for pair in pairs], four) for k in (0, 1))  # a seed, and so noises, a pair
    hit = 100 * acted(encoder, before, after, pairs)
    lines.append(("changed words that act, %", _cell(hit), "> 85", bool(hit.mean() > 85)))
    return lines


def acted(encoder: Encoder, before: Pictures, after: Pictures,
          pairs: Sequence[tuple[str, str, str, str]]) -> np.ndarray:
    """(N,) 1 where the changed attribute is read as asked after the change, and was not before."""
    return np.array([encoder.attributes(b)[name] == value != encoder.attributes(a)[name]
                     for a, b, (_, _, name, value) in zip(before, after, pairs, strict=True)], float)


def inversion_lines(found: dict[str, np.ndarray], noises: Tensor) -> list[Line]:
    """The inversion network's acceptance, by what `reconstructions` gives."""
    deviations = [noise.std().item() for noise in noises]
    most, near = [noise.abs().max().item() for noise in noises], [correlation(noise) for noise in noises]
    lines: list[Line] = [
        ("deviation of the noise, step by step", _each(deviations), "0.9 to 1.1",
         0.9 <= min(deviations) and max(deviations) <= 1.1),
        ("largest noise", _each(most), "< 6", max(most) < 6),
        ("correlation of neighbours", _each(near), "< 0.1", max(near) < 0.1)]
    lines += [(f"reconstruction, {name}, dB", _cell(values), "", None) for name, values in found.items()]
    steps = [values.mean() for name, values in found.items() if name.startswith("after")]
    lost = found["autoencoder"] - found[f"after step {len(steps)}"]
    gained = found[f"after step {len(steps)}"] - found["DDIM inversion and back"]
    whole = len(steps) > 1  # of the single-step precursor nothing is asked
    lines.append(("lost beside the autoencoder, dB", _cell(lost), "<= 2" if whole else "",
                  bool(lost.mean() <= 2) if whole else None))
    if whole:
        lines.append(("gained at each step, dB", ", ".join(f"{gain:+.2f}" for gain in np.diff(steps)), "> 0",
                      bool(np.all(np.diff(steps) > 0))))
    return [*lines, ("gained beside DDIM inversion, dB", _cell(gained), ">= 5" if whole else "",
                     bool(gained.mean() >= 5) if whole else None)]


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _cell(values: np.ndarray) -> str:
    mean, low, high = cases.interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    verdict = {True: "yes", False: "**no**", None: ""}
    return "\n".join(["| | reached | wanted | met |", "|---|---|---|---|",
                      *(f"| {what} | {reached} | {wanted} | {verdict[so]} |" for what, reached, wanted, so in lines)])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.turbo.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/stilllife-turbo", help="of student and inversion network")
    parser.add_argument("--teacher", default="stilllife")
    parser.add_argument("--encoder", type=Path, help="folder of the encoder that reads pictures")
    parser.add_argument("--scale", type=float, default=3.0, help="the guidance scale that was distilled")
    parser.add_argument("--count", type=int, default=200, help="scenes")
    parser.add_argument("--steps", type=int, help="of the inversion [what the model recommends: 1 of the single-step "
                        "precursor, else 4]")
    parser.add_argument("--out", type=Path, help="where the report is written (default: REPORT.md in the model)")
    args = parser.parse_args(argv)
    keep_freed_memory()
    student = sage.load_model(args.model, dtype="float32")
    steps = args.steps or method("turbo").recommended(student).steps  # type: ignore[attr-defined]
    lines = [*student_lines(Teacher(args.teacher), student, load_encoder(args.encoder), args.count, args.scale),
             *inversion_lines(*reconstructions(student, args.count, steps))]
    missed, targets = sum(so is False for *_, so in lines), sum(so is not None for *_, so in lines)
    text = "\n".join(["# What the four-step student and its inversion network reach", "",
                      f"Made by `python -m training.turbo.report` on {args.count} held-out scenes, described in full; "
                      f"mean and bootstrap 95 % interval. {missed} of {targets} targets are missed.", "",
                      table(lines), ""])
    out = args.out or Path(args.model) / "REPORT.md"
    out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
