"""`sage bench stilllife --experiment places`: arguments -> edits of places, and their page."""

import argparse
import sys
from pathlib import Path

from sage.bench.places import FULL, PLACES, QUICK, run_places
from sage.bench.stilllife import QUICK as QUICK_EDITS
from sage.display.progress import Progress
from sage.errors import SettingsError


def run_experiment(args: argparse.Namespace) -> int:
    """Make what is missing, and write and print the page."""
    given = [f"--{name}" for name, value in (("config", args.config), ("engine ray", args.engine == "ray"),
                                             ("shard", args.shard != (1, 1))) if value]
    if len(args.experiment) > 1 or given or args.benchmark != "stilllife":
        raise SettingsError(f"--experiment {PLACES} is of still lifes, and run alone: leave out "
                            f"{given[0] if given else 'the other experiments'}")
    import sage
    each = QUICK if args.each == QUICK_EDITS else args.each or FULL
    model = sage.load_model(args.model, device=args.device, dtype=args.dtype)
    with Progress(not args.quiet and sys.stderr.isatty(), unit="edit", resumes=True) as bar:
        path = run_places(model, Path(args.out), each, args.side, bar)
    print(path.read_text(), end="")
    return 0
