"""`make train-turbo`: a student of four calls, and what inverts it.  Killed and started again, it goes on."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sage
from sage.models.known import find_model
from sage.models.sd.loading import INVERSION
from sage.models.sd.unet import UNet
from training import run
from training.turbo import inversion, student
from training.turbo.export import export
from training.turbo.teacher import ANCHORS, Teacher

STAGES = ("guided", "tuples", "student", "inversion", "export")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.turbo", description=__doc__)
    add = parser.add_argument
    add("--teacher", default="stilllife", help="the model that is distilled: a name or a folder")
    add("--out", type=Path, default=Path("runs/turbo"), help="latents, tuples, checkpoints, curves")
    add("--data", type=Path, default=Path("runs/stilllife/data"), help="rendered pictures")
    add("--weights", type=Path, default=Path("weights/stilllife-turbo"), help="where the model is written")
    add("--pictures", type=int, default=20_000, help="distinct pictures (a multiple of 1000)")
    add("--scale", type=float, default=3.0, help="the guidance scale that is distilled")
    add("--guided", type=int, default=40_000, help="samples of the distillation of guidance")
    add("--tuple-files", type=int, nargs=3, default=[10, 15, 15], metavar=("DRAWN", "REAL", "UNROLLED"),
        help="files of tuples: of 1000 ways from noise each, and of 1000 tuples each")
    add("--ways", type=int, default=student.TUPLES, help="ways, or tuples, in a file")
    add("--first", type=int, default=60_000, help="samples of the student before it sees its own pictures noised")
    add("--student", type=int, default=120_000, help="samples of the student after")
    add("--inversion", type=int, default=100_000, help="samples of the inversion network")
    add("--kl", type=float, default=inversion.BETA, help="weight of the mean KL of the noise")
    add("--single-step", action="store_true", help="the inversion network at the first anchor alone, as an ablation")
    add("--student-of", metavar="MODEL", help="a model whose student is taken: the inversion network alone is trained")
    add("--inversion-of", metavar="MODEL", help="a model whose inversion network is trained further [begun from the "
        "student]")
    add("--name", default="inversion", help="of the inversion network's checkpoint, for ablations")
    add("--batch", type=int, default=32)
    add("--until", choices=STAGES, default=STAGES[-1], help="the last stage to be done")
    add("--workers", type=int, help="processes that render pictures")
    add("--threads", type=int, default=torch.get_num_threads())
    return parser


def _student(args: argparse.Namespace, stages: Sequence[str], teacher: Teacher,
             latents: Sequence[np.ndarray]) -> UNet | None:
    """The generator of four calls, or None where an earlier stage is the last."""
    guided = student.train_guided(args.out, teacher, latents, args.guided, args.scale, args.batch)
    if "tuples" not in stages:
        return None
    drawn, real, unrolled = args.tuple_files
    stored = [*student.tuples(args.out, "drawn", drawn, teacher, guided, latents, args.ways),
              *student.tuples(args.out, "real", real, teacher, guided, latents, args.ways)]
    if "student" not in stages:
        return None
    first = student.train_student(args.out, "student-first", guided, teacher, stored, args.first, args.batch)
    stored += student.tuples(args.out, "unrolled", unrolled, teacher, guided, latents, args.ways, first)
    return student.train_student(args.out, "student", first, teacher, stored, args.student, args.batch)


def _network(model: str, name: str) -> Any:
    """A model's "unet" or "inversion", float32, where trainings are."""
    if (found := getattr(sage.load_model(model, device=run.device(), dtype="float32"), name, None)) is None:
        raise SystemExit(f"{model} has no network {name}: name another model")
    return found


def main(argv: list[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    stages = STAGES[:STAGES.index(args.until) + 1]
    teacher = Teacher(args.teacher, args.workers)
    latents = teacher.latents(args.out / "latents", args.data, args.pictures)
    generator = _network(args.student_of, "unet") if args.student_of else _student(args, stages, teacher, latents)
    if generator is None or "inversion" not in stages:
        return

    begun = _network(args.inversion_of, INVERSION) if args.inversion_of else None
    network = inversion.train(args.out, generator, teacher, latents, args.inversion, args.batch, beta=args.kl,
                              single=args.single_step, name=args.name, begun=begun)
    if "export" in stages:
        made = () if args.student_of else ("guided", "student-first", "student")
        history: dict[str, Any] = {name: json.loads((args.out / f"{name}.jsonl").read_text().splitlines()[-1])
                                   for name in (*made, args.name)}
        taken = {"student of": args.student_of, "inversion of": args.inversion_of}
        history |= {name: given for name, given in taken.items() if given}
        history |= {"teacher": teacher.model.fingerprint(), "guidance scale": args.scale, "kl": args.kl,
                    "tuple files": args.tuple_files}
        export(find_model(args.teacher)[1], args.weights, teacher, generator, network, history,
               1 if args.single_step else len(ANCHORS))
        print(args.weights)


if __name__ == "__main__":
    main()
