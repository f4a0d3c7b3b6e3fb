"""`sage edit`, `sage info`, `sage models`, `sage fetch`: arguments -> EditConfig -> files.  No tensors.

Whatever the user gave is checked before torch is even imported, so that a mistake is answered at once.  A mistake is
one line on stderr and exit status 2; Ctrl-C leaves no half-written file and exits with 130.  `sage invert` is
in sage/trajectory/cli.py, `sage batch` in sage/batch/cli.py, `sage bench` and `sage score` are in sage/bench/cli.py.
"""

import argparse
import errno
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sage import __version__, console
from sage import image as pictures
from sage.asked import OUT, check_known, check_phrases
from sage.batch.cli import add_command as add_batch_command
from sage.bench.cli import add_commands as add_bench_commands
from sage.config import EditConfig
from sage.errors import ModelError, PictureError, SageError, SettingsError, out_of_memory
from sage.explain import FILES as EXPLAINED
from sage.files import numbered
from sage.flags import (
    DEFAULT_MODEL,
    add_model,
    add_settings,
    add_ways,
    fetch_model,
    given_settings,
    load,
    must_fetch,
)
from sage.models.known import KNOWN, installed, known_model, unknown
from sage.progress import Progress
from sage.record import check_prompt, identity, made_by, make_record, read_record, versions
from sage.studio.cli import add_command as add_ui_command
from sage.trajectory.cli import add_command as add_invert_command
from sage.trajectory.label import check_label, is_trajectory, read_label

EXAMPLES = """
examples:
  sage edit cat.jpg --source "a cat on a sofa" --target "a dog on a sofa"
  sage edit cat.jpg --source "a cat on a sofa" --target "a dog on a sofa" --target "a fox on a sofa" --sheet
  sage edit cat.jpg --source "a cat on a sofa" --target "a grumpy cat on a sofa" --reweight grumpy:3 --out grumpy.png
  sage edit cat.jpg --config-from out/cat-edit.png --steps 100
  sage edit cat.jpg --trajectory out/cat-trajectory.safetensors --target "a dog on a sofa"    # made by sage invert

The source prompt describes the picture as it is, the target prompt as it shall be, with as few words changed as
possible.  The defaults in brackets are those for Stable Diffusion 1.x; each model brings its own.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # any file name can be printed: as its bytes, or escaped
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding == "utf-8" else "backslashreplace")
    try:
        args = make_parser().parse_args(argv)
        status = args.run(args) or 0
        if sys.stdout:
            sys.stdout.flush()
        return status
    except SageError as error:
        return console.fail(str(error))
    except KeyboardInterrupt:
        print("sage: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `sage info ... | head`: whoever read has had enough
        _abandon_stdout()
        return 141
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            _abandon_stdout()
            return console.fail(f"the disk is full ({error.strerror}): not all of the output could be written")
        if not out_of_memory(error):
            raise
        return console.fail("out of memory: try a smaller --size, --dtype float16 on a GPU, or --device cpu")


def _abandon_stdout() -> None:
    """Let the interpreter's last flush go nowhere, and fail no more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str):
        sys.exit(console.fail(f"{message} (see {self.prog} --help)"))


# ---- arguments


def make_parser() -> Parser:
    """The parser of all commands; every field of EditConfig is a flag of `sage edit`."""
    parser = Parser(prog="sage", description="Edit a real picture by rewriting its description.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sage {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, **options: Any) -> Parser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False,
                                  **options)
        sub.set_defaults(run=run)
        return sub

    _add_edit(command("edit", run_edit, "edit a picture", epilog=EXAMPLES,
                      formatter_class=argparse.RawDescriptionHelpFormatter))
    add_invert_command(command)
    add_batch_command(command)
    info = command("info", run_info, "tell what made a picture, or what a model or a trajectory is")
    info.add_argument("what", metavar="PICTURE-or-MODEL", help="an edited picture, a trajectory, or a model's name, "
                                                               "folder or file")
    info.add_argument("--json", action="store_true", help="one JSON object on stdout")
    models = command("models", run_models, "list the models known by name")
    models.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fetch = command("fetch", run_fetch, "download a known model, once")
    fetch.add_argument("name", metavar="NAME", help=", ".join(name for name, m in KNOWN.items() if m.repo))
    fetch.add_argument("--quiet", action="store_true", help="no progress bar")
    add_bench_commands(command)
    add_ui_command(command)
    return parser


def _add_edit(parser: Parser) -> None:
    add = parser.add_argument
    add("picture", metavar="IMG", help="the picture to edit")
    add("--source", metavar="PROMPT", help="what the picture shows")
    add("--target", metavar="PROMPT", action="append", help="what it shall show; several share one inversion")
    add("--out", metavar="PATH", help="the picture to write (.png, .jpg, .webp), or a folder "
                                      f"[{OUT}/NAME-edit.png, numbered if that exists]")
    add("--sheet", metavar="PATH", nargs="?", const="", help="also write one picture of input, edit, reconstructions "
                                                             "and blending mask [beside the edit]")
    add("--explain", metavar="DIR", help="also write what happened inside the edit: PNG files and a page, index.html; "
                                         "of several edits, in folders 1, 2, ...")
    add("--config-from", metavar="OLD.png", help="prompts, model and settings of an earlier edit; other flags win")
    add("--trajectory", metavar="T.safetensors", help="start from what `sage invert` wrote of this picture: its model, "
                                                      "source prompt and settings hold; other flags win")
    add_ways(parser, "paths, settings, notes, seconds, versions")
    add_model(parser)
    add_settings(parser)


# ---- sage edit


@dataclass(frozen=True)
class Job:
    """What one `sage edit` shall do, checked as far as it can be without the model.

    Attributes:
        trajectory: to start from, None to invert first.
        base: the settings to start from, None for the model's own.
        changes: the settings that were given as flags.
        fetch: the model must be downloaded first.
        inside: the folders that explain the edits, if that is wanted.
        notes: what the user should know beforehand.
    """

    image: Image.Image
    trajectory: Path | None
    picture: dict[str, str]
    source: str
    targets: tuple[str, ...]
    model: str
    prediction_type: str | None
    base: EditConfig | None
    changes: dict[str, Any]
    truncate: bool
    fetch: bool
    outs: tuple[Path, ...]
    sheet: Path | None
    inside: tuple[Path, ...]
    made: dict[str, Any]
    notes: tuple[str, ...]


def plan_edit(args: argparse.Namespace) -> Job:
    """Check everything that was given, and decide where everything goes.

    Raises:
        SageError: whatever is wrong with it.
    """
    changes = given_settings(args)
    old = read_record(args.config_from) if args.config_from else {}
    bases = [f for f in ("--published", "--config-from", "--trajectory") if vars(args)[f.strip("-").replace("-", "_")]]
    if len(bases) > 1:
        raise SettingsError(f"{bases[0]} and {bases[1]} are two sets of settings: give one of them")
    label = read_label(args.trajectory) if args.trajectory else None
    if label:
        old = label.settings()
    base = EditConfig.published() if args.published else EditConfig.from_dict(old["config"]) if old else None

    truncate = args.truncate or old.get("truncate", False)

    source = check_prompt("source", args.source if args.source is not None else old.get("source"))
    targets = args.target or [old.get("target")]
    targets = tuple(check_prompt("target", target) for target in targets)
    check_phrases(source, targets, (base or EditConfig()).but(**changes))

    path = Path(args.picture)
    image = pictures.open_picture(path)
    picture = identity(path)
    notes = []
    if label:
        check_label(label, args.trajectory, image, source, changes)
    elif old and old["picture"]["sha256"] != picture["sha256"]:
        notes.append(f"{path} is not the picture that {args.config_from} was made from ({old['picture']['name']})")

    model = args.model or _model_of(old, args.config_from or args.trajectory)
    fetch, known = must_fetch(model), known_model(model)
    if known and known.repo:
        check_known(image, (source, *targets), changes, truncate)
    if args.tokenizer and not Path(args.tokenizer).is_dir():
        raise ModelError(f"--tokenizer {args.tokenizer} is no folder")

    outs = _outs(args.out, path, len(targets))
    sheet = None
    if args.sheet is not None:
        sheet = Path(args.sheet) if args.sheet else outs[0].with_name(f"{outs[0].stem}-sheet.png")
    inside = _insides(args.explain, len(targets))
    for folder in inside:
        pictures.check_writable(folder / EXPLAINED[0])
    explained = {(folder / name).absolute() for folder in inside for name in EXPLAINED}
    written = [*outs, *([sheet] if sheet else [])]
    for out in written:
        pictures.check_writable(out, image.size if out in outs else (1, 1))
    for target in targets:
        pictures.settings_text({"source": source, "target": target, "picture": picture,
                                "config": (base or EditConfig()).but(**changes).as_dict()})
    for out in (*written, *explained):
        if out.exists() and out.samefile(path):
            raise PictureError(f"{out} is the picture to edit, and would be overwritten: give another --out, --sheet "
                               "or --explain")
    if sheet in outs:
        raise PictureError(f"{sheet} cannot hold both the edit and the sheet")
    if twice := explained.intersection(out.absolute() for out in written):
        raise PictureError(f"{min(twice)} belongs to the explanation too: give another --out, --sheet or --explain")
    prediction = args.prediction_type or old.get("prediction_type")
    return Job(image, Path(args.trajectory) if label else None, picture, source, targets, model, prediction, base,
               changes, truncate, fetch, outs, sheet, inside, old.get("made", {}), tuple(notes))


def _model_of(old: dict[str, Any], where: str | None) -> str:
    """The model of an earlier edit, by name only: no path that stands in a picture is ever opened."""
    if not old:
        return DEFAULT_MODEL
    if old["model"] not in KNOWN:
        raise ModelError(f"{where} was made with a model of your own, {old['model']!r}: say where it is with --model")
    return old["model"]


def _outs(out: str | None, picture: Path, number: int) -> tuple[Path, ...]:
    """Where the edits go: names of our own are never those of files that exist, the user's are taken as given."""
    if out is None or out.endswith(("/", os.sep)) or Path(out).is_dir():
        folder = OUT if out is None else Path(out)
        free = (path for path in numbered(folder / f"{picture.stem}-edit.png") if not path.exists())
        return tuple(next(free) for _ in range(number))
    path = Path(out)
    if number == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, number + 1))


def _insides(folder: str | None, number: int) -> tuple[Path, ...]:
    """The folders that explain the edits: the one given, or in it one for each of several edits."""
    if folder is None:
        return ()
    if not folder:
        raise PictureError("--explain has no folder: give one")
    return (Path(folder),) if number == 1 else tuple(Path(folder) / str(i) for i in range(1, number + 1))


def run_edit(args: argparse.Namespace) -> None:
    """Edit, write, and say where."""
    job, began = plan_edit(args), time.monotonic()
    note = (lambda message: None) if args.quiet else console.note
    for message in job.notes:
        note(message)
    if job.fetch:
        fetch_model(job.model, args)
    model, messages = load(job.model, job.prediction_type, args)
    for message in messages:
        note(message)
    with Progress(shown=sys.stderr.isatty() and not args.quiet) as progress:
        report = _edit_all(job, model, progress, note, print_paths=not args.json)
    if args.json:
        report["notes"] = [*job.notes, *messages, *report["notes"]]
        print(json.dumps({**report, "seconds": round(time.monotonic() - began, 2), "versions": versions()}))


def _edit_all(job: Job, model: Any, progress: Progress, note: Any, print_paths: bool) -> dict[str, Any]:
    import sage
    config = (job.base or model.recommended).but(**job.changes)
    plans = [sage.check_prompts(model, job.source, target, config, truncate=job.truncate) for target in job.targets]
    notes = _warnings(job, config, made_by(model))

    trajectory, rebuilt, rows, settings = None, [], [], []
    if job.trajectory:
        from sage.inversion import check_trajectory
        trajectory = sage.load_trajectory(job.trajectory, model)
        for plan in plans:  # before the first edit of several is made
            check_trajectory(trajectory, [plan], config, [job.image])
    for i, (target, out) in enumerate(zip(job.targets, job.outs, strict=True)):
        watch = None
        if job.inside:
            from sage.explain import Explanation
            watch = Explanation(model, job.image, job.source, target, config, truncate=job.truncate)
        result = sage.edit(model, job.image, source=job.source, target=target, config=config, progress=progress,
                           trajectory=trajectory, truncate=job.truncate, watch=watch)
        record = make_record(model, job.source, target, config, job.picture, job.truncate, job.prediction_type)
        pictures.save_picture(result.image, out, record)
        if print_paths:
            print(out, flush=True)
        notes += [n for n in result.notes if n not in notes]
        settings.append(record)
        if (job.sheet or watch) and not (rebuilt and trajectory is result.trajectory):
            rebuilt = [("autoencoder alone", sage.vae_reconstruction(model, result.trajectory)),
                       ("inversion and back", sage.ddim_reconstruction(model, result.trajectory, progress))]
        if job.sheet:
            mask = [("may change", pictures.show_mask(job.image, result.masks[-1]))] if result.masks else []
            rows.append([("input", job.image), (target, result.image), *rebuilt, *mask])
        if not (config.reweight and config.reweight_passes == "all"):  # otherwise the target shapes its inversion
            trajectory = result.trajectory
        if watch:
            page = watch.write(job.inside[i], result, progress, tuple(picture for _, picture in rebuilt))
            if print_paths:
                print(page, flush=True)
    if job.sheet:
        pictures.save_picture(pictures.sheet(rows), job.sheet)
        if print_paths:
            print(job.sheet, flush=True)
    for message in notes:
        note(message)
    return {"out": [str(out) for out in job.outs], "sheet": str(job.sheet) if job.sheet else None,
            "explain": [str(folder) for folder in job.inside], "settings": settings, "notes": notes}


def _warnings(job: Job, config: EditConfig, made: dict[str, Any]) -> list[str]:
    """What can be told before the first step."""
    notes = []
    if "seed" in job.changes and config.encode == "mean" and config.noise_fraction == 0:
        notes.append("seed has no effect: nothing in this edit is random")
    differ = [f"{name} {str(job.made[name])[:20]} then, {made[name]} now" for name in ("device", "dtype")
              if job.made.get(name, made[name]) != made[name]]
    if differ:
        notes.append(f"the result may differ a little from the earlier one: {'; '.join(differ)}")
    return notes


# ---- the other commands


def run_info(args: argparse.Namespace) -> None:
    """What made a picture, or what a model or a trajectory is."""
    path = Path(args.what)
    if path.suffix.lower() == ".safetensors" and is_trajectory(path):
        facts = read_label(path).facts(path)
    elif known_model(args.what) or path.is_dir() or path.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".bin"):
        facts = _model_facts(args.what)
    elif path.exists() or path.suffix:
        facts = read_record(path)
    else:
        raise ModelError(f"{unknown(args.what)}; there is no such picture either")
    if args.json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{_shown(name)}:")
            for key, inner in value.items():
                print(f"  {_shown(key)}: {_shown(inner)}")
        else:
            print(f"{_shown(name)}: {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", " ") if value > 9999 else str(value)
    return console.printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _model_facts(model: str) -> dict[str, Any]:
    known = known_model(model)
    if known and known.repo and not installed(known.name):
        return _known_facts(known.name) | {"on disk": False}
    from sage.models.describe import describe
    facts = describe(model)
    return (_known_facts(known.name) if known else {}) | facts


def _known_facts(name: str) -> dict[str, Any]:
    m = KNOWN[name]
    facts = {"name": name, "family": m.family, "picture side": m.size, "prediction_type": m.prediction_type,
             "licence": m.licence}
    return facts | ({"licence text": m.licence_url, "from": f"{m.repo} at {m.revision[:12]}", "download": m.download}
                    if m.repo else {})


def run_models(args: argparse.Namespace) -> None:
    """Every known model, and whether it is here."""
    found = {name: installed(name) for name in KNOWN}
    if args.json:
        print(json.dumps({name: _known_facts(name) | {"path": str(path) if path else None}
                          for name, path in found.items()}))
        return
    for name, path in found.items():
        m = KNOWN[name]
        size = f"{m.download / 1e9:.1f} GB" if m.download else "bundled"
        place = path or (f"not here: sage fetch {name}" if m.repo else "missing")
        print(f"{name:12} {m.size:3} px  {size:8} {m.licence:24} {place}")


def run_fetch(args: argparse.Namespace) -> None:
    """Download a model unless it is here; print its folder."""
    known = known_model(args.name)
    if known is None:
        raise unknown(args.name)
    path = installed(known.name)
    if path is None:
        from sage.models.fetch import fetch
        path = fetch(known.name, progress=not args.quiet)
    print(path)
