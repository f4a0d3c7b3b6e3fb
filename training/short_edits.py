"""A newcomer's own prompts: 60 short edits, each asked for in five phrasings, on one contact sheet for the eye.

    python -m training.short_edits [--model stilllife] [--method auto] [--out runs/short_edits]

Writes sheet.png, a row for each edit (source, true edit, five results), and prompts.txt, which says what was asked.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import sage
from sage import pictures
from sage.auto import AUTO
from sage.editing import settings_for
from sage.files import written_whole
from sage.stilllife import EditCase, edit_case
from sage.stilllife.edits import Prompts, asked
from sage.stilllife.prompts import draw_wording
from sage.stilllife.scenes import ATTRIBUTES
from training import cases

FIRST_SEED = 300_000  # far from those of training, tuning and the benchmark
KINDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 6)  # colours twice: what newcomers try first
EACH, PHRASINGS = 6, 5


def edits() -> list[EditCase]:
    """The 60 edits, of scenes held out from training."""
    return [edit_case(kind, FIRST_SEED + 10 * i + number, varied=True)
            for i, kind in enumerate(KINDS) for number in range(EACH)]


def phrasings(edit: EditCase, seed: int) -> list[Prompts]:
    """Five ways to ask for an edit: "a", "the" and no article with just the noun and what changes, then with two more
    attributes that stay, as a sentence and as a list."""
    rng = np.random.default_rng((9, seed))
    found = [asked(edit.source, edit.target, replace(draw_wording(rng), article=article, listed=False, lead=""))
             for article in ("a", "the", "")]
    for listed in (False, True):
        also = frozenset(rng.choice(ATTRIBUTES, 2, replace=False).tolist())
        found.append(asked(edit.source, edit.target, replace(draw_wording(rng), listed=listed), also))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stilllife")
    parser.add_argument("--method", default=AUTO, help="by name; auto: what `sage edit` takes")
    parser.add_argument("--out", type=Path, default=Path("runs/short_edits"))
    args = parser.parse_args()
    model = sage.load_model(args.model)
    drawn = [cases.of(edit, prompts, model.sample_size)
             for i, edit in enumerate(edits()) for prompts in phrasings(edit, i)]
    results = cases.run(model, drawn, settings_for(model, None, args.method))
    rows = []
    for i in range(0, len(drawn), PHRASINGS):
        part = drawn[i:i + PHRASINGS]
        rows.append([("source", part[0].source), ("true edit", part[0].truth),
                     *((case.prompts.target, result) for case, result in zip(part, results[i:], strict=False))])
    args.out.mkdir(parents=True, exist_ok=True)
    pictures.save_picture(pictures.sheet(rows, side=model.sample_size), args.out / "sheet.png")
    with written_whole(args.out / "prompts.txt") as file:
        file.write("".join(f"{c.prompts.source} -> {c.prompts.target}\n" for c in drawn).encode())
    print(args.out)


if __name__ == "__main__":
    main()
