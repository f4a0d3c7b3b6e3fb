"""`make train`: the bundled model from nothing.  Killed at any moment and started again, it goes on."""

import argparse
from pathlib import Path

import torch

from training import autoencoder, diffusion, flow, networks, run, tokenizer
from training.export import export, export_flow

PARTS = ("autoencoder", "diffusion", "flow")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/stilllife"), help="pictures, checkpoints, curves")
    parser.add_argument("--weights", type=Path, help="where the model is written (default: weights/stilllife, with "
                        "--noisy-captions the folder noisy under --out, with --only flow weights/stilllife-flow)")
    parser.add_argument("--pictures", type=int, default=50_000, help="distinct pictures rendered (a multiple of 1000)")
    parser.add_argument("--of", type=Path, metavar="MODEL", help="where nothing is trained yet, go on from a model of "
                        "this kind: its words, its autoencoder as it is, its UNet and text encoder")
    parser.add_argument("--outer", type=int, default=44_000, help="crops the autoencoder's outer levels are shown")
    parser.add_argument("--outer-of", type=Path, metavar="MODEL", help="take the outer levels from a model instead")
    parser.add_argument("--unet-of", type=Path, metavar="MODEL", help="start from a model's UNet and text encoder")
    parser.add_argument("--autoencoder", type=int, default=40_000, help="pictures the autoencoder is shown")
    parser.add_argument("--diffusion", type=int, default=250_000, help="samples the UNet and text encoder are shown")
    parser.add_argument("--noisy-captions", action="store_true",
                        help="go on from the finished model with captions that are often wrong, as those of the web")
    parser.add_argument("--noisy", type=int, default=40_000, help="samples shown with noisy captions")
    parser.add_argument("--only", choices=PARTS, help="train this part, and write no model: the parts need not wait "
                        "for each other once the outer levels are there; flow is a model of its own, which is written")
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--coarse", type=int, default=0, help="samples the flow is shown first, with a quarter of the "
                        "tokens, some three times as fast")
    parser.add_argument("--flow", type=int, default=300_000, help="samples the flow is shown")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text-of", type=Path, metavar="MODEL", help="give the flow the text encoder of a model, "
                      "instead of that of the latest checkpoint of the diffusion")
    text.add_argument("--taught-by", type=Path, metavar="MODEL", help="let the UNet of a finished model teach the "
                      "flow, which takes its text encoder too")
    begun.add_argument("--flow-of", type=Path, metavar="MODEL", help="start the flow from that of a model")
    parser.add_argument("--workers", type=int, default=1, help="processes of a thread each that train the flow "
                        "together, going on from the mean of their weights every 16 steps (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--export-only", action="store_true", help="write the model from the latest checkpoints")
    return parser


def main() -> None:
    args = _parser().parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    course = diffusion.NOISY if args.noisy_captions else diffusion.CLEAN
    if not args.export_only:
        if args.of:
            outer, seen = networks.take(args.out, args.of)
        else:
            tokenizer.train(args.out / "tokenizer")
            seen, outer = 0, autoencoder.train_outer(args.out, args.pictures, args.outer, args.outer_of)
            if args.only in (None, "autoencoder"):
                autoencoder.train(args.out, outer, args.pictures, args.autoencoder)
        if args.only in (None, "diffusion"):
            diffusion.train(args.out, outer, args.pictures, args.diffusion, start=args.unet_of or args.of,
                            seen=seen)
            if args.noisy_captions:
                diffusion.train(args.out, outer, args.pictures, args.noisy, course)
        if args.only == "flow":
            diffusion.latents(args.out, outer, args.pictures)  # once, before several processes ask for them
            for coarse, samples in ((True, args.coarse), (False, args.flow)):
                asked = (args.out, outer, args.pictures, samples, 0, 180.0, args.text_of, args.taught_by, args.flow_of,
                         coarse)
                if samples and args.workers > 1:
                    run.in_processes(args.workers, flow.train, *asked)
                elif samples:
                    flow.train(*asked)
    if args.only == "flow":
        weights = args.weights or Path("weights/stilllife-flow")
        export_flow(args.out, weights, args.taught_by or args.of)
        print(weights)
    elif args.only is None:
        shipped = Path("weights/stilllife")
        weights = args.weights or (args.out / "noisy" if args.noisy_captions else shipped)
        # Compared with the model that it comes from, it is at the same settings.
        export(args.out, weights, course.name, (args.of or shipped) if args.noisy_captions else None)
        print(weights)


if __name__ == "__main__":
    main()
