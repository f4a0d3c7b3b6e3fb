"""`make demo`: one edit of each kind by the bundled model, beside the truth that the still-life world renders.

    python examples/demo.py [--seed 3] [--out out/demo.png]
"""

import argparse
import sys


def changed(case) -> str:
    """The edited words, for a title."""
    before, after = (" ".join(words) for words in (case.source_words, case.target_words))
    return f"{before or '(nothing)'} -> {after or '(nothing)'}"


def main() -> int:
    """Make the sheet and say where it is; returns the exit status."""
    try:
        return demo()
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


def demo() -> int:
    """Imports what it needs itself: that takes long enough for Ctrl-C."""
    from sage.machine.threads import sleep_while_waiting
    sleep_while_waiting()  # before torch is imported
    from tqdm import tqdm

    import sage
    from sage.editing import check_prompts, edit_batch
    from sage.machine.allocator import keep_freed_memory
    from sage.pictures import from_pixels, save_picture, sheet
    from sage.stilllife import KINDS, edit_case

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=3, help="which held-out scenes (default: %(default)s)")
    parser.add_argument("--kinds", type=int, nargs="+", default=[*range(len(KINDS))], choices=range(len(KINDS)),
                        metavar="N", help="; ".join(f"{i} {kind}" for i, kind in enumerate(KINDS)))
    parser.add_argument("--out", default="out/demo.png", help="the sheet (default: %(default)s)")
    args = parser.parse_args()
    try:
        keep_freed_memory()
        model = sage.load_model("stilllife")
        cases = [edit_case(kind, args.seed) for kind in args.kinds]
        images = [[from_pixels(p) for p in case.pictures(model.sample_size)] for case in cases]
        sources = [source for source, _ in images]
        config = sage.method("sage").recommended(model)
        plans = [check_prompts(model, case.source_prompt, case.target_prompt, config) for case in cases]
        with tqdm(desc=f"{len(cases)} edits", disable=None) as bar:
            def progress(phase: str, done: int, total: int) -> None:
                bar.set_description(phase)
                bar.total, bar.n = total, done
                bar.refresh()

            results = edit_batch(model, sources, plans, config, progress)
        rows = [[(case.source_prompt, source), (f"edit: {changed(case)}", result.image), ("the true edit", truth)]
                for case, (source, truth), result in zip(cases, images, results, strict=True)]
        page = sheet([[cell for row in rows[i:i + 2] for cell in row] for i in range(0, len(rows), 2)], side=192)
        print(save_picture(page, args.out))
    except sage.SageError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
