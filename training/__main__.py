"""`make train`: the bundled model from nothing.  Killed at any moment and started again, it goes on."""

import argparse
from pathlib import Path

import torch

from training import autoencoder, diffusion, tokenizer
from training.export import export


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/stilllife"), help="pictures, checkpoints, curves")
    parser.add_argument("--weights", type=Path, default=Path("weights/stilllife"), help="where the model is written")
    parser.add_argument("--pictures", type=int, default=50_000, help="distinct pictures rendered (a multiple of 1000)")
    parser.add_argument("--outer", type=int, default=44_000, help="crops the autoencoder's outer levels are shown")
    parser.add_argument("--outer-of", type=Path, metavar="MODEL", help="take these from a model instead")
    parser.add_argument("--autoencoder", type=int, default=40_000, help="pictures the autoencoder is shown")
    parser.add_argument("--diffusion", type=int, default=250_000, help="samples the UNet and text encoder are shown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--export-only", action="store_true", help="write the model from the latest checkpoints")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.export_only:
        tokenizer.train(args.out / "tokenizer")
        autoencoder.train(args.out, args.pictures, args.autoencoder)
        diffusion.train(args.out, args.pictures, args.diffusion)
    export(args.out, args.weights)
    print(args.weights)


if __name__ == "__main__":
    main()
