"""`sage generate`: prompts -> settings -> pictures made from noise.  No tensors.

Whatever the user gave is checked before torch is even imported, so that a mistake is answered at once.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sage import pictures
from sage.commands.checks import OUT, as_taught_by, check_tokenizer, check_words, in_folder, must_fetch, outputs
from sage.commands.flags import (
    add_method,
    add_model,
    add_ways,
    given_settings,
    published,
    typed,
)
from sage.commands.running import carry_out, model_of
from sage.display.progress import Progress
from sage.errors import PictureError, PromptError, SettingsError
from sage.files import named_after
from sage.method import Method, check_task, method
from sage.models.known import known_model
from sage.models.loras import check_same, read_loras
from sage.models.savings import Savings
from sage.pictures.metadata import differences, made_by, make_generation_record, read_record, settings_in
from sage.prompts.tokens import check_text
from sage.settings import Settings, seed_of

EXAMPLES = """
examples:
  sage generate "a red mug on grass" --model stilllife
  sage generate "a red mug on grass" --count 8 --sheet --method sag --sag-scale 0.5
  sage generate "a cat" "a dog" --negative "a photograph" --width 768 --height 512 --eta 1 --seed 7
  sage generate --config-from out/a-red-mug-on-grass.png         # the same picture again, byte for byte

The defaults in brackets are those for Stable Diffusion 1.x; a model may bring its own.
"""
MOST = 1000  # pictures of a prompt
A_ROW = 5  # pictures of the sheet


def add_command(command: Callable[..., argparse.ArgumentParser], chosen: Method) -> None:
    """Add the command to those of `sage`.

    Args:
        command: (name, run, help, **options) -> the parser of a new command.
        chosen: whose settings are its flags.
    """
    parser = command("generate", run, "make pictures of a prompt from nothing",
                     usage="%(prog)s PROMPT [PROMPT ...] [FLAGS]", epilog=EXAMPLES)
    add = parser.add_argument
    add("prompts", metavar="PROMPT", type=typed, nargs="*",
        help="what it shall show; several are made one after the other")
    # `plain` has a setting of this name too, for edits.
    add("--negative", dest="unwanted", metavar="PROMPT", type=typed, help="what it shall not show")
    add("--width", metavar="N", type=int, help="in pixels [the side that the model was trained at]")
    add("--height", metavar="N", type=int, help="in pixels [the side that the model was trained at]")
    add("--count", metavar="N", type=int, default=1, help="pictures a prompt, each with the next seed [1]")
    add("--batch", metavar="N", type=int, default=1, help="pictures made at once: faster on a GPU, but one made "
                                                          "again alone may then differ in its last bits [1]")
    add("--out", metavar="PATH", help="the picture to write (.png, .jpg, .webp), or a folder "
                                      f"[{OUT}/ and the prompt's words, numbered if that exists]")
    add("--sheet", metavar="PATH", type=str, nargs="?", const="",
        help="also write all pictures as one [beside the first]")
    add("--config-from", metavar="OLD.png", help="prompt, size, model and settings of a picture; other flags win")
    add("--savings", metavar="WORDS", help="need less memory from the first: text (the text encoder off the device), "
                                           "tiles (the autoencoder works in tiles), or text,tiles")
    add_ways(parser, "paths, settings, notes, seconds, versions")
    add_model(parser)
    add_method(parser, chosen, "generate")


@dataclass(frozen=True)
class Job:
    """What one `sage generate` shall do, checked as far as it can be without the model.

    Attributes:
        prompts: one for each picture.
        outs: a file for each picture.
        named: the user named them, and they may be there already.
        size: (width, height), None where it is the model's own.
        base: the settings to start from, None for the model's own.
        changes: the settings that were given as flags.
        fetch: the model must be downloaded first.
        made: on what an earlier picture was made that is made again.
        notes: what the user should know beforehand.
    """

    prompts: tuple[str, ...]
    outs: tuple[Path, ...]
    named: bool
    sheet: Path | None
    negative: str
    size: tuple[int | None, int | None]
    count: int
    batch: int
    model: str
    prediction_type: str | None
    method: Method
    base: Settings | None
    changes: dict[str, Any]
    truncate: bool
    savings: Savings | None
    fetch: bool
    made: dict[str, Any]
    notes: tuple[str, ...]


def plan_generation(args: argparse.Namespace) -> Job:
    """Check everything that was given, and decide where everything goes.

    Raises:
        SageError: whatever is wrong with it.
    """
    changes, chosen = given_settings(args), method(args.method)
    if args.published and args.config_from:
        raise SettingsError("--published and --config-from are two sets of settings: give one of them")
    old = read_record(args.config_from, "generate", args.method) if args.config_from else {}
    check_task(chosen, "generate")
    if old and old["method"] != chosen.where:
        raise SettingsError(f"{args.config_from} was made by {old['method']}, and the method is {chosen.where}: leave "
                            "out one of them")
    base, truncate = settings_in(old) if old else published(args), args.truncate or old.get("truncate", False)
    for name in ("count", "batch"):
        if not 1 <= vars(args)[name] <= MOST:
            raise SettingsError(f"--{name} is {vars(args)[name]}: must be between 1 and {MOST}")

    prompts = args.prompts or ([old["target"]] if old else [])
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise PromptError('there is no prompt: say what the picture shall show, such as "a red mug on grass"')
    negative = args.unwanted if args.unwanted is not None else old.get("negative", "")
    for prompt in (*prompts, negative):
        check_text(prompt)
    (base or chosen.Settings()).but(**changes)

    size = args.width or old.get("size", (None, None))[0], args.height or old.get("size", (None, None))[1]
    loras = read_loras(args.lora)
    args.lora = loras or None  # what is read is not read again
    model = args.model or model_of(old, args.config_from)
    said: tuple[str, ...] = ()
    if args.prompts:
        prompts, said = as_taught_by(model, *prompts)
    fetch, known = must_fetch(model), known_model(model)
    if known and known.repo:
        check_words(known, (*prompts, negative), truncate)
        for name, side in zip(("width", "height"), size, strict=True):
            if side is not None:
                pictures.check_side(name, side, known.multiple)
    check_tokenizer(args.tokenizer)

    of_pictures = tuple(prompt for prompt in prompts for _ in range(args.count))
    outs, sheet = outputs(args.out, f"{slug(prompts[0])}.png", len(of_pictures)), None
    if args.sheet is not None:
        sheet = Path(args.sheet) if args.sheet else outs[0].with_name(named_after(outs[0].stem, "-sheet.png"))
    if sheet in outs:
        raise PictureError(f"{sheet} cannot hold both a picture and the sheet")
    for out in (*outs, *([sheet] if sheet else [])):
        pictures.check_writable(out)
    notes = [*said, *(check_same(old, loras, args.config_from) if old else [])]
    if old and old["batch"] != args.batch:
        notes.append(f"the picture was made in a batch of {old['batch']}: this one may differ in its last bits")
    return Job(of_pictures, outs, not in_folder(args.out), sheet, negative, size, args.count, args.batch, model,
               args.prediction_type or old.get("prediction_type"), chosen, base, changes, truncate,
               read_savings(args.savings) if args.savings else Savings.from_dict(old["savings"]) if old else None,
               fetch, old.get("made", {}), tuple(notes))


def slug(prompt: str) -> str:
    """The first words of a prompt as a file's name."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    name = ""
    for word in words:
        if len(name) + len(word) > 40:
            break
        name += f"-{word}" if name else word
    return name or "picture"


def read_savings(text: str) -> Savings:
    """Savings from their names, separated by commas; SettingsError for others."""
    return Savings.from_dict({name.strip(): True for name in text.split(",")})


def run(args: argparse.Namespace) -> None:
    """Make, write, and say where."""
    carry_out(plan_generation(args), args, _make_all)


def _make_all(job: Job, model: Any, progress: Progress, print_paths: bool) -> dict[str, Any]:
    from sage.editing import settings_for
    config = settings_for(model, job.base, job.method.where, "generate").but(**job.changes)
    size = (job.size[0] or model.sample_size, job.size[1] or model.sample_size)
    records, made, outs = list[dict[str, Any]](), list[tuple[str, Image.Image]](), list[Path]()
    notes = differences(job.made, made_by(model))
    for prompt, out, result in _made(job, model, config, size, progress):
        record = make_generation_record(model, prompt, job.negative, result.settings, size, job.truncate,
                                        job.prediction_type, result.savings, min(job.batch, len(job.prompts)))
        outs.append(pictures.save_picture(result.image, out, record, new=not job.named))
        if print_paths:
            progress.say(outs[-1])
        notes += [n for n in result.notes if n not in notes]
        records.append(record)
        made.append((f"seed {getattr(result.settings, 'seed', 0)}", result.image))
    if job.sheet:
        rows = [made[start:start + job.count] for start in range(0, len(made), job.count)]
        if len(rows) > 1:
            rows = [[(f"{prompt}: {title}", image) for title, image in row]
                    for prompt, row in zip(job.prompts[::job.count], rows, strict=True)]
        pictures.save_picture(pictures.sheet([row[i:i + A_ROW] for row in rows for i in range(0, len(row), A_ROW)]),
                              job.sheet)
        if print_paths:
            progress.say(job.sheet)
    return {"out": [str(out) for out in outs], "sheet": str(job.sheet) if job.sheet else None, "settings": records,
            "notes": notes}


def _made(job: Job, model: Any, config: Settings, size: tuple[int, int], progress: Progress) -> Iterator[Any]:
    """Each picture with its prompt and its file, as soon as its batch is done."""
    from sage.generation import generate_batch
    from sage.method import Request
    seeds = [seed_of(config) + i % job.count for i in range(len(job.prompts))]
    for start in range(0, len(job.prompts), job.batch):
        part = slice(start, start + job.batch)
        requests = [Request(target=prompt, negative=job.negative) for prompt in job.prompts[part]]
        results = generate_batch(model, requests, config, seeds[part], size, progress, truncate=job.truncate,
                                 savings=job.savings)
        yield from zip(job.prompts[part], job.outs[part], results, strict=True)
